# SPDX-License-Identifier: Apache-2.0
"""docs/conventions.md in NumPy: slow and obvious. The metrics stand in reference_metrics.py.

Written from the page, not from the C code. Each float32 operation is one NumPy operation on float32
arrays, so it is rounded where the page says; what the page does in double is done in float64.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vggtquant import QuantizationSpec

Array = NDArray[np.generic]
F32 = np.float32
_DYNAMIC = F32(0)

LIMITS = {8: (-128, 127), 4: (-8, 7)}
SMALLEST_SCALE = F32(2.0**-126)
MOST = {True: 15, False: 8}
"""Largest factor of two-level scales, by symmetry."""


# ---- dtypes --------------------------------------------------------------------------------------


def dtype_name(x: Array | torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def bits16(x: Array | torch.Tensor) -> NDArray[np.uint16]:
    """The bits of a 16-bit array or tensor."""
    return (
        x.contiguous().view(torch.uint16).numpy() if isinstance(x, torch.Tensor) else x.view("u2")
    )


def widen(x: Array | torch.Tensor) -> NDArray[np.float32]:
    """Exactly to float32, from the fields of the number's bits."""
    if dtype_name(x) == "float32":
        return x.numpy() if isinstance(x, torch.Tensor) else np.asarray(x, F32)
    bits = bits16(x).astype(np.int64)
    if dtype_name(x) == "bfloat16":  # the upper half of a float32
        return (bits << 16).astype(np.uint32).view(F32)
    sign = np.where(bits >> 15, -1.0, 1.0)
    exponent, fraction = bits >> 10 & 31, bits & 1023
    special = np.where(fraction == 0, math.inf, math.nan)
    normal = (1024 + fraction) * 2.0 ** (exponent - 25.0)
    value = np.where(exponent == 0, fraction * 2.0**-24, np.where(exponent == 31, special, normal))
    return (sign * value).astype(F32)


def narrow(x: NDArray[np.float32], dtype: str) -> Array:
    """Rounded once to dtype, half to even; bfloat16 as its bits in uint16."""
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return x.astype(dtype)
    bits = x.view(np.uint32).astype(np.int64)
    half_even = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, half_even).astype(np.uint16)


# ---- quantize ------------------------------------------------------------------------------------


class Coded(NamedTuple):
    """A matrix of codes; scale, zero, factor: (rows, groups)."""

    codes: NDArray[np.int64]
    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    bits: int
    group: int
    channel_scale: NDArray[np.float32] | None = None
    factor: NDArray[np.int64] | None = None
    errors: tuple[float, float] | None = None
    """Squared error of two-level scales and of float scales, where both were found."""


def matrix(x: NDArray[np.float32], granularity: str) -> NDArray[np.float32]:
    """Axis 0 is the channel and the rest is one row."""
    if granularity == "per_tensor" or x.ndim < 2:
        return x.reshape(1, -1)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def group_length(spec: QuantizationSpec, cols: int) -> int:
    return min(spec.group_size, cols) if spec.granularity == "per_group" else cols


def groups_of(row: NDArray[np.float32], group: int) -> list[NDArray[np.float32]]:
    return [row[start : start + group] for start in range(0, len(row), group)]


def parameters(x: NDArray[np.float32], bits: int, symmetric: bool) -> tuple[np.float32, int]:
    """Scale and zero point of the values that share them."""
    lowest, highest = LIMITS[bits]
    lo, hi = min(F32(0), x.min()), max(F32(0), x.max())
    if symmetric:
        return max(max(-lo, hi) / F32(highest), SMALLEST_SCALE), 0
    scale = max(F32((float(hi) - float(lo)) / (highest - lowest)), SMALLEST_SCALE)
    return scale, zero_point(lo, scale, bits)


def zero_point(lo: np.float32, scale: np.float32, bits: int) -> int:
    lowest, highest = LIMITS[bits]
    return min(max(round(lowest - float(lo) / float(scale)), lowest), highest)


