# SPDX-License-Identifier: Apache-2.0
"""A small dense head with the parts and the arithmetic of VGGT's, written anew for the tests."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def activate_head(
    out: torch.Tensor, activation: str = "exp", conf_activation: str = "expp1"
) -> tuple[torch.Tensor, torch.Tensor]:
    out = out.permute(0, 2, 3, 1)
    values, confidence = out[..., :-1], out[..., -1].exp()
    kinds: Any = {"linear": lambda x: x, "exp": torch.exp}
    return kinds[activation](values), confidence + (conf_activation == "expp1")


class Unit(nn.Module):
    bn = False

    def __init__(self, features: int, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, 1, 1)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1)
        self.activation = nn.ReLU(inplace=inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(self.activation(x))
        return self.conv2(self.activation(inner)) + x


class Fusion(nn.Module):
    def __init__(self, features: int, residual: bool, inplace: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if residual:
            self.resConfUnit1 = Unit(features, inplace)
        self.resConfUnit2 = Unit(features, inplace)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None, size: Any) -> torch.Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = self.resConfUnit2(x)
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        return self.out_conv(F.interpolate(x, size, mode="bilinear", align_corners=True))


class DPTHead(nn.Module):
    """Tokens of four layers to predictions (batch, pictures, height, width, outputs - 1)."""

    patch_size, down_ratio, feature_only, pos_embed = 4, 1, False, True
    activation, conf_activation = "exp", "expp1"

    def __init__(self, dim: int = 24, outputs: int = 4, inplace: bool = True) -> None:
        super().__init__()
        features, wide = 16, [8, 16, 24, 24]
        self.intermediate_layer_idx = [0, 1, 2, 3]
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, n, 1) for n in wide)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(wide[0], wide[0], 4, 4),
                nn.ConvTranspose2d(wide[1], wide[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(wide[3], wide[3], 3, 2, 1),
            ]
        )
        self.scratch = nn.Module()
        for i, n in enumerate(wide, 1):
            setattr(self.scratch, f"layer{i}_rn", nn.Conv2d(n, features, 3, 1, 1, bias=False))
            setattr(self.scratch, f"refinenet{i}", Fusion(features, i != 4, inplace))
        self.scratch.output_conv1 = nn.Conv2d(features, 8, 3, 1, 1)
        self.scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(8, outputs, 1)
        )

    def embedded(self, x: torch.Tensor, aspect: float) -> torch.Tensor:
        _, channels, high, wide = x.shape
        diagonal = (aspect**2 + 1) ** 0.5
        quarter = channels // 4
        omega = 1 / 100 ** (torch.arange(quarter).double() / quarter)

        def waves(span: float, n: int) -> torch.Tensor:
            at = torch.linspace(-span * (n - 1) / n, span * (n - 1) / n, n).double()
            angles = omega[:, None] * at
            return 0.1 * torch.cat([angles.sin(), angles.cos()]).float()

        columns = waves(aspect / diagonal, wide)[:, None].expand(-1, high, -1)
        rows = waves(1 / diagonal, high)[:, :, None].expand(-1, -1, wide)
        return x + torch.cat([columns, rows])

    def forward(
        self,
        tokens: list[torch.Tensor],
        images: torch.Tensor,
        start: int,
        frames_chunk_size: int = 8,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, pictures, _, height, width = images.shape
        high, wide, aspect = height // self.patch_size, width // self.patch_size, width / height
        scratch: Any = self.scratch
        maps = []
        for i in range(4):
            x = self.norm(tokens[i][:, :, start:].flatten(0, 1))
            x = self.projects[i](x.transpose(1, 2).unflatten(2, (high, wide)))
            x = self.resize_layers[i](self.embedded(x, aspect))
            maps.append(getattr(scratch, f"layer{i + 1}_rn")(x))
        out = scratch.refinenet4(maps[3], None, maps[2].shape[2:])
        out = scratch.refinenet3(out, maps[2], maps[1].shape[2:])
        out = scratch.refinenet2(out, maps[1], maps[0].shape[2:])
        out = scratch.output_conv1(scratch.refinenet1(out, maps[0], None))
        out = F.interpolate(out, (height, width), mode="bilinear", align_corners=True)
        out = scratch.output_conv2(self.embedded(out, aspect))
        values, confidence = activate_head(out, self.activation, self.conf_activation)
        return values.unflatten(0, (batch, pictures)), confidence.unflatten(0, (batch, pictures))


class Model(nn.Module):
    """A head below a few Linear layers, as quantize_model wants a model."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24))
        self.depth_head = DPTHead(inplace=inplace)

    def forward(self, tokens: list[torch.Tensor], images: torch.Tensor) -> Any:
        return self.depth_head([self.trunk(t) for t in tokens], images, 1)
