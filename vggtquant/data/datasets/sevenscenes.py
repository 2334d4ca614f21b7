# SPDX-License-Identifier: Apache-2.0
"""Microsoft's 7-Scenes: frame-*.color.png, .depth.png (mm) and .pose.txt (world from camera).

Layout and intrinsics (585, 585, 320, 240 for 640 x 480) are those of the release (Shotton et al.
2013); a camera-intrinsics.txt beside the frames or above them takes their place. Colour and depth
are not registered in the release, so its depth is off by a few pixels at edges.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UserError
from ...scoring import geometry
from .views import Array, PosedScene, View, folders, nearest, numbers, pinhole, rigid

_FOCAL, _WIDTH = 585.0, 640
_UNKNOWN = 65535


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
    pictures = sorted(sequence.glob("frame-*.color.png"))
    poses = sorted(sequence.glob("frame-*.pose.txt"))
    if len(pictures) != len(poses):
        raise UserError(f"{sequence} holds {len(pictures)} pictures and {len(poses)} poses")
    found = []
    for picture in pictures:
        stem = picture.name.removesuffix(".color.png")
        pose, depth = sequence / f"{stem}.pose.txt", sequence / f"{stem}.depth.png"
        if not pose.is_file():
            raise UserError(f"{picture} has no {pose.name}")
        with Image.open(picture) as image:
            size = image.size
        found.append(
            View(
                picture,
                geometry.invert_pose(rigid(numbers(pose, (4, 4)), str(pose))),
                _intrinsics(sequence, size),
                nearest(partial(_metres, depth), size) if depth.is_file() else None,
            )
        )
    return found


def _intrinsics(sequence: Path, size: tuple[int, int]) -> Array:
    for folder in (sequence, sequence.parent):
        if (folder / "camera-intrinsics.txt").is_file():
            return numbers(folder / "camera-intrinsics.txt", (3, 3))
    focal = _FOCAL * size[0] / _WIDTH
    return pinhole(focal, focal, size[0] / 2, size[1] / 2)


def _metres(path: Path) -> Array:
    try:
        with Image.open(path) as image:
            millimetres = np.asarray(image, dtype=np.float64)
    except OSError as error:
        raise UserError(f"cannot read the depth map {path}: {error}") from error
    return np.where(millimetres == _UNKNOWN, 0.0, millimetres / 1000)
