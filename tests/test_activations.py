# SPDX-License-Identifier: Apache-2.0
"""QuantizedLinear with activations that are neither float32 nor INT8: bfloat16."""

from functools import cache

import numpy as np
import pytest
import reference
import torch
from linears import (
    WEIGHTS,
    bits,
    case,
    coded,
    layer_of,
    product,
    same,
)
from torch import nn

from vggtquant import ops

every_weight = pytest.mark.parametrize("name", WEIGHTS)
SIZES = [
    (1, 9, 1),
    (7, 65, 7),
    (6, 64, 8),
    (13, 1, 41),
    (12, 200, 130),
    (5, 63, 1025),
    (2, 65, 2050),
]
"""(m, n, k): ragged tiles and panels, odd depths, more than one slice of a panel."""

# ---- bfloat16 ------------------------------------------------------------------------------------


@every_weight
def test_bfloat16_equals_the_reference(name: str, isa: str) -> None:
    for m, n, k in SIZES:
        q, bias, x = case(name, n, k)
        layer = layer_of(q, bias, False)
        narrow = x[:m].bfloat16()
        want = product(narrow, q, bias, False, torch.bfloat16)
        same(layer(narrow), want)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            same(layer(narrow), want)
            same(layer(x[:m]), product(x[:m], q, bias, False, torch.bfloat16))


@every_weight
def test_any_number_of_bfloat16_tokens(name: str, isa: str) -> None:
    q, bias, x = case(name, 65, 41)
    layer, x = layer_of(q, bias, False), x.bfloat16()
    every = layer(x)
    for m in range(70):
        assert bits(layer(x[:m])) == bits(every[:m])
        assert bits(layer(x[m:])) == bits(every[m:])


@every_weight
def test_threads_change_no_bit_of_bfloat16(name: str, isa: str, threads: int) -> None:
    for m, n, k in ((70, 65, 512), (2000, 9, 1024)):
        q, bias, x = case(name, n, k)
        x = x.repeat(-(-m // 70), 1)[:m].bfloat16()
        assert bits(layer_of(q, bias, False)(x)) == single_thread(name, m, n, k, isa)


@cache
def single_thread(name: str, m: int, n: int, k: int, isa: str) -> bytes:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    q, bias, x = case(name, n, k)
    y = layer_of(q, bias, False)(x.bfloat16())
    torch.set_num_threads(before)
    return bits(y.repeat(-(-m // 70), 1)[:m])


@every_weight
def test_bfloat16_errs_by_k_roundings_at_most(name: str, isa: str) -> None:
    """The bound of docs/conventions.md, on sums before they are rounded to the output's dtype."""
    for n, k in ((65, 40), (64, 131), (9, 1024)):
        q, bias, x = case(name, n, k)
        x = x.bfloat16()
        layer = layer_of(q, None, False)
        y = ops.linear(layer.packed, "bf16", x, None, n, torch.float32).numpy()
        w, x64 = reference.dequantize(coded(q)).astype(np.float64), x.float().numpy().astype(float)
        terms = np.abs(x64) @ np.abs(w).T
        rounded_weights = 2.0**-8 if name.startswith("float_groups") else 0
        assert (np.abs(y - x64 @ w.T) <= ((k + 2) * 2.0**-24 + rounded_weights) * terms).all()
        assert (bias != 0).any() and terms.min() > 0


def test_hard_bfloat16_tokens(isa: str) -> None:
    """NaN, infinities, denormals and huge values, which the instruction treats in its own way."""
    q, bias, x = case("INT8_Per_Channel_Asymmetric", 65, 41)
    x = x[:13].clone()
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        x[row, 3 * row] = value
        x[row + 3, 40] = value
    x[6] = 0
    x[7] = -0.0
    x[8] *= 1e-39  # denormals
    x[9] *= 1e-37  # sums of which some are
    x[10] *= 1e38
    x[11] = 2.0**-126
    x[12, ::2] = torch.tensor(3e38).bfloat16()
    x = x.bfloat16()
    y = layer_of(q, bias, False)(x)
    same(y, product(x, q, bias, False, torch.bfloat16))
    assert not y[6:10].isnan().any()


def test_flushing_denormals_changes_no_bfloat16(isa: str) -> None:
    q, bias, x = case("INT4_Group_32", 65, 40)
    x = (x * torch.logspace(-41, -30, 70)[:, None]).bfloat16()
    layer = layer_of(q, bias * 1e-38, False)
    want = layer(x)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU does not flush denormals")
    try:
        got = layer(x)
    finally:
        torch.set_flush_denormal(False)
    assert bits(got) == bits(want)


def test_bfloat16_is_as_good_as_a_linear_of_bfloat16(isa: str) -> None:
    """Against the exact product of what the codes stand for: no worse than torch's own."""
    q, bias, x = case("INT8_Per_Channel_Symmetric", 200, 1024)
    layer, plain = layer_of(q, bias, False), nn.Linear(1024, 200).requires_grad_(False)
    plain.weight.copy_(layer.weight)
    plain.bias.copy_(bias)
    exact = plain.double()(x.bfloat16().double())
    narrow = plain.bfloat16()(x.bfloat16())
    ours = layer(x.bfloat16())
    assert (ours.double() - exact).norm() <= (narrow.double() - exact).norm()
