# SPDX-License-Identifier: Apache-2.0
"""`--sensitivity`: runs a scene with one layer quantized at a time, a forward a layer.

The records say what each layer alone adds to the error; analyse/shares.py makes shares of them.
"""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from ...configs import QuantizationConfig
from ...errors import UserError
from ...model import quantize_model, restore_model
from ..records import Broke, End, LayerAlone, Record, Whole
from ..schema import Layer
from . import scores
from .forward import Outputs, watch
from .journal import kind

_KEY = "Layers of "

Forward = Callable[[nn.Module], Outputs]
"""One forward of the scene by the model as it is: its known outputs."""


def key(scheme: str) -> str:
    """What stands for the layers of a scheme in the journal, where rows have their names."""
    return f"{_KEY}{scheme}"


def scheme_of(key: str) -> str:
    """The inverse of `key`."""
    return key.removeprefix(_KEY)


def check(config: QuantizationConfig) -> QuantizationConfig:
    """The config itself; UserError for one that quantizes nothing."""
    if not config.quantizes:
        raise UserError(
            f"--sensitivity is {config.name}, which quantizes no layer; wanted one that does"
        )
    return config


def records(
    model: nn.Module,
    config: QuantizationConfig,
    scene: str,
    forward: Forward,
    reference: Outputs,
    there: Sequence[Record],
) -> Iterator[Record]:
    """Tries the layers that `there`, the records of an earlier process, lack; yields a record each.

    Whatever a layer raises becomes the last record; UserError and KeyboardInterrupt pass through.
    The model is as it was afterwards.
    """
    scheme = key(config.name)
    try:
        first = next(iter(kind(there, Whole)), None)
        if first is None:
            first = whole(model, config, scene, forward, reference)
            yield first
        done = {record.layer for record in kind(there, LayerAlone)}
        for name in to_try(first):
            if name not in done:
                yield alone(model, config, name, forward, reference)
        yield End(scheme=scheme)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Broke(scheme=scheme, reason=reason)


def left(records: Sequence[Record]) -> int:
    """How many layers are still to be tried after the records of `key`; 0 before the first."""
    first = next(iter(kind(records, Whole)), None)
    return len(to_try(first)) - len(kind(records, LayerAlone)) if first else 0


def to_try(first: Whole) -> list[str]:
    """The layers that the record of the whole scheme tells to be tried alone."""
    lost = set(first.not_reached)
    return [
        layer.name for layer in first.layers if layer.skipped is None and layer.name not in lost
    ]


def whole(
    model: nn.Module,
    config: QuantizationConfig,
    scene: str,
    forward: Forward,
    reference: Outputs,
) -> Whole:
    """The record of the scheme on all its layers: its error, and the layers to be tried alone.

    Raises what quantize_model raises; the model is as before afterwards.
    """
    calls: Counter[str] = Counter()
    _, report = quantize_model(model, config, keep_originals=True)
    try:
        swapped = {layer.name: model.get_submodule(layer.name) for layer in report.quantized}
        with watch(swapped, calls):
            errors = _errors(forward(model), reference)
    finally:
        restore_model(model, report)
    return Whole(
        scheme=key(config.name),
        scene=scene,
        error_all=errors,
        layers=list(map(Layer.of, report.layers)),
        not_reached=[name for name in swapped if not calls[name]],
    )


def alone(
    model: nn.Module,
    config: QuantizationConfig,
    name: str,
    forward: Forward,
    reference: Outputs,
) -> LayerAlone:
    """The record of one layer: the error that it makes alone, and the noise in its own output.

    The layer's inputs are those of FP32 as long as nothing before it is run twice, so its output is
    held to that of the float layer on the very same inputs.
    """
    sums: Counter[str] = Counter()
    _, report = quantize_model(model, config, include=[glob.escape(name)], keep_originals=True)
    original = report.originals[name]

    def hold(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        sums.update(_moments(original(inputs[0]), output))

    try:
        handle = model.get_submodule(name).register_forward_hook(hold)
        errors = _errors(forward(model), reference)
        handle.remove()
    finally:
        restore_model(model, report)
    rr, dd, cc, rc = (sums[part] for part in ("rr", "dd", "cc", "rc"))
    norm = math.sqrt(rr * cc)
    return LayerAlone(
        scheme=key(config.name),
        layer=name,
        error_alone=errors,
        output_sqnr_db=10 * math.log10(rr / dd) if dd and rr else None,
        output_cosine=rc / norm if norm else None,
    )


def _moments(wanted: torch.Tensor, got: torch.Tensor) -> dict[str, float]:
    r, c = wanted.double(), got.double()
    return {
        "rr": float((r * r).sum()),
        "dd": float((r - c).square().sum()),
        "cc": float((c * c).sum()),
        "rc": float((r * c).sum()),
    }


def _errors(outputs: Outputs, reference: Outputs) -> dict[str, float | None]:
    """relative_l2 of every output."""
    metrics = scores.score(reference, outputs)[0]
    return {name: values.relative_l2 for name, values in metrics.items()}
