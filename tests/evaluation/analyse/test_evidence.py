# SPDX-License-Identifier: Apache-2.0
"""What speaks for a report's figures: kernels that ran, noise floor, spread, fresh processes."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
from test_report import _document, _row, _rows
from torch import nn

import vggtquant as vq
from vggtquant.evaluation import evaluate
from vggtquant.evaluation.analyse import evidence, report
from vggtquant.evaluation.measure import energy, journal, plan, variants
from vggtquant.evaluation.present import text
from vggtquant.progress import Progress


def _evaluate(folder: Path, **changes: object) -> report.Document:
    values = {"model": "toy:build", "scenes": 1, "runs": 1, "warmup": 0, "max_images": 2}
    values |= {"output_dir": str(folder)}
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
    for row in _evaluate(tmp_path, schemes=schemes)["schemes"][-2:]:
        proof = row["proof"]
        (kernel,) = proof["kernels"]
        kind = "int8" if row["name"].endswith("_A8") else "float"
        assert kernel["kernel"].startswith(f"{kind} x int4, ")
        assert (kernel["layers"], kernel["calls"]) == (6, 6)
        ran = [layer for layer in row["layers"] if layer["calls"]]
        assert sum(layer["bytes_after"] for layer in ran) == proof["packed_bytes_touched"]
        assert {layer["kernel"] for layer in ran} == {kernel["kernel"]}
        (tracker,) = (layer for layer in row["layers"] if layer["name"] == "track_head")
        assert (tracker["calls"], tracker["kernel"]) == (0, None)
        assert proof["layers_not_exercised"] == ["track_head"]


# ---- noise floor ---------------------------------------------------------------------------------


def test_errors_below_the_floor_are_named() -> None:
    rows = _rows()  # BF16 has an error of 0.002, the best scheme 0.01
    found = evidence.noise_floor(rows)
    assert found["errors"] == {"Baseline_BF16": 0.002}
    assert all(b == {"error": [], "outputs": {}} for b in found["below"].values())
    rows.append(_row("INT8_Per_Tensor_Asymmetric", 0.001, 300_000, 80.0))
    rows.append(_row("INT4_Group_64", 0.5, 180_000, 80.0))
    rows[-1]["metrics"]["depth"] |= {"relative_l2": 0.002}
    below = evidence.noise_floor(rows)["below"]
    floor = ["Baseline_BF16"]
    assert below["INT8_Per_Tensor_Asymmetric"]["error"] == floor
    assert set(below["INT8_Per_Tensor_Asymmetric"]["outputs"]) == {"depth", "pose_fov"}
    assert below["INT4_Group_64"] == {"error": [], "outputs": {"depth": floor}}
    said = text.full_report(_document(rows))
    assert "* INT8_Per_Tensor_Asymmetric: its error is below that of Baseline_BF16." in said
    assert "* INT4_Group_64: below the floor only in depth (Baseline_BF16)." in said


def test_a_floor_of_zero_is_no_floor() -> None:
    rows = [*_rows()[:1], _row("Baseline_BF16", 0.0, 1_000_000, 60.0), *_rows()[2:]]
    assert not any(b["error"] for b in evidence.noise_floor(rows)["below"].values())


def test_failed_references_are_no_floor() -> None:
    rows = _rows()
    rows[1] |= {"status": "failed", "reason": "NaN"}
    assert evidence.noise_floor(rows)["errors"] == {}
    assert "Noise floor" not in text.full_report(_document(rows))


# ---- times ---------------------------------------------------------------------------------------


def test_a_wide_spread_brings_advice_to_pin_threads() -> None:
    rows = _rows()
    assert evidence.timing(rows, 2) == {
        "rule": evidence.SPREAD_RULE,
        "wide": [],
        "advice": None,
    }
    rows[3]["time"]["forward_ms_iqr"] = 0.21 * rows[3]["time"]["forward_ms_median"]
    found = evidence.timing(rows, 2)
    assert found["wide"] == [rows[3]["name"]]
    assert "OMP_NUM_THREADS=2 OMP_PROC_BIND=close OMP_PLACES='{0},{1}'" in found["advice"]
    assert "OMP_PLACES='cores'" in evidence.timing(rows, 64)["advice"]


def test_fp32_is_timed_before_and_after_each_scheme(tmp_path: Path) -> None:
    schemes = ("INT8_Per_Channel_Symmetric", "INT4_Group_32")
    document = _evaluate(tmp_path, schemes=schemes, runs=2, scenes=3)
    base, *floor, one, two = document["schemes"]
    assert all(row["time"]["speedup"] is None for row in floor)  # run once, nothing beside
    assert base["time"]["fp32_ms_nearby"] is None and base["time"]["speedup"] == 1
    for row in (one, two):
        time = row["time"]
        sides = (time["fp32_ms_before"] + time["fp32_ms_after"]) / 2
        assert time["fp32_ms_nearby"] == pytest.approx(sides)
        assert time["speedup"] == pytest.approx(sides / time["forward_ms_median"])
        assert 0 < time["speedup_low"] < time["speedup_high"]
    # What comes after the one scheme comes before the next.
    records = journal.read(tmp_path / journal.NAME)[1]
    beside = {(r["scheme"], r["when"]): r["seconds"] for r in records if r["kind"] == "beside"}
    assert len(beside) == 4
    assert beside[one["name"], "after"] == beside[two["name"], "before"]
    after = 1e3 * statistics.median(seconds for _, seconds in beside[two["name"], "after"])
    assert two["time"]["fp32_ms_after"] == pytest.approx(after)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A powercap folder of two packages, one of them with a part, and a zone of another kind."""
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "dtpm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("9999\n")
    monkeypatch.setattr(energy, "FOLDER", tmp_path)
    return tmp_path


