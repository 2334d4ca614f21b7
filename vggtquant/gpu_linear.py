# SPDX-License-Identifier: Apache-2.0
"""The Linear layer on a GPU: a table of engines, of which `engines` takes the fastest.

Engines whose sums are integers give the CPU's bits. `decode` rounds weights once to the dtype of
the output and multiplies as torch does; it serves every call but FP8's, so that a layer is never
much slower than torch's own. FP8 weights have one engine and are never decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from . import engines, ops
from .ops import float8

FEW_TOKENS = 8
"""Up to which packed weights are multiplied with floats as they are: then reading them is all."""
MOST_ROWS_NOT_SERVED = 16
"""torch._int_mm takes more rows than that, and outputs in eights."""


class Call(NamedTuple):
    """A product on a GPU: residual + layer_scale * gelu(norm(x) w^T + bias), each where it is
    given."""

    packed: torch.Tensor
    about: ops.Packed
    activations: ops.Activations
    x: torch.Tensor
    """(m, k), contiguous."""
    bias: torch.Tensor | None
    """float32."""
    dtype: torch.dtype
    gelu: bool = False
    norm: ops.Norm | None = None
    """Of float32, as the two below but for the residual, which has `dtype`."""
    layer_scale: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    @property
    def m(self) -> int:
        return self.x.shape[0]

    @property
    def key(self) -> tuple[Any, ...]:
        """What calls that share a choice have in common."""
        x = self.x
        dtypes, tokens = (x.dtype, self.dtype), engines.bucket(x.shape[0])
        around = self.gelu, self.norm is not None, self.residual is not None
        return self.about, self.activations, dtypes, around, tokens, x.device

    @property
    def kind(self) -> str:
        """The same in words, without the device."""
        about = self.about
        names = (str(dtype).removeprefix("torch.") for dtype in (self.x.dtype, self.dtype))
        return (
            f"{about.number} {about.scales}{' zero points' if about.asymmetric else ''} "
            f"{about.n} x {about.k} groups of {about.group}, {self.activations}, "
            f"{'norm, ' if self.norm else ''}{' to '.join(names)}, {'GELU, ' if self.gelu else ''}"
            f"{'' if self.residual is None else 'residual, '}"
            f"up to {engines.bucket(self.m)} tokens"
        )


class Engine(NamedTuple):
    """A way to compute a call."""

    name: str
    serves: Callable[[Call], bool]
    run: Callable[[Call], torch.Tensor]
    kernel: Callable[[Call], str]
    """What it multiplies, for a report."""


def _scratch(call: Call) -> torch.Tensor:
    nbytes = ops.gpu_linear_nbytes(call.about, call.activations, call.m)
    return torch.empty(nbytes, dtype=torch.uint8, device=call.x.device)


def _product(call: Call, x: torch.Tensor, norm: ops.Norm | None) -> ops.GpuProduct:
    return ops.GpuProduct(
        call.about,
        call.packed,
        x,
        norm,
        call.bias,
        call.gelu,
        call.layer_scale,
        call.residual,
        torch.empty((call.m, call.about.n), dtype=call.dtype, device=x.device),
    )


def _normalized(call: Call) -> torch.Tensor:
    """x behind the norm, in float32, by torch: for what does not code tokens; x without one."""
    if call.norm is None:
        return call.x
    weight, bias, eps = call.norm
    return F.layer_norm(call.x.float(), (call.about.k,), weight, bias, eps)


def _fused(call: Call) -> torch.Tensor:
    """Our kernels: codes of the tokens, behind the norm, then one product with all that follows in
    its end; or, for few tokens, floats by weights that are decoded in registers."""
    coded = call.activations == "int8"
    x, norm = (call.x, call.norm) if coded else (_normalized(call), None)
    product = _product(call, x, norm)
    ops.gpu_linear(product, call.activations, _scratch(call))
    return product.y


def _int_mm(call: Call) -> torch.Tensor:
    """cuBLASLt's INT8 product between our codes and what follows the sums."""
    product, scratch = _product(call, call.x, call.norm), _scratch(call)
    depth = ops.gpu_depth(call.about)
    integers = torch.empty((call.about.n, depth), dtype=torch.int8, device=call.x.device)
    ops.gpu_code_tokens(product, scratch)
    ops.gpu_integers(call.about, call.packed, integers)
    codes = scratch[: call.m * depth].view(torch.int8).view(call.m, depth)
    ops.gpu_finish(product, torch._int_mm(codes, integers.t()), scratch)
    return product.y


