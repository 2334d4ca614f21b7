# SPDX-License-Identifier: Apache-2.0
"""Figures of an experiment report that load the model again: a layer, pictures of each scheme."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

import vggtquant as vq
from vggtquant.commands import cli
from vggtquant.errors import UserError
from vggtquant.evaluation import model_figures
from vggtquant.evaluation.api import Report
from vggtquant.evaluation.model_figures import Wish
from vggtquant.evaluation.present.paper import figures
from vggtquant.evaluation.schema import Document

SCHEMES = ["INT8_Per_Tensor_Symmetric", "INT8_Per_Channel_Symmetric", "INT4_Group_32_A8"]
LAYER = "blocks.1.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a small model on two scenes of two pictures."""
    there = tmp_path_factory.mktemp("results")
    vq.evaluate(
        "toy:build", configs=SCHEMES, scenes=2, max_images=2, runs=1, warmup=0, output_dir=there,
        progress=False,
    )  # fmt: skip
    return there


@pytest.fixture(scope="module")
def document(folder: Path) -> Document:
    return Report.read(folder).document


def test_the_command_draws_a_layer_and_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(folder), "--out", str(tmp_path), "--figures", "size", "--layer", LAYER]
    assert cli.main([*words, "--pictures", "1:2", "2"]) == 0
    assert "running INT4_Group_32_A8" in capsys.readouterr().err
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    pictures = {"depth_1_2", "deptherror_1_2", "depth_2_1", "deptherror_2_1", "points_1"}
    assert names == {"size", "layer_blocks_1_1", "points_2"} | pictures
    text = (tmp_path / "report.md").read_text("utf-8")
    assert f"--figures size --layer {LAYER} --pictures 1:2 2" in text
    assert "picture 2: depth of each scheme" in text


def test_a_panel_for_each_scheme_and_chinese_for_every_word(document: Document) -> None:
    table = figures.words()
    for drawing in Wish(LAYER, ["1"]).drawings(document):
        texts = [text.get_text() for text in drawing.draw().findobj(Text) if text.get_text()]
        for name in SCHEMES:
            assert sum(text.startswith(name) for text in texts) == 1, drawing.name
        for text in texts:
            own = text.startswith(("INT", "FP32")) or not any(c.isalpha() for c in text)
            assert own or "mathdefault" in text or text in table, text


def test_the_model_is_float_again_afterwards(document: Document) -> None:
    loaded = model_figures.load(document)
    before = {name: id(module) for name, module in loaded.model.named_modules()}
    model_figures.panels(document, loaded, [model_figures.Place(1)])
    assert before == {name: id(module) for name, module in loaded.model.named_modules()}


def test_near_points_hide_far_ones() -> None:
    at = np.array([[10.0, 10.0], [10.0, 10.0], [np.nan, 5.0], [1e9, -1e9]])
    colours = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 1.0]])
    found = model_figures._painted(at, np.array([2.0, 1.0, 1.0, 1.0]), colours)
    assert found[10, 10].tolist() == [0, 1, 0] and found[11, 11].tolist() == [0, 1, 0]
    assert (found == 1).all(axis=2).sum() == found.shape[0] * found.shape[1] - 4


def _other_weights(document: Document) -> None:
    document.model.sha256 = "1" * 64


def _other_pictures(document: Document) -> None:
    document.data.scenes[0].images_sha256 = {"frame_00": "2" * 64}


def _given(document: Document) -> None:
    document.settings.model = "TinyVGGT"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_weights, "toy:build has other weights than the evaluated model: SHA-256"),
        (_other_pictures, "the pictures of scene .* are not those of the results any more"),
        (_given, "figures of layers and pictures need the model TinyVGGT"),
    ],
)
def test_a_model_or_pictures_that_changed_are_refused(
    document: Document, change: Callable[[Document], None], words: str
) -> None:
    changed = copy.deepcopy(document)
    change(changed)
    with pytest.raises(UserError, match=words):
        Wish(None, ["1"]).drawings(changed)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (
            Wish("blocks.9"),
            "no Linear layer 'blocks.9'; the first ones are blocks.0.1",
        ),
        (Wish("head"), "no scheme of the results quantizes the layer head"),
        (Wish(None, ["3"]), "no scene 3; the results have 2"),
        (Wish(None, ["1:3"]), "no picture 3 in scene 1; it has 2"),
        (Wish(None, ["0"]), "no picture '0'; wanted SCENE or SCENE:PICTURE"),
        (Wish(None, ["1:2:3"]), "no picture '1:2:3'"),
    ],
)
def test_what_is_not_there_is_one_line(document: Document, wish: Wish, words: str) -> None:
    with pytest.raises(UserError, match=words):
        wish.drawings(document)


def test_without_a_wish_nothing_is_loaded(document: Document) -> None:
    gone = copy.deepcopy(document)
    gone.settings.model = "no-such-model"
    assert Wish().drawings(gone) == []
