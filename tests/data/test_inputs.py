# SPDX-License-Identifier: Apache-2.0
"""What an evaluation takes from folders: every picture is known by a name and a hash of its own."""

from pathlib import Path

import layouts
import pytest
from PIL import Image

from vggtquant.data import scenes
from vggtquant.evaluation.measure import inputs


def test_pictures_of_one_name_have_a_hash_each(tmp_path: Path) -> None:
    paths = [tmp_path / "cam0" / "1.png", tmp_path / "cam1" / "1.png"]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        Image.new("RGB", (56, 56), (i, i, i)).save(path)
    (sample,) = inputs.pictures([str(path) for path in paths], "crop", 2, 56).take(2)
    assert list(sample.sha256) == ["cam0/1.png", "cam1/1.png"]
    assert len(set(sample.sha256.values())) == 2


def test_what_looks_like_ground_truth_and_is_none_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (56, 56)).save(tmp_path / "0.png")
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "images.bin").touch()
    with pytest.warns(UserWarning, match="no binary COLMAP model and is passed over"):
        assert inputs.posed([str(tmp_path)], None, "crop", None, None, 56) is None
    assert inputs.posed([str(tmp_path)], "pictures", "crop", None, None, 56) is None


def test_pictures_of_a_scene_with_ground_truth_have_their_names(tmp_path: Path) -> None:
    scene = scenes.make_scene(scenes.HELD_OUT + 3, frames=2, size=28)
    there = inputs.posed([str(layouts.colmap(scene, tmp_path))], None, "crop", None, None, 28)
    assert there is not None
    (sample,) = there.take(1)
    assert list(sample.sha256) == ["frame_00.png", "frame_01.png"]
