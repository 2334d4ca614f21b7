# SPDX-License-Identifier: Apache-2.0
"""QuantizedLinear with activations of bfloat16, and with codes of 16 bits."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from everywhere import by_default, on_every_isa, with_any_threads
from linears import (
    F32,
    WEIGHTS,
    Array,
    bits,
    by_hand,
    case,
    coded,
    has_bf16,
    layer_of,
    product,
    same,
)
from torch import nn

import vggtquant as vq
from vggtquant import QTensor, QuantizedLinear, ops

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


@cache
def case_product(name: str, m: int, n: int, k: int, narrow: bool, arithmetic: object) -> Array:
    """Of tokens in bfloat16 or float32; `arithmetic` says what differs among instruction sets."""
    q, bias, x = case(name, n, k)
    tokens = x[:m].bfloat16() if narrow else x[:m]
    return product(tokens, q, bias, False, torch.bfloat16)


@pytest.mark.parametrize(
    "name", by_default(WEIGHTS, "INT8_Per_Channel_Asymmetric", "INT4_Group_64", "float_groups")
)
@on_every_isa
def test_bfloat16_equals_the_reference(name: str, isa: str) -> None:
    arithmetic = has_bf16(), isa != "scalar"
    for m, n, k in SIZES:
        q, bias, x = case(name, n, k)
        layer = layer_of(q, bias, False)
        narrow = x[:m].bfloat16()
        want = case_product(name, m, n, k, True, arithmetic)
        same(layer(narrow), want)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            same(layer(narrow), want)
            same(layer(x[:m]), case_product(name, m, n, k, False, arithmetic))


@every_weight
@on_every_isa
def test_any_number_of_bfloat16_tokens(name: str, isa: str) -> None:
    q, bias, x = case(name, 65, 41)
    layer, x = layer_of(q, bias, False), x.bfloat16()
    every = layer(x)
    for m in range(70):
        assert bits(layer(x[:m])) == bits(every[:m])
        assert bits(layer(x[m:])) == bits(every[m:])


@every_weight
@on_every_isa
@with_any_threads
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
@on_every_isa
def test_bfloat16_errs_by_k_roundings_at_most(name: str, isa: str) -> None:
    """The bound of docs/conventions.md, on sums before they are rounded to the output's dtype."""
    for n, k in ((65, 40), (64, 131), (9, 1024)):
        q, bias, x = case(name, n, k)
        x = x.bfloat16()
        layer = layer_of(q, None, False)
        y = ops.linear(layer.packed, layer._about, "bf16", x, None, torch.float32).numpy()
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


# ---- 16 bits -------------------------------------------------------------------------------------

