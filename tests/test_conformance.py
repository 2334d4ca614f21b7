# SPDX-License-Identifier: Apache-2.0
"""Agreement with torch, torch.ao and torchao on integer codes, and with the metrics of others.

Where a definition differs, the difference is what is tested: docs/conformance.md lists them.
ONNX has a file of its own, test_onnx.py.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
import skimage.metrics
import sklearn.metrics
import torch

import vggtquant as vq
from vggtquant import QuantizationSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchmetrics.functional as tm
    import torchmetrics.functional.image as tm_image
    from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

SMALLEST = 2.0**-126
both = pytest.mark.parametrize("symmetric", [True, False])


@pytest.fixture
def x() -> torch.Tensor:
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.normal(0.1, 1, (64, 256)).astype(np.float32))


def steps_of(x: torch.Tensor, scale: np.ndarray) -> np.ndarray:
    """x in steps of its row's scale, as exactly as double can."""
    return x.double().numpy() / np.asarray(scale, np.float64).reshape(-1, 1)


def only_ties_differ(got: np.ndarray, other: np.ndarray, steps: np.ndarray) -> int:
    """Differences of one, where a value lies within float rounding of the middle of two codes."""
    at = got != other
    assert (np.abs(got.astype(int) - other)[at] == 1).all()
    distance = np.abs(steps - np.floor(steps) - 0.5)
    assert (distance[at] <= 2.0**-22 * np.maximum(1, np.abs(steps[at]))).all()
    return int(at.sum())


# ---- torch: fake quantize, quantize_per_*, observers ---------------------------------------------


@both
@pytest.mark.parametrize("bits", [8, 4])
def test_fake_quantize_per_channel(x: torch.Tensor, bits: int, symmetric: bool) -> None:
    q = vq.quantize(x, QuantizationSpec(bits, symmetric, "per_channel"))
    scale, zero = torch.from_numpy(q.scale), torch.from_numpy(q.zero_point.astype(np.int32))
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    fake = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, lowest, highest)
    codes = torch.round(fake / scale[:, None]).int() + zero[:, None]
    only_ties_differ(q.codes, codes.numpy(), steps_of(x, q.scale))
    same = codes.numpy() == q.codes
    np.testing.assert_array_equal(q.dequantize().numpy()[same], fake.numpy()[same])


@both
def test_fake_quantize_per_tensor(x: torch.Tensor, symmetric: bool) -> None:
    q = vq.quantize(x, QuantizationSpec(8, symmetric, "per_tensor"))
    scale, zero = float(q.scale), int(q.zero_point)
    fake = torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)
    codes = torch.round(fake / scale).int().numpy() + zero
    only_ties_differ(q.codes, codes, steps_of(x.reshape(1, -1), q.scale).reshape(x.shape))


