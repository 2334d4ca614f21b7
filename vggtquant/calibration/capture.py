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

from .. import adapters
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
    parts: tuple[str, ...] = ()
    """Modules within that hold such layers and are called once; none if a layer is called again."""


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
        adapters.run(model, sample)
    calls = Counter(order)
    called = [name for name in dict.fromkeys(order) if name in set(names)]
    owner = {name: _owner(model, name, calls) for name in called}
    tops = set(owner.values())
    for name, segment in owner.items():
        above = [top for top in tops if _within(segment, top)]
        owner[name] = min(above, key=len)
    wanted = set(owner.values())

    def joined(segment: str) -> Segment:
        layers = tuple(name for name in called if owner[name] == segment)
        parts = {part for name in layers for part in _above(name) if part != segment}
        within = (part for part in parts if _within(part, segment) and calls[part] == 1)
        again = any(calls[name] > 1 for name in layers)
        times = {name: calls[name] for name in layers}
        return Segment(segment, layers, times, () if again else tuple(sorted(within)))

    return [joined(name) for name in dict.fromkeys(name for name in order if name in wanted)]


def _above(name: str) -> list[str]:
    """The name and those of the modules that hold it, the innermost first, "" last."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _within(name: str, top: str) -> bool:
    return name == top or top == "" or name.startswith(f"{top}.")


def _owner(model: nn.Module, layer: str, calls: Mapping[str, int]) -> str:
    once = [name for name in _above(layer)[1:] if calls[name] == 1]
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
        self._kept: dict[int, list[str]] = {}
        """Parts of the segment in work whose outputs are stored, by sample."""

    def arguments(self, index: int, side: Side) -> list[Arguments]:
        """What each sample's forward calls segment `index` with."""
        return [self._arguments(index, side, sample) for sample in range(len(self.samples))]

    def _arguments(self, index: int, side: Side, sample: int) -> Arguments:
        found: list[Arguments] = []

        def reached(*args: Any, **kwargs: Any) -> Any:
            found.append((args, kwargs))
            raise _Reached

        patched: dict[str, Callable[..., Any]] = {
            segment.name: self._stored(self.key(i, side, sample))
            for i, segment in enumerate(self.plan[:index])
        }
        patched[self.plan[index].name] = reached
        with _forwards(self.model, patched), torch.no_grad(), contextlib.suppress(_Reached):
            adapters.run(self.model, self.samples[sample])
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
        self, index: int, arguments: Arguments, layers: Sequence[str], sample: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Rows (tokens, in_features) of the layers' inputs in the segment, in order of the calls.

        The segment stops as soon as it has called all of them. sample: parts of the segment that
        return before the stop keep their outputs, and do not run again for that sample until
        `forget`: for layers that are asked for in the order of their calls, and do not change once
        a later one is asked for.
        """
        found, _ = self._followed(index, arguments, layers, True, sample)
        return found

    def inputs_and_outputs(
        self, index: int, arguments: Arguments, layers: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], Any]:
        """What `inputs` and `outputs` return, from one forward."""
        return self._followed(index, arguments, layers, False)

    def outputs(self, index: int, arguments: Arguments, sample: int | None = None) -> Any:
        """What the segment returns for these arguments; sample: as for `inputs`."""
        return self._followed(index, arguments, (), False, sample)[1]

    def forget(self) -> None:
        """Drops the outputs that `inputs` kept."""
        for sample, parts in self._kept.items():
            for part in parts:
                self.store.drop(_kept_key(sample, part))
        self._kept.clear()

    def _followed(
        self,
        index: int,
        arguments: Arguments,
        layers: Sequence[str],
        stops: bool,
        sample: int | None = None,
    ) -> tuple[dict[str, torch.Tensor], Any]:
        """Runs the segment; the inputs of some layers, and what it returns unless it stops."""
        segment = self.plan[index]
        left = {name: segment.calls[name] for name in layers}
        found: dict[str, list[torch.Tensor]] = {name: [] for name in layers}

        def taking(name: str) -> Callable[..., None]:
            def take(_: nn.Module, args: tuple[Any, ...]) -> None:
                found[name].append(args[0].detach().reshape(-1, args[0].shape[-1]).float().clone())
                left[name] -= 1
                if stops and not any(count > 0 for count in left.values()):
                    raise _Reached

            return take

        def keeping(part: str, sample: int) -> Callable[..., None]:
            def keep(_: nn.Module, __: object, out: Any) -> None:
                self.store.put(_kept_key(sample, part), out)
                for inner in [name for name in kept if name != part and _within(name, part)]:
                    self.store.drop(_kept_key(sample, inner))
                    kept.remove(inner)
                kept.append(part)

            return keep

        module = self.model.get_submodule
        handles: list[Any] = [module(n).register_forward_pre_hook(taking(n)) for n in layers]
        patched: dict[str, Callable[..., Any]] = {}
        if sample is not None:
            kept = self._kept.setdefault(sample, [])
            patched = {part: self._stored(_kept_key(sample, part)) for part in kept}
            if stops:  # else the segment is at its end
                new = [p for p in segment.parts if not any(_within(p, part) for part in kept)]
                handles += [module(p).register_forward_hook(keeping(p, sample)) for p in new]
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, arguments)
        out = None
        with (
            hooks(handles),
            _forwards(self.model, patched),
            torch.no_grad(),
            contextlib.suppress(_Reached),
        ):
            out = module(segment.name)(*args, **kwargs)
        return {name: torch.cat(rows) for name, rows in found.items()}, out

    def _stored(self, key: str) -> Callable[..., Any]:
        """A forward that returns what is stored."""
        return lambda *_, **__: self.store.get(key)


def _kept_key(sample: int, part: str) -> str:
    return f"part.{sample:05d}.{part}"


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