SIXTEEN = replace(vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"], name="A16", activation_bits=16)


def layer16(q: QTensor, bias: torch.Tensor | None) -> QuantizedLinear:
    parameter = None if bias is None else nn.Parameter(bias)
    return QuantizedLinear(q, parameter, SIXTEEN).requires_grad_(False)


def product16(x: torch.Tensor, q: QTensor, bias: torch.Tensor | None) -> Array:
    added = None if bias is None else bias.numpy()
    with np.errstate(all="ignore"):
        return reference.linear_int(reference.widen(x), coded(q), added, 16)


@cache
def case_product16(name: str, m: int, n: int, k: int) -> Array:
    q, bias, x = case(name, n, k)
    return product16(x[:m], q, bias)


@every_weight
@on_every_isa
def test_sixteen_bits_equal_exact_integers(name: str, isa: str) -> None:
    for m, n, k in [*SIZES, (20, 65, 40)]:
        q, bias, x = case(name, n, k)
        same(layer16(q, bias)(x[:m]), case_product16(name, m, n, k))


@pytest.mark.parametrize("name", ["INT8_Per_Channel_Asymmetric", "INT4_Group_32", "float_groups"])
@on_every_isa
def test_any_number_of_tokens_of_sixteen_bits(name: str, isa: str) -> None:
    q, bias, x = case(name, 65, 40)
    layer = layer16(q, bias)
    every = layer(x)
    for m in range(70):
        assert bits(layer(x[:m])) == bits(every[:m])
        assert bits(layer(x[m:])) == bits(every[m:])


@every_weight
@on_every_isa
@with_any_threads
def test_sixteen_bits_are_the_same_on_every_table_and_thread(
    name: str, isa: str, threads: int
) -> None:
    for m, n, k in ((70, 65, 512), (2000, 9, 1024)):
        q, bias, x = case(name, n, k)
        y = layer16(q, bias)(x.repeat(-(-m // 70), 1)[:m])
        want = torch.from_numpy(case_product16(name, 70, n, k))
        assert bits(y) == bits(want.repeat(-(-m // 70), 1)[:m])


@pytest.mark.parametrize("width, zero", [(8, 0), (8, 127), (8, -128), (4, 0), (4, -8)])
@on_every_isa
def test_extreme_codes_of_sixteen_bits_are_summed_exactly(width: int, zero: int, isa: str) -> None:
    """At the longest row too, where sums of plain 16-bit codes would have left 32 bits."""
    lowest, highest = reference.LIMITS[width]
    for k in (1, 64, 1000, 65536):
        turns = np.where(np.arange(k) % 2, lowest, highest)
        codes = np.stack([np.full(k, lowest), np.full(k, highest), turns, -1 - turns])
        x = torch.tensor(np.stack([np.ones(k), -np.ones(k), np.cos(np.pi * np.arange(k))])).float()
        q = by_hand(codes, width, zero, 0 if width == 8 else 64)
        y = layer16(q, None)(x)
        same(y, product16(x, q, None))
        sums = x.double().numpy() @ (codes - zero).T
        np.testing.assert_allclose(y.numpy(), sums, rtol=1e-6)


def test_every_code_of_sixteen_bits(isa: str) -> None:
    """A product with 1 gives each code back: all 65,025 of them, and ties half to even."""
    codes = torch.arange(-32512, 32513, dtype=torch.float32)
    x = torch.stack([codes, torch.full_like(codes, 32512)], 1)  # the second input: a scale of 1
    q = by_hand(np.array([[1, 0]]), 8)
    assert torch.equal(layer16(q, None)(x)[:, 0], codes)
    halves = codes[:-1] + 0.5
    x = torch.stack([halves, torch.full_like(halves, 32512)], 1)
    assert torch.equal(layer16(q, None)(x)[:, 0], halves.round())


@every_weight
@on_every_isa
def test_sixteen_bits_err_by_half_a_step_at_most(name: str, isa: str) -> None:
    """The bound of docs/conventions.md, and 200 times less error than with 8 bits."""
    for n, k in ((65, 40), (64, 131), (9, 1024)):
        q, bias, x = case(name, n, k)
        w, x64 = reference.dequantize(coded(q)).astype(np.float64), x.numpy().astype(np.float64)
        exact = x64 @ w.T + bias.numpy()
        step = np.abs(x64).max(1, keepdims=True) / 32512
        terms = np.abs(x64) @ np.abs(w).T + np.abs(bias.numpy())
        groups = q.layout.row_groups if name.startswith("float_groups") else 1
        error = np.abs(layer16(q, bias)(x).numpy() - exact)
        assert (error <= 0.51 * step * np.abs(w).sum(1) + (groups + 4) * 2.0**-23 * terms).all()
        coarse = np.abs(layer_of(q, bias, True)(x).numpy() - exact)
        assert np.sqrt((error**2).mean() / (coarse**2).mean()) < 1 / 100


def test_hard_tokens_of_sixteen_bits(isa: str) -> None:
    for name in WEIGHTS:
        q, bias, x = case(name, 65, 40)
        x = x[:13].clone()
        for row, value in enumerate((np.nan, np.inf, -np.inf)):
            x[row, 3 * row] = value
            x[row + 3, 39] = value
        x[6] = 0
        x[7] = -0.0
        x[8] *= 1e-40
        x[9] = 2.0**-112  # the first to count
        x[10] = float(np.nextafter(F32(2.0**-112), F32(0)))
        x[11] *= 1e38
        x[12], x[12, 5] = 1e-45, 1.0
        y = layer16(q, bias)(x)
        same(y, product16(x, q, bias))
        assert y[:6].isnan().all() and not y[6:].isnan().any()
        without = layer16(q, None)(x)
        assert not without[[6, 7, 8, 10]].any() and without[9].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_of_two_byte_inputs(dtype: torch.dtype, isa: str) -> None:
    q, bias, x = case("INT4_Group_128", 65, 130)
    narrow = x.to(dtype)
    y = layer16(q, bias)(narrow)
    assert y.dtype == dtype
    same(y, reference.narrow(product16(narrow, q, bias), reference.dtype_name(narrow)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer16(q, bias)(x).dtype == torch.bfloat16


def test_sixteen_bits_in_a_model_and_a_packed_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    config = replace(vq.CONFIGS["INT4_Group_32_A8"], name="W4A16", activation_bits=16)
    quantized, _ = vq.quantize_model(copy.deepcopy(model), config)
    path = tmp_path / "packed.safetensors"
    vq.save(quantized, path, float_dtype="float32")
    loaded = vq.load(path, model=copy.deepcopy(model))
    x = torch.randn(5, 64)
    with torch.no_grad():
        assert bits(loaded(x)) == bits(quantized(x)) != bits(plain_a8(model)(x))
    layers = [m for m in loaded.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 2 and all(m.config == config for m in layers)


def plain_a8(model: nn.Module) -> nn.Module:
    return vq.quantize_model(copy.deepcopy(model), "INT4_Group_32_A8")[0]


def test_wide_layers_have_the_bits_of_activation_bits_16() -> None:
    """By name, also after a file: the others stay at 8 bits."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(4)))
    plain = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
    weight, x = net[2], torch.randn(3, 32)
    wanted = {
        width: vq.QuantizedLinear.from_linear(
            weight, replace(plain, name="all", activation_bits=width)
        )(x)
        for width in (8, 16)
    }
    assert not torch.equal(wanted[8], wanted[16])
    for pattern, width in (("2", 16), ("1", 8)):
        config = replace(plain, name="some", wide_layers=(pattern,))
        layer = vq.QuantizedLinear.from_linear(weight, config, name="2")
        assert torch.equal(layer(x), wanted[width])
