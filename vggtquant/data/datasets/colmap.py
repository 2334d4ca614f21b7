# SPDX-License-Identifier: Apache-2.0
"""COLMAP's text model (cameras.txt, images.txt, points3D.txt) beside a folder of pictures.

Format: https://colmap.github.io/format.html#text-format. Depth is that of the 3D points at their
observations. Lens distortion is ignored, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...scoring import geometry
from .views import Array, PosedScene, View, folders, picture, pinhole, rigid

_PLACES = ("sparse/0", "sparse", "")
# Places of fx, fy, cx, cy among a model's parameters; what follows is distortion.
_MODELS = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2),
    "PINHOLE": (0, 1, 2, 3),
    "SIMPLE_RADIAL": (0, 0, 1, 2),
    "RADIAL": (0, 0, 1, 2),
    "OPENCV": (0, 1, 2, 3),
}


@dataclass(frozen=True)
class Camera:
    """A row of cameras.txt."""

    model: str
    size: tuple[int, int]  # width, height
    parameters: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """Two rows of images.txt."""

    name: str
    camera: int
    extrinsics: Array
    points: Array  # (N,3): column and row from the pixel's corner, POINT3D_ID or -1


def detect(folder: Path) -> bool:
    """Whether the folder, or folders in it, hold a model."""
    return next(folders(folder, lambda sub: _model(sub) is not None), None) is not None


def read(folder: Path) -> list[PosedScene]:
    """A scene a model; UserError for missing pictures and for what is not understood."""
    found = []
    for scene in folders(folder, lambda sub: _model(sub) is not None):
        model = _model(scene)
        assert model is not None
        pictures = scene / "images" if (scene / "images").is_dir() else scene
        found.append(PosedScene(scene.resolve().name, views(model, pictures)))
    return found


def _model(folder: Path) -> Path | None:
    """The folder of the model that belongs to a scene."""
    for place in _PLACES:
        if (folder / place / "images.txt").is_file():
            return folder / place
        if (folder / place / "images.bin").is_file():
            warnings.warn(
                f"the binary model in {folder / place} is not read; `colmap model_converter "
                "--output_type TXT` makes text of it",
                stacklevel=2,
            )
    return None


def views(model: Path, pictures: Path) -> list[View]:
    """The views of a model, in the order of their names."""
    cameras, images, points = cameras_of(model), images_of(model), _points_of(model)
    found = []
    for image in sorted(images, key=lambda image: image.name):
        if image.camera not in cameras:
            raise UserError(
                f"{model / 'images.txt'}: {image.name} has camera {image.camera}, which "
                "cameras.txt lacks"
            )
        found.append(
            View(
                picture(pictures / image.name, model / "images.txt"),
                image.extrinsics,
                _intrinsics(cameras[image.camera], image.camera, model),
                points=_observed(image, points),
            )
        )
    if not found:
        raise UserError(f"{model / 'images.txt'} names no picture")
    return found


def _intrinsics(camera: Camera, number: int, model: Path) -> Array:
    if camera.model not in _MODELS:
        raise UserError(
            f"{model / 'cameras.txt'}: camera {number} is {camera.model}; wanted one of "
            f"{', '.join(_MODELS)} (`colmap image_undistorter` makes PINHOLE)"
        )
    fx, fy, cx, cy = (camera.parameters[i] for i in _MODELS[camera.model])
    distortion = camera.parameters[max(_MODELS[camera.model]) + 1 :]
    if any(distortion):
        warnings.warn(
            f"camera {number} ({camera.model}) has distortion {distortion}, which is ignored",
            stacklevel=2,
        )
    return pinhole(fx, fy, cx - 0.5, cy - 0.5)


def _observed(image: Picture, points: Mapping[int, Array]) -> Array:
    """Column, row and depth of the 3D points that a picture observes."""
    seen = [(u, v, points[int(p)]) for u, v, p in image.points if int(p) in points]
    if not seen:
        return np.zeros((0, 3))
    world = np.array([point for _, _, point in seen])
    depth = world @ image.extrinsics[2, :3] + image.extrinsics[2, 3]
    pixels = np.array([(u, v) for u, v, _ in seen]) - 0.5
    return np.concatenate([pixels, depth[:, None]], axis=1)


# ---- the three files -----------------------------------------------------------------------------


def cameras_of(model: Path) -> dict[int, Camera]:
    """cameras.txt by CAMERA_ID."""
    found = {}
    for line in filter(str.strip, _lines(model / "cameras.txt")):
        with _understood(model / "cameras.txt", line):
            number, name, width, height, *parameters = line.split()
            size, values = (int(width), int(height)), tuple(map(float, parameters))
            found[int(number)] = Camera(name, size, values)
            needed = max(_MODELS.get(name, (0,))) + 1
            if len(values) < needed:
                raise ValueError(f"{len(values)} parameters, wanted {needed} or more")
    return found


def images_of(model: Path) -> list[Picture]:
    """images.txt: every second line holds the observations, and may be empty."""
    path = model / "images.txt"
    lines = _lines(path)
    while lines and not lines[0].strip():
        lines.pop(0)
    found = []
    for first, second in zip(lines[::2], [*lines[1::2], ""], strict=False):
        if not first.strip():
            continue
        with _understood(path, first):
            _, qw, qx, qy, qz, tx, ty, tz, camera, name = first.split(maxsplit=9)
            w, x, y, z = (float(q) for q in (qw, qx, qy, qz))
            rotation = geometry.quaternion_to_matrix([x, y, z, w])
            shift = np.array([float(t) for t in (tx, ty, tz)])
            pose = rigid(np.concatenate([rotation, shift[:, None]], axis=1), f"{path}: {name}")
            points = np.array(second.split(), float).reshape(-1, 3)
            found.append(Picture(name.strip(), int(camera), pose, points))
    return found


def _points_of(model: Path) -> dict[int, Array]:
    """points3D.txt by POINT3D_ID; nothing where the file is missing."""
    path = model / "points3D.txt"
    if not path.is_file():
        return {}
    found = {}
    for line in filter(str.strip, _lines(path)):
        with _understood(path, line):
            number, x, y, z, *_ = line.split()
            found[int(number)] = np.array([float(x), float(y), float(z)])
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return [line for line in text.splitlines() if not line.startswith("#")]


class _understood:
    """Turns what a line's parsing raises into one UserError that shows the line."""

    def __init__(self, path: Path, line: str) -> None:
        self.path, self.line = path, line

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError) and not isinstance(error, UserError):
            shown = self.line if len(self.line) < 60 else self.line[:57] + "..."
            raise UserError(f"{self.path}: cannot understand {shown!r} ({error})") from error