def encode(x: NDArray[np.float32], scale: np.float32, zero: int, bits: int) -> NDArray[np.int64]:
    lowest, highest = LIMITS[bits]
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(x / F32(scale))
    steps = np.where(np.isnan(steps), 0, steps)
    return np.clip(steps, lowest - zero, highest - zero).astype(np.int64) + zero


def decode(codes: NDArray[np.int64], scale: np.float32, zero: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return (codes - zero).astype(F32) * F32(scale)


def squared_error(x: NDArray[np.float32], scale: np.float32, zero: int) -> float:
    """Of a group coded in 4 bits: sixteen sums, then a tree."""
    with np.errstate(over="ignore"):
        e = x - decode(encode(x, scale, zero, 4), scale, zero)
    sums = [0.0] * 16
    for i, error in enumerate(e.astype(np.float64).tolist()):
        sums[i % 16] += error * error
    for step in (8, 4, 2, 1):
        sums = [sums[i] + sums[i + step] for i in range(step)]
    return sums[0]


def round17(x: np.float32) -> np.float32:
    mantissa, exponent = math.frexp(float(x))
    return F32(math.ldexp(round(math.ldexp(mantissa, 17)), exponent - 17))


class TwoLevel(NamedTuple):
    channel_scale: np.float32
    factors: list[int]
    zeros: list[int]
    error: float
    float_error: float


def two_level(groups: list[NDArray[np.float32]], symmetric: bool) -> TwoLevel:
    """Of one row."""
    most = MOST[symmetric]
    covering = [parameters(x, 4, symmetric) for x in groups]
    widest = max(scale for scale, _ in covering)
    channel_scale = max(round17(widest / F32(most)), SMALLEST_SCALE)
    factors, zeros, error, float_error = [], [], 0.0, 0.0
    for x, (t, zero) in zip(groups, covering, strict=True):
        float_error += squared_error(x, t, zero)
        lo = min(F32(0), x.min())
        cover = min(math.floor(t / channel_scale), most)
        tried = []
        for factor in range(cover - 4, cover + 2):
            if 1 <= factor <= most:
                scale = channel_scale * F32(factor)
                zero = 0 if symmetric else zero_point(lo, scale, 4)
                tried.append((squared_error(x, scale, zero), factor, zero))
        best = min(tried, key=lambda one: one[0])  # the first of equals
        error += best[0]
        factors.append(best[1])
        zeros.append(best[2])
    return TwoLevel(channel_scale, factors, zeros, error, float_error)


def quantize(x: NDArray[np.float32], spec: QuantizationSpec) -> Coded:
    """Codes with scales chosen from the values."""
    rows = matrix(x, spec.granularity)
    group = group_length(spec, rows.shape[1])
    split = [groups_of(row, group) for row in rows]
    if not rows.size:
        shape = (len(rows), 0)
        return Coded(rows.astype(int), np.zeros(shape, F32), np.zeros(shape, int), spec.bits, group)
    factor = channel_scale = errors = None
    if spec.two_level:
        chosen = [two_level(groups, spec.symmetric) for groups in split]
        errors = math.fsum(c.error for c in chosen), math.fsum(c.float_error for c in chosen)
        if errors[0] <= 1.05 * errors[1]:
            channel_scale = np.array([c.channel_scale for c in chosen])
            factor = np.array([c.factors for c in chosen])
            scale, zero = (
                channel_scale[:, None] * factor.astype(F32),
                np.array([c.zeros for c in chosen]),
            )
    if factor is None:
        pairs = [[parameters(x, spec.bits, spec.symmetric) for x in groups] for groups in split]
        scale = np.array([[pair[0] for pair in row] for row in pairs], F32)
        zero = np.array([[pair[1] for pair in row] for row in pairs])
    codes = given(rows, spec.bits, scale, zero, group)
    return Coded(codes, scale, zero, spec.bits, group, channel_scale, factor, errors)


def given(
    rows: NDArray[np.float32],
    bits: int,
    scale: NDArray[np.float32],
    zero: NDArray[np.int64],
    group: int,
) -> NDArray[np.int64]:
    """Codes of a matrix with given scales and zero points, (rows, groups) each."""
    codes = np.empty(rows.shape, np.int64)
    for r, row in enumerate(rows):
        for g, x in enumerate(groups_of(row, group)):
            codes[r, g * group : g * group + len(x)] = encode(x, scale[r, g], int(zero[r, g]), bits)
    return codes


def dequantize(q: Coded) -> NDArray[np.float32]:
    """The values that the codes stand for, float32 (rows, cols)."""
    return decode(q.codes, spread(q.scale, q), spread(q.zero, q))  # type: ignore[arg-type]


def spread(per_group: NDArray[np.generic], q: Coded) -> NDArray[np.generic]:
    """A value a group to a value an element."""
    return np.repeat(per_group, max(q.group, 1), axis=1)[:, : q.codes.shape[1]]


def pack(codes: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Stored bytes, row by row."""
    if bits == 8:
        return (codes & 255).astype(np.uint8)
    rows, cols = codes.shape
    nibbles = np.zeros((rows, cols + cols % 2), np.int64)
    nibbles[:, :cols] = codes & 15
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).astype(np.uint8)


# ---- activations and Linear ----------------------------------------------------------------------


def code_token(
    x: NDArray[np.float32], bits: int = 8, static: np.float32 = _DYNAMIC
) -> tuple[NDArray[np.int64], np.float32]:
    """Codes of one row of an input, and its scale, which may be given."""
    highest, smallest = {8: (127, 2.0**-120), 16: (32512, 2.0**-112)}[bits]
    if static:
        codes = np.clip(np.rint(x * (F32(1) / static)), -highest, highest)
        return np.nan_to_num(codes).astype(np.int64), static
    absmax = F32(np.abs(x).max())
    if not np.isfinite(x).all():
        return np.zeros(x.shape, np.int64), F32(np.nan)
    if absmax < smallest:
        return np.zeros(x.shape, np.int64), F32(0)
    inverse = F32(highest) / absmax
    codes = np.clip(np.rint(x * inverse), -highest, highest)
    return codes.astype(np.int64), absmax / F32(highest)


def integers(w: Coded) -> NDArray[np.int64]:
    """v: code - zero_point, times the factor where scales have two levels."""
    v = w.codes - spread(w.zero, w)
    return v if w.factor is None else v * spread(w.factor, w)


def exact_product(codes: NDArray[np.int64], v: NDArray[np.int64]) -> NDArray[np.int64]:
    """codes v^T. Every partial sum is an integer below 2^53, so float64 with its BLAS is."""
    return (codes.astype(np.float64) @ v.T.astype(np.float64)).astype(np.int64)


def lane_sum(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sixteen lanes (rows, 16) by a tree: i with i + 8, then 4, 2, 1."""
    for half in (8, 4, 2, 1):
        x = x[:, :half] + x[:, half:]
    return x


def layer_norm(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    eps: float,
) -> NDArray[np.float32]:
    """LayerNorm of rows (m, k): lane i % 16 adds in the order of i."""
    rows, k = x.shape
    padded = np.zeros((rows, -(-k // 16) * 16), F32)
    padded[:, :k] = x
    lanes = np.zeros((rows, 16), F32)
    for i in range(0, padded.shape[1], 16):
        lanes = lanes + padded[:, i : i + 16]
    d = x - lane_sum(lanes) / F32(k)
    padded[:, :k] = d
    lanes = np.zeros((rows, 16), F32)
    for i in range(0, padded.shape[1], 16):
        lanes = fma(padded[:, i : i + 16], padded[:, i : i + 16], lanes)
    inverse = F32(1) / np.sqrt(lane_sum(lanes) / F32(k) + F32(eps))
    scaled = d * inverse
    return scaled * weight if bias is None else fma(scaled, weight, bias)


def linear_int(
    x: NDArray[np.float32],
    w: Coded,
    bias: NDArray[np.float32] | None,
    bits: int = 8,
    static: np.float32 = _DYNAMIC,
) -> NDArray[np.float32]:
    """y (m, n) with activations coded to 8 or 16 bits; no bias adds 0.0."""
    tokens = [code_token(row, bits, static) for row in x]
    codes = np.array([token[0] for token in tokens])
    scale_x = np.array([token[1] for token in tokens], F32)[:, None]
    added = F32(0) if bias is None else bias
    v = integers(w)
    if w.bits == 8 or w.channel_scale is not None:
        scale_w = w.scale[:, 0] if w.channel_scale is None else w.channel_scale
        return exact_product(codes, v).astype(F32) * scale_x * scale_w + added
    total = np.zeros((len(x), len(v)), F32)
    for g in range(w.scale.shape[1]):
        at = slice(g * w.group, (g + 1) * w.group)
        acc = exact_product(codes[:, at], v[:, at])
        total = total + acc.astype(F32) * w.scale[:, g]
    return total * scale_x + added


def conv_int(
    x: NDArray[np.float32],
    codes: NDArray[np.int64],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    stride: tuple[int, int],
    padding: tuple[int, int],
    relu: bool,
    static: np.float32 = _DYNAMIC,
) -> NDArray[np.float32]:
    """A convolution of pictures x (n, height, width, in); codes (out, in, high, wide)."""
    highest = 254 if relu else 127
    high, wide = codes.shape[2:]
    pictures = []
    for picture in np.maximum(x, F32(0)) if relu else x:
        absmax = F32(127) * static if static else F32(np.abs(picture).max())
        small = absmax < (2.0**-112 if relu else 2.0**-120)
        inverse, x_scale = (F32(0), F32(0)) if small else (highest / absmax, absmax / F32(highest))
        q = np.clip(np.rint(picture * inverse), -127, highest).astype(np.int64)
        q = np.pad(q, ((padding[0],) * 2, (padding[1],) * 2, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(q, (high, wide), (0, 1))
        windows = windows[:: stride[0], :: stride[1]]  # (height, width, in, high, wide)
        acc = exact_product(
            windows.reshape(windows.shape[0] * windows.shape[1], -1), codes.reshape(len(codes), -1)
        )
        y = acc.astype(F32) * F32(x_scale) * scale + bias
        pictures.append(y.reshape(*windows.shape[:2], len(codes)))
    return np.stack(pictures)


def project(
    x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The last product after a convolution: x (..., n), weight (outputs, 64)."""
    padded = np.zeros((*x.shape[:-1], 1, 64), F32)
    padded[..., 0, : x.shape[-1]] = x
    products = padded * weight
    lanes = products[..., :16]
    for start in (16, 32, 48):
        lanes = lanes + products[..., start : start + 16]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0] + bias


def resize(x: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear interpolation of x (n, height, width, channels), corners aligned: rows first."""
    for axis, n in ((1, size[0]), (2, size[1])):
        source = x.shape[axis]
        if x.shape[1:3] == size:
            return x
        at = np.arange(n) * (source - 1) / (n - 1) if n > 1 else np.zeros(1)
        first = at.astype(np.int64)
        weight = (at - first).astype(F32).reshape((-1,) + (1,) * (3 - axis))
        a, b = (np.take(x, i, axis) for i in (first, np.minimum(first + 1, source - 1)))
        x = a + weight * (b - a)
    return x


def linear_float(
    x: NDArray[np.float32], w: Coded, bias: NDArray[np.float32] | None, fused: bool
) -> NDArray[np.float32]:
    """y (m, n) with float activations: one chain of additions an output, k ascending."""
    if w.channel_scale is None:
        weight = decode(w.codes, spread(w.scale, w), spread(w.zero, w))  # type: ignore[arg-type]
    else:
        weight = integers(w).astype(F32) * w.channel_scale[:, None]
    y = np.zeros((len(x), len(weight)), F32)
    for k in range(x.shape[1]):
        a, b = x[:, k : k + 1], weight[:, k]
        y = fma(a, b, y) if fused else a * b + y
    return y if bias is None else y + bias


def linear_bf16(
    x: NDArray[np.float32], w: Coded, bias: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """y (m, n) with activations rounded to bfloat16 and sums of floats, two inputs at a time."""
    x = widen_bf16(narrow(x, "bfloat16"))
    if w.bits == 4 and w.channel_scale is None:  # each group its scale: in the weights
        weight = widen_bf16(narrow(dequantize(w), "bfloat16"))
        scale = np.ones(len(weight), F32)
    else:
        weight = integers(w).astype(F32)
        scale = w.scale[:, 0] if w.channel_scale is None else w.channel_scale
    y = np.zeros((len(x), len(weight)), F32)
    for k in range(0, x.shape[1], 2):
        for i in (k + 1, k):
            if i < x.shape[1]:
                y = flush(fma(flush(x[:, i : i + 1]), flush(weight[:, i]), y))
    return y * scale + (F32(0) if bias is None else bias)


def widen_bf16(bits: Array) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(F32)


def flush(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Denormals to zeros."""
    return np.where(np.abs(x) < F32(2.0**-126), F32(0), x)


def fma(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]
) -> NDArray[np.float32]:
    """a * b + c rounded once to float32.

    The product is exact in double. The sum is rounded to odd in double, after which rounding to
    float32 is correct (Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums").
    """
    p, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = p + c
    virtual = total - p
    lost = (p - (total - virtual)) + (c - virtual)  # Knuth's TwoSum: total + lost is exact
    to_odd = np.isfinite(total) & (lost != 0) & (total.view(np.int64) % 2 == 0)
    toward = np.where(lost > 0, np.inf, -np.inf)
    return np.where(to_odd, np.nextafter(total, toward), total).astype(F32)


# ---- attention -----------------------------------------------------------------------------------

KEYS = 256
LOG2E = F32(1.44269504)
EXP2_FLOATS = [0.00132647273, 0.00967151299, 0.0555073358, 0.240222424, 0.693147004, 1.0]
EXP2_CODES = [14.0272789, 61.7637978, 176.78714, 255.0]
SCORE_MOST = F32(2.0**21)


def f32_fma(a: Array, b: Array, c: Array) -> NDArray[np.float32]:
    """fma of float32 arrays that broadcast."""
    a, b, c = np.broadcast_arrays(np.asarray(a, F32), np.asarray(b, F32), np.asarray(c, F32))
    return fma(a.copy(), b.copy(), c.copy())


def exp2(x: NDArray[np.float32], coefficients: list[float]) -> NDArray[np.float32]:
    """2^x by a polynomial of what x stands beside an integer; 0 below 2^-126."""
    whole = np.rint(np.maximum(x, F32(-127)))
    f = np.maximum(x, F32(-127)) - whole
    p = np.full(x.shape, coefficients[0], F32)
    for c in coefficients[1:]:
        p = f32_fma(p, f, F32(c))
    with np.errstate(invalid="ignore"):
        return np.where(x < -126, F32(0), np.ldexp(p, whole.astype(int))).astype(F32)


def float_lane_sum(lanes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sixteen lanes (..., 16), by the tree."""
    for n in (8, 4):
        lanes = lanes[..., :n] + lanes[..., n:]
    return (lanes[..., 0] + lanes[..., 2]) + (lanes[..., 1] + lanes[..., 3])


def lanes_of(x: NDArray[np.float32], combine: str) -> NDArray[np.float32]:
    """Element i of a row to lane i mod 16, in order; "squares" adds their squares."""
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // 16) * 16), F32)
    padded[..., : x.shape[-1]] = x
    lanes = np.zeros((*x.shape[:-1], 16), F32)
    for i in range(0, padded.shape[-1], 16):
        part = padded[..., i : i + 16]
        lanes = f32_fma(part, part, lanes) if combine == "squares" else lanes + part
    return lanes


def prepare(
    x: NDArray[np.float32],
    norm: tuple[NDArray[np.float32], NDArray[np.float32] | None, float] | None,
    rope: tuple[NDArray[np.float32], NDArray[np.float32], int] | None,
) -> NDArray[np.float32]:
    """Rows of q or k, (tokens, dim), normalized and rotated."""
    dim = F32(x.shape[1])
    if norm is not None:
        weight, bias, eps = norm
        x = x - (float_lane_sum(lanes_of(x, "sum")) / dim)[:, None]
        variance = float_lane_sum(lanes_of(x, "squares")) / dim
        x = x * (F32(1) / np.sqrt(variance + F32(eps)))[:, None]
        x = x * weight if bias is None else f32_fma(x, weight, bias)
    if rope is not None:
        cos, sin, width = rope
        rows = np.arange(len(x)) % len(cos)
        halves = x.reshape(len(x), -1, 2, width // 2)
        partner = np.stack([-halves[:, :, 1], halves[:, :, 0]], axis=2).reshape(x.shape)
        x = f32_fma(partner, sin[rows], x * cos[rows])
    return x


def key_scale(scale: np.float32) -> np.float32:
    if not scale < 2.0**93:
        return F32(np.nan)
    return (np.array(scale).view(np.uint32) & ~np.uint32(3)).view(F32)[()]


def attention_int8(
    q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32], scale: float
) -> NDArray[np.float32]:
    """softmax(scale q k^T) v of one head with INT8 scores and values; q and k are prepared."""
    tokens, dim = q.shape
    n = min(tokens, KEYS)
    mean = np.zeros(dim, F32)
    for i in range(n):
        mean = mean + k[i * tokens // n]
    k = k - mean / F32(n)
    q_codes, q_scale = zip(*map(code_token, q), strict=True)
    k_codes, k_scale = zip(*map(code_token, k), strict=True)
    r = np.array(q_scale, F32) * (F32(scale) * LOG2E)
    by = np.array([key_scale(s) for s in k_scale], F32)
    if np.isnan(by).any() or not np.isfinite(v).all():
        return np.full(q.shape, np.nan, F32)
    scores = exact_product(np.array(q_codes), np.array(k_codes))
    top = np.full(tokens, -(2.0**23), F32)
    lanes, o = np.zeros((tokens, 16), F32), np.zeros((tokens, dim), F32)
    for at in range(0, tokens, KEYS):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            s = scores[:, at : at + KEYS].astype(F32) * by[at : at + KEYS]
            peak = s.max(axis=1) * r
            far = ~(np.abs(peak) <= SCORE_MOST) & ~np.isnan(r)
            most = (SCORE_MOST / r)[far, None]
            s[far] = np.clip(s[far], -most, most)
            peak = np.where(far, np.copysign(SCORE_MOST, peak), peak).astype(F32)
            peak = np.where(np.isnan(r), F32(0), peak)
            p = exp2(f32_fma(s, r[:, None], -peak[:, None]), EXP2_CODES)
        before, top = top, np.maximum(top, np.ceil(peak))
        kept = exp2(before - top, EXP2_FLOATS)
        added = exp2(peak - top, EXP2_FLOATS)
        lanes = f32_fma(lanes_of(p, "sum"), added[:, None], lanes * kept[:, None])
        block = v[at : at + KEYS]
        columns = [code_token(column) for column in block.T]
        codes = np.array([c[0] for c in columns]).T
        v_scale = np.array([c[1] for c in columns], F32)
        with np.errstate(invalid="ignore"):
            weights = np.where(np.isnan(p), 0, np.minimum(np.rint(p), 255)).astype(np.int64)
        sums = exact_product(weights, codes.T).astype(F32)
        o = f32_fma(sums, v_scale * added[:, None], o * kept[:, None])
    return o * (F32(1) / float_lane_sum(lanes))[:, None]
