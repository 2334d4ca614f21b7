# SPDX-License-Identifier: Apache-2.0
"""`vggtquant run` from pictures to files, with a model that knows the answer."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import vggtquant as vq
from vggtquant import run
from vggtquant.commands import cli
from vggtquant.data import scenes
from vggtquant.errors import UserError
from vggtquant.scoring import task_scores

SIZE, FRAMES = 56, 3

# A model of VGGT's outputs: the truth of built-in scene 2 when it sees that scene, a plane in front
# of unmoving cameras otherwise. Its Linear layers are there to be quantized and do not matter.
ORACLE = """
import numpy as np, torch
from torch import nn
from vggtquant.data import scenes
from vggtquant.scoring import geometry

class Oracle(nn.Module):
    image_size = 56

    def __init__(self, **changes):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
        self.changes = changes

    def forward(self, images):
        images = images if images.ndim == 5 else images[None]
        b, s, _, h, w = images.shape
        seed = scenes.scene_seeds(3, 0)[2]
        zero = self.layers(torch.zeros(1, 32)).sum() * 0
        pose = torch.tensor([0, 0, 0, 0, 0, 0, 2.0, 1.0, 1.0]).expand(b, s, 9)
        depth = torch.full((b, s, h, w), 2.0)
        points = torch.zeros(b, s, h, w, 3)
        if s <= 8 and (h, w) == (56, 56):
            scene = scenes.make_scene(seed, s, 56)
            seen = torch.from_numpy(scene.images).permute(0, 3, 1, 2) / 255
            if torch.equal(seen, images[0]):
                encoded = geometry.encode_pose(scene.extrinsics, scene.intrinsics, (56, 56))
                pose = torch.from_numpy(encoded).float()[None]
                depth = torch.from_numpy(scene.depth)[None]
                points = torch.from_numpy(scene.world_points)[None]
        conf = 1 + torch.arange(h * w).reshape(h, w).expand(b, s, h, w) / (h * w)
        out = {"pose_enc": pose, "pose_enc_list": [pose], "depth": depth[..., None] + zero,
               "depth_conf": conf, "world_points": points, "world_points_conf": conf,
               "images": images}
        for name, value in self.changes.items():
            if value is None:
                del out[name]
            else:
                out[name] = out[name] * value
        return out

def build(): return Oracle()
def nan(): return Oracle(depth=float("nan"))
def no_depth(): return Oracle(depth=None, depth_conf=None)
def no_pose(): return Oracle(pose_enc=None)
def no_dict(): return nn.Conv3d(4, 3, 1)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "oracle_of_a_test.py").write_text(ORACLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "oracle_of_a_test", raising=False)
    return tmp_path


def ply_points(path: Path) -> NDArray[np.float32]:
    body = path.read_bytes().partition(b"end_header\n")[2]
    rows = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    xyz: NDArray[np.float32] = rows["xyz"]
    return xyz


@pytest.mark.parametrize("points", run.POINT_SOURCES)
@pytest.mark.parametrize("scheme", [None, "INT8_Per_Channel_Symmetric", "Baseline_BF16"])
def test_a_built_in_scene_is_reconstructed(here: Path, points: str, scheme: str | None) -> None:
    said: list[str] = []
    done = run.run(
        "oracle_of_a_test:build",
        "builtin:2",
        "out",
        scheme=scheme,
        max_images=FRAMES,
        points=points,
        conf_percentile=0,
        say=said.append,
    )
    truth = scenes.make_scene(scenes.scene_seeds(3, 0)[2], FRAMES, SIZE)
    found = ply_points(here / "out" / "reconstruction.ply")
    np.testing.assert_allclose(found, truth.world_points.reshape(-1, 3), atol=2e-5)
    assert (done.frames, done.points) == (FRAMES, FRAMES * SIZE * SIZE)
    assert done.scores["auc_3"] == 1
    assert done.scores["depth_abs_rel"] < 1e-6
    assert (done.report is not None) == (scheme == "INT8_Per_Channel_Symmetric")
    assert any("reconstructing 3 frames of 56x56" in line for line in said)

    with np.load(here / "out" / "predictions.npz") as stored:
        assert stored["depth"].shape == (FRAMES, SIZE, SIZE, 1)
        assert stored["world_points_from_depth"].shape == (FRAMES, SIZE, SIZE, 3)
        np.testing.assert_allclose(stored["extrinsic"], truth.extrinsics, atol=1e-6)
        np.testing.assert_allclose(stored["intrinsic"], truth.intrinsics, rtol=1e-6)
        assert stored["image_names"].tolist() == [f"{i:03d}_rendered.png" for i in range(3)]
    for i in range(FRAMES):
        with Image.open(here / "out" / "images" / f"{i:03d}_rendered.png") as picture:
            assert np.array_equal(np.asarray(picture), truth.images[i])
        with Image.open(here / "out" / "depth" / f"{i:03d}_rendered.png") as picture:
            assert picture.size == (2 * SIZE, SIZE)
    for path in done.files:
        assert path.exists()
    names = {path.name for path in done.files}
    assert {"reconstruction.ply", "cameras.txt", "images.txt", "points3D.txt"} <= names
    assert not list((here / "out").rglob("*.tmp"))


