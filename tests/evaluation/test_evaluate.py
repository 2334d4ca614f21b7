# SPDX-License-Identifier: Apache-2.0
"""The measurement: what it reports, that it undoes what it does, and that it catches a sham."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import Toy, build, nan_output, nan_weight, no_linear

import vggtquant as vq
from vggtquant.errors import UserError
from vggtquant.evaluation import evaluate, schema
from vggtquant.evaluation.analyse import evidence, rows, times
from vggtquant.evaluation.measure import bench, forecast, inputs, journal, plan, scores, variants
from vggtquant.evaluation.measure.bench import Bench, Passes, Sample
from vggtquant.evaluation.measure.forward import linears
from vggtquant.evaluation.schema import (
    Document,
    Kind,
    Metrics,
    Row,
    Scene,
    SceneInput,
    Why,
)
from vggtquant.model import quantize_model, refuse_nonfinite
from vggtquant.progress import Progress

INT8 = "INT8_Per_Channel_Symmetric"
INT4 = "INT4_Group_32"


@pytest.fixture
def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    return [Sample(f"s{i}", torch.rand(2, 3, 28, 28, generator=generator)) for i in range(2)]


@pytest.fixture
def model() -> nn.Module:
    return build()


def _scenes(samples: list[Sample]) -> list[SceneInput]:
    return [
        SceneInput(sample.name, len(sample.images), *sample.images.shape[2:], False, {})
        for sample in samples
    ]


def _variants(names: list[str]) -> list[variants.Variant]:
    return variants.planned(plan.configs_of(["Baseline_FP32", *names]))


def _run_all(
    model: nn.Module, samples: list[Sample], names: list[str], passes: Passes
) -> list[Row]:
    """The rows of FP32, the noise floor and these schemes, in the report's order."""
    measured = Bench(model, samples, passes)
    found = _variants(names)
    records = []
    for variant in variants.run_order(found):
        for record in measured.records(variant, samples):
            records.append(record)
            if variant.kind is Kind.BASELINE and isinstance(record, Scene):
                measured.know_fp32(record)
    return rows.rows(found, records, _scenes(samples))


def _run(model: nn.Module, samples: list[Sample], name: str = INT8) -> Row:
    return _run_all(model, samples, [name], Passes(runs=2, warmup=1))[-1]


# ---- what it reports -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, c in vq.CONFIGS.items() if n.startswith("INT")])
def test_each_scheme_runs_is_proven_and_undone(
    name: str, model: nn.Module, samples: list[Sample]
) -> None:
    before = dict(model.named_modules())
    row = _run(model, samples, name)
    assert (row.status, row.reason) == ("ok", None)
    proof = row.proof
    reached = proof.layers_swapped - len(proof.layers_not_exercised)
    assert proof.layers_executed == reached > 0
    assert proof.layer_calls == reached * len(samples)
    assert proof.layers_not_exercised == ["track_head"]
    assert not proof.scenes_equal_baseline and not proof.layers_with_float_weights
    assert 0 < row.error < 0.5
    assert row.outputs_repeat_bit_for_bit is True
    assert row.bytes.compression_ratio_quantized_layers > 1.5
    after = dict(model.named_modules())
    assert all(after[key] is before[key] for key in before) and after.keys() == before.keys()


def test_every_output_has_every_metric_or_a_reason(model: nn.Module, samples: list[Sample]) -> None:
    row = _run(model, samples)
    assert list(row.metrics) == [
        "depth",
        "depth_conf",
        "world_points",
        "world_points_conf",
        "pose_translation",
        "pose_rotation",
        "pose_fov",
    ]
    for output, values in row.metrics.items():
        assert {metric.name for metric in vq.METRICS} <= set(schema.METRIC_NAMES)
        for metric in schema.METRIC_NAMES:
            value = getattr(values, metric)
            if value is None:
                assert row.reasons[output][metric]
            else:
                assert math.isfinite(value)
    assert row.metrics["depth"].ssim is not None  # 28 x 28 holds the window
    assert row.metrics["pose_fov"].ssim is None


def test_scene_values_are_kept_and_averaged(model: nn.Module, samples: list[Sample]) -> None:
    row = _run(model, samples)
    mae = [scene.metrics["depth"].mae for scene in row.scenes]
    assert len(mae) == 2 and mae[0] != mae[1]
    assert row.metrics["depth"].mae == pytest.approx(sum(mae) / 2, rel=1e-12)
    assert [len(scene.forward_ms_runs) for scene in row.scenes] == [2, 2]


def test_a_single_run_has_no_spread(model: nn.Module, samples: list[Sample]) -> None:
    baseline = _run_all(model, samples[:1], [INT8], Passes(1, 0))[0]
    assert baseline.time.forward_ms_iqr is None
    assert baseline.outputs_repeat_bit_for_bit is None


