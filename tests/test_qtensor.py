# SPDX-License-Identifier: Apache-2.0
"""quantize and dequantize against tests/reference.py, bit for bit."""

import math
from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
import pytest
import reference
import torch
from everywhere import THREADS, by_default, on_every_isa, using_isa, using_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from linears import INTEGER_CONFIGS
from numpy.typing import NDArray

import vggtquant as vq
from vggtquant import QuantizationSpec, UserError

F32 = np.float32
Array = NDArray[np.generic]
Source = Callable[[Array], Array | torch.Tensor]

NAMED = {config.spec(config.bits) for config in INTEGER_CONFIGS.values()}
SPECS = sorted(
    NAMED
    | {
        QuantizationSpec(b, s, g)
        for b, s, g in product((4, 8), (True, False), ("per_tensor", "per_channel"))
    }
    | {
        QuantizationSpec(b, s, "per_group", g)
        for b, s, g in product((4, 8), (True, False), (5, 32))
    }
    | {
        QuantizationSpec(4, s, "per_group", g, two_level=True)
        for s, g in product((True, False), (7, 32))
    },
    key=repr,
)


def name_of(spec: QuantizationSpec) -> str:
    grain = spec.granularity.removeprefix("per_")
    group = str(spec.group_size) if grain == "group" else ""
    return f"i{spec.bits}-{'sym' if spec.symmetric else 'asym'}-{grain}{group}" + (
        "-two_level" if spec.two_level else ""
    )


every_spec = pytest.mark.parametrize("spec", SPECS, ids=name_of)
MINMAX = [spec for spec in SPECS if not spec.two_level]


def bits(x: Array | torch.Tensor) -> bytes:
    """What is compared when bits are."""
    return x.reshape(-1).view(torch.uint8).numpy().tobytes() if torch.is_tensor(x) else x.tobytes()


def agree(x: Array | torch.Tensor, q: vq.QTensor, want: reference.Coded) -> None:
    """All of q, effective and stored, is what the reference says."""
    np.testing.assert_array_equal(q.codes.reshape(want.codes.shape), want.codes)
    assert q.codes.dtype == np.int8 and q.codes.shape == tuple(x.shape)
    assert q.scale.dtype == np.float32 and bits(q.scale) == bits(want.scale)
    np.testing.assert_array_equal(q.zero_point.reshape(want.zero.shape), want.zero)
    assert q.packed.tobytes() == reference.pack(want.codes, q.spec.bits).tobytes()
    assert (q.factor is None) == (want.factor is None)
    if want.factor is not None:
        np.testing.assert_array_equal(q.factor, want.factor.ravel())
        assert bits(q.stored_scale) == bits(want.channel_scale)
    back = vq.dequantize(q)
    assert type(back) is type(x) and back.dtype == x.dtype and back.shape == x.shape
    values = reference.narrow(reference.dequantize(want), reference.dtype_name(x))
    assert bits(back) == bits(values)


class Agreement:
    """agree, once for all results of the same bytes: of instruction sets and thread counts."""

    def __init__(self, x: Array | torch.Tensor, want: reference.Coded) -> None:
        self.x, self.want = x, want
        self.known: set[object] = set()

    def of(self, q: vq.QTensor) -> None:
        arrays = (q.codes, q.packed, q.stored_scale, q.factor, q.stored_zero, q.dequantize())
        told = tuple(a if a is None else bits(a) for a in arrays), q.spec, q.shape, q.dtype
        if told not in self.known:
            agree(self.x, q, self.want)
            self.known.add(told)


# ---- every spec, source, shape, instruction set, thread count ----------------------------------

SHAPES = [(), (1,), (67,), (3, 5), (4, 1), (7, 64), (2, 3, 5, 7), (3, 200), (1, 4099), (2, 4097)]
EMPTY = [(0,), (0, 5), (5, 0), (2, 0, 3)]


@cache
def sample(shape: tuple[int, ...]) -> Array:
    """Bell-shaped, off centre, with a large value here and there; the same in every test."""
    rng = np.random.default_rng(math.prod(shape))
    x = rng.normal(0.01, 0.05, shape)
    return np.where(rng.random(shape) < 0.02, 10 * x, x).astype(F32)


@cache
def expected(shape: tuple[int, ...], dtype: str, spec: QuantizationSpec) -> reference.Coded:
    """The reference for sample(shape) rounded to dtype."""
    x = torch.from_numpy(sample(shape)).to(getattr(torch, dtype))
    return reference.quantize(reference.widen(x), spec)


