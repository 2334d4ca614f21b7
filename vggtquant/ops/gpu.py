# SPDX-License-Identifier: Apache-2.0
"""The parts of a Linear on a GPU, for the engines of gpu_linear."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..errors import UserError
from . import native
from .native import Activations
from .records import Norm, Packed, format_word


def check_gpu_call(activations: Activations, x: torch.Tensor, *others: torch.Tensor | None) -> None:
    """UserError for 16-bit activations, tensors on several devices, a build without kernels."""
    if activations == "int16":
        raise UserError("activation_bits=16 is not served on a GPU; 8 is")
    device = x.device
    for other in others:
        if other is not None and other.device != device:
            both = " and ".join(sorted((str(other.device), str(device))))
            raise UserError(f"arrays on {both} are given; one is wanted")
    if native.cuda is None:
        raise UserError(f"tensors on {device} are given, but {native.cuda_missing()}")


def _weight(about: Packed) -> tuple[Any, ...]:
    nkg = (about.n, about.k, about.group)
    return (format_word(about.bits), about.scales, nkg, about.asymmetric)


@functools.lru_cache(1024)
def gpu_linear_nbytes(about: Packed, activations: Activations, m: int) -> int:
    """Bytes of scratch that gpu_linear and its parts want for m tokens."""
    return int(_module().linear_nbytes(_weight(about), activations, m))


@functools.lru_cache(1024)
def gpu_depth(about: Packed) -> int:
    """Inputs of a packed row, padding included."""
    return int(_module().depth(_weight(about)))


class GpuProduct(NamedTuple):
    """Operands of a product on a GPU, contiguous, as `linear` has them; y is written."""

    about: Packed
    packed: torch.Tensor
    x: torch.Tensor
    norm: Norm | None
    bias: torch.Tensor | None
    gelu: bool
    layer_scale: torch.Tensor | None
    residual: torch.Tensor | None
    y: torch.Tensor

    def described(self) -> tuple[Any, ...]:
        """As native.cuda wants it."""
        weight, bias, eps = self.norm or (None, None, 0.0)
        return (
            _weight(self.about),
            native.described(self.packed),
            native.described(self.x),
            (native.described(weight), native.described(bias), eps),
            native.described(self.bias),
            self.gelu,
            native.described(self.layer_scale),
            native.described(self.residual),
            native.described(self.y),
        )


def gpu_linear(product: GpuProduct, activations: Activations, scratch: torch.Tensor) -> None:
    """All parts at once; contracts in csrc/vgq_cuda.h, of the rest too."""
    _queue("linear", scratch, product.described(), activations, native.described(scratch))


def gpu_code_tokens(product: GpuProduct, scratch: torch.Tensor) -> None:
    """Codes, scales and sums of the tokens, normalized where the product says so, to scratch."""
    _queue("code_tokens", scratch, product.described(), native.described(scratch))


def gpu_code_float8(
    x: torch.Tensor, norm: Norm | None, codes: torch.Tensor, scale: torch.Tensor
) -> None:
    """FP8 codes of tokens (m, k), normalized where there is a norm, as bytes (m, depth), zeros from
    k on, and their scales, float32 (m, 1)."""
    weight, bias, eps = norm or (None, None, 0.0)
    described = (native.described(weight), native.described(bias), eps)
    rest = map(native.described, (codes, scale))
    _queue("code_float8", x, native.described(x), described, *rest)


def gpu_finish(product: GpuProduct, sums: torch.Tensor, scratch: torch.Tensor) -> None:
    """y from the sums of integers, int32 (m, n), and the tokens' scales."""
    rest = map(native.described, (sums, scratch))
    _queue("finish", scratch, product.described(), *rest)


def gpu_integers(about: Packed, packed: torch.Tensor, integers: torch.Tensor) -> None:
    """The weight's integers, int8 (n, gpu_depth)."""
    _queue("integers", packed, _weight(about), *map(native.described, (packed, integers)))


def gpu_decode(about: Packed, packed: torch.Tensor, weight: torch.Tensor) -> None:
    """The weight's values (n, k), rounded once."""
    _queue("decode", packed, _weight(about), *map(native.described, (packed, weight)))


def _module() -> ModuleType:
    assert native.cuda is not None  # check_gpu_call
    return native.cuda


def _queue(name: str, where: torch.Tensor, *args: Any) -> None:
    """A call on the device of `where`, on which check_gpu_call has found all tensors."""
    native.queue(getattr(_module(), name), args, where.device)
