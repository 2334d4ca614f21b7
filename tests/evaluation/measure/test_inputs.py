# SPDX-License-Identifier: Apache-2.0
"""What an evaluation takes from folders: every picture has a name and a hash; notes are said."""

from pathlib import Path

import layouts
import pytest
from PIL import Image

from vggtquant.data import scenes
from vggtquant.evaluation import evaluate
from vggtquant.evaluation.measure import inputs, plan
from vggtquant.progress import Progress


def test_pictures_of_one_name_have_a_hash_each(tmp_path: Path) -> None:
    paths = [tmp_path / "cam0" / "1.png", tmp_path / "cam1" / "1.png"]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        Image.new("RGB", (56, 56), (i, i, i)).save(path)
    (sample,) = inputs.pictures([str(path) for path in paths], "crop", 2, 56).take(2)
    assert list(sample.sha256) == ["cam0/1.png", "cam1/1.png"]
    assert len(set(sample.sha256.values())) == 2


def _posed(folder: Path, layout: str | None = None) -> inputs.Inputs | None:
    return inputs.posed([str(folder)], layout, "crop", None, None, 28)


def test_what_looks_like_ground_truth_and_is_none_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (56, 56)).save(tmp_path / "0.png")
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "images.bin").touch()
    with pytest.warns(UserWarning, match="no binary COLMAP model and is passed over"):
        assert _posed(tmp_path) is None
    assert _posed(tmp_path, "pictures") is None


def test_pictures_of_a_scene_with_ground_truth_have_their_names(tmp_path: Path) -> None:
    scene = scenes.make_scene(scenes.HELD_OUT + 3, frames=2, size=28)
    there = _posed(layouts.colmap(scene, tmp_path))
    assert there is not None
    (sample,) = there.take(1)
    assert list(sample.sha256) == ["frame_00.png", "frame_01.png"]


def test_every_note_on_a_user_s_files_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of layouts, folders and pictures, by the progress and not by Python's own warnings."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        Image.new("RGB", (56, 56), (90 * i, 0, 0)).save(folder / f"{i}.jpg", exif=exif)
    (folder / "images.bin").touch()
    (folder / "walk.mp4").write_bytes(b"x")
    settings = plan.Settings(
        model="toy:build",
        images=(str(folder),),
        configs=plan.configs_of(["INT8_Per_Channel_Symmetric"]),
        output_dir=str(tmp_path / "out"),
        runs=1,
        warmup=0,
    )
    with Progress(bars=False) as progress:
        evaluate.evaluate(settings, progress)
    said = capsys.readouterr().err.replace("\n", " ")
    for words in (
        "holds images.bin but no cameras.bin, so it is no binary COLMAP model",
        "1 .mp4",
        "2 of 2 pictures carry an EXIF tag that turns them",
    ):
        assert said.count(words) == 1, said
    assert said.count("note: ") == 3
