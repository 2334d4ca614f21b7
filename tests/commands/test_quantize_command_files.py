# SPDX-License-Identifier: Apache-2.0
"""`vggtquant quantize` and the commands that read its file."""

from pathlib import Path

import pytest
import torch
from checkpoints import Zoo
from zoo import in_memory, same

from vggtquant.commands import cli


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Zoo's float weights, in the order of its modules."""
    torch.save(Zoo().state_dict(), tmp_path / "zoo.pt")
    return tmp_path / "zoo.pt"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_commands(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.safetensors"
    code, text, err = run(capsys, "quantize", zoo, "--scheme", "INT4_Group_32", "--out", out)
    assert code == 0 and not err
    assert "5 layers quantized" in text and "non-commercial" in text and "bits a weight" in text
    code, text, _ = run(capsys, "info", out)
    assert code == 0 and "INT4_Group_32" in text
    code, text, _ = run(capsys, "dequantize", out, "--out", tmp_path / "f.safetensors")
    assert code == 0 and "wrote" in text
    code, text, _ = run(capsys, "diff", zoo, out)
    assert code == 0 and "differ" in text
    code, _, err = run(capsys, "info", zoo)
    assert code == 2 and err.count("\n") == 1


def test_command_for_models_that_code_builds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    words = ("quantize", "checkpoints:Zoo", "--scheme", "INT4_Group_32", "--out", out)
    code, text, err = run(capsys, *words)
    assert code == 0, err
    assert "5 layers quantized" in text
    assert same(out, in_memory(Zoo(), "INT4_Group_32"))
    code, text, err = run(capsys, *words, "--max_bytes", "34.5k")
    assert code == 0 and "at 8 bits" in text and out.stat().st_size <= 34_500, err


def test_command_with_a_budget(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bits = tmp_path / "a.safetensors", tmp_path / "bits.json"
    common = ("quantize", zoo, "--scheme", "INT4_Group_32", "--out", out)
    code, text, err = run(capsys, *common, "--max_bytes", "34.5k")
    assert code == 0 and "at 8 bits" in text and out.stat().st_size <= 34_500, err
    bits.write_text('{"bits": {"wide": 8, "blocks.*": "float"}}')
    code, text, _ = run(capsys, *common, "--bits", bits)
    assert code == 0 and "1 layers at 8 bits, 2 at 4" in text
    for words in (["--max_bytes", "1M", "--bits", bits], ["--sensitivity", bits]):
        code, _, err = run(capsys, *common, *words)
        assert code == 2 and err.count("\n") == 1