def _decode(call: Call) -> torch.Tensor:
    """Weights rounded once to the dtype of y, or of x where a residual is added, then torch's
    product; activations are not coded."""
    dtype = call.dtype if call.residual is None else call.x.dtype
    weight = torch.empty((call.about.n, call.about.k), dtype=dtype, device=call.x.device)
    ops.gpu_decode(call.about, call.packed, weight)
    bias = None if call.bias is None else call.bias.to(dtype)
    y = F.linear(_normalized(call).to(dtype), weight, bias)
    if call.gelu:
        y = F.gelu(y)
    if call.layer_scale is not None:
        y = y * call.layer_scale
    if call.residual is not None:
        y = y + call.residual
    return y.to(call.dtype)


def _packed(call: Call) -> str:
    return f"{call.activations} x {call.about.number}"


def _decoded(call: Call) -> str:
    return f"{str(call.dtype).removeprefix('torch.')} x {call.about.number} decoded"


def code_float8(
    x: torch.Tensor, norm: ops.Norm | None, depth: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As float8.coded, in one kernel; a norm by docs/conventions.md, as INT8 tokens have it."""
    codes = torch.empty((len(x), depth), dtype=torch.uint8, device=x.device)
    scale = torch.empty((len(x), 1), dtype=torch.float32, device=x.device)
    ops.gpu_code_float8(x, norm, codes, scale)
    return codes.view(float8.E4M3), scale


def _scaled_mm(call: Call) -> torch.Tensor:
    """FP8 tokens by FP8 weights, as torch multiplies them."""
    return float8.linear(
        call.packed,
        call.about,
        call.x,
        call.bias,
        call.dtype,
        norm=call.norm,
        gelu=call.gelu,
        layer_scale=call.layer_scale,
        residual=call.residual,
        code=code_float8,
    )


ENGINES = (
    Engine(
        "fused",
        lambda c: c.activations == "int8" or (c.m <= FEW_TOKENS and not c.about.is_float8),
        _fused,
        _packed,
    ),
    Engine(
        "int_mm",
        lambda c: (
            c.activations == "int8"
            and c.about.scales != "per_group"
            and c.m > MOST_ROWS_NOT_SERVED
            and c.about.n % 8 == 0
        ),
        _int_mm,
        _packed,
    ),
    Engine("decode", lambda c: not c.about.is_float8, _decode, _decoded),
    Engine("scaled_mm", lambda c: c.about.is_float8, _scaled_mm, _packed),
)
NAMES = tuple(engine.name for engine in ENGINES)
_BY_NAME = {engine.name: engine for engine in ENGINES}


def serving(call: Call) -> list[Engine]:
    """The engines that serve a call, in the table's order."""
    return [engine for engine in ENGINES if engine.serves(call)]


def chosen(call: Call) -> Engine:
    """The engine of a call: the one that is forced, where it serves; else the fastest.

    While a CUDA graph is captured nothing can be timed: of a kind that was not seen before, the
    first that serves is taken, and not kept.

    Raises:
        UserError: VGGTQUANT_ENGINE names no engine.
    """
    name = engines.checked(engines.forced(), NAMES)
    if name is not None:
        there = serving(call)
        return next((engine for engine in there if engine.name == name), there[0])
    key, device = call.key, call.x.device
    known = _BY_NAME.get(engines.CHOOSER.taken.get(key, ""))
    if known is not None and known.serves(call):
        return known
    there = serving(call)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return there[0]
    calls = {engine.name: functools.partial(engine.run, call) for engine in there}
    taken = engines.CHOOSER.choose(device, call.kind, calls)
    engines.CHOOSER.taken[key] = taken
    return _BY_NAME[taken]


def linear(call: Call) -> tuple[torch.Tensor, str]:
    """y (m, n) of call.dtype, and what made it.

    Raises:
        UserError: 16-bit activations; tensors on several devices; no kernels in this build.
    """
    norm = call.norm or (None, None)
    others = (call.packed, call.bias, *norm[:2], call.layer_scale, call.residual)
    ops.check_gpu_call(call.activations, call.x, *others)
    if call.about.is_float8:
        float8.check(call.x.device)
    engine = chosen(call) if call.m else serving(call)[-1]
    try:
        return engine.run(call), _name(engine, call)
    except torch.cuda.OutOfMemoryError:  # the first engine takes no copy of weights or sums
        first = serving(call)[0]
        if engines.forced() is not None or engine.name == first.name:
            raise
        return first.run(call), _name(first, call)
    except RuntimeError as error:
        if engines.forced() is not None or engine.name == serving(call)[-1].name:
            raise
        engines.CHOOSER.drop(call.x.device, call.kind, engine.name, error)
        last = serving(call)[-1]
        return last.run(call), _name(last, call)


def _name(engine: Engine, call: Call) -> str:
    return f"{engine.kernel(call)}, cuda {engine.name}"
