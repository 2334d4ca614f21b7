# SPDX-License-Identifier: Apache-2.0
"""GPTQ on problems small enough to be solved otherwise; statistics that are hard to invert."""

import itertools

import pytest
import torch

import vggtquant as vq
from vggtquant.calibration import gptq, methods
from vggtquant.calibration.statistics import Statistics
from vggtquant.configs import QuantizationSpec
from vggtquant.qtensor import grid, recode

INT4 = QuantizationSpec(4, True, "per_group", 8, two_level=True)
INT8 = QuantizationSpec(8, True, "per_channel")


def seen(x: torch.Tensor, y: torch.Tensor | None = None) -> Statistics:
    s = Statistics(x.shape[1])
    s.add(x, x if y is None else y)
    return s


def correlated(rows: int, k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator) + 2 * torch.ones(k, k)
    return torch.randn(rows, k, generator=generator) @ mix


def loss(w: torch.Tensor, q: torch.Tensor, x: torch.Tensor) -> float:
    return float(((x.double() @ (w - q).double().T) ** 2).sum())


def test_small_problems_come_near_the_best_codes() -> None:
    """All codes within two steps of the weight are tried for 5 inputs, which are correlated."""
    ratios = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 5, generator=generator)
        x += torch.randn(200, 1, generator=generator)
        w = torch.randn(1, 5, generator=generator)
        nearest = vq.quantize(w, INT4)
        scale, _, lowest, highest = grid(nearest)
        base = (w / scale).floor()
        best = min(
            loss(w, (base + torch.tensor(step)).clamp(lowest, highest) * scale, x)
            for step in itertools.product((-1.0, 0.0, 1.0, 2.0), repeat=5)
        )
        found = loss(w, gptq.gptq(w, seen(x), INT4).dequantize(), x)
        ratios.append((found / best, loss(w, nearest.dequantize(), x) / best))
    greedy, rounded = torch.tensor(ratios).log().mean(0).exp().tolist()
    assert greedy < 1.5 and greedy < rounded


@pytest.mark.parametrize(
    "spec", [INT4, INT8, QuantizationSpec(4, False, "per_group", 16, True)], ids=str
)
def test_correlated_inputs_gain(spec: QuantizationSpec) -> None:
    x = correlated(500, 48)
    w = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
    coded = gptq.gptq(w, seen(x), spec).dequantize()
    assert loss(w, coded, x) < 0.5 * loss(w, vq.quantize(w, spec).dequantize(), x)


def test_independent_inputs_are_rounded_to_nearest_in_their_own_columns() -> None:
    """Without correlation nothing moves between columns, so act-order must not show."""
    x = torch.diag(torch.tensor([1.0, 9.0, 3.0, 0.5, 7.0, 2.0, 4.0, 8.0]))
    w = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    coded = gptq.gptq(w, seen(x), INT4)
    assert torch.equal(coded.dequantize(), vq.quantize(w, INT4).dequantize())


def test_columns_keep_their_places_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = correlated(300, 40), torch.randn(8, 40, generator=torch.Generator().manual_seed(2))
    whole = gptq.gptq(w, seen(x), INT4)
    monkeypatch.setattr(gptq, "BLOCK", 7)
    parts = gptq.gptq(w, seen(x), INT4)
    assert (whole.codes == parts.codes).mean() > 0.99  # another order of float sums


def test_dead_inputs_keep_their_nearest_codes() -> None:
    x = correlated(100, 16)
    x[:, [3, 8]] = 0
    w = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    s = seen(x)
    assert torch.equal(gptq.target(w, s)[:, [3, 8]], w[:, [3, 8]])
    coded = gptq.gptq(w, s, INT4)
    assert (coded.codes[:, [3, 8]] == vq.quantize(w, INT4).codes[:, [3, 8]]).all()


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_fewer_tokens_than_inputs(rows: int) -> None:
    """A Hessian without full rank: finite, and better on the tokens that were seen."""
    x = correlated(rows, 32)
    w = torch.randn(16, 32, generator=torch.Generator().manual_seed(4))
    s = seen(x)
    coded = methods.to_float_output(w, s, INT4).dequantize()
    assert torch.isfinite(coded).all()
    assert loss(w, coded, x) < loss(w, vq.quantize(w, INT4).dequantize(), x)


def test_channels_of_very_different_power() -> None:
    """Damping follows each column, so that small ones still gain beside outliers."""
    x = correlated(400, 32)
    x[:, :2] *= 2.0**10
    w = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
    w[:, :2] /= 2.0**10
    coded = gptq.gptq(w, seen(x), INT4).dequantize()
    assert loss(w, coded, x) < 0.5 * loss(w, vq.quantize(w, INT4).dequantize(), x)


def test_the_target_undoes_a_shifted_prefix() -> None:
    """x is a linear distortion of y; with little ridge, W' x = W y."""
    y = torch.randn(500, 8, generator=torch.Generator().manual_seed(6))
    distortion = torch.eye(8) + 0.1 * torch.randn(8, 8, generator=torch.Generator().manual_seed(7))
    x = y @ distortion
    w = torch.randn(4, 8, generator=torch.Generator().manual_seed(8))
    corrected = gptq.target(w, seen(x, y), ridge=1e-6)
    torch.testing.assert_close(x @ corrected.T, y @ w.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gptq.target(w, seen(x, y), ridge=1e6), w, rtol=1e-3, atol=1e-3)


def test_the_error_of_statistics_is_that_of_the_rows() -> None:
    y = correlated(50, 6)
    x = y + 0.1 * torch.randn(50, 6, generator=torch.Generator().manual_seed(9))
    w, q = torch.randn(3, 6), torch.randn(3, 6)
    s = Statistics(6)
    s.add(x[:20], y[:20])
    s.add(x[20:], y[20:])
    for centred in (False, True):
        xc, yc = (x - x.mean(0), y - y.mean(0)) if centred else (x, y)
        rows = ((xc @ q.T - yc @ w.T).double() ** 2).sum() - ((yc @ w.T).double() ** 2).sum()
        assert s.error(w, q, centred) == pytest.approx(float(rows), rel=1e-3)


def test_rows_of_other_tokens_are_refused() -> None:
    with pytest.raises(vq.UserError, match="not the same tokens"):
        Statistics(4).add(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(vq.UserError, match="NaN or infinite"):
        Statistics(4).add(torch.full((3, 4), torch.nan), torch.ones(3, 4))


def test_values_on_the_grid_keep_their_codes() -> None:
    q = vq.quantize(torch.randn(8, 32), INT4)
    again = recode(q, q.dequantize())
    assert (again.packed == q.packed).all()
    with pytest.raises(vq.UserError, match=r"\(8, 32\) is wanted"):
        recode(q, torch.ones(4, 32))
