# SPDX-License-Identifier: Apache-2.0
"""builtin:tiny-outliers: TinyVGGT as the same function, with the outliers that VGGT has.

Pairs of operations that cancel exactly are rescaled by powers of two, which changes no bit of an
FP32 result and much of what a quantizer sees: a few channels of the normalised activations become
hundreds of times the median, as the literature reports for VGGT's special tokens (QuantVGGT, arXiv
2509.21302, figure 3), and a few rows of the weights likewise.
"""

from __future__ import annotations

import torch

from vggtquant.tiny import build
from vggtquant.tiny.layers import Block
from vggtquant.tiny.model import TinyVGGT

CHANNELS = 4
"""Channels of each pair that are rescaled."""
FACTOR = 2.0**8
"""By how much: a power of two, so that every product keeps its bits."""


def build_outliers() -> TinyVGGT:
    """TinyVGGT with the shipped weights and rescaled pairs, in eval mode.

    >>> images = torch.rand(2, 3, 112, 112)
    >>> with torch.inference_mode():
    ...     same = torch.equal(build_outliers()(images)["depth"], build()(images)["depth"])
    >>> same
    True
    """
    return add_outliers(build())


@torch.no_grad()
def add_outliers(model: TinyVGGT) -> TinyVGGT:
    """Rescale the pairs of every frame and global block, in place.

    Normalised channels are those where the special tokens are largest as they enter the first
    block; the rows of values, projections and second MLP layers are those with the largest norm.
    """
    aggregator = model.aggregator
    special = torch.cat([aggregator.camera_token, aggregator.register_token], dim=2)
    reach = special.abs().flatten(0, 2).amax(0)
    for block in [*aggregator.frame_blocks, *aggregator.global_blocks]:
        _rescale(block, reach)
    return model


def _rescale(block: Block, reach: torch.Tensor) -> None:
    attention, mlp = block.attn, block.mlp
    for norm, linear in ((block.norm1, attention.qkv), (block.norm2, mlp.fc1)):
        channels = _largest(reach * norm.weight.abs())
        _scale([norm.weight, norm.bias], channels, FACTOR)
        linear.weight[:, channels] /= FACTOR
    # Attention mixes tokens, never channels of a value, so its output scales as they do.
    dim = attention.proj.in_features
    rows = _largest(attention.qkv.weight[2 * dim :].norm(dim=1))
    _scale([attention.qkv.weight, attention.qkv.bias], 2 * dim + rows, FACTOR)
    attention.proj.weight[:, rows] /= FACTOR
    # LayerScale follows at once.
    for linear, scale in ((attention.proj, block.ls1), (mlp.fc2, block.ls2)):
        rows = _largest(linear.weight.norm(dim=1))
        _scale([linear.weight, linear.bias], rows, FACTOR)
        scale.gamma[rows] /= FACTOR


def _largest(values: torch.Tensor) -> torch.Tensor:
    return values.topk(CHANNELS).indices


def _scale(parameters: list[torch.Tensor], index: torch.Tensor, factor: float) -> None:
    for parameter in parameters:
        parameter[index] *= factor
