# SPDX-License-Identifier: Apache-2.0
"""QuantizedAggregator: VGGT's aggregator that keeps the outputs of those layers only that heads
read.

The original joins the outputs of every pair of blocks, 2 x 4 bytes a channel and token, and older
copies of VGGT keep all 24. Heads read five of them at most. The blocks and all parameters stay the
original's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.vggt import ADAPTER, AGGREGATOR, MODEL
from .stand_in import StandIn, is_of


class QuantizedAggregator(StandIn):
    """What `Aggregator` computes, from its own modules and parameters; see the top of this file.

    images (batch, pictures, 3, height, width) give a list with an entry a pair of blocks, (batch,
    pictures, tokens, 2 channels) for those in `kept` and None for the others, and the index of the
    first patch token. While training, the original computes all.
    """

    def __init__(self, original: nn.Module, kept: frozenset[int]) -> None:
        super().__init__(original)
        self._parameters = original._parameters  # shared as the children are
        self._buffers = original._buffers
        self._non_persistent_buffers_set = original._non_persistent_buffers_set
        self.kept = kept

    def forward(self, images: Tensor) -> tuple[list[Tensor | None], int]:
        """As the original's forward."""
        if self.training or images.ndim != 5 or images.shape[2] != 3:
            self.original.training = self.training
            return self.original.forward(images)  # type: ignore[no-any-return]
        batch, pictures, _, height, width = images.shape
        of: Any = self.original
        x = self._tokens(((images - of._resnet_mean) / of._resnet_std).flatten(0, 1), pictures)
        tokens, channels = x.shape[1:]
        pos = self._positions(batch * pictures, height, width, images.device)
        whole = None if pos is None else pos.reshape(batch, -1, 2)
        out: list[Tensor | None] = []
        pairs = zip(self.frame_blocks, self.global_blocks, strict=True)
        for i, (frame_block, global_block) in enumerate(pairs):
            x = alone = frame_block(x.reshape(batch * pictures, tokens, channels), pos=pos)
            x = global_block(x.reshape(batch, pictures * tokens, channels), pos=whole)
            shape = (batch, pictures, tokens, channels)
            kept = i in self.kept
            out.append(torch.cat([alone.view(shape), x.view(shape)], dim=-1) if kept else None)
        return out, self.patch_start_idx

    def _tokens(self, flat: Tensor, pictures: int) -> Tensor:
        """(batch * pictures, tokens, channels): camera and register tokens, of the first picture
        and of the others, before the patches'."""
        patches = self.patch_embed(flat)
        if isinstance(patches, dict):
            patches = patches["x_norm_patchtokens"]
        special = torch.cat([self.camera_token, self.register_token], dim=2)
        first, others = special[:, :1], special[:, 1:].expand(-1, pictures - 1, -1, -1)
        special = torch.cat([first, others], dim=1).expand(len(flat) // pictures, -1, -1, -1)
        return torch.cat([special.flatten(0, 1), patches], dim=1)

    def _positions(self, n: int, height: int, width: int, device: torch.device) -> Tensor | None:
        """(n, tokens, 2): rows and columns of patches from 1, and 0 for what comes before them."""
        if self.rope is None:
            return None
        pos = self.position_getter(n, height // self.patch_size, width // self.patch_size, device)
        return torch.cat([pos.new_zeros(n, self.patch_start_idx, 2), pos + 1], dim=1)

    def extra_repr(self) -> str:
        return f"keeps the outputs of layers {', '.join(map(str, sorted(self.kept)))}"


# ---- the swap ------------------------------------------------------------------------------------


def is_like(module: nn.Module) -> bool:
    """Whether it is VGGT's, by the path of its class, and is not swapped."""
    return is_of(module, AGGREGATOR)


def layers_read(model: nn.Module, aggregator: nn.Module) -> frozenset[int]:
    """The pairs of blocks whose outputs a VGGT's heads read; the camera head reads the last."""
    heads = [m for m in model.modules() if hasattr(m, "intermediate_layer_idx")]
    last = len(aggregator.frame_blocks) - 1  # type: ignore[arg-type]
    return frozenset(i for head in heads for i in head.intermediate_layer_idx) | {last}  # type: ignore[union-attr]


def reason_against(model: nn.Module, aggregator: Any) -> str:
    """Why an aggregator stays as it is, or ""."""
    owner = f"it is part of a {type(model).__name__}, whose heads may read any layer"
    order = list(getattr(aggregator, "aa_order", ()))
    even = len(aggregator.frame_blocks) == len(aggregator.global_blocks)
    checks = (
        (not is_of(model, MODEL) or not ADAPTER.fits(model), owner),
        ("forward" in vars(aggregator), "it has a forward of its own"),
        (bool(aggregator._forward_hooks or aggregator._forward_pre_hooks), "it has hooks"),
        (aggregator.training, "it is in training mode"),
        (not even, "it has not as many frame blocks as global blocks"),
        (order != ["frame", "global"], "its order is not frame, global"),
        (getattr(aggregator, "aa_block_size", 0) != 1, "it repeats blocks of a kind"),
    )
    return next((reason for holds, reason in checks if holds), "")


class _Patches(nn.Module):
    """In the place of a patch embedding: the mean of each patch on all channels."""

    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        means = nn.functional.avg_pool2d(x.mean(1, keepdim=True), self.patch).flatten(2)
        return {"x_norm_patchtokens": means.mT.expand(-1, -1, self.channels)}


class _Block(nn.Module):
    """In the place of a block: it marks tokens by its number, their position and their order."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        y = x.roll(1, dims=1) * 0.5 + self.number
        return y if pos is None else y + (pos.to(x.dtype) @ x.new_tensor([0.25, 0.125]))[..., None]


@torch.no_grad()
def agrees(aggregator: Any, kept: frozenset[int]) -> bool:
    """Whether ours gives the same bits as the original, with blocks that cost nothing in both."""
    probe = copy.copy(aggregator)
    probe._modules = dict(aggregator._modules)
    depth, channels = len(aggregator.frame_blocks), aggregator.camera_token.shape[-1]
    probe._modules["patch_embed"] = _Patches(aggregator.patch_size, channels)
    probe._modules["frame_blocks"] = nn.ModuleList(map(_Block, range(depth)))
    probe._modules["global_blocks"] = nn.ModuleList(map(_Block, range(depth, 2 * depth)))
    random = torch.Generator().manual_seed(0)
    size = (2 * aggregator.patch_size, 3 * aggregator.patch_size)
    device = aggregator.camera_token.device
    images = torch.rand((2, 3, 3, *size), generator=random, device="cpu").to(device)
    with torch.autocast(device.type, enabled=False):
        want, start = probe.forward(images)
        got, first = QuantizedAggregator(probe, kept)(images)
    if (len(got), first) != (len(want), start):
        return False
    return all(want[i] is not None and torch.equal(want[i], got[i]) for i in kept)
