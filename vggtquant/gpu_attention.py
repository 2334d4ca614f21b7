# SPDX-License-Identifier: Apache-2.0
"""Attention on a GPU: LayerNorm and rotation of q and k, then torch's own product.

Nothing here brings a value to the host, so a CUDA graph can capture it. It is float whatever a
config's `attention` asks for; the report names it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .ops import Norm

NAME = "attention, torch"
"""What a report calls it."""


def _tables(pos: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (batch, 1, tokens, head_dim) of positions (batch, tokens, 2), as
    rope.tables has them, for each of the batch."""
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, device=pos.device, dtype=torch.float32) / half
    angles = pos.float()[..., None] * (1.0 / base**exponents)
    angles = torch.cat([angles, angles], dim=-1).flatten(-2)[:, None]
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (…, tokens, head_dim): a half of a head's channels turns with y, the other with x; in a
    half, channel i with channel i + head_dim / 4.

    >>> rotated(torch.ones(1, 8), torch.zeros(1, 8), torch.ones(1, 8)).tolist()
    [[-1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0]]
    """
    a, b, c, d = x.chunk(4, dim=-1)
    return x * cos + torch.cat([-b, a, -d, c], dim=-1) * sin


def _prepared(x: Tensor, norm: Norm | None, turns: tuple[Tensor, Tensor] | None) -> Tensor:
    y = x
    if norm is not None:
        weight, bias = (None if p is None else p.float() for p in norm[:2])
        y = F.layer_norm(y.float(), (x.shape[-1],), weight, bias, norm.eps)
    if turns is not None:
        y = rotated(y.float(), *turns)
    return y.to(x.dtype)


def attention(
    qkv: Tensor,
    q_norm: Norm | None,
    k_norm: Norm | None,
    pos: Tensor | None,
    base: float,
    cos: Tensor | None,
    sin: Tensor | None,
) -> Tensor:
    """qkv (batch, tokens, 3, heads, head_dim) to (batch, tokens, heads * head_dim), in its dtype.

    Positions as rope.tables takes them, or cos and sin as ops.attention does: token i has row
    i % rows.
    """
    tokens = qkv.shape[1]
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    turns = None if pos is None else _tables(pos, qkv.shape[-1], base)
    if cos is not None and sin is not None:
        times = -(-tokens // len(cos))
        turns = cos.float().repeat(times, 1)[:tokens], sin.float().repeat(times, 1)[:tokens]
    q, k = _prepared(q, q_norm, turns), _prepared(k, k_norm, turns)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
