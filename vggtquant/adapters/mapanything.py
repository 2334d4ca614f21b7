# SPDX-License-Identifier: Apache-2.0
"""MapAnything (https://github.com/facebookresearch/map-anything), whose blocks are UniCeption's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Swappable, fov_of_points, normalized, scenes, turned_back


def run(model: nn.Module, images: Tensor) -> Any:
    """A dict a picture, normalized as DINOv2 wants it, without calibration, depth or poses."""
    kind = [model.encoder.data_norm_type]  # type: ignore[union-attr]
    pictures = normalized(scenes(images)).unbind(1)
    return model([{"img": picture, "data_norm_type": kind} for picture in pictures])


def outputs(found: Any, images: Tensor) -> dict[str, Tensor]:
    """Its cameras go to the world, VGGT's come from it; the points of a camera's frame give depth
    and field of view."""
    views = {name: torch.stack([view[name] for view in found], 1) for name in found[0]}
    made: dict[str, Tensor] = {"world_points": views["pts3d"]}
    if "conf" in views:
        made |= {"world_points_conf": views["conf"], "depth_conf": views["conf"]}
    if "pts3d_cam" in views:
        made["depth"] = views["pts3d_cam"][..., 2:]
    if "cam_quats" in views:
        place, turn = turned_back(views["cam_trans"], views["cam_quats"])
        made["pose_enc"] = torch.cat([place, turn, fov_of_points(views["pts3d_cam"])], -1)
    return made


_SCALING = ("custom_positional_encoding", "use_scalable_softmax", "use_entropy_scaling")
"""Switches of UniCeption's attention: other positions, and queries scaled by the tokens' number."""

ADAPTER = Adapter(
    "mapanything",
    models=("mapanything.models.mapanything.model.MapAnything",),
    run=run,
    outputs=outputs,
    attentions=(
        Swappable(
            "uniception.models.utils.transformer_blocks.Attention",
            ("x", "xpos"),
            ("xpos", "grid"),
            off=_SCALING,
        ),
        Swappable(  # DINOv2's, whose class the encoder replaces
            "uniception.models.encoders.dinov2.DINOv2Encoder.wrap_dinov2_attention_with_sdpa"
            ".<locals>._AttentionWrapper",
            ("x", "attn_bias"),
        ),
    ),
    blocks=(
        Swappable(
            "uniception.models.utils.transformer_blocks.SelfAttentionBlock",
            ("x", "xpos"),
            ("xpos", "grid"),
            off=_SCALING[:1],
        ),
    ),
    left_alone={
        "uniception.models.utils.transformer_blocks.CrossAttention": "it attends to other tokens",
    },
)
