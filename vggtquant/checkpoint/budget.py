# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: which layers get 8 bits and which 4, from a file or from a number of bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import ops
from ..configs import QuantizationConfig
from ..errors import UserError
from ..selection import Choice, Patterns, Request
from ..weights import linears
from ..weights.tensors import Weights
from .document import Layer
from .streaming import Progress, checked_config, code, fixed_nbytes, in_order


class Cost(NamedTuple):
    """A layer at 4 and at 8 bits."""

    nbytes_4: int
    nbytes_8: int
    harm: float
    """What 4 bits cost beyond 8: squared error of the weight, or the sensitivity that was given."""


@dataclass(frozen=True)
class Plan:
    """What to ask of quantize_file for a mixed file."""

    config: QuantizationConfig
    exclude: tuple[str, ...]
    """Patterns of layers that stay float, beside those of the caller."""
    bits: dict[str, int]
    """Of every layer that is quantized."""

    def __str__(self) -> str:
        eight = sum(bits == 8 for bits in self.bits.values())
        return f"{eight} layers at 8 bits, {len(self.bits) - eight} at 4"


def within(costs: Mapping[str, Cost], nbytes: int) -> dict[str, int]:
    """Bits of each layer, so that the layers have at most `nbytes` together.

    All start at 8 bits. The layer with the least harm for each byte saved goes to 4, then the next,
    until they fit: greedy, which is exact but for the last step, as a layer has one step only.

    Raises:
        UserError: they do not fit at 4 bits either.

    >>> within({"a": Cost(4, 8, 9.0), "b": Cost(4, 8, 1.0)}, 12)
    {'a': 8, 'b': 4}
    """
    bits = dict.fromkeys(costs, 8)
    total = sum(cost.nbytes_8 for cost in costs.values())
    # A layer that 4 bits do not make smaller is never worth it.
    steps = {name: c for name, c in costs.items() if c.nbytes_4 < c.nbytes_8}
    for name in sorted(
        steps, key=lambda n: steps[n].harm / (steps[n].nbytes_8 - steps[n].nbytes_4)
    ):
        if total <= nbytes:
            break
        bits[name] = 4
        total += costs[name].nbytes_4 - costs[name].nbytes_8
    if total > nbytes:
        raise UserError(
            f"the layers need {total / 1e6:.1f} MB at 4 bits, {nbytes / 1e6:.1f} MB are left"
        )
    return bits


def from_bytes(
    found: Weights,
    config: str | QuantizationConfig,
    most: int,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    float_dtype: str = "bfloat16",
    sensitivity: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The least harm in a file of at most `most` bytes.

    config: an INT4_Group scheme, whose groups the 4-bit layers have. Harm is the squared error of
    the weights that 4 bits cost beyond 8, found by coding every layer both ways, or `sensitivity`:
    a number a layer, larger where 4 bits hurt the outputs more.

    progress is called with layers done and in all.

    Raises:
        UserError: another kind of scheme, a layer without sensitivity, too few bytes.
    """
    config = _base(config)
    choice = linears.choose(found, Request(config, include, exclude))
    if sensitivity is not None:
        unknown = [name for name in choice.chosen if name not in sensitivity]
        if unknown:
            raise UserError(f"the sensitivity of {len(unknown)} layers is missing ({unknown[0]})")

    mixed = _mixed(config, tuple(escape(name) for name in choice.chosen))
    choice = Choice(dict.fromkeys(choice.chosen, mixed), choice.skipped)

    def job(name: str) -> Cost:
        return _cost(found, mixed, name, None if sensitivity is None else sensitivity[name])

    costs: dict[str, Cost] = {}
    for name, cost in in_order(job, choice.chosen):
        costs[name] = cost
        if progress:
            progress(len(costs), len(choice.chosen), name)
    fixed = fixed_nbytes(found, choice, mixed, float_dtype)
    least = fixed + sum(min(cost.nbytes_4, cost.nbytes_8) for cost in costs.values())
    if least > most:
        raise UserError(f"--max_bytes {most}: {config.name} needs {least} at 4 bits in all layers")
    return _plan(config, within(costs, most - fixed), ())


def from_bits(
    found: Weights,
    config: str | QuantizationConfig,
    bits: Mapping[str, Any],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Plan:
    """The bits that a mapping of layer names or fnmatch patterns says: 4, 8 or "float".

    The first pattern that fits a layer holds; a layer without one gets 4.
    """
    config = _base(config)
    choice = linears.choose(found, Request(config, include, exclude))
    for pattern, value in bits.items():
        if value not in (4, 8, "float") or isinstance(value, bool):
            raise UserError(f'bits of {pattern!r} are {value!r}; 4, 8 or "float" is wanted')
        if not any(fnmatchcase(name, pattern) for name in [*choice.chosen, *choice.skipped]):
            raise UserError(f"bits pattern {pattern!r} matches no Linear layer of the checkpoint")
    said = {
        name: next((v for pattern, v in bits.items() if fnmatchcase(name, pattern)), 4)
        for name in choice.chosen
    }
    floats = tuple(escape(name) for name, value in said.items() if value == "float")
    return _plan(config, {n: int(v) for n, v in said.items() if v != "float"}, floats)


def read_json(path: str | Path, key: str) -> dict[str, Any]:
    """A JSON object of layers, which may stand under `key` beside other things.

    Raises:
        UserError: no such file, no JSON, no object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if isinstance(values, dict) and key in values and "schema_version" in values:
        if values[key] is None:
            raise UserError(f"{path} has no {key}: evaluate was not asked for --{key}")
    if isinstance(values, dict) and isinstance(values.get(key), dict):
        values = values[key]
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}; an object of layers is wanted")
    return values


