# SPDX-License-Identifier: Apache-2.0
"""`vggtquant evaluate` as the tests of the commands run it, and what a refusal looks like."""

from pathlib import Path

from vggtquant.commands import cli

QUICK = ["--runs", "1", "--warmup", "0", "--scenes", "1", "--max_images", "2"]


ONE = ["--schemes", "INT8_Per_Channel_Symmetric"]


def evaluate(tmp_path: Path, *words: str, model: str = "toy:build") -> int:
    out = ["--output_dir", str(tmp_path / "out")] if "--output_dir" not in words else []
    return cli.main(["evaluate", "--model", model, *QUICK, *ONE, *out, *words])


def refused(capsys, code: int, *words: str) -> None:
    assert code == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("vggtquant: error: ")]
    assert out == "" and len(lines) == 1 and "Traceback" not in err and "usage" not in err
    for word in words:
        assert word in lines[0], (word, lines[0])
