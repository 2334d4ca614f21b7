# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for the models of the family: their class paths, signatures and arithmetic, in
code of our own."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention as by_name

DIM, HEADS, PATCH = 64, 2, 14


def at(path: str) -> Any:
    """Gives a class the path that it stands in for."""

    def placed(kind: type) -> type:
        kind.__module__, _, name = path.rpartition(".")
        kind.__qualname__ = kind.__name__ = name
        return kind

    return placed


class RoPE2D(nn.Module):
    """Pi3's: the base of its frequencies is `base`."""

    def __init__(self, freq: float = 100.0) -> None:
        super().__init__()
        self.base = freq

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        quarter = x.shape[-1] // 4
        rates = 1.0 / self.base ** (torch.arange(quarter).float() / quarter)
        angles = pos[:, None, :, :, None] * rates  # (batch, 1, tokens, 2, quarter)
        a, b, c, d = x.chunk(4, dim=-1)
        (cy, cx), (sy, sx) = angles.cos().unbind(-2), angles.sin().unbind(-2)
        return torch.cat([a * cy - b * sy, b * cy + a * sy, c * cx - d * sx, d * cx + c * sx], -1)


@at("streamvggt.layers.rope.RotaryPositionEmbedding2D")
class RotaryPositionEmbedding2D(RoPE2D):
    def __init__(self, frequency: float = 100.0) -> None:
        super().__init__(frequency)
        self.base_frequency = frequency


