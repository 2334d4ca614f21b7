# SPDX-License-Identifier: Apache-2.0
"""What speaks for a report's figures: kernels that ran, noise floor, spread, fresh processes."""

import sys
from pathlib import Path

import pytest
import torch
from builders import document, row, seven
from torch import nn

import vggtquant as vq
from vggtquant.evaluation import evaluate
from vggtquant.evaluation.analyse import evidence, times
from vggtquant.evaluation.measure import journal, plan, timing, variants
from vggtquant.evaluation.present import text
from vggtquant.evaluation.records import Alone, Pair, Pairing
from vggtquant.evaluation.schema import Basis, Document, Kind, Status, Usable, Withheld
from vggtquant.progress import Progress


def _evaluate(folder: Path, **changes: object) -> Document:
    values = {"model": "toy:build", "scenes": 1, "runs": 1, "warmup": 0, "max_images": 2}
    values |= {"output_dir": str(folder)}
    if "schemes" in changes:
        changes["configs"] = plan.configs_of(changes.pop("schemes"))
    with Progress(bars=False) as progress:
        return evaluate.evaluate(plan.Settings(**(values | changes)), progress).document


# ---- kernels -------------------------------------------------------------------------------------


def test_a_product_says_which_kernel_made_it(isa: str) -> None:
    names = {}
    for config in ("INT8_Per_Channel_Symmetric", "INT4_Group_32_A8"):
        layer = vq.QuantizedLinear.from_linear(nn.Linear(64, 64), config)
        assert layer.last_kernel is None
        layer(torch.ones(2, 64))
        names[config] = layer.last_kernel
    assert names["INT8_Per_Channel_Symmetric"].startswith("float x int8, ")
    assert names["INT4_Group_32_A8"].startswith("int8 x int4, ")
    used = [name.rpartition(", ")[2] for name in names.values()]
    known = vq.isas()
    # An instruction set's own kernel, or one of a weaker set where it has none.
    assert all(known.index(name) <= known.index(isa) for name in used)
    if isa in ("scalar", "avx2", "neon"):
        assert used == [isa, isa]


def test_the_proof_names_kernels_calls_and_bytes(tmp_path: Path) -> None:
    schemes = ("INT4_Group_32", "INT4_Group_32_A8")
    for one in _evaluate(tmp_path, schemes=schemes).schemes[-2:]:
        (kernel,) = one.proof.kernels
        kind = "int8" if one.name.endswith("_A8") else "float"
        assert kernel.kernel.startswith(f"{kind} x int4, ")
        assert (kernel.layers, kernel.calls) == (6, 6)
        ran = [layer for layer in one.layers if layer.calls]
        assert sum(layer.bytes_after for layer in ran) == one.proof.packed_bytes_touched
        assert {layer.kernel for layer in ran} == {kernel.kernel}
        (tracker,) = (layer for layer in one.layers if layer.name == "track_head")
        assert (tracker.calls, tracker.kernel) == (0, None)
        assert one.proof.layers_not_exercised == ["track_head"]


# ---- noise floor ---------------------------------------------------------------------------------


def test_errors_below_the_floor_are_named() -> None:
    rows = seven()  # BF16 has an error of 0.002, the best scheme 0.01
    found = evidence.noise_floor(rows)
    assert found.errors == {"Baseline_BF16": 0.002}
    assert all((b.error, b.outputs) == ([], {}) for b in found.below.values())
    rows.append(row("INT8_Per_Tensor_Asymmetric", 0.001, 300_000, 80.0))
    rows.append(row("INT4_Group_64", 0.5, 180_000, 80.0))
    rows[-1].metrics["depth"].relative_l2 = 0.002
    below = evidence.noise_floor(rows).below
    floor = ["Baseline_BF16"]
    assert below["INT8_Per_Tensor_Asymmetric"].error == floor
    assert set(below["INT8_Per_Tensor_Asymmetric"].outputs) == {"depth", "pose_fov"}
    assert (below["INT4_Group_64"].error, below["INT4_Group_64"].outputs) == ([], {"depth": floor})
    said = text.full_report(document(rows))
    assert "* INT8_Per_Tensor_Asymmetric: its error is below that of Baseline_BF16." in said
    assert "* INT4_Group_64: below the floor only in depth (Baseline_BF16)." in said


def test_a_floor_of_zero_is_no_floor() -> None:
    rows = [*seven()[:1], row("Baseline_BF16", 0.0, 1_000_000, 60.0), *seven()[2:]]
    assert not any(b.error for b in evidence.noise_floor(rows).below.values())


def test_failed_references_are_no_floor() -> None:
    rows = seven()
    rows[1].status, rows[1].reason = Status.FAILED, "NaN"
    assert evidence.noise_floor(rows).errors == {}
    assert "Noise floor" not in text.full_report(document(rows))


# ---- times ---------------------------------------------------------------------------------------