def test_energy_is_that_of_all_packages(packages: Path) -> None:
    before = energy.read()
    (packages / "intel-rapl:0" / "energy_uj").write_text("4000\n")
    (packages / "intel-rapl:1" / "energy_uj").write_text("500\n")  # went round
    assert before.joules_until(energy.read()) == (3000 + 9500) / 1e6


def test_energy_that_nobody_tells_is_none(packages: Path, tmp_path: Path, monkeypatch) -> None:
    before = energy.read()
    (packages / "intel-rapl:1" / "energy_uj").unlink()
    assert energy.read().counters == {} and before.joules_until(energy.read()) is None
    monkeypatch.setattr(energy, "FOLDER", tmp_path / "none")
    assert energy.read().joules_until(energy.read()) is None


def test_energy_reaches_the_report(tmp_path: Path, monkeypatch) -> None:
    readings: list[energy.Reading] = []

    def rising() -> energy.Reading:  # each 4 J above the one before
        readings.append(energy.Reading({"package": (4_000_000 * len(readings), 1 << 40)}))
        return readings[-1]

    monkeypatch.setattr(energy, "read", rising)
    rows = _evaluate(tmp_path, schemes=("INT4_Group_32",), runs=2)["schemes"]
    # Of a forward: the floor's rows run once, the others twice.
    assert [row["energy_joules"] for row in rows] == [2.0, 4.0, 4.0, 4.0, 2.0]


# ---- a process of its own ------------------------------------------------------------------------


def test_isolated_processes_load_and_run(tmp_path: Path) -> None:
    schemes = ("Baseline_BF16", "INT4_Group_32")
    document = _evaluate(tmp_path, model="builtin:tiny", schemes=schemes, isolate=True)
    rows = {row["name"]: row for row in document["schemes"]}
    for name in ("Baseline_FP32", *schemes):
        found = rows[name]["isolated"]
        assert found["load_s"] > 0 and found["first_forward_s"] > 0
        assert 50e6 < found["peak_rss_bytes"] < 4e9
    packed = rows["INT4_Group_32"]
    assert 0.2 < packed["isolated"]["file_bytes"] / packed["bytes"]["model_bytes"] < 1
    assert rows["Baseline_FP32"]["isolated"]["file_bytes"] is None  # inside the package
    assert all(rows[name]["isolated"] is None for name in variants.NOISE_FLOOR)


def test_a_process_that_fails_is_a_note(tmp_path: Path, monkeypatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    row = _evaluate(tmp_path / "out", schemes=("INT4_Group_32",), isolate=True)["schemes"][-1]
    assert row["status"] == "ok" and row["isolated"] is None
    assert row["notes"][-1] == "in a process of its own: no such library"
    records = journal.read(tmp_path / "out" / journal.NAME)[1]
    assert sum(record["kind"] == "isolated" for record in records) == 2
    json.dumps(records, allow_nan=False)
