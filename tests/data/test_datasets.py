# SPDX-License-Identifier: Apache-2.0
"""Ground truth from folders: each layout gives back what was written, or one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image

from vggtquant.data import datasets, images, scenes
from vggtquant.data.datasets import colmap, eth3d, views
from vggtquant.data.scenes import Scene
from vggtquant.errors import UserError
from vggtquant.evaluation import evaluate
from vggtquant.evaluation.measure import plan
from vggtquant.progress import Progress
from vggtquant.scoring import geometry

SIZE = 28
# layout: writer, tolerance of depth relative to it (what the files can hold)
WRITERS: dict[str, tuple[Callable[[Scene, Path], Path], float]] = {
    "npz": (layouts.npz, 1e-6),
    "colmap": (layouts.colmap, 1e-5),
    "eth3d": (layouts.eth3d, 1e-5),
    "7scenes": (layouts.sevenscenes, 3e-3),
    "co3d": (layouts.co3d, 1e-3),
}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return scenes.make_scene(scenes.HELD_OUT + 3, frames=3, size=SIZE)


def _truth(found: datasets.PosedScene, size: int = SIZE, mode: images.Mode = "crop"):
    frames = images.load_frames([view.image for view in found.views], mode, size=size)
    height, width = frames.images.shape[-2:]
    return frames, datasets.truth(found.views, frames.placements, (height, width))


# ---- each layout ---------------------------------------------------------------------------------


def test_every_layout_has_a_writer() -> None:
    assert WRITERS.keys() == datasets.LAYOUTS.keys()


@pytest.mark.parametrize("layout", WRITERS)
def test_the_same_scene_comes_back(layout: str, scene: Scene, tmp_path: Path) -> None:
    write, tolerance = WRITERS[layout]
    found = datasets.find(write(scene, tmp_path / "room"))
    assert found is not None
    assert found[0] == layout and len(found[1]) == 1
    frames, truth = _truth(found[1][0])
    np.testing.assert_array_equal(frames.images.permute(0, 2, 3, 1) * 255, scene.images)
    assert truth.mask.all()
    np.testing.assert_allclose(truth.intrinsics, scene.intrinsics, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(truth.extrinsics, scene.extrinsics, atol=1e-3 * tolerance + 1e-5)
    np.testing.assert_allclose(truth.depth, scene.depth, rtol=tolerance)
    np.testing.assert_allclose(truth.world_points, scene.world_points, atol=3 * tolerance)


def test_annotations_without_depth_are_poses_alone(scene: Scene, tmp_path: Path) -> None:
    found = datasets.find(layouts.co3d_poses(scene, tmp_path))
    assert found is not None and found[0] == "co3d"
    _, truth = _truth(found[1][0])
    assert truth.depth is None and truth.world_points is None and not truth.mask.any()
    errors = geometry.relative_pose_errors(truth.extrinsics, scene.extrinsics)
    assert max(errors.rotation.max(), errors.direction.max()) < 1e-3


def test_a_folder_of_scenes(scene: Scene, tmp_path: Path) -> None:
    for name in ("b", "a"):
        layouts.npz(scene, tmp_path / name)
    found = datasets.find(tmp_path)
    assert found is not None and [s.name for s in found[1]] == ["a", "b"]


def test_pictures_alone_have_no_layout(scene: Scene, tmp_path: Path) -> None:
    Image.fromarray(scene.images[0]).save(tmp_path / "0.png")
    assert datasets.find(tmp_path) is None


# ---- resizing, cropping, padding -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "mode"), [(97, 61, "crop"), (60, 130, "crop"), (61, 97, "pad")]
)
def test_truth_follows_the_loader(
    width: int, height: int, mode: images.Mode, tmp_path: Path
) -> None:
    """Colours tell where in the picture a frame's pixel comes from; its depth tells the same."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns * 200 / width, rows * 200 / height, 0 * rows], axis=-1)
    Image.fromarray(pixels.round().astype(np.uint8)).save(tmp_path / "0.png")
    k = views.pinhole(70.0, 80.0, width / 3, height / 2)
    depth = 1.0 + columns / width + 2 * rows / height  # says the place
    view = views.View(
        tmp_path / "0.png", np.eye(3, 4), k, views.nearest(lambda: depth, (width, height))
    )
    frames, truth = _truth(datasets.PosedScene("x", [view]), 56, mode)
    assert truth.depth is not None and truth.world_points is not None
    np.testing.assert_array_equal(truth.mask[0], frames.mask[0].numpy())
    inner = truth.mask[0].copy()
    inner[:2] = inner[-2:] = inner[:, :2] = inner[:, -2:] = False
    red, green, _ = 255 * frames.images[0].numpy()[:, inner]
    told = 1 + red / 200 + 2 * green / 200
    unit = told.mean() / truth.depth[0][inner].mean()
    np.testing.assert_allclose(unit * truth.depth[0][inner], told, atol=0.06)
    # A ray of the frame is the ray of the place in the picture that the colours name.
    u, v = red * width / 200, green * height / 200
    x, y, z = truth.world_points[0][inner].T
    np.testing.assert_allclose(x / z, (u - k[0, 2]) / k[0, 0], atol=0.02)
    np.testing.assert_allclose(y / z, (v - k[1, 2]) / k[1, 1], atol=0.02)