@every_spec
def test_equal_to_the_reference(spec: QuantizationSpec, source: Source) -> None:
    for shape in SHAPES:
        x = source(sample(shape))
        agreement = Agreement(x, expected(shape, reference.dtype_name(x), spec))
        for isa in vq.isas():
            with using_isa(isa):
                agreement.of(vq.quantize(x, spec))


@pytest.mark.parametrize("spec", by_default(SPECS, SPECS[0], SPECS[-1], *SPECS[3::6]), ids=name_of)
def test_equal_with_any_number_of_threads(spec: QuantizationSpec) -> None:
    for shape in ((300, 131), (100_003,)):  # many rows, and a long one that is split in blocks
        x = sample(shape)
        agreement = Agreement(x, expected(shape, "float32", spec))
        for isa, threads in product(vq.isas(), THREADS):
            with using_isa(isa), using_threads(threads):
                agreement.of(vq.quantize(x, spec))


def test_every_length(isa: str) -> None:
    for spec in (
        QuantizationSpec(8),
        QuantizationSpec(8, False, "per_group", 1),
        QuantizationSpec(4, False, "per_group", 6),
        QuantizationSpec(4, True, "per_group", 16, True),
    ):
        for n in range(1, 68):
            x = np.resize(sample((67,)), (2, n))
            agree(x, vq.quantize(x, spec), reference.quantize(x, spec))


@every_spec
def test_empty(spec: QuantizationSpec, source: Source) -> None:
    for shape in EMPTY:
        x = source(np.empty(shape, F32))
        q = vq.quantize(x, spec)
        assert q.codes.shape == shape and q.packed.nbytes == 0 and math.isnan(q.bits_per_weight)
        assert q.scale.shape == q.zero_point.shape
        back = vq.dequantize(q)
        assert type(back) is type(x) and back.dtype == x.dtype and tuple(back.shape) == shape
        again = vq.quantize(x, spec, scale=q.scale, zero_point=q.zero_point)
        assert again.codes.shape == shape


# The hard values of float32: zeros of both signs, denormals, the smallest normal, huge ones.
HARD = [
    0.0, -0.0, 1e-45, -1e-45, 1e-40, 2.0**-126, -(2.0**-126), 2.0**-127, 1e-30, 1e30, -1e38, 1e38,
    1.0, -1.0, 0.5, 3.0,
]  # fmt: skip
FIELDS = {
    "hard": np.array(HARD * 9, F32).reshape(9, 16),
    "hard_rows": np.repeat(np.array(HARD, F32)[:, None], 37, axis=1),
    "zeros": np.zeros((3, 40), F32),
    "negative_zeros": -np.zeros((3, 40), F32),
    "denormals": np.linspace(-1e-39, 1e-40, 90, dtype=F32).reshape(2, 45),
    "below_normal": np.array([[0.0, 0.0], [-1.1e-38, 0.0], [-1e-38, 1e-45]], F32),
    "constant": np.full((3, 40), 0.7, F32),
    "negative": -np.abs(sample((4, 40))),
    "positive": np.abs(sample((4, 40))),
    "one_in_a_row": np.eye(33, dtype=F32),
    "huge": np.array([[1e38, -1e38, 3e38, 0, 1e37, -3e38] * 11], F32),
}


@every_spec
def test_hard_values(spec: QuantizationSpec) -> None:
    for field, x in FIELDS.items():
        agreement = Agreement(x, hard_expected(field, spec))
        for isa in vq.isas():
            with using_isa(isa):
                agreement.of(vq.quantize(x, spec))


@cache
def hard_expected(field: str, spec: QuantizationSpec) -> reference.Coded:
    return reference.quantize(FIELDS[field], spec)


