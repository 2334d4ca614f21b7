# SPDX-License-Identifier: Apache-2.0
"""Metrics of a forward's outputs against FP32, and their sums over outputs and scenes.

The metrics themselves are `compare`'s; what outputs mean as geometry is task.py's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import torch

from ...adapter import IMAGE_AXES
from ...metrics import compare
from ..schema import METRIC_NAMES, Metrics
from .forward import Outputs

T = TypeVar("T")
_EXACT = 1e-12


def score(
    reference: Outputs, candidate: Outputs
) -> tuple[dict[str, Metrics], dict[str, dict[str, str]]]:
    """All metrics of every output, and the reasons of those that are None.

    Raises ValueError when the two do not hold the same outputs in the same shapes.
    """
    if reference.keys() != candidate.keys():
        raise ValueError(f"outputs are {sorted(candidate)}, the baseline's are {sorted(reference)}")
    metrics: dict[str, Metrics] = {}
    reasons: dict[str, dict[str, str]] = {}
    for name, wanted in reference.items():
        got = candidate[name]
        if got.shape != wanted.shape:
            raise ValueError(
                f"{name} is {tuple(got.shape)}, the baseline's is {tuple(wanted.shape)}"
            )
        found = compare(wanted.float(), got.float(), image_axes=IMAGE_AXES.get(name))
        whys = dict(found.pop("reasons"))
        if found.get("psnr") == math.inf:
            whys |= {"psnr": "infinite: the two are equal"}
        known = {
            metric: value
            for metric in METRIC_NAMES
            if (value := found[metric]) is not None and math.isfinite(value)
        }
        metrics[name] = Metrics(**known)
        missing = {
            metric: whys.get(metric, f"the value is {found[metric]}")
            for metric in METRIC_NAMES
            if metric not in known
        }
        if missing:
            reasons[name] = missing
    return metrics, reasons


def nonfinite(outputs: Outputs) -> dict[str, int]:
    """The number of NaN and Inf in each output that holds any."""
    counts = {name: int((~torch.isfinite(value)).sum()) for name, value in outputs.items()}
    return {name: count for name, count in counts.items() if count}


def mean(values: Sequence[T]) -> T:
    """The mean of figures, or of blocks and mappings of them, leaving out None; None if all are.

    Words of a block are joined where they differ.

    >>> mean([{"a": 1.0, "b": None}, {"a": 3.0}])
    {'a': 2.0, 'b': None}
    """
    found: T = _mean(values)
    return found


def _mean(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, msgspec.Struct):
        names = first.__struct_fields__
        return type(first)(**{name: _mean([getattr(v, name) for v in values]) for name in names})
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _mean([value[key] for value in values if key in value]) for key in keys}
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], str):
        return " and ".join(sorted(set(known)))
    return statistics.fmean(known) if known else None


def error_score(metrics: Mapping[str, Metrics]) -> float | None:
    """The one figure by which schemes are ranked: geometric mean over outputs of relative_l2.

    ||FP32 - scheme|| / ||FP32|| has no unit, and the geometric mean lets no output outweigh another
    by its scale. An output that is exact counts as 1e-12; where all are, the error is 0. None when
    no output has a value.
    """
    known = [m.relative_l2 for m in metrics.values() if m.relative_l2 is not None]
    if not any(known):
        return 0.0 if known else None
    return statistics.geometric_mean(max(value, _EXACT) for value in known)
