# SPDX-License-Identifier: Apache-2.0
"""Mixed precision by bytes: 4 bits in groups of several sizes, 8 bits or float, layer by layer.

The harm of a way to code a layer is measured: the layer alone is calibrated and swapped, probe
pictures go through the model, and the outputs are compared with the float model's. Errors of layers
add up nearly as if they were independent, so the best choice for a number of bytes is a knapsack
problem (Dong et al., HAWQ-V2, NeurIPS 2020, arXiv 1911.03852, solve the same one with traces of
Hessians for the harm). Steps along the lower convex hull of each layer's (bytes, harm), the largest
fall of harm a byte first, solve it exactly but for the last step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import adapters
from ..configs import QuantizationConfig
from ..errors import UserError
from ..linear import QuantizedLinear
from ..model import Progress
from . import data as inputs
from . import folds
from .capture import Replay, Store, segments
from .methods import corrected_bias, to_float_output
from .statistics import Statistics

GROUPS = (128, 64, 32)
FLOAT = "float"
PROBE = 16
"""Pictures that show the harm; drawn by another seed than those that choose codes."""


class Way(NamedTuple):
    """One way to hold a layer."""

    nbytes: int
    """Of the weight in a file."""
    harm: float
    """Sum over depth, points, pose and whatever else the model returns of the squared relative
    error that this layer alone makes; 0 for float."""


Ways = dict[str, dict[str, Way]]
"""Layer to name of a way ("4, groups of 64", "8", "float") to what it costs."""


@dataclass(frozen=True)
class Plan:
    """Which way each layer is held."""

    chosen: dict[str, str]
    nbytes: int
    harm: float

    def configs(self, config: QuantizationConfig) -> dict[str, QuantizationConfig | None]:
        """For vq.calibrate: each layer's config by its name as a pattern; None leaves it float."""
        made = options(config)
        return {escape(name): made[way] for name, way in self.chosen.items()}

    def __str__(self) -> str:
        counts = {way: list(self.chosen.values()).count(way) for way in self.chosen.values()}
        words = ", ".join(f"{count} layers at {way}" for way, count in sorted(counts.items()))
        return f"{words}; {self.nbytes / 1e6:.2f} MB"


def options(config: QuantizationConfig) -> dict[str, QuantizationConfig | None]:
    """The ways by name: 4 bits in groups, 8 bits a channel, float."""
    if config.quant_type != "int4_group":
        raise UserError(f"mixed precision starts from an INT4_Group spec, not from {config.name}")
    made: dict[str, QuantizationConfig | None] = {
        f"4, groups of {size}": replace(config, name=f"{config.name}, {size}", group_size=size)
        for size in GROUPS
    }
    made["8"] = replace(
        config, name=f"{config.name}, 8", quant_type="int8_per_channel_sym", bits=8, symmetric=True
    )
    return made | {FLOAT: None}


def measure(
    model: nn.Module,
    names: Sequence[str],
    config: QuantizationConfig,
    shown: inputs.Calibration,
    probe: Sequence[torch.Tensor],
    *,
    float_nbytes: int = 2,
    progress: Progress | None = None,
) -> Ways:
    """What each way to hold each of the named Linear layers costs; the model stays as it is.

    shown: pictures that choose codes. probe: others, (B, S, 3, H, W) each, that show the harm.
    float_nbytes: of a weight that stays float in the file.
    """
    made = options(config)
    edits = folds.Edits(model)
    try:
        folds.fold(edits, config.group_size)
        plan = segments(model, names, shown.batches[0])
        replay = Replay(model, plan, shown.batches, Store(None))
        with torch.inference_mode():
            wanted = [_outputs(adapters.run(model, batch)) for batch in probe]
        ways: Ways = {}
        for index, segment in enumerate(plan):
            given = replay.arguments(index, "float")
            seen = {n: Statistics(_linear(model, n).in_features) for n in segment.layers}
            for sample, arguments in enumerate(given):
                found, out = replay.inputs_and_outputs(index, arguments, segment.layers)
                for name, x in found.items():
                    seen[name].add(x, x)
                replay.store.put(replay.key(index, "float", sample), out)
            for name in segment.layers:
                if progress:
                    progress(len(ways), len(names), name)
                ways[name] = {
                    way: _cost(model, name, seen[name], how, probe, wanted, float_nbytes)
                    for way, how in made.items()
                }
        for name in sorted(set(names) - ways.keys()):  # no picture reaches it: it does no harm
            ways[name] = {
                way: _unseen(_linear(model, name), how, float_nbytes) for way, how in made.items()
            }
    finally:
        edits.undo()
    return ways


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _outputs(found: Any) -> dict[str, torch.Tensor]:
    """The float tensors of a model's result; not the pictures that some models hand back."""
    if isinstance(found, torch.Tensor):
        return {"": found}
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and key != "images"
    }


