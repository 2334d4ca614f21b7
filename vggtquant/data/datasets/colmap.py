# SPDX-License-Identifier: Apache-2.0
"""COLMAP's sparse model, text or binary, beside a folder of pictures.

Depth is that of the 3D points at their observations. Lens distortion is ignored, with a warning.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...errors import UserError
from .. import images
from ..picture import shown
from . import colmap_model
from .colmap_model import Camera, Model, Picture
from .views import Array, PosedScene, View, finite, folders, pinhole

# Places of fx, fy, cx, cy among a model's parameters; what follows is distortion.
_PINHOLES = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2),
    "PINHOLE": (0, 1, 2, 3),
    "SIMPLE_RADIAL": (0, 0, 1, 2),
    "RADIAL": (0, 0, 1, 2),
    "OPENCV": (0, 1, 2, 3),
    "FULL_OPENCV": (0, 1, 2, 3),
    "SIMPLE_DIVISION": (0, 0, 1, 2),
    "DIVISION": (0, 1, 2, 3),
}


def detect(folder: Path) -> bool:
    """Whether the folder, or folders in it, hold a model."""
    return next(folders(folder, lambda sub: bool(_models(sub))), None) is not None


def read(folder: Path) -> list[PosedScene]:
    """A scene a model; UserError for missing pictures and for what is not understood."""
    found = []
    for scene in folders(folder, lambda sub: bool(_models(sub))):
        model = colmap_model.read(_largest(_models(scene)))
        found.append(PosedScene(scene.resolve().name, views(model, _pictures(scene, model))))
    return found


def _pictures(scene: Path, model: Model) -> Path:
    """The folder of a model's pictures: images beside sparse, or the scene itself; or input, as for
    3D Gaussian splatting; or images above, where the scene is nerfstudio's colmap, or sparse/0."""
    above = scene.resolve().parents[:2]
    usual = scene / "images" if (scene / "images").is_dir() else scene
    first = next((picture.name for picture in model.pictures), "")
    for folder in (usual, scene / "input", *(parent / "images" for parent in above)):
        if first and _file(first, folder) is not None:
            return folder
    return usual


def _models(folder: Path) -> list[Path]:
    """The folders of a scene's models: sparse/0, sparse/1, …, otherwise sparse, or itself."""
    numbered = [sub for sub in folder.glob("sparse/*") if sub.name.isdecimal() and sub.is_dir()]
    for places in (sorted(numbered, key=lambda sub: int(sub.name)), [folder / "sparse"], [folder]):
        if there := [place for place in places if colmap_model.is_model(place)]:
            return there
        for place in places:
            for kind, words in ((".bin", "binary"), (".txt", "text")):
                if (place / f"images{kind}").is_file():
                    warnings.warn(
                        f"{place} holds images{kind} but no cameras{kind}, so it is no {words} "
                        "COLMAP model and is passed over",
                        stacklevel=2,
                    )
    return []


def _largest(models: list[Path]) -> Path:
    """Of several models, which COLMAP makes of pictures that it cannot connect, the largest."""
    if len(models) == 1:
        return models[0]
    counts = {model: colmap_model.count(model) for model in models}
    chosen = max(models, key=lambda model: counts[model])
    words = ", ".join(f"{model.name} of {counts[model]}" for model in models)
    warnings.warn(
        f"{chosen.parent} holds {len(models)} models ({words} pictures); {chosen.name} is taken",
        stacklevel=2,
    )
    return chosen


def views(model: Model, pictures: Path) -> list[View]:
    """The views of a model, in the order of their names, whose files lie in or below a folder."""
    found = []
    for image in sorted(model.pictures, key=lambda image: image.name):
        if image.camera not in model.cameras:
            raise UserError(
                f"{model.file}: {shown(image.name)} has camera {image.camera}, which "
                f"cameras{model.file.suffix} lacks"
            )
        found.append(
            View(
                _picture(image.name, pictures, model.file),
                image.extrinsics,
                _intrinsics(model.cameras[image.camera], image.camera, model.file),
                points=_observed(image, model.points),
            )
        )
    if not found:
        raise UserError(f"{model.file} names no picture")
    _warn_of_others(found, pictures)
    return found


def _picture(name: str, pictures: Path, where: Path) -> Path:
    """The file of a picture; UserError where there is none."""
    if (path := _file(name, pictures)) is not None:
        return path
    raise UserError(f"{where} names {shown(name)}, but there is no {shown(pictures / name)}")


def _file(name: str, pictures: Path) -> Path | None:
    """The file of a picture: names may begin with the folder's, and be in another encoding."""
    names = [name]
    if (latin := os.fsencode(name).decode("latin-1")) != name:
        names.append(latin)
    for form in names:
        for path in (pictures / form, pictures.parent / form):
            if os.path.isfile(path):  # of Path's own, a name that is too long is an error
                return path
    return None


def _warn_of_others(found: list[View], pictures: Path) -> None:
    """Says how many pictures of the folder the model does not hold."""
    posed = {view.image for view in found}
    others = [path for path in images.pictures_in(pictures) if path not in posed]
    if others:
        warnings.warn(
            f"the model holds {len(found)} pictures; {len(others)} others of {pictures} have no "
            "pose and are left out",
            stacklevel=2,
        )


def _intrinsics(camera: Camera, number: int, where: Path) -> Array:
    if camera.model not in _PINHOLES:
        raise UserError(
            f"{where.with_stem('cameras')}: camera {number} is {camera.model}; wanted one of "
            f"{', '.join(_PINHOLES)} (`colmap image_undistorter` makes PINHOLE)"
        )
    fx, fy, cx, cy = (camera.parameters[i] for i in _PINHOLES[camera.model])
    k = finite(
        pinhole(fx, fy, cx - 0.5, cy - 0.5), f"{where.with_stem('cameras')}: camera {number}"
    )
    distortion = camera.parameters[max(_PINHOLES[camera.model]) + 1 :]
    if any(distortion):
        warnings.warn(
            f"camera {number} ({camera.model}) has distortion {distortion}, which is ignored",
            stacklevel=2,
        )
    return k


def _observed(image: Picture, points: Mapping[int, Array]) -> Array:
    """Column, row and depth of the 3D points that a picture observes."""
    seen = np.array([number in points for number in image.points.tolist()], bool)
    if not seen.any():
        return np.zeros((0, 3))
    world = np.array([points[number] for number in image.points[seen].tolist()])
    depth = world @ image.extrinsics[2, :3] + image.extrinsics[2, 3]
    return np.concatenate([image.pixels[seen] - 0.5, depth[:, None]], axis=1)