def test_places_go_to_the_frame_and_back(rng: np.random.Generator) -> None:
    place = images.Placement((640, 480), (518, 392), (0, -63))
    at = rng.uniform(0, 400, (20, 2))
    np.testing.assert_allclose(place.to_picture(place.to_frame(at)), at, atol=1e-9)
    # The picture's outer edges, half a pixel beyond the middles of the last ones, stay edges.
    np.testing.assert_allclose(place.to_frame(np.array([-0.5, -0.5])), [-0.5, -63.5])
    np.testing.assert_allclose(place.to_frame(np.array([639.5, 479.5])), [517.5, 392 - 63 - 0.5])


def test_pictures_are_spread_evenly() -> None:
    some = [views.View(Path(str(i)), np.eye(3, 4), np.eye(3)) for i in range(100)]
    assert [view.image.name for view in datasets.spread(some, 4)] == ["0", "33", "66", "99"]
    assert datasets.spread(some[:3], 4) == some[:3]


def test_of_points_in_one_pixel_the_nearest_is_seen(scene: Scene, tmp_path: Path) -> None:
    found = datasets.find(layouts.colmap(scene, tmp_path))
    assert found is not None
    frames, truth = _truth(found[1][0], 14)
    assert frames.images.shape[-1] == 14 and truth.mask.all()
    least = scene.depth.reshape(3, 14, 2, 14, 2).min(axis=(2, 4))
    ratio = np.asarray(truth.depth) / least
    assert np.ptp(ratio) < 1e-4  # another unit, the same places


# ---- ETH3D's distorted cameras -------------------------------------------------------------------


def test_distortion_by_hand() -> None:
    """A ray of 45 degrees: the fisheye bends it to pi / 4, k1 adds k1 r^3, sx1 adds sx1 r^2."""
    camera = colmap.Camera("THIN_PRISM_FISHEYE", (100, 100), (10, 20, 50, 40, 0.1, *[0.0] * 7))
    bent = np.pi / 4
    np.testing.assert_allclose(
        eth3d.distort(np.array([[1.0, 0.0], [0.0, 0.0]]), camera),
        [[50 + 10 * (bent + 0.1 * bent**3), 40], [50, 40]],
    )
    prism = replace(camera, parameters=(10, 20, 50, 40, *[0.0] * 6, 0.01, 0.02))
    np.testing.assert_allclose(
        eth3d.distort(np.array([[0.0, 1.0]]), prism),
        [[50 + 10 * 0.01 * bent**2, 40 + 20 * (bent + 0.02 * bent**2)]],
    )


def test_depth_is_looked_up_through_the_distortion(scene: Scene, tmp_path: Path) -> None:
    """A plane seen by a fisheye: its depth map is made pixel by pixel, by inverting the bend."""
    folder = layouts.eth3d(scene, tmp_path)
    focal, size = 40.0, 60
    cameras = "\n".join(
        f"{i} THIN_PRISM_FISHEYE {size} {size} {focal} {focal} 30 30 0 0 0 0 0 0 0 0"
        for i in (1, 2, 3)
    )
    (folder / "dslr_calibration_jpg" / "cameras.txt").write_text(cameras)
    column, row = np.meshgrid(np.arange(size), np.arange(size))
    u, v = (column + 0.5 - 30) / focal, (row + 0.5 - 30) / focal
    angle = np.hypot(u, v)
    ray = np.tan(angle) / np.maximum(angle, 1e-12)
    plane = 1 / (1 + 0.3 * u * ray + 0.2 * v * ray)  # z of the plane z + 0.3 x + 0.2 y = 1
    for path in (folder / "ground_truth_depth" / "dslr_images").iterdir():
        plane.astype("<f4").tofile(path)
    found = datasets.find(folder)
    assert found is not None
    _, truth = _truth(found[1][0])
    assert truth.depth is not None
    k = truth.intrinsics[0]
    column, row = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    x, y = (column - k[0, 2]) / k[0, 0], (row - k[1, 2]) / k[1, 1]
    wanted = 1 / (1 + 0.3 * x + 0.2 * y)
    ratio = truth.depth[0] / wanted
    np.testing.assert_allclose(ratio / np.median(ratio), 1, atol=0.02)  # the nearest pixel's


# ---- in an evaluation ----------------------------------------------------------------------------


