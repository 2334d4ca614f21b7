# SPDX-License-Identifier: Apache-2.0
"""Metrics of a forward's outputs against FP32, and their sums over outputs and scenes.

The metrics themselves are `compare`'s; what outputs mean as geometry is task.py's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import vggtquant as vq

from ... import vggt

Row = dict[str, Any]
Outputs = dict[str, torch.Tensor]

# What `compare` gives beside the eight metrics and is kept with them.
EXTRA_METRICS = ("relative_l2", "kl_divergence", "data_range")
METRIC_NAMES = tuple(metric.name for metric in vq.METRICS) + EXTRA_METRICS


def score(reference: Outputs, candidate: Outputs) -> tuple[Row, Row]:
    """All metrics of every output, and the reasons of those that are None.

    Raises ValueError when the two do not hold the same outputs in the same shapes.
    """
    if reference.keys() != candidate.keys():
        raise ValueError(f"outputs are {sorted(candidate)}, the baseline's are {sorted(reference)}")
    metrics: Row = {}
    reasons: Row = {}
    for name, wanted in reference.items():
        got = candidate[name]
        if got.shape != wanted.shape:
            raise ValueError(
                f"{name} is {tuple(got.shape)}, the baseline's is {tuple(wanted.shape)}"
            )
        found = vq.compare(wanted.float(), got.float(), image_axes=vggt.IMAGE_AXES.get(name))
        whys = dict(found["reasons"])
        if found["psnr"] == math.inf:
            whys["psnr"] = "infinite: the two are equal"
        known = {
            metric: value
            for metric in METRIC_NAMES
            if (value := found[metric]) is not None and math.isfinite(value)
        }
        metrics[name] = {metric: known.get(metric) for metric in METRIC_NAMES}
        reasons[name] = {
            metric: whys.get(metric, f"the value is {found[metric]}")
            for metric in METRIC_NAMES
            if metric not in known
        }
    return metrics, {name: why for name, why in reasons.items() if why}


def nonfinite(outputs: Outputs) -> dict[str, int]:
    """The number of NaN and Inf in each output that holds any."""
    counts = {name: int((~torch.isfinite(value)).sum()) for name, value in outputs.items()}
    return {name: count for name, count in counts.items() if count}


def mean_scores(per_scene: Sequence[Row]) -> Row:
    """The mean over scenes of {name: value or {…}}, leaving out None; None if all are."""
    merged: Row = {}
    for key in dict.fromkeys(key for scene in per_scene for key in scene):
        values = [scene[key] for scene in per_scene if key in scene]
        if all(isinstance(value, Mapping) for value in values):
            merged[key] = mean_scores(values)
        else:
            known = [value for value in values if value is not None]
            merged[key] = statistics.fmean(known) if known else None
    return merged


def error_score(metrics: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """The one figure by which schemes are ranked: geometric mean over outputs of relative_l2.

    ||FP32 - scheme|| / ||FP32|| has no unit, and the geometric mean lets no output outweigh another
    by its scale. An output that is exact counts as 1e-12; where all are, the error is 0. None when
    no output has a value.
    """
    values = [m["relative_l2"] for m in metrics.values()]
    known = [value for value in values if value is not None]
    if not any(known):
        return 0.0 if known else None
    return statistics.geometric_mean(max(value, 1e-12) for value in known)
