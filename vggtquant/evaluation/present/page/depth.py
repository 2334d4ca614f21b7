# SPDX-License-Identifier: Apache-2.0
"""Section of the page: depth and its error of every scheme on one frame, on common scales."""

from __future__ import annotations

from typing import Any

from ...measure import pictures
from .. import text
from .elements import Html, Part, breakable, join, tag

# As in the previews of `vggtquant run`, near is bright; errors are the brighter the larger.
_DEPTH, _ERROR = "viridis", "magma"


def section(document: dict[str, Any]) -> Html | None:
    """The pictures of all schemes; None for a document without them."""
    block = document.get("pictures")
    if not block:
        return None
    near, far = block["depth_range"]
    low, high = block["error_range"]
    words = f"Frame {block['frame']} of scene {block['scene']}, {block['width_px']} x "
    words += (
        f"{block['height_px']} px. Left: depth. Right: its relative error, |scheme - FP32| / FP32."
    )
    return join(
        [
            tag("p", words),
            _scale(_DEPTH, f"{far:.3g}", f"{near:.3g}", "depth, model units, logarithmic"),
            _scale(_ERROR, f"{100 * low:g} %", f"{100 * high:g} %", "error, logarithmic"),
            tag(
                "div",
                *(_figure(name, found, block) for name, found in block["schemes"].items()),
                class_="pictures",
            ),
        ]
    )


def _scale(palette: str, left: str, right: str, words: str) -> Html:
    return tag(
        "div",
        tag("span", left),
        tag("img", src=pictures.ramp(palette), alt=f"colours from {left} to {right}"),
        tag("span", f"{right} ({words})"),
        class_="scale",
    )


def _figure(name: str, found: dict[str, Any], block: dict[str, Any]) -> Html:
    size = {"width": block["width_px"], "height": block["height_px"]}
    shown: list[Part] = [
        tag("img", src=pictures.coloured(found["depth"], _DEPTH), alt=f"depth of {name}", **size)
    ]
    if "error" in found:
        error = pictures.coloured(found["error"], _ERROR)
        shown.append(tag("img", src=error, alt=f"depth error of {name}", **size))
        median, p95 = (text.percent(found[key]) for key in ("error_median", "error_p95"))
        words = f"error: median {median} %, 95th percentile {p95} %"
    else:
        frame = pictures.data_uri(block["input"])
        shown.insert(0, tag("img", src=frame, alt="the input frame", **size))
        words = "the input frame and its depth: the reference"
    caption = tag("figcaption", tag("strong", breakable(name)), " ", tag("small", words))
    return tag("figure", tag("div", *shown, class_="pair"), caption)
