# SPDX-License-Identifier: Apache-2.0
"""Depth Anything 3, any-view (https://github.com/ByteDance-Seed/Depth-Anything-3): one DINOv2 whose
later blocks take turns between frames and all tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..adapter import Adapter, Swappable, fov_of_intrinsics, normalized, pose_encoding, scenes


def run(model: nn.Module, images: Tensor) -> Any:
    """The network of its API, or the network itself, which wants normalized pictures."""
    return getattr(model, "model", model)(normalized(scenes(images)))


def outputs(found: Any, images: Tensor) -> dict[str, Tensor]:
    """Cameras from the world as they are; depth without its last axis there."""
    made: dict[str, Tensor] = {"depth": found["depth"][..., None]}
    if "depth_conf" in found:
        made["depth_conf"] = found["depth_conf"]
    if "extrinsics" in found:
        fov = fov_of_intrinsics(found["intrinsics"], tuple(images.shape[-2:]))  # type: ignore[arg-type]
        made["pose_enc"] = pose_encoding(found["extrinsics"], fov)
    return made


_MASKED = ("x", "pos", "attn_mask")

ADAPTER = Adapter(
    "depth-anything-3",
    models=(
        "depth_anything_3.model.da3.DepthAnything3Net",
        "depth_anything_3.model.da3.NestedDepthAnything3Net",
        "depth_anything_3.api.DepthAnything3",
    ),
    run=run,
    outputs=outputs,
    image_size=504,
    attentions=(
        Swappable(
            "depth_anything_3.model.dinov2.layers.attention.Attention", _MASKED, ("pos", "grid")
        ),
        Swappable("depth_anything_3.model.utils.attention.Attention", _MASKED, ("pos", "grid")),
    ),
    blocks=(
        Swappable("depth_anything_3.model.dinov2.layers.block.Block", _MASKED, ("pos", "grid")),
        Swappable("depth_anything_3.model.utils.block.Block", _MASKED, ("pos", "grid")),
    ),
)