@pytest.mark.parametrize("field", FIELDS)
def test_flushing_denormals_changes_nothing(field: str) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU does not flush denormals")
    try:
        got = {s: vq.quantize(FIELDS[field], s) for s in SPECS}
        values = {s: vq.dequantize(q) for s, q in got.items()}
        codes = {s: q.codes for s, q in got.items()}
    finally:
        torch.set_flush_denormal(False)
    for spec, q in got.items():
        want = hard_expected(field, spec)
        np.testing.assert_array_equal(codes[spec].reshape(want.codes.shape), want.codes)
        assert bits(q.scale) == bits(want.scale)
        assert bits(values[spec]) == bits(reference.dequantize(want))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_value(dtype: str, isa: str) -> None:
    """Widened exactly, and every float32 rounds to the nearest of them, half to even."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(getattr(torch, dtype))
    x = x[x.isfinite()]
    got = vq.quantize(x, QuantizationSpec(8, True, "per_tensor"), scale=1.0).codes
    np.testing.assert_array_equal(got, reference.encode(reference.widen(x), F32(1), 0, 8))
    # With a scale a value, code 1 times the scale is any float32: half ways, neighbours.
    spec = QuantizationSpec(8, True, "per_group", 1)
    wide = reference.widen(x).astype(np.float64)
    half = (wide[:-1] + wide[1:]) / 2
    half = half[(half > 2.0**-126) & (half < 3e38)].astype(F32)
    for scale in (half, np.nextafter(half, F32(0)), np.nextafter(half, F32(np.inf))):
        scale = np.maximum(scale, F32(2.0**-126))
        q = vq.quantize(torch.ones(len(scale), dtype=x.dtype), spec, scale=scale[None])
        q = vq.QTensor(spec, q.shape, dtype, True, q.packed * 0 + 1, scale, None, None)
        assert bits(q.dequantize()) == bits(reference.narrow(scale, dtype))


# ---- two-level scales ----------------------------------------------------------------------------


def extreme_columns(times: float) -> Array:
    """Weights of which one column is `times` too large."""
    x = np.random.default_rng(5).normal(0, 1, (24, 256)).astype(F32)
    x[:, 3] *= F32(times)
    return x


@pytest.mark.parametrize("symmetric", [True, False])
def test_five_percent_decide_between_two_level_and_float_scales(symmetric: bool, isa: str) -> None:
    spec = QuantizationSpec(4, symmetric, "per_group", 64, two_level=True)
    ratios = []
    for times in np.geomspace(1, 128, 15):
        x = extreme_columns(times)
        want = crossing(times, symmetric)
        two_level_error, float_error = want.errors
        ratios.append(two_level_error / float_error)
        q = vq.quantize(x, spec)
        agree(x, q, want)
        assert q.spec.two_level == (ratios[-1] <= 1.05)
    below, above = (max(r for r in ratios if r <= 1.05), min(r for r in ratios if r > 1.05))
    assert 1.0 < below and above < 1.1  # both sides were seen, near the limit


@cache
def crossing(times: float, symmetric: bool) -> reference.Coded:
    return reference.quantize(
        extreme_columns(times), QuantizationSpec(4, symmetric, "per_group", 64, two_level=True)
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_two_level_products_are_exact_in_any_order(symmetric: bool) -> None:
    x = np.random.default_rng(3).normal(0, 1, (64, 1024)).astype(F32)
    q = vq.quantize(x, QuantizationSpec(4, symmetric, "per_group", 128, two_level=True))
    assert q.factor is not None and q.factor.min() >= 1
    assert q.factor.max() <= reference.MOST[symmetric]
    channel = q.stored_scale[:, None, None]
    factor = q.factor.reshape(64, 8, 1).astype(F32)
    steps = (q.codes - np.repeat(q.zero_point.astype(int), 128, axis=1)).reshape(64, 8, 128)
    assert np.abs(steps * factor).max() <= 127
    steps = steps.astype(F32)
    exact = channel.astype(np.float64) * factor * steps
    for first in (channel * factor * steps, channel * (factor * steps), channel * steps * factor):
        np.testing.assert_array_equal(first.astype(np.float64), exact)


def test_two_level_scales_beat_the_covering_ones_on_bells() -> None:
    """The canonical form costs no accuracy: clipping by squared error more than pays for it."""
    x = np.random.default_rng(2).normal(0, 1, (64, 1024)).astype(F32)
    for group in (32, 64, 128):
        two_level, floats = (
            vq.quantize(x, QuantizationSpec(4, True, "per_group", group, two_level=kind))
            for kind in (True, False)
        )
        error, float_error = (np.square(vq.dequantize(q) - x).sum() for q in (two_level, floats))
        assert error < float_error


# ---- given scales --------------------------------------------------------------------------------


def coded(x: Array, spec: QuantizationSpec, scale: Array, zero: Array | None = None) -> Array:
    return vq.quantize(x, spec, scale=scale, zero_point=zero).codes


@every_spec
@on_every_isa
def test_given_scales_equal_the_reference(
    spec: QuantizationSpec, isa: str, rng: np.random.Generator
) -> None:
    x = rng.normal(0, 1, (6, 77)).astype(F32)
    rows = reference.matrix(x, spec.granularity)
    group = reference.group_length(spec, rows.shape[1])
    shape = (len(rows), -(-rows.shape[1] // group))
    lowest, highest = reference.LIMITS[spec.bits]
    scale = rng.uniform(0.001, 0.3, shape).astype(F32)
    zero = rng.integers(lowest, highest, shape, endpoint=True)
    want = reference.given(rows, spec.bits, scale, zero, group)
    q = vq.quantize(x, spec, scale=scale, zero_point=zero)
    np.testing.assert_array_equal(q.codes.reshape(want.shape), want)
    np.testing.assert_array_equal(q.zero_point.reshape(shape), zero)
    assert bits(q.scale) == bits(scale)
    unsigned = vq.quantize(x, spec, scale=scale)
    np.testing.assert_array_equal(
        unsigned.codes.reshape(want.shape),
        reference.given(rows, spec.bits, scale, zero * 0, group),
    )


def test_ties_go_to_even(isa: str) -> None:
    steps = np.arange(-140, 140, dtype=F32) + F32(0.5)
    for scale in (1.0, 0.25, 2.0**-126, 2.0**100):
        got = coded(steps * F32(scale), QuantizationSpec(8, True, "per_tensor"), F32(scale))
        np.testing.assert_array_equal(got, np.clip(np.rint(steps), -128, 127))
    # ONNX QuantizeLinear adds the zero point after rounding
    got = coded(steps, QuantizationSpec(8, False, "per_tensor"), F32(1), np.int8(3))
    np.testing.assert_array_equal(got, np.clip(np.rint(steps) + 3, -128, 127))


def test_division_is_true_division(isa: str) -> None:
    """Where x / s and x * (1 / s) round to different codes, the first is taken."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.001, 1, 200_000).astype(F32)
    x = ((rng.integers(-127, 127, 200_000) + 0.5) * scale).astype(F32)
    by_division, by_inverse = np.rint(x / scale), np.rint(x * (F32(1) / scale))
    assert (by_division != by_inverse).sum() > 100
    got = coded(x[None], QuantizationSpec(8, True, "per_group", 1), scale[None])
    np.testing.assert_array_equal(got[0], by_division)


