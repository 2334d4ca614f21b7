# SPDX-License-Identifier: Apache-2.0
"""`--sensitivity`: what each layer alone adds to the error, one layer quantized at a time.

The model runs one scene with a single layer packed, which is then set back: a forward a layer.
Measurements come as records for the journal; the document's block is a pure function of them.
"""

from __future__ import annotations

import glob
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import vggtquant as vq

from ...errors import UserError
from . import scores
from .scores import Outputs, Row

_KEY = "Layers of "
RULE = (
    "share: of the final error, what one layer makes when it alone is quantized: the mean over "
    "outputs of (relative_l2 with this layer alone / relative_l2 with all layers)^2. Squares, as "
    "errors that know nothing of each other add up so; share_sum, the sum over all layers, is then "
    "1, and says by its distance from 1 how far that holds. The geometric mean that ranks schemes "
    "would not do: a layer of one head leaves the other heads' outputs exact."
)

Forward = Callable[[nn.Module], Outputs]
"""One forward of the scene by the model as it is: its known outputs."""


# ---- measured ------------------------------------------------------------------------------------


def config_of(scheme: str) -> vq.QuantizationConfig:
    """The scheme's configuration; UserError for one that does not exist or quantizes nothing."""
    config = vq.get_config(scheme)
    if not config.quantizes:
        raise UserError(
            f"--sensitivity is {scheme}, which quantizes no layer; wanted one that does"
        )
    return config


def key(scheme: str) -> str:
    """What stands for the layers of a scheme in the journal, where rows have their names."""
    return f"{_KEY}{scheme}"


def records(
    model: nn.Module,
    scheme: str,
    scene: str,
    forward: Forward,
    reference: Outputs,
    there: Sequence[Row],
) -> Iterator[Row]:
    """Tries the layers that `there`, the records of an earlier process, lack; yields a record each.

    Whatever a layer raises becomes the last record, of kind "error"; UserError and
    KeyboardInterrupt pass through. The model is as it was afterwards.
    """
    config = config_of(scheme)
    try:
        first = next((record for record in there if record["kind"] == "whole"), None)
        if first is None:
            first = {"kind": "whole", "scheme": key(scheme), "scene": scene}
            first |= whole(model, config, forward, reference)
            yield first
        done = {record["layer"] for record in there if record["kind"] == "layer"}
        for name in to_try(first):
            if name not in done:
                found = alone(model, config, name, forward, reference)
                yield {"kind": "layer", "scheme": key(scheme)} | found
        yield {"kind": "end", "scheme": key(scheme)}
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield {"kind": "error", "scheme": key(scheme), "reason": reason}


def left(records: Sequence[Row]) -> int:
    """How many layers are still to be tried after the records of `key`; 0 before the first."""
    first = next((record for record in records if record["kind"] == "whole"), None)
    done = sum(record["kind"] == "layer" for record in records)
    return len(to_try(first)) - done if first else 0


def to_try(first: Row) -> list[str]:
    """The layers that the record of the whole scheme tells to be tried alone."""
    lost = set(first["not_reached"])
    return [layer["name"] for layer in first["layers"] if layer["name"] not in lost]


def whole(
    model: nn.Module, config: vq.QuantizationConfig, forward: Forward, reference: Outputs
) -> Row:
    """The record of the scheme on all its layers: its error, and the layers to be tried alone.

    Raises what quantize_model raises; the model is as before afterwards.
    """
    calls: Counter[str] = Counter()
    _, report = vq.quantize_model(model, config, keep_originals=True)
    try:
        for layer in report.quantized:
            module = model.get_submodule(layer.name)
            module.register_forward_hook(lambda *_, name=layer.name: calls.update((name,)))
        errors = _errors(forward(model), reference)
    finally:
        vq.restore_model(model, report)
    return {
        "error_all": errors,
        "layers": [
            {"name": layer.name, "sqnr_db": layer.sqnr_db, "cosine": layer.cosine}
            for layer in report.quantized
        ],
        "not_reached": [layer.name for layer in report.quantized if not calls[layer.name]],
    }


