# SPDX-License-Identifier: Apache-2.0
"""Models that can be built from what a file says of them: those whose adapter knows files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from torch import nn

from .. import adapters
from ..adapter import Adapter, Files, Shapes
from ..errors import UserError, check_type
from ..meta import parameters_without_memory


def files_of(name: str) -> Files | None:
    """How models of that architecture are built; None: only their owner can do it."""
    adapter = adapters.known().get(name)
    return adapter.files if adapter else None


def licences() -> dict[str, str]:
    """Of weights, by hub id."""
    known = (adapter.files for adapter in adapters.known().values() if adapter.files)
    return {name: words for files in known for name, words in files.licences.items()}


def recognised(
    shapes: Shapes, settings: Mapping[str, Any], *, exactly: bool = False
) -> Adapter | None:
    """What tensors of these names and shapes belong to; None where nobody knows.

    exactly: the names of a model's first and last Linear are complete, and not those of a part of
    another model.
    """
    kinds = (adapter for adapter in adapters.known().values() if adapter.files)
    found = next((a for a in kinds if a.files and a.files.recognises(shapes, settings)), None)
    edges = found.edges if found else ()
    if exactly and edges and not any(f"{edge}.weight" in shapes for edge in edges):
        return None
    return found


def check_module(model: object) -> nn.Module:
    """The model itself; UserError for what is no module."""
    check_type("the model", model, nn.Module, "a torch.nn.Module")
    return cast(nn.Module, model)


def of_model(model: nn.Module) -> tuple[str, dict[str, int | bool]]:
    """Name and plain settings of a model's architecture; "" where only its owner can build it."""
    adapter = adapters.of_model(model)
    if adapter.files is None:
        return "", {}
    return adapter.name, plain(adapter.files.settings_of(model))


def plain(settings: Mapping[str, Any]) -> dict[str, int | bool]:
    """Sizes and switches among an architecture's arguments, which is all that they have."""
    return {k: v for k, v in settings.items() if isinstance(v, int) and 0 <= v <= 65536}


def built(name: str, settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """A model whose parameters have no memory yet.

    Raises:
        UserError: it cannot be built with these settings, or its package is missing.
    """
    files = files_of(name)
    if files is None:
        raise UserError(f"the architecture {name!r} cannot be built here; give the model")
    with parameters_without_memory():
        return files.build(settings, names)


def drop_heads(model: nn.Module, names: Collection[str]) -> None:
    """Take away the heads that none of the tensors belongs to; VGGT's forward checks for None."""
    for head, _ in list(model.named_children()):
        if head.endswith("_head") and not any(name.startswith(f"{head}.") for name in names):
            setattr(model, head, None)


def misfit(wanted: Shapes, seen: Shapes) -> str:
    """How tensors differ from those that a model wants, in words; "" where they fit.

    >>> misfit({"a": (2,), "b": (3,)}, {"b": (4,), "c": ()})
    '1 missing (a), 1 unexpected (c), 1 of another shape (b (4,) for (3,))'
    """
    faults = [
        ("missing", [name for name in wanted if name not in seen]),
        ("unexpected", [name for name in seen if name not in wanted]),
        (
            "of another shape",
            [f"{n} {s} for {wanted[n]}" for n, s in seen.items() if wanted.get(n, s) != s],
        ),
    ]
    return ", ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in faults
        if names
    )
