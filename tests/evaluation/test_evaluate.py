# SPDX-License-Identifier: Apache-2.0
"""The whole run: files, failed rows, interruptions; rows are kept, whatever happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import vggtquant as vq
from vggtquant.evaluation import evaluate, schema
from vggtquant.evaluation.measure import forecast, journal, plan, variants
from vggtquant.evaluation.measure.bench import Bench
from vggtquant.evaluation.schema import (
    Document,
)
from vggtquant.progress import Progress

INT8 = "INT8_Per_Channel_Symmetric"


INT4 = "INT4_Group_32"

# ---- sabotage: each sham is a failed row with its name ------------------------------------------


def _break_outputs(model: nn.Module, result) -> None:
    names = [layer.name for layer in result.quantized if layer.name != "track_head"]
    layer = model.get_submodule(names[-1])
    layer.register_forward_hook(lambda module, args, y: y * torch.nan)


# ---- the whole run: rows are kept, whatever happens ----------------------------------------------


def _settings(tmp_path: Path, **changes: object) -> plan.Settings:
    values = {"model": "toy:build", "scenes": 2, "runs": 1, "warmup": 0, "max_images": 2}
    values |= {"configs": plan.configs_of([INT8, INT4]), "output_dir": str(tmp_path / "out")}
    return plan.Settings(**(values | changes))


def _read(folder: Path) -> Document:
    return schema.read(folder)


@pytest.mark.charts
def test_four_files_are_written(tmp_path: Path) -> None:
    with Progress(bars=False) as progress:
        result = evaluate.evaluate(_settings(tmp_path), progress)
    assert [path.name for path in result.files] == [
        "comprehensive_results.json",
        "comprehensive_report.txt",
        "comprehensive_visualizations.png",
        "comprehensive_report.html",
    ]
    there = {path.name for path in result.files} | {journal.NAME}
    assert set(os.listdir(tmp_path / "out")) == there
    document = _read(tmp_path / "out")
    assert document == result.document
    names = ["Baseline_FP32", *variants.NOISE_FLOOR, INT8, INT4]
    assert [row.name for row in document.schemes] == names
    assert document.status == "complete" and result.failed == []
    assert document.model.linear_layers_not_reached == ["track_head"]


def test_two_runs_agree_but_for_times(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        with Progress(bars=False) as progress:
            settings = _settings(tmp_path, output_dir=str(tmp_path / name))
            found.append(evaluate.evaluate(settings, progress).document.schemes)
    for one, two in zip(*found, strict=True):
        for key in ("name", "error", "bytes", "metrics", "task", "calibration", "proof", "layers"):
            assert getattr(one, key) == getattr(two, key)


def test_a_failed_scheme_does_not_stop_the_others(sham, tmp_path: Path) -> None:
    sham(lambda model, result: result.layers[1].scheme == INT8 and _break_outputs(model, result))
    calls = []

    def only_first(model: nn.Module, result) -> None:
        calls.append(1)
        if len(calls) == 1:
            _break_outputs(model, result)

    sham(only_first)
    with Progress(bars=False) as progress:
        result = evaluate.evaluate(_settings(tmp_path), progress)
    assert result.failed == [INT8]
    statuses = [row.status for row in result.document.schemes]
    assert statuses == ["ok", "ok", "ok", "ok", "failed", "ok"]
    assert result.document.status == "with failures"


def test_an_interruption_keeps_finished_schemes(tmp_path: Path, monkeypatch) -> None:
    real = Bench.records

    def records(self, variant, *args, **options):
        if variant.name == INT4:
            raise KeyboardInterrupt
        return real(self, variant, *args, **options)

    monkeypatch.setattr(Bench, "records", records)
    with pytest.raises(evaluate.Interrupted) as caught, Progress(bars=False) as progress:
        evaluate.evaluate(_settings(tmp_path), progress)
    assert caught.value.result is not None
    document = _read(tmp_path / "out")
    done = ["Baseline_FP32", variants.OTHER_THREADS, variants.NOISY_INPUT, INT8]
    assert [row.name for row in document.schemes] == done
    assert document.status == "interrupted"
    assert len(os.listdir(tmp_path / "out")) == 5


def test_a_killed_run_leaves_whole_files(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "vggtquant", "evaluate", "--model", "toy:slow"]
    command += ["--scenes", "2", "--runs", "2", "--output_dir", str(folder)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / schema.JSON_NAME).exists() and len(_read(folder).schemes) >= 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    document = _read(folder)
    assert document.status == "running"
    assert 2 <= len(document.schemes) < len(vq.CONFIGS)
    assert all(row.status in ("ok", "skipped") for row in document.schemes)


def test_a_baseline_slower_than_forecast_leaves_one_pass(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(forecast, "LOOK_SECONDS", 1e-9)
    monkeypatch.setattr(forecast, "fitting", lambda amount, *_: amount)
    monkeypatch.setattr(forecast, "passes", lambda *_: (3, 1))
    with Progress(bars=False) as progress:
        settings = _settings(tmp_path, runs=None, warmup=None, scenes=None)
        document = evaluate.evaluate(settings, progress).document
    passes = [len(row.scenes[0].forward_ms_runs) for row in document.schemes]
    assert passes == [1] * 6 and document.settings.runs == 1
