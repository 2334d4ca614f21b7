# SPDX-License-Identifier: Apache-2.0
"""--sensitivity: one layer at a time, against layers quantized by hand, kept and continued."""

import doctest
import json
from pathlib import Path

import jsonschema
import pytest
import torch
from builders import SCHEMA, plain
from torch import nn
from toy import build

import vggtquant as vq
from vggtquant.commands import cli
from vggtquant.evaluation import schema
from vggtquant.evaluation.analyse import shares
from vggtquant.evaluation.measure import journal, layers
from vggtquant.evaluation.measure.forward import forward
from vggtquant.evaluation.present import files
from vggtquant.evaluation.records import Broke, End, Record, Whole
from vggtquant.evaluation.schema import Document

INT4 = "INT4_Group_32"
QUICK = ["--model", "toy:build", "--scenes", "2", "--max_images", "2", "--runs", "1"]
QUICK += ["--warmup", "0", "--schemes", "INT8_Per_Channel_Symmetric", "--no-progress"]
LAYERS = ["--sensitivity", INT4]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _outputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return forward(model, images)[0]


def _records(
    model: nn.Module, images: torch.Tensor, there: list[Record] | None = None
) -> list[Record]:
    reference = _outputs(model, images)
    config = vq.get_config(INT4)
    with torch.inference_mode():
        found = layers.records(
            model, config, "s0", lambda m: forward(m, images)[0], reference, there or []
        )
        return list(found)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(shares).failed == 0


def test_a_layer_alone_is_what_it_is_by_hand(images: torch.Tensor) -> None:
    model = build()
    before = dict(model.named_modules())
    found = shares.block(_records(model, images))
    assert found is not None and found.not_reached == ["track_head"]
    assert {name: id(m) for name, m in model.named_modules()} == {
        name: id(m) for name, m in before.items()
    }
    reference = _outputs(model, images)
    name = found.layers[0].name
    layer = model.get_submodule(name)
    parent, _, child = name.rpartition(".")
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda m, x, y: seen.append(x[0].clone()))
    _outputs(model, images)
    handle.remove()
    packed = vq.QuantizedLinear.from_linear(layer, INT4)
    setattr(model.get_submodule(parent), child, packed)
    alone = _outputs(model, images)
    for output, error in found.layers[0].error_alone.items():
        difference = (alone[output] - reference[output]).double().norm()
        assert error == pytest.approx(float(difference / reference[output].double().norm()), 1e-5)
    with torch.inference_mode():
        wanted, got = layer(seen[0]).double(), packed(seen[0]).double()
    noise = (wanted - got).square().sum()
    sqnr = 10 * torch.log10(wanted.square().sum() / noise)
    assert found.layers[0].output_sqnr_db == pytest.approx(float(sqnr), 1e-6)


def test_shares_are_of_the_final_error(images: torch.Tensor) -> None:
    records = _records(build(), images)
    report = vq.quantize_model(build(), INT4)[1]
    quantized, skipped = report.quantized, report.skipped
    found = shares.block(records)
    assert found is not None
    assert isinstance(records[0], Whole) and isinstance(records[-1], End)
    assert len(records) == 2 + found.layers_to_try
    parts = [layer.share for layer in found.layers]
    assert parts == sorted(parts, reverse=True) and sum(parts) == pytest.approx(found.share_sum)
    for layer in found.layers:
        ratios = [(layer.error_alone[name] / e) ** 2 for name, e in found.error_all.items()]
        assert layer.share == pytest.approx(sum(ratios) / len(ratios))
    names = {layer.name for layer in found.layers}
    assert found.left_float.keys() == {layer.name for layer in skipped}
    assert names | {"track_head"} == {layer.name for layer in quantized}


def test_what_is_there_is_not_tried_again(images: torch.Tensor) -> None:
    model = build()
    records = _records(model, images)
    for cut in (1, 3, len(records) - 1):
        assert records[:cut] + _records(model, images, records[:cut]) == records


def test_a_layer_that_breaks_ends_it_and_is_named(images: torch.Tensor, monkeypatch) -> None:
    model = build()

    def broken(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(layers, "alone", broken)
    records = _records(model, images)
    assert [type(record) for record in records] == [Whole, Broke]
    found = shares.block(records)
    assert found is not None and found.reason == "RuntimeError: out of luck"
    assert not any(isinstance(m, vq.QuantizedLinear) for m in model.modules())


def _evaluate(folder: Path, *words: str) -> tuple[int, Document]:
    code = cli.main(["evaluate", *QUICK, "--output_dir", str(folder), *words])
    return code, schema.read(folder)


def test_evaluate_shows_it_everywhere_and_goes_on(tmp_path: Path, capsys) -> None:
    code, document = _evaluate(tmp_path / "a", *LAYERS)
    assert code == 0
    jsonschema.validate(plain(document), SCHEMA)
    wanted = document.sensitivity
    assert wanted.scheme == INT4 and len(wanted.layers) == wanted.layers_to_try > 3
    out, err = capsys.readouterr()
    assert f"wrote {tmp_path / 'a' / 'sensitivity.png'}" in out
    assert "layers one at a time: " in err and "most of the error" in err
    assert "Which layers make the error" in (tmp_path / "a" / schema.TEXT_NAME).read_text()
    harms = json.loads((tmp_path / "a" / schema.SHARES_NAME).read_text())["sensitivity"]
    assert harms == {layer.name: layer.share for layer in wanted.layers} | {"track_head": 0.0}

    # Without it first, then in the same folder, then cut off halfway: the same figures.
    code, document = _evaluate(tmp_path / "b")
    assert code == 0 and document.sensitivity is None
    assert not (tmp_path / "b" / "sensitivity.png").exists()
    code, document = _evaluate(tmp_path / "b", *LAYERS, "--resume")
    assert code == 0 and document.sensitivity == wanted
    path = tmp_path / "a" / journal.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])
    code, document = _evaluate(tmp_path / "a", *LAYERS, "--resume")
    assert code == 0 and document.sensitivity == wanted


def test_shards_try_the_layers_once(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(files, "_drawn", lambda document: {})  # charts are of other tests
    _, whole = _evaluate(tmp_path / "whole", *LAYERS)
    for part in ("1", "2"):
        _evaluate(tmp_path / part, *LAYERS, "--shard", f"{part}/2")
    folders = [str(tmp_path / part) for part in ("1", "2")]
    assert cli.main(["merge", *folders, "--output_dir", str(tmp_path / "both")]) == 0
    merged = schema.read(tmp_path / "both")
    assert merged.sensitivity == whole.sensitivity is not None
    assert merged.pictures == whole.pictures is not None


@pytest.mark.parametrize("scheme", ["Baseline_FP32", "INT4_Group_46"])
def test_a_scheme_that_cannot_be_tried(tmp_path: Path, capsys, scheme: str) -> None:
    words = ["evaluate", *QUICK, "--output_dir", str(tmp_path), "--sensitivity", scheme]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())
