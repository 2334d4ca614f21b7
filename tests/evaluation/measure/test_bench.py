# SPDX-License-Identifier: Apache-2.0
"""One scheme measured: what is reported, that its swaps are undone, that a sham is caught."""

import math

import pytest
import torch
from torch import nn
from toy import Toy, nan_output, nan_weight, no_linear

import vggtquant as vq
from vggtquant.errors import UserError
from vggtquant.evaluation import schema
from vggtquant.evaluation.analyse import evidence, rows, times
from vggtquant.evaluation.measure import inputs, plan, variants
from vggtquant.evaluation.measure.bench import Bench, Passes, Sample
from vggtquant.evaluation.measure.forward import linears
from vggtquant.evaluation.records import Scene
from vggtquant.evaluation.schema import Kind, Row, SceneInput
from vggtquant.model import quantize_model, refuse_nonfinite

INT8 = "INT8_Per_Channel_Symmetric"


INT4 = "INT4_Group_32"


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


def test_a_scheme_under_autocast(model: nn.Module, samples: list[Sample]) -> None:
    """What is not quantized is bfloat16 then: other outputs, the same bytes, the kernels run."""
    plain, cast = (_run(model, samples, name) for name in ("INT8_Fast", "INT8_Fast_BF16"))
    assert cast.status == "ok" and cast.proof is not None, cast.reason
    assert cast.bytes == plain.bytes
    assert 0 < cast.error < 0.1 and cast.error != plain.error


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

    monkeypatch.setattr(variants, "quantize_model", quantized)
    before = dict(model.named_modules())
    row = _run(model, samples)
    assert (row.status, row.reason) == ("failed", "RuntimeError: out of luck")
    assert all(module is before[name] for name, module in model.named_modules())
