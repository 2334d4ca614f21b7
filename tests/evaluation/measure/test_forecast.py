# SPDX-License-Identifier: Apache-2.0
"""The forecast: multiply-adds, bytes, passes that fit a budget of time."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import vggtquant as vq
from vggtquant import tiny
from vggtquant.evaluation.measure import forecast, inputs, plan, variants
from vggtquant.evaluation.measure.forward import linears
from vggtquant.evaluation.schema import (
    Why,
)

INT8 = "INT8_Per_Channel_Symmetric"


def _variants(names: list[str]) -> list[variants.Variant]:
    return variants.planned(plan.configs_of(["Baseline_FP32", *names]))


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


@pytest.mark.parametrize("name", [INT8, "INT8_Fast", "INT4_Fast"])
def test_the_forecast_of_bytes_is_what_the_model_holds(name: str) -> None:
    """INT8 convolutions were counted as float: 5.78 MB for 5.23. Two layers stay in float."""
    model = tiny.build()
    work = forecast.count(model, linears(model), forecast.Shape(2, 28, 28))
    (cost,) = forecast.costs(model, linears(model), work, plan.configs_of([name]))
    quantized, _ = vq.quantize_model(model, name)
    assert cost.model_bytes == pytest.approx(vq.model_bytes(quantized), rel=0.06)


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
        monkeypatch.setattr(forecast, "_seconds", lambda _, call, slow=slow: slow)
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
