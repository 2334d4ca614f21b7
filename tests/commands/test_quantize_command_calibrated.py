# SPDX-License-Identifier: Apache-2.0
"""`vggtquant quantize --method`: the command's file is the model that calibrate makes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vggtquant as vq
from vggtquant import tiny
from vggtquant.commands import cli


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 255, (112, 112, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_the_file_is_the_calibrated_model(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed.safetensors"
    words = ["--method", "gptq", "--calibrate", str(photos), "--samples", "4"]
    words += ["--include", "*.fc1", "--float_dtype", "float32", "--out", str(out)]
    assert cli.main(["quantize", "builtin:tiny", *words]) == 0
    said = capsys.readouterr().out
    assert "method gptq" in said and "with 4 pictures: pictures of photos" in said
    net, images = tiny.build(), torch.rand(1, 2, 3, 28, 28)
    vq.calibrate(net, photos, method="gptq", samples=4, include="*.fc1")
    with torch.inference_mode():
        assert torch.equal(vq.load(out)(images)["depth"], net(images)["depth"])


@pytest.mark.slow  # layers are measured twice; calibration/test_mixed.py does it on a small model
def test_bytes_are_shared_by_calibrated_harm(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed.safetensors"
    words = ["--method", "gptq", "--calibrate", str(photos), "--samples", "2", "--out", str(out)]
    words += ["--include", "*global_blocks.1*", "--include", "*embed_pose"]
    for most, wanted in ((8_300_000, "layers at 4"), (8_400_000, "layers at 8")):
        assert cli.main(["quantize", "builtin:tiny", *words, "--max_bytes", str(most)]) == 0
        said = capsys.readouterr().out
        assert wanted in said and "more than" not in said
        assert out.stat().st_size <= most
    for most, wanted in (("1M", "--max_bytes 1000000"), ("20M", "every layer fits in float")):
        assert cli.main(["quantize", "builtin:tiny", *words, "--max_bytes", most]) == 2
        assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--calibrate", "photos"], "--calibrate is for --method"),
        (["--method", "magic"], "method 'magic' is unknown"),
        (["--method", "gptq", "--calibrate", "no/such/folder"], "no/such/folder"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed.safetensors"
    assert cli.main(["quantize", "builtin:tiny", "--out", str(out), *words]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
