# SPDX-License-Identifier: Apache-2.0
"""What every layout is read into: posed pictures with depth; and the truth of frames of them.

Poses are camera from world in OpenCV's axes. Columns and rows name the middle of a pixel, 0 the
first: COLMAP and PyTorch3D count from a pixel's corner, so their readers subtract one half.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...scoring import geometry
from ..images import Placement

Array = NDArray[np.float64]
Lookup = Callable[[Array], Array]  # depth (N,) at columns and rows (N,2) of the picture

_RIGID = 1e-3  # by how much R^T R may differ from the identity: files hold a few digits


@dataclass(frozen=True)
class View:
    """A picture and what is known of it; depths that are 0 or not finite are not known."""

    image: Path
    extrinsics: Array  # (3,4)
    intrinsics: Array  # (3,3), pixels of the picture
    depth: Lookup | None = None
    points: Array | None = None  # (N,3): column, row and depth of single points


@dataclass(frozen=True)
class PosedScene:
    """The views of one scene."""

    name: str
    views: list[View]


@dataclass(frozen=True)
class Truth:
    """The geometry of a scene's frames, camera 0 as world, in units of the mean distance from it.

    Arrays as in scenes.Scene; depth and world_points are None where the layout has no depth.
    """

    extrinsics: Array
    intrinsics: Array
    depth: Array | None
    world_points: Array | None
    mask: NDArray[np.bool_]


def spread(views: Sequence[View], most: int) -> list[View]:
    """At most so many views, evenly spread over all, the first and the last among them."""
    if len(views) <= most:
        return list(views)
    return [views[i] for i in np.linspace(0, len(views) - 1, most).round().astype(int)]


def truth(views: Sequence[View], placements: Sequence[Placement], shape: tuple[int, int]) -> Truth:
    """The truth of frames of `shape` (height, width) that were made from the views' pictures.

    Intrinsics follow each picture's resizing, cropping and padding; a frame's pixel has the depth
    of the picture's nearest pixel, single points fall into theirs. With depth, lengths are divided
    by the mean distance of all known points from camera 0, as VGGT's training does.
    """
    back = np.vstack([geometry.invert_pose(views[0].extrinsics), [0, 0, 0, 1]])
    extrinsics = np.stack([view.extrinsics @ back for view in views])
    placed = list(zip(views, placements, strict=True))
    intrinsics = np.stack([place.intrinsics(view.intrinsics) for view, place in placed])
    depth = np.stack([_depth(view, place, shape) for view, place in placed])
    mask = depth > 0
    if not mask.any():
        return Truth(extrinsics, intrinsics, None, None, mask)
    points = geometry.unproject(depth, extrinsics, intrinsics)
    unit = float(np.linalg.norm(points[mask], axis=-1).mean())
    extrinsics[..., 3] /= unit
    return Truth(extrinsics, intrinsics, depth / unit, points / unit, mask)


def _depth(view: View, place: Placement, shape: tuple[int, int]) -> Array:
    height, width = shape
    depth = np.zeros(shape)
    if view.depth is not None:
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([columns, rows], axis=-1).astype(float)
        there = np.all((pixels >= place.corner) & (pixels < np.add(place.corner, place.scaled)), -1)
        depth[there] = view.depth(place.to_picture(pixels[there]))
    elif view.points is not None and len(view.points):
        at = np.rint(place.to_frame(view.points[:, :2])).astype(int)
        inside = np.all((at >= 0) & (at < [width, height]), axis=-1)
        order = np.argsort(-view.points[inside, 2])  # of points in one pixel the nearest is seen
        column, row = at[inside][order].T
        depth[row, column] = view.points[inside, 2][order]
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0.0)


def nearest(depth: Callable[[], Array], size: tuple[int, int]) -> Lookup:
    """Looks depth up in a map that covers a picture of `size` (width, height), read when asked."""

    def lookup(pixels: Array) -> Array:
        found = depth()
        height, width = found.shape
        at = np.rint((pixels + 0.5) * (np.array([width, height]) / size) - 0.5).astype(int)
        column, row = np.clip(at, 0, [width - 1, height - 1]).T
        values: Array = found[row, column].astype(float)
        return values

    return lookup


def rigid(matrix: Array, where: str) -> Array:
    """The pose (3,4) of a matrix (3,4) or (4,4); UserError, naming `where`, when it is none."""
    pose = matrix[:3]
    if pose.shape != (3, 4):
        raise UserError(f"{where}: {matrix.shape} values; wanted a 3x4 or 4x4 matrix")
    if not np.isfinite(pose).all():
        bad = pose[~np.isfinite(pose)][0]
        raise UserError(f"{where}: a pose with {bad:g} in it; wanted finite numbers")
    rotation = pose[:, :3]
    off = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if off > _RIGID or np.linalg.det(rotation) < 0:
        raise UserError(
            f"{where}: not a rigid pose: R^T R is {off:.2g} off the identity, det R "
            f"{np.linalg.det(rotation):.3g}; wanted 0 and 1"
        )
    u, _, vt = np.linalg.svd(rotation)
    return np.concatenate([u @ vt, pose[:, 3:]], axis=1)


def finite(k: Array, where: str) -> Array:
    """Intrinsics (3,3) themselves; UserError, naming `where`, for those of no possible camera."""
    if not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0:
        bad = k[~np.isfinite(k)]
        what = f"{bad[0]:g} in them" if bad.size else f"focal lengths {k[0, 0]:g}, {k[1, 1]:g}"
        raise UserError(
            f"{where}: intrinsics with {what}; wanted finite ones, focal lengths above 0"
        )
    return k


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Array:
    """Intrinsics (3,3)."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def picture(path: Path, where: Path) -> Path:
    """The path itself; UserError when `where` names a picture that is not there."""
    if not os.path.isfile(path):  # of Path's own, a name that is too long is an error
        raise UserError(f"{where} names {path.name}, but there is no {path}")
    return path


def numbers(path: Path, shape: tuple[int, int]) -> Array:
    """A matrix of a text file; UserError when it is not of that shape, or no numbers."""
    try:
        found = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if found.shape != shape:
        raise UserError(f"{path} holds a matrix {found.shape}; wanted {shape}")
    return found


def folders(folder: Path, holds: Callable[[Path], bool]) -> Iterator[Path]:
    """The folder itself if it holds a scene, otherwise those of its folders that do, by name."""
    if holds(folder):
        yield folder
    elif folder.is_dir():
        yield from (sub for sub in sorted(folder.iterdir()) if sub.is_dir() and holds(sub))
