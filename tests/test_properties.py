# SPDX-License-Identifier: Apache-2.0
"""What holds for every spec and every array: bounds, order, idempotence, symmetries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linears import INTEGER_CONFIGS

import vggtquant as vq
from vggtquant import QuantizationSpec

every = pytest.mark.parametrize("name", INTEGER_CONFIGS)
few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def array(seed: int) -> np.ndarray:
    """1 to 6 rows of 1 to 90 values, of any size from 2^-40 to 2^40, some rows constant."""
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(), 1, (rng.integers(1, 7), rng.integers(1, 91)))
    x[rng.random(len(x)) < 0.1] = rng.normal()
    return (x * 2.0 ** rng.integers(-40, 40)).astype(np.float32)


def by_value(q: vq.QTensor, a: np.ndarray) -> np.ndarray:
    """A scale or zero point for each value."""
    if a.ndim == 2:
        return np.repeat(a, q.layout.group, axis=1)[:, : q.shape[1]]
    return np.broadcast_to(a[:, None] if a.ndim else a, q.shape)


@every
@few
@given(seeds)
def test_round_trip_within_half_a_step(name: str, seed: int) -> None:
    """Inside the range of the codes; beyond it, where two-level scales clip, to its end."""
    x = array(seed)
    q = vq.quantize(x, name)
    scale, zero = by_value(q, q.scale).astype(float), by_value(q, q.zero_point).astype(int)
    lowest, highest = (-128, 127) if q.spec.bits == 8 else (-8, 7)
    clipped = np.clip(x, (lowest - zero) * scale, (highest - zero) * scale)
    error = np.abs(vq.dequantize(q).astype(float) - clipped)
    assert (error <= 0.5 * scale * (1 + 2.0**-16)).all()


@every
@few
@given(seeds)
def test_codes_rise_with_values(name: str, seed: int) -> None:
    x = array(seed)
    q = vq.quantize(x, name)
    for row in range(len(x)):
        for start in range(0, x.shape[1], q.layout.group):
            group = slice(start, min(start + q.layout.group, x.shape[1]))
            order = np.argsort(x[row, group], kind="stable")
            assert (np.diff(q.codes[row, group][order].astype(int)) >= 0).all()


@every
@few
@given(seeds)
def test_quantizing_again_with_the_same_scales_changes_nothing(name: str, seed: int) -> None:
    q = vq.quantize(array(seed), name)
    again = vq.quantize(vq.dequantize(q), q.spec, scale=q.scale, zero_point=q.zero_point)
    np.testing.assert_array_equal(again.codes, q.codes)


@pytest.mark.parametrize("bits", [8, 4])
@few
@given(seeds)
def test_scales_chosen_again_move_a_value_by_half_a_step(bits: int, seed: int) -> None:
    q = vq.quantize(array(seed), QuantizationSpec(bits, True, "per_channel"))
    once = vq.dequantize(q)
    twice = vq.dequantize(vq.quantize(once, q.spec))
    assert (np.abs(twice.astype(float) - once) <= 0.51 * q.scale[:, None]).all()


@every
@few
@given(seeds, st.integers(-60, 60))
def test_powers_of_two_scale_through(name: str, seed: int, exponent: int) -> None:
    x = array(seed)
    factor = np.float32(2.0**exponent)
    a, b = vq.quantize(x, name), vq.quantize(x * factor, name)
    np.testing.assert_array_equal(a.codes, b.codes)
    if np.abs(x).min() * factor > 2.0**-100:
        np.testing.assert_array_equal(a.scale * factor, b.scale)


@pytest.mark.parametrize("name", [n for n in INTEGER_CONFIGS if "INT8" in n])
@few
@given(seeds)
def test_channels_may_change_places(name: str, seed: int) -> None:
    x = array(seed)
    order = np.random.default_rng(seed).permutation(len(x))
    np.testing.assert_array_equal(
        vq.quantize(x[order], name).codes, vq.quantize(x, name).codes[order]
    )


@few
@given(seeds)
def test_identities_of_the_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    r = rng.normal(0, 1, (20, 30)).astype(np.float32)
    c = (r + rng.normal(0, 0.5, r.shape)).astype(np.float32)
    there = vq.compare(r, c, data_range=5.0, image_axes=(0, 1))
    back = vq.compare(c, r, data_range=5.0, image_axes=(0, 1))
    assert there["rmse"] ** 2 == pytest.approx(there["mse"], rel=1e-14)
    for name in ("mae", "mse", "rmse", "psnr", "cosine_similarity"):
        assert there[name] == back[name]
    assert there["ssim"] == pytest.approx(back["ssim"], rel=1e-9)
    assert -1 <= there["cosine_similarity"] <= 1 and there["ssim"] <= 1
    assert there["mae"] <= there["rmse"] and there["kl_divergence"] >= 0
    assert vq.compare(r, r, image_axes=(0, 1))["ssim"] == 1
    assert vq.compare(r, -r)["cosine_similarity"] == -1
