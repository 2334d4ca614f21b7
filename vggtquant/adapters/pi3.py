# SPDX-License-Identifier: Apache-2.0
"""Pi3 (https://github.com/yyfz/Pi3): no reference picture; points in each camera's frame."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import (
    Adapter,
    Files,
    Form,
    Shapes,
    Swappable,
    constructed,
    fov_of_points,
    hub_settings,
    inverted,
    pose_encoding,
    run_quietly,
)

MODEL = "pi3.models.pi3.Pi3"
INSTALL = "git+https://github.com/yyfz/Pi3"


def outputs(found: Any, images: Tensor) -> dict[str, Tensor]:
    """Depth is the third coordinate of local_points, whose slope gives the field of view."""
    local: Tensor = found["local_points"]
    sure = torch.sigmoid(found["conf"][..., 0])
    cameras = inverted(found["camera_poses"])
    return {
        "pose_enc": pose_encoding(cameras, fov_of_points(local)),
        "depth": local[..., 2:],
        "depth_conf": sure,
        "world_points": found["points"],
        "world_points_conf": sure,
    }


def build(settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """Pi3 as the installed package defines it."""
    return constructed(MODEL, INSTALL, settings)


def recognises(shapes: Shapes, settings: Mapping[str, Any]) -> bool:
    """Whether the decoders and the camera's rotation are among the tensors."""
    wanted = {"point_decoder.projects.weight", "conf_head.proj.weight", "camera_head.fc_rot.weight"}
    return wanted <= shapes.keys() and "metric_token" not in shapes


_POSITIONS: tuple[str, Form] = ("xpos", "grid")

ADAPTER = Adapter(
    "pi3",
    models=(MODEL, "pi3.models.pi3x.Pi3X"),
    run=run_quietly,
    outputs=outputs,
    attentions=tuple(
        Swappable(f"pi3.models.layers.attention.{kind}", ("x", "attn_bias", "xpos"), _POSITIONS)
        for kind in ("AttentionRope", "MemEffAttentionRope", "FlashAttentionRope")
    )
    + tuple(
        Swappable(f"pi3.models.{kind}", ("x", "attn_bias"))
        for kind in (
            "layers.attention.FlashAttention",
            "dinov2.layers.attention.Attention",
            "dinov2.layers.attention.MemEffAttention",
        )
    ),
    blocks=(Swappable("pi3.models.layers.block.BlockRope", ("x", "xpos"), _POSITIONS),),
    left_alone={
        "pi3.models.layers.attention.PRopeFlashAttention": (
            "its keys and values are turned by cameras (PRoPE)"
        ),
    },
    edges=("encoder.blocks.0.attn.qkv", "camera_head.fc_rot"),
    files=Files(
        build, hub_settings, recognises, {"yyfz233/Pi3": "CC BY-NC 4.0: non-commercial use only"}
    ),
)
