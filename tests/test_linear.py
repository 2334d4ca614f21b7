# SPDX-License-Identifier: Apache-2.0
"""QuantizedLinear against tests/reference.py, and in the hands of scripts written for nn.Linear."""

import copy
import hashlib
import io
import math
import pickle
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import reference
import torch
from everywhere import by_default, on_every_isa, with_any_threads
from linears import (
    F32,
    FLOAT_GROUPS,
    WEIGHTS,
    Array,
    bits,
    by_hand,
    case,
    coded,
    config_for,
    has_bf16,
    layer_of,
    product,
    same,
)
from torch import nn

import vggtquant as vq
from vggtquant import QTensor, QuantizationSpec, QuantizedLinear, UserError, linear, ops

every_weight = pytest.mark.parametrize("name", WEIGHTS)
TYPICAL = ("INT8_Per_Channel_Asymmetric", "INT4_Group_64", "float_groups")
"""A weight of each kind of scales."""
activations = pytest.mark.parametrize("int8", [False, True], ids=["float", "A8"])


# ---- numbers -------------------------------------------------------------------------------------

WIDTHS = [1, 9, 63, 64, 65, 200]
DEPTHS = [1, 7, 8, 9, 40, 130, 1024]
ROWS = [1, 2, 3, 5, 6, 7, 12, 13, 17]
SIZES = [
    (ROWS[i % len(ROWS)], n, k) for i, (n, k) in enumerate((n, k) for n in WIDTHS for k in DEPTHS)
]


@cache
def case_product(name: str, int8: bool, m: int, n: int, k: int, fused: bool) -> Array:
    q, bias, x = case(name, n, k)
    return product(x[:m], q, bias, int8, torch.float32)


@activations
@every_weight
@on_every_isa
def test_equal_to_the_reference(name: str, int8: bool, isa: str) -> None:
    for m, n, k in SIZES:
        q, bias, x = case(name, n, k)
        fused = not int8 and isa != "scalar"
        same(layer_of(q, bias, int8)(x[:m]), case_product(name, int8, m, n, k, fused))


@every_weight
@on_every_isa
def test_float_activations_err_by_k_roundings_at_most(name: str, isa: str) -> None:
    """k products and additions, and the weight's rounding: (k + 2) eps of the absolute terms."""
    for n, k in ((65, 40), (64, 130), (9, 1024)):
        q, bias, x = case(name, n, k)
        w, x64 = reference.dequantize(coded(q)).astype(np.float64), x.numpy().astype(np.float64)
        exact = x64 @ w.T + bias.numpy()
        limit = (k + 2) * 2.0**-24 * (np.abs(x64) @ np.abs(w).T + np.abs(bias.numpy()))
        assert (np.abs(layer_of(q, bias, False)(x).numpy() - exact) <= limit).all()


@activations
@pytest.mark.parametrize("name", ["INT8_Per_Channel_Asymmetric", "INT4_Group_32", "float_groups"])
@on_every_isa
def test_any_number_of_tokens(name: str, int8: bool, isa: str) -> None:
    """A token's outputs do not depend on how many others there are."""
    q, bias, x = case(name, 65, 40)
    layer = layer_of(q, bias, int8)
    every = layer(x)
    same(every, product(x, q, bias, int8, torch.float32))
    for m in range(70):
        assert bits(layer(x[:m])) == bits(every[:m])
        assert bits(layer(x[m:])) == bits(every[m:])


