# SPDX-License-Identifier: Apache-2.0
"""Transformer parts of TinyVGGT, with VGGT's structure and module names in our own code.

Tokens are (batch, tokens, channels) everywhere.  The original: Wang et al., VGGT: Visual Geometry
Grounded Transformer, CVPR 2025 (arXiv 2503.11651).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rope = tuple[Tensor, Tensor]  # cosines and sines, each (tokens, head channels)


def rope_tables(positions: Tensor, channels: int, base: float = 100.0) -> Rope:
    """Cosines and signed sines of 2-D rotary embedding for integer positions (tokens, 2) = (y, x).

    The first half of a head's channels turns with y, the second with x; within a half, channel i
    is paired with channel i + channels/4 (Heo et al., arXiv 2403.13298, as VGGT uses it).
    """
    quarter = channels // 4
    rates = base ** (-torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter)
    angles = positions.to(torch.float32)[..., None] * rates  # (tokens, 2, quarter)
    cosines, sines = angles.cos(), angles.sin()
    return (
        torch.cat([cosines, cosines], dim=-1).flatten(-2),
        torch.cat([-sines, sines], dim=-1).flatten(-2),
    )


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn queries or keys (batch, heads, tokens, channels) by their tokens' positions."""
    a, b, c, d = x.chunk(4, dim=-1)
    return x * rope[0] + torch.cat([b, a, d, c], dim=-1) * rope[1]


class Attention(nn.Module):
    """Multi-head self-attention, with normalised queries and keys and rotation where wanted."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        x = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))
        return out


class Mlp(nn.Module):
    """Two Linears with an exact GELU between."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP of four times the width."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool, init: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim, init)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, dim)
        self.ls2 = LayerScale(dim, init)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class PatchConv(nn.Module):
    """Pictures (n, 3, H, W) to patch tokens (n, patches, dim)."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class PatchEmbed(nn.Module):
    """A small vision transformer on single pictures, where VGGT has DINOv2."""

    def __init__(self, grid: int, patch: int, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.patch_embed = PatchConv(patch, dim)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, dim, grid, grid))
        self.blocks = nn.ModuleList(
            Block(dim, heads, qk_norm=False, init=1.0) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        pos: Tensor = self.pos_embed
        if grid != tuple(pos.shape[2:]):
            pos = F.interpolate(pos, grid, mode="bicubic", align_corners=False)
        x = self.patch_embed(images) + pos.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out
