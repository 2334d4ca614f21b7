# SPDX-License-Identifier: Apache-2.0
"""Weights and layers of every kind for the tests of QuantizedLinear, and what they should give."""

from dataclasses import replace
from functools import cache

import numpy as np
import reference
import torch
from numpy.typing import NDArray
from torch import nn

import vggtquant as vq
from vggtquant import QTensor, QuantizationSpec, QuantizedLinear, ops

INTEGER_CONFIGS = {
    name: config
    for name, config in vq.CONFIGS.items()
    if config.quantizes and not config.layer_spec().is_float8
}
F32 = np.float32
Array = NDArray[np.generic]

FLOAT_GROUPS = QuantizationSpec(4, True, "per_group", 32)
FLOAT_GROUPS_ASYMMETRIC = QuantizationSpec(4, False, "per_group", 32)
TWO_LEVEL_ASYMMETRIC = QuantizationSpec(4, False, "per_group", 128, two_level=True)
WEIGHTS = {
    **{name: c.spec(c.bits) for name, c in INTEGER_CONFIGS.items() if not c.quantize_activations},
    "float_groups": FLOAT_GROUPS,
    "float_groups_asymmetric": FLOAT_GROUPS_ASYMMETRIC,
    "two_level_asymmetric": TWO_LEVEL_ASYMMETRIC,
}
"""Every kind of weight that a Linear takes: the named ones, and what they fall back to."""


def config_for(int8: bool) -> vq.QuantizationConfig:
    return vq.CONFIGS["INT8_Per_Channel_Symmetric" + ("_A8" if int8 else "")]


def bits(x: torch.Tensor) -> bytes:
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def coded(q: QTensor) -> reference.Coded:
    """A weight as the reference takes it, from what the public attributes say."""
    n, k = q.shape
    scale = np.broadcast_to(q.scale.reshape(-1, q.layout.row_groups), (n, q.layout.row_groups))
    zero = np.broadcast_to(
        q.zero_point.reshape(scale.shape[0] if q.zero_point.size > 1 else 1, -1), scale.shape
    )
    channel = None if q.factor is None else q.stored_scale
    factor = None if q.factor is None else q.factor.reshape(n, -1).astype(int)
    group = q.layout.group if q.spec.granularity == "per_group" else k
    codes, zero = q.codes.astype(int), zero.astype(int)
    return reference.Coded(codes, scale, zero, q.spec.bits, group, channel, factor)


def product(
    x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, int8: bool, dtype: torch.dtype
) -> Array:
    """What the conventions say, with the multiply-adds of the instruction set in use."""
    narrow = dtype == torch.bfloat16 and has_bf16()
    rows = reference.widen(x.detach()).reshape(-1, q.shape[1])
    added = None if bias is None else reference.widen(bias.detach())
    with np.errstate(all="ignore"):
        if int8:
            y = reference.linear_int(rows, coded(q), added)
        elif narrow:
            y = reference.linear_bf16(rows, coded(q), added)
        else:
            y = reference.linear_float(rows, coded(q), added, fused=vq.isa() != "scalar")
    return reference.narrow(
        y.reshape(*x.shape[:-1], q.shape[0]), reference.dtype_name(torch.empty(0, dtype=dtype))
    )


def same(y: torch.Tensor, want: Array) -> None:
    """Equal bits; any NaN equals any other."""
    got = ops.values(y)
    assert got.shape == want.shape and got.dtype == want.dtype
    nan = torch.isnan(y.detach()).numpy()
    is_nan = np.isnan(want) if want.dtype != np.uint16 else (want & 0x7FFF) > 0x7F80
    np.testing.assert_array_equal(nan, is_nan)
    as_bits = np.uint32 if want.dtype == np.float32 else np.uint16
    np.testing.assert_array_equal(got.view(as_bits)[~nan], want.view(as_bits)[~nan])


@cache
def weight(n: int, k: int) -> Array:
    """Bell-shaped, with each row off centre in its own way."""
    rng = np.random.default_rng(n * 1000 + k)
    return (rng.normal(0, 0.05, (n, k)) + rng.normal(0, 0.02, (n, 1))).astype(F32)


@cache
def case(name: str, n: int, k: int) -> tuple[QTensor, torch.Tensor, torch.Tensor]:
    """Weight, bias, and 70 tokens."""
    generator = torch.Generator().manual_seed(n + k)
    q = vq.quantize(weight(n, k), WEIGHTS[name])
    return q, torch.randn(n, generator=generator), torch.randn(70, k, generator=generator)


def has_bf16() -> bool:
    """Whether the instruction set in use multiplies bfloat16."""
    here = vq.isas()
    return "avx512bf16" in here[: here.index(vq.isa()) + 1]


def layer_of(q: QTensor, bias: torch.Tensor | None, int8: bool) -> QuantizedLinear:
    parameter = None if bias is None else nn.Parameter(bias)
    return QuantizedLinear(q, parameter, config_for(int8)).requires_grad_(False)


def by_hand(codes: Array, width: int, zero: int = 0, group: int = 0) -> QTensor:
    """A weight of these codes: scales of one."""
    spec = QuantizationSpec(width, not zero, "per_group" if group else "per_channel", group or 128)
    groups = -(-codes.shape[1] // group) if group else 1
    ones = np.ones((len(codes), groups), F32)
    zeros = np.full(ones.shape, zero)
    q = vq.quantize((codes - zero).astype(F32), spec, scale=ones, zero_point=zeros)
    np.testing.assert_array_equal(q.codes, codes)
    return q if zero else replace(q, stored_zero=None)