def test_a_wide_spread_brings_advice_to_pin_threads() -> None:
    rows = seven()
    found = times.verdict(rows, 2)
    assert (found.rule, found.wide, found.advice) == (times.SPREAD_RULE, [], None)
    assert found.usable is Usable.YES and found.verdict.startswith("Times can be used")
    rows[3].time.forward_ms_iqr = 0.21 * rows[3].time.forward_ms_median
    found = times.verdict(rows, 2)
    assert found.wide == [rows[3].name] and found.usable is Usable.SOME
    assert "speedups hold" in found.verdict and "milliseconds of one row vary" in found.verdict
    assert "OMP_NUM_THREADS=2 OMP_PROC_BIND=close OMP_PLACES='{0},{1}'" in found.advice
    assert "OMP_PLACES='cores'" in times.verdict(rows, 64).advice


def _pairs(ratios: list[float], waited: float | None = 0.0) -> list[Pair]:
    return [Pair(scene="s0", seconds=0.1, fp32_seconds=0.1 * r, waited=waited) for r in ratios]


def _time(pairs: list[Pair], **options: object):
    given = {"alike": True, "kind": Kind.QUANTIZED, "once": False} | options
    return times.of_row([[100.0, 110.0]], {"s0": 200.0}, pairs, **given)


def test_a_speedup_is_that_of_the_calm_pairs() -> None:
    time = _time(_pairs([1.9, 2.0, 2.0, 2.0, 2.1, 2.1]) + _pairs([50.0] * 9, waited=0.6))
    assert time.speedup == pytest.approx(2.0, abs=0.05) and time.pairs == 6
    assert time.speedup_low <= time.speedup <= time.speedup_high < 2.2
    assert time.speedup_withheld is None and time.waited == 0.6


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        (_pairs([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]), Withheld.SPREAD),
        (_pairs([2.0] * 12, waited=0.3), Withheld.BUSY),
        (_pairs([2.0] * 5) + _pairs([2.0] * 7, waited=0.3), Withheld.BUSY),
        (_pairs([0.02, 52.4, 1.0, 0.3, 9.0, 3.0], waited=None), Withheld.SPREAD),
    ],
)
def test_a_speedup_that_the_machine_decided_is_withheld(pairs, why) -> None:
    time = _time(pairs)
    assert time.speedup is None and time.speedup_withheld is why
    assert time.speedup_low is not None and time.speedup_high is not None
    rows = seven()
    for one in rows[2:]:
        one.time = time
    made = document(rows)
    assert made.best.speed is None and made.timing.usable is Usable.SOME  # BF16 is steady
    assert made.timing.verdict.startswith("Times can be used in part: other programs ran")
    rows[1].time = time
    said = text.terminal(document(rows), 80)
    assert "Times CANNOT be used" in said and "52.4" not in said and "best for speed" not in said


def _worked(ratios: list[float], clock: float = 50.0) -> list[Pair]:
    """Pairs whose threads waited, so that their clock is wrong, with processor times."""
    busy = _pairs([clock] * len(ratios), waited=0.5)
    for pair, ratio in zip(busy, ratios, strict=True):
        pair.processor, pair.fp32_processor = 0.2, 0.2 * ratio
    return busy


def test_beside_other_programs_processor_times_are_compared() -> None:
    time = _time(_worked([1.0, 1.1, 1.1, 1.1, 1.2, 1.2, 9.0]))
    assert time.speedup == pytest.approx(1.1) and time.speedup_basis is Basis.PROCESSOR
    assert time.speedup_low <= 1.1 <= time.speedup_high < 1.3
    rows = seven()
    rows[2].time = time
    made = document(rows)
    said = text.terminal(made, 80)
    assert "~1.10x" in said and "ratios of processor time" in " ".join(said.split())
    assert made.timing.usable is Usable.SOME and "not given" not in made.timing.verdict
    assert max(map(len, said.splitlines())) <= 80


def test_calm_pairs_go_before_processor_times() -> None:
    time = _time(_pairs([2.0] * 6) + _worked([1.0] * 9))
    assert time.speedup == pytest.approx(2.0) and time.speedup_basis is Basis.CLOCK


def test_processor_times_that_disagree_or_are_few_give_no_speedup() -> None:
    assert _time(_worked([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])).speedup_withheld is Withheld.SPREAD
    assert _time(_worked([1.0] * 3)).speedup_withheld is Withheld.BUSY
    partly = _worked([1.0] * 6)
    partly[0].processor = None
    assert _time(partly).speedup_withheld is Withheld.BUSY


def test_a_row_without_fp32_beside_it_has_no_speedup() -> None:
    assert _time([], once=True).speedup_withheld is Withheld.ONCE
    assert _time([], kind=Kind.BASELINE).speedup == 1.0
    long = _time([])  # one pass of a forward that takes minutes
    assert long.speedup == pytest.approx(200 / 105) and long.speedup_low is None