@pytest.mark.parametrize("width", [4, 8])
def test_nan_codes_as_zero_and_infinities_saturate(width: int, isa: str) -> None:
    lowest, highest = reference.LIMITS[width]
    for at in (0, 5, 31, 32, 66):  # in vector bodies and in tails
        for zero in (None, np.int8(lowest), np.int8(2), np.int8(highest)):
            x = np.zeros((1, 67), F32)
            z = 0 if zero is None else int(zero)
            spec = QuantizationSpec(width, zero is None, "per_tensor")
            for value, code in (
                (np.nan, z), (-np.nan, z), (np.inf, highest), (-np.inf, lowest), (3e38, highest),
                (-3e38, lowest), (-0.0, z), (1e-45, z),
            ):  # fmt: skip
                x[0, at] = value
                got = coded(x, spec, F32(2.0**-100), zero)
                assert got[0, at] == code and (np.delete(got[0], at) == z).all()


def test_symmetric_codes_reach_the_lowest_only_with_given_scales(isa: str) -> None:
    x = np.linspace(-1, 1, 99, dtype=F32)
    for width in (4, 8):
        lowest, highest = reference.LIMITS[width]
        assert vq.quantize(x, QuantizationSpec(width, True, "per_tensor")).codes.min() == -highest
        assert coded(x, QuantizationSpec(width, True, "per_tensor"), F32(1 / 200)).min() == lowest


def test_a_given_denormal_scale(isa: str) -> None:
    x = np.array([1e-40, -3e-40, 1e-38, 0], F32)
    scale = F32(1e-40)
    want = reference.encode(x, scale, 0, 8)
    np.testing.assert_array_equal(coded(x, QuantizationSpec(8, True, "per_tensor"), scale), want)
    assert want[2] == 100


# ---- refused -------------------------------------------------------------------------------------


@every_spec
@on_every_isa
def test_nan_and_infinities_are_refused_with_their_number(spec: QuantizationSpec, isa: str) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = sample((3, 200)).copy()
        x[0, 0] = x[2, 150] = x[2, 199] = bad
        with pytest.raises(
            UserError, match="^3 values are NaN or infinite; finite ones are wanted"
        ):
            vq.quantize(x, spec)


