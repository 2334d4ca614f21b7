# SPDX-License-Identifier: Apache-2.0
"""Every scheme on a device beside the scalar kernels of the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import torch
from torch import nn

from .. import devices, engines, gpu_linear, ops
from ..configs import CONFIGS, QuantizationConfig
from ..errors import UserError
from ..linear import QuantizedLinear
from ..ops import float8
from ..qtensor import quantize
from .findings import Check, Product

RAGGED = (
    *(Product(1, 64, 64), Product(3, 130, 65), Product(9, 40, 200), Product(33, 136, 72)),
    *(Product(131, 328, 200), Product(1374, 256, 192)),
)
"""Sizes of the comparison: no multiples of a block, few tokens and many."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BOUND = {"float32": 1e-4, "bfloat16": 4e-2}
"""Largest error of float activations, as a share of the output's largest magnitude. Integer
activations have none."""
UNCODED = 0.05
"""The same where an engine multiplies integer activations before they are coded."""
FLOAT8 = 0.01
"""The same of FP8 to float32, whose sums some tensor cores hold with fewer bits."""


@contextmanager
def _scalar() -> Iterator[None]:
    """The CPU's scalar kernels, the definition of right."""
    before = ops.isa()
    ops.use_isa("scalar")
    try:
        yield
    finally:
        ops.use_isa(before)


def layer_of(config: QuantizationConfig, size: Product) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(size.k * 1000 + size.n)
    plain = nn.Linear(size.k, size.n)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(size.n, size.k, generator=generator) / size.k**0.5)
    return QuantizedLinear.from_linear(plain, config).requires_grad_(False)


def tokens_of(size: Product, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size.m)
    return torch.randn(size.m, size.k, generator=generator).to(dtype)


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    if torch.equal(got, want):
        return 0.0
    largest = want.float().abs().max().clamp_min(1e-30)
    found = float((got.float() - want.float()).abs().max() / largest)
    return found if found == found else sys.float_info.max  # a NaN is as far as can be


def compare_product(
    config: QuantizationConfig,
    size: Product,
    dtype: str,
    device: torch.device,
    engine: str | None = None,
) -> Check:
    """A layer's output on the device beside the scalar one; engine: of a GPU."""
    bound = 0.0 if config.quantize_activations else BOUND[dtype]
    if config.is_float8:
        bound = max(BOUND[dtype], FLOAT8)
    elif config.quantize_activations and engine == "decode":
        bound = UNCODED
    about = ("product", config.name, list(size), dtype)
    try:
        layer, x = layer_of(config, size), tokens_of(size, DTYPES[dtype])
        with torch.inference_mode(), engines.use(engine):
            with _scalar():
                want = layer(x)
            layer.to(device)
            got = layer(x.to(device)).cpu()
    except (RuntimeError, UserError) as error:
        return Check(*about, None, None, bound, _line(error))
    return Check(*about, layer.last_kernel, _difference(got, want), bound)


def compare_codes(config: QuantizationConfig, size: Product, device: torch.device) -> Check:
    """A weight's codes and scales on the device beside the scalar ones."""
    about = ("codes", config.name, [size.n, size.k], "float32", None)
    generator = torch.Generator().manual_seed(size.n)
    weight = torch.randn(size.n, size.k, generator=generator)
    try:
        with _scalar():
            want = quantize(weight, config)
        got = quantize(weight.to(device), config).cpu()
    except (RuntimeError, UserError) as error:
        return Check(*about, None, 0.0, _line(error))
    same = got.spec == want.spec and all(
        (a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes())
        for a, b in (
            (getattr(got, name), getattr(want, name))
            for name in ("packed", "stored_scale", "factor", "stored_zero")
        )
    )
    return Check(*about, *((0.0, 0.0) if same else (None, 0.0, "codes or scales differ")))


def compare_tokens(
    config: QuantizationConfig, size: Product, dtype: str, device: torch.device
) -> Check:
    """Tokens' FP8 codes and scales from the GPU's kernel beside those of torch on the CPU."""
    about = ("tokens", config.name, [size.m, size.k], dtype, None)
    x, depth = tokens_of(size, DTYPES[dtype]), -(-size.k // float8.STEP) * float8.STEP
    codes, scale = float8.coded(x, None, depth)
    try:
        got, own = gpu_linear.code_float8(x.to(device), None, depth)
    except (RuntimeError, UserError) as error:
        return Check(*about, None, 0.0, _line(error))
    same = torch.equal(got.cpu().view(torch.uint8), codes.view(torch.uint8))
    if same and torch.equal(own.cpu(), scale):
        return Check(*about, 0.0, 0.0)
    return Check(*about, None, 0.0, "codes or scales differ")


def checks(device: torch.device, sizes: Sequence[Product], names: Sequence[str]) -> Iterator[Check]:
    """Every scheme at every size: codes, then products in both dtypes by every engine."""
    for name in names:
        config = CONFIGS[name]
        one_way = device == devices.CPU or config.is_float8
        ways: tuple[str | None, ...] = (None,) if one_way else gpu_linear.NAMES
        for size in sizes:
            if not config.quantize_activations or config.is_float8:
                yield compare_codes(config, size, device)
            if config.is_float8 and device != devices.CPU:
                yield from (compare_tokens(config, size, dtype, device) for dtype in DTYPES)
            for dtype, engine in product(DTYPES, ways):
                yield compare_product(config, size, dtype, device, engine)


def served(name: str, device: torch.device) -> bool:
    return not CONFIGS[name].is_float8 or float8.missing(device) is None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
