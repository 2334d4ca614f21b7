# SPDX-License-Identifier: Apache-2.0
"""Writes a rendered scene in the layout of each data set, by the data sets' own descriptions."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from vggtquant.data import scenes
from vggtquant.data.datasets import colmap_model
from vggtquant.data.scenes import Scene
from vggtquant.scoring import geometry


def _picture(scene: Scene, index: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.images[index]).save(path, format="PNG")


def npz(scene: Scene, folder: Path) -> Path:
    """As `vggtquant scenes` does."""
    return scenes.save_scene(scene, folder)


def colmap(scene: Scene, folder: Path, *, pictures: str = "", model: str = "sparse/0") -> Path:
    """A PINHOLE camera a picture, and a 3D point for every pixel, observed by that pixel alone."""
    height, width = scene.depth.shape[1:]
    cameras, images = ["# Camera list"], ["# Image list"]
    points = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]"]
    for i, (pose, k) in enumerate(zip(scene.extrinsics, scene.intrinsics, strict=True)):
        name = f"{pictures}frame_{i:02d}.png"
        _picture(scene, i, folder / "images" / name)
        fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5
        cameras.append(f"{i + 1} PINHOLE {width} {height} {fx:.9g} {fy:.9g} {cx:.9g} {cy:.9g}")
        x, y, z, w = geometry.matrix_to_quaternion(pose[:, :3])
        shift = " ".join(f"{value:.12g}" for value in pose[:, 3])
        images.append(f"{i + 1} {w:.15g} {x:.15g} {y:.15g} {z:.15g} {shift} {i + 1} {name}")
        seen = []
        for row, column in np.ndindex(height, width):
            number = i * height * width + row * width + column
            place = " ".join(f"{value:.9g}" for value in scene.world_points[i, row, column])
            points.append(f"{number} {place} 0 0 0 0.1 {i + 1} {row * width + column}")
            seen.append(f"{column + 0.5} {row + 0.5} {number}")
        images.append(" ".join(seen))
    for file, lines in (("cameras", cameras), ("images", images), ("points3D", points)):
        path = folder / model / f"{file}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return folder


def to_binary(folder: Path) -> None:
    """Puts COLMAP's binary files in the place of a text model's, by the format's description."""
    model = folder / "sparse" / "0"
    numbers = {name: number for number, (name, _) in colmap_model.MODELS.items()}
    cameras, pictures, points = (
        [line.split() for line in (model / f"{name}.txt").read_text().splitlines()[1:]]
        for name in ("cameras", "images", "points3D")
    )
    blob = struct.pack("<Q", len(cameras))
    for number, name, width, height, *values in cameras:
        blob += struct.pack("<IiQQ", int(number), numbers[name], int(width), int(height))
        blob += struct.pack(f"<{len(values)}d", *map(float, values))
    (model / "cameras.bin").write_bytes(blob)
    blob = struct.pack("<Q", len(pictures) // 2)
    for (number, *pose, camera, name), seen in zip(pictures[::2], pictures[1::2], strict=True):
        blob += struct.pack("<I7dI", int(number), *map(float, pose), int(camera))
        blob += name.encode() + b"\0" + struct.pack("<Q", len(seen) // 3 + 1)
        blob += struct.pack("<ddQ", 1.5, 2.5, 2**64 - 1)  # an observation of no point
        for u, v, point in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
            blob += struct.pack("<ddQ", float(u), float(v), int(point))
    (model / "images.bin").write_bytes(blob)
    blob = struct.pack("<Q", len(points))
    for number, x, y, z, r, g, b, error, *track in points:
        blob += struct.pack("<Q3d3Bd", int(number), *map(float, (x, y, z)), *map(int, (r, g, b)),
                            float(error))  # fmt: skip
        blob += struct.pack(f"<Q{len(track)}I", len(track) // 2, *map(int, track))
    (model / "points3D.bin").write_bytes(blob)
    for path in model.glob("*.txt"):
        path.unlink()


def colmap_binary(scene: Scene, folder: Path) -> Path:
    """As COLMAP itself writes it."""
    to_binary(colmap(scene, folder))
    return folder


def eth3d(scene: Scene, folder: Path) -> Path:
    """Undistorted pictures, and depth of "distorted" ones whose camera happens to be a pinhole."""
    for calibration, pictures in (
        ("dslr_calibration_undistorted", "dslr_images_undistorted/"),
        ("dslr_calibration_jpg", "dslr_images/"),
    ):
        colmap(scene, folder, pictures=pictures, model=calibration)
    for i, depth in enumerate(scene.depth):
        path = folder / "ground_truth_depth" / "dslr_images" / f"frame_{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        depth.astype("<f4").tofile(path)
    return folder


def sevenscenes(scene: Scene, folder: Path) -> Path:
    """One sequence, depth in whole millimetres."""
    for i, pose in enumerate(scene.extrinsics):
        stem = folder / "seq-01" / f"frame-{i:06d}"
        _picture(scene, i, stem.with_name(stem.name + ".color.png"))
        millimetres = np.round(scene.depth[i] * 1000).astype(np.uint16)
        Image.fromarray(millimetres).save(stem.with_name(stem.name + ".depth.png"))
        back = np.vstack([geometry.invert_pose(pose), [0, 0, 0, 1]])
        np.savetxt(stem.with_name(stem.name + ".pose.txt"), back, fmt="%.9f", delimiter="\t ")
    np.savetxt(folder / "camera-intrinsics.txt", scene.intrinsics[0])
    return folder


def _pytorch3d(scene: Scene, index: int) -> dict:
    """A camera as CO3D keeps it: x = X R + T, axes left, up and forward, normalised intrinsics."""
    height, width = scene.depth.shape[1:]
    flip = np.diag([-1.0, -1.0, 1.0])
    k, half = scene.intrinsics[index].astype(float), min(height, width) / 2
    return {
        "R": (flip @ scene.extrinsics[index, :, :3]).T.tolist(),
        "T": (flip @ scene.extrinsics[index, :, 3]).tolist(),
        "focal_length": [k[0, 0] / half, k[1, 1] / half],
        "principal_point": [
            (width / 2 - (k[0, 2] + 0.5)) / half,
            (height / 2 - (k[1, 2] + 0.5)) / half,
        ],
    }


def co3d(scene: Scene, folder: Path) -> Path:
    """CO3D's own annotations, depth as the bits of float16."""
    frames = []
    for i in range(len(scene.depth)):
        name = f"apple/1_2_3/images/frame{i + 1:06d}.png"
        _picture(scene, i, folder / name)
        depth = f"apple/1_2_3/depths/frame{i + 1:06d}.png"
        (folder / depth).parent.mkdir(exist_ok=True)
        bits = (scene.depth[i] / 2).astype(np.float16).view(np.uint16)
        Image.fromarray(bits).save(folder / depth)
        camera = _pytorch3d(scene, i) | {"intrinsics_format": "ndc_isotropic"}
        size = list(scene.depth.shape[1:])
        frames.append(
            {
                "sequence_name": "1_2_3",
                "frame_number": i,
                "image": {"path": name, "size": size},
                "depth": {"path": depth, "scale_adjustment": 2.0, "mask_path": None},
                "viewpoint": camera,
            }
        )
    text = json.dumps(frames[::-1]).encode()
    (folder / "apple" / "frame_annotations.jgz").write_bytes(gzip.compress(text))
    return folder / "apple"


def co3d_poses(scene: Scene, folder: Path) -> Path:
    """A category's annotations as VGGT's evaluation reads them: cameras alone."""
    entries = []
    for i in range(len(scene.depth)):
        name = f"apple/1_2_3/images/frame{i + 1:06d}.png"
        _picture(scene, i, folder / name)
        entries.append({"filepath": name, "bbox": [0, 0, 1, 1]} | _pytorch3d(scene, i))
    (folder / "apple_test.jgz").write_bytes(gzip.compress(json.dumps({"1_2_3": entries}).encode()))
    return folder
