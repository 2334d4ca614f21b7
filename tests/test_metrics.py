# SPDX-License-Identifier: Apache-2.0
"""The metrics against cases worked by hand, float64 references, scikit-image, and themselves."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reference_metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from vggtquant import ops, qtensor
from vggtquant.errors import UserError
from vggtquant.metrics import COMPANIONS, METRICS, compare, ssim

ALL = METRICS + COMPANIONS
NAMES = [metric.name for metric in ALL]
THREADS = (1, 2, 3, 7)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, 1e-8, 1 + 2**-23]


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    threads, isa = torch.get_num_threads(), ops.isa()
    yield
    torch.set_num_threads(threads)
    ops.use_isa(isa)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def pair(
    rng: np.random.Generator, *shape: int, noise: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    r = rng.standard_normal(shape, dtype=np.float32)
    return r, r + np.float32(noise) * rng.standard_normal(shape, dtype=np.float32)


def bits(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        value.hex() if isinstance(value, float) else value
        for value in result.values()
        if not isinstance(value, dict)
    )


# ---- by hand -------------------------------------------------------------------------------------


def test_eight_metrics_and_two_companions() -> None:
    assert [tuple(m) for m in METRICS] == [
        ("mae", "", False),
        ("mse", "", False),
        ("rmse", "", False),
        ("psnr", "dB", True),
        ("cross_entropy", "nat", False),
        ("cosine_similarity", "", True),
        ("relative_error", "", False),
        ("ssim", "", True),
    ]
    assert [m.name for m in COMPANIONS] == ["relative_l2", "kl_divergence"]


def test_by_hand() -> None:
    found = compare(f32(0, 3, 4, 1), f32(0, 3, 2, 1))
    assert found["mae"] == 0.5
    assert found["mse"] == 1
    assert found["rmse"] == 1
    assert found["data_range"] == 4
    assert found["psnr"] == pytest.approx(10 * math.log10(16), rel=1e-15)
    assert found["cosine_similarity"] == 18 / math.sqrt(26 * 14)
    assert found["relative_error"] == 2 / (4 + 1e-8) / 4
    assert found["relative_l2"] == math.sqrt(4 / 26)
    assert found["ssim"] is None and found["reasons"] == {
        "ssim": "not an image: no image_axes were given"
    }
    assert compare(f32(0, 3, 4, 1), f32(0, 3, 2, 1), data_range=10)["psnr"] == pytest.approx(20)


def test_softmax_by_hand() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4), of (0, 0) it is (1/2, 1/2)
    r, c = f32(0, math.log(3)), f32(0, 0)
    found = compare(r, c)
    entropy = math.log(4) - 0.75 * math.log(3)
    assert found["cross_entropy"] == pytest.approx(math.log(2), rel=1e-15)
    assert found["kl_divergence"] == pytest.approx(math.log(2) - entropy, rel=1e-7)
    rows = compare(np.stack([r, c]), np.stack([c, c]))  # the mean over rows, not over elements
    assert rows["cross_entropy"] == pytest.approx(math.log(2), rel=1e-15)
    assert rows["kl_divergence"] == pytest.approx((math.log(2) - entropy) / 2, rel=1e-7)


def test_softmax_of_huge_values_is_exact() -> None:
    found = compare(f32(3e38, -3e38), f32(-3e38, 3e38))
    assert found["kl_divergence"] == found["cross_entropy"] == 2 * float(np.float32(3e38))
    assert compare(f32(3e38, -3e38), f32(3e38, -3e38))["cross_entropy"] == 0


def test_equal_arrays() -> None:
    x = pair(np.random.default_rng(0), 2, 30, 40, 3)[0]
    found = compare(x, x.copy(), image_axes=(1, 2))
    assert found["reasons"] == {}
    assert found["psnr"] == math.inf
    assert found["cosine_similarity"] == found["ssim"] == 1
    for name in ("mae", "mse", "rmse", "relative_error", "relative_l2", "kl_divergence"):
        assert found[name] == 0
    assert found["cross_entropy"] > 0


# ---- undefined, and bad input --------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_counted_and_leave_no_number(bad: float) -> None:
    r, c = pair(np.random.default_rng(1), 2, 40, 41)
    good_range = float(r.max()) - float(r.min())
    r[1, 7, 3] = c[0, 0, 0] = c[1, 39, 40] = bad
    for isa in ops.isas():
        ops.use_isa(isa)
        found = compare(r, c, image_axes=(1, 2))
        assert (found["nonfinite_reference"], found["nonfinite_candidate"]) == (1, 2)
        assert found["data_range"] == good_range
        assert all(found[name] is None for name in NAMES)
        reason = "NaN or infinite: 1 of 3280 reference values, 2 of 3280 candidate values"
        assert found["reasons"] == dict.fromkeys(NAMES, reason)
        with pytest.raises(UserError, match="1 of 3280 reference values"):
            ssim(r, c, image_axes=(1, 2))


def test_nothing_finite() -> None:
    found = compare(f32(np.nan, np.inf), f32(1, 2))
    assert found["data_range"] is None and found["nonfinite_reference"] == 2
    assert compare(f32(np.nan), f32(1), data_range=2)["data_range"] == 2


def test_last_axis_of_one() -> None:
    for x in (np.zeros((3, 1), np.float32), np.float32(2)):
        found = compare(x, x)
        assert found["cross_entropy"] is None and found["kl_divergence"] is None
        assert "last axis has one element" in found["reasons"]["cross_entropy"]


def test_constant_and_zero_references() -> None:
    zeros, ones = np.zeros((12, 12), np.float32), np.ones((12, 12), np.float32)
    found = compare(zeros, ones, image_axes=(0, 1))
    assert set(found["reasons"]) == {"psnr", "ssim", "cosine_similarity", "relative_l2"}
    assert "give data_range" in found["reasons"]["psnr"]
    assert found["relative_error"] == pytest.approx(1e8)
    assert compare(ones, ones)["psnr"] == math.inf
    given = compare(ones, ones, image_axes=(0, 1), data_range=1)
    assert given["ssim"] == 1 and not given["reasons"]
    with pytest.raises(UserError, match="constant"):
        ssim(zeros, ones, image_axes=(0, 1))


def test_smaller_than_the_window() -> None:
    x = np.eye(11, 10, dtype=np.float32)
    found = compare(x, x, image_axes=(0, 1))
    assert found["reasons"] == {"ssim": "11x10 is smaller than the window, 11x11"}
    with pytest.raises(UserError, match="11x10 is smaller than the window"):
        ssim(x, x, image_axes=(0, 1))


def test_bad_input() -> None:
    x = np.zeros((12, 13), np.float32)
    with pytest.raises(UserError, match=r"\(12, 13\) and candidate of shape \(13, 12\)"):
        compare(x, x.T)
    with pytest.raises(UserError, match=r"shape \(0, 3\)"):
        compare(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    with pytest.raises(TypeError, match="float64 .* float32, float16, bfloat16"):
        compare(x, x.astype(np.float64))
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(UserError, match="data_range"):
            compare(x, x, data_range=bad)
    for axes in ((0, 0), (0, 2), (-3, 1)):
        with pytest.raises(UserError, match="image_axes"):
            compare(x, x, image_axes=axes)


# ---- against the reference -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_reference_has_every_metric(name: str) -> None:
    assert callable(getattr(reference_metrics, name))


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("shape", [(2, 13, 37, 3), (1, 64, 300), (3, 20, 31, 17), (70000,)])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_equals_the_reference(shape: tuple[int, ...], noise: float, mean: float) -> None:
    r, c = pair(np.random.default_rng(2), *shape, noise=noise)
    r, c = r + np.float32(mean), c + np.float32(mean)
    axes = None if len(shape) == 1 else (1, 2)
    found = compare(r, c, image_axes=axes)
    r64, c64 = r.astype(np.float64), c.astype(np.float64)
    for name in NAMES:
        if name == "ssim":
            if axes:
                planes = [np.moveaxis(x, axes, (-2, -1)) for x in (r64, c64)]
                assert found[name] == pytest.approx(reference_metrics.ssim(*planes), abs=1e-12)
            continue
        wanted = getattr(reference_metrics, name)(r64, c64)
        # the divergence is a sum of both signs, of terms up to the size of the cross entropy
        scale = found["cross_entropy"] if name == "kl_divergence" else abs(wanted)
        if wanted != math.inf:
            assert abs(found[name] - wanted) <= 1e-12 * scale, name
        else:
            assert found[name] == wanted


@pytest.mark.parametrize("channels", [1, 3, 16, 17])
def test_ssim_equals_scikit_image(channels: int) -> None:
    rng = np.random.default_rng(3)
    r = rng.random((2, 45, 300, channels), dtype=np.float32)
    c = np.clip(r + 0.2 * rng.standard_normal(r.shape, dtype=np.float32), 0, 1)
    found = ssim(r, c, data_range=1.0, image_axes=(1, 2))
    wanted = [
        structural_similarity(
            a.astype(np.float64),
            b.astype(np.float64),
            data_range=1.0,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(r, c, strict=True)
    ]
    assert found == pytest.approx(float(np.mean(wanted)), abs=1e-9)


def test_ssim_of_small_structure_on_a_large_mean() -> None:
    r, c = pair(np.random.default_rng(4), 20, 30)
    r, c = np.round(r * 64) / 64, np.round(c * 64) / 64  # so that adding 2^17 rounds nothing
    near = reference_metrics.ssim(*(np.float64(x) + 2**17 for x in (r, c)))
    assert ssim(r + 2**17, c + 2**17, image_axes=(0, 1)) == pytest.approx(near, abs=1e-12)


def test_ssim_axes() -> None:
    r, c = pair(np.random.default_rng(5), 2, 15, 3, 20, 2)
    wanted = ssim(r, c, image_axes=(1, 3))
    assert ssim(r, c, image_axes=(-4, -2)) == wanted
    planes = [np.moveaxis(x, (1, 3), (-2, -1)) for x in (r, c)]
    assert ssim(*planes, image_axes=(-2, -1)) == wanted
    assert ssim(r, c, image_axes=(3, 1)) == pytest.approx(wanted, abs=1e-12)  # transposed pictures
    each = [
        ssim(r[i, :, j, :, k], c[i, :, j, :, k], data_range=8, image_axes=(0, 1))
        for i in range(2)
        for j in range(3)
        for k in range(2)
    ]
    assert np.mean(each) == pytest.approx(ssim(r, c, data_range=8, image_axes=(1, 3)), abs=1e-12)


# ---- exp and log ---------------------------------------------------------------------------------


def test_exp_and_log_within_one_ulp() -> None:
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.uniform(-708, 709, 100000), rng.uniform(-20, 1, 100000)])
    positive = np.concatenate([ops.exp(x), rng.uniform(0.5, 2, 100000)])
    for isa in ops.isas():
        ops.use_isa(isa)
        for y, exact in (
            (ops.exp(x), np.exp(x.astype(np.longdouble))),
            (ops.log(positive), np.log(positive.astype(np.longdouble))),
        ):
            nonzero = y != 0
            assert np.all(np.abs(y - exact)[nonzero] <= np.spacing(np.abs(y[nonzero])))
            assert np.all(exact[~nonzero] == 0)


def test_exp_and_log_at_the_edges() -> None:
    x = np.array([0, -0.0, -1e-320, -708.5, -np.inf, 709.5, np.inf, np.nan])
    for isa in ops.isas():
        ops.use_isa(isa)
        for offset in range(4):  # body and tail of the vector loop
            padded = np.concatenate([np.zeros(offset), x])
            wanted = np.concatenate([np.ones(offset), [1, 1, 1, 0, 0, np.inf, np.inf, np.nan]])
            np.testing.assert_array_equal(ops.exp(padded), wanted)
    np.testing.assert_array_equal(
        ops.log(np.array([1, 0, -1, np.inf, np.nan])), [0, -np.inf, np.nan, np.inf, np.nan]
    )


# ---- the same bits everywhere --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_same_bits_at_every_length(dtype: str) -> None:
    rng = np.random.default_rng(7)
    for n in [*range(1, 68), 511, 513, 4095, 4096, 4097, 8200]:
        r, c = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in pair(rng, n))
        scalar = None
        for isa in ops.isas():
            ops.use_isa(isa)
            found = bits(compare(r, c))
            assert scalar is None or found == scalar, (isa, n)
            scalar = found
        assert found == bits(compare(r.float(), c.float()))


SHAPES = [
    (200003,),
    (40000, 3),
    (300, 257),
    (7, 9001),
    (2, 60, 301, 3),
    (1, 11, 4000),
    (3, 200, 90),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_on_every_isa_and_thread_count(shape: tuple[int, ...]) -> None:
    r, c = pair(np.random.default_rng(8), *shape)
    axes = (1, 2) if len(shape) > 2 else None
    found = set()
    for isa in ops.isas():
        ops.use_isa(isa)
        for threads in THREADS:
            torch.set_num_threads(threads)
            found.add(bits(compare(r, c, image_axes=axes)))
    assert len(found) == 1


def test_same_bits_for_special_values() -> None:
    r = np.array(SPECIAL * len(SPECIAL), np.float32)
    c = np.repeat(np.array(SPECIAL, np.float32), len(SPECIAL))
    found = set()
    for isa in ops.isas():
        ops.use_isa(isa)
        found.add(bits(compare(r, c)))
    assert len(found) == 1
    zeros = f32(0, -0.0, *[0] * 20)
    assert math.copysign(1, compare(zeros, zeros)["data_range"]) == 1


def test_same_bits_when_the_caller_flushes_denormals() -> None:
    r, c = pair(np.random.default_rng(9), 20, 30)
    r, c = r * np.float32(1e-38), c * np.float32(1e-38)
    wanted = bits(compare(r, c, image_axes=(0, 1)))
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        assert bits(compare(r, c, image_axes=(0, 1))) == wanted
    finally:
        torch.set_flush_denormal(False)


# ---- arrays and tensors --------------------------------------------------------------------------


def test_numpy_and_torch_alike() -> None:
    r, c = pair(np.random.default_rng(10), 2, 20, 21)
    wanted = compare(r, c, image_axes=(1, 2))
    assert (
        compare(torch.from_numpy(r).requires_grad_(), torch.from_numpy(c), image_axes=(1, 2))
        == wanted
    )
    transposed = [np.ascontiguousarray(x.T).T for x in (r, c)]
    assert compare(*transposed, image_axes=(1, 2)) == wanted


def test_no_copy_of_contiguous_tensors() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.zeros(4, 5, dtype=dtype)
        assert ops.values(x).ctypes.data == x.data_ptr()


# ---- identities ----------------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=70))
def test_identities(pairs: list[tuple[float, float]]) -> None:
    r, c = np.array(pairs, np.float32).T.copy()
    found, back = compare(r, c), compare(c, r)
    assert found["rmse"] ** 2 == pytest.approx(found["mse"], rel=1e-15)
    assert found["mae"] <= found["rmse"] * (1 + 1e-15)
    assert (found["mae"], found["mse"]) == (back["mae"], back["mse"])
    assert found["cosine_similarity"] is None or -1 <= found["cosine_similarity"] <= 1
    assert found["kl_divergence"] >= 0
    assert found["cross_entropy"] >= found["kl_divergence"] * (1 - 1e-12)
    if found["relative_l2"] is not None:
        norm = np.linalg.norm(r.astype(np.float64))
        assert found["relative_l2"] * norm / math.sqrt(r.size) == pytest.approx(found["rmse"])
    if found["psnr"] not in (None, math.inf):
        ratio = found["data_range"] ** 2 / found["mse"]
        assert found["psnr"] == pytest.approx(10 * math.log10(ratio), rel=1e-12, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(11, 40), st.integers(11, 40), st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_ssim_identities(height: int, width: int, seed: int, scale: float) -> None:
    r, c = pair(np.random.default_rng(seed), height, width, noise=scale)
    found = ssim(r, c, image_axes=(0, 1), data_range=5)
    assert -1 <= found <= 1
    assert ssim(c, r, image_axes=(0, 1), data_range=5) == pytest.approx(found, abs=1e-12)
    assert ssim(r, r, image_axes=(0, 1), data_range=5) == 1
    assert found == ssim(r * 4, c * 4, image_axes=(0, 1), data_range=20)


def test_masked_values_are_no_values() -> None:
    """A mask marks what is missing: -9999 must not count as an error, nor be quantized."""
    masked = np.ma.array(np.float32([1, 2, -9999]), mask=[0, 0, 1])
    for call in (
        lambda: compare(masked, np.float32([1, 2, 3])),
        lambda: compare(np.float32([1, 2, 3]), masked),
        lambda: qtensor.quantize(masked, "INT8_Per_Channel_Symmetric"),
    ):
        with pytest.raises(TypeError, match="1 of 3 values are masked"):
            call()
    assert compare(masked.compressed(), np.float32([1, 2]))["mae"] == 0
