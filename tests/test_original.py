# SPDX-License-Identifier: Apache-2.0
"""The original VGGT, narrow and with random weights: fused blocks and attention in INT8 against the
same quantized Linear layers one by one."""

import copy
import math
from dataclasses import replace
from typing import Any

import original
import pytest
import torch
from torch import nn

import vggtquant as vq
from vggtquant.adapter import IMAGE_AXES, split_outputs
from vggtquant.aggregator import QuantizedAggregator

WIDTH = 256
LINEARS = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
WAYS = {
    "fused": {"fuse": True},
    "int8 scores": {"fuse": True, "attention": "int8"},
    "int8": {"fuse": True, "attention": "int8", "attention_values": "int8"},
}
# The error that attention in INT8 may add, as a share of what INT8 Linear layers add: what
# docs/performance.md states of the accuracy of both.
ATTENTION = {"fused": 0.0, "int8 scores": 0.25, "int8": 0.5}
# Float operations in another order tip a code here and there. 48 blocks of random weights make of
# that a rounding of its own. So the fused model and the unfused one differ from the exact outputs
# by two errors of equal size e, which at worst have nothing to do with each other: then they are
# sqrt(e^2 + e^2) apart, and with attention's share a sqrt(e^2 + e^2 + (a e)^2). Nor may fusing add
# to the error itself; the root mean squares of 20 maps' errors may differ by a tenth, by chance.
CHANCE = 1.1
# Poses are few numbers. All of them together are 15 outputs, each one direction at the least: the
# ratio of two such sums of squares stays below 5.5 in 999 of 1,000 cases (F distribution of 15 and
# 15 degrees of freedom).
FEW = 5.5
SIZES = [(1, 1, 112, 112), (1, 2, 98, 140), (1, 10, 56, 70), (2, 2, 70, 98), (1, 3, 266, 42)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """48 blocks of 256 channels, whose LayerScale lets them change the stream."""
    from vggt.models.vggt import VGGT

    torch.manual_seed(0)
    with original.encoder(WIDTH, depth=3, heads=4):
        model = VGGT(embed_dim=WIDTH, enable_track=False).eval().requires_grad_(False)
    original.stir(model, norms=True)
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
    bound = math.sqrt(2 + ATTENTION[way] ** 2)
    grown = []  # of each map: the error of the fused model, in that of the unfused one
    poses = torch.zeros(2)  # sums of squares: of what is apart, and of e
    for size, (exact, want), got in zip(
        SIZES, before, outputs(quantized(model, **WAYS[way])), strict=True
    ):
        assert got.keys() == set(IMAGE_AXES) - {"features"}  # which encoders alone give
        for key in got:
            apart, error = far(got[key], want[key]), far(want[key], exact[key])
            if "pose" in key:
                poses += torch.tensor([apart**2, error**2])
            else:
                assert apart <= bound * error, (size, key, apart, error)
                grown.append(far(got[key], exact[key]) / error)
    assert poses[0] <= FEW * bound**2 * poses[1], poses
    assert torch.tensor(grown).square().mean().sqrt() <= CHANCE * math.hypot(1, ATTENTION[way])


def test_an_aggregator_that_keeps_less_gives_the_same_bits(model: nn.Module) -> None:
    swapped = quantized(model, **WAYS["int8"])
    assert isinstance(swapped.aggregator, QuantizedAggregator)
    assert swapped.aggregator.kept == {4, 11, 17, 23}
    got = outputs(swapped)
    swapped.aggregator = swapped.aggregator.original
    for ours, whole in zip(got, outputs(swapped), strict=True):
        assert all(torch.equal(ours[key], whole[key]) for key in whole)
