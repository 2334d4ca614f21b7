# SPDX-License-Identifier: Apache-2.0
"""What is special to VGGT: how it is built, its first and last Linear, what its layers see, its
outputs, the licences of its weights."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .errors import UserError

FRAME_SIZE = 518
"""Width in pixels of the pictures that it was trained on."""

LICENCES = {
    "facebook/VGGT-1B": "CC BY-NC 4.0, as tagged on the hub: non-commercial use only",
    "facebook/VGGT-1B-Commercial": "VGGT License: commercial use within its acceptable use policy",
}
FILE_LICENCE = (
    "not stated in the file: VGGT-1B is non-commercial (CC BY-NC 4.0), VGGT-1B-Commercial is under "
    "the VGGT License; a quantized copy stays under the licence of its source"
)
_INSTALL = (
    "the vggt package is not installed, and its checkpoints need it: "
    "pip install git+https://github.com/facebookresearch/vggt"
)

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

MODEL = "vggt.models.vggt.VGGT"
AGGREGATOR = "vggt.models.aggregator.Aggregator"
"""Ends of the paths of its classes. Whoever else owns an aggregator may read any of its layers."""

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


def build(settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """VGGT as the installed package defines it, without the tracker where no name is one of its.

    settings: arguments of its constructor; others are left out. names: the tensors to be loaded.

    Raises:
        UserError: the package is missing or broken, or takes no such settings.
    """
    try:
        kind = importlib.import_module("vggt.models.vggt").VGGT
    except ModuleNotFoundError as error:
        missing = error.name or "vggt"
        if missing.split(".")[0] == "vggt":
            raise UserError(_INSTALL) from error
        raise UserError(f"vggt needs {missing}, which is not installed") from error
    except (ImportError, AttributeError) as error:
        raise UserError(f"the installed vggt package does not work: {error}") from error
    accepted = inspect.signature(kind.__init__).parameters
    arguments = {key: value for key, value in settings.items() if key in accepted}
    has_tracker = any(name.startswith("track_head.") for name in names)
    if not has_tracker and "enable_track" in accepted:
        arguments["enable_track"] = False
    try:
        model: nn.Module = kind(**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"VGGT cannot be built with {dict(settings)} ({error})") from error
    if not has_tracker:
        # Older copies know no enable_track, but check for None.
        model.track_head = None  # type: ignore[assignment]
    return model


def drop_heads(model: nn.Module, names: Collection[str]) -> None:
    """Take away the heads that none of the tensors belongs to; VGGT's forward checks for None."""
    for head, _ in list(model.named_children()):
        if head.endswith("_head") and not any(name.startswith(f"{head}.") for name in names):
            setattr(model, head, None)


def settings_of(model: nn.Module) -> dict[str, Any] | None:
    """The arguments that a VGGT was built with; None for another model."""
    kind = type(model)
    if kind.__module__.partition(".")[0] != "vggt" or kind.__name__ != "VGGT":
        return None
    return dict(getattr(model, "_hub_mixin_config", None) or {})
