# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures with ground truth, in the layouts that people have them in.

A layout is a file of this package and a row of LAYOUTS; docs/protocols.md describes each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from . import co3d, colmap, eth3d, rendered, sevenscenes
from .views import PosedScene, Truth, View, spread, truth

__all__ = ["LAYOUTS", "Layout", "PosedScene", "Truth", "View", "find", "spread", "truth"]


@dataclass(frozen=True)
class Layout:
    """How a data set lies in its folder: whether a folder is one, and how it is read."""

    words: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], list[PosedScene]]


# In this order: ETH3D's scenes hold COLMAP models.
LAYOUTS = {
    "npz": Layout("scenes of `vggtquant scenes`", rendered.detect, rendered.read),
    "eth3d": Layout("ETH3D, high-resolution multi-view", eth3d.detect, eth3d.read),
    "7scenes": Layout("Microsoft 7-Scenes", sevenscenes.detect, sevenscenes.read),
    "co3d": Layout("CO3D-style annotations", co3d.detect, co3d.read),
    "colmap": Layout("COLMAP model, text or binary", colmap.detect, colmap.read),
}
PICTURES = "pictures"  # in the place of a layout: the pictures of a folder alone


def find(folder: str | Path, layout: str | None = None) -> tuple[str, list[PosedScene]] | None:
    """The layout of a folder and its scenes; None for a folder of pictures alone.

    `layout` names one of LAYOUTS, or is PICTURES; otherwise it is the first that the folder is.
    Raises UserError for an unknown layout, a folder that is not of the layout that was named, and
    what is wrong in its files.

    >>> find("no such folder") is None
    True
    """
    folder = Path(folder)
    if layout == PICTURES or (layout is None and not os.path.isdir(folder)):
        return None
    if layout is None:
        layout = next((name for name, known in LAYOUTS.items() if known.detect(folder)), None)
        if layout is None:
            return None
        try:
            return layout, LAYOUTS[layout].read(folder)
        except UserError as error:
            raise UserError(f"{error} (--layout {PICTURES} takes the pictures alone)") from error
    if layout not in LAYOUTS:
        raise UserError(
            f"unknown layout {layout!r}; wanted one of {', '.join(LAYOUTS)}, {PICTURES}"
        )
    if not LAYOUTS[layout].detect(folder):
        raise UserError(f"{folder} is not laid out as {layout} ({LAYOUTS[layout].words})")
    return layout, LAYOUTS[layout].read(folder)