def test_times_are_of_all_forwards_where_scenes_are_alike() -> None:
    """One forward in a hundred that somebody else disturbed moves nothing."""
    disturbed = [[10.0], [20.0], [30.0], [40.0], [9000.0]]
    assert times.typical(disturbed, True) == pytest.approx((20, 30, 40))
    assert times.typical([[10.0], [20.0], [30.0]], False) == (None, pytest.approx(20), None)
    assert times.typical([[10.0, 30.0], [100.0, 100.0]], False) == pytest.approx((57.5, 60, 62.5))


def test_bfloat16_holds_the_same_bytes_and_differs(model: nn.Module, samples: list[Sample]) -> None:
    row = _run(model, samples, "Baseline_BF16")
    assert row.status == "ok" and row.proof is None
    assert row.bytes.compression_ratio_model == 1.0
    assert 0 < row.error < 0.05


def test_ground_truth_scores_of_rendered_scenes(model: nn.Module) -> None:
    row = _run(model, inputs.rendered(2, 3, 0, 28).take(2))
    assert {"auc_30", "depth_abs_rel", "rotation_median_deg"} <= row.task.truth.keys()
    assert all(scene.task.truth for scene in row.scenes)


def test_the_noise_floor_stands_before_the_schemes(model: nn.Module, samples: list[Sample]) -> None:
    found = _run_all(model, samples, [INT8, INT4], Passes(2, 0))
    by_name = {row.name: row for row in found}
    assert list(by_name) == ["Baseline_FP32", *variants.NOISE_FLOOR, INT8, INT4]
    assert {by_name[name].kind for name in variants.NOISE_FLOOR} == {"reference"}
    assert by_name[variants.REPEAT].outputs_equal_baseline is True
    assert by_name[variants.REPEAT].error == 0
    assert by_name[variants.OTHER_THREADS].error < 1e-4
    assert "threads instead of" in by_name[variants.OTHER_THREADS].notes[0]
    noisy = by_name[variants.NOISY_INPUT]
    assert 1e-4 < noisy.error < 0.1 and len(noisy.scenes[0].forward_ms_runs) == 1


def test_the_noise_is_one_step_and_always_the_same() -> None:
    images = torch.full((2, 3, 8, 8), 0.5)
    steps = (variants.with_noise(images, "scene") - images) * 255
    assert torch.unique(steps.round()).tolist() == [-1, 1] and abs(float(steps.mean())) < 0.2
    assert torch.equal(variants.with_noise(images, "scene"), variants.with_noise(images, "scene"))
    assert not torch.equal(variants.with_noise(images, "scene"), variants.with_noise(images, "b"))
    dark = variants.with_noise(torch.zeros(1, 3, 8, 8), "scene")
    assert float(dark.min()) == 0


def test_a_model_that_changed_meanwhile_is_found_out(
    model: nn.Module, samples: list[Sample]
) -> None:
    measured = Bench(model, samples, Passes(1, 0))
    found = _variants([])
    repeat = next(v for v in found if v.name == variants.REPEAT)
    records = list(measured.records(found[0], samples))
    with torch.no_grad():
        model.head.weight += 1e-3
    records += measured.records(repeat, samples)
    made = rows.rows(found, records, _scenes(samples))
    assert [row.outputs_equal_baseline for row in made] == [True, False]
    assert evidence.recheck(made).outputs_equal_first_run is False


# ---- what it refuses -----------------------------------------------------------------------------


def test_a_nan_weight_is_refused_by_name(samples: list[Sample]) -> None:
    with pytest.raises(UserError, match=r"^layer blocks\.1\.3: 1 weights are NaN or infinite"):
        refuse_nonfinite(linears(nan_weight()))


def test_a_baseline_with_nan_ends_it(samples: list[Sample]) -> None:
    with pytest.raises(UserError, match="baseline's .* holds .* NaN or Inf on s0"):
        _run_all(nan_output(), samples, [], Passes(1, 0))


def test_a_model_without_linear_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(UserError, match="no Linear"):
        _run_all(no_linear(), samples, [], Passes(1, 0))


def test_a_model_without_named_outputs_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(UserError, match="wanted a dict"):
        _run_all(nn.Sequential(nn.Linear(28, 28)), samples, [], Passes(1, 0))


# ---- sabotage: each sham is a failed row with its name ------------------------------------------


@pytest.fixture
def sham(monkeypatch: pytest.MonkeyPatch):
    """Replaces what `quantize_model` did by what the test's function makes of it."""
    real = quantize_model

    def install(change) -> None:
        def quantized(model, config, **options):
            model, result = real(model, config, **options)
            change(model, result)
            return model, result

        monkeypatch.setattr(bench, "quantize_model", quantized)

    return install


