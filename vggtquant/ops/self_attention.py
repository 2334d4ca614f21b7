# SPDX-License-Identifier: Apache-2.0
"""Attention on the CPU."""

from __future__ import annotations

import math

import torch

from ..errors import UserError
from . import native
from .buffers import array_of, bits_of, check_dense, dtype_name, floats, room
from .native import Own
from .records import Norm, norm_parts

WIDEST = 128
"""Channels of a head; VGQ_WIDEST in csrc/vgq.h."""


def attention(
    qkv: torch.Tensor,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    rope_width: int | None = None,
    scale: float | None = None,
    mode: Own = "float",
    pv: Own | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """softmax(scale q k^T) v for every head, with q and k normalized and rotated first.

    Args:
        qkv: (batch, tokens, 3, heads, dim) on the CPU, float32, float16 or bfloat16, with any
            strides but 1 for the last axis. dim: a multiple of 8, at most 128.
        q_norm: LayerNorm of each head's q; None: none. k_norm: likewise.
        cos: (rows, dim): what channels are multiplied by, of token i in row i % rows; with sin, of
            the same shape, what the channels they turn with are. None: no rotation.
        rope_width: channels that turn together, the first half with the second: `dim`, or by
            default `dim // 2`, for positions in a plane.
        scale: of the scores, not negative; None: dim ** -0.5.
        mode: how q and k are multiplied: "float", "bf16" (as "float" where the CPU has no
            instruction for it) or "int8", with a scale for each row of q and of k.
        pv: how the softmax and v are multiplied; None: as `mode`.
        dtype: of the result; None: that of qkv.

    Returns:
        (batch, tokens, heads * dim). A row of q that is not finite gives a row of NaN; such a row
        of k or v, NaN for all rows of its head.

    Raises:
        UserError: shapes, devices or a scale that do not fit.

    >>> attention(torch.ones(1, 5, 3, 2, 32), mode="int8").shape
    torch.Size([1, 5, 64])
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise UserError(
            f"qkv of shape {tuple(qkv.shape)} is given; (batch, tokens, 3, heads, dim) is wanted"
        )
    batch, tokens, _, heads, dim = qkv.shape
    if dim % 8 or not 0 < dim <= WIDEST:
        raise UserError(
            f"heads of {dim} channels are given; a multiple of 8, up to {WIDEST}, is wanted"
        )
    if native.on_gpu(qkv):
        raise UserError(f"qkv on {qkv.device} is given; attention is served on the CPU")
    dtype_name(qkv)
    check_dense(qkv)
    if qkv.stride(-1) != 1 and dim > 1:
        qkv = qkv.contiguous()
    width = dim // 2 if rope_width is None else rope_width
    if cos is not None and (width < 2 or width % 2 or dim % width):
        raise UserError(f"rope_width {width} is given; an even divisor of {dim} is wanted")
    factor = dim**-0.5 if scale is None else float(scale)
    if not 0 <= factor < math.inf:
        raise UserError(f"scale {scale} is given; a finite one that is not negative is wanted")
    source = qkv.detach().resolve_neg()
    y = room((batch, tokens, heads * dim), dtype or qkv.dtype)
    if not y.numel():
        return y
    x = array_of(source.view(torch.uint16) if source.dtype == torch.bfloat16 else source)
    values = mode if pv is None else pv
    native.cpu.attention(
        mode,
        values,
        x,
        norm_parts(q_norm),
        norm_parts(k_norm),
        (floats(cos), floats(sin), width),
        factor,
        bits_of(y),
    )
    return y


def attention_kernel_name(mode: Own, pv: Own) -> str:
    """What `attention` multiplies, and with which instructions: q k, then the softmax and v.

    >>> attention_kernel_name("int8", "int8").startswith("attention, int8 (")
    True
    """
    (scores, first), (values, second) = native.cpu.attention_isa(mode, pv)
    return f"attention, {scores} ({first}) and {values} ({second})"
