# SPDX-License-Identifier: Apache-2.0
"""TinyVGGT: a multi-view reconstruction model of VGGT's shape, small enough to ship.

Aggregator (patch embedding, alternating frame and global attention), iterative camera head, and
two dense heads, with VGGT's module names, outputs and conventions; only sizes differ, and the
dense heads work at a quarter of the resolution and end in a pixel shuffle.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggtquant.errors import UserError
from vggtquant.tiny.layers import Block, Mlp, PatchEmbed, rope_tables

PATCH = 14
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as VGGT normalises


class Aggregator(nn.Module):
    """Pictures to tokens: each frame by itself and all frames together, in turns."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, dim: int, heads: int, depth: int, embed_depth: int, grid: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(grid, PATCH, dim, heads, embed_depth)
        self.frame_blocks = nn.ModuleList(
            Block(dim, heads, qk_norm=True, init=0.2) for _ in range(depth)
        )
        self.global_blocks = nn.ModuleList(
            Block(dim, heads, qk_norm=True, init=0.2) for _ in range(depth)
        )
        # sharper than VGGT's start of 1: with 32 channels a head, a true match among hundreds of
        # tokens would get little weight, and learning to match is what takes longest
        for name, weight in self.global_blocks[1:].named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                nn.init.constant_(weight, 1.45)
        # index 0 is for the first frame, which is the world; index 1 for all others
        self.camera_token = nn.Parameter(0.02 * torch.randn(1, 2, 1, dim))
        self.register_token = nn.Parameter(0.02 * torch.randn(1, 2, 4, dim))
        self.patch_start_idx = 5
        self.head_dim = dim // heads
        self.register_buffer("_mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[list[Tensor], int]:
        """Tokens after each pair of blocks, frame beside global: (B, S, 5 + patches, 2 dim)."""
        batch, frames, _, height, width = images.shape
        rows, columns = height // PATCH, width // PATCH
        flat = ((images - self._mean) / self._std).flatten(0, 1)
        patches = self.patch_embed(flat, (rows, columns))

        special = torch.cat([self.camera_token, self.register_token], dim=2)
        first, others = special[:, :1], special[:, 1:].expand(-1, frames - 1, -1, -1)
        special = torch.cat([first, others], dim=1).expand(batch, -1, -1, -1).flatten(0, 1)
        x = torch.cat([special, patches], dim=1)
        tokens, dim = x.shape[1:]

        pos = self.positions(rows, columns).to(x.device)
        frame_rope = rope_tables(pos, self.head_dim)
        global_rope = rope_tables(pos.repeat(frames, 1), self.head_dim)

        out = []
        for frame_block, global_block in zip(self.frame_blocks, self.global_blocks, strict=True):
            x = frame_block(x.reshape(batch * frames, tokens, dim), frame_rope)
            alone = x.view(batch, frames, tokens, dim)
            x = global_block(x.reshape(batch, frames * tokens, dim), global_rope)
            out.append(torch.cat([alone, x.view(batch, frames, tokens, dim)], dim=-1))
        return out, self.patch_start_idx

    def positions(self, rows: int, columns: int) -> Tensor:
        """Places (y, x) of one frame's tokens: special ones at 0, patches from 1."""
        ys, xs = (torch.arange(1, n + 1, device="cpu") for n in (rows, columns))
        grid = torch.cartesian_prod(ys, xs)
        return torch.cat([grid.new_zeros(self.patch_start_idx, 2), grid])


class CameraHead(nn.Module):
    """Camera tokens to pose encodings, refined step by step from the previous guess."""

    def __init__(self, dim: int, heads: int, trunk_depth: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(Block(dim, heads, qk_norm=False, init=0.2) for _ in range(trunk_depth))
        )
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def forward(self, tokens: Tensor, iterations: int = 4) -> list[Tensor]:
        """Pose encodings (B, S, 9) of every iteration: translation, quaternion, field of view."""
        tokens = self.token_norm(tokens[:, :, 0])
        normed = self.adaln_norm(tokens)
        pose: Tensor | None = None
        out = []
        for _ in range(iterations):
            # the guess is an input, not a path for gradients
            guess = self.empty_pose_tokens.expand(*tokens.shape[:2], -1)
            guess = guess if pose is None else pose.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(guess)).chunk(3, dim=-1)
            x = self.trunk(gate * (normed * (1 + scale) + shift) + tokens)
            delta = self.pose_branch(self.trunk_norm(x))
            pose = delta if pose is None else pose + delta
            out.append(torch.cat([pose[..., :7], F.relu(pose[..., 7:])], dim=-1))
        return out