@activations
@pytest.mark.parametrize("name", by_default(WEIGHTS, *TYPICAL))
@on_every_isa
@with_any_threads
def test_threads_change_no_bit(name: str, int8: bool, isa: str, threads: int) -> None:
    for n, k, m in ((65, 512, 70), (640, 512, 13), (9, 1024, 2000)):
        q, bias, x = case(name, n, k)
        x = x.repeat(-(-m // 70), 1)[:m]
        assert bits(layer_of(q, bias, int8)(x)) == single_thread(name, int8, n, k, m, isa)


@cache
def single_thread(name: str, int8: bool, n: int, k: int, m: int, isa: str) -> bytes:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    q, bias, x = case(name, n, k)
    y = layer_of(q, bias, int8)(x)
    same(y[:7], product(x[:7], q, bias, int8, torch.float32))
    torch.set_num_threads(before)
    return bits(y.repeat(-(-m // 70), 1)[:m])


@pytest.mark.parametrize("width, zero", [(8, 0), (8, 127), (8, -128), (4, 0), (4, 7), (4, -8)])
@on_every_isa
def test_extreme_codes_are_summed_exactly(width: int, zero: int, isa: str) -> None:
    lowest, highest = reference.LIMITS[width]
    for k in (1, 64, 1000, 65536):
        alternating = np.where(np.arange(k) % 2, lowest, highest)
        codes = np.stack([np.full(k, lowest), np.full(k, highest), alternating, -1 - alternating])
        x = torch.tensor(
            np.stack([np.ones(k), -np.ones(k), np.cos(np.pi * np.arange(k))]), dtype=torch.float32
        )
        group = 0 if width == 8 else 64
        q = by_hand(codes, width, zero, group)
        want = product(x, q, None, True, torch.float32)
        same(layer_of(q, None, True)(x), want)
        if width == 8:  # one scale, so the integers can be read off
            sums = 127.0 * x.numpy() @ (codes - zero).T.astype(np.float64)
            scaled = np.round(want.astype(np.float64) * 127)
            np.testing.assert_allclose(scaled, sums, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_extreme_two_level_weights_are_summed_exactly(symmetric: bool, isa: str) -> None:
    """The largest factors, codes and activations of one sign, where narrow sums would overflow."""
    most = reference.MOST[symmetric]
    for group, k in (
        (8, 8),
        (24, 71),
        (32, 256),
        (40, 200),
        (128, 4096),
        (1000, 1000),
        (65536, 65536),
    ):
        groups = -(-k // group)
        signs = np.where(np.arange(k) % 2, -8, 7)
        codes = np.stack([np.full(k, -8), np.full(k, 7), signs, -1 - signs])
        factor = np.full((4, groups), most, np.uint8)
        factor[:, 1::2] = 1
        zero = np.array([[7], [-8], [0], [7]], np.int8).repeat(groups, 1)
        spec = QuantizationSpec(4, symmetric, "per_group", group, two_level=True)
        q = QTensor(
            spec,
            (4, k),
            "float32",
            False,
            reference.pack(codes, 4),
            np.full(4, 0.5, F32),
            factor.ravel(),
            None if symmetric else zero.ravel(),
        )
        turns = np.stack([np.ones(k), -np.ones(k), signs / 8, -signs / 8]).astype(F32)
        x = torch.from_numpy(np.tile(turns, (2, 1)))  # 8 tokens: a whole tile and single rows
        same(layer_of(q, None, True)(x), product(x, q, None, True, torch.float32))


@cache
def hard_layers() -> list[tuple[QuantizedLinear, torch.Tensor]]:
    """Ragged layers of each kind of weight and of extreme codes, with 70 tokens, some extreme."""
    n, k = 200, 328
    alternating = np.where(np.arange(k) % 2, -128, 127)
    extreme = np.stack([np.full(k, -128), np.full(k, 127), alternating, -1 - alternating])
    weights = [by_hand(np.tile(extreme, (n // 4, 1)), 8)]
    for name in (
        "INT8_Per_Channel_Asymmetric",
        "INT4_Group_32",
        "two_level_asymmetric",
        "float_groups_asymmetric",
    ):
        weights.append(case(name, n, k)[0])
    x = case("INT4_Group_32", n, k)[2].clone()
    x[3::9], x[4::9], x[5::9] = 1.0, -1.0, torch.from_numpy(alternating).sign().float()
    return [(layer_of(q, torch.ones(n), True), x) for q in weights]


def digest_of_all() -> str:
    """Of the outputs for 0 to 70 tokens of every hard layer."""
    digest = hashlib.sha256()
    for layer, x in hard_layers():
        for m in range(71):
            digest.update(bits(layer(x[:m])))
    return digest.hexdigest()


@cache
def scalar_digest() -> str:
    isa, threads = vq.isa(), torch.get_num_threads()
    vq.use_isa("scalar")
    torch.set_num_threads(1)
    try:
        for layer, x in hard_layers():
            same(layer(x), product(x, layer.qtensor(), layer.bias, True, torch.float32))
        return digest_of_all()
    finally:
        vq.use_isa(isa)
        torch.set_num_threads(threads)


def test_every_table_gives_the_same_bits(isa: str, threads: int) -> None:
    assert digest_of_all() == scalar_digest()


def test_every_pair_of_codes(isa: str) -> None:
    """All 256 weight codes times all 255 activation codes, each product an output: exact."""
    codes = np.arange(-128, 128)[:, None]
    x = torch.zeros(255, 2)
    x[:, 0], x[:, 1] = torch.arange(-127, 128), 127  # the second input sets each token's scale to 1
    q = by_hand(np.hstack([codes, codes * 0]), 8)
    y = layer_of(q, None, True)(x)
    np.testing.assert_array_equal(y.numpy(), x[:, :1].numpy() * codes.T)


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_two_level_product(symmetric: bool, isa: str) -> None:
    """All factors times all steps, through the packed form."""
    most = reference.MOST[symmetric]
    spec = QuantizationSpec(4, symmetric, "per_group", 8, two_level=True)
    n, k = 70, 8 * most
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 7, (n, k), endpoint=True)
    zero = None if symmetric else rng.integers(-8, 7, (n * most), endpoint=True).astype(np.int8)
    factor = np.tile(np.arange(1, most + 1, dtype=np.uint8), n)
    packed = reference.pack(codes, 4)
    q = QTensor(spec, (n, k), "float32", False, packed, np.ones(n, F32), factor, zero)
    for int8 in (True, False):
        x = torch.eye(k)
        y = layer_of(q, None, int8)(x)
        np.testing.assert_array_equal(y.numpy().T, reference.integers(coded(q)) * F32(1))
        same(y, product(x, q, None, int8, torch.float32))


@activations
@every_weight
@on_every_isa
def test_hard_tokens(name: str, int8: bool, isa: str) -> None:
    """NaN, infinities, zeros, denormals, huge and tiny rows stay in their rows."""
    q, bias, x = case(name, 65, 40)
    x = x[:16].clone()
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        x[row, 3 * row] = value
        x[row + 3, 39] = value
    x[6] = 0
    x[7] = -0.0
    x[8] *= 1e-40
    x[9] = 2.0**-120
    x[10] = float(np.nextafter(F32(2.0**-120), F32(0)))
    x[11] *= 1e38
    x[12], x[12, 5] = 1e-45, 1.0
    x[13] = torch.arange(40) * 0.5  # ties
    y = layer_of(q, bias, int8)(x)
    same(y, product(x, q, bias, int8, torch.float32))
    if int8:
        assert y[:6].isnan().all() and not y[6:].isnan().any()
        without = layer_of(q, None, int8)(x)
        assert not without[[6, 7, 8, 10]].any() and without[9].any()  # 2^-120 is the first to count
    else:
        assert not y[6:11].isnan().any()


@activations
def test_flushing_denormals_changes_nothing(int8: bool, isa: str) -> None:
    q, bias, x = case("INT4_Group_32", 65, 40)
    x = x * torch.logspace(-45, -30, 70)[:, None]
    layer = layer_of(q, bias * 1e-38, int8)
    want = layer(x)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU does not flush denormals")
    try:
        got = layer(x)
        small = torch.tensor(1e-38) * 0.1  # the caller's mode is as it was
    finally:
        torch.set_flush_denormal(False)
    assert bits(got) == bits(want) and small == 0


# ---- dtypes and shapes ---------------------------------------------------------------------------


@activations
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["INT8_Per_Tensor_Symmetric", "INT4_Group_128", "float_groups"])
@on_every_isa
def test_sixteen_bits_in_and_out(name: str, dtype: torch.dtype, int8: bool, isa: str) -> None:
    q, bias, x = case(name, 65, 130)
    x, layer = x.to(dtype), layer_of(q, bias, int8).to(dtype)
    assert layer.bias is not None and layer.bias.dtype == dtype
    y = layer(x)
    assert y.dtype == dtype
    same(y, product(x, q, layer.bias, int8, dtype))


@activations
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_what_a_linear_would(dtype: torch.dtype, int8: bool) -> None:
    q, bias, x = case("INT4_Group_32", 65, 40)
    layer, plain = layer_of(q, bias, int8), nn.Linear(40, 65)
    with torch.autocast("cpu", dtype=dtype):
        for given in (x, x.bfloat16(), x.half()):
            y = layer(given)
            assert y.dtype == plain(given).dtype == dtype
            same(y, product(given, q, bias, int8, dtype))
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == torch.float32
    assert layer(x).dtype == torch.float32


@activations
def test_leading_shapes_and_strides(int8: bool) -> None:
    q, bias, x = case("INT8_Per_Channel_Symmetric", 65, 40)
    layer = layer_of(q, bias, int8)
    want = layer(x[:60])
    for lead in ((60,), (3, 20), (3, 4, 5), (1, 60, 1)):
        y = layer(x[:60].reshape(*lead, 40))
        assert y.shape == (*lead, 65) and bits(y) == bits(want)
    assert bits(layer(x[0])) == bits(want[0]) and layer(x[0]).shape == (65,)
    for lead in ((0,), (2, 0), (0, 3)):
        y = layer(torch.empty(*lead, 40))
        assert y.shape == (*lead, 65) and y.dtype == torch.float32
    strided = torch.empty(60, 80)[:, ::2].copy_(x[:60])
    transposed = x[:60].T.contiguous().T
    expanded = x[:1].expand(60, 40)
    assert not strided.is_contiguous() and not transposed.is_contiguous()
    assert bits(layer(strided)) == bits(layer(transposed)) == bits(want)
    assert bits(layer(expanded)) == bits(want[:1].repeat(60, 1))
    unaligned = torch.frombuffer(bytearray(4 + 60 * 160), dtype=torch.float32)[1:].view(60, 40)
    assert bits(layer(unaligned.copy_(x[:60]))) == bits(want)


@activations
def test_no_bias(int8: bool, isa: str) -> None:
    for name in WEIGHTS:
        q, _, x = case(name, 65, 40)
        layer = layer_of(q, None, int8)
        assert layer.bias is None and "bias=False" in repr(layer)
        same(layer(x), product(x, q, None, int8, torch.float32))


@pytest.mark.parametrize("shape", [(), (39,), (2, 41), (40, 2)], ids=str)
def test_inputs_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(40, 3), "INT4_Group_32")
    with pytest.raises(UserError, match=r"x has shape \(.*\); \(\.\.\., 40\) is wanted"):
        layer(torch.zeros(shape))


def test_inputs_of_a_wrong_dtype() -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(40, 3), "INT4_Group_32")
    for dtype in (torch.float64, torch.int32, torch.complex64):
        with pytest.raises(TypeError, match="one of float32, float16, bfloat16 is wanted"):
            layer(torch.zeros(2, 40, dtype=dtype))
    with pytest.raises(UserError, match="a dense tensor on the CPU or a CUDA device is wanted"):
        layer(torch.zeros(2, 40, device="meta"))


# ---- as a module ---------------------------------------------------------------------------------


@pytest.fixture
def fc() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(130, 65)


def test_from_linear(fc: nn.Linear, config: vq.QuantizationConfig) -> None:
    layer = QuantizedLinear.from_linear(fc, config)
    q = vq.quantize(fc.weight.detach(), config.spec(config.bits))
    assert (layer.in_features, layer.out_features, layer.config) == (130, 65, config)
    assert layer.bias is fc.bias
    assert bits(layer.weight) == bits(q.dequantize()) and layer.weight.shape == fc.weight.shape
    for part in ("packed", "stored_scale", "factor", "stored_zero"):  # the inverse of packing
        np.testing.assert_array_equal(getattr(layer.qtensor(), part), getattr(q, part))
    assert config.name in repr(layer) and "in_features=130, out_features=65" in repr(layer)
    x = torch.randn(5, 130)
    want = product(x, q, fc.bias, config.quantize_activations, torch.float32)
    with torch.no_grad():
        same(layer(x), want)
    noise = (layer(x) - fc(x)).norm() / fc(x).norm()
    assert noise < (0.2 if config.bits == 4 else 0.02)


def test_the_packed_weight_is_the_only_copy(fc: nn.Linear, config: vq.QuantizationConfig) -> None:
    layer = QuantizedLinear.from_linear(fc, config)
    held = {name: t for name, t in vars(layer).items() if isinstance(t, torch.Tensor | np.ndarray)}
    assert not held and [name for name, _ in layer.named_buffers()] == ["packed"]
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    # 64 outputs a panel and 8 inputs a step, the last ones padded
    panels, depth, groups = 2, 136, -(-130 // config.group_size)
    codes = 64 * depth * config.bits // 8
    scales = 64 * 4 + 64 * groups * (config.bits == 4) + 64 * (not config.symmetric)
    assert layer.packed.numel() == 64 + panels * (codes + scales)
    assert layer.nbytes == layer.packed.numel() + 65 * 4


def test_the_weight_is_read_only(fc: nn.Linear) -> None:
    layer = QuantizedLinear.from_linear(fc, "INT4_Group_32")
    with pytest.raises(RuntimeError, match="cannot be written"):
        layer.weight = torch.zeros(65, 130)
    with pytest.raises(RuntimeError, match="cannot be written"):
        layer.weight = nn.Parameter(torch.zeros(65, 130))
    before = bits(layer.weight)
    with pytest.raises(RuntimeError, match="cannot be written"):
        layer.weight.zero_()
    assert bits(layer.weight) == before


@pytest.mark.parametrize("strict", [True, False])
def test_state_dict_round_trip(fc: nn.Linear, config: vq.QuantizationConfig, strict: bool) -> None:
    one = nn.Sequential(QuantizedLinear.from_linear(fc, config))
    other = nn.Sequential(QuantizedLinear.from_linear(nn.Linear(130, 65), config))
    state = one.state_dict()
    assert {"0.bias", "0.weight_codes", "0.weight_scale"} <= set(state) and "0.packed" not in state
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded = other.load_state_dict(torch.load(buffer, weights_only=True), strict=strict)
    assert loaded.missing_keys == loaded.unexpected_keys == []
    x = torch.randn(7, 130)
    assert bits(other[0].packed) == bits(one[0].packed) and bits(other(x)) == bits(one(x))


def test_state_dict_says_whether_scales_have_two_levels(fc: nn.Linear) -> None:
    config = vq.CONFIGS["INT4_Group_32"]
    floats = QuantizedLinear(vq.quantize(fc.weight.detach(), FLOAT_GROUPS), fc.bias, config)
    layer = QuantizedLinear.from_linear(fc, config)
    assert layer.spec.two_level and "weight_factor" in layer.state_dict()
    layer.load_state_dict(floats.state_dict())
    assert not layer.spec.two_level and bits(layer.weight) == bits(floats.weight)


def test_state_dict_missing_parts(fc: nn.Linear) -> None:
    layer = QuantizedLinear.from_linear(fc, "INT8_Per_Channel_Symmetric")
    before = bits(layer.packed)
    loaded = layer.load_state_dict({}, strict=False)
    assert set(loaded.missing_keys) == {"bias", "weight_codes", "weight_scale"}
    with pytest.raises(RuntimeError, match="Missing key.*weight_codes"):
        layer.load_state_dict({})
    with pytest.raises(RuntimeError, match="0: a float weight is given"):
        nn.Sequential(layer).load_state_dict(nn.Sequential(fc).state_dict())
    with pytest.raises(RuntimeError, match="Missing.*weight.*"):
        fc.load_state_dict(layer.state_dict())
    assert bits(layer.packed) == before


@pytest.mark.parametrize(
    "saved, wanted",
    [
        ("INT8_Per_Channel_Symmetric", "INT4_Group_32"),
        ("INT4_Group_32", "INT8_Per_Channel_Symmetric"),
        ("INT4_Group_32", "INT4_Group_64"),
        ("INT8_Per_Tensor_Symmetric", "INT8_Per_Channel_Symmetric"),
        ("INT8_Per_Channel_Asymmetric", "INT8_Per_Channel_Symmetric"),
        ("INT8_Per_Channel_Symmetric", "INT8_Per_Channel_Asymmetric"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_state_dicts_of_other_schemes_are_refused(
    fc: nn.Linear, saved: str, wanted: str, strict: bool
) -> None:
    layer = nn.Sequential(QuantizedLinear.from_linear(fc, wanted))
    before = bits(layer[0].packed)
    state = nn.Sequential(QuantizedLinear.from_linear(fc, saved)).state_dict()
    with pytest.raises(
        RuntimeError, match=r"0: (the arrays' sizes|weight_(zero_point|factor) does not fit)"
    ):
        layer.load_state_dict(state, strict=strict)
    assert bits(layer[0].packed) == before


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("weight_scale", np.nan, "positive and finite"),
        ("weight_scale", 0.0, "positive and finite"),
        ("weight_factor", 0, r"weight_factor must lie in 1\.\.15"),
        ("weight_factor", 16, r"weight_factor must lie in 1\.\.15"),
    ],
)
def test_state_dicts_with_impossible_values_are_refused(
    fc: nn.Linear, key: str, value: float, message: str
) -> None:
    layer = QuantizedLinear.from_linear(fc, "INT4_Group_32")
    state = layer.state_dict()
    state[key][-1] = value
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    state = layer.state_dict()
    state["weight_codes"] = state["weight_codes"].to(torch.int16)
    with pytest.raises(RuntimeError, match="weight_codes is torch.int16; torch.uint8 is wanted"):
        layer.load_state_dict(state)


def test_plain_and_a8_share_their_state(fc: nn.Linear) -> None:
    plain = QuantizedLinear.from_linear(fc, "INT4_Group_64")
    fast = QuantizedLinear.from_linear(nn.Linear(130, 65), "INT4_Group_64_A8")
    fast.load_state_dict(plain.state_dict())
    assert bits(fast.weight) == bits(plain.weight)


def test_copies_and_pickles(fc: nn.Linear, config: vq.QuantizationConfig) -> None:
    layer = QuantizedLinear.from_linear(fc, config)
    x = torch.randn(3, 130)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert other.packed.data_ptr() != layer.packed.data_ptr()
        assert bits(other(x)) == bits(layer(x)) and other.config == config


def test_dtype_changes_leave_the_packed_bytes(fc: nn.Linear) -> None:
    layer = QuantizedLinear.from_linear(fc, "INT4_Group_32")
    before = bits(layer.packed)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        layer.to(dtype)
        assert bits(layer.packed) == before and layer.bias.dtype == dtype
        layer(torch.zeros(2, 130))


@activations
def test_gradients_of_input_and_bias(fc: nn.Linear, int8: bool) -> None:
    """Forward gives the same bits, in-place operations work, and the codes are constants."""
    layer = QuantizedLinear.from_linear(fc, config_for(int8))
    for x in (torch.randn(2, 3, 130), torch.randn(2, 3, 130, requires_grad=True), torch.randn(130)):
        with torch.inference_mode():
            want = layer(x).clone()
        y = layer(x)
        assert y.requires_grad and bits(y) == bits(want)
        assert bits(nn.ReLU(inplace=True)(layer(x))) == bits(want.relu())
        y += 1
        layer.zero_grad()
        slope = torch.randn(y.shape)
        y.backward(slope)
        rows = slope.reshape(-1, layer.out_features)
        torch.testing.assert_close(layer.bias.grad, rows.sum(0))
        if x.requires_grad:
            decoded = layer.qtensor().dequantize()
            torch.testing.assert_close(x.grad, slope @ decoded, rtol=1e-4, atol=1e-5)
    layer.requires_grad_(False)
    assert not layer(torch.randn(2, 130)).requires_grad
    with torch.inference_mode():
        assert layer(torch.randn(2, 130)).is_inference()


def test_the_weight_of_a_gradient_is_decoded_panel_by_panel(
    config: vq.QuantizationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(72, 37), config)
    x = torch.randn(5, 72, requires_grad=True)
    largest = []
    decode = ops.dequantize

    def watched(bits: int, shape: ops.Shape, *rest: Any) -> Any:
        largest.append(shape.rows)
        return decode(bits, shape, *rest)

    monkeypatch.setattr(ops.products, "PANEL", 16)
    monkeypatch.setattr(ops.products, "dequantize", watched)
    layer(x).sum().backward()
    assert largest == [16, 16, 5]
    torch.testing.assert_close(x.grad, layer.qtensor().dequantize().sum(0).expand(5, -1))


def test_hooks_and_modes(fc: nn.Linear) -> None:
    layer = QuantizedLinear.from_linear(fc, "INT4_Group_32")
    seen: list[Any] = []
    layer.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    layer.eval()(torch.zeros(2, 130))
    layer.train()(torch.zeros(3, 130))
    assert seen == [(2, 65), (3, 65)]


# ---- refused -------------------------------------------------------------------------------------


def test_rows_too_deep_for_32_bits() -> None:
    assert QuantizedLinear.from_linear(nn.Linear(65536, 1), "INT4_Group_128").in_features == 65536
    for config in ("INT4_Group_128", "INT8_Per_Channel_Symmetric_A8"):
        with pytest.raises(UserError, match="rows of 65537 is given; 65536 inputs are the most"):
            QuantizedLinear.from_linear(nn.Linear(65537, 1), config)


def test_weights_that_are_none() -> None:
    config = vq.CONFIGS["INT8_Per_Channel_Symmetric"]
    for shape in ((3,), (2, 3, 4), (0, 4), (4, 0)):
        with pytest.raises(
            UserError, match=r"a weight of shape .* is given; \(out, in\), not empty"
        ):
            QuantizedLinear(vq.quantize(np.zeros(shape, F32), config), None, config)
    with pytest.raises(UserError, match="Baseline_FP32 quantizes nothing"):
        QuantizedLinear.from_linear(nn.Linear(3, 3), "Baseline_FP32")
    broken = nn.Linear(3, 3)
    with torch.no_grad():
        broken.weight[1, 1] = torch.nan
    with pytest.raises(UserError, match="1 values are NaN or infinite"):
        QuantizedLinear.from_linear(broken, config)


def headers(packed: torch.Tensor) -> Iterator[torch.Tensor]:
    """Packed bytes with one byte of the header changed."""
    for at in range(48):
        for change in (1, 0x80, 0xFF):
            broken = packed.clone()
            broken[at] ^= change
            yield broken


@pytest.mark.parametrize("name", ["INT8_Per_Channel_Asymmetric", "INT4_Group_32", "float_groups"])
def test_corrupted_headers_never_crash(name: str, isa: str) -> None:
    q, bias, x = case(name, 65, 40)
    layer = layer_of(q, bias, True)
    whole, refused = layer.packed, 0
    for broken in headers(whole):
        layer.packed = broken
        try:
            y = layer(x)
        except (ValueError, MemoryError):
            refused += 1
        else:  # a change within the padding of n or k, or of "asymmetric", is another valid weight
            assert y.shape == (70, 65)
    assert refused > 100


def test_truncated_packed_bytes_are_refused() -> None:
    q, bias, x = case("INT4_Group_32", 65, 40)
    layer = layer_of(q, bias, True)
    whole = layer.packed
    for length in (0, 1, 8, 63, 64, len(whole) // 2, len(whole) - 1):
        layer.packed = whole[:length].clone()
        with pytest.raises(ValueError, match="packed weights"):
            layer(x)
        with pytest.raises(ValueError, match="packed weights"):
            layer.weight.clone()
    layer.packed = torch.cat([whole, whole[:1]])
    with pytest.raises(ValueError, match="packed weights"):
        layer(x)


def test_packed_bytes_of_another_version_are_refused() -> None:
    q, bias, x = case("INT8_Per_Channel_Symmetric", 65, 40)
    layer = layer_of(q, bias, True)
    for at in (7, 20, 63):  # the version, the columns of a panel, what no version has used
        layer.packed[at] ^= 1
        with pytest.raises(ValueError, match="of another version or layout; pack the weight again"):
            layer(x)
        layer.packed[at] ^= 1
    layer(x)


@activations
def test_packed_bytes_of_another_shape_are_refused(int8: bool) -> None:
    """Also where the numbers of elements happen to fit: half the tokens, twice as long."""
    layer = layer_of(case("INT4_Group_32", 65, 40)[0], None, int8)
    for n, k in ((130, 80), (65, 80), (130, 40), (64, 40)):
        layer.packed = layer_of(case("INT4_Group_32", n, k)[0], None, int8).packed
        wanted = rf"y \(4, 65\) are given; \(m, {k}\) and \(m, {n}\) are wanted"
        with pytest.raises(ValueError, match=wanted):
            layer(torch.ones(4, 40))


# ---- what surrounds a product --------------------------------------------------------------------


AROUND = [
    {},
    {"norm": True},
    {"norm": True, "bias": False},
    {"layer_scale": True},
    {"residual": True},
    {"norm": True, "layer_scale": True, "residual": True},
]


@pytest.mark.parametrize("around", AROUND, ids=lambda a: "-".join(a) or "nothing")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@activations
@on_every_isa
def test_around_a_product(
    around: dict[str, bool], dtype: torch.dtype, int8: bool, isa: str
) -> None:
    """LayerNorm before, LayerScale and residual after: the reference's bits."""
    q, bias, tokens = case("INT8_Per_Channel_Symmetric", 65, 130)
    layer = layer_of(q, bias, int8)
    generator = torch.Generator().manual_seed(1)
    weight, shift, scale = (torch.randn(n, generator=generator) for n in (130, 130, 65))
    x = (3 * tokens[:9] + 1).to(dtype)
    residual = torch.randn((9, 65), generator=generator).to(dtype)
    rows = x
    norm = None
    if around.get("norm"):
        norm = ops.Norm(weight, shift if around.get("bias", True) else None, 1e-5)
        added = None if norm.bias is None else norm.bias.numpy()
        rows = torch.from_numpy(
            reference.layer_norm(reference.widen(x), weight.numpy(), added, 1e-5)
        )
        exact = torch.nn.functional.layer_norm(
            x.double(), (130,), weight.double(), None if added is None else shift.double(), 1e-5
        )
        torch.testing.assert_close(rows.double(), exact, rtol=0, atol=1e-5)
    if int8:
        want = reference.linear_int(reference.widen(rows), coded(q), bias.numpy())
    elif dtype == torch.bfloat16 and has_bf16():
        want = reference.linear_bf16(reference.widen(rows), coded(q), bias.numpy())
    else:
        want = reference.linear_float(
            reference.widen(rows), coded(q), bias.numpy(), isa != "scalar"
        )
    if around.get("layer_scale"):
        want = want * scale.numpy()
    if around.get("residual"):
        want = want + reference.widen(residual)
    got = layer.fused(
        x,
        norm=norm,
        layer_scale=scale if around.get("layer_scale") else None,
        residual=residual if around.get("residual") else None,
    )
    same(got, reference.narrow(want, reference.dtype_name(torch.empty(0, dtype=dtype))))


@pytest.mark.parametrize("k", [1, 15, 16, 17, 64, 1000])
@on_every_isa
@with_any_threads
def test_layer_norm_of_any_width(k: int, isa: str, threads: int) -> None:
    generator = torch.Generator().manual_seed(k)
    layer = QuantizedLinear.from_linear(nn.Linear(k, 8), config_for(True)).requires_grad_(False)
    x = 10 * torch.randn((37, k), generator=generator) + 100
    weight, bias = torch.randn((2, k), generator=generator)
    rows = reference.layer_norm(x.numpy(), weight.numpy(), bias.numpy(), 1e-6)
    assert torch.equal(
        layer.fused(x, norm=ops.Norm(weight, bias, 1e-6)), layer(torch.from_numpy(rows))
    )


def test_layer_norm_of_what_is_not_finite(isa: str) -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(40, 8), config_for(True)).requires_grad_(False)
    x = torch.randn(4, 40)
    x[1, 3], x[2, 5] = math.inf, math.nan
    y = layer.fused(x, norm=ops.Norm(torch.ones(40), None, 1e-5))
    assert y[1:3].isnan().all() and y[[0, 3]].isfinite().all()


def test_gelu_has_the_same_bits_on_every_instruction_set() -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(40, 77), config_for(True)).requires_grad_(False)
    x = torch.cat([torch.randn(50, 40) * 10.0**e for e in range(-8, 5)])
    before = vq.isa()
    found = []
    for isa in vq.isas():
        vq.use_isa(isa)
        found.append(bits(layer.fused(x, gelu=True)))
    vq.use_isa(before)
    assert len(set(found)) == 1
    want = torch.nn.functional.gelu(layer(x).double())
    torch.testing.assert_close(layer.fused(x, gelu=True).double(), want, rtol=3e-7, atol=3e-7)


def test_settled_weights_are_the_same_bits_in_memory_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(64, n) for n in (200, 64, 8)))
    layers = [
        QuantizedLinear.from_linear(layer, "INT8_Per_Channel_Symmetric_A8") for layer in model
    ]
    quantized = torch.nn.Sequential(*layers)
    before = [layer.packed for layer in layers]
    linear.settle(quantized)
    assert all(layer.packed is old for layer, old in zip(layers, before, strict=True))
    monkeypatch.setattr(linear, "SETTLED", 0)
    monkeypatch.setattr(ops.buffers, "_CHUNK", before[0].nbytes)
    linear.settle(quantized)
    for layer, old in zip(layers, before, strict=True):
        assert layer.packed is not old
        assert torch.equal(layer.packed, old)
        assert layer.packed.untyped_storage().nbytes() == old.nbytes
    x = torch.randn(3, 64)
    copied = pickle.loads(pickle.dumps(layers[0]))
    assert torch.equal(copied(x), layers[0](x))
