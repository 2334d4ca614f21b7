# SPDX-License-Identifier: Apache-2.0
"""The models that are known: a file of this folder each, and those of other packages.

A module of this folder, or an entry point of the group `vggtquant.adapters`, that holds an Adapter
named ADAPTER is found by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..adapter import Adapter, Swappable
from ..errors import UserError
from ..stand_in import is_of

GROUP = "vggtquant.adapters"
UNKNOWN = Adapter("", ())
"""Of a model that nobody knows: model(images), VGGT's dict of outputs."""

_chosen: WeakKeyDictionary[nn.Module, Adapter] = WeakKeyDictionary()


@cache
def known() -> Mapping[str, Adapter]:
    """All adapters by name."""
    folder = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    others = [point.load() for point in entry_points(group=GROUP)]
    found = [module.ADAPTER for module in folder] + [getattr(o, "ADAPTER", o) for o in others]
    return {adapter.name: adapter for adapter in found}


def attentions() -> Iterator[Swappable]:
    """The classes of attentions that can be swapped, of all models: they share parts."""
    return (row for adapter in known().values() for row in adapter.attentions)


def blocks() -> Iterator[Swappable]:
    """The classes of blocks that can be swapped, of all models."""
    return (row for adapter in known().values() for row in adapter.blocks)


def left_alone(module: nn.Module) -> str:
    """Why a module of a known class stays as it is; "" for others."""
    rows = (row for adapter in known().values() for row in adapter.left_alone.items())
    return next((why for path, why in rows if is_of(module, path)), "")


def plain_linear(linear: nn.Linear) -> nn.Linear | str:
    """A plain Linear with the same outputs as one of a known subclass, itself where it is plain; or
    why there is none."""
    if type(linear) is nn.Linear:
        return linear
    plain = _to_plain(linear)
    return f"a subclass of nn.Linear ({type(linear).__name__})" if plain is None else plain(linear)


def _to_plain(linear: nn.Linear) -> Callable[[nn.Linear], nn.Linear | str] | None:
    rows = (row for adapter in known().values() for row in adapter.linears.items())
    return next((plain for path, plain in rows if is_of(linear, path)), None)


def without_extras(linear: nn.Linear) -> nn.Linear:
    """A plain Linear with weight and bias of one of a known subclass, for a file that holds no more
    of it: the rest was folded in when the file was made; itself where it is of no known subclass.
    """
    if type(linear) is nn.Linear or _to_plain(linear) is None:
        return linear
    n, k = linear.weight.shape
    made = nn.Linear(k, n, bias=linear.bias is not None, device="meta")
    made._parameters.update(linear._parameters)
    return made.train(linear.training)


def edges(names: list[str]) -> tuple[str, ...]:
    """The first and the last Linear among the names, where an adapter says which they are; else ().

    >>> edges(["fc1", "fc2"])
    ()
    """
    for adapter in known().values():
        found = [
            next((name for name in names if name == edge or name.endswith("." + edge)), None)
            for edge in adapter.edges
        ]
        if found and None not in found:
            return tuple(name for name in found if name is not None)
    return ()


def get(name: str | Path) -> Adapter:
    """The adapter of a name, or the one that a Python file holds.

    Raises:
        UserError: no such adapter, or a file without one.

    >>> get("vggt").patch
    14
    """
    if Path(name).suffix == ".py":
        return _of_file(Path(name))
    if name not in known():
        raise UserError(
            f"unknown adapter {str(name)!r}: wanted {', '.join(known())}, or a .py file"
        )
    return known()[str(name)]


@cache
def _of_file(path: Path) -> Adapter:
    spec = importlib.util.spec_from_file_location(f"{GROUP}.{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"no such adapter file: {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code: whatever it raises is told
        raise UserError(f"{path} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, "ADAPTER", None)
    if not isinstance(found, Adapter):
        raise UserError(f"{path} holds no ADAPTER; wanted a vggtquant.adapter.Adapter of that name")
    return found


def of_model(model: nn.Module) -> Adapter:
    """The adapter that `use` chose, or the one of the model's class; UNKNOWN for another model.

    >>> of_model(nn.Identity()).name
    ''
    """
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    for one in (model, inner):
        if one in _chosen:
            return _chosen[one]
    found = (a for a in known().values() if any(is_of(inner, path) for path in a.models))
    return next((adapter for adapter in found if adapter.fits(inner)), UNKNOWN)


def use(model: nn.Module, name: str | Path | None) -> Adapter:
    """Has this model run through the adapter of that name from now on; None: that of its class."""
    if name is not None:
        _chosen[model] = get(name)
    return of_model(model)


def run(model: nn.Module, images: Tensor) -> Any:
    """The outputs of a model's forward, in VGGT's form where its adapter is known.

    images: (S, 3, H, W) or (B, S, 3, H, W) in [0, 1].
    """
    adapter = of_model(model)
    return adapter.outputs(adapter.run(model, images), images)