def test_autocast_by_flag_by_scheme_and_by_file(here: Path) -> None:
    file = here / "fast.safetensors"
    vq.quantize_file("builtin:tiny", "INT8_Fast_BF16", file, float_dtype="float32")

    def depth(model: str | Path, **options: Any) -> NDArray[np.float32]:
        run.run(model, "builtin:2", "out", max_images=2, size=56, **options)
        with np.load(here / "out" / "predictions.npz") as stored:
            found: NDArray[np.float32] = stored["depth"]
        return found

    by_scheme = depth("builtin:tiny", scheme="INT8_Fast_BF16")
    assert np.array_equal(depth("builtin:tiny", scheme="INT8_Fast", autocast=True), by_scheme)
    assert np.array_equal(depth(file), by_scheme)
    assert not np.array_equal(depth("builtin:tiny", scheme="INT8_Fast"), by_scheme)


def test_confidence_drops_points(here: Path) -> None:
    done = run.run("oracle_of_a_test:build", "builtin", "out", max_images=1, conf_percentile=75)
    assert done.points == SIZE * SIZE // 4


def test_a_folder_of_pictures_with_padding(here: Path) -> None:
    folder = here / "my pictures"
    folder.mkdir()
    for name, size in (("b 10.png", (80, 40)), ("b 9.jpg", (80, 80))):
        Image.new("RGB", size, "red").save(folder / name)
    said: list[str] = []
    done = run.run("oracle_of_a_test:build", folder, "out", conf_percentile=0, say=said.append)
    assert any(line.startswith("note: pictures of different shapes") for line in said)
    assert done.points == 56 * 56 + 56 * 28  # the white padding is no part of the scene
    written = sorted(path.name for path in (here / "out" / "images").iterdir())
    assert written == ["000_b_9.png", "001_b_10.png"]
    assert done.scores == {}