def read_sensitivity(path: str | Path) -> dict[str, float]:
    """Harm a layer, from JSON: {"layer": number, …}, or that under "sensitivity"; or the results of
    `evaluate --sensitivity`, where it is the layer's share of the squared error.
    """
    values = read_json(path, "sensitivity")
    if isinstance(values.get("layers"), list):
        try:
            # A layer that the pictures did not reach did no harm.
            values = dict.fromkeys(values["not_reached"], 0.0) | {
                layer["name"]: layer["share"] or 0.0 for layer in values["layers"]
            }
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} holds no sensitivity as evaluate writes it") from error
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise UserError(
                f"{path}: sensitivity of {name} is {value!r}; a number from 0 is wanted"
            )
    return {name: float(value) for name, value in values.items()}


def parse_bytes(words: str) -> int:
    """Bytes from 800000000, 800M, 0.8G, 800MB (powers of ten) or 763Mi (of two).

    >>> parse_bytes("0.8G"), parse_bytes("1Ki")
    (800000000, 1024)
    """
    text = words.strip().removesuffix("B")
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            text, scale = text.removesuffix(unit), factor
            break
    else:
        scale = 1
    try:
        value = float(text) * scale
    except ValueError:
        value = -1.0
    if not 0 < value < 2**63:
        raise UserError(f"{words!r} is no number of bytes; 800M, 0.8G or 800000000 is wanted")
    return int(value)


_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


def _base(config: str | QuantizationConfig) -> QuantizationConfig:
    config = checked_config(config)
    if config.quant_type != "int4_group":
        raise UserError(f"mixed precision starts from an INT4_Group scheme, not from {config.name}")
    return config


def _mixed(config: QuantizationConfig, eight: tuple[str, ...]) -> QuantizationConfig:
    name = config.name.replace("INT4", "Mixed", 1)
    return replace(config, name=name, quant_type="mixed_precision", sensitive_layers=eight)


def _plan(config: QuantizationConfig, bits: dict[str, int], floats: tuple[str, ...]) -> Plan:
    eight = tuple(escape(name) for name, b in bits.items() if b == 8)
    return Plan(_mixed(config, eight) if eight else config, floats, bits)


def _cost(
    found: Weights,
    config: QuantizationConfig,
    name: str,
    sensitivity: float | None,
) -> Cost:
    nbytes, error = {}, {}
    for bits in (4, 8):
        q, weight = code(found, name, config.spec(bits))
        nbytes[bits] = Layer(name, linears.shape_of(found, name), q.spec).bytes
        if sensitivity is None:
            error[bits] = _squared_error(weight, q.dequantize())
    found.release(f"{name}.weight")
    harm = max(error[4] - error[8], 0.0) if sensitivity is None else sensitivity
    return Cost(nbytes[4], nbytes[8], harm)


def _squared_error(weight: torch.Tensor, other: torch.Tensor) -> float:
    return ops.moments(ops.values(weight), ops.values(other))["dd"]