def test_float_weights_left_in_place_are_caught(sham, model, samples) -> None:
    sham(lambda model, result: vq.restore_model(model, result))
    row = _run(model, samples)
    assert row.status == "failed" and "float weights" in row.reason


def test_simulated_quantization_is_caught(sham, model, samples) -> None:
    def simulate(model: nn.Module, result) -> None:
        for layer in result.quantized:
            packed = model.get_submodule(layer.name)
            packed.register_buffer("simulated", packed.weight.detach().clone())

    sham(simulate)
    row = _run(model, samples)
    assert row.status == "failed" and "float weights" in row.reason


def test_layers_that_do_not_run_are_caught(model, samples) -> None:
    class Bypass(nn.Module):
        """Keeps the modules that it was built with, as a traced or cached model does."""

        def __init__(self, inner: Toy) -> None:
            super().__init__()
            self.inner = inner
            self.kept = [list(block) for block in inner.blocks]

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            current = self.inner.blocks
            originals = nn.ModuleList(nn.Sequential(*block) for block in self.kept)
            self.inner.blocks = originals
            try:
                return self.inner(images)
            finally:
                self.inner.blocks = current

    row = _run(Bypass(model).eval(), samples)
    assert row.status == "failed" and "did not run" in row.reason


def test_the_baseline_under_another_name_is_caught(sham, model, samples) -> None:
    class Same(vq.QuantizedLinear):
        """Runs, is packed, and gives the float layer's results all the same."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.float_layer[0](x)

    def pretend(model: nn.Module, result) -> None:
        for layer in result.quantized:
            packed = model.get_submodule(layer.name)
            packed.__class__ = Same
            packed.float_layer = [result.originals[layer.name]]  # in a list: no submodule

    sham(pretend)
    row = _run(model, samples)
    assert row.status == "failed" and "bit for bit" in row.reason


def test_a_scheme_that_swaps_nothing_is_caught(sham, model, samples) -> None:
    def nothing(model: nn.Module, result) -> None:
        vq.restore_model(model, result)
        result.layers.clear()

    sham(nothing)
    row = _run(model, samples)
    assert row.status == "failed" and "no layer was swapped" in row.reason


def _break_outputs(model: nn.Module, result) -> None:
    names = [layer.name for layer in result.quantized if layer.name != "track_head"]
    layer = model.get_submodule(names[-1])
    layer.register_forward_hook(lambda module, args, y: y * torch.nan)


def test_a_scheme_with_nan_outputs_is_a_failed_row(sham, model, samples) -> None:
    sham(_break_outputs)
    row = _run(model, samples)
    assert row.status == "failed" and "NaN or Inf on s0" in row.reason
    assert row.metrics == {}


def test_a_missing_output_is_a_failed_row(sham, model, samples) -> None:
    forward = Toy.forward

    def without_depth(model: nn.Module, result) -> None:
        def lacking(images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {k: v for k, v in forward(model, images).items() if k != "depth"}

        model.forward = lacking

    sham(without_depth)
    row = _run(model, samples)
    assert row.status == "failed" and "outputs are" in row.reason


def test_a_swap_that_breaks_off_leaves_the_model_whole(model, samples, monkeypatch) -> None:
    real = quantize_model

    def quantized(model, config, **options):
        real(model, config, **options)
        raise RuntimeError("out of luck\nsecond line")

    monkeypatch.setattr(bench, "quantize_model", quantized)
    before = dict(model.named_modules())
    row = _run(model, samples)
    assert (row.status, row.reason) == ("failed", "RuntimeError: out of luck")
    assert all(module is before[name] for name, module in model.named_modules())


# ---- forecast ------------------------------------------------------------------------------------


def test_multiply_adds_of_a_forward() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 14, 14), nn.Flatten(2), _Turned(), nn.Linear(8, 24))
    work = forecast.count(model, linears(model), forecast.Shape(2, 28, 28))
    assert (work.layers, work.weights, work.linear_macs) == (1, 192, 8 * 192)
    assert work.macs == 8 * 192 + 8 * 8 * 3 * 14 * 14 and work.probe == "3"
    assert work.probe_rows == 8


class _Turned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class _Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x.flatten(1).view(1, -1, 16)).chunk(3, -1)
        q, k, v = (part.view(1, -1, 2, 8).transpose(1, 2) for part in parts)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_attention_is_counted_on_the_cpu() -> None:
    model = _Attends()
    tokens = 2 * 3 * 28 * 28 // 16
    work = forecast.count(model, linears(model), forecast.Shape(2, 28, 28))
    assert work.macs - work.linear_macs == 2 * tokens * tokens * 16
    assert all(p.requires_grad for p in model.parameters())


def test_what_fake_tensors_cannot_run_is_counted_on_real_ones() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(28, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.numpy().sum() >= 0 else x

    model = Asks()
    work = forecast.count(model, linears(model), forecast.Shape(1, 28, 28))
    assert work.macs == work.linear_macs == 3 * 28 * 28 * 4


def test_a_forecast_knows_the_bytes(model: nn.Module) -> None:
    layers = linears(model)
    work = forecast.count(model, layers, forecast.Shape(2, 28, 28))
    costs = forecast.costs(model, layers, work, plan.configs_of(["Baseline_FP32", INT8]))
    assert costs[0].model_bytes == vq.model_bytes(model)
    assert 0.2 < costs[1].model_bytes / costs[0].model_bytes < 0.5
    assert all(cost.forward_s > 0 for cost in costs)


@pytest.mark.parametrize(
    ("each", "options", "expected"),
    [
        (1.0, {}, (3, 1)),
        (10.0, {"warmup": 0}, (3, 0)),
        (150.0, {}, (3, 1)),
        (250.0, {}, (1, 1)),
        (500.0, {}, (1, 0)),
        (1e6, {}, (1, 0)),
        (1e6, {"runs": 7, "warmup": 2}, (7, 2)),
    ],
)
def test_passes_fit_the_budget_where_they_may(each, options, expected) -> None:
    given = {"runs": None, "warmup": None} | options
    found = forecast.passes(lambda runs, warmup: each * (runs + warmup), budget=600.0, **given)
    assert found == expected


def test_how_much_is_measured_does_not_depend_on_the_time_it_takes(
    model: nn.Module, monkeypatch
) -> None:
    """A busy machine once used six of eight scenes, and recommended another scheme."""
    settings = plan.Settings()
    chosen = []
    for slow in (1e-9, 1e6):
        monkeypatch.setattr(forecast, "_seconds", lambda call, slow=slow: slow)
        monkeypatch.setattr(plan, "_correct", lambda *_: None)
        available = inputs.rendered(8, 2, 0, 28)
        found = plan.plan(
            settings, model, linears(model), available, _variants([INT8]), lambda line: None
        )
        chosen.append((found.amount, [sample.name for sample in found.samples]))
        assert found.passes.runs == (3 if slow < 1 else 1)
    assert chosen[0] == chosen[1] and chosen[0][0] == 8


def test_bfloat16_is_left_out_by_the_cpu_and_the_work_alone(monkeypatch) -> None:
    large = forecast.Work(int(1e12), int(1e12), 1, 1, "", 1)
    monkeypatch.setattr(forecast.environment, "cpu_flags", lambda: ["avx2", "avx512f"])
    assert forecast.hopeless(large, 8) and not forecast.hopeless(replace(large, macs=10**9), 8)
    monkeypatch.setattr(forecast.environment, "cpu_flags", lambda: ["avx2", "avx512_bf16"])
    assert not forecast.hopeless(large, 8)
    assert Why.SLOW.text(times="50", name="Baseline_BF16").endswith("runs it all the same")


# ---- summing up ----------------------------------------------------------------------------------


def test_means_leave_out_what_is_missing() -> None:
    found = scores.mean([{"a": Metrics(mae=1.0)}, {"a": Metrics(mae=3.0, mse=5.0)}])
    assert found == {"a": Metrics(mae=2.0, mse=5.0)}


def test_the_error_is_a_geometric_mean() -> None:
    found = {"a": Metrics(relative_l2=1e-2), "b": Metrics(relative_l2=1e-4), "c": Metrics()}
    assert scores.error_score(found) == pytest.approx(1e-3)
    assert scores.error_score({"a": Metrics()}) is None


# ---- the whole run: rows are kept, whatever happens ----------------------------------------------


def _settings(tmp_path: Path, **changes: object) -> plan.Settings:
    values = {"model": "toy:build", "scenes": 2, "runs": 1, "warmup": 0, "max_images": 2}
    values |= {"configs": plan.configs_of([INT8, INT4]), "output_dir": str(tmp_path / "out")}
    return plan.Settings(**(values | changes))


def _read(folder: Path) -> Document:
    return schema.read(folder)


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


def test_what_is_infinite_has_a_reason() -> None:
    outputs = {"pose_fov": torch.rand(1, 2, 2)}
    metrics, reasons = scores.score(outputs, {"pose_fov": outputs["pose_fov"].clone()})
    assert metrics["pose_fov"].psnr is None and metrics["pose_fov"].mae == 0
    assert reasons["pose_fov"]["psnr"] == "infinite: the two are equal"
