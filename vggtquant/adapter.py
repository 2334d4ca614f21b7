# SPDX-License-Identifier: Apache-2.0
"""Adapter: what vggtquant knows of one model, and the outputs that every model is brought to.

The models of VGGT's family stand in vggtquant/adapters, a file each. A file holds a table, ADAPTER;
nothing else has to change for a new one (docs/family.md).
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .errors import UserError

FRAME_SIZE, PATCH = 518, 14
"""Width in pixels of VGGT's pictures, and of a patch."""

# ---- outputs -------------------------------------------------------------------------------------

IMAGE_AXES: dict[str, tuple[int, int] | None] = {
    "depth": (2, 3),  # (B, S, H, W, 1)
    "depth_conf": (2, 3),  # (B, S, H, W)
    "world_points": (2, 3),  # (B, S, H, W, 3)
    "world_points_conf": (2, 3),
    "pose_translation": None,  # (B, S, 3)
    "pose_rotation": None,  # (B, S, 4)
    "pose_fov": None,  # (B, S, 2)
    "features": (2, 3),  # (B, S, h, w, C): of an encoder, a vector a patch
}
"""Outputs that are compared, with their height and width axes: VGGT's, and features of encoders."""

_POSE_PARTS = {"pose_translation": (0, 3), "pose_rotation": (3, 7), "pose_fov": (7, 9)}


