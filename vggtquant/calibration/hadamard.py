# SPDX-License-Identifier: Apache-2.0
"""Hadamard rotation where it folds: values of attention, head by head.

Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, NeurIPS 2024 (arXiv
2404.00456), section 4.1: an orthogonal matrix R spreads outliers over channels. Attention mixes
tokens, never channels of a value, so W_v' = R^T W_v, b_v' = R^T b_v and W_proj' = W_proj diag(R)
compute the same. GELU, LayerNorm with its affine part, and the norms of q and k let no other
rotation through at no cost.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .folds import Branch, Edits, doubles, linear, values_of


def hadamard(n: int) -> torch.Tensor:
    """The orthogonal matrix (n, n) of Sylvester, float64; n a power of two.

    >>> hadamard(2).mul(2**0.5).round().tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    h = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(n)


@torch.no_grad()
def rotate_values(edits: Edits, branch: Branch) -> None:
    """Rotates each head's values, and the columns of proj back; heads of 2^i channels only."""
    found = values_of(edits, branch)
    block = edits.model.get_submodule(branch.first.rpartition(".")[0])
    heads = getattr(block, "num_heads", 0)
    if found is None or not isinstance(heads, int) or heads < 1:
        return
    qkv, proj = found
    width = proj.in_features // heads
    if width * heads != proj.in_features or width & (width - 1):
        return
    h = hadamard(width)
    (weight, bias), (out, out_bias) = doubles(qkv), doubles(proj)
    rows = slice(2 * proj.in_features, None)
    weight, bias = weight.clone(), bias.clone()
    weight[rows] = (h @ weight[rows].reshape(heads, width, -1)).reshape(weight[rows].shape)
    bias[rows] = (bias[rows].reshape(heads, width) @ h.T).reshape(-1)
    out = (out.reshape(len(out), heads, width) @ h.T).reshape(out.shape)
    edits.set(branch.first, _like(weight, bias, qkv))
    edits.set(branch.last, _like(out, out_bias, proj))


def _like(weight: torch.Tensor, bias: torch.Tensor, layer: nn.Linear) -> nn.Linear:
    return linear(weight, bias if layer.bias is not None else None, layer)
