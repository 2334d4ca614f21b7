# SPDX-License-Identifier: Apache-2.0
"""Confidence: rankings by hand and against SciPy, the density against SciPy and integrals."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from vggtquant.errors import UserError
from vggtquant.scoring import confidence


def test_ause_by_hand() -> None:
    # Means of the kept: by confidence 4, 3, 2 (errors 4, 2, 0), by error 0, 1, 2; all: 2.
    assert confidence.ause([3, 2, 1], [4, 2, 0]) == pytest.approx((4 + 2 + 0) / 3 / 2)
    assert confidence.ause([1, 2, 3], [4, 2, 0]) == 0
    # No confidence at all keeps the mean error throughout: 2, 2, 2.
    assert confidence.ause([1, 1, 1], [4, 2, 0]) == pytest.approx((2 + 1 + 0) / 3 / 2)
    assert confidence.ause([1, 2], [0, 0]) == 0


def test_ause_of_ties_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(1)
    c, error = rng.integers(0, 4, 50).astype(float), rng.uniform(size=50)
    order = rng.permutation(50)
    assert confidence.ause(c, error) == pytest.approx(confidence.ause(c[order], error[order]))


@pytest.mark.parametrize("values", [1000, 4])
def test_rank_correlation_is_spearman_s(values: int, rng: np.random.Generator) -> None:
    a, b = rng.integers(0, values, 300), rng.integers(0, values, 300)
    found = confidence.rank_correlation(a, a + b)
    assert found == pytest.approx(stats.spearmanr(a, a + b).statistic, abs=1e-12)
    assert math.isnan(confidence.rank_correlation(np.ones(5), np.arange(5)))


# The Laplace density ----------------------------------------------------------------------------


def test_depth_s_density_is_scipy_s_laplace(rng: np.random.Generator) -> None:
    r, c = rng.exponential(size=200), rng.uniform(1, 9, 200)
    wanted = -stats.laplace(scale=0.2 / c).logpdf(r).mean()
    assert confidence.laplace_nll(r, c, 1) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("c", [1.0, 7.5])
def test_the_density_integrates_to_one(dimensions: int, c: float) -> None:
    def shell(r: float) -> float:
        """The density times the surface of the sphere of radius r (two points in one dimension)."""
        surface = {1: 2.0, 3: 4 * math.pi * r * r}[dimensions]
        return surface * math.exp(-confidence.laplace_nll([r], [c], dimensions))

    volume, _ = integrate.quad(shell, 0, math.inf, epsabs=1e-12)
    assert volume == pytest.approx(1, abs=1e-9)


def test_the_points_density_integrates_to_one_over_a_box() -> None:
    """In Cartesian coordinates: the isotropic density's own, not a product of three."""
    edges = np.linspace(-1.2, 1.2, 121)
    middle = (edges[1:] + edges[:-1]) / 2
    x, y, z = np.meshgrid(middle, middle, middle)
    r = np.sqrt(x * x + y * y + z * z)
    scale = 0.2 / (3 * 1.0)
    density = np.exp(-r / scale) / (8 * math.pi * scale**3)
    assert density.sum() * (edges[1] - edges[0]) ** 3 == pytest.approx(1, abs=1e-3)
    nll = confidence.laplace_nll(r[:5, 0, 0], np.ones(5), 3)
    assert nll == pytest.approx(-np.log(density[:5, 0, 0]).mean(), abs=1e-12)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_the_density_s_logarithm_is_vggt_s_loss(dimensions: int, rng: np.random.Generator) -> None:
    """Up to the factor d / alpha and one constant, whatever distances and confidences."""
    r, c = rng.exponential(size=50), rng.uniform(1, 20, 50)
    loss = c * r - 0.2 * np.log(c)
    nll = [confidence.laplace_nll([a], [b], dimensions) for a, b in zip(r, c, strict=True)]
    rest = np.array(nll) - dimensions / 0.2 * loss
    np.testing.assert_allclose(rest, rest[0], atol=1e-10)


def test_the_likelihood_is_best_at_the_true_scale() -> None:
    """Errors drawn with scale b in three dimensions have the mean length 3 b: r is Gamma(3, b)."""
    r = np.random.default_rng(0).gamma(3, 0.1, 20_000)
    best = min(
        np.linspace(0.3, 2, 171), key=lambda c: confidence.laplace_nll(r, np.full(r.size, c), 3)
    )
    assert 0.2 / (3 * best) == pytest.approx(0.1, rel=0.03)


# Thresholds -------------------------------------------------------------------------------------


def test_kept_shares_by_hand() -> None:
    reference, mine = np.arange(1.0, 9.0), np.array([1, 2, 3, 4, 9, 8, 7, 6.0]) * 2
    found = confidence.kept_share(mine, reference, 0.5)
    assert found["threshold_fp32"] == 4.5 and found["threshold"] == 10.0
    assert found["share_at_fp32_threshold"] == 6 / 8  # 6, 8 and the last four
    assert found["overlap"] == 1
    reversed_ = confidence.kept_share(reference[::-1], reference, 0.5)
    assert reversed_["overlap"] == 0 and reversed_["share_at_fp32_threshold"] == 0.5


def test_bad_input_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="got 1 and 2 values"):
        confidence.ause([1.0], [1.0, 2.0])
    with pytest.raises(UserError, match="dimensions is 2; wanted 1 or 3"):
        confidence.laplace_nll([1.0], [1.0], 2)
