# SPDX-License-Identifier: Apache-2.0
"""Small models with VGGT's outputs for the tests of the evaluation; `toy:build` for the CLI."""

import torch
from torch import nn


class Toy(nn.Module):
    """Patches, a few Linear layers, a tracker that never runs, and all outputs of VGGT."""

    image_size = 28

    def __init__(self, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.patch = nn.Conv2d(3, width, 14, 14)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
            )
            for _ in range(blocks)
        )
        self.track_head = nn.Linear(width, width)
        self.pose = nn.Linear(width, 9)
        self.head = nn.Linear(width, 14 * 14 * 6)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.08, generator=generator)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images = images if images.dim() == 5 else images[None]
        b, s, _, h, w = images.shape
        x = self.patch(images.flatten(0, 1)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        y = self.head(x).view(b, s, h // 14, w // 14, 14, 14, 6).permute(0, 1, 2, 4, 3, 5, 6)
        y = y.reshape(b, s, h, w, 6)
        return {
            "pose_enc": self.pose(x.mean(1)).view(b, s, 9),
            "depth": y[..., :1].exp(),
            "depth_conf": 1 + y[..., 1].exp(),
            "world_points": y[..., 2:5],
            "world_points_conf": 1 + y[..., 5].exp(),
            "images": images,
        }


def build() -> nn.Module:
    """The model that works."""
    return Toy().eval()


def nan_weight() -> nn.Module:
    """One weight of one layer is NaN."""
    model = Toy().eval()
    with torch.no_grad():
        model.blocks[1][3].weight[0, 0] = torch.nan
    return model


def nan_output() -> nn.Module:
    """All weights are finite, the outputs are not."""
    model = Toy().eval()
    with torch.no_grad():
        model.head.bias.fill_(torch.inf)
    return model


def no_linear() -> nn.Module:
    """Nothing to quantize."""
    return nn.Conv2d(3, 3, 1).eval()


class _Slow(Toy):
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        import time

        time.sleep(0.05)
        return super().forward(images)


def slow() -> nn.Module:
    """Slow enough to be killed halfway."""
    return _Slow().eval()
