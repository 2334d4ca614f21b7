# SPDX-License-Identifier: Apache-2.0
"""`vggtquant quantize`: configs of your own, other precisions, budgets."""

import json
from pathlib import Path

import pytest
from everywhere import by_default

import vggtquant as vq
from vggtquant import tiny
from vggtquant.commands import cli


@pytest.mark.parametrize("dtype", by_default(["half", "double", "bfloat16"], "double"))
def test_a_user_s_model_of_another_precision(
    dtype: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "precise_model.py").write_text(
        f"from vggtquant import tiny\ndef build():\n    return tiny.build().{dtype}()\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "precise_model:build", "builtin", "--out", "r"]) == 0
    out = str(tmp_path / "a.safetensors")
    assert cli.main(["quantize", "precise_model:build", "--out", out]) == 0
    assert capsys.readouterr().err.count("error") == 0


def test_a_config_of_your_own(tmp_path: Path, capsys) -> None:
    (tmp_path / "my.toml").write_text('name = "Mine"\nquant_type = "int4_group"\ngroup_size = 16\n')
    path = str(tmp_path / "a.safetensors")
    command = ["quantize", "builtin:tiny", "--scheme", str(tmp_path / "my.toml"), "--out", path]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert cli.main(["info", path]) == 0
    assert "Mine" in capsys.readouterr().out
    (tmp_path / "my.toml").write_text("configs = []")
    assert cli.main(command) == 2
    assert "holds no configs" in capsys.readouterr().err


def test_a_budget_from_sensitivity_gives_a_config_for_evaluate(tmp_path: Path, capsys) -> None:
    """What evaluate --sensitivity writes is read; the config that comes out is one of evaluate."""
    from vggtquant.configs import read_configs
    from vggtquant.weights.tensors import open_weights

    _, report = vq.quantize_model(tiny.build(), "INT4_Group_32")
    layers = [
        {"name": layer.name, "share": 1.0 if "qkv" in layer.name else 1e-6}
        for layer in report.quantized
    ]
    results = {"schema_version": "3.0", "sensitivity": {"layers": layers[1:], "not_reached": []}}
    results["sensitivity"]["not_reached"] = [layers[0]["name"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    path, config = tmp_path / "a.safetensors", tmp_path / "mixed.json"
    words = ["--scheme", "INT4_Group_32", "--max_bytes", "3.9MB", "--float_dtype", "bfloat16"]
    words += ["--sensitivity", str(tmp_path / "results.json"), "--config_out", str(config)]
    assert cli.main(["quantize", "builtin:tiny", *words, "--out", str(path)]) == 0
    assert path.stat().st_size <= 3_900_000
    (mixed,) = read_configs(config)
    assert mixed.quant_type == "mixed_precision" and mixed.name == "Mixed_Group_32"
    bits = {layer["name"]: mixed.layer_bits(layer["name"]) for layer in layers[1:]}
    assert set(bits.values()) == {4, 8}
    at_four = [name for name, b in bits.items() if b == 4]
    assert sum("qkv" in name for name in at_four) < len(at_four) / 4
    _, report = vq.quantize_model(tiny.build(), mixed)
    assert {x.name: int(x.scheme[-1]) for x in report.quantized if x.name in bits} == bits
    assert open_weights("builtin:tiny").nbytes > path.stat().st_size
    results["sensitivity"] = None
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert cli.main(["quantize", "builtin:tiny", *words, "--out", str(path)]) == 2
    assert "evaluate was not asked for --sensitivity" in capsys.readouterr().err
