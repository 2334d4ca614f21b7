# SPDX-License-Identifier: Apache-2.0
"""Which Linear layers are quantized, to what, and why the others stay: the one place that says it.

A model or a file says what stands in a layer's way (`Obstacle`); what the caller asked for
(`Request`) and the first and the last layer are the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from . import adapters, ops
from .configs import QuantizationConfig, get_config
from .errors import UserError

Patterns = Iterable[str] | str | None
"""fnmatch patterns of layer names; one may be given alone."""


class Obstacle(NamedTuple):
    """Why a layer cannot be swapped."""

    reason: str
    is_linear: bool = True
    """False: it is no plain Linear, so it is never the model's first or last one."""


@dataclass(frozen=True)
class Request:
    """What a caller asks of the layers of a model.

    include, exclude: patterns of layer names. admits: whether a name is wanted at all. configs:
    pattern to another config, or to None to leave a layer in float; the first that fits holds.
    """

    config: QuantizationConfig
    include: Patterns = None
    exclude: Patterns = None
    admits: Callable[[str], bool] = lambda name: True
    configs: Mapping[str, str | QuantizationConfig | None] = field(default_factory=dict)
    beside: Iterable[str] = ()
    """Names of layers that are no Linear and that a pattern may fit."""


class Choice(NamedTuple):
    """The Linear layers of a model or a file."""

    chosen: dict[str, QuantizationConfig]
    """Those to quantize, in their order, and to what."""
    skipped: dict[str, str]
    """Why the others stay."""