def test_a_folder_with_truth_is_evaluated_against_it(scene: Scene, tmp_path: Path) -> None:
    for name in ("a", "b"):
        layouts.npz(scene, tmp_path / "rooms" / name)
    settings = plan.Settings(
        model="toy:build",
        images=(str(tmp_path / "rooms"),),
        max_images=2,
        schemes=("INT8_Per_Channel_Symmetric",),
        output_dir=str(tmp_path / "out"),
        runs=1,
        warmup=0,
    )
    with Progress(bars=False) as progress:
        document = evaluate.evaluate(settings, progress).document
    assert [s["name"] for s in document["data"]["scenes"]] == ["a", "b"]
    assert all(s["ground_truth"] and s["frames"] == 2 for s in document["data"]["scenes"])
    assert document["data"]["description"] == "scenes with ground truth (npz)"
    assert document["settings"]["layout"] == "npz"
    rows = {row["name"]: row for row in document["schemes"]}
    truth = rows["INT8_Per_Channel_Symmetric"]["task"]["truth"]
    assert {"auc_30", "depth_abs_rel_median", "points_chamfer_umeyama"} <= truth.keys()
    assert rows["Baseline_FP32"]["calibration"]["depth"]["against"] == "truth"
    assert document["statistics"]["note"] == "under five scenes: no interval"


# ---- bad folders: one clear line -----------------------------------------------------------------


def _refused(folder: Path, *words: str, layout: str | None = None) -> None:
    with pytest.raises(UserError) as caught:
        datasets.find(folder, layout)
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_missing_picture_is_named(scene: Scene, tmp_path: Path) -> None:
    for write in (layouts.npz, layouts.colmap):
        folder = write(scene, tmp_path / write.__name__)
        next(folder.rglob("frame_01.png")).unlink()
        _refused(folder, "frame_01.png", "there is no")


def test_a_matrix_that_is_no_pose_is_named(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.sevenscenes(scene, tmp_path)
    pose = folder / "seq-01" / "frame-000001.pose.txt"
    np.savetxt(pose, np.diag([1, 1, 1.2, 1]))
    _refused(folder, "frame-000001.pose.txt", "not a rigid pose", "0.44")
    np.savetxt(pose, np.diag([1, 1, -1, 1]))
    _refused(folder, "det R -1")
    np.savetxt(pose, np.eye(3))
    _refused(folder, "holds a matrix (3, 3); wanted (4, 4)")
    pose.write_text("one two")
    _refused(folder, "cannot read", "frame-000001.pose.txt")


def test_counts_that_differ_are_named(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.sevenscenes(scene, tmp_path / "7")
    (folder / "seq-01" / "frame-000002.pose.txt").unlink()
    _refused(folder, "3 pictures and 2 poses")
    folder = layouts.npz(scene, tmp_path / "npz")
    with np.load(folder / "truth.npz") as truth:
        parts = dict(truth)
    np.savez(folder / "truth.npz", **(parts | {"extrinsics": parts["extrinsics"][:2]}))
    _refused(folder, "different numbers of frames")


def test_a_damaged_model_is_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.colmap(scene, tmp_path)
    cameras, model = folder / "sparse" / "0" / "cameras.txt", folder / "sparse" / "0"
    _edit(cameras, "1 PINHOLE", "1 FOV")
    _refused(folder, "camera 1 is FOV", "image_undistorter")
    _edit(cameras, "1 FOV", "7 PINHOLE")
    _refused(folder, "has camera 1, which cameras.txt lacks")
    _edit(cameras, "7 PINHOLE 28", "1 PINHOLE wide")
    _refused(folder, "cannot understand", "PINHOLE wide")
    (model / "cameras.txt").unlink()
    _refused(folder, "cannot read", "cameras.txt")


def test_distortion_is_ignored_aloud(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.colmap(scene, tmp_path)
    _edit(folder / "sparse" / "0" / "cameras.txt", "1 PINHOLE 28 28", "1 SIMPLE_RADIAL 28 28")
    with pytest.warns(UserWarning, match="camera 1 .SIMPLE_RADIAL. has distortion"):
        datasets.find(folder)


def test_a_binary_model_is_mentioned(scene: Scene, tmp_path: Path) -> None:
    layouts.npz(scene, tmp_path)
    (tmp_path / "truth.npz").unlink()
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "images.bin").write_bytes(b"")
    with pytest.warns(UserWarning, match="model_converter"):
        assert datasets.find(tmp_path) is None


def test_damaged_annotations_are_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.co3d_poses(scene, tmp_path)
    path = folder / "apple_test.jgz"
    path.write_bytes(path.read_bytes()[:-20])
    _refused(folder, "cannot read", "apple_test.jgz")
    path.write_text(json.dumps({"1_2_3": [{"filepath": "x.png"}]}))
    _refused(folder, "x.png", "there is no")
    path.write_text("3")
    _refused(folder, "holds a int")


def test_a_layout_must_be_known_and_there(tmp_path: Path) -> None:
    _refused(tmp_path, "unknown layout 'kitti'", "eth3d", layout="kitti")
    _refused(tmp_path, "is not laid out as colmap", layout="colmap")


def test_a_depth_map_of_another_size_is_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.eth3d(scene, tmp_path)
    (folder / "ground_truth_depth" / "dslr_images" / "frame_00.png").write_bytes(b"1234")
    _refused(folder, "holds 4 bytes; wanted 28 x 28 of float32")
