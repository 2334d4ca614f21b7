# SPDX-License-Identifier: Apache-2.0
"""Pictures of depth and of its error for every scheme, small enough to stand in the document.

A picture is a PNG of 8-bit codes on scales that all schemes share; colours are given where it is
shown. Codes are what a scene's record keeps, so that merged and resumed runs show the same.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..records import ScenePictures
from ..schema import Pictures, PictureSet

WIDEST = 192  # pixels; wider frames are shown by every second, third, ... pixel
FRAME = 0
# Relative depth errors that the codes 0 and 255 stand for, logarithmically between them.
ERRORS = (1e-4, 1.0)

Codes = NDArray[np.uint8]


def of_scene(
    outputs: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    images: torch.Tensor,
) -> ScenePictures | None:
    """The pictures of a scheme's first frame; None where the model gives no depth.

    outputs, reference: of one forward, the scheme's and FP32's (the same for the baseline, whose
    pictures have no error but the frame itself); images: (S,3,H,W) in [0, 1].
    """
    if "depth" not in outputs:
        return None
    depth, fp32 = (_frame(one["depth"]) for one in (outputs, reference))
    near, far = _range(fp32)
    found = ScenePictures(depth=_png(_thin(_codes(depth, far, near))), depth_range=[near, far])
    if outputs is reference:
        pixels = images[FRAME].permute(1, 2, 0).cpu().numpy()
        found.input = _png(_thin((255 * pixels.clip(0, 1) + 0.5).astype(np.uint8)))
        found.height_px, found.width_px = fp32.shape
        return found
    errors = np.abs(depth - fp32) / np.maximum(np.abs(fp32), np.finfo(np.float32).tiny)
    found.error = _png(_thin(_codes(errors, *ERRORS)))
    found.error_median = float(np.median(errors))
    found.error_p95 = float(np.percentile(errors, 95))
    return found


def block(scene: str, by_scheme: Mapping[str, ScenePictures | None]) -> Pictures | None:
    """The document's `pictures`, from the pictures of each scheme, the baseline's first."""
    there = {name: pictures for name, pictures in by_scheme.items() if pictures}
    first = next(iter(there.values()), None)
    if first is None or first.input is None:
        return None
    return Pictures(
        scene=scene,
        frame=FRAME,
        input=first.input,
        height_px=first.height_px,
        width_px=first.width_px,
        depth_range=first.depth_range,
        error_range=list(ERRORS),
        schemes={
            name: PictureSet(
                depth=one.depth,
                error=one.error,
                error_median=one.error_median,
                error_p95=one.error_p95,
            )
            for name, one in there.items()
        },
    )


def coloured(png: str, palette: str) -> str:
    """Codes, as base64 of a PNG, in the colours of one of matplotlib's palettes, as a data URI."""
    import matplotlib

    with Image.open(io.BytesIO(base64.b64decode(png))) as codes:
        picture = codes.convert("L")
    colours = matplotlib.colormaps[palette](np.arange(256), bytes=True)[:, :3]
    picture.putpalette(colours.tobytes())
    return data_uri(_png(picture))


def ramp(palette: str) -> str:
    """The palette from left to right, as a data URI."""
    return coloured(_png(np.arange(256, dtype=np.uint8)[None]), palette)


def data_uri(png: str) -> str:
    """A PNG in base64 as the source of an <img>."""
    return f"data:image/png;base64,{png}"


def _frame(depth: torch.Tensor) -> NDArray[np.float64]:
    """(1,S,H,W,1) or (S,H,W,1), to (H,W) of the frame shown."""
    whole = depth.reshape(-1, *depth.shape[-3:])[FRAME, ..., 0]
    return whole.double().cpu().numpy()


def _range(depth: NDArray[np.float64]) -> tuple[float, float]:
    """The 2nd and 98th percentile of the depths more than 0, a little apart at least."""
    good = depth[np.isfinite(depth) & (depth > 0)]
    near, far = np.percentile(good, [2, 98]) if good.size else (1.0, 1.0)
    return float(near), float(max(far, 1.01 * near))


def _codes(values: NDArray[np.float64], at_0: float, at_255: float) -> Codes:
    """8-bit codes on a logarithmic scale; what lies outside saturates."""
    tiny = np.finfo(np.float64).tiny
    share = np.log(np.maximum(values, tiny) / at_0) / np.log(at_255 / at_0)
    codes: Codes = np.rint(255 * np.nan_to_num(share).clip(0, 1)).astype(np.uint8)
    return codes


def _thin(pixels: Codes) -> Codes:
    step = -(-pixels.shape[1] // WIDEST)
    return pixels[::step, ::step]


def _png(picture: Codes | Image.Image) -> str:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
