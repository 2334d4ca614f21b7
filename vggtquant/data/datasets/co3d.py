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
import os
import re
import warnings
import zlib
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from ...errors import UserError
from ..picture import numbers, size_of
from .views import Array, Lookup, PosedScene, View, finite, nearest, picture, pinhole, rigid

_OWN = ("frame_annotations.jgz", "frame_annotations.json")
_CATEGORIES = ("*_test.jgz", "*_test.json")
_BEGINNING = 1 << 16  # bytes of a file that tell what it is
_GZIP, _GZIP_FORMAT = b"\x1f\x8b", 31  # how a file begins, and what zlib calls it
_ENTRY = re.compile(rb'^\s*\{\s*"[^"]*"\s*:\s*\[\s*\{[^}]*"filepath"\s*:')
_FLIP = np.diag([-1.0, -1.0, 1.0])

Three = tuple[float, float, float]
Rotation = tuple[Three, Three, Three]
# Scales of normalised coordinates: the shorter half of the picture for both axes, or half of each.
Format = Literal["ndc_isotropic", "ndc_norm_image_bounds"]


# ---- what the files hold (co3d/dataset/data_types.py); other fields are passed over --------------


class Image(msgspec.Struct):
    path: str


class Depth(msgspec.Struct):
    path: str
    scale_adjustment: float = 1.0
    mask_path: str | None = None


class Viewpoint(msgspec.Struct):
    R: Rotation
    T: Three
    focal_length: float | tuple[float, float]
    principal_point: tuple[float, float]
    intrinsics_format: Format = "ndc_norm_image_bounds"  # before CO3Dv2 the only one, and unsaid


class Frame(msgspec.Struct):
    sequence_name: str
    image: Image
    frame_number: int = 0
    depth: Depth | None = None
    viewpoint: Viewpoint | None = None


class Entry(msgspec.Struct):
    """A frame of a category's file, which is made of CO3Dv2."""

    filepath: str
    R: Rotation
    T: Three
    focal_length: float | tuple[float, float]
    principal_point: tuple[float, float]
    intrinsics_format: Format = "ndc_isotropic"

    def frame(self, sequence: str) -> Frame:
        camera = Viewpoint(
            self.R, self.T, self.focal_length, self.principal_point, self.intrinsics_format
        )
        return Frame(sequence, Image(self.filepath), viewpoint=camera)


# ---- the layout ----------------------------------------------------------------------------------


def _annotations(folder: Path) -> list[Path]:
    for name in _OWN:
        if (folder / name).is_file():
            return [folder / name]
    for name in _CATEGORIES:
        if found := sorted(path for path in folder.glob(name) if _is_category(path)):
            return found
    return []


def _is_category(path: Path) -> bool:
    """Whether a file begins as a category's: transforms_test.json, say, is something else."""
    try:
        with open(path, "rb") as file:
            start = file.read(_BEGINNING)
        if start.startswith(_GZIP):
            start = zlib.decompressobj(_GZIP_FORMAT).decompress(start, _BEGINNING)
    except (OSError, zlib.error):
        return False
    return _ENTRY.match(start) is not None


def detect(folder: Path) -> bool:
    """Whether the folder holds annotations."""
    return bool(_annotations(folder))


def read(folder: Path) -> list[PosedScene]:
    """A scene a sequence; UserError for annotations that are not understood."""
    scenes = []
    for path in _annotations(folder):
        for name, frames in _downloaded(_sequences(path), folder, path).items():
            views = [view for frame in frames if (view := _view(frame, folder, path)) is not None]
            if views:
                scenes.append(PosedScene(name, views))
    if not scenes:
        raise UserError(f"the annotations in {folder} hold no frame with a camera")
    return scenes


def _sequences(path: Path) -> dict[str, list[Frame]]:
    """The frames of each sequence, in their order."""
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw.startswith(_GZIP) else raw)
        if isinstance(content, dict):
            entries = msgspec.convert(content, dict[str, list[Entry]])
            return {name: [e.frame(name) for e in sequence] for name, sequence in entries.items()}
        frames = msgspec.convert(content, list[Frame])
    except (OSError, ValueError, EOFError, RecursionError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    found: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: frame.frame_number):
        found.setdefault(frame.sequence_name, []).append(frame)
    return dict(sorted(found.items()))


def _downloaded(
    sequences: dict[str, list[Frame]], folder: Path, path: Path
) -> dict[str, list[Frame]]:
    """Without the sequences of which no picture is on disk: people download a part of CO3D. All of
    them where that leaves none, so that a missing picture is named."""
    there = {
        name: frames
        for name, frames in sequences.items()
        if any(os.path.isfile(_root(frame, folder) / frame.image.path) for frame in frames)
    }
    if there and (missing := len(sequences) - len(there)):
        warnings.warn(
            f"{path} names {len(sequences)} sequences; {missing} of them have no picture on disk "
            "and are left out",
            stacklevel=2,
        )
    return there or sequences


def _root(frame: Frame, folder: Path) -> Path:
    """The folder from which a frame's paths lead: CO3D's begin with the category."""
    name = frame.image.path
    return next((r for r in (folder, folder.parent) if os.path.isfile(r / name)), folder)


def _view(frame: Frame, folder: Path, path: Path) -> View | None:
    """None for a frame without a camera, of which CO3D has some."""
    camera = frame.viewpoint
    if camera is None:
        return None
    name = frame.image.path
    root = _root(frame, folder)
    image = picture(root / name, path)
    size = size_of(image)
    rotation, shift = np.array(camera.R), np.array(camera.T)
    pose = np.concatenate([_FLIP @ rotation.T, (_FLIP @ shift)[:, None]], axis=1)
    return View(
        image,
        rigid(pose, f"{path}: {name}"),
        finite(_intrinsics(camera, size), f"{path}: {name}"),
        None if frame.depth is None else _depth(frame.depth, root, size, path),
    )


def _intrinsics(camera: Viewpoint, size: tuple[int, int]) -> Array:
    """Pixels from PyTorch3D's normalised coordinates, which run to the left and up."""
    half = np.array(size) / 2
    bounds = camera.intrinsics_format == "ndc_norm_image_bounds"
    unit = half if bounds else np.full(2, half.min())
    fx, fy = np.broadcast_to(np.array(camera.focal_length), 2) * unit
    cx, cy = half - np.array(camera.principal_point) * unit - 0.5
    return pinhole(fx, fy, cx, cy)


def _depth(depth: Depth, root: Path, size: tuple[int, int], path: Path) -> Lookup:
    """CO3D keeps float16 depths as the bits of a 16-bit PNG, up to a factor; a mask beside them."""
    source = picture(root / depth.path, path)
    mask = picture(root / depth.mask_path, path) if depth.mask_path else None

    def load() -> Array:
        bits = numbers(source).astype(np.uint16)
        metres = bits.view(np.float16).astype(np.float64) * depth.scale_adjustment
        if mask is not None:
            known = numbers(mask)
            if known.shape != metres.shape:
                raise UserError(f"{mask} is {known.shape}; its depth map is {metres.shape}")
            metres = np.where(known > 0, metres, 0.0)
        return metres

    return nearest(load, size)