class Refine(nn.Module):
    """Adds a residual convolution to the sum of two feature maps."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = x if skip is None else x + skip
        out: Tensor = x + self.conv(F.relu(x))
        return out


class DPTHead(nn.Module):
    """Tokens of four depths to a dense map and its confidence (after Ranftl et al., DPT, 2021)."""

    def __init__(self, dim: int, taps: int, features: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, features, 1) for _ in range(taps))
        self.resize_layers = nn.ModuleList(
            nn.ConvTranspose2d(features, features, 2, 2) if i < taps // 2 else nn.Identity()
            for i in range(taps)
        )
        self.refine = nn.ModuleList(Refine(features) for _ in range(taps))
        self.output_conv1 = nn.Conv2d(features, 32, 3, padding=1)
        self.image_conv = nn.Conv2d(3 * 16, 32, 1)  # 4x4 pixels of the picture: sharp edges
        self.output_conv2 = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 16 * out_channels, 1),
        )

    def forward(self, taps: list[Tensor], images: Tensor, start: int) -> Tensor:
        """Raw maps (B * S, out_channels, H, W) from tokens (B, S, tokens, dim)."""
        height, width = images.shape[-2:]
        rows, columns = height // PATCH, width // PATCH
        maps = []
        for tokens, project, resize in zip(taps, self.projects, self.resize_layers, strict=True):
            x = self.norm(tokens[:, :, start:]).flatten(0, 1)
            maps.append(resize(project(x.transpose(1, 2).unflatten(2, (rows, columns)))))
        x = self.refine[-1](maps[-1])
        for skip, refine in zip(reversed(maps[:-1]), reversed(self.refine[:-1]), strict=True):
            if skip.shape != x.shape:
                x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = refine(x, skip)
        # a quarter of the picture, rounded up: 14 k / 4 is no integer for odd k
        quarter = ((height + 3) // 4, (width + 3) // 4)
        whole = (4 * quarter[0], 4 * quarter[1])
        x = self.output_conv1(F.interpolate(x, quarter, mode="bilinear", align_corners=False))
        picture = images.flatten(0, 1) - 0.5
        if whole != (height, width):
            picture = F.interpolate(picture, whole, mode="bilinear", align_corners=False)
        x = x + self.image_conv(F.pixel_unshuffle(picture, 4))
        x = F.pixel_shuffle(self.output_conv2(x), 4)
        if whole != (height, width):
            x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        return x


def inverse_log(y: Tensor) -> Tensor:
    """sign(y) * (exp(|y|) - 1): VGGT's activation of world points."""
    return torch.sign(y) * torch.expm1(torch.abs(y))