def split_outputs(predictions: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs of IMAGE_AXES that a model gave, pose_enc cut into its three parts.

    predictions: in VGGT's form, as Adapter.outputs returns them; what a model lacks is absent.

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


# ---- what is swapped -----------------------------------------------------------------------------

Form = Literal["grid", "cos_sin", "sin_cos"]
"""How a call says where its tokens are.

grid: whole numbers (batch, tokens, 2), (y, x), which the attention's `rope` turns by.
cos_sin: tables (tokens, head_dim) of cosines and signed sines; channel i of each half of a head
turns with i + head_dim / 4.
sin_cos: tables (n, head_dim) of sines and cosines for the last n tokens, the others being left as
they are; channel i turns with i + head_dim / 2 (DINOv3).
"""


class Swappable(NamedTuple):
    """A class of attentions or of blocks that packed kernels can compute."""

    path: str
    """The end of the class's path."""
    arguments: tuple[str, ...]
    """Of its forward, without self. Calls with others than x and positions go to the original."""
    positions: tuple[str, Form] | None = None
    """The argument that holds positions, and its form."""
    off: tuple[str, ...] = ()
    """Attributes that have to be None or False: what they switch on is not served."""


# ---- models --------------------------------------------------------------------------------------

Shapes = Mapping[str, tuple[int, ...]]
"""The tensors of a state dict: their shapes by name."""


@dataclass(frozen=True)
class Files:
    """How a model is built from a file of weights."""

    build: Callable[[Mapping[str, Any], Collection[str]], nn.Module]
    """From its settings and the names of the tensors that it will hold."""
    settings_of: Callable[[nn.Module], dict[str, Any]]
    """The settings that a model of this kind was built with."""
    recognises: Callable[[Shapes, Mapping[str, Any]], bool]
    """Whether tensors of these names and shapes are of this kind, built with these settings."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """Of the weights, by hub id."""


def as_it_is(model: nn.Module, images: Tensor) -> Any:
    """model(images)."""
    return model(images)


def unchanged(found: Any, images: Tensor) -> Any:
    """The outputs of a model that gives VGGT's dict."""
    return found


@dataclass(frozen=True)
class Adapter:
    """One model: how it is told, built, shown pictures, and what of it can be swapped."""

    name: str
    """What --adapter takes and packed files record."""
    models: tuple[str, ...]
    """Ends of the paths of its class."""
    fits: Callable[[nn.Module], bool] = lambda model: True
    """Tells it from another model whose class has the same path."""
    run: Callable[[nn.Module, Tensor], Any] = as_it_is
    """Shows the model pictures (S, 3, H, W) or (B, S, 3, H, W) in [0, 1], in whatever form and
    normalization it wants; returns what the model does."""
    outputs: Callable[[Any, Tensor], Any] = unchanged
    """From what the model returned, and the pictures, to VGGT's outputs by name: pose_enc (B, S,
    9), translation, quaternion (x, y, z, w) and fields of view of cameras from the world; depth (B,
    S, H, W, 1), world_points (B, S, H, W, 3), a confidence (B, S, H, W) of each; or features."""
    image_size: int = FRAME_SIZE
    """Width in pixels that pictures are scaled to."""
    patch: int = PATCH
    """Height and width are multiples of it."""
    attentions: tuple[Swappable, ...] = ()
    blocks: tuple[Swappable, ...] = ()
    linears: Mapping[str, Callable[[nn.Linear], nn.Linear | str]] = field(default_factory=dict)
    """Subclasses of nn.Linear, by the end of their path: the plain Linear that gives the same
    outputs, or why there is none."""
    left_alone: Mapping[str, str] = field(default_factory=dict)
    """Classes with attention that stay as they are, by the end of their path, and why."""
    edges: tuple[str, ...] = ()
    """The first and the last Linear on the way from pixels to poses, where module order does not
    say it."""
    files: Files | None = None


# ---- helpers of adapters: building ---------------------------------------------------------------


def constructed(
    path: str, install: str, settings: Mapping[str, Any], switches: Mapping[str, Any] | None = None
) -> nn.Module:
    """A model of an installed package.

    path: of its class. install: what pip installs it from. settings: arguments of the constructor;
    others are left out. switches: arguments that are given where the constructor takes them.

    Raises:
        UserError: the package is missing or broken, or takes no such settings.
    """
    module, _, name = path.rpartition(".")
    package = path.partition(".")[0]
    try:
        kind = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = error.name or package
        if missing.split(".")[0] == package:
            raise UserError(
                f"the {package} package is not installed, and its checkpoints need it: "
                f"pip install {install}"
            ) from error
        raise UserError(f"{package} needs {missing}, which is not installed") from error
    except (ImportError, AttributeError) as error:
        raise UserError(f"the installed {package} package does not work: {error}") from error
    accepted = inspect.signature(kind.__init__).parameters
    arguments = {k: v for k, v in {**settings, **(switches or {})}.items() if k in accepted}
    try:
        model: nn.Module = kind(**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} cannot be built with {dict(settings)} ({error})") from error
    return model


def hub_settings(model: nn.Module) -> dict[str, Any]:
    """The arguments that a model of huggingface_hub's PyTorchModelHubMixin was built with."""
    return dict(getattr(model, "_hub_mixin_config", None) or {})


# ---- helpers of adapters: pictures and cameras ---------------------------------------------------

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def scenes(images: Tensor) -> Tensor:
    """(B, S, 3, H, W) of one scene or of several.

    >>> scenes(torch.zeros(2, 3, 14, 14)).shape
    torch.Size([1, 2, 3, 14, 14])
    """
    return images if images.ndim == 5 else images[None]


def normalized(images: Tensor) -> Tensor:
    """Pictures in [0, 1] with ImageNet's mean and deviation taken out, as DINOv2 wants them."""
    mean, deviation = (images.new_tensor(x)[:, None, None] for x in (_MEAN, _DEVIATION))
    return (images - mean) / deviation


def pose_encoding(extrinsics: Tensor, fov: Tensor) -> Tensor:
    """(…, 9) of cameras from the world (…, 3 or 4, 4) and fields of view (…, 2), vertical first.

    >>> pose_encoding(torch.eye(4)[None], torch.ones(1, 2)).tolist()
    [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]
    """
    return torch.cat([extrinsics[..., :3, 3], quaternion(extrinsics[..., :3, :3]), fov], dim=-1)


def quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions (…, 4), x y z w, of rotations (…, 3, 3).

    With q = (x, y, z, w), the matrix 4 q qᵀ follows from the rotation's elements; its row with the
    largest diagonal element is q times a number far from 0.
    """
    r = rotation
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    xy, xz, yz = (r[..., i, j] + r[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    xw, yw, zw = (r[..., i, j] - r[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    rows = [
        torch.stack([1 + xx - yy - zz, xy, xz, xw], dim=-1),
        torch.stack([xy, 1 - xx + yy - zz, yz, yw], dim=-1),
        torch.stack([xz, yz, 1 - xx - yy + zz, zw], dim=-1),
        torch.stack([xw, yw, zw, 1 + xx + yy + zz], dim=-1),
    ]
    whole = torch.stack(rows, dim=-2)
    best = whole.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    row = whole.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    return nn.functional.normalize(row * torch.where(row[..., 3:] < 0, -1.0, 1.0), dim=-1)


def inverted(pose: Tensor) -> Tensor:
    """The inverse (…, 3, 4) of rigid motions (…, 3 or 4, 4)."""
    turned = pose[..., :3, :3].transpose(-1, -2)
    return torch.cat([turned, -turned @ pose[..., :3, 3:]], dim=-1)


def fov_of_points(points: Tensor) -> Tensor:
    """Fields of view (…, 2) in radians, vertical first, of points in a camera's frame
    (…, H, W, 3), with the principal point in the middle.

    A focal length f is the least-squares solution of column = f x / z, with columns counted from
    the middle; rows likewise.
    """
    height, width = points.shape[-3:-1]
    found = []
    for size, axis, at in ((height, 1, -2), (width, 0, -1)):
        steps = torch.arange(size, device=points.device, dtype=points.dtype) - (size - 1) / 2
        place = steps[:, None] if at == -2 else steps
        slope = points[..., axis] / points[..., 2]
        focal = (place * slope).sum((-1, -2)) / slope.square().sum((-1, -2)).clamp(min=1e-12)
        found.append(2 * torch.atan(size / 2 / focal.abs().clamp(min=1e-6)))
    return torch.stack(found, dim=-1)


def fov_of_intrinsics(intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Fields of view (…, 2) of intrinsics (…, 3, 3) in pixels of a picture (height, width)."""
    half = intrinsics.new_tensor(size) / 2
    focal = torch.stack([intrinsics[..., 1, 1], intrinsics[..., 0, 0]], dim=-1)
    return 2 * torch.atan(half / focal)


def turned_back(pose: Tensor, quaternions: Tensor) -> tuple[Tensor, Tensor]:
    """Translations (…, 3) and quaternions (…, 4) of the inverse motions: of cameras from the world
    where cameras to the world are given."""
    conjugate = quaternions * quaternions.new_tensor([-1, -1, -1, 1])
    axis, real = conjugate[..., :3], conjugate[..., 3:]
    across = torch.linalg.cross(axis, pose) * 2
    return -(pose + real * across + torch.linalg.cross(axis, across)), conjugate


@contextmanager
def quiet_about_cuda() -> Iterator[None]:
    """Within it, code that enters CUDA's autocast on a CPU does not warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*CUDA is not available", UserWarning)
        warnings.filterwarnings("ignore", ".*torch.cuda.amp.autocast", FutureWarning)
        yield


def run_quietly(model: nn.Module, images: Tensor) -> Any:
    """The forward of a model that normalizes pictures itself and enters CUDA's autocast."""
    with quiet_about_cuda():
        return model(scenes(images))