def test_the_command_prints_what_it_wrote(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["oracle_of_a_test:build", "builtin:2", "--out", "o", "--scheme", "INT4_Group_32"]
    assert cli.main(["run", *words]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("4 frames in ")
    assert lines[0].endswith(f"{4 * 56 * 56 * 3 // 4:,} points")
    assert lines[1].startswith("2 Linear layers quantized to ")
    assert lines[2].startswith("against the truth: depth AbsRel 0.000, rotation 0.0 deg")
    assert lines[3] == "wrote o/reconstruction.ply"
    assert lines[-1] == "wrote o/predictions.npz"
    assert "quantizing to INT4_Group_32" in shown.err


def test_importing_and_help_need_no_torch() -> None:
    code = (
        "import argparse, sys\n"
        "from vggtquant.commands import run\n"
        "run.add_arguments(argparse.ArgumentParser())\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_bad_input_is_one_clear_line_and_writes_nothing(here: Path) -> None:
    (here / "empty").mkdir()
    (here / "a_file").write_bytes(b"")
    (here / "broken").mkdir()
    (here / "broken" / "x.png").write_bytes(b"")
    good = "oracle_of_a_test:build"

    def call(model: str = good, images: str = "builtin", out: str = "out", **options: object):
        return lambda: run.run(model, images, out, **options)

    cases: list[tuple[Callable[[], object], str]] = [
        (call(images="gone"), "no such image folder: gone"),
        (call(images="empty"), "no picture in empty"),
        (call(images="broken"), "broken/x.png is empty"),
        (call(images="builtin:x"), "'builtin:x': wanted a folder, builtin"),
        (call(max_images=0), "max_images must be 1 or more, got 0"),
        (call(max_images=9), "frames must be 1 to 8, got 9"),
        (call(scheme="INT4_Group_127"), "INT4_Group_128"),
        (call(mode="squash"), "'squash'"),
        (call(size=100), "multiple of 14, got 100"),
        (call(points="cloud"), "'cloud': wanted one of depth, map"),
        (call(conf_percentile=101), "between 0 and 100, got 101"),
        (call(device="abacus"), "unknown device 'abacus'"),
        (call(out="a_file"), "cannot write into a_file"),
        (call(model="nonsense"), "unknown model 'nonsense'"),
        (call(model="oracle_of_a_test:nan"), r"output depth has \d+ values that are NaN"),
        (call(model="oracle_of_a_test:no_depth"), "gives no depth.*it gives pose_enc, world"),
        (call(model="oracle_of_a_test:no_pose"), "gives no pose_enc"),
        (call(model="oracle_of_a_test:no_dict"), "returned Tensor, wanted VGGT's dict"),
    ]
    for function, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            function()
        assert "\n" not in str(caught.value)
    assert not (here / "out").exists() or not list((here / "out").iterdir())


def test_results_are_not_written_among_the_pictures(here: Path) -> None:
    folder = here / "scene" / "images"
    folder.mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(folder / "a.png")
    for images in ("scene", folder):
        with pytest.raises(UserError, match="--out scene holds the pictures in images/"):
            run.run("oracle_of_a_test:build", images, "scene")
    assert len(list((here / "scene").rglob("*"))) == 2


def test_a_folder_of_rendered_scenes_is_no_scene(here: Path) -> None:
    """Its contact sheet is no photograph."""
    scenes.write_dataset("scenes", count=2, frames=2, size=56)
    with pytest.raises(
        UserError, match="scenes holds several rendered scenes; wanted one, such as"
    ):
        run.run("no_such_module:build", "scenes", "out")
    one = min((here / "scenes").glob("scene_*"))
    assert run.run("oracle_of_a_test:build", one, "out").frames == 2


def test_results_of_another_run_are_not_mixed_in(here: Path) -> None:
    run.run("oracle_of_a_test:build", "builtin:2", "out", max_images=3)
    before = {path: path.read_bytes() for path in (here / "out").rglob("*") if path.is_file()}
    (here / "mine").mkdir()
    Image.new("RGB", (56, 56)).save(here / "mine" / "a.png")
    for images, most in (("mine", None), ("builtin:2", 2)):
        with pytest.raises(UserError, match=r"--out out holds files of another run \(images/00"):
            run.run("no_such_module:build", images, "out", max_images=most)
    assert before == {p: p.read_bytes() for p in (here / "out").rglob("*") if p.is_file()}
    again = run.run("oracle_of_a_test:no_depth", "builtin:2", "out", max_images=3, points="map")
    assert again.frames == 3 and not list((here / "out" / "depth").iterdir())


def test_a_built_in_scene_of_any_number(here: Path) -> None:
    done = run.run("oracle_of_a_test:build", "builtin:1000000000", "out", max_images=1)
    assert done.frames == 1


def test_notes_on_pictures_are_told(here: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (here / "phone").mkdir()
    Image.new("RGB", (56, 56)).save(here / "phone" / "a.jpg", exif=exif)
    (here / "phone" / "b.mp4").write_bytes(b"x")
    said: list[str] = []
    run.run("oracle_of_a_test:build", "phone", "out", say=said.append)
    notes = [line for line in said if line.startswith("note: ")]
    assert "not taken of phone: 1 .mp4" in notes[0]
    assert "1 of 1 pictures carry an EXIF tag" in notes[1]
    with pytest.raises(UserError, match="b.mp4 is a video; wanted pictures: `mkdir .* ffmpeg"):
        run.run("oracle_of_a_test:build", "phone/b.mp4", "other")


def test_names_that_are_no_utf_8(here: Path) -> None:
    (here / "odd").mkdir()
    Image.new("RGB", (56, 56)).save(here / "odd" / os.fsdecode(b"caf\xe9 1.png"))
    run.run("oracle_of_a_test:build", "odd", "out")
    (name,) = (path.name for path in (here / "out" / "images").iterdir())
    assert name == "000_caf_xe9_1.png" and name in (here / "out/sparse/images.txt").read_text()


def test_a_model_without_depth_still_gives_its_point_map(here: Path) -> None:
    done = run.run("oracle_of_a_test:no_depth", "builtin:2", "out", points="map")
    assert done.points > 0
    assert not (here / "out" / "depth").exists()
    with np.load(here / "out" / "predictions.npz") as stored:
        assert "world_points_from_depth" not in stored.files


def test_the_work_is_checked_before_the_model_is_loaded(here: Path) -> None:
    """A slow load is not paid for input that cannot work: the model here does not exist."""
    for options, message in [
        ({"images": "gone"}, "no such image folder"),
        ({"out": "oracle_of_a_test.py"}, "cannot write into"),
        ({"scheme": "nope"}, "nope"),
        ({"device": "nope"}, "unknown device"),
        ({"max_images": 0}, "max_images"),
    ]:
        arguments = {"images": "builtin", "out": "out"} | options
        with pytest.raises(UserError, match=message):
            run.run("no_such_module:build", **arguments)


def test_the_oracle_is_the_truth(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in itself: what it returns for the scene is what geometry calls perfect."""
    monkeypatch.syspath_prepend(str(here))
    import oracle_of_a_test

    scene = scenes.make_scene(scenes.scene_seeds(3, 0)[2], FRAMES, SIZE)
    images = torch.from_numpy(scene.images).permute(0, 3, 1, 2) / 255
    out = oracle_of_a_test.build().eval()(images)
    outputs = {name: x.detach().numpy() for name, x in out.items() if not isinstance(x, list)}
    scores = task_scores.pooled_scores([task_scores.scene_errors(outputs, scene)])
    assert scores["points_chamfer"] == 0
    assert scores["auc_3"] == 1
