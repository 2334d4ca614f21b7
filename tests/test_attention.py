# SPDX-License-Identifier: Apache-2.0
"""Attention: INT8 against tests/reference.py bit for bit, on every instruction set and with any
number of threads; the other modes against float64."""

import math

import numpy as np
import pytest
import reference
import torch
from everywhere import on_every_isa, using_isa
from torch.nn import functional as F

import vggtquant as vq
from vggtquant import ops
from vggtquant.errors import UserError

# Relative L2 errors on rows of a normal distribution, whose softmax is broad.
BOUNDS = {("float", "float"): 1e-6, ("bf16", "bf16"): 6e-3, ("int8", "bf16"): 0.011}
BOUNDS |= {("int8", "float"): 0.011, ("int8", "int8"): 0.016, ("float", "int8"): 0.012}
TOKENS = [1, 2, 5, 15, 16, 17, 63, 64, 65, 70, 255, 256, 257, 300, 513, 1025]
INT8 = {"mode": "int8", "pv": "int8"}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(qkv: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2).double() for x in qkv.unbind(2))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def error(y: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((y.double() - wanted).norm() / wanted.norm())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """NaN equals NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def referenced(qkv: torch.Tensor, q_norm=None, k_norm=None, rope=None, scale=None) -> torch.Tensor:
    dim = qkv.shape[-1]
    heads = []
    for x in qkv.permute(0, 3, 2, 1, 4).flatten(0, 1).float().numpy():
        q, k = reference.prepare(x[0], q_norm, rope), reference.prepare(x[1], k_norm, rope)
        heads.append(reference.attention_int8(q, k, x[2], scale or dim**-0.5))
    y = torch.from_numpy(np.stack(heads)).unflatten(0, (qkv.shape[0], qkv.shape[3]))
    return y.transpose(1, 2).flatten(2)


def on_scalar(qkv: torch.Tensor, **options: object) -> torch.Tensor:
    with using_isa("scalar"):
        return ops.attention(qkv, **options)


def dressing(dim: int, rows: int) -> dict[str, object]:
    """LayerNorms, one of them without a bias, and angles."""
    angle = random(rows, dim, seed=4) * 3
    return {
        "q_norm": ops.Norm(random(dim, seed=1).abs() + 0.5, random(dim, seed=2)),
        "k_norm": ops.Norm(random(dim, seed=3).abs() + 0.5, None, 1e-6),
        "cos": angle.cos(),
        "sin": angle.sin(),
    }


@pytest.mark.parametrize("tokens, dim", [(1, 64), (5, 32), (70, 64), (300, 64), (517, 96)])
@pytest.mark.parametrize("mode, pv", BOUNDS)
@on_every_isa
def test_close_to_float64(isa: str, tokens: int, dim: int, mode: str, pv: str) -> None:
    qkv = random(2, tokens, 3, 3, dim, seed=tokens)
    assert error(ops.attention(qkv, mode=mode, pv=pv), exact(qkv)) < BOUNDS[mode, pv]


@pytest.mark.parametrize("tokens, dim", [(1, 8), (7, 64), (70, 40), (257, 64), (600, 96)])
def test_the_reference_has_the_same_bits(tokens: int, dim: int) -> None:
    qkv = random(1, tokens, 3, 2, dim, seed=tokens) * 3
    assert same_bits(on_scalar(qkv, **INT8), referenced(qkv))


@pytest.mark.parametrize("width", [32, 64])
def test_norms_and_rotation_have_the_reference_s_bits(isa: str, width: int) -> None:
    qkv = random(2, 90, 3, 2, 64)
    options = dressing(64, 45)
    q_norm, k_norm = options["q_norm"], options["k_norm"]
    rope = options["cos"].numpy(), options["sin"].numpy(), width
    wanted = referenced(
        qkv,
        (q_norm.weight.numpy(), q_norm.bias.numpy(), q_norm.eps),
        (k_norm.weight.numpy(), None, k_norm.eps),
        rope,
        0.2,
    )
    got = ops.attention(qkv, **INT8, **options, rope_width=width, scale=0.2)
    assert same_bits(got, wanted)


@pytest.mark.parametrize("tokens", TOKENS)
def test_every_instruction_set_has_the_same_bits(tokens: int) -> None:
    for dim in (64, 80):
        qkv = random(1, tokens, 3, 1, dim, seed=tokens) * 2
        for options in ({}, dressing(dim, tokens)):
            wanted = on_scalar(qkv, **INT8, **options)
            for isa in vq.isas():
                with using_isa(isa):
                    got = ops.attention(qkv, **INT8, **options)
                assert same_bits(got, wanted), (isa, dim, sorted(options))


def test_threads_change_nothing(isa: str, threads: int) -> None:
    qkv = random(1, 700, 3, 2, 64)
    for mode in ("float", "bf16", "int8"):
        y = ops.attention(qkv, mode=mode)
        ops.set_threads(1)
        one = ops.attention(qkv, mode=mode)
        ops.set_threads(0)
        assert torch.equal(y, one)


def extremes() -> dict[str, torch.Tensor]:
    plain = random(1, 300, 3, 1, 64)
    far, above, tiny, large, one = (plain.clone() for _ in range(5))
    far[:, :, 0] *= 1e6  # scores beyond 2^21
    above[:, 5, 1] *= 1e6  # one key far above
    tiny *= 1e-39  # denormals
    large[:, :, 1:] *= 1e28
    one[:, :, :2] = 0.0
    one[:, 7, 0], one[:, 9, 1] = 100.0, 100.0  # a score of 64,000 beside zeros
    return {
        "equal scores": torch.ones(1, 300, 3, 1, 64),
        "zeros": torch.zeros(1, 300, 3, 1, 64),
        "far": far,
        "one key above": above,
        "denormals": tiny,
        "large": large,
        "one score above": one,
        "sharp": plain * 30,
    }


@pytest.mark.parametrize("name", extremes())
def test_extreme_inputs(name: str) -> None:
    qkv = extremes()[name]
    wanted = on_scalar(qkv, **INT8)
    assert wanted.isfinite().all()
    for isa in vq.isas():
        with using_isa(isa):
            assert same_bits(ops.attention(qkv, **INT8), wanted), isa
            for mode in ("float", "bf16"):
                assert ops.attention(qkv, mode=mode).isfinite().all(), (isa, mode)


def test_extreme_inputs_have_the_reference_s_bits() -> None:
    for name, qkv in extremes().items():
        assert same_bits(on_scalar(qkv, **INT8), referenced(qkv)), name


def test_equal_scores_are_a_mean(isa: str) -> None:
    qkv = random(1, 300, 3, 1, 64)
    qkv[:, :, :2] = 0.5
    mean = qkv[:, :, 2, 0].double().mean(1)
    for mode in ("float", "int8"):
        y = ops.attention(qkv, mode=mode)
        assert (y == y[:, :1]).all()
        assert (y[:, 0] - mean).abs().max() < (1e-6 if mode == "float" else 4e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["float", "bf16", "int8"])
@on_every_isa
def test_what_is_not_finite_becomes_nan(isa: str, mode: str, value: float) -> None:
    for part in range(3):
        qkv = random(2, 300, 3, 2, 64)
        qkv[1, 270, part, 1, 3] = value
        y = ops.attention(qkv, mode=mode).unflatten(2, (2, 64))
        bad = torch.zeros(2, 300, 2, 64, dtype=torch.bool)
        bad[1, 270 if part == 0 else slice(None), 1] = True
        assert torch.equal(y.isnan(), bad)


@pytest.mark.parametrize("tokens", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["float", "bf16", "int8"])
def test_long_rows_lose_nothing(mode: str, tokens: int) -> None:
    """Keys of equal scores: the mean, though each weighs 1e-5 of the sum."""
    qkv = torch.zeros(1, tokens, 3, 1, 8)
    qkv[:, :, 2] = random(1, tokens, 1, 8) + 1
    y = ops.attention(qkv, mode=mode)
    wanted = qkv[0, :, 2, 0].double().mean(0)
    assert (y == y[:, :1]).all()
    assert (y[0, 0] - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strides_and_dtypes(isa: str, dtype: torch.dtype) -> None:
    """A view of a larger tensor, and short floats, which are widened exactly."""
    whole = random(2, 40, 3, 4, 72).to(dtype)
    part = whole[:, 3:30, :, 1:3, 8:]
    y = ops.attention(part, **INT8, dtype=torch.float32)
    assert torch.equal(y, ops.attention(part.float().contiguous(), **INT8))
    assert torch.equal(ops.attention(part, **INT8), y.to(dtype))
    turned = part.transpose(1, 4)  # (2, 64, 3, 2, 27) with tokens last: copied, then not served
    with pytest.raises(UserError, match="27 channels"):
        ops.attention(turned)
    swapped = part.float().permute(0, 4, 2, 3, 1).contiguous().permute(0, 4, 2, 3, 1)
    assert torch.equal(ops.attention(swapped, **INT8), y)


def test_nothing() -> None:
    for shape in ((0, 5, 3, 2, 32), (1, 0, 3, 2, 32), (1, 5, 3, 0, 32)):
        assert ops.attention(torch.ones(shape), mode="int8").numel() == 0


def test_wrong_arguments() -> None:
    x = torch.ones(1, 4, 3, 1, 32)
    with pytest.raises(UserError, match="shape"):
        ops.attention(torch.ones(1, 4, 2, 1, 32))
    with pytest.raises(UserError, match="multiple of 8"):
        ops.attention(torch.ones(1, 4, 3, 1, 36))
    with pytest.raises(UserError, match="rope_width 12"):
        ops.attention(x, cos=x[0, :, 0, 0], sin=x[0, :, 0, 0], rope_width=12)
    with pytest.raises(UserError, match="scale -1"):
        ops.attention(x, scale=-1.0)
    with pytest.raises(ValueError, match="sizes"):
        ops.attention(x, cos=torch.ones(4, 32))
    with pytest.raises(ValueError, match="sizes"):
        ops.attention(x, q_norm=ops.Norm(torch.ones(31)))
    with pytest.raises(ValueError, match="unknown kind"):
        ops.attention(x, mode="int4")
    with pytest.raises(ValueError):
        ops.attention(x, mode="int16")
    with pytest.raises(TypeError):
        ops.attention(x.double())


def test_the_name_says_what_multiplies(isa: str) -> None:
    weaker = "avxvnni" if "avxvnni" in vq.isas() else "avx2"
    where = {"avx512": weaker, "avx512bf16": "avx512vnni"}.get(isa, isa)
    wanted = f"attention, int8 ({where}) and int8 ({where})"
    assert ops.attention_kernel_name("int8", "int8") == wanted
    kind = "bf16" if isa == "amx" else "float"
    assert ops.attention_kernel_name("bf16", "float").startswith(f"attention, {kind} (")
