# SPDX-License-Identifier: Apache-2.0
"""The original VGGT, narrow and with random weights: fused blocks and attention in INT8 against the
same quantized Linear layers one by one."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

import vggtquant as vq
from vggtquant.vggt import IMAGE_AXES, split_outputs

aggregator = pytest.importorskip("vggt.models.aggregator", reason="the original is not installed")

WIDTH = 256
LINEARS = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
WAYS = {
    "fused": {"fuse": True},
    "int8 scores": {"fuse": True, "attention": "int8"},
    "int8": {"fuse": True, "attention": "int8", "attention_values": "int8"},
}
# Fused alone, float operations have another order. That tips a code here and there, and after 48
# blocks of random weights a tipped code has become noise like that of quantizing. So maps are held
# against what quantizing changes, and poses, a few numbers each, against themselves.
MAPS, POSES = 1.25, 0.06
SIZES = [(1, 1, 112, 112), (1, 2, 98, 140), (1, 10, 56, 70), (2, 2, 70, 98), (1, 3, 266, 42)]


def narrow_vit(patch_size: int, num_register_tokens: int, **options: object) -> nn.Module:
    from vggt.layers.attention import MemEffAttention
    from vggt.layers.block import NestedTensorBlock
    from vggt.layers.vision_transformer import DinoVisionTransformer

    return DinoVisionTransformer(
        patch_size=patch_size,
        num_register_tokens=num_register_tokens,
        embed_dim=WIDTH,
        depth=3,
        num_heads=4,
        block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention),
        **options,
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """48 blocks of 256 channels, whose LayerScale lets them change the stream."""
    from vggt.models.vggt import VGGT

    torch.manual_seed(0)
    with mock.patch.object(aggregator, "vit_large", narrow_vit):
        model = VGGT(embed_dim=WIDTH, enable_track=False).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter, std=0.2)
        elif "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith(("camera_token", "register_token")):
            nn.init.normal_(parameter, std=0.5)
    return model


def quantized(model: nn.Module, **fields: object) -> nn.Module:
    config = replace(LINEARS, name="of this test", **fields)
    swapped, report = vq.quantize_model(copy.deepcopy(model), config)
    blocks = [m for m in report.modules if m.kind == "block" and not m.skipped]
    assert len(blocks) == (3 + 48 + 4 if fields else 0)  # of the encoder, of both kinds, of poses
    return swapped


def far(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def outputs(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    """Of pictures of each of SIZES."""
    made = []
    for batch, pictures, height, width in SIZES:
        generator = torch.Generator().manual_seed(pictures)
        x = torch.rand(batch, pictures, 3, height, width, generator=generator)
        with torch.inference_mode():
            made.append(split_outputs(model(x)))
    return made


@pytest.fixture(scope="module")
def before(model: nn.Module) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Of the model itself, and with its Linear layers quantized."""
    return list(zip(outputs(model), outputs(quantized(model)), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_every_output_is_near(model: nn.Module, before: list[Any], way: str) -> None:
    for size, (exact, want), got in zip(
        SIZES, before, outputs(quantized(model, **WAYS[way])), strict=True
    ):
        assert got.keys() == set(IMAGE_AXES)
        for key in got:
            added = far(got[key], want[key])
            bound = POSES if "pose" in key else MAPS * far(want[key], exact[key])
            assert added <= bound, (size, key, added, bound)