class _Attention(nn.Module):
    def __init__(self, turned: nn.Module | None = None, qkv: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.num_heads, self.scale, self.rope = HEADS, (DIM // HEADS) ** -0.5, turned
        self.qkv, self.proj = qkv(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.q_norm, self.k_norm = nn.LayerNorm(DIM // HEADS), nn.LayerNorm(DIM // HEADS)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def joined(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
        return out


@at("pi3.models.layers.attention.FlashAttentionRope")
class FlashAttentionRope(_Attention):
    def forward(self, x: Tensor, attn_bias: Any = None, xpos: Any = None) -> Tensor:
        q, k, v = self.parts(x)
        if self.rope is not None:
            q, k = self.rope(q, xpos), self.rope(k, xpos)
        with nn.attention.sdpa_kernel([nn.attention.SDPBackend.MATH]):  # N x N, as on a CPU
            return self.joined(by_name(q, k, v))


@at("pi3.models.layers.attention.PRopeFlashAttention")
class PRopeFlashAttention(_Attention):
    def forward(self, x: Tensor, extrinsics: Tensor) -> Tensor:
        return self.joined(by_name(*self.parts(x))) * extrinsics.mean()


class CrossAttentionRope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.v_proj, self.proj = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.proj(by_name(self.q_proj(query), self.k_proj(key), self.v_proj(value)))
        return out


@at("streamvggt.layers.attention.Attention")
class Cached(_Attention):
    def forward(
        self,
        x: Tensor,
        pos: Any = None,
        attn_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        pos_k, new = pos, None
        if use_cache:
            k, v = k[:, :, None], v[:, :, None]
            if past_key_values is not None:
                k, v = (torch.cat([a, b], 2) for a, b in zip(past_key_values, (k, v), strict=True))
            new = k, v
            pos_k = None if pos is None else pos.repeat(1, k.shape[2], 1)
            k, v = k.flatten(2, 3), v.flatten(2, 3)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, pos), self.rope(k, pos_k)
        y = self.joined(F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask))
        return (y, new) if use_cache else y


@at("vggt_omega.models.layers.attention.LinearKMaskedBias")
class LinearKMaskedBias(nn.Linear):
    def __init__(self, n: int, k: int) -> None:
        super().__init__(n, k)
        self.register_buffer("bias_mask", torch.full_like(self.bias, math.nan))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias * self.bias_mask)


@at("vggt_omega.models.layers.attention.SelfAttention")
class SelfAttention(_Attention):
    def __init__(self) -> None:
        super().__init__(qkv=LinearKMaskedBias)

    def forward(self, x: Tensor, attn_bias: Any = None, rope: Any = None) -> Tensor:
        q, k, v = self.parts(x)
        if rope is not None:
            q, k = self.turned(q, *rope), self.turned(k, *rope)
        return self.joined(F.scaled_dot_product_attention(q, k, v))

    @staticmethod
    def turned(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        still, x = x[:, :, : -len(sin)], x[:, :, -len(sin) :]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([still, x * cos + torch.cat([-b, a], -1) * sin], dim=2)


@at("depth_anything_3.model.dinov2.layers.attention.Attention")
class Masked(_Attention):
    def forward(self, x: Tensor, pos: Any = None, attn_mask: Any = None) -> Tensor:
        q, k, v = self.parts(x)
        if self.rope is not None and pos is not None:
            q, k = self.rope(q, pos), self.rope(k, pos)
        return self.joined(F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask))


@at("vggt.layers.attention.Attention")
class Merging(_Attention):
    def forward(self, x: Tensor, pos: Any = None, global_merging: Any = None) -> Tensor:
        q, k, v = self.parts(x)
        if self.rope is not None:
            q, k = self.rope(q, pos), self.rope(k, pos)
        if global_merging is not None:
            k, v = k[:, :, ::2], v[:, :, ::2]
        return self.joined(F.scaled_dot_product_attention(q, k, v))


@at("uniception.models.utils.transformer_blocks.Attention")
class Scaled(_Attention):
    custom_positional_encoding = None
    use_entropy_scaling = False

    def forward(self, x: Tensor, xpos: Any = None) -> Tensor:
        q, k, v = self.parts(x)
        q = q * math.log(x.shape[1]) if self.use_entropy_scaling else q
        return self.joined(F.scaled_dot_product_attention(q, k, v, scale=self.scale))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Dropout(0.0)
        self.fc2 = nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn, self.mlp = attn, Mlp()
        self.ls1, self.ls2 = LayerScale(), LayerScale()

    def rest(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.ls1(y)
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


@at("pi3.models.layers.block.BlockRope")
class BlockRope(_Block):
    def forward(self, x: Tensor, xpos: Any = None) -> Tensor:
        return self.rest(x, self.attn(self.norm1(x), xpos=xpos))


@at("streamvggt.layers.block.Block")
class CachedBlock(_Block):
    def forward(
        self,
        x: Tensor,
        pos: Any = None,
        attn_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:
        y = self.attn(self.norm1(x), pos, attn_mask, past_key_values, use_cache)
        return (self.rest(x, y[0]), y[1]) if use_cache else self.rest(x, y)


@at("vggt_omega.models.layers.block.SelfAttentionBlock")
class OmegaBlock(_Block):
    def forward(self, x_or_x_list: Any, rope_or_rope_list: Any = None) -> Any:
        y = self.attn(self.norm1(x_or_x_list), rope=rope_or_rope_list)
        return self.rest(x_or_x_list, y)


@at("depth_anything_3.model.dinov2.layers.block.Block")
class MaskedBlock(_Block):
    def forward(self, x: Tensor, pos: Any = None, attn_mask: Any = None) -> Tensor:
        return self.rest(x, self.attn(self.norm1(x), pos=pos, attn_mask=attn_mask))


@at("vggt.layers.block.Block")
class MergingBlock(_Block):
    def forward(self, x: Tensor, pos: Any = None, global_merging: Any = None) -> Tensor:
        return self.rest(x, self.attn(self.norm1(x), pos=pos, global_merging=global_merging))


@at("uniception.models.utils.transformer_blocks.SelfAttentionBlock")
class ScaledBlock(_Block):
    custom_positional_encoding = None

    def forward(self, x: Tensor, xpos: Any = None) -> Tensor:
        return self.rest(x, self.attn(self.norm1(x), xpos))


def masked(block: nn.Module) -> nn.Module:
    """VGGT-Omega's as a checkpoint leaves it: the bias of keys is masked."""
    for layer in block.modules():
        if isinstance(layer, LinearKMaskedBias):
            layer.bias_mask.copy_(torch.ones(3, DIM).index_fill(0, torch.tensor(1), 0).flatten())
    return block


def sin_cos(patches: int) -> tuple[Tensor, Tensor]:
    """DINOv3's tables of so many patches: angles of rows and of columns, twice."""
    angles = torch.rand(patches, DIM // HEADS // 2) * 6
    angles = torch.cat([angles, angles], dim=-1)
    return angles.sin(), angles.cos()


def grid(batch: int, tokens: int) -> Tensor:
    steps = torch.arange(tokens)
    return torch.stack([steps // 5, steps % 5], -1).expand(batch, -1, 2).clone()


class Holder(nn.Module):
    """The block, and a Linear before and after it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.before, self.block, self.after = nn.Linear(DIM, DIM), block, nn.Linear(DIM, DIM)
        self.eval().requires_grad_(False)


def far(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance."""
    return float((got - want).norm() / want.norm())