class TinyVGGT(nn.Module):
    """The embedded model; takes pictures in [0, 1] and returns VGGT's dictionary of predictions."""

    def __init__(
        self,
        dim: int = 128,
        heads: int = 4,
        depth: int = 4,
        embed_depth: int = 2,
        trunk_depth: int = 2,
        features: int = 48,
        grid: int = 8,
    ) -> None:
        super().__init__()
        self.settings = {
            "dim": dim,
            "heads": heads,
            "depth": depth,
            "embed_depth": embed_depth,
            "trunk_depth": trunk_depth,
            "features": features,
            "grid": grid,
        }
        self.aggregator = Aggregator(dim, heads, depth, embed_depth, grid)
        self.camera_head = CameraHead(2 * dim, 2 * heads, trunk_depth)
        self.point_head = DPTHead(2 * dim, depth, features, 4)
        self.depth_head = DPTHead(2 * dim, depth, features, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Reconstruct S pictures (S, 3, H, W) or (B, S, 3, H, W) in [0, 1], 14 pixels or more.

        Returns pose_enc (B, S, 9), pose_enc_list, depth (B, S, H, W, 1), world_points
        (B, S, H, W, 3), their depth_conf and world_points_conf (B, S, H, W), and in eval mode the
        images. H and W that are no multiples of 14 are padded for the computation, with a
        UserWarning; the outputs are those of the pictures as given. Raises UserError for any
        other shape.

        >>> import torch, vggtquant.tiny
        >>> out = vggtquant.tiny.build()(torch.rand(2, 3, 28, 42))
        >>> out["depth"].shape
        torch.Size([1, 2, 28, 42, 1])
        """
        images = images[None] if images.ndim == 4 else images
        check_images(images)
        padding = patch_padding(*images.shape[-2:])
        padded = F.pad(images, padding, value=1.0) if any(padding) else images
        tokens, start = self.aggregator(padded)
        out = self.heads(tokens, padded, start)
        return without_padding(out, images, padding) if any(padding) else out

    def heads(
        self, tokens: list[Tensor], images: Tensor, start: int
    ) -> dict[str, Tensor | list[Tensor]]:
        """The predictions from the aggregator's tokens, in float32 whatever autocast says."""
        with torch.autocast(images.device.type, enabled=False):
            tokens = [t.float() for t in tokens]
            poses = self.camera_head(tokens[-1])
            shape = images.shape[:2]
            depth = self.depth_head(tokens, images, start).unflatten(0, shape)
            points = self.point_head(tokens, images, start).unflatten(0, shape)
            out: dict[str, Tensor | list[Tensor]] = {
                "pose_enc": poses[-1],
                "pose_enc_list": poses,
                "depth": depth[:, :, 0, ..., None].exp(),
                "depth_conf": 1 + depth[:, :, 1].exp(),
                "world_points": inverse_log(points[:, :, :3].movedim(2, -1)),
                "world_points_conf": 1 + points[:, :, 3].exp(),
            }
        if not self.training:
            out["images"] = images
        return out


def patch_padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Pixels to add on the left, right, top and bottom: whole patches, the picture in the middle.

    Warns where there are any.
    """
    across, down = -width % PATCH, -height % PATCH
    if across or down:
        warnings.warn(
            f"pictures of {height}x{width} are padded with white to {height + down}x"
            f"{width + across}: multiples of {PATCH} are wanted",
            stacklevel=3,
        )
    return across // 2, across - across // 2, down // 2, down - down // 2


def without_padding(
    out: dict[str, Tensor | list[Tensor]], images: Tensor, padding: tuple[int, int, int, int]
) -> dict[str, Tensor | list[Tensor]]:
    """The predictions of padded pictures, for the pictures as given: maps cut, views narrowed."""
    left, right, top, bottom = padding
    height, width = images.shape[-2:]
    shares = images.new_tensor([height / (height + top + bottom), width / (width + left + right)])

    def narrowed(pose: Tensor) -> Tensor:  # the focal length stays: tan(view / 2) = size / 2 f
        view = 2 * torch.atan(shares * torch.tan(pose[..., 7:] / 2))
        return torch.cat([pose[..., :7], view], -1)

    rows, columns = slice(top, top + height), slice(left, left + width)
    cut: dict[str, Tensor | list[Tensor]] = {}
    for name, value in out.items():
        if isinstance(value, list):
            cut[name] = [narrowed(pose) for pose in value]
        elif name == "pose_enc":
            cut[name] = narrowed(value)
        else:
            cut[name] = images if name == "images" else value[:, :, rows, columns]
    return cut


def check_images(images: Tensor) -> None:
    """Raise UserError unless images are (B, S, 3, H, W) floats of a size that the model takes."""
    shape = tuple(images.shape)
    if images.ndim != 5 or shape[2] != 3:
        raise UserError(f"images must be (S, 3, H, W) or (B, S, 3, H, W), got {shape}")
    if shape[0] == 0 or shape[1] == 0:
        raise UserError(f"at least 1 frame is wanted, got {shape[0]} batches of {shape[1]} frames")
    height, width = shape[3:]
    if height < PATCH or width < PATCH:
        raise UserError(
            f"pictures of {height}x{width} are smaller than a patch; wanted {PATCH}x{PATCH} or more"
        )
    if not images.is_floating_point():
        raise UserError(f"images must be floats in [0, 1], got {images.dtype}")
