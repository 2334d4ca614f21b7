# SPDX-License-Identifier: Apache-2.0
"""VGGT-Omega (https://github.com/facebookresearch/vggt-omega): DINOv3's blocks, patches of 16."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import (
    Adapter,
    Files,
    Shapes,
    Swappable,
    constructed,
    hub_settings,
    run_quietly,
)

MODEL = "vggt_omega.models.vggt_omega.VGGTOmega"
INSTALL = "git+https://github.com/facebookresearch/vggt-omega"


def plain(linear: nn.Linear) -> nn.Linear | str:
    """LinearKMaskedBias: the bias times bias_mask, which is NaN until a checkpoint fills it."""
    mask = linear._buffers.get("bias_mask")
    if linear.bias is None or mask is None:
        return _with_bias(linear, None)
    if not torch.isfinite(mask).all():
        return "its bias_mask is NaN, as it is until a checkpoint has been loaded"
    return _with_bias(linear, linear.bias.detach() * mask.to(linear.bias.dtype))


def _with_bias(linear: nn.Linear, bias: Tensor | None) -> nn.Linear:
    n, k = linear.weight.shape
    made = nn.Linear(k, n, bias=bias is not None, device="meta")
    made.weight = linear.weight
    if bias is not None:
        made.bias = nn.Parameter(bias, linear.weight.requires_grad)
    return made.train(linear.training)


def build(settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """VGGT-Omega with the heads that the tensors belong to."""
    heads = {"camera": "camera_head", "depth": "dense_head", "alignment": "text_alignment_head"}
    wanted = {
        f"enable_{switch}": any(name.startswith(f"{head}.") for name in names)
        for switch, head in heads.items()
    }
    return constructed(MODEL, INSTALL, settings, wanted)


def recognises(shapes: Shapes, settings: Mapping[str, Any]) -> bool:
    """Whether blocks between frames are among the tensors."""
    return "aggregator.inter_frame_blocks.0.attn.qkv.weight" in shapes


ADAPTER = Adapter(
    "vggt-omega",
    models=(MODEL,),
    run=run_quietly,
    image_size=512,
    patch=16,
    attentions=(
        Swappable(
            "vggt_omega.models.layers.attention.SelfAttention",
            ("x", "attn_bias", "rope"),
            ("rope", "sin_cos"),
        ),
    ),
    blocks=(
        Swappable(
            "vggt_omega.models.layers.block.SelfAttentionBlock",
            ("x_or_x_list", "rope_or_rope_list"),
            ("rope_or_rope_list", "sin_cos"),
        ),
    ),
    linears={"vggt_omega.models.layers.attention.LinearKMaskedBias": plain},
    left_alone={
        "vggt_omega.models.layers.attention.CausalSelfAttention": "its attention is causal",
    },
    edges=("aggregator.patch_embed.blocks.0.attn.qkv", "camera_head.camera_branch.2"),
    files=Files(
        build,
        hub_settings,
        recognises,
        {"facebook/VGGT-Omega": "FAIR Noncommercial Research License: research, non-commercial"},
    ),
)