def alone(
    model: nn.Module,
    config: vq.QuantizationConfig,
    name: str,
    forward: Forward,
    reference: Outputs,
) -> Row:
    """The record of one layer: the error that it makes alone, and the noise in its own output.

    The layer's inputs are those of FP32 as long as nothing before it is run twice, so its output is
    held to that of the float layer on the very same inputs.
    """
    sums = {"rr": 0.0, "dd": 0.0, "cc": 0.0, "rc": 0.0}
    _, report = vq.quantize_model(model, config, include=[glob.escape(name)], keep_originals=True)
    original = report.originals[name]

    def hold(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        moments = _moments(original(inputs[0]), output)
        for key, value in moments.items():
            sums[key] += value

    try:
        model.get_submodule(name).register_forward_hook(hold)
        errors = _errors(forward(model), reference)
    finally:
        vq.restore_model(model, report)
    norm = math.sqrt(sums["rr"] * sums["cc"])
    return {
        "layer": name,
        "error_alone": errors,
        "output_sqnr_db": 10 * math.log10(sums["rr"] / sums["dd"]) if sums["dd"] else None,
        "output_cosine": sums["rc"] / norm if norm else None,
    }


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
    return {name: values["relative_l2"] for name, values in metrics.items()}


# ---- the document's block ------------------------------------------------------------------------


def block(records: Sequence[Row]) -> Row | None:
    """The document's `sensitivity` from a journal's records; None where no layer was tried.

    Layers are in the order of their share of the error, the largest first.
    """
    first = next((record for record in reversed(records) if record["kind"] == "whole"), None)
    if first is None:
        return None
    own = [record for record in records if record["scheme"] == first["scheme"]]
    layers = [record for record in own if record["kind"] == "layer"]
    by_name = {record["layer"]: record for record in layers}
    rows = [
        _layer(weights, by_name[weights["name"]], first["error_all"])
        for weights in first["layers"]
        if weights["name"] in by_name
    ]
    return {
        "scheme": first["scheme"].removeprefix(_KEY),
        "scene": first["scene"],
        "rule": RULE,
        "reason": next((one["reason"] for one in own if one["kind"] == "error"), None),
        "layers_to_try": len(to_try(first)),
        "error_all": first["error_all"],
        "share_sum": math.fsum(row["share"] or 0.0 for row in rows),
        "not_reached": first["not_reached"],
        "layers": sorted(rows, key=lambda row: (-(row["share"] or 0.0), row["name"])),
    }


def in_words(records: Sequence[Row]) -> str:
    """A line on what was found."""
    found = block(records)
    if found is None or not found["layers"]:
        return "no layer was tried alone" + (f": {found['reason']}" if found else "")
    first = found["layers"][0]
    return (
        f"{len(found['layers'])} of {found['layers_to_try']} layers of {found['scheme']} one at a "
        f"time: most of the error ({100 * (first['share'] or 0):.1f} %) comes from {first['name']}"
    )


def share(alone: Mapping[str, float | None], whole: Mapping[str, float | None]) -> float | None:
    """Mean over outputs of the squared ratio of two errors; None where no output has any error.

    >>> share({"depth": 0.01, "pose": 0.0}, {"depth": 0.02, "pose": 0.3})
    0.125
    """
    pairs = [(alone.get(name), error) for name, error in whole.items()]
    ratios = [(one / error) ** 2 for one, error in pairs if one is not None and error]
    return statistics.fmean(ratios) if ratios else None


def _layer(weights: Mapping[str, Any], record: Row, error_all: Mapping[str, Any]) -> Row:
    group, kind = place(weights["name"])
    return {
        "name": weights["name"],
        "block": group,
        "kind": kind,
        "sqnr_db": weights["sqnr_db"],
        "cosine": weights["cosine"],
        "output_sqnr_db": record["output_sqnr_db"],
        "output_cosine": record["output_cosine"],
        "error_alone": record["error_alone"],
        "share": share(record["error_alone"], error_all),
    }


def place(name: str) -> tuple[str, str]:
    """Block and kind of a layer by its name: blocks end with their number, where they have one.

    >>> place("aggregator.frame_blocks.3.attn.qkv"), place("camera_head.pose_branch.fc1")
    (('aggregator.frame_blocks.3', 'attn.qkv'), ('camera_head.pose_branch', 'fc1'))
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), len(parts) - 2)
    return ".".join(parts[: number + 1]), ".".join(parts[number + 1 :])


def kinds(grid: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """The kinds of layers in one of `grids`, in alphabetical order."""
    return sorted({kind for layers in grid.values() for kind in layers})


def grids(layers: Sequence[Row]) -> dict[str, dict[str, dict[str, Row]]]:
    """Layers as heat maps want them: {group of blocks: {block's number: {kind: layer}}}.

    Blocks without a number stand together in the group "".
    """
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for layer in layers:
        group, _, number = layer["block"].rpartition(".")
        if not number.isdecimal():
            group, number = "", layer["block"]
        found.setdefault(group, {}).setdefault(number, {})[layer["kind"]] = layer
    return {
        group: dict(sorted(found[group].items(), key=lambda item: (len(item[0]), item[0])))
        if group
        else found[group]
        for group in sorted(found, key=lambda group: (not group, group))
    }
