# SPDX-License-Identifier: Apache-2.0
"""vq.evaluate: modules, packed files, configs and data as Python has them; the Report it gives."""

import json
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import toy
from builders import document, seven
from PIL import Image
from torch import nn

import vggtquant as vq
from vggtquant.data.scenes import HELD_OUT, make_scene
from vggtquant.errors import UserError
from vggtquant.evaluation import schema
from vggtquant.evaluation.api import Report
from vggtquant.evaluation.measure import inputs
from vggtquant.evaluation.present import text
from vggtquant.evaluation.schema import Kind, Status

INT8, INT4 = "INT8_Per_Channel_Symmetric", "INT4_Group_32"
QUICK = {"runs": 1, "warmup": 0, "progress": False}


def _images(count: int = 2) -> list[tuple[torch.Tensor, None]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.rand(2, 3, 28, 28, generator=generator), None) for _ in range(count)]


# ---- what it takes -------------------------------------------------------------------------------


def test_a_module_pictures_and_configs_of_your_own(tmp_path: Path, capfd) -> None:
    mine = vq.QuantizationConfig("Mine", "int4_group", group_size=16)
    mixed = vq.QuantizationConfig("Mixed", "mixed_precision", sensitive_layers=("blocks.0.*",))
    model = toy.build()
    before = dict(model.named_modules())
    report = vq.evaluate(model, _images(), [INT8, mine, mixed], tmp_path / "out", **QUICK)
    made = report.document
    assert [row.name for row in made.schemes if row.kind is Kind.QUANTIZED] == [
        INT8,
        "Mine",
        "Mixed",
    ]
    assert all(row.ok for row in made.schemes)
    bits = {layer.name: layer.scheme[-4:] for layer in made.row("Mixed").layers if layer.calls}
    assert bits["blocks.0.1"] == "INT8" if "blocks.0.1" in bits else bits["blocks.0.3"] == "INT8"
    assert bits["blocks.1.1"] == "INT4"
    assert made.model.name == "Toy" and made.data.description == "scenes given in Python"
    assert schema.read(tmp_path / "out") == made
    assert dict(model.named_modules()) == before
    assert capfd.readouterr() == ("", "")


def test_a_file_of_configs_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "Mine"\nquant_type = "int4_group"\ngroup_size = 16\n'
    )
    report = vq.evaluate("toy:build", _images(1), tmp_path / "mine.toml", **QUICK)
    assert report.document.schemes[-1].name == "Mine"
    assert report.document.schemes[-1].config.group_size == 16


def test_a_forward_of_another_kind(tmp_path: Path) -> None:
    class Batched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy.build()

        def forward(self, batch: dict, *, really: bool) -> tuple:
            assert really
            return (self.inner(batch["images"]), None)

    report = vq.evaluate(
        Batched(),
        _images(),
        INT8,
        forward=lambda model, images: model({"images": images[None]}, really=True)[0],
        **QUICK,
    )
    assert report.document.row(INT8).ok


def test_scenes_with_ground_truth(tmp_path: Path) -> None:
    scenes = [make_scene(HELD_OUT + i, 2, 28) for i in range(2)]
    names = ("extrinsics", "depth", "world_points", "mask")
    given = [
        (torch.from_numpy(s.images).permute(0, 3, 1, 2) / 255, {n: getattr(s, n) for n in names})
        for s in scenes
    ]
    found = [vq.evaluate("toy:build", data, INT8, **QUICK).document for data in (scenes, given)]
    truths = [made.row(INT8).task.truth for made in found]
    assert truths[0] == pytest.approx(truths[1]) and "auc_30" in truths[0]


def test_a_compiled_model_is_measured() -> None:
    compiled, images = torch.compile(toy.build(), backend="eager"), _images(1)
    with torch.device("meta"):  # a default device does not reach into it
        report = vq.evaluate(compiled, images, INT8, **QUICK)
    row = report.document.row(INT8)
    assert (row.status, row.reason) == (Status.OK, None)


