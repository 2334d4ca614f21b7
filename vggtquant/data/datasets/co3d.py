# SPDX-License-Identifier: Apache-2.0
"""CO3D-style annotations: JSON, plain or gzipped, with PyTorch3D cameras.

Either CO3D's own frame_annotations.jgz (a list of frames; Reizenstein et al. 2021) or a category's
*_test.jgz as VGGT's evaluation reads it (a dict from sequence to frames with filepath, R, T,
focal_length, principal_point). PyTorch3D's cameras look along +z with x to the left and y up, and
multiply from the right: x = X R + T; focal lengths and centres are in normalised coordinates.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from .views import Array, PosedScene, View, nearest, picture, pinhole, rigid

_NAMES = ("frame_annotations.jgz", "frame_annotations.json", "*_test.jgz", "*_test.json")
_FLIP = np.diag([-1.0, -1.0, 1.0])


def _annotations(folder: Path) -> list[Path]:
    for name in _NAMES:
        if found := sorted(folder.glob(name)):
            return found
    return []


def detect(folder: Path) -> bool:
    """Whether the folder holds annotations."""
    return bool(_annotations(folder))


def read(folder: Path) -> list[PosedScene]:
    """A scene a sequence; UserError for annotations that are not understood."""
    scenes = []
    for path in _annotations(folder):
        for name, frames in _sequences(path).items():
            try:
                views = [_view(frame, folder, path) for frame in frames]
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{path}: sequence {name} lacks or misstates {error}") from error
            scenes.append(PosedScene(name, views))
    return scenes


def _sequences(path: Path) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The frames of each sequence, in the form of CO3D's own annotations."""
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if isinstance(content, dict):
        return {name: [_as_frame(entry) for entry in entries] for name, entries in content.items()}
    if not isinstance(content, list):
        raise UserError(f"{path} holds a {type(content).__name__}; wanted a list or an object")
    found: dict[str, list[Mapping[str, Any]]] = {}
    for frame in content:
        found.setdefault(str(frame["sequence_name"]), []).append(frame)
    return {
        name: sorted(frames, key=lambda frame: int(frame.get("frame_number", 0)))
        for name, frames in found.items()
    }


def _as_frame(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"image": {"path": entry["filepath"]}, "depth": None, "viewpoint": entry}


def _view(frame: Mapping[str, Any], folder: Path, path: Path) -> View:
    name = str(frame["image"]["path"])
    root = next((r for r in (folder, folder.parent) if (r / name).is_file()), folder)
    image = picture(root / name, path)
    with Image.open(image) as opened:
        size = opened.size
    camera = frame["viewpoint"]
    rotation, shift = np.array(camera["R"], float), np.array(camera["T"], float)
    pose = np.concatenate([_FLIP @ rotation.T, (_FLIP @ shift)[:, None]], axis=1)
    return View(
        image,
        rigid(pose, f"{path}: {name}"),
        _intrinsics(camera, size),
        _depth(frame.get("depth"), root, size, path),
    )


def _intrinsics(camera: Mapping[str, Any], size: tuple[int, int]) -> Array:
    """Pixels from PyTorch3D's normalised coordinates, which run to the left and up."""
    form = camera.get("intrinsics_format", "ndc_isotropic")
    if form not in ("ndc_isotropic", "ndc_norm_image_bounds"):
        raise ValueError(f"intrinsics_format {form}")
    half = np.array(size) / 2
    unit = half if form == "ndc_norm_image_bounds" else np.full(2, half.min())
    fx, fy = np.broadcast_to(np.array(camera["focal_length"], float), 2) * unit
    cx, cy = half - np.array(camera["principal_point"], float) * unit - 0.5
    return pinhole(fx, fy, cx, cy)


def _depth(depth: Mapping[str, Any] | None, root: Path, size: tuple[int, int], path: Path) -> Any:
    """CO3D keeps float16 depths as the bits of a 16-bit PNG, up to a factor; a mask beside them."""
    if not depth:
        return None
    source = picture(root / str(depth["path"]), path)
    factor = float(depth.get("scale_adjustment", 1.0))
    mask = picture(root / str(depth["mask_path"]), path) if depth.get("mask_path") else None

    def load() -> Array:
        with Image.open(source) as image:
            bits = np.asarray(image).astype(np.uint16)
        metres = bits.view(np.float16).astype(np.float64) * factor
        if mask is not None:
            with Image.open(mask) as image:
                metres = np.where(np.asarray(image) > 0, metres, 0.0)
        return metres

    return nearest(load, size)