def test_scenes_of_other_sizes_count_alike() -> None:
    small, large = ({"scene": name, "waited": 0.0} for name in ("s0", "s1"))
    pairs = [Pair(seconds=0.1, fp32_seconds=0.2, **small) for _ in range(3)]
    pairs += [Pair(seconds=1.0, fp32_seconds=2.0, **large) for _ in range(3)]
    time = times.of_row(
        [[100.0], [1000.0]],
        {"s0": 200.0, "s1": 2000.0},
        pairs,
        alike=False,
        kind=Kind.QUANTIZED,
        once=False,
    )
    assert (time.speedup, time.speedup_low, time.speedup_high) == pytest.approx((2, 2, 2))


def test_schemes_and_fp32_take_turns(tmp_path: Path) -> None:
    schemes = ("INT8_Per_Channel_Symmetric", "INT4_Group_32")
    made = _evaluate(tmp_path, schemes=schemes, runs=2, scenes=3)
    base, *floor, one, two = made.schemes
    assert all(row.time.speedup_withheld is Withheld.ONCE for row in floor)
    assert base.time.fp32_ms_nearby is None and base.time.speedup == 1
    records = journal.read(tmp_path / journal.NAME)[1]
    for found in journal.kind(records, Pairing):
        assert len(found.pairs) >= timing.PAIRS and {p.scene for p in found.pairs} == {
            scene.name for scene in made.data.scenes
        }
    assert {found.scheme for found in journal.kind(records, Pairing)} == {one.name, two.name}


def test_more_pairs_are_timed_while_they_disagree(monkeypatch) -> None:
    times_of = iter([1.0, 2.0, 3.0, 1.0] * 1000)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(timing, "waited", lambda: {})

    share = [0.0]

    def measured(self, call) -> float:
        call()
        self.share = share[0]
        return next(times_of)

    monkeypatch.setattr(timing.Clock, "__call__", measured)
    ready: list[str] = []
    sides = [
        timing.Side(lambda name=name: ready.append(name), lambda scene: 0.0)
        for name in ("scheme", "fp32")
    ]
    found = timing.pairs(["a", "b"], *sides, seconds=0.05, runs=3)
    assert len(found) == timing.ROUNDS * timing.count(0.05, 3) and ready[-1] == "scheme"
    assert ready[:4] == ["fp32", "scheme", "scheme", "fp32"]
    times_of = iter([1.0] * 1000)
    assert len(timing.pairs(["a"], *sides, seconds=0.05, runs=3)) == timing.count(0.05, 3)
    share[0] = 0.5  # beside other programs: until enough pairs are calm
    assert len(timing.pairs(["a"], *sides, seconds=0.34, runs=3)) == 3 * timing.count(0.34, 3)
    assert timing.pairs(["a"], *sides, seconds=60.0, runs=1) == []


def test_the_time_that_threads_wait_is_read_where_the_system_tells(monkeypatch) -> None:
    assert timing.waited() is None or all(ns >= 0 for ns in timing.waited().values())
    clock = timing.Clock()
    assert clock(lambda: 0.5) == 0.5 and (clock.share is None or 0 <= clock.share <= 1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # threads that wait may spin
    assert clock(lambda: 0.0) == 0 and clock.processor is None
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert clock(lambda: sum(range(10**5))) >= 0 and clock.processor > 0
    on_gpu = timing.Clock(counts_work=False)
    assert on_gpu(lambda: 2.0) == 2.0 and on_gpu.processor is None
    monkeypatch.setattr(timing, "Path", lambda path: Path("/nowhere"))
    assert timing.waited() is None
    clock(lambda: 0.0)
    assert clock.share is None


# ---- a process of its own ------------------------------------------------------------------------


def test_isolated_processes_load_and_run(tmp_path: Path) -> None:
    schemes = ("INT4_Group_32",)  # each is a process that imports torch
    made = _evaluate(tmp_path, model="builtin:tiny", schemes=schemes, isolate=True)
    rows = {row.name: row for row in made.schemes}
    for name in ("Baseline_FP32", *schemes):
        found = rows[name].isolated
        assert found.load_s > 0 and found.first_forward_s > 0
        assert 50e6 < found.peak_rss_bytes < 4e9
    packed = rows["INT4_Group_32"]
    assert 0.2 < packed.isolated.file_bytes / packed.bytes.model_bytes < 1
    assert rows["Baseline_FP32"].isolated.file_bytes is None  # inside the package
    assert all(rows[name].isolated is None for name in variants.NOISE_FLOOR)
    said = text.full_report(made)
    assert "first forward s" in said and "Memory and loading" in said


def test_a_process_that_fails_is_a_note(tmp_path: Path, monkeypatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    row = _evaluate(tmp_path / "out", schemes=("INT4_Group_32",), isolate=True).schemes[-1]
    assert row.status is Status.OK and row.isolated is None
    assert row.notes[-1] == "in a process of its own: no such library"
    records = journal.read(tmp_path / "out" / journal.NAME)[1]
    assert len(journal.kind(records, Alone)) == 2
