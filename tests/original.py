# SPDX-License-Identifier: Apache-2.0
"""The original VGGT, narrow and with random weights; tests that import this are skipped where it is
not installed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import pytest
from torch import nn

aggregator = pytest.importorskip("vggt.models.aggregator", reason="the original is not installed")


def _vit(width: int, depth: int, heads: int) -> Callable[..., nn.Module]:
    """In the place of the original's vit_large."""
    from vggt.layers.attention import MemEffAttention
    from vggt.layers.block import NestedTensorBlock
    from vggt.layers.vision_transformer import DinoVisionTransformer

    return partial(
        DinoVisionTransformer,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention),
    )


@contextmanager
def encoder(width: int, depth: int, heads: int) -> Iterator[None]:
    """Models that are built meanwhile have an encoder of this size."""
    with mock.patch.object(aggregator, "vit_large", _vit(width, depth, heads)):
        yield


def stir(model: nn.Module, *, norms: bool = False) -> None:
    """LayerScale lets the blocks change the stream, special tokens differ from others and, if
    asked, LayerNorm scales."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter, std=0.2)
        elif norms and "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith(("camera_token", "register_token")):
            nn.init.normal_(parameter, std=0.5)
