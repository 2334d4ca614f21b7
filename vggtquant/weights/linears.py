# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a file are Linear layers: by their names, their shapes and their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .. import adapters, ops, selection
from ..errors import UserError
from ..selection import Choice, Obstacle, Request
from .tensors import About, Weights

_BIASLESS = frozenset(
    "qkv proj fc1 fc2 w12 w1 w2 w3 wq wk wv wo to_q to_k to_v to_out q_proj k_proj v_proj o_proj "
    "out_proj in_proj gate_proj up_proj down_proj query key value dense fc linear head lm_head "
    "lora_A lora_B".split()
)
"""Last names of modules that are Linear layers even where no bias says so (an embedding is not)."""
_UNSURE = "without a bias it may be an embedding; include it by its name to quantize it"


def choose(found: Weights, request: Request) -> Choice:
    """The layers that quantize_model would swap in the model of these weights.

    Raises:
        UserError: no Linear layer, a pattern that fits none, or no telling which layer is the first
            and which the last.
    """
    if found.model is not None:
        obstacles = selection.obstacles(found.model)
    else:
        obstacles = _obstacles(found, request)
    if not obstacles:
        raise UserError(f"{found.place.name} holds no Linear layer to quantize")

    def edges(names: list[str]) -> tuple[str, ...]:
        if found.ordered or adapters.edges(names):
            return selection.first_and_last(names)
        raise UserError(
            f"{found.place.name} sorts its tensors by name, so its first and last Linear are not "
            "known; exclude them by name and give --all_layers (skip_first_last=False)"
        )

    return selection.choose(obstacles, request, edges)


def shape_of(found: Weights, layer: str) -> tuple[int, int]:
    """(out_features, in_features) of a layer."""
    n, k = found.tensors[f"{layer}.weight"].shape
    return n, k


class _Candidate(NamedTuple):
    """A 2-D weight and what stands beside it."""

    name: str
    shape: tuple[int, ...]
    siblings: set[str]
    """Tensors of the same module."""
    in_attention: bool
    twin: str
    """The other name of its memory, or ""."""
    sure: bool
    """Whether it is a Linear, and no embedding."""


# As selection's table for modules, and in its words: why a layer stays, and whether it is a Linear.
_REASONS: tuple[tuple[Callable[[_Candidate], object], bool], ...] = (
    (lambda c: c.in_attention and selection.IN_ATTENTION, False),
    (lambda c: "lora_" in c.name and "an adapter of another layer, which stays in float", False),
    (
        lambda c: (
            c.siblings - {"weight", "bias"}
            and f"no plain nn.Linear: it has {', '.join(sorted(c.siblings))}"
        ),
        False,
    ),
    (lambda c: not c.sure and _UNSURE, False),
    (lambda c: c.twin and f"its weight is shared with {c.twin.rpartition('.')[0]}", True),
    (lambda c: 0 in c.shape and selection.EMPTY, True),
    (lambda c: c.shape[1] > ops.DEEPEST and selection.TOO_LONG, True),
)


def _obstacles(found: Weights, request: Request) -> dict[str, Obstacle | None]:
    siblings: dict[str, set[str]] = {}
    for key in found.tensors:
        name, _, leaf = key.rpartition(".")
        siblings.setdefault(name, set()).add(leaf)
    other = found.twins | {b: a for a, b in found.twins.items()}
    includes = [request.include] if isinstance(request.include, str) else request.include or ()
    # A pattern says what a layer is where it spells out the last name.
    spelled = [p for p in includes if not set(p.rpartition(".")[2]) & set("*?[")]
    obstacles: dict[str, Obstacle | None] = {}
    for name, sure in linear_layers(found.tensors).items():
        candidate = _Candidate(
            name,
            found.tensors[f"{name}.weight"].shape,
            siblings[name],
            in_attention(name, found.tensors),
            other.get(f"{name}.weight", ""),
            sure or selection.named(name, spelled),
        )
        reasons = ((reason(candidate), is_linear) for reason, is_linear in _REASONS)
        told = next(((words, is_linear) for words, is_linear in reasons if words), None)
        obstacles[name] = None if told is None else Obstacle(str(told[0]), told[1])
    return obstacles


def linear_layers(tensors: Mapping[str, About]) -> dict[str, bool]:
    """Modules with a 2-D float `weight`, and a `bias` of its rows or none; whether they are Linear
    for sure, by the bias or by the last name. A convolution has more axes.

    GPT-2's Conv1D, whose weight is transposed, shows by the biases of its layers that are not
    square; square ones of the same name are none of ours either.

    >>> weight, bias = About(torch.float32, (3, 2)), About(torch.float32, (3,))
    >>> linear_layers({"a.weight": weight, "a.bias": bias, "table.weight": weight})
    {'a': True, 'table': False}
    """
    matrices = {
        key.removesuffix(".weight"): about.shape
        for key, about in tensors.items()
        if key.endswith(".weight") and len(about.shape) == 2 and about.dtype.is_floating_point
    }
    biases = {name: tensors.get(f"{name}.bias") for name in matrices}
    transposed = {
        name.rpartition(".")[2]
        for name, shape in matrices.items()
        if (bias := biases[name]) and bias.shape == shape[1:] and shape[0] != shape[1]
    }
    layers = {}
    for name, shape in matrices.items():
        bias, leaf = biases[name], name.rpartition(".")[2]
        if leaf not in transposed and (bias is None or bias.shape == shape[:1]):
            layers[name] = bias is not None or leaf in _BIASLESS
    return layers


def in_attention(name: str, tensors: Mapping[str, About]) -> bool:
    """Whether a layer is the out_proj of an nn.MultiheadAttention."""
    parent, _, leaf = name.rpartition(".")
    dot = f"{parent}." if parent else ""
    keys = (f"{dot}in_proj_weight", f"{dot}q_proj_weight")
    return leaf == "out_proj" and any(key in tensors for key in keys)