@pytest.mark.parametrize("dtype", ["float64", "int8", "uint16", "complex64", "bool"])
def test_wrong_dtypes(dtype: str) -> None:
    with pytest.raises(
        TypeError, match=f"dtype {dtype} is given; one of float32, float16, bfloat16"
    ):
        vq.quantize(np.zeros(3, dtype), "INT8_Per_Tensor_Symmetric")
    if dtype != "uint16":
        with pytest.raises(TypeError, match=f"dtype {dtype} is given; one of float32"):
            vq.quantize(torch.zeros(3, dtype=getattr(torch, dtype)), "INT8_Per_Tensor_Symmetric")


def test_no_arrays() -> None:
    for x in ([1.0, 2.0], 3.0, None, "abc"):
        with pytest.raises(TypeError, match="one of float32, float16, bfloat16 is wanted"):
            vq.quantize(x, "INT8_Per_Tensor_Symmetric")  # type: ignore[arg-type]


def test_tensors_that_are_not_dense_or_not_here() -> None:
    sparse = torch.eye(3).to_sparse()
    for x in (sparse, torch.empty(3, device="meta")):
        with pytest.raises(UserError, match="a dense tensor on the CPU or a CUDA device is wanted"):
            vq.quantize(x, "INT8_Per_Tensor_Symmetric")


@pytest.mark.parametrize(
    "config, scale, zero, message",
    [
        ("INT8_Per_Tensor_Symmetric", [1, 2], None, r"scale has shape \(2,\); \(\) is wanted"),
        ("INT8_Per_Channel_Symmetric", [1], None, r"scale has shape \(1,\); \(4,\) is wanted"),
        ("INT4_Group_32", np.ones((4, 2)), None, r"scale has shape \(4, 2\); \(4, 3\) is wanted"),
        ("INT8_Per_Channel_Asymmetric", [1] * 4, [0], r"zero_point has shape \(1,\); \(4,\)"),
        ("INT8_Per_Tensor_Asymmetric", 1, 128, "zero_point ranges from 128 to 128; -128 to 127"),
        ("INT4_Group_128", [1] * 4, [-9, 0, 0, 7], "zero_point ranges from -9 to 7; -8 to 7"),
        ("INT8_Per_Tensor_Asymmetric", None, 1, "zero_point is given without scale"),
        ("INT8_Per_Tensor_Symmetric", 0.0, None, "scale must be positive and finite"),
        ("INT8_Per_Tensor_Symmetric", -1.0, None, "scale must be positive and finite"),
        ("INT8_Per_Tensor_Symmetric", np.nan, None, "scale must be positive and finite"),
        ("INT8_Per_Tensor_Symmetric", np.inf, None, "scale must be positive and finite"),
    ],
)
def test_parameters_that_do_not_fit(config: str, scale: object, zero: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        vq.quantize(np.ones((4, 96), F32), config, scale=scale, zero_point=zero)


def test_fractional_zero_points_are_refused() -> None:
    with pytest.raises(UserError, match="zero_point"):
        vq.quantize(np.ones(3, F32), "INT8_Per_Tensor_Asymmetric", scale=1.0, zero_point=0.5)


def test_schemes_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="nearest: INT4_Group_32"):
        vq.quantize(np.ones(3, F32), "INT4_Group32")
    with pytest.raises(UserError, match="quantizes nothing"):
        vq.quantize(np.ones(3, F32), "Baseline_FP32")


# ---- memory --------------------------------------------------------------------------------------


@every_spec
def test_strides_and_byte_order_do_not_matter(spec: QuantizationSpec) -> None:
    x = sample((6, 70))
    want = reference.quantize(x, spec)
    wide = np.zeros((6, 140), F32)
    wide[:, ::2] = x
    swapped = x.astype(x.dtype.newbyteorder())
    for other in (np.asfortranarray(x), wide[:, ::2], np.flip(np.flip(x, 1).copy(), 1), swapped):
        q = vq.quantize(other, spec)
        np.testing.assert_array_equal(q.codes.reshape(want.codes.shape), want.codes)
        np.testing.assert_array_equal(vq.dequantize(q), vq.dequantize(vq.quantize(x, spec)))
    for tensor in (torch.from_numpy(wide)[:, ::2], torch.from_numpy(x.T.copy()).T):
        np.testing.assert_array_equal(
            vq.quantize(tensor, spec).codes.reshape(want.codes.shape), want.codes
        )
    read_only = x.copy()
    read_only.flags.writeable = False
    vq.quantize(read_only, spec)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(F32).reshape(x.shape)
    assert not unaligned.flags.aligned
    np.testing.assert_array_equal(
        vq.quantize(unaligned, spec).codes.reshape(want.codes.shape), want.codes
    )