@both
def test_quantize_per_channel(x: torch.Tensor, symmetric: bool) -> None:
    q = vq.quantize(x, QuantizationSpec(8, symmetric, "per_channel"))
    scale, zero = torch.from_numpy(q.scale), torch.from_numpy(q.zero_point.astype(np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.quantize_per_channel(x, scale, zero, 0, torch.qint8)
    only_ties_differ(q.codes, theirs.int_repr().numpy(), steps_of(x, q.scale))


def test_the_reciprocal_decides_ties() -> None:
    """Torch multiplies by 1 / scale where we divide: at ties, and there only, codes differ."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 1, (1000, 1)).astype(np.float32)
    steps = rng.integers(-126, 126, (1000, 100)) + 0.5
    x = torch.from_numpy((steps * scale).astype(np.float32))
    q = vq.quantize(x, QuantizationSpec(8, True, "per_channel"), scale=scale)
    zero = torch.zeros(1000, dtype=torch.int32)
    scales = torch.from_numpy(scale[:, 0])
    fake = torch.fake_quantize_per_channel_affine(x, scales, zero, 0, -128, 127)
    codes = torch.round(fake / scales[:, None]).int().numpy()
    assert only_ties_differ(q.codes, codes, steps_of(x, scale)) > 100
    exact = np.float32(0.125)  # a power of two has an exact reciprocal: no difference
    x = torch.from_numpy((steps * exact).astype(np.float32))
    q = vq.quantize(x, QuantizationSpec(8, True, "per_tensor"), scale=exact)
    fake = torch.fake_quantize_per_tensor_affine(x, float(exact), 0, -128, 127)
    np.testing.assert_array_equal(q.dequantize().numpy(), fake.numpy())


def observed(x: torch.Tensor, symmetric: bool, **limits: Any) -> tuple[np.ndarray, np.ndarray]:
    spec = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observer = PerChannelMinMaxObserver(0, torch.qint8, spec, **limits)
        observer(x)
        scale, zero = observer.calculate_qparams()
    return scale.numpy(), zero.numpy()


def test_an_observer_of_127_has_our_symmetric_scales(x: torch.Tensor) -> None:
    scale, zero = observed(x, True, quant_min=-127, quant_max=127, eps=SMALLEST)
    q = vq.quantize(x, QuantizationSpec(8, True, "per_channel"))
    np.testing.assert_array_equal(scale, q.scale)
    assert not zero.any()


def test_a_symmetric_observer_s_default_divides_by_127_and_a_half(x: torch.Tensor) -> None:
    """So its codes reach -128, and the largest value saturates half a step short of its code."""
    scale, _ = observed(x, True)
    q = vq.quantize(x, QuantizationSpec(8, True, "per_channel"))
    np.testing.assert_allclose(scale / q.scale, 127 / 127.5, rtol=1e-6)
    theirs = vq.quantize(x, QuantizationSpec(8, True, "per_channel"), scale=scale)
    assert theirs.codes.min() == -128 and q.codes.min() == -127


def test_an_affine_observer_has_our_scales_but_for_the_last_bit(x: torch.Tensor) -> None:
    """It subtracts and divides in float, we in double."""
    scale, zero = observed(x, False, eps=SMALLEST)
    q = vq.quantize(x, QuantizationSpec(8, False, "per_channel"))
    np.testing.assert_allclose(scale, q.scale, rtol=2**-23)
    same = scale == q.scale
    assert same.mean() > 0.5
    np.testing.assert_array_equal(zero[same], q.zero_point[same])


def test_smallest_scales() -> None:
    """Rows of zeros: torch's eps unless told otherwise, the smallest normal number here."""
    x = torch.zeros(3, 8)
    assert (observed(x, True)[0] == np.float32(torch.finfo(torch.float32).eps)).all()
    assert (
        vq.quantize(x, QuantizationSpec(8, True, "per_channel")).scale == np.float32(SMALLEST)
    ).all()


def test_minus_128_is_reached_only_with_given_scales(x: torch.Tensor) -> None:
    """Fake quantize to -127..127 is our symmetric spec; to -128..127 it is given scales."""
    scale = np.float32(x.abs().max() / 200)
    given = vq.quantize(x, QuantizationSpec(8, True, "per_tensor"), scale=scale)
    assert given.codes.min() == -128
    narrow = torch.fake_quantize_per_tensor_affine(x, float(scale), 0, -127, 127)
    assert torch.round(narrow / scale).min() == -127


def test_zero_points_are_in_range_and_zero_is_exact() -> None:
    """As torch's observer: a range without 0 is widened to hold it."""
    x = torch.tensor([[5.0, 6.0], [-6.0, -5.0]])
    scale, zero = observed(x, False, eps=SMALLEST)
    q = vq.quantize(x, QuantizationSpec(8, False, "per_channel"))
    np.testing.assert_array_equal(q.zero_point, zero)
    np.testing.assert_array_equal(q.zero_point, [-128, 127])
    np.testing.assert_array_equal(q.scale, scale)


def test_per_tensor_observer(x: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observer = MinMaxObserver(
            torch.qint8, torch.per_tensor_symmetric, quant_min=-127, quant_max=127, eps=SMALLEST
        )
        observer(x)
        scale, _ = observer.calculate_qparams()
    assert scale.numpy() == vq.quantize(x, QuantizationSpec(8, True, "per_tensor")).scale


# ---- torchao -------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [256, 32])
def test_torchao(x: torch.Tensor, bits: int, group: int, symmetric: bool) -> None:
    """Its primitives with a block of one row's group and our range: scales, zero points, codes."""
    reason = "torchao, 26 MB of kernels for other devices, is not part of the test extra"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("torchao.quantization.quant_primitives", reason=reason)
    highest = 2 ** (bits - 1) - 1
    lowest = -highest if symmetric else -highest - 1
    mapping = theirs.MappingType.SYMMETRIC if symmetric else theirs.MappingType.ASYMMETRIC
    scale, zero = theirs.choose_qparams_affine(
        x, mapping, (1, group), torch.int8, lowest, highest, eps=SMALLEST,
        scale_dtype=torch.float32, zero_point_dtype=torch.int32,
    )  # fmt: skip
    q = vq.quantize(x, QuantizationSpec(bits, symmetric, "per_group", group))
    np.testing.assert_allclose(scale.numpy().ravel(), q.scale.ravel(), rtol=2**-22)
    same = scale.numpy().reshape(q.scale.shape) == q.scale
    same &= zero.numpy().reshape(q.scale.shape) == q.zero_point
    assert same.mean() > 0.3
    codes = theirs.quantize_affine(x, (1, group), scale, zero, torch.int8, lowest, highest)
    blocks = np.repeat(same, group, axis=1)
    steps = x.double().numpy() / np.repeat(q.scale, group, axis=1)
    at = blocks & (codes.numpy() != q.codes)
    only_ties_differ(q.codes[at], codes.numpy()[at], steps[at])


# ---- metrics -------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    r = rng.normal(0, 1, (40, 50)).astype(np.float32)
    return r, (r + rng.normal(0, 0.1, r.shape)).astype(np.float32)


def entropy_of(r: np.ndarray, c: np.ndarray) -> float:
    log_q = scipy.special.log_softmax(c.astype(np.float64), axis=-1)
    return float(-(scipy.special.softmax(r.astype(np.float64), axis=-1) * log_q).sum(-1).mean())


def divergence_of(r: np.ndarray, c: np.ndarray) -> float:
    p, q = (scipy.special.softmax(a.astype(np.float64), axis=-1) for a in (r, c))
    return float(scipy.stats.entropy(p, q, axis=-1).mean())


def t(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(a.astype(np.float64))


Other = Callable[[np.ndarray, np.ndarray], Any]
OTHERS: list[tuple[str, str, Other]] = [
    ("mae", "scikit-learn", sklearn.metrics.mean_absolute_error),
    ("mse", "scikit-learn", sklearn.metrics.mean_squared_error),
    ("mse", "scikit-image", skimage.metrics.mean_squared_error),
    ("rmse", "scikit-learn", lambda r, c: sklearn.metrics.root_mean_squared_error(
        r.ravel(), c.ravel())),
    ("psnr", "scikit-image", lambda r, c: skimage.metrics.peak_signal_noise_ratio(
        r, c, data_range=float(r.max()) - float(r.min()))),
    ("cosine_similarity", "SciPy", lambda r, c: 1 - scipy.spatial.distance.cosine(
        r.ravel(), c.ravel())),
    ("cosine_similarity", "scikit-learn", lambda r, c: sklearn.metrics.pairwise.cosine_similarity(
        r.reshape(1, -1), c.reshape(1, -1))[0, 0]),
    ("cross_entropy", "SciPy", entropy_of),
    ("cross_entropy", "torch", lambda r, c: torch.nn.functional.cross_entropy(
        t(c), t(r).softmax(-1))),
    ("kl_divergence", "SciPy", divergence_of),
    ("kl_divergence", "torch", lambda r, c: torch.nn.functional.kl_div(
        t(c).log_softmax(-1), t(r).log_softmax(-1), reduction="batchmean", log_target=True)),
    ("mae", "torchmetrics", lambda r, c: tm.mean_absolute_error(t(c), t(r))),
    ("mse", "torchmetrics", lambda r, c: tm.mean_squared_error(t(c), t(r))),
    ("rmse", "torchmetrics", lambda r, c: tm.mean_squared_error(t(c), t(r), squared=False)),
    ("psnr", "torchmetrics", lambda r, c: tm_image.peak_signal_noise_ratio(
        t(c), t(r), data_range=float(r.max()) - float(r.min()))),
    ("cosine_similarity", "torchmetrics", lambda r, c: tm.cosine_similarity(
        t(c).reshape(1, -1), t(r).reshape(1, -1), reduction="mean")),
    ("kl_divergence", "torchmetrics", lambda r, c: tm.kl_divergence(
        t(r).log_softmax(-1), t(c).log_softmax(-1), log_prob=True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "library", "other"), OTHERS, ids=[f"{o[0]}-{o[1]}" for o in OTHERS]
)
def test_metric(name: str, library: str, other: Other, pair: tuple[np.ndarray, np.ndarray]) -> None:
    ours = vq.compare(*pair)[name]
    r, c = (a.astype(np.float64) for a in pair)
    # torchmetrics computes these in float32, whatever it is given
    in_float = library == "torchmetrics" and name in ("cosine_similarity", "psnr")
    assert ours == pytest.approx(float(other(r, c)), rel=1e-6 if in_float else 1e-12)


def test_ssim_is_scikit_image_s(pair: tuple[np.ndarray, np.ndarray]) -> None:
    r, c = pair
    peak = float(r.max()) - float(r.min())
    theirs = skimage.metrics.structural_similarity(
        r.astype(np.float64), c.astype(np.float64), data_range=peak, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert vq.ssim(r, c, image_axes=(0, 1)) == pytest.approx(theirs, rel=1e-12)


def test_ssim_of_torchmetrics_counts_the_borders_too(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """It pads by reflection and averages all pixels; cropped to ours, the maps agree."""
    r, c = pair
    peak = float(r.max()) - float(r.min())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean, image = tm_image.structural_similarity_index_measure(
            t(c)[None, None], t(r)[None, None], data_range=peak, return_full_image=True
        )
    ours = vq.ssim(r, c, image_axes=(0, 1))
    assert image[0, 0, 5:-5, 5:-5].mean().item() == pytest.approx(ours, rel=1e-9)
    assert mean.item() == pytest.approx(ours, abs=6e-3) and mean.item() != ours


def test_relative_error_of_torchmetrics_clamps_elsewhere() -> None:
    """mean_absolute_percentage_error divides by at least 1.17e-6, ours adds 1e-8."""
    r, c = np.float32([0, 1, 2]), np.float32([1, 1.5, 2])
    assert vq.compare(r, c)["relative_error"] == pytest.approx((1e8 + 0.5) / 3)
    theirs = tm.mean_absolute_percentage_error(t(c), t(r)).item()
    assert theirs == pytest.approx((1 / 1.17e-6 + 0.5) / 3)
    r[0] = 4
    assert vq.compare(r, c)["relative_error"] == pytest.approx(
        tm.mean_absolute_percentage_error(t(c), t(r)).item(), rel=1e-7
    )


def test_equal_arrays_have_no_noise() -> None:
    """inf, as torchmetrics and scikit-image say."""
    r = np.ones((3, 3), np.float32)
    r[0, 0] = 0
    assert vq.compare(r, r)["psnr"] == math.inf
    assert tm_image.peak_signal_noise_ratio(t(r), t(r), data_range=1.0).item() == math.inf
