# SPDX-License-Identifier: Apache-2.0
"""What a user ships is what is evaluated: sensitivity, budget, a packed file, its evaluation."""

from pathlib import Path

import pytest

import vggtquant as vq
from vggtquant.commands import cli
from vggtquant.evaluation import schema

UNIFORM = "INT4_Group_32"


@pytest.mark.slow
def test_a_mixed_file_beats_the_uniform_one_of_its_size(tmp_path: Path, capsys) -> None:
    """Of the same bytes, and by an interval that excludes zero."""
    found = vq.evaluate(
        configs=[],
        scenes=1,
        runs=1,
        warmup=0,
        sensitivity="INT4_Group_128",
        output_dir=tmp_path / "layers",
        progress=False,
    )
    assert found.document.sensitivity is not None
    uniform, mixed = tmp_path / "uniform.safetensors", tmp_path / "mixed.safetensors"
    vq.quantize_file("builtin:tiny", UNIFORM, uniform)
    nbytes = uniform.stat().st_size
    words = ["quantize", "builtin:tiny", "--scheme", "INT4_Group_128", "--max_bytes", str(nbytes)]
    words += ["--sensitivity", str(tmp_path / "layers" / schema.JSON_NAME), "--out", str(mixed)]
    words += ["--config_out", str(tmp_path / "mixed.json")]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert mixed.stat().st_size <= nbytes

    report = vq.evaluate(mixed, configs=[UNIFORM], scenes=8, runs=1, warmup=0, progress=False)
    made = report.document
    row = made.row(mixed.name)
    assert row.ok and {layer.scheme[-4:] for layer in row.layers if layer.calls} == {"INT4", "INT8"}
    (pair,) = (
        one
        for one in made.statistics.between
        if {one.a, one.b} == {mixed.name, UNIFORM} and one.score == "error"
    )
    better = -1 if pair.b == mixed.name else 1
    assert better * pair.difference > 0 and better * (pair.low if better > 0 else pair.high) > 0
    # The config that came out is one of evaluate, with the same codes.
    again = vq.evaluate(
        configs=tmp_path / "mixed.json", scenes=8, runs=1, warmup=0, progress=False
    ).document.schemes[-1]
    assert again.ok and again.error == pytest.approx(row.error, rel=0.2)
