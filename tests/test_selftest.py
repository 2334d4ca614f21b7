# SPDX-License-Identifier: Apache-2.0
"""The self-test: what it finds, what it does not pass over, and its files. On a GPU, or a
pretended one: tests/test_cuda_gpu_main.py."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vggtquant as vq
from vggtquant import ops, selftest
from vggtquant.selftest import Product, __main__, compare, measure

SMALL = Product(3, 40, 24)


def test_it_compares_times_and_writes_both_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = selftest.selftest(sizes=[SMALL], linears=[(40, 24)], tokens=[3], runs=1)
    schemes = [c for c in vq.CONFIGS.values() if c.quantizes and not c.fuse]
    coded = sum(not c.quantize_activations or c.is_float8 for c in schemes)
    assert len(found.checks) == 2 * len(schemes) + coded and not found.failed
    assert {check.scheme for check in found.checks} == {config.name for config in schemes}
    assert [one.scheme for one in found.speeds] == list(measure.TIMED)
    assert all(one.us > 0 and one.bf16_us > 0 and one.kernel for one in found.speeds)
    assert all(0 < held.nbytes and held.gpu_peak is None for held in found.memory)

    monkeypatch.setattr(__main__, "selftest", lambda *args, **kwargs: found)
    assert __main__.main(["--out", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / __main__.JSON_NAME).read_text())
    assert written["ok"] and written["checks"][0]["ok"] and written["environment"]["gpu"] is None
    said = (tmp_path / "out" / __main__.TEXT_NAME).read_text()
    assert f"{len(found.checks)} of {len(found.checks)} comparisons" in said
    assert said in capsys.readouterr().out


def test_a_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **kwargs: object) -> torch.Tensor:
        y = right(*args, **kwargs)
        return y if ops.isa() == "scalar" else y + 1

    right = ops.linear
    with monkeypatch.context() as patch:
        patch.setattr(ops, "linear", wrong)
        patch.setattr(ops, "isa", iter(["avx2", "scalar", "best"] * 9).__next__)
        patch.setattr(ops, "use_isa", lambda name: None)
        config = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
        check = compare.compare_product(config, SMALL, "float32", torch.device("cpu"))
    assert not check.ok and check.error > 0 and check.bound == 0
    found = selftest.Findings("cpu", ops_environment(), [check], notes=["a note"])
    assert "FAILED product" in selftest.text(found) and "note: a note" in selftest.text(found)
    assert not json.loads(found.to_json())["ok"]


def ops_environment() -> dict[str, object]:
    from vggtquant import environment

    return environment.describe(["selftest"])


def test_a_call_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no\nsuch kernel")

    monkeypatch.setattr(ops, "linear", fails)
    monkeypatch.setattr(ops, "quantize", fails)
    config = replace(vq.CONFIGS["INT4_Group_32"], group_size=8)
    for check in (
        compare.compare_product(config, SMALL, "float32", torch.device("cpu")),
        compare.compare_codes(config, SMALL, torch.device("cpu")),
    ):
        assert not check.ok and check.error is None
        assert check.reason == "RuntimeError: no such kernel"


def test_sizes_fit_free_memory_and_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(measure, "free_bytes", lambda device: 2 * measure.wanted_bytes(SMALL) - 1)
        (note,) = measure.speeds(here, [SMALL], 1, lambda: False)
    assert note == "3 tokens, 40 x 24: not timed, 8616 bytes do not fit into the free memory"
    (note,) = measure.speeds(here, [SMALL, SMALL], 1, lambda: True)
    assert "the time limit is reached" in str(note)
    found = selftest.selftest(seconds=0.0, sizes=[SMALL, SMALL], linears=[(8, 8)], tokens=[1])
    assert len(found.notes) == 2 and not found.speeds and found.checks


def test_without_a_gpu_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops.native, "cuda", None)
    assert __main__.main(["--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "device 'cuda': this installation has no CUDA kernels" in line
    assert not (tmp_path / "out").exists()
