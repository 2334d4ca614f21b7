# SPDX-License-Identifier: Apache-2.0
"""ETH3D's high-resolution multi-view scenes: undistorted pictures, COLMAP cameras, laser depth.

Layout: https://www.eth3d.net/documentation. Depth maps (ground_truth_depth/dslr_images, float32,
infinite where unknown) belong to the distorted pictures, so an undistorted pixel is looked up
through the distorted camera, THIN_PRISM_FISHEYE, of dslr_calibration_jpg. Its pose is the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import UserError
from . import colmap, colmap_model
from .views import Array, Lookup, PosedScene, View, folders

_CALIBRATION = "dslr_calibration_undistorted"
_DISTORTED = "dslr_calibration_jpg"
_DEPTH = "ground_truth_depth/dslr_images"


def _is_scene(folder: Path) -> bool:
    return colmap_model.is_model(folder / _CALIBRATION)


def detect(folder: Path) -> bool:
    """Whether the folder, or folders in it, are scenes of ETH3D."""
    return next(folders(folder, _is_scene), None) is not None


def read(folder: Path) -> list[PosedScene]:
    """The scenes, with laser depth where it was downloaded, else that of the 3D points."""
    return [PosedScene(scene.resolve().name, _views(scene)) for scene in folders(folder, _is_scene)]


def _views(scene: Path) -> list[View]:
    views = colmap.views(colmap_model.read(scene / _CALIBRATION), scene / "images")
    if not (scene / _DEPTH).is_dir():
        return views
    if not colmap_model.is_model(scene / _DISTORTED):
        raise UserError(
            f"{scene / _DEPTH} belongs to distorted pictures; {scene / _DISTORTED} is wanted"
        )
    distorted = colmap_model.read(scene / _DISTORTED, points=False)
    cameras = distorted.cameras
    by_name = {
        Path(p.name).name: cameras[p.camera] for p in distorted.pictures if p.camera in cameras
    }
    found = []
    for view in views:
        path = scene / _DEPTH / view.image.name
        if path.is_file() and view.image.name in by_name:
            depth = _lookup(path, by_name[view.image.name], view.intrinsics)
            view = replace(view, depth=depth)
        found.append(view)
    return found


def _lookup(path: Path, camera: colmap_model.Camera, k: Array) -> Lookup:
    """Depth of an undistorted pixel, with intrinsics k, in the map of the distorted picture."""
    width, height = camera.size
    if path.stat().st_size != 4 * width * height:
        raise UserError(
            f"{path} holds {path.stat().st_size} bytes; wanted {width} x {height} of float32"
        )

    def lookup(pixels: Array) -> Array:
        rays = (pixels - k[:2, 2]) / k[[0, 1], [0, 1]]
        at = np.rint(distort(rays, camera) - 0.5).astype(int)
        inside = np.all((at >= 0) & (at < [width, height]), axis=-1)
        column, row = np.where(inside[:, None], at, 0).T
        depth = np.memmap(path, "<f4", "r", shape=(height, width))
        return np.where(inside, depth[row, column].astype(float), 0.0)

    return lookup


def distort(rays: Array, camera: colmap_model.Camera) -> Array:
    """Pixels (N,2), counted from the first one's corner, of rays (N,2) at depth 1.

    COLMAP's THIN_PRISM_FISHEYE (src/colmap/sensor/models.h): the equidistant fisheye of the ray,
    then radial, tangential and thin-prism terms. PINHOLE is served, too.
    """
    if camera.model == "PINHOLE":
        return rays * camera.parameters[:2] + camera.parameters[2:4]
    if camera.model != "THIN_PRISM_FISHEYE" or len(camera.parameters) != 12:
        raise UserError(f"a distorted camera is {camera.model}; wanted THIN_PRISM_FISHEYE")
    fx, fy, cx, cy, k1, k2, p1, p2, k3, k4, sx1, sy1 = camera.parameters
    radius = np.linalg.norm(rays, axis=-1)
    bent = np.where(radius > 1e-12, np.arctan(radius) / np.maximum(radius, 1e-12), 1.0)
    u, v = (rays * bent[:, None]).T
    uu, vv, uv = u * u, v * v, u * v
    r2 = uu + vv
    radial = r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    du = u * radial + 2 * p1 * uv + p2 * (r2 + 2 * uu) + sx1 * r2
    dv = v * radial + 2 * p2 * uv + p1 * (r2 + 2 * vv) + sy1 * r2
    return np.stack([fx * (u + du) + cx, fy * (v + dv) + cy], axis=-1)
