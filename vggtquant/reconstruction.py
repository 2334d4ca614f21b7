# SPDX-License-Identifier: Apache-2.0
"""Writes a reconstruction for other programs: PLY, COLMAP's text model, npz, pictures to look at.

Every file is whole or not there (files.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import UserError
from .files import replacing, writable_folder
from .scoring.geometry import matrix_to_quaternion

if TYPE_CHECKING:
    from PIL import Image

# Nine samples of matplotlib's viridis (CC0), dark to bright.
_VIRIDIS = [
    (68, 1, 84),
    (71, 45, 123),
    (59, 82, 139),
    (44, 114, 142),
    (33, 145, 140),
    (40, 174, 128),
    (94, 201, 98),
    (173, 220, 48),
    (253, 231, 37),
]


@dataclass(frozen=True)
class Points:
    """N coloured points, and where each was seen: frame s, column u, row v."""

    xyz: NDArray[np.float32]  # (N,3)
    rgb: NDArray[np.uint8]  # (N,3)
    frame: NDArray[np.intp]  # (N,)
    uv: NDArray[np.intp]  # (N,2)

    def __len__(self) -> int:
        return len(self.xyz)

    def thinned(self, most: int) -> "Points":
        """At most that many, spread evenly over all of them."""
        if len(self) <= most:
            return self
        keep = np.linspace(0, len(self) - 1, most).astype(np.intp)
        return Points(self.xyz[keep], self.rgb[keep], self.frame[keep], self.uv[keep])


def select_points(
    xyz: ArrayLike,
    images: ArrayLike,
    confidence: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    percentile: float = 0.0,
) -> Points:
    """The points worth showing of a point map (S,H,W,3), coloured from images (S,3,H,W) in [0, 1].

    Dropped are points that are not finite, outside `mask` (S,H,W), or below that percentile of the
    confidences (S,H,W) of the others. UserError for a percentile outside 0 to 100.
    """
    if not 0 <= percentile <= 100:
        raise UserError(f"the confidence percentile must be between 0 and 100, got {percentile}")
    points, pictures = np.asarray(xyz, dtype=np.float32), np.asarray(images)
    keep = np.isfinite(points).all(axis=-1)
    if mask is not None:
        keep &= np.asarray(mask, dtype=bool)
    if confidence is not None and keep.any():
        conf = np.asarray(confidence)
        keep &= conf >= np.percentile(conf[keep], percentile)
    frame, v, u = np.nonzero(keep)
    rgb = np.clip(np.moveaxis(pictures, 1, -1)[keep] * 255 + 0.5, 0, 255).astype(np.uint8)
    return Points(points[keep], rgb, frame, np.stack([u, v], axis=1))


def write_ply(path: str | Path, points: Points) -> Path:
    """A binary little-endian PLY with x y z (float) and red green blue (uchar)."""
    path = Path(path)
    kinds = [(name, "<f4") for name in ("x", "y", "z")]
    kinds += [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.empty(len(points), dtype=kinds)
    for i, name in enumerate(("x", "y", "z")):
        rows[name] = points.xyz[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        rows[name] = points.rgb[:, i]
    words = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {words[kind]} {name}" for name, kind in kinds]
    with replacing(path) as file:
        file.write("\n".join([*header, "end_header", ""]).encode("ascii"))
        file.write(rows.tobytes())
    return path


def write_colmap(
    folder: str | Path,
    names: Sequence[str],
    extrinsics: ArrayLike,
    intrinsics: ArrayLike,
    image_size: tuple[int, int],
    points: Points,
) -> list[Path]:
    """COLMAP's text model (colmap.github.io/format.html): cameras.txt, images.txt, points3D.txt.

    One PINHOLE camera a frame; `names` are the pictures' file names, of `image_size` (height,
    width); extrinsics (S,3,4) are camera from world, as COLMAP wants them, intrinsics (S,3,3).
    Every point is an observation of one frame. Pixel coordinates and principal point are COLMAP's,
    whose first pixel has its middle at 0.5: half a pixel more than VGGT's, which are given.
    UserError for a name with a space in it: COLMAP would cut it there.
    """
    folder = writable_folder(folder)
    spaced = [name for name in names if len(name.split()) != 1]
    if spaced:
        raise UserError(f"COLMAP cannot hold a file name with spaces: {spaced[0]!r}")
    poses, k = np.asarray(extrinsics, np.float64), np.asarray(intrinsics, np.float64)
    height, width = image_size
    cameras = [f"# {len(k)} cameras: CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY"]
    for i, m in enumerate(k, 1):
        focal = _numbers([m[0, 0], m[1, 1], m[0, 2] + 0.5, m[1, 2] + 0.5])
        cameras.append(f"{i} PINHOLE {width} {height} {focal}")

    order = np.arange(len(points))
    images = [f"# {len(k)} images, two lines each: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"]
    images.append("#   X Y POINT3D_ID, of each point seen")
    place = np.empty(len(points), dtype=np.intp)  # of a point among those of its frame
    for i, (name, pose) in enumerate(zip(names, poses, strict=True)):
        x, y, z, w = matrix_to_quaternion(pose[:, :3])
        images.append(f"{i + 1} {_numbers([w, x, y, z, *pose[:, 3]])} {i + 1} {name}")
        seen = order[points.frame == i]
        place[seen] = np.arange(len(seen))
        pairs = zip((points.uv[seen] + 0.5).tolist(), (seen + 1).tolist(), strict=True)
        images.append(" ".join(f"{u} {v} {number}" for (u, v), number in pairs))

    cloud = [f"# {len(points)} points: POINT3D_ID X Y Z R G B ERROR (IMAGE_ID POINT2D_IDX)"]
    columns = (points.xyz.tolist(), points.rgb.tolist(), points.frame.tolist(), place.tolist())
    for i, (xyz, (r, g, b), frame, index) in enumerate(zip(*columns, strict=True), 1):
        cloud.append(f"{i} {_numbers(xyz)} {r} {g} {b} 0 {frame + 1} {index}")

    paths = []
    for name, lines in (("cameras", cameras), ("images", images), ("points3D", cloud)):
        paths.append(folder / f"{name}.txt")
        with replacing(paths[-1]) as file:
            file.write(("\n".join(lines) + "\n").encode("utf-8"))
    return paths


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> Path:
    """Arrays by name, uncompressed, for numpy.load."""
    path = Path(path)
    with replacing(path) as file:
        np.savez(file, **arrays)
    return path


def write_picture(path: str | Path, picture: "Image.Image") -> Path:
    """A Pillow image as PNG."""
    path = Path(path)
    with replacing(path) as file:
        picture.save(file, format="PNG")
    return path


def to_picture(image: ArrayLike) -> "Image.Image":
    """A Pillow image of (3,H,W) in [0, 1]."""
    from PIL import Image

    pixels = np.clip(np.moveaxis(np.asarray(image), 0, -1) * 255 + 0.5, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def depth_previews(
    images: ArrayLike, depth: ArrayLike, mask: ArrayLike | None = None
) -> Iterator["Image.Image"]:
    """For each frame its picture and beside it its depth, near bright and far dark.

    images (S,3,H,W) in [0, 1], depth (S,H,W). The scale is logarithmic, common to all frames, from
    the 2nd to the 98th percentile of the depths inside `mask`; what has no depth is grey.
    """
    from PIL import Image

    depths = np.asarray(depth, dtype=np.float64)
    valid = np.isfinite(depths) & (depths > 0)
    if mask is not None:
        valid &= np.asarray(mask, dtype=bool)
    logs = np.log(np.where(valid, depths, 1.0))
    near, far = np.percentile(logs[valid], [2, 98]) if valid.any() else (0.0, 1.0)
    brightness = (far - logs) / max(far - near, 1e-9)
    colours = [
        np.interp(brightness, np.linspace(0, 1, len(_VIRIDIS)), channel)
        for channel in zip(*_VIRIDIS, strict=True)
    ]
    shown = np.where(valid[..., None], np.stack(colours, axis=-1), 128.0).astype(np.uint8)
    for image, colour in zip(np.asarray(images), shown, strict=True):
        left = np.asarray(to_picture(image))
        yield Image.fromarray(np.concatenate([left, colour], axis=1))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.9g}" for value in values)
