# SPDX-License-Identifier: Apache-2.0
"""`vggtquant info` and `vggtquant schemes`."""

import re
from pathlib import Path

import vggtquant as vq
from vggtquant.commands import cli


def test_info_and_schemes(capsys) -> None:
    assert cli.main(["info"]) == 0
    info = capsys.readouterr().out
    assert f"kernels    {vq.isa()}" in info and vq.__version__ in info
    assert cli.main(["schemes"]) == 0
    listed = capsys.readouterr().out
    assert listed in info
    for name in vq.CONFIGS:
        assert name in listed


def test_quantize_and_info_say_the_same_bits(tmp_path: Path, capsys) -> None:
    path = str(tmp_path / "a.safetensors")
    assert cli.main(["quantize", "builtin:tiny", "--out", path]) == 0
    first = capsys.readouterr().out
    assert cli.main(["info", path]) == 0
    said = re.search(r"([\d.]+) bits a weight", first)
    shown = re.search(r"weights +([\d.]+) bits each", capsys.readouterr().out)
    assert said and shown and said[1] == shown[1]
