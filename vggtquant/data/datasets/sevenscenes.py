# SPDX-License-Identifier: Apache-2.0
"""Microsoft's 7-Scenes: frame-*.color.png, .depth.png (mm) and .pose.txt (world from camera).
Frames of the same form as .color.jpg and .depth.pgm (3RScan) are read, too.

Layout and intrinsics (585, 585, 320, 240 for 640 x 480) are those of the release (Shotton et al.
2013); a camera-intrinsics.txt beside the frames or above them takes their place. Colour and depth
are not registered in the release, so its depth is off by a few pixels at edges.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...scoring import geometry
from .. import picture
from .views import Array, PosedScene, View, finite, folders, nearest, numbers, pinhole, rigid

_FOCAL, _WIDTH = 585.0, 640
_UNKNOWN = 65535
_COLOURS, _DEPTHS = (".png", ".jpg"), (".png", ".pgm")


def _is_sequence(folder: Path) -> bool:
    return next(folder.glob("frame-*.pose.txt"), None) is not None


def detect(folder: Path) -> bool:
    """Whether the folder is a sequence, or holds sequences."""
    return next(folders(folder, _is_sequence), None) is not None


def read(folder: Path) -> list[PosedScene]:
    """A scene a sequence; UserError when pictures and poses do not go together."""
    above = folder.resolve()
    return [
        PosedScene(
            above.name if sequence == folder else f"{above.name}/{sequence.name}", _views(sequence)
        )
        for sequence in folders(folder, _is_sequence)
    ]


def _views(sequence: Path) -> list[View]:
    pictures = sorted(path for kind in _COLOURS for path in sequence.glob(f"frame-*.color{kind}"))
    poses = sorted(sequence.glob("frame-*.pose.txt"))
    if len(pictures) != len(poses):
        raise UserError(f"{sequence} holds {len(pictures)} pictures and {len(poses)} poses")
    found = []
    for path in pictures:
        stem = path.name.partition(".")[0]
        pose = sequence / f"{stem}.pose.txt"
        if not pose.is_file():
            raise UserError(f"{path} has no {pose.name}")
        depths = [sequence / f"{stem}.depth{kind}" for kind in _DEPTHS]
        depth = next(filter(Path.is_file, depths), None)
        size = picture.size_of(path)
        found.append(
            View(
                path,
                geometry.invert_pose(rigid(numbers(pose, (4, 4)), str(pose))),
                _intrinsics(sequence, size),
                None if depth is None else nearest(partial(_metres, depth), size),
            )
        )
    return found


def _intrinsics(sequence: Path, size: tuple[int, int]) -> Array:
    for folder in (sequence, sequence.parent):
        path = folder / "camera-intrinsics.txt"
        if path.is_file():
            return finite(numbers(path, (3, 3)), str(path))
    focal = _FOCAL * size[0] / _WIDTH
    return pinhole(focal, focal, size[0] / 2, size[1] / 2)


def _metres(path: Path) -> Array:
    millimetres = picture.numbers(path).astype(np.float64)
    return np.where(millimetres == _UNKNOWN, 0.0, millimetres / 1000)
