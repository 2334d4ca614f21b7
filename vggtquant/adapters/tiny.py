# SPDX-License-Identifier: Apache-2.0
"""TinyVGGT, the small trained model that is part of the package."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from ..adapter import Adapter, Files, Shapes, Swappable
from ..errors import UserError
from ..meta import parameters_without_memory


def build(settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """TinyVGGT of these sizes; UserError for sizes that do not fit."""
    from ..tiny.model import TinyVGGT

    try:
        return TinyVGGT(**settings)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"TinyVGGT cannot be built with {dict(settings)} ({error})") from error


def settings_of(model: nn.Module) -> dict[str, Any]:
    """The sizes of a TinyVGGT."""
    settings: dict[str, Any] = model.settings  # type: ignore[assignment]
    return settings


def is_tiny(shapes: Shapes, settings: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of a TinyVGGT of these sizes."""
    try:
        with parameters_without_memory():
            state = build(settings, ()).state_dict()
    except UserError:
        return False
    return {name: tuple(x.shape) for name, x in state.items()} == dict(shapes)


ADAPTER = Adapter(
    "builtin:tiny",
    models=("vggtquant.tiny.model.TinyVGGT",),
    image_size=112,
    attentions=(Swappable("vggtquant.tiny.layers.Attention", ("x", "rope"), ("rope", "cos_sin")),),
    blocks=(Swappable("vggtquant.tiny.layers.Block", ("x", "rope"), ("rope", "cos_sin")),),
    files=Files(build, settings_of, is_tiny),
)
