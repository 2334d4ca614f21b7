# SPDX-License-Identifier: Apache-2.0
"""Draws a document of results as one HTML file that needs no network and no script to be read.

page.html is the frame, sections/ holds a Jinja2 template a section, parts.html what they share. The
script only sorts tables and opens what is folded before printing. Nothing is computed here but
places on a page; a section that a document has nothing for is left out.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup, escape

from ... import formatting
from ...analyse import shares
from ...measure import pictures
from ...schema import (
    CHARTS_NAME,
    JSON_NAME,
    SENSITIVITY_NAME,
    SHARES_NAME,
    TEXT_NAME,
    Document,
    Environment,
    Kind,
)
from .. import charts, columns, conclusions, heatmap, text
from ..conclusions import TOLD, Topic
from ..tables import Table

_FOLDER = Path(__file__).parent

# A section's template, its heading, and whether the document has anything for it.
SECTIONS: Mapping[str, tuple[str, Callable[[Document], bool]]] = {
    "results": ("Results", lambda d: True),
    "charts": ("Charts", lambda d: True),
    "outputs": ("Errors by output", lambda d: bool(_compared(d))),
    "depth": ("Depth and its error", lambda d: d.pictures is not None),
    "floor": ("Noise floor", lambda d: bool(d.noise_floor.errors)),
    "scores": ("Scores and chance", lambda d: any(conclusions.sections(d))),
    "layers": ("Which layers make the error", lambda d: bool(_tried(d))),
    "resources": ("Memory and loading", lambda d: True),
    "proof": ("Proof that the quantized layers ran", lambda d: any(r.proof for r in d.schemes)),
    "cautions": ("Cautions", lambda d: True),
    "environment": ("Environment", lambda d: True),
    "files": ("Files and commands", lambda d: True),
}


def draw(document: Document) -> str:
    """The page of a document."""
    script = (_FOLDER / "page.js").read_text("utf-8")
    # Pictures from the file itself and this one script: nothing else is loaded or run.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    there = {key: title for key, (title, has) in SECTIONS.items() if has(document)}
    return (
        _environment()
        .get_template("page.html")
        .render(
            document=document,
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'",
            style=Markup((_FOLDER / "page.css").read_text("utf-8")),
            script=Markup(script),
            sections=there,
            chosen={document.recommendation.scheme, *(n for _, n in conclusions.picks(document))},
        )
    )


def notebook(document: Document) -> str:
    """The recommendation and the table, for a notebook's cell."""
    return _environment().get_template("notebook.html").render(document=document)


def _environment() -> jinja2.Environment:
    """Every text is escaped where it is put into a page."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"breakable": breakable, "plain": _plain, "percent": formatting.percent}
    found.globals |= {
        "charts": charts,
        "columns": columns,
        "conclusions": conclusions,
        "heat": heat,
        "heatmap": heatmap,
        "is_table": lambda part: isinstance(part, Table),
        "pictures": pictures,
        "shares": shares,
        "text": text,
        "formatting": formatting,
        "TOLD": TOLD,
        "Topic": Topic,
        "data_uri": _chart,
        "commands": _commands,
        "compared": _compared,
        "files": _files,
    }
    return found


def breakable(name: str) -> Markup:
    """A name that may be broken after _ and . so that it fits a narrow column.

    >>> breakable("a_b<")
    Markup('a_<wbr>b&lt;')
    """
    return Markup(str(escape(name)).replace("_", "_<wbr>").replace(".", ".<wbr>"))


def heat(value: float | None, worst: float) -> Markup:
    """The attributes of a cell shaded by the square root of its share of the worst value."""
    if value is None:
        return Markup('class="none"')
    share = (max(value, 0.0) / worst) ** 0.5 if worst else 0.0
    over = " over" if share > 0.62 else ""
    return Markup(f'class="heat{over}" style="--v:{100 * share:.0f}%"')


def _compared(document: Document) -> list[Any]:
    return [row for row in document.finished() if row.kind is not Kind.BASELINE and row.metrics]


def _tried(document: Document) -> list[Any]:
    return list(document.sensitivity.layers) if document.sensitivity else []


def _chart(document: Document, name: str) -> str:
    """One of charts.CHARTS as a data URI."""
    picture = base64.b64encode(charts.svg(document, name).encode()).decode()
    return f"data:image/svg+xml;base64,{picture}"


def _plain(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    return "default" if value is None else str(value)


def _files(document: Document) -> dict[str, str]:
    """The files beside the page."""
    found = {
        JSON_NAME: "every figure, for programs",
        TEXT_NAME: "the same in words",
        CHARTS_NAME: "six charts",
    }
    if document.sensitivity:
        found |= {
            SENSITIVITY_NAME: "the layers' shares of the error",
            SHARES_NAME: "the same for vggtquant quantize --sensitivity",
        }
    return found


def _commands(env: Environment) -> list[str]:
    threads = env.threads.omp_num_threads
    before = f"OMP_NUM_THREADS={shlex.quote(threads)} " if threads else ""
    return [
        f"VGGTQUANT_ISA={env.cpu.isa_active} {before}{shlex.join(env.argv)}",
        f"vggtquant compare {JSON_NAME} OTHER/{JSON_NAME}",
    ]
