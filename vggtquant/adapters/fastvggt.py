# SPDX-License-Identifier: Apache-2.0
"""FastVGGT (https://github.com/mystorm16/FastVGGT): VGGT that merges tokens in global attention.

Its package is called vggt, too, its files are VGGT's: --adapter fastvggt tells them apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..adapter import Adapter, Files, Swappable, constructed, hub_settings, scenes
from .vggt import FIRST_LAST, MODEL

INSTALL = "git+https://github.com/mystorm16/FastVGGT"


class _OnDevice(TorchFunctionMode):
    """Has tensors that are asked for on "cuda" made where the pictures are."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = self.device
        return func(*args, **kwargs)


def run(model: nn.Module, images: Tensor) -> Any:
    """Under bfloat16 autocast, which its tokens want, with its patches' grid told; on a CPU, where
    it names CUDA, the CPU."""
    batch = scenes(images)
    patch = model.aggregator.patch_size  # type: ignore[union-attr]
    model.update_patch_dimensions(batch.shape[-1] // patch, batch.shape[-2] // patch)  # type: ignore[operator]
    with torch.autocast(batch.device.type, torch.bfloat16):
        if batch.device.type == "cuda":
            return model(batch)
        with _OnDevice(batch.device), mock.patch.object(torch.cuda, "synchronize"):
            return model(batch)


def build(settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """FastVGGT with the heads that the tensors belong to."""
    heads = ("camera", "point", "depth", "track")
    wanted = {
        f"enable_{head}": any(name.startswith(f"{head}_head.") for name in names) for head in heads
    }
    return constructed(MODEL, INSTALL, settings, wanted)


ADAPTER = Adapter(
    "fastvggt",
    models=(MODEL,),
    fits=lambda model: hasattr(model, "update_patch_dimensions"),
    run=run,
    attentions=(
        Swappable(
            "vggt.layers.attention.Attention", ("x", "pos", "global_merging"), ("pos", "grid")
        ),
        Swappable(
            "vggt.layers.attention.MemEffAttention", ("x", "attn_bias", "pos", "global_merging")
        ),
    ),
    blocks=(Swappable("vggt.layers.block.Block", ("x", "pos", "global_merging"), ("pos", "grid")),),
    edges=FIRST_LAST,
    files=Files(build, hub_settings, lambda shapes, settings: False),
)
