# SPDX-License-Identifier: Apache-2.0
"""StreamVGGT (https://github.com/wzzheng/StreamVGGT): a picture at a time, with the keys and values
of those before it. Its files have VGGT's names: --adapter streamvggt tells them apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Files, Swappable, constructed, hub_settings, quiet_about_cuda, scenes

MODEL = "streamvggt.models.streamvggt.StreamVGGT"
INSTALL = "git+https://github.com/wzzheng/StreamVGGT"


def run(model: nn.Module, images: Tensor) -> Any:
    """Its inference, which takes one scene picture by picture and keeps keys and values."""
    with quiet_about_cuda():
        return [
            model.inference([{"img": picture[None]} for picture in scene]).ress  # type: ignore[operator]
            for scene in scenes(images)
        ]


_NAMES = {
    "pose_enc": "camera_pose",
    "depth": "depth",
    "depth_conf": "depth_conf",
    "world_points": "pts3d_in_other_view",
    "world_points_conf": "conf",
}


def outputs(found: Any, images: Tensor) -> dict[str, Tensor]:
    """Its outputs are VGGT's under other names, a dict a picture."""
    return {
        name: torch.cat([torch.stack([view[own] for view in scene], 1) for scene in found])
        for name, own in _NAMES.items()
        if own in found[0][0]
    }


def build(settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """StreamVGGT as the installed package defines it."""
    return constructed(MODEL, INSTALL, settings)


_CACHED = ("x", "pos", "attn_mask", "past_key_values", "use_cache")

ADAPTER = Adapter(
    "streamvggt",
    models=(MODEL,),
    run=run,
    outputs=outputs,
    attentions=(
        Swappable("streamvggt.layers.attention.Attention", _CACHED, ("pos", "grid")),
        Swappable("streamvggt.layers.attention.MemEffAttention", ("x", "attn_bias", "pos")),
    ),
    blocks=(
        Swappable("streamvggt.layers.block.Block", _CACHED, ("pos", "grid")),
        Swappable("streamvggt.layers.block.NestedTensorBlock", ("x_or_x_list",)),
    ),
    files=Files(build, hub_settings, lambda shapes, settings: False),
)
