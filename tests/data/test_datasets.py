# SPDX-License-Identifier: Apache-2.0
"""Ground truth from folders: each layout gives back what was written, or one clear line."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fuzz_datasets
import layouts
import numpy as np
import pytest
from PIL import Image

from vggtquant.data import datasets, images, scenes
from vggtquant.data.datasets import colmap_model, eth3d, views
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
    camera = colmap_model.Camera(
        "THIN_PRISM_FISHEYE", (100, 100), (10, 20, 50, 40, 0.1, *[0.0] * 7)
    )
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
        configs=plan.configs_of(["INT8_Per_Channel_Symmetric"]),
        output_dir=str(tmp_path / "out"),
        runs=1,
        warmup=0,
    )
    with Progress(bars=False) as progress:
        document = evaluate.evaluate(settings, progress).document
    assert [s.name for s in document.data.scenes] == ["a", "b"]
    assert all(s.ground_truth and s.frames == 2 for s in document.data.scenes)
    assert document.data.description == "scenes with ground truth (npz)"
    assert document.settings.layout == "npz"
    truth = document.row("INT8_Per_Channel_Symmetric").task.truth
    assert {"auc_30", "depth_abs_rel_median", "points_chamfer_umeyama"} <= truth.keys()
    assert document.row("Baseline_FP32").calibration["depth"].against == "truth"
    assert document.statistics.note == "under five scenes: no interval"


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
    model = folder / "sparse" / "0"
    cameras = model / "cameras.txt"
    _edit(cameras, "1 PINHOLE", "1 FISHEYE")
    _refused(folder, "camera 1 is FISHEYE", "image_undistorter")
    _edit(cameras, "1 FISHEYE", "1 OPENCV")
    _refused(folder, "cannot understand", "4 parameters, wanted 8")
    _edit(cameras, "1 OPENCV", "7 PINHOLE")
    _refused(folder, "has camera 1, which cameras.txt lacks")
    _edit(cameras, "7 PINHOLE 28", "1 PINHOLE wide")
    _refused(folder, "cannot understand", "PINHOLE wide")
    _edit(cameras, "1 PINHOLE wide", "1 PINHOLE 28")
    (model / "points3D.txt").write_text("1 2 3")
    _refused(folder, "points3D.txt: cannot understand '1 2 3'")


def test_distortion_is_ignored_aloud(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.colmap(scene, tmp_path)
    _edit(folder / "sparse" / "0" / "cameras.txt", "1 PINHOLE 28 28", "1 SIMPLE_RADIAL 28 28")
    with pytest.warns(UserWarning, match="camera 1 .SIMPLE_RADIAL. has distortion"):
        datasets.find(folder)


@pytest.mark.parametrize(("kind", "words"), [("bin", "binary"), ("txt", "text")])
def test_half_a_model_is_mentioned(scene: Scene, tmp_path: Path, kind: str, words: str) -> None:
    Image.fromarray(scene.images[0]).save(tmp_path / "0.png")
    (tmp_path / f"images.{kind}").write_bytes(b"1 0.png")
    with pytest.warns(
        UserWarning, match=f"images.{kind} but no cameras.{kind}, so it is no {words}"
    ):
        assert datasets.find(tmp_path) is None
    with pytest.warns(UserWarning), pytest.raises(UserError, match="COLMAP model, text or binary"):
        datasets.find(tmp_path, "colmap")


def test_damaged_annotations_are_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.co3d_poses(scene, tmp_path)
    path = folder / "apple_test.jgz"
    path.write_bytes(path.read_bytes()[:-20])
    _refused(folder, "cannot read", "apple_test.jgz")
    path.write_text(json.dumps({"1_2_3": [{"filepath": "x.png"}]}))
    _refused(folder, "missing required field `R`")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{}]", "missing required field `sequence_name`"),
        ("3", "Expected `array`, got `int`"),
        ("[", "cannot read"),
        ('{"1": {}}', "Expected `array`, got `object`"),
        ("[]", "no frame with a camera"),
        ("[" * 100_000, "cannot read"),
        ('[{"sequence_name": "a", "image": {"path": 3}}]', "Expected `str`, got `int`"),
        ('[{"sequence_name": "a", "image": {"path": "x.png"}}]', "no frame with a camera"),
    ],
)
def test_annotations_of_another_form_are_told(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "frame_annotations.json").write_text(content)
    _refused(tmp_path, "frame_annotations.json" if "camera" not in words else "", words)


def _annotated(scene: Scene, folder: Path, **changes: object) -> Path:
    """CO3D's own annotations with other values of their cameras."""
    folder = layouts.co3d(scene, folder)
    path = folder / "frame_annotations.jgz"
    frames = json.loads(gzip.decompress(path.read_bytes()))
    for frame in frames:
        frame["viewpoint"] |= changes
        frame["viewpoint"] = {k: v for k, v in frame["viewpoint"].items() if v is not None}
    path.write_text(json.dumps(frames))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"R": [[1, 0], [0, 1]]}, "Expected `array` of length 3"),
        ({"R": "x"}, "Expected `array`"),
        ({"T": [1, 2, None]}, "Expected `float`"),
        ({"intrinsics_format": "pixels"}, "Invalid enum value 'pixels'"),
        ({"R": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]}, "not a rigid pose"),
        ({"T": [float("nan"), 0, 0]}, "a pose with nan in it"),
        ({"focal_length": [float("inf"), 1]}, "intrinsics with inf in them"),
    ],
)
def test_misstated_cameras_are_told(
    scene: Scene, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    _refused(_annotated(scene, tmp_path, **changes), "frame_annotations.jgz", words)


def test_old_annotations_scale_each_axis_by_its_own_half(scene: Scene, tmp_path: Path) -> None:
    """CO3D's first version says no intrinsics_format; data_types.py has ndc_norm_image_bounds."""
    wide = replace(
        scene,
        images=np.ascontiguousarray(scene.images[:, :14]),
        depth=np.ascontiguousarray(scene.depth[:, :14]),
    )
    k = wide.intrinsics.astype(float)
    camera = {
        "focal_length": [k[0, 0, 0] / 14, k[0, 1, 1] / 7],
        "principal_point": [1 - (k[0, 0, 2] + 0.5) / 14, 1 - (k[0, 1, 2] + 0.5) / 7],
        "intrinsics_format": None,
    }
    found = datasets.find(_annotated(wide, tmp_path, **camera))
    assert found is not None
    np.testing.assert_allclose(found[1][0].views[0].intrinsics, k[0], rtol=1e-6, atol=1e-6)


def test_frames_without_a_camera_are_passed_over(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.co3d(scene, tmp_path)
    path = folder / "frame_annotations.jgz"
    frames = json.loads(gzip.decompress(path.read_bytes()))
    frames[1]["viewpoint"] = None
    path.write_bytes(gzip.compress(json.dumps(frames).encode()))
    found = datasets.find(folder)
    assert found is not None and len(found[1][0].views) == 2


def test_sequences_that_were_not_downloaded_are_left_out_aloud(
    scene: Scene, tmp_path: Path
) -> None:
    folder = layouts.co3d(scene, tmp_path)
    path = folder / "frame_annotations.jgz"
    frames = json.loads(gzip.decompress(path.read_bytes()))
    other = {"path": "apple/4_5_6/images/frame000001.jpg", "size": [SIZE, SIZE]}
    frames.append(frames[0] | {"sequence_name": "4_5_6", "image": other})
    path.write_bytes(gzip.compress(json.dumps(frames).encode()))
    with pytest.warns(UserWarning, match="names 2 sequences; 1 of them have no picture on disk"):
        found = datasets.find(folder)
    assert found is not None and [one.name for one in found[1]] == ["1_2_3"]
    frames[0]["image"]["path"] = "apple/1_2_3/images/lost.jpg"  # of a sequence that is there
    path.write_bytes(gzip.compress(json.dumps(frames).encode()))
    with pytest.warns(UserWarning), pytest.raises(UserError, match="lost.jpg"):
        datasets.find(folder)


def test_a_file_s_name_alone_makes_no_layout(scene: Scene, tmp_path: Path) -> None:
    Image.fromarray(scene.images[0]).save(tmp_path / "0.png")
    for content in ('{"camera_angle_x": 0.7, "frames": []}', "", "\0\x1f\x8b", "[1]"):
        (tmp_path / "transforms_test.json").write_text(content)
        assert datasets.find(tmp_path) is None
    (tmp_path / "transforms_test.json").write_bytes(b"\x1f\x8b damaged")
    assert datasets.find(tmp_path) is None


def test_pictures_may_be_taken_alone(scene: Scene, tmp_path: Path) -> None:
    """Whatever lies beside them, damaged or not; what is wrong there names this way out."""
    folder = layouts.colmap(scene, tmp_path)
    assert datasets.find(folder, "pictures") is None
    (folder / "sparse" / "0" / "cameras.txt").write_text("nonsense")
    _refused(folder, "cannot understand 'nonsense'", "--layout pictures takes the pictures alone")
    assert datasets.find(folder, "pictures") is None


def test_a_layout_must_be_known_and_there(tmp_path: Path) -> None:
    _refused(tmp_path, "unknown layout 'kitti'", "eth3d", layout="kitti")
    _refused(tmp_path, "is not laid out as colmap", layout="colmap")


def _look_up(found: datasets.PosedScene) -> None:
    for view in found.views:
        assert view.depth is not None
        view.depth(np.zeros((1, 2)))


@pytest.mark.parametrize("write", [layouts.sevenscenes, layouts.co3d])
def test_depth_of_another_form_is_told(
    scene: Scene, tmp_path: Path, write: Callable[[Scene, Path], Path]
) -> None:
    folder = write(scene, tmp_path)
    root = folder if write is layouts.sevenscenes else folder.parent
    depth = next(
        path for path in sorted(root.rglob("*.png")) if "depth" in str(path.relative_to(root))
    )
    found = datasets.find(folder)
    assert found is not None
    Image.new("RGB", (SIZE, SIZE)).save(depth)
    with pytest.raises(UserError, match=f"{depth.name} is a picture in colour"):
        _look_up(found[1][0])
    depth.write_bytes(b"")
    with pytest.raises(UserError, match=f"{depth.name} is empty"):
        _look_up(found[1][0])


@pytest.mark.parametrize("write", [layouts.sevenscenes, layouts.co3d])
def test_an_empty_picture_is_told(
    scene: Scene, tmp_path: Path, write: Callable[[Scene, Path], Path]
) -> None:
    folder = write(scene, tmp_path)
    root = folder if write is layouts.sevenscenes else folder.parent
    picture = next(
        path for path in sorted(root.rglob("*.png")) if "depth" not in str(path.relative_to(root))
    )
    picture.write_bytes(b"")
    _refused(folder, picture.name, "is empty (0 bytes)")


@pytest.mark.parametrize("value", ["-inf", "nan", "inf"])
def test_a_frame_without_a_pose_is_told(scene: Scene, tmp_path: Path, value: str) -> None:
    """ScanNet writes -inf where its tracking was lost."""
    folder = layouts.sevenscenes(scene, tmp_path)
    pose = folder / "seq-01" / "frame-000001.pose.txt"
    pose.write_text(f"{value} {value} {value} {value}\n" * 4)
    _refused(folder, "frame-000001.pose.txt", f"a pose with {value} in it")


def test_frames_of_other_kinds(scene: Scene, tmp_path: Path) -> None:
    """3RScan's frames are 7-Scenes' but for the kinds of their pictures."""
    folder = layouts.sevenscenes(scene, tmp_path)
    for path in folder.rglob("*.png"):
        kind = "jpg" if "color" in path.name else "pgm"
        with Image.open(path) as picture:
            picture.save(path.with_suffix(f".{kind}"))
        path.unlink()
    found = datasets.find(folder)
    assert found is not None and found[0] == "7scenes"
    np.testing.assert_allclose(_truth(found[1][0])[1].depth, scene.depth, rtol=3e-3)


def test_a_depth_map_of_another_size_is_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.eth3d(scene, tmp_path)
    (folder / "ground_truth_depth" / "dslr_images" / "frame_00.png").write_bytes(b"1234")
    _refused(folder, "holds 4 bytes; wanted 28 x 28 of float32")


# ---- COLMAP's files: text as people keep it, binary as COLMAP writes it --------------------------


def test_a_binary_model_is_the_text_one(scene: Scene, tmp_path: Path) -> None:
    text = datasets.find(layouts.colmap(scene, tmp_path / "text"))
    folder = layouts.colmap_binary(scene, tmp_path / "binary")
    for name in ("rigs.bin", "frames.bin"):  # beside them since COLMAP 3.12
        (folder / "sparse" / "0" / name).write_bytes(b"unread")
    found = datasets.find(folder)
    assert text is not None and found is not None and found[0] == "colmap"
    for a, b in zip(text[1][0].views, found[1][0].views, strict=True):
        assert a.image.name == b.image.name
        np.testing.assert_array_equal(a.intrinsics, b.intrinsics)
        np.testing.assert_array_equal(a.extrinsics, b.extrinsics)
        np.testing.assert_array_equal(a.points, b.points)


def test_every_camera_model_has_its_parameters_read(scene: Scene, tmp_path: Path) -> None:
    """As pinholes, with their distortion ignored aloud; those of fisheyes are refused by name."""
    for number, (name, count) in colmap_model.MODELS.items():
        folder = layouts.colmap(scene, tmp_path / name)
        values = [20.0, 21.0, 13.0, 14.0, *[0.01] * 12][:count]
        if name.startswith(("SIMPLE", "RADIAL")):
            values = [20.0, 13.0, 14.0, *[0.01] * 12][:count]
        words = " ".join(map(str, values))
        text = "".join(f"{i} {name} {SIZE} {SIZE} {words}\n" for i in (1, 2, 3))
        (folder / "sparse" / "0" / "cameras.txt").write_text(f"# cameras\n{text}")
        layouts.to_binary(folder)
        model = colmap_model.read(folder / "sparse" / "0")
        assert model.cameras[3] == colmap_model.Camera(name, (SIZE, SIZE), tuple(values)), number
        if "FISHEYE" in name or name in ("FOV", "EUCM", "EQUIRECTANGULAR"):
            _refused(folder, f"cameras.bin: camera 1 is {name}", "image_undistorter")
        elif count > 4 or name in ("SIMPLE_RADIAL", "SIMPLE_DIVISION"):
            with pytest.warns(UserWarning, match=f"{name}. has distortion"):
                datasets.find(folder)
        else:
            assert datasets.find(folder) is not None


@pytest.mark.parametrize("file", ["cameras", "images", "points3D"])
def test_a_binary_file_that_is_cut_short_is_told(scene: Scene, tmp_path: Path, file: str) -> None:
    folder = layouts.colmap_binary(scene, tmp_path)
    path = folder / "sparse" / "0" / f"{file}.bin"
    whole = path.read_bytes()
    for length in (0, 5, 8, 11, 40, 61, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        _refused(folder, path.name, "is cut short or no COLMAP model")
    path.write_bytes(b"\xff" * len(whole))
    _refused(folder, path.name)


def test_an_unknown_camera_model_is_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.colmap_binary(scene, tmp_path)
    path = folder / "sparse" / "0" / "cameras.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + struct.pack("<i", 99) + whole[16:])
    _refused(folder, "camera 1 is of model 99; known are 0 to 17")


def _same(folder: Path, scene: Scene) -> None:
    found = datasets.find(folder)
    assert found is not None and found[0] == "colmap" and len(found[1][0].views) == 3
    np.testing.assert_allclose(_truth(found[1][0])[1].depth, scene.depth, rtol=1e-5)


def test_text_as_people_keep_it(scene: Scene, tmp_path: Path) -> None:
    """A byte order mark, indented comments, blank lines, Windows' line ends, names with spaces."""
    folder = layouts.colmap(scene, tmp_path)
    model = folder / "sparse" / "0"
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(path.name.replace("frame_", "my frame ")))
    for path in model.iterdir():
        text = path.read_text().replace("frame_", "my frame ")
        text = "\n  # made by hand\n" + text.replace("# ", "\t# ")
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    _same(folder, scene)


def test_names_that_begin_with_the_folder(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.colmap(scene, tmp_path)
    path = folder / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace("frame_", "images/frame_"))
    _same(folder, scene)


# What COLMAP's users have beside `images` and `sparse/0`: what is moved where, and what is given.
PLACES = {
    "sparse/0 itself": ({}, "sparse/0"),
    "sparse": ({}, "sparse"),
    "nerfstudio": ({"sparse": "colmap/sparse"}, "."),
    "3D Gaussian splatting": ({"images": "input"}, "."),
    "undistorted": ({"images": "dense/0/images", "sparse/0": "dense/0/sparse"}, "dense"),
}


@pytest.mark.parametrize("place", PLACES)
def test_pictures_are_found_where_tools_put_them(place: str, scene: Scene, tmp_path: Path) -> None:
    folder = layouts.colmap(scene, tmp_path)
    moves, given = PLACES[place]
    for source, target in moves.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).rename(folder / target)
    _same(folder / given, scene)


def test_rigs_and_frames_of_colmap_3_12_are_passed_over(scene: Scene, tmp_path: Path) -> None:
    """Poses of pictures stay in images; rigs and frames say how they were made."""
    model = layouts.colmap_binary(scene, tmp_path) / "sparse" / "0"
    (model / "rigs.bin").write_bytes(struct.pack("<QIIiI", 1, 1, 1, 0, 1))
    frames = [struct.pack("<II7dI", i + 1, 1, 1, 0, 0, 0, 0, 0, 0, 1) for i in range(3)]
    (model / "frames.bin").write_bytes(struct.pack("<Q", 3) + b"".join(frames))
    (model / "project.ini").write_text("database_path=database.db\n")
    _same(tmp_path, scene)


def test_an_observation_of_no_point_in_text(scene: Scene, tmp_path: Path) -> None:
    """-1, and 2**64 - 1 as tools that print the number as unsigned write it."""
    path = layouts.colmap(scene, tmp_path) / "sparse" / "0" / "images.txt"
    lines = path.read_text().splitlines()
    lines[2] = f"1.5 2.5 -1 1.5 2.5 {2**64 - 1} {lines[2]}"
    path.write_text("\r\n".join(lines) + "\r\n")
    _same(tmp_path, scene)


@pytest.mark.parametrize("on_disk", ["utf-8", "latin-1"])
def test_names_in_latin_1(scene: Scene, tmp_path: Path, on_disk: str) -> None:
    folder = layouts.colmap(scene, tmp_path)
    for path in (folder / "images").iterdir():
        name = os.fsdecode(path.name.replace("frame", "caf\xe9").encode(on_disk))
        path.rename(path.with_name(name))
    path = folder / "sparse" / "0" / "images.txt"
    path.write_bytes(path.read_text().replace("frame", "caf\xe9").encode("latin-1"))
    _same(folder, scene)


def test_records_without_their_second_line(scene: Scene, tmp_path: Path) -> None:
    """Poses alone, as some tools write them: no observations, so no depth; no line is blamed."""
    folder = layouts.colmap(scene, tmp_path)
    path = folder / "sparse" / "0" / "images.txt"
    lines = path.read_text().splitlines()
    for kept in (lines[1::2], [lines[1], "", lines[3], lines[5], ""]):
        path.write_text("\n".join(kept))
        found = datasets.find(folder)
        assert found is not None
        _, truth = _truth(found[1][0])
        assert truth.depth is None and len(truth.extrinsics) == 3
    path.write_text("\n".join([lines[1], "1 2 x", *lines[3:]]))
    _refused(folder, "cannot understand '1 2 x'")
    path.write_text(lines[1].replace("frame_00.png", "17"))  # a picture whose name is a number
    (folder / "images" / "frame_00.png").rename(folder / "images" / "17")
    with pytest.warns(UserWarning, match="the model holds 1 pictures; 2 others"):
        assert datasets.find(folder) is not None


def test_numbers_that_are_no_pose_or_camera_are_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.colmap(scene, tmp_path)
    model = folder / "sparse" / "0"
    images, cameras = (model / "images.txt").read_text(), (model / "cameras.txt").read_text()
    (model / "images.txt").write_text(f"1 0 0 0 0 0 0 0 1 frame_00.png\n\n{images}")
    _refused(folder, "images.txt: frame_00.png", "(0, 0, 0, 0) is no rotation's quaternion")
    (model / "images.txt").write_text(f"1 nan 0 0 1 0 0 0 1 frame_00.png\n\n{images}")
    _refused(folder, "images.txt: frame_00.png", "no rotation's quaternion")
    (model / "images.txt").write_text(f"1 1 0 0 0 inf 0 0 1 frame_00.png\n\n{images}")
    _refused(folder, "images.txt: frame_00.png", "a pose with inf in it")
    (model / "images.txt").write_text(images)
    words = cameras.split()
    for value in ("0", "nan", "-20", "inf"):
        (model / "cameras.txt").write_text(cameras.replace(words[7], value))
        _refused(folder, "cameras.txt: camera 1: intrinsics with", "focal lengths above 0")


def test_of_several_models_the_largest_is_taken_aloud(scene: Scene, tmp_path: Path) -> None:
    layouts.colmap(scene, tmp_path, model="sparse/10")
    layouts.colmap(scene, tmp_path, model="sparse/0")
    path = tmp_path / "sparse" / "0" / "images.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    said = r"holds 2 models \(0 of 1, 10 of 3 pictures\); 10 is taken"
    with pytest.warns(UserWarning, match=said):
        found = datasets.find(tmp_path)
    assert found is not None and len(found[1][0].views) == 3


def test_pictures_without_a_pose_are_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.colmap(scene, tmp_path)
    Image.new("RGB", (SIZE, SIZE)).save(folder / "images" / "extra.jpg")
    with pytest.warns(UserWarning, match="holds 3 pictures; 1 others of .*images have no pose"):
        assert datasets.find(folder) is not None


def test_intrinsics_that_are_none_are_told_by_every_layout(scene: Scene, tmp_path: Path) -> None:
    bad = replace(scene, intrinsics=scene.intrinsics.copy())
    for value, words in ((np.nan, "nan in them"), (0.0, "focal lengths 0, ")):
        bad.intrinsics[:, 0, 0] = value
        for name, (write, _) in WRITERS.items():
            folder = write(bad, tmp_path / f"{name}{value}")
            _refused(folder, "intrinsics with", words)


def test_a_truth_file_of_another_form_is_told(scene: Scene, tmp_path: Path) -> None:
    folder = layouts.npz(scene, tmp_path)
    path = folder / "truth.npz"
    whole = path.read_bytes()
    with np.load(path) as truth:
        parts = dict(truth)
    for changes, words in (
        ({"depth": parts["depth"][0, 0]}, "depth is (28,); wanted (frames, height, width)"),
        ({"extrinsics": np.eye(4)}, "extrinsics is (4, 4); wanted (frames, 3, 4)"),
        ({"intrinsics": np.ones((3, 2, 2))}, "intrinsics is (3, 2, 2); wanted (frames, 3, 3)"),
        ({name: parts[name][:0] for name in ("depth", "extrinsics", "intrinsics")}, "is (0, 28,"),
        ({"depth": np.array(["x"])}, "holds no readable scene"),
    ):
        np.savez(path, **(parts | changes))
        _refused(folder, "truth.npz", words)
    for at in (40, 200, len(whole) // 2):
        path.write_bytes(whole[:at] + b"\xff" * 30 + whole[at + 30 :])
        for read in (datasets.find, scenes.load_scene):
            try:
                read(folder)
            except UserError as error:  # of nothing else
                assert str(tmp_path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("write", [layouts.colmap, layouts.co3d, layouts.co3d_poses])
def test_a_name_too_long_for_a_file_is_told(
    scene: Scene, tmp_path: Path, write: Callable[[Scene, Path], Path]
) -> None:
    folder = write(scene, tmp_path)
    for path in folder.rglob("*"):
        if path.suffix in (".txt", ".jgz"):
            raw = path.read_bytes()
            text = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
            path.write_bytes(
                text.replace(b"/frame", b"/" + b"x" * 300).replace(b" frame", b" x" * 300)
            )
    _refused(folder, "but there is no")
    assert datasets.find("x" * 300) is None
    with pytest.raises(UserError, match="no such image folder"):
        images.find_images("x" * 300)


def test_damaged_files_of_every_layout_are_read_or_refused(tmp_path: Path) -> None:
    told = fuzz_datasets.run(tmp_path, seed=0, count=300)
    assert told["refused"] > 100 and told["read"] > 20, told