def test_sources_stay_as_they_are_and_parameters_of_modules_are_taken() -> None:
    x = sample((6, 70))
    before = x.copy()
    vq.quantize(x, "INT4_Group_32")
    np.testing.assert_array_equal(x, before)
    parameter = torch.nn.Parameter(torch.from_numpy(x))
    back = vq.dequantize(vq.quantize(parameter, "INT8_Per_Tensor_Symmetric"))
    assert isinstance(back, torch.Tensor) and not back.requires_grad


def test_a_numpy_number_is_an_array_without_axes() -> None:
    back = vq.dequantize(vq.quantize(np.float32(3), "INT8_Per_Tensor_Symmetric"))
    assert isinstance(back, np.ndarray) and back.shape == () and back == F32(3)


@pytest.mark.parametrize(
    "spec, nbytes",
    [
        (QuantizationSpec(8, True, "per_tensor"), 10 * 131 + 4),
        (QuantizationSpec(8, False, "per_tensor"), 10 * 131 + 4 + 1),
        (QuantizationSpec(8, True, "per_channel"), 10 * 131 + 10 * 4),
        (QuantizationSpec(8, False, "per_channel"), 10 * 131 + 10 * (4 + 1)),
        (QuantizationSpec(8, True, "per_group", 32), 10 * 131 + 10 * 5 * 4),
        (QuantizationSpec(4, True, "per_tensor"), 10 * 131 // 2 + 4),
        (QuantizationSpec(4, True, "per_channel"), 10 * 66 + 10 * 4),
        (QuantizationSpec(4, False, "per_group", 32), 10 * 66 + 10 * 5 * (4 + 1)),
        (QuantizationSpec(4, True, "per_group", 32, True), 10 * 66 + 10 * 4 + 10 * 5),
        (QuantizationSpec(4, False, "per_group", 32, True), 10 * 66 + 10 * 4 + 10 * 5 * 2),
    ],
    ids=lambda value: name_of(value) if isinstance(value, QuantizationSpec) else None,
)
def test_bytes_are_what_arithmetic_says(spec: QuantizationSpec, nbytes: int) -> None:
    q = vq.quantize(sample((10, 131)), spec)
    assert q.spec == spec and q.nbytes == nbytes
    assert q.bits_per_weight == 8 * nbytes / 1310
    assert f"{nbytes} bytes" in repr(q)


# ---- properties ----------------------------------------------------------------------------------


@given(
    arrays(
        F32,
        array_shapes(max_dims=3, max_side=20),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
    ),
    st.sampled_from(MINMAX),
)
@settings(max_examples=200, deadline=None)
def test_round_trip_errs_by_half_a_step_at_most(x: Array, spec: QuantizationSpec) -> None:
    q = vq.quantize(x, spec)
    rows = reference.matrix(x, spec.granularity).astype(np.float64)
    error = np.abs(vq.dequantize(q).reshape(rows.shape) - rows)
    scale = q.scale.reshape(len(rows), -1)
    step = np.repeat(scale, q.layout.group, axis=1)[:, : rows.shape[1]].astype(np.float64)
    assert (error <= step * (0.5 + 2**-15)).all()  # 255 steps and two roundings to 24 bits


@given(arrays(F32, (3, 40), elements=st.floats(-8, 8, width=32)), st.sampled_from(SPECS))
@settings(max_examples=100, deadline=None)
def test_codes_of_what_the_codes_stand_for_are_the_codes(x: Array, spec: QuantizationSpec) -> None:
    q = vq.quantize(x, spec)
    again = vq.quantize(vq.dequantize(q), q.spec, scale=q.scale, zero_point=q.zero_point)
    np.testing.assert_array_equal(again.codes, q.codes)


def test_a_notebook_shows_a_qtensor_as_a_table() -> None:
    q = vq.quantize(np.ones((4, 64), np.float32), "INT4_Group_32")
    shown = q._repr_html_()
    assert shown.count("<tr>") == 7 and "4 x 64" in shown and f"{q.nbytes}" in shown
