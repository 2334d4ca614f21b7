# SPDX-License-Identifier: Apache-2.0
"""What is special to VGGT: its first and last Linear, what its layers see, its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

FIRST_LAST = ("aggregator.patch_embed.blocks.0.attn.qkv", "camera_head.pose_branch.fc2")
"""The first and the last Linear on VGGT's way from pixels to poses; its patch embedding is a
convolution, and the tracker's layers come after the camera head in module order only."""

IMAGE_AXES: dict[str, tuple[int, int] | None] = {
    "depth": (2, 3),  # (B, S, H, W, 1)
    "depth_conf": (2, 3),  # (B, S, H, W)
    "world_points": (2, 3),  # (B, S, H, W, 3)
    "world_points_conf": (2, 3),
    "pose_translation": None,  # (B, S, 3)
    "pose_rotation": None,  # (B, S, 4)
    "pose_fov": None,  # (B, S, 2)
}
"""Outputs that are compared, with their height and width axes."""

FRAME_PASSES = (("*track_head.*", 0), ("*camera_head.*", 4))
"""How often the Linear layers of a name (fnmatch, after a dot) see one token a frame instead of all
patches: the camera head iterates four times, the tracker does not run without query points."""

TOKENS = 5
"""That a frame has beside its patches: one of the camera, four registers."""

_POSE_PARTS = {"pose_translation": (0, 3), "pose_rotation": (3, 7), "pose_fov": (7, 9)}


def first_and_last(names: Iterable[str]) -> tuple[str, ...]:
    """Those of VGGT's two edge layers among the names; () for another model."""
    names = list(names)
    found = [
        next((name for name in names if name == edge or name.endswith("." + edge)), None)
        for edge in FIRST_LAST
    ]
    return tuple(name for name in found if name is not None) if None not in found else ()


def split_outputs(predictions: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The outputs of IMAGE_AXES that the model gave, pose_enc cut into its three parts.

    predictions: what VGGT.forward returns; heads that a checkpoint lacks are simply absent.

    >>> sorted(split_outputs({"pose_enc": torch.zeros(1, 2, 9)}))
    ['pose_fov', 'pose_rotation', 'pose_translation']
    """
    outputs = {
        name: predictions[name]
        for name in IMAGE_AXES
        if isinstance(predictions.get(name), torch.Tensor)
    }
    pose = predictions.get("pose_enc")
    if isinstance(pose, torch.Tensor):
        outputs |= {name: pose[..., start:end] for name, (start, end) in _POSE_PARTS.items()}
    return {name: outputs[name] for name in IMAGE_AXES if name in outputs}