def test_a_confidence_of_zero_everywhere_is_reported() -> None:
    """np.percentile([]) once ended such an evaluation at its report."""

    class Sure(toy.Toy):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            found = super().forward(images)
            return found | {"depth_conf": torch.zeros_like(found["depth_conf"])}

    report = vq.evaluate(Sure().eval(), _images(5), INT8, **QUICK)
    row = report.document.row(INT8)
    assert row.ok and row.calibration["depth"].laplace_nll is None
    assert row.calibration["depth"].log_confidence_shift is None
    assert "Difference or chance" in text.full_report(report.document)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": [(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), None)]}, "floats in"),
        ({"data": [(torch.full((2, 3, 28, 28), 255.0), None)]}, "go from 255 to 255"),
        ({"data": [torch.zeros(2, 3, 28, 28)]}, "wanted (pictures, ground truth"),
        ({"data": [(torch.zeros(2, 3, 28, 28), {"poses": 1})]}, "has none of extrinsics"),
        ({"data": []}, "hold no scene"),
        ({"configs": "INT4_Group_46"}, "nearest"),
        ({"configs": [INT4, replace(vq.CONFIGS[INT8], name=INT4)]}, "two schemes are named"),
        ({"model": toy.build().double()}, "float64"),
        ({"source": "builtin:tiny"}, "--source is for a packed file"),
        ({"isolate": True}, "a module was given"),
        ({"data": 3}, "data is 3; wanted a folder"),
        ({"configs": 3}, "configs is 3; wanted names"),
        ({"runs": 1.5}, "--runs is 1.5; wanted an integer, 1 to 10000"),
        ({"runs": 10**12}, "--runs is 1000000000000; wanted 1 to 10000"),
        ({"scenes": "3"}, "--scenes is '3'; wanted an integer"),
        ({"seed": None}, "--seed is None; wanted an integer"),
        ({"max_drop": "a"}, "--max_drop is 'a'; wanted a number of 0 or more"),
        ({"max_memory": "x"}, "--max_memory is 'x'; wanted an integer"),
        ({"mode": None}, "--mode is None; wanted a word"),
        ({"layout": 3}, "--layout is 3; wanted a word"),
        ({"forward": 3}, "forward is 3; wanted a function"),
        ({"data": [(torch.zeros(0, 3, 28, 28), None)]}, "are empty: (0, 3, 28, 28)"),
        ({"data": [(torch.zeros(2, 3, 28, 28, device="meta"), None)]}, "have no values (meta)"),
        ({"model": {}}, "model is dict; wanted a module"),
        ({"configs": []}, "configs is empty"),
        ({"mode": "stretch"}, "unknown mode 'stretch': wanted one of crop, pad"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"max_images": 10**10}, "--max_images is 10000000000; wanted 1 to 100000"),
    ],
)
def test_what_it_refuses_is_one_line(given: dict, words: str) -> None:
    values = {"model": toy.build(), "data": _images(1), "configs": INT8} | QUICK | given
    with pytest.raises(UserError) as caught:
        vq.evaluate(**values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_is_kept_whole() -> None:
    for config in vq.CONFIGS.values():
        kept = msgspec.json.decode(msgspec.json.encode(config), type=vq.QuantizationConfig)
        assert kept == config


# ---- packed files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """builtin:tiny in INT4."""
    path = tmp_path_factory.mktemp("packed") / "tiny-int4.safetensors"
    vq.quantize_file("builtin:tiny", "INT4_Group_32", path)
    return path


def test_a_packed_file_is_held_to_what_it_was_made_from(packed: Path) -> None:
    report = vq.evaluate(packed, configs=["INT4_Group_32"], scenes=1, **QUICK)
    made = report.document
    (file,) = (row for row in made.schemes if row.name == packed.name)
    assert file.ok and file.kind is Kind.QUANTIZED and made.model.name == "builtin:tiny"
    assert file.proof.layers_executed > 10 and not file.proof.layers_without_kernel
    same = made.row("INT4_Group_32")
    # The codes are the same; what is not quantized is bfloat16 in the file.
    assert file.error == pytest.approx(same.error, rel=0.2) and file.nbytes <= same.nbytes


def test_a_packed_file_of_other_weights_is_refused(packed: Path) -> None:
    with pytest.raises(UserError, match="made from other weights than builtin:tiny-outliers"):
        vq.evaluate(packed, source="builtin:tiny-outliers", scenes=1, **QUICK)


def test_a_packed_file_alone_is_held_to_the_truth(packed: Path, monkeypatch) -> None:
    from vggtquant.evaluation import evaluate

    monkeypatch.setattr(evaluate, "_source", lambda *_: None)
    report = vq.evaluate(packed, scenes=1, **QUICK)
    (row,) = report.document.schemes
    assert row.name == packed.name and row.kind is Kind.BASELINE
    assert row.proof.layers_executed > 10 and row.task.truth["auc_30"] > 0
    assert report.best() is None and packed.name in str(report)


# ---- several scenes of photographs ---------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "room"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(12):
        pixels = noise.integers(0, 255, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_groups_of_one_folder_give_intervals(photographs: Path) -> None:
    report = vq.evaluate("toy:build", photographs, INT8, groups=5, **QUICK)
    made = report.document
    assert [scene.name for scene in made.data.scenes] == [f"room_{i}" for i in range(1, 6)]
    shared = [set(scene.images_sha256) for scene in made.data.scenes]
    assert all(len(a & b) == 2 for a, b in zip(shared, shared[1:], strict=False))
    assert made.statistics.note is None
    with pytest.raises(UserError, match="12 pictures make 1 to 11 different groups"):
        vq.evaluate("toy:build", photographs, INT8, groups=12, **QUICK)


def test_a_folder_of_folders_is_a_scene_each(photographs: Path) -> None:
    for i in range(12):
        place = photographs / f"scene{i % 3}"
        place.mkdir(exist_ok=True)
        (photographs / f"{i}.png").rename(place / f"{i}.png")
    found = vq.evaluate("toy:build", photographs, INT8, **QUICK).document
    assert [(s.name, s.frames) for s in found.data.scenes] == [(f"scene{i}", 4) for i in range(3)]
    found = vq.evaluate("toy:build", photographs, INT8, max_images=2, scenes=2, **QUICK).document
    assert [list(s.images_sha256) for s in found.data.scenes] == [
        ["0.png", "9.png"],
        ["1.png", "10.png"],
    ]


@pytest.mark.parametrize(("count", "groups"), [(4, 1), (12, 5), (25, 8), (7, 6), (2, 1)])
def test_groups_overlap_and_leave_nothing_out(count: int, groups: int) -> None:
    found = inputs.overlapping(count, groups)
    assert len(found) == groups == len(set(found)) and len({len(part) for part in found}) == 1
    assert set().union(*found) == set(range(count)) and min(map(len, found)) >= 2


# ---- the report ----------------------------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    return Report(document(seven()))


def test_a_table_is_plain_rows(report: Report) -> None:
    rows = report.table()
    assert len(rows) == 7 and len({tuple(row) for row in rows}) == 1
    assert json.loads(json.dumps(rows)) == rows
    by_name = {row["scheme"]: row for row in rows}
    assert by_name[INT8]["speedup"] == pytest.approx(1.25)
    assert by_name[INT8]["model_bytes"] == 310_000


def test_the_best_is_a_config(report: Report) -> None:
    assert report.best() is None  # the depth is beyond bfloat16's
    assert report.best(max_drop=1.0) is None  # there are no poses
    for row in report.document.schemes:
        row.task.fp32 = {"auc_30": 1 - row.error, "depth_abs_rel": row.error}
    assert report.best(max_drop=1.1) == vq.CONFIGS[INT8]
    assert report.best(max_drop=9.0) == vq.CONFIGS["INT4_Group_128"]
    with pytest.raises(UserError, match="max_drop"):
        report.best(max_drop=-1)


@pytest.mark.charts
def test_a_chart_is_an_svg(report: Report) -> None:
    chart = report.plot("speedup")
    assert chart.startswith("<svg") and chart._repr_svg_() == chart
    with pytest.raises(UserError, match="wanted one of size, time"):
        report.plot("pie")


def test_it_is_written_and_read(report: Report, tmp_path: Path) -> None:
    files = report.write(tmp_path / "a")
    assert {path.name for path in files} >= {schema.JSON_NAME, schema.PAGE_NAME, schema.TEXT_NAME}
    assert Report.read(tmp_path / "a") == report


@pytest.mark.parametrize("format", [None, "md"])
def test_it_is_written_into_folders_alone(report: Report, format: str | None) -> None:
    with pytest.raises(TypeError, match="folder is NoneType; wanted a folder"):
        report.write(None, format=format)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"'a\\x00b': a NUL character"):
        report.write("a\0b", format=format)


def test_a_notebook_shows_it(report: Report) -> None:
    shown = report._repr_html_()
    assert "Recommended: none" in shown and shown.count("<table") == 3
    assert "<script" not in shown and "Times can be used" in shown
    assert "toy" in repr(report) and math.isfinite(len(str(report)))


_CELLS = (
    "import vggtquant as vq",
    "report = vq.evaluate('toy:build', configs=['INT8_Per_Channel_Symmetric'], scenes=1, "
    "max_images=2, runs=1, warmup=0, output_dir='out')",
    "report",
    "report.plot('speedup')",
)


@pytest.mark.slow  # a kernel of Jupyter, fifteen seconds
def test_in_a_notebook_there_is_one_bar_and_one_table(tmp_path: Path, monkeypatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", f"{Path(vq.__file__).parents[1]}:{Path(toy.__file__).parent}")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in _CELLS])
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    run, shown, plotted = (cell.outputs for cell in notebook.cells[1:])
    assert [one.output_type for one in run] == ["display_data"]
    assert "<progress" in run[0].data["text/html"]
    assert len(shown) == 1 and "Recommended:" in shown[0].data["text/html"]
    assert plotted[0].data["image/svg+xml"].startswith("<svg")
    said = (tmp_path / "out" / schema.TEXT_NAME).read_text()
    assert "What was compared" in said and len(said) > 2000
