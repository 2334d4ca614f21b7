# SPDX-License-Identifier: Apache-2.0
"""Inputs of a model's Linear layers, segment by segment, without knowledge of the model's forward.

A segment is a module that a forward calls once, as a transformer block or the iterated camera head.
To reach a segment, the model's own forward runs again, while every earlier segment returns its
stored output: what lies between segments is cheap. So only one segment computes at a time, and
only its floats, its inputs and its statistics are in memory.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import UserError

Side = Literal["float", "quantized"]
"""Which of the two models computed a value."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Segment:
    """A module that a forward calls once, and its Linear layers in the order of their calls."""

    name: str
    layers: tuple[str, ...]
    calls: Mapping[str, int]
    """Of each layer in one forward; the camera head iterates."""


class _Reached(BaseException):
    """Ends a forward at the segment that was wanted; no model catches it by accident."""


@contextlib.contextmanager
def hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Removes the hooks at the end, also after an error."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def segments(model: nn.Module, names: Sequence[str], sample: torch.Tensor) -> list[Segment]:
    """The segments that hold the named Linear layers, in the order of a forward of `sample`.

    A layer belongs to the innermost element of an nn.ModuleList or nn.Sequential that holds other
    modules and is called once, otherwise to the innermost module that is called once. A segment
    within another one is joined with it. Layers that the forward does not call are in no segment.
    """
    order: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: order.append(name)

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in model.named_modules()]
    with hooks(handles), torch.no_grad():
        model(sample)
    calls = Counter(order)
    called = [name for name in dict.fromkeys(order) if name in set(names)]
    owner = {name: _owner(model, name, calls) for name in called}
    tops = set(owner.values())
    for name, segment in owner.items():
        above = [top for top in tops if _within(segment, top)]
        owner[name] = min(above, key=len)
    wanted = set(owner.values())
    return [
        Segment(
            segment,
            tuple(name for name in called if owner[name] == segment),
            {name: calls[name] for name in called if owner[name] == segment},
        )
        for segment in dict.fromkeys(name for name in order if name in wanted)
    ]


def _within(name: str, top: str) -> bool:
    return name == top or top == "" or name.startswith(f"{top}.")


def _owner(model: nn.Module, layer: str, calls: Mapping[str, int]) -> str:
    parts = layer.split(".")
    above = [".".join(parts[:i]) for i in range(len(parts) - 1, -1, -1)]
    once = [name for name in above if calls[name] == 1]
    for name in once:
        parent = model.get_submodule(name.rpartition(".")[0])
        if name.rpartition(".")[2].isdigit() and isinstance(parent, nn.ModuleList | nn.Sequential):
            return name
    return once[0] if once else ""


class Store:
    """Nested tensors by key: in memory, or as memory-mapped files of a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        """Keeps a value under the key; written whole or not at all."""
        value = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), value)
        if self.folder is None:
            self._held[key] = value
            return
        path = self._path(key)
        whole = path.with_suffix(".part")
        torch.save(value, whole)
        whole.replace(path)

    def get(self, key: str) -> Any:
        """A copy of the value, or one on its file's pages that may be changed too."""
        if self.folder is None:
            return pytree.tree_map_only(torch.Tensor, torch.clone, self._held[key])
        return torch.load(self._path(key), mmap=True, weights_only=True)

    def has(self, key: str) -> bool:
        return key in self._held if self.folder is None else self._path(key).exists()

    def drop(self, key: str) -> None:
        """Forgets the value, if it is there."""
        if self.folder is None:
            self._held.pop(key, None)
        else:
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.pt"


class Replay:
    """Runs a model's forwards up to a segment, from the stored outputs of the segments before it.

    samples: pictures, one tensor a forward. Both models, the float one and the one quantized so
    far, are the same modules at different times; their values are told apart by `side`.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Sequence[Segment],
        samples: Sequence[torch.Tensor],
        store: Store,
    ) -> None:
        self.model, self.plan, self.samples, self.store = model, plan, samples, store

    def arguments(self, index: int, side: Side) -> list[Arguments]:
        """What each sample's forward calls segment `index` with."""
        return [self._arguments(index, side, sample) for sample in range(len(self.samples))]

    def _arguments(self, index: int, side: Side, sample: int) -> Arguments:
        found: list[Arguments] = []

        def stored(key: str) -> Callable[..., Any]:
            return lambda *_, **__: self.store.get(key)

        def reached(*args: Any, **kwargs: Any) -> Any:
            found.append((args, kwargs))
            raise _Reached

        patched: dict[str, Callable[..., Any]] = {
            segment.name: stored(self.key(i, side, sample))
            for i, segment in enumerate(self.plan[:index])
        }
        patched[self.plan[index].name] = reached
        with _forwards(self.model, patched), torch.no_grad(), contextlib.suppress(_Reached):
            self.model(self.samples[sample])
        if not found:
            raise UserError(
                f"sample {sample} does not reach {self.plan[index].name or 'the model'} as the "
                "first one does; a model whose forward depends on the values cannot be calibrated"
            )
        # The caller's own tensors may change after the stop; a segment's inputs may not.
        copied: Arguments = pytree.tree_map_only(torch.Tensor, torch.clone, found[0])
        return copied

    @staticmethod
    def key(index: int, side: Side, sample: int) -> str:
        return f"segment{index:04d}.{side}.{sample:05d}"

    def inputs(
        self, index: int, arguments: Arguments, layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Rows (tokens, in_features) of the layers' inputs in the segment, in order of the calls.

        The segment stops as soon as it has called all of them.
        """
        segment = self.plan[index]
        left = {name: segment.calls[name] for name in layers}
        found: dict[str, list[torch.Tensor]] = {name: [] for name in layers}

        def hook(name: str) -> Callable[..., None]:
            def take(_: nn.Module, args: tuple[Any, ...]) -> None:
                found[name].append(args[0].detach().reshape(-1, args[0].shape[-1]).float().clone())
                left[name] -= 1
                if not any(count > 0 for count in left.values()):
                    raise _Reached

            return take

        handles = [
            self.model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers
        ]
        with hooks(handles), contextlib.suppress(_Reached):
            self.outputs(index, arguments)
        return {name: torch.cat(rows) for name, rows in found.items()}

    def outputs(self, index: int, arguments: Arguments) -> Any:
        """What the segment returns for these arguments."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, arguments)
        with torch.no_grad():
            return self.model.get_submodule(self.plan[index].name)(*args, **kwargs)


@contextlib.contextmanager
def _forwards(model: nn.Module, patched: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """The named modules compute with other functions meanwhile."""
    modules = [model.get_submodule(name) for name in patched]
    kept: list[Any] = [module.__dict__.get("forward") for module in modules]
    for module, forward in zip(modules, patched.values(), strict=True):
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, forward in zip(modules, kept, strict=True):
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward
