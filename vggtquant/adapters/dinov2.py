# SPDX-License-Identifier: Apache-2.0
"""DINOv2, the encoder of most of the family, also in their copies of its code: features alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..adapter import Adapter, Swappable, normalized, scenes


def run(model: nn.Module, images: Tensor) -> Any:
    """The dict of DINOv2's forward_features, of all pictures as one batch."""
    return model.forward_features(normalized(scenes(images)).flatten(0, 1))  # type: ignore[operator]


def outputs(found: Any, images: Tensor) -> dict[str, Tensor]:
    """Patch tokens as maps (B, S, h, w, C)."""
    batch, pictures, _, height, width = scenes(images).shape
    tokens: Tensor = found["x_norm_patchtokens"]
    side = round((tokens.shape[1] * height / width) ** 0.5)
    return {"features": tokens.view(batch, pictures, side, -1, tokens.shape[-1])}


ADAPTER = Adapter(
    "dinov2",
    models=("dinov2.models.vision_transformer.DinoVisionTransformer",),
    run=run,
    outputs=outputs,
    attentions=(
        Swappable("dinov2.layers.attention.Attention", ("x",)),
        Swappable("dinov2.layers.attention.Attention", ("x", "is_causal")),
        Swappable("dinov2.layers.attention.MemEffAttention", ("x", "attn_bias")),
    ),
    blocks=(
        Swappable("dinov2.layers.block.Block", ("x",)),
        Swappable("dinov2.layers.block.NestedTensorBlock", ("x_or_x_list",)),
    ),
)
