# SPDX-License-Identifier: Apache-2.0
"""Models that can be built from what a file says of them; a table, one row each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import vggt
from ..errors import UserError, check_type

Shapes = Mapping[str, tuple[int, ...]]
"""The tensors of a state dict: their shapes by name."""


class Architecture(NamedTuple):
    """A kind of model."""

    name: str
    """What packed files call it."""
    build: Callable[[Mapping[str, Any], Collection[str]], nn.Module]
    """From its settings and the names of the tensors that it will hold."""
    settings_of: Callable[[nn.Module], dict[str, Any] | None]
    """The settings of a model of this kind; None for another one."""
    recognises: Callable[[Shapes, Mapping[str, Any]], bool]
    """Whether tensors of these names and shapes are of this kind, built with these settings."""
    image_size: int
    """Width in pixels of its pictures, where the settings do not say img_size."""


def _tiny(settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    from ..tiny.model import TinyVGGT

    try:
        return TinyVGGT(**settings)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"TinyVGGT cannot be built with {dict(settings)} ({error})") from error


def _tiny_settings(model: nn.Module) -> dict[str, Any] | None:
    kind = type(model)
    if (kind.__module__, kind.__name__) != ("vggtquant.tiny.model", "TinyVGGT"):
        return None
    settings: dict[str, Any] = model.settings  # type: ignore[assignment]
    return settings


def _is_tiny(shapes: Shapes, settings: Mapping[str, Any]) -> bool:
    try:
        with parameters_without_memory():
            state = _tiny(settings, ()).state_dict()
    except UserError:
        return False
    return {name: tuple(x.shape) for name, x in state.items()} == dict(shapes)


def _is_vggt(shapes: Shapes, settings: Mapping[str, Any]) -> bool:
    return bool(
        vggt.first_and_last(n.removesuffix(".weight") for n in shapes if n.endswith(".weight"))
    )


ARCHITECTURES = (
    Architecture("builtin:tiny", _tiny, _tiny_settings, _is_tiny, 112),
    Architecture("vggt", vggt.build, vggt.settings_of, _is_vggt, vggt.FRAME_SIZE),
)
"""In the order in which they are tried."""
BY_NAME = {row.name: row for row in ARCHITECTURES}


def recognised(
    shapes: Shapes, settings: Mapping[str, Any], *, exactly: bool = False
) -> Architecture | None:
    """What tensors of these names and shapes belong to; None where nobody knows.

    exactly: VGGT's names are complete, and not those of a part of another model.
    """
    found = next((row for row in ARCHITECTURES if row.recognises(shapes, settings)), None)
    if exactly and not any(f"{edge}.weight" in shapes for edge in vggt.FIRST_LAST):
        return None
    return found


def check_module(model: object) -> nn.Module:
    """The model itself; UserError for what is no module."""
    check_type("the model", model, nn.Module, "a torch.nn.Module")
    return cast(nn.Module, model)


def of_model(model: nn.Module) -> tuple[str, dict[str, int | bool]]:
    """Name and plain settings of a model's architecture; "" where only its owner can build it."""
    for row in ARCHITECTURES:
        settings = row.settings_of(model)
        if settings is not None:
            return row.name, plain(settings)
    return "", {}


def plain(settings: Mapping[str, Any]) -> dict[str, int | bool]:
    """Sizes and switches among an architecture's arguments, which is all that they have."""
    return {k: v for k, v in settings.items() if isinstance(v, int) and 0 <= v <= 65536}


def built(name: str, settings: Mapping[str, Any], names: Collection[str]) -> nn.Module:
    """A model whose parameters have no memory yet.

    Raises:
        UserError: it cannot be built with these settings, or its package is missing.
    """
    with parameters_without_memory():
        return BY_NAME[name].build(settings, names)


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Within it, modules that are built get parameters on torch's meta device.

    Each is moved as it is registered, so that code which reads values while it builds (VGGT calls
    `.item()`) works, which it does not under `torch.device("meta")`. VGGT-1B is built in seconds
    and without its 5 GB. Buffers stay real, on the CPU whatever torch's default device is.

    >>> with parameters_without_memory():
    ...     torch.nn.Linear(2, 2).weight.device
    device(type='meta')
    """
    register = nn.Module.register_parameter

    class NothingToFill(TorchFunctionMode):
        # torch draws random numbers for a meta tensor by importing its whole compiler.
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if (
                func in (Tensor.normal_, Tensor.uniform_)
                or getattr(func, "__module__", "") == "torch.nn.init"
            ):
                x = args[0] if args else kwargs.get("tensor")
                if isinstance(x, Tensor) and x.is_meta:
                    return x
            return func(*args, **kwargs)

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None:
            empty = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
            module._parameters[name] = empty

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment,method-assign]
    try:
        with torch.device("cpu"), NothingToFill():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


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