def _harm(wanted: Sequence[dict[str, torch.Tensor]], got: Sequence[Any]) -> float:
    """Sum over outputs of the mean of (|got - wanted| / |wanted|)^2 over batches."""
    total = 0.0
    for want, found in zip(wanted, map(_outputs, got), strict=True):
        for key, value in want.items():
            size = float(value.double().square().sum())
            miss = float((found[key].double() - value.double()).square().sum())
            total += miss / size if size else 0.0
    return total / len(wanted)


def _cost(
    model: nn.Module,
    name: str,
    s: Statistics,
    config: QuantizationConfig | None,
    probe: Sequence[torch.Tensor],
    wanted: Sequence[dict[str, torch.Tensor]],
    float_nbytes: int,
) -> Way:
    layer = _linear(model, name)
    if config is None:
        return Way(float_nbytes * layer.weight.numel(), 0.0)
    weight, bias = layer.weight.detach().float(), layer.bias
    q = to_float_output(weight, s, config.layer_spec(name))
    if bias is not None:
        values = q.dequantize().float()
        bias = nn.Parameter(corrected_bias(bias.detach(), weight, values, s), False)
    alone = replace(config, quantize_activations=False, wide_layers=(), activation_bits=8)
    alone = replace(alone, activation_range="dynamic")
    folds.put(model, name, QuantizedLinear(q, bias, alone, name).eval())
    try:
        with torch.inference_mode():
            return Way(q.nbytes, _harm(wanted, [adapters.run(model, batch) for batch in probe]))
    finally:
        folds.put(model, name, layer)


def _unseen(layer: nn.Linear, config: QuantizationConfig | None, float_nbytes: int) -> Way:
    if config is None:
        return Way(float_nbytes * layer.weight.numel(), 0.0)
    n, k = layer.weight.shape
    bits = config.layer_spec().bits
    groups = -(-k // config.group_size) if bits == 4 else 0
    return Way(n * (-(-k * bits // 8) + 4 + groups), 0.0)


# ---- the choice ----------------------------------------------------------------------------------


def hull(ways: Mapping[str, Way]) -> list[str]:
    """The ways on the lower convex hull, from the fewest bytes on: each next one has less harm, and
    a byte of it buys less than a byte of the one before.

    >>> hull({"a": Way(4, 9.0), "b": Way(6, 8.0), "c": Way(8, 1.0), "d": Way(16, 0.0)})
    ['a', 'c', 'd']
    """
    ordered = sorted(ways, key=lambda way: (ways[way].nbytes, ways[way].harm))
    kept: list[str] = []
    for way in ordered:
        if kept and ways[way].harm >= ways[kept[-1]].harm:
            continue
        while len(kept) > 1 and _gain(ways, kept[-2], way) >= _gain(ways, kept[-2], kept[-1]):
            kept.pop()
        kept.append(way)
    return kept


def _gain(ways: Mapping[str, Way], before: str, after: str) -> float:
    """Fall of harm a byte."""
    more = ways[after].nbytes - ways[before].nbytes
    return (ways[before].harm - ways[after].harm) / more if more else math.inf


def steps(ways: Ways) -> list[Plan]:
    """The best plans from the fewest bytes to the most: the error-against-bytes curve."""
    chains = {name: hull(each) for name, each in ways.items()}
    chosen = {name: chain[0] for name, chain in chains.items()}
    moves = sorted(
        (-_gain(ways[name], a, b), name, i)
        for name, chain in chains.items()
        for i, (a, b) in enumerate(zip(chain, chain[1:], strict=False))
    )
    plans = [_plan(ways, chosen)]
    for _, name, i in moves:
        chosen[name] = chains[name][i + 1]
        plans.append(_plan(ways, chosen))
    return plans


def _plan(ways: Ways, chosen: Mapping[str, str]) -> Plan:
    picked = [ways[name][way] for name, way in chosen.items()]
    return Plan(dict(chosen), sum(w.nbytes for w in picked), math.fsum(w.harm for w in picked))


def within(ways: Ways, nbytes: int) -> Plan:
    """The plan with the least harm of those on the curve that has at most so many bytes, with what
    is left of them spent where it still helps.

    Raises:
        UserError: too few bytes for 4 bits everywhere.
    """
    plans = [plan for plan in steps(ways) if plan.nbytes <= nbytes]
    if not plans:
        least = steps(ways)[0].nbytes
        raise UserError(
            f"the layers need {least / 1e6:.2f} MB at 4 bits, {nbytes / 1e6:.2f} MB are left"
        )
    plan = plans[-1]
    chosen, left = dict(plan.chosen), nbytes - plan.nbytes
    while True:
        better = [
            (_gain(ways[name], way, other), name, other)
            for name, way in chosen.items()
            for other, cost in ways[name].items()
            if cost.harm < ways[name][way].harm and 0 < cost.nbytes - ways[name][way].nbytes <= left
        ]
        if not better:
            return _plan(ways, chosen)
        _, name, other = max(better)
        left -= ways[name][other].nbytes - ways[name][chosen[name]].nbytes
        chosen[name] = other
