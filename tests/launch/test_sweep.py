# SPDX-License-Identifier: Apache-2.0
"""A grid of models, data, methods and seeds, and its one table."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from vggtquant import UserError
from vggtquant.commands import cli
from vggtquant.launch import sweep

GRID = """
models = ["toy:build", "builtin:tiny"]
data = ["builtin"]
schemes = ["INT4_Group_64"]
methods = ["rtn", "clip"]
seeds = 3
samples = 2
[evaluate]
scenes = 1
max_images = 2
runs = 1
warmup = 0
threads = 1
"""


def grid(tmp_path: Path, text: str = GRID) -> Path:
    (tmp_path / "grid.toml").write_text(text)
    return tmp_path / "grid.toml"


def test_a_grid_is_one_table(tmp_path: Path, capsys: Any) -> None:
    path = grid(tmp_path, GRID.replace(', "builtin:tiny"', "").replace('"clip"', '"awq"'))
    out = tmp_path / "out"
    assert cli.main(["sweep", str(path), "--output_dir", str(out)]) == 0
    lines = {line["scheme"]: line for line in json.loads((out / "sweep.json").read_text())}
    assert {name: line["seeds"] for name, line in lines.items()} == {
        "Baseline_FP32": 1,
        "INT4_Group_64": 1,
        "INT4_Group_64_awq": 3,
    }
    document = json.loads((out / "01_toy_build_builtin" / "comprehensive_results.json").read_text())
    errors = [row["error"] for row in document["schemes"] if "_awq" in row["name"]]
    figure = lines["INT4_Group_64_awq"]["figures"]["error %"]
    assert figure["mean"] == pytest.approx(statistics.fmean(errors))
    # Student's t of 2 degrees of freedom at 97.5 %: 4.3027 (any table)
    half = 4.3026527 * statistics.stdev(errors) / math.sqrt(3)
    assert figure["half"] == pytest.approx(half, rel=1e-6)
    assert lines["INT4_Group_64"]["figures"]["error %"]["half"] is None
    shown = capsys.readouterr().out
    assert "| INT4_Group_64_awq | 3 |" in shown and shown.startswith("| model | data | scheme |")
    assert (out / "sweep.md").read_text() in shown


def test_each_model_meets_all_data(tmp_path: Path) -> None:
    text = GRID.replace('["builtin"]', '["builtin", "some/photos"]')
    found = list(sweep.settings_of(sweep.read(grid(tmp_path, text)), tmp_path))
    assert [(model, settings.images) for model, _, settings in found] == [
        ("toy:build", ()),
        ("toy:build", ("some/photos",)),
        ("builtin:tiny", ()),
        ("builtin:tiny", ("some/photos",)),
    ]
    assert len({settings.output_dir for _, _, settings in found}) == 4


@pytest.mark.parametrize(
    "text, words",
    [
        ("models = 3", "models"),
        ("model = ['a']", "model"),
        ("models = []", "models is empty"),
        ("[evaluate]\nscheme = 1", "scheme"),
        ("seeds = 3", "methods"),
        ("schemes = ['INT4']", "INT4"),
        ("= 1", "cannot read"),
    ],
)
def test_a_wrong_grid(text: str, words: str, tmp_path: Path, capsys: Any) -> None:
    path = grid(tmp_path, text)
    assert cli.main(["sweep", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(UserError):
        sweep.read(tmp_path / "none.toml")
