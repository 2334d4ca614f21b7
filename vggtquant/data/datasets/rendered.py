# SPDX-License-Identifier: Apache-2.0
"""Our own rendered scenes as `vggtquant scenes` writes them: frame_*.png and truth.npz."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ...errors import UserError
from .views import Array, PosedScene, View, finite, folders, nearest, picture, rigid

TRUTH = "truth.npz"
_ANY = ("height", "width")
_SHAPES = {"depth": _ANY, "extrinsics": (3, 4), "intrinsics": (3, 3)}  # of each frame


def _is_scene(folder: Path) -> bool:
    return (folder / TRUTH).is_file()


def detect(folder: Path) -> bool:
    """Whether the folder is a scene, or holds scenes."""
    return next(folders(folder, _is_scene), None) is not None


def read(folder: Path) -> list[PosedScene]:
    """The scenes; UserError for a truth.npz that cannot be read or lacks a part."""
    return [PosedScene(scene.resolve().name, _views(scene)) for scene in folders(folder, _is_scene)]


def _views(scene: Path) -> list[View]:
    path = scene / TRUTH
    try:
        with np.load(path) as truth:
            parts = {name: truth[name].astype(float) for name in _SHAPES}
    except Exception as error:  # of zipfile, zlib and NumPy, which raise what they like
        raise UserError(f"{path} holds no readable scene ({error})") from error
    for name, shape in _SHAPES.items():
        seen = parts[name].shape
        if len(seen) != 3 or 0 in seen or (shape != _ANY and seen[1:] != shape):
            raise UserError(f"{path}: {name} is {seen}; wanted (frames, {shape[0]}, {shape[1]})")
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) != 1:
        raise UserError(f"{path} holds different numbers of frames: {counts}")
    height, width = parts["depth"].shape[1:3]

    return [
        View(
            picture(scene / f"frame_{i:02d}.png", path),
            rigid(parts["extrinsics"][i], f"{path}: frame {i}"),
            finite(parts["intrinsics"][i], f"{path}: frame {i}"),
            nearest(partial(_map, parts["depth"][i]), (width, height)),
        )
        for i in range(counts["depth"])
    ]


def _map(depth: Array) -> Array:
    return depth
