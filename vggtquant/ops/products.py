# SPDX-License-Identifier: Apache-2.0
"""Packed weights and the Linear on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError
from . import float8, native
from .buffers import Buffer, bits_of, floats, memory, moved, room, values
from .codes import dequantize
from .native import DEEPEST, Activations
from .records import Inputs, Norm, Packed, Shape, format_word, norm_parts, row_nbytes


def pack(
    about: Packed,
    q: Buffer,
    scale: Buffer,
    factor: Buffer | None,
    zero: Buffer | None,
    like: torch.Tensor | None = None,
) -> torch.Tensor:
    """The kernels' layout of a weight, as one uint8 tensor where `like` is (None: the CPU)."""
    if about.k > DEEPEST:
        raise UserError(f"a weight of rows of {about.k} is given; {DEEPEST} inputs are the most")
    if about.is_float8:
        return float8.pack(about, moved(q, None), moved(scale, None), like)
    cuda = "cuda_" if native.on_gpu(like) else ""
    nkg, scales, fmt = (about.n, about.k, about.group), about.scales, format_word(about.bits)
    packed = room(max(packed_nbytes(about, like), 1), torch.uint8)
    parts = (None if part is None else moved(part, None) for part in (q, scale, factor, zero))
    getattr(native.cpu, f"{cuda}pack")(fmt, scales, nkg, *parts, packed.numpy())
    return packed if like is None else packed.to(like.device)


def packed_nbytes(about: Packed, like: torch.Tensor | None = None) -> int:
    """Bytes of a packed INT8 or INT4 weight where `like` is (None: the CPU)."""
    cuda = "cuda_" if native.on_gpu(like) else ""
    nkg = (about.n, about.k, about.group)
    of_core = getattr(native.cpu, f"{cuda}packed_nbytes")
    return int(of_core(format_word(about.bits), about.scales, nkg, about.asymmetric))


def packed_weight(packed: torch.Tensor) -> Packed:
    """What the packed bytes say of themselves."""
    bits, scales, nkg, asymmetric = native.cpu.packed_weight(memory(packed))
    return Packed(bits, scales, *nkg, asymmetric)


def lies_for_cuda(packed: torch.Tensor) -> bool:
    """Whether packed bytes, on any device, are those of the CUDA kernels."""
    return bytes(packed[:8].cpu().numpy()) == b"vgqcuda2"


def unpack(
    packed: torch.Tensor, about: Packed
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Plain row-major codes, scales, factors and zero points: the inverse of pack."""
    if about.is_float8:
        return *float8.unpack(packed, about), None, None
    groups = 1 if about.scales == "per_row" else about.row_groups
    q = np.empty((about.n, row_nbytes(about.bits, about.k)), np.uint8)
    scale = np.empty(about.n * (groups if about.scales == "per_group" else 1), np.float32)
    factor = np.empty(about.n * groups, np.uint8) if about.scales == "two_level" else None
    zero = np.empty(about.n * groups, np.int8) if about.asymmetric else None
    of_core = native.cpu.cuda_unpack if lies_for_cuda(packed) else native.cpu.unpack
    of_core(packed.cpu().numpy(), q, scale, factor, zero)
    return q, scale, factor, zero


def fitted(packed: torch.Tensor, about: Packed, like: torch.Tensor) -> torch.Tensor:
    """Packed bytes as the kernels where `like` is want them; there, if laid out anew."""
    if about.is_float8 or lies_for_cuda(packed) == native.on_gpu(like):
        return packed
    return pack(about, *unpack(packed, about), like)


def linear(
    packed: torch.Tensor,
    about: Packed,
    activations: Activations,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    norm: Norm | None = None,
    inputs: Inputs | None = None,
    gelu: bool = False,
    layer_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = norm(x) w^T + bias, then GELU, a scale for each output and a residual, where given.

    x: (m, k) of one of the core's dtypes. norm: over k. inputs: for coded activations. bias,
    layer_scale: (n,). residual: (m, n) of `dtype`. Returns (m, n) of `dtype`, rounded once.
    docs/conventions.md: "Linear".

    Raises:
        UserError: tensors that are not on the CPU; gpu_linear is for a GPU's.
    """
    if activations == "float8":
        around = {"norm": norm, "gelu": gelu, "layer_scale": layer_scale, "residual": residual}
        return float8.linear(packed, about, x, bias, dtype, **around)  # type: ignore[arg-type]
    y = room((x.shape[0], about.n), dtype)
    before = None if residual is None else values(residual)
    native.cpu.linear(
        memory(packed),
        activations,
        values(x),
        norm_parts(norm),
        (None, None, 0.0)
        if inputs is None
        else (floats(inputs.weight), floats(inputs.bias), inputs.scale),
        floats(bias),
        gelu,
        floats(layer_scale),
        before,
        bits_of(y),
    )
    return y


PANEL = 256
"""Rows of a weight that are decoded at a time for a gradient."""


def input_gradient(packed: torch.Tensor, about: Packed, grad: torch.Tensor) -> torch.Tensor:
    """grad w, float32 (m, k), for the gradient (m, n) of y = x w^T: w is never whole in float."""
    q, scale, factor, zero = unpack(packed, about)
    groups = about.row_groups if about.scales in ("two_level", "per_group") else 1
    group = about.k if groups == 1 else about.group
    scales = scale.reshape(about.n, -1)
    if factor is not None:
        scales = scales * factor.reshape(about.n, groups)
    zeros = None if zero is None else zero.reshape(about.n, groups)
    x = torch.zeros((len(grad), about.k), device=grad.device)
    for start in range(0, about.n, PANEL):
        rows = slice(start, min(start + PANEL, about.n))
        shape = Shape(rows.stop - start, about.k, group)
        z = None if zeros is None else np.ascontiguousarray(zeros[rows]).reshape(-1)
        s = np.ascontiguousarray(scales[rows]).reshape(-1)
        if about.is_float8:
            panel = float8.values(q[rows], torch.from_numpy(s))
        else:
            panel = torch.from_numpy(dequantize(about.bits, shape, q[rows], s, z))
        x += grad[:, rows].float() @ panel.to(grad.device)
    return x


def kernel_name(activations: Activations, bits: int) -> str:
    """What `linear` multiplies, and with which instructions.

    >>> kernel_name("int8", 4).startswith("int8 x int4, ")
    True
    """
    if activations == "float8":
        return "float8 x float8, torch"
    kind, isa = native.cpu.linear_isa(activations)
    return f"{kind} x int{bits}, {isa}"
