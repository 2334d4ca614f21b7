# SPDX-License-Identifier: Apache-2.0
"""VGGT: how it is built, its first and last Linear, its attentions and blocks, the licences of its
weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from ..adapter import Adapter, Files, Shapes, Swappable, constructed, hub_settings

LICENCES = {
    "facebook/VGGT-1B": "CC BY-NC 4.0, as tagged on the hub: non-commercial use only",
    "facebook/VGGT-1B-Commercial": "VGGT License: commercial use within its acceptable use policy",
}
FILE_LICENCE = (
    "not stated in the file: VGGT-1B is non-commercial (CC BY-NC 4.0), VGGT-1B-Commercial is under "
    "the VGGT License; a quantized copy stays under the licence of its source"
)

FIRST_LAST = ("aggregator.patch_embed.blocks.0.attn.qkv", "camera_head.pose_branch.fc2")
"""The patch embedding is a convolution, and the tracker's layers come after the camera head in
module order only."""

MODEL = "vggt.models.vggt.VGGT"
AGGREGATOR = "vggt.models.aggregator.Aggregator"
"""Ends of the paths of its classes. Whoever else owns an aggregator may read any of its layers."""

INSTALL = "git+https://github.com/facebookresearch/vggt"

TOKENS = 5
"""That a frame has beside its patches: one of the camera, four registers."""


def build(settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """VGGT as the installed package defines it, without the tracker where no name is one of its.

    settings: arguments of its constructor; others are left out. names: the tensors to be loaded.

    Raises:
        UserError: the package is missing or broken, or takes no such settings.
    """
    has_tracker = any(name.startswith("track_head.") for name in names)
    switches = {} if has_tracker else {"enable_track": False}
    model = constructed(MODEL, INSTALL, settings, switches)
    if not has_tracker:
        # Older copies know no enable_track, but check for None.
        model.track_head = None  # type: ignore[assignment]
    return model


def has_edges(shapes: Shapes, settings: Mapping[str, Any]) -> bool:
    """Whether VGGT's first and last Linear are among the tensors, whatever stands before names."""
    layers = [f".{name}" for name in shapes]
    return all(any(name.endswith(f".{edge}.weight") for name in layers) for edge in FIRST_LAST)


ATTENTIONS = (
    Swappable("vggt.layers.attention.Attention", ("x", "pos"), ("pos", "grid")),
    Swappable("vggt.layers.attention.MemEffAttention", ("x", "attn_bias", "pos")),
)
BLOCKS = (
    Swappable("vggt.layers.block.Block", ("x", "pos"), ("pos", "grid")),
    Swappable("vggt.layers.block.NestedTensorBlock", ("x_or_x_list",)),
)

ADAPTER = Adapter(
    "vggt",
    models=(MODEL,),
    fits=lambda model: not hasattr(model, "update_patch_dimensions"),  # FastVGGT's
    attentions=ATTENTIONS,
    blocks=BLOCKS,
    edges=FIRST_LAST,
    files=Files(build, hub_settings, has_edges, LICENCES),
)
