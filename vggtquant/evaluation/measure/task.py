# SPDX-License-Identifier: Apache-2.0
"""Task scores and calibration: of one scene for its record, and over scenes from the records.

`of_scene` is the only part that sees outputs. What stands in a row is made from its scenes' records
by `over_scenes`, so that merged, resumed and straight runs give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ...scoring import confidence, geometry, task_scores
from ...scoring.geometry import Array
from ...scoring.task_scores import Geometry, SceneErrors
from ..schema import Calibration, Kept, Pairs, PoseErrors, Task
from .forward import Outputs
from .scores import mean

# Points asked for their nearest neighbour in the chamfer distances of a scene.
_QUERIES = 2048
# head: its output, its confidence, dimensions of its error.
HEADS = {"depth": ("depth", "depth_conf", 1), "points": ("world_points", "world_points_conf", 3)}


class Scored(Protocol):
    """What records and rows of scenes have in common."""

    task: Task
    pose_errors: PoseErrors
    calibration: dict[str, Calibration]


def as_arrays(outputs: Outputs) -> dict[str, Array]:
    """A forward's outputs for NumPy, the pose in one piece again, without the batch axis."""
    parts = [outputs.get(f"pose_{part}") for part in ("translation", "rotation", "fov")]
    known = [part for part in parts if part is not None]
    pose = {"pose_enc": torch.cat(known, -1)} if len(known) == len(parts) else {}
    return task_scores.arrays({k: v.float().numpy() for k, v in (outputs | pose).items()})


def of_scene(
    outputs: Outputs, reference: Outputs, truth: Geometry | None
) -> tuple[Task, PoseErrors, dict[str, Calibration]]:
    """What a scene's record says of poses, depth, points and confidence.

    outputs: a scheme's; reference: the FP32 model's on the same pictures (the same for the baseline
    itself); truth: None where nothing is known of the scene.
    """
    mine, other = as_arrays(outputs), as_arrays(reference)
    fp32 = task_scores.scene_errors(
        mine, task_scores.predicted(other), queries=_QUERIES, aligned=False
    )
    known = task_scores.scene_errors(mine, truth, queries=_QUERIES) if truth else None
    return (
        Task(
            fp32=task_scores.pooled_scores([fp32]),
            truth=task_scores.pooled_scores([known]) if known else None,
            consistency=task_scores.consistency_scores(mine),
        ),
        PoseErrors(fp32=_pairs(fp32), truth=_pairs(known)),
        _calibration(mine, other, truth),
    )


def over_scenes(scenes: Sequence[Scored]) -> tuple[Task, dict[str, Calibration]]:
    """A row's scores and calibration, from the records of its scenes.

    Errors of camera pairs are pooled, the rest is averaged over the scenes that have it.
    """
    pooled = {}
    for part in ("fp32", "truth"):
        found = [
            _errors(getattr(scene.task, part), getattr(scene.pose_errors, part))
            for scene in scenes
            if getattr(scene.task, part) is not None
        ]
        pooled[part] = task_scores.pooled_scores(found) if found else None
    consistency = [scene.task.consistency or {} for scene in scenes]
    calibration = {}
    for head in HEADS:
        figures = [scene.calibration[head] for scene in scenes if head in scene.calibration]
        if figures:
            calibration[head] = mean(figures)
    return Task(**pooled, consistency=mean(consistency)), calibration


def _pairs(found: SceneErrors | None) -> Pairs | None:
    if found is None or found.pose is None:
        return None
    return Pairs(
        rotation_deg=found.pose.rotation.tolist(), direction_deg=found.pose.direction.tolist()
    )


def _errors(scores: Mapping[str, float], pairs: Pairs | None) -> SceneErrors:
    """What a record says of a scene, as `pooled_scores` wants it."""
    pose = None
    if pairs is not None:
        pose = geometry.PoseErrors(np.array(pairs.rotation_deg), np.array(pairs.direction_deg))
    return SceneErrors(pose, {k: v for k, v in scores.items() if not task_scores.is_pooled(k)})


# ---- calibration ---------------------------------------------------------------------------------


def _calibration(
    mine: Mapping[str, Array], fp32: Mapping[str, Array], truth: Any
) -> dict[str, Calibration]:
    """What became of the confidence of each head, by HEADS."""
    heads: dict[str, Calibration] = {}
    for head, (output, conf, dimensions) in HEADS.items():
        if not all(name in found for name in (output, conf) for found in (mine, fp32)):
            continue
        known = getattr(truth, output, None)
        target = known if known is not None else fp32[output]
        mask = np.asarray(truth.mask, bool) if known is not None else None
        own, other = (
            confidence.laplace_nll(
                _distance(head, found[output], np.asarray(target, float), mask),
                found[conf][mask] if mask is not None else found[conf],
                dimensions,
            )
            for found in (mine, fp32)
        )
        c, c_fp32 = mine[conf].ravel(), fp32[conf].ravel()
        some = slice(None, None, max(1, c.size // task_scores.RANKED))
        with np.errstate(divide="ignore", invalid="ignore"):  # of a confidence of 0
            shift = float(np.mean(np.log(c)) - np.mean(np.log(c_fp32)))
        heads[head] = Calibration(
            against="truth" if known is not None else "fp32",
            laplace_nll_fp32=_finite(other),
            laplace_nll=_finite(own),
            laplace_nll_difference=_finite(own - other),
            log_confidence_shift=_finite(shift),
            confidence_correlation=_finite(confidence.rank_correlation(c[some], c_fp32[some])),
            kept_75=_kept(c, c_fp32, 0.75),  # VGGT's demos drop 25 or 50 %
            kept_50=_kept(c, c_fp32, 0.5),
        )
    return heads


def _kept(own: Array, fp32: Array, share: float) -> Kept:
    return Kept(**confidence.kept_share(own, fp32, share))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _distance(head: str, p: Array, g: Array, mask: Any) -> Array:
    """Length of each pixel's error in the prediction's own unit: the target is scaled to it.

    The scale is median(prediction) / median(target), of depths, or of distances from the world's
    origin (the first camera) for points.
    """
    if head == "depth":
        p, g = p.reshape(p.shape[:3])[..., None], g.reshape(p.shape[:3])[..., None]
    if mask is not None:
        p, g = p[mask], g[mask]
    scale = geometry.median_scale(geometry.length(g), geometry.length(p))
    return geometry.length(p - scale * g)