def named(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listed(patterns: Patterns) -> tuple[str, ...]:
    """All of them; one pattern need not be a list. UserError for what is no text."""
    if isinstance(patterns, str):
        return (patterns,)
    words = tuple(patterns) if isinstance(patterns, Iterable) else patterns or ()
    if not isinstance(words, tuple) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{patterns!r} is given; wanted a pattern of layer names, or several")
    return words


def patterns_of(what: str, given: Patterns, names: Iterable[str]) -> tuple[str, ...]:
    """The patterns; UserError for one that fits none of the names.

    >>> patterns_of("include", "*.fc1", ["mlp.fc1"])
    ('*.fc1',)
    """
    patterns = listed(given)
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{what} pattern {pattern!r} matches no Linear layer of the model")
    return patterns


def first_and_last(names: list[str]) -> tuple[str, ...]:
    """The edges of layers that stand in the order of the model: those that an adapter names, or the
    first and the last.

    >>> first_and_last(["a", "b", "c"])
    ('a', 'c')
    """
    return adapters.edges(names) or tuple(names[:1] + names[-1:])


def choose(
    obstacles: Mapping[str, Obstacle | None],
    request: Request,
    edges: Callable[[list[str]], tuple[str, ...]] = first_and_last,
) -> Choice:
    """What becomes of every Linear layer; the first reason that holds is told.

    obstacles: all Linear layers, in their order. edges: which of them are the first and the last.

    Raises:
        UserError: a pattern that fits no layer, an unknown config.
    """
    names = [*obstacles, *request.beside]
    included = patterns_of("include", request.include, names)
    excluded = patterns_of("exclude", request.exclude, names)
    patterns_of("configs", request.configs, obstacles)
    others = {p: None if c is None else get_config(c) for p, c in request.configs.items()}
    for config in (request.config, *filter(None, others.values())):
        patterns_of("sensitive_layers", config.sensitive_layers, obstacles)
    chosen: dict[str, QuantizationConfig] = {}
    skipped: dict[str, str] = {}
    for name, obstacle in obstacles.items():
        fitting = (own for pattern, own in others.items() if fnmatchcase(name, pattern))
        wanted = next(fitting, request.config)
        if obstacle is not None and (wanted is None or wanted.quantizes):
            skipped[name] = obstacle.reason
        elif request.include is not None and not named(name, included):
            skipped[name] = "not included"
        elif named(name, excluded):
            skipped[name] = "excluded"
        elif not request.admits(name):
            skipped[name] = "filter_fn does not admit it"
        elif wanted is None:
            skipped[name] = "configs leave it in float"
        elif not wanted.quantizes:
            skipped[name] = f"{wanted.name} quantizes nothing"
        else:
            chosen[name] = wanted
    if any(config.skip_first_last for config in chosen.values()):
        plain = [name for name, o in obstacles.items() if o is None or o.is_linear]
        for name, which in zip(edges(plain), ("first", "last"), strict=False):
            if name in chosen and chosen[name].skip_first_last:
                del chosen[name]
                skipped[name] = f"the {which} Linear (skip_first_last)"
    order = {name: reason for name in obstacles if (reason := skipped.get(name)) is not None}
    return Choice(chosen, order)


# ---- a model's obstacles -------------------------------------------------------------------------


IN_ATTENTION = "nn.MultiheadAttention uses its weight without calling it"
EMPTY = "its weight is empty"
TOO_LONG = f"its rows are longer than {ops.DEEPEST}"

PLAIN_LINEAR = vars(nn.Linear(1, 1, device="meta"))
"""What an nn.Linear holds before anybody adds hooks, buffers or attributes."""

PLAIN_WEIGHTS: tuple[type, ...] = (nn.Parameter,)
"""Types of a weight that holds plain values; a subclass may compute in its own way."""


@dataclass(frozen=True)
class _Candidate:
    """A Linear of the model and what its surroundings say of it."""

    name: str
    linear: nn.Linear
    parent: nn.Module
    adapts: str
    """The layer that this one belongs to as an adapter (peft's LoRA and its kin)."""
    shared: list[str]
    """Other modules that hold the same weight."""

    @property
    def plain(self) -> nn.Linear | str:
        """The plain Linear with the same outputs, or why there is none."""
        return adapters.plain_linear(self.linear)

    @property
    def is_plain(self) -> bool:
        """Whether the model calls it as a Linear of its own."""
        attention = isinstance(self.parent, nn.MultiheadAttention)
        return isinstance(self.plain, nn.Linear) and not attention and not self.adapts

    @property
    def additions(self) -> str:
        """What somebody added to the layer that a swap would lose, in words."""
        changed = type(self.linear) is not nn.Linear  # its buffers are part of the plain Linear
        for key, plain in PLAIN_LINEAR.items():
            if key == "_buffers" and changed:
                continue
            if isinstance(plain, dict) and not plain and vars(self.linear).get(key):
                return key.strip("_").replace("_", " ")
        return ", ".join(sorted(self.linear._parameters.keys() - {"weight", "bias"}))


# Why a layer stays as it is, most general first: each gives words, or "" where it does not apply.
_REASONS: tuple[Callable[[_Candidate], str], ...] = (
    lambda c: IN_ATTENTION if isinstance(c.parent, nn.MultiheadAttention) else "",
    lambda c: f"an adapter of {c.adapts}, which stays in float" if c.adapts else "",
    lambda c: c.plain if isinstance(c.plain, str) else "",
    lambda c: "its forward was replaced" if "forward" in vars(c.linear) else "",
    lambda c: (
        "its weight is computed anew for each call" if "weight" not in c.linear._parameters else ""
    ),
    lambda c: (
        f"its weight is a {type(c.linear.weight).__name__}, not a plain parameter"
        if type(c.linear.weight) not in PLAIN_WEIGHTS
        else ""
    ),
    lambda c: f"it has {c.additions}, which would be lost" if c.additions else "",
    lambda c: f"its weight is shared with {c.shared[0] or 'the model itself'}" if c.shared else "",
    lambda c: (
        f"its weight is on {c.linear.weight.device}, which is not served here"
        if not ops.serves(c.linear.weight.device)
        else ""
    ),
    lambda c: EMPTY if not c.linear.weight.numel() else "",
    lambda c: (
        f"its weight is {c.linear.weight.dtype}"
        if str(c.linear.weight.dtype).removeprefix("torch.") not in ops.DTYPES
        else ""
    ),
    lambda c: TOO_LONG if c.linear.in_features > ops.DEEPEST else "",
    lambda c: "it is the model itself; use QuantizedLinear.from_linear" if not c.name else "",
)


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """A model's Linear layers by name, in the order of its modules."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def make_plain(model: nn.Module) -> None:
    """Set plain Linear layers with the same outputs in the place of those of a subclass that an
    adapter knows.

    >>> make_plain(nn.Sequential(nn.Linear(2, 2)))
    """
    for name, linear in linears_of(model).items():
        plain = adapters.plain_linear(linear)
        if name and isinstance(plain, nn.Linear) and plain is not linear:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)


def obstacles(model: nn.Module) -> dict[str, Obstacle | None]:
    """What stands in the way of each Linear layer of a model.

    >>> obstacles(nn.Sequential(nn.Linear(2, 2)))
    {'0': None}
    """
    owners: dict[int, list[str]] = {}
    for owner, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(owner)
    found: dict[str, Obstacle | None] = {}
    for name, linear in linears_of(model).items():
        weight = linear._parameters.get("weight")
        shared = [owner for owner in owners.get(id(weight), ()) if owner != name]
        parent = model.get_submodule(name.rpartition(".")[0])
        candidate = _Candidate(name, linear, parent, _adapted(model, name), shared)
        reason = next(filter(None, (reason(candidate) for reason in _REASONS)), "")
        found[name] = Obstacle(reason, candidate.is_plain) if reason else None
    return found


def _adapted(model: nn.Module, name: str) -> str:
    """The layer that a Linear adapts, or "": peft keeps what it adapts as `base_layer` and its own
    layers beside it, in modules of modules."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        above = model.get_submodule(".".join(parts[:depth]))
        if isinstance(getattr(above, "base_layer", None), nn.Module):
            return "" if parts[depth] == "base_layer" else ".".join(parts[:depth])
    return ""
