# SPDX-License-Identifier: Apache-2.0
"""Beside two busy processes: every printed speedup is near the one measured alone, or withheld."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from vggtquant.evaluation import schema
from vggtquant.evaluation.schema import Document

SCHEMES = "INT8_Per_Channel_Symmetric,INT8_Per_Channel_Symmetric_A8,INT4_Group_32_A8"
SPIN = "while True: pass"


def _evaluate(folder: Path) -> Document:
    words = ["evaluate", "--schemes", SCHEMES, "--scenes", "5", "--output_dir", str(folder)]
    command = [sys.executable, "-m", "vggtquant", *words, "--no-progress"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = schema.read(folder)
    print(made.timing.verdict, [(r.name, r.time.speedup) for r in made.schemes if r.scored()])
    return made


@pytest.mark.slow
def test_beside_two_busy_processes(tmp_path: Path) -> None:
    alone = _evaluate(tmp_path / "alone")
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(2)]
    try:
        beside = _evaluate(tmp_path / "beside")
    finally:
        for process in others:
            process.kill()
            process.wait()
    for one, two in zip(alone.schemes, beside.schemes, strict=True):
        # Scores and what follows from them do not depend on the load.
        for key in ("name", "status", "error", "metrics", "task", "calibration", "bytes"):
            assert getattr(one, key) == getattr(two, key)
        if one.time.speedup is not None and two.time.speedup is not None:
            assert two.time.speedup == pytest.approx(one.time.speedup, rel=0.25)
        if two.time.speedup is None and one.scored():
            assert two.time.speedup_withheld is not None and two.name != beside.best.speed
    assert msgspec.to_builtins(alone.recommendation) == msgspec.to_builtins(beside.recommendation)
    assert [s.name for s in alone.data.scenes] == [s.name for s in beside.data.scenes]
