# SPDX-License-Identifier: Apache-2.0
"""Task scores and calibration: of one scene as a plain record, and over scenes from the records.

`of_scene` is the only part that sees outputs. What stands in a row is made from its scenes' records
by `over_scenes`, so that merged, resumed and straight runs give the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...scoring import confidence, geometry, task_scores
from ...scoring.geometry import Array, PoseErrors
from ...scoring.task_scores import Geometry, SceneErrors
from .scores import Outputs, Row, mean_scores

# Points asked for their nearest neighbour in the chamfer distances of a scene.
_QUERIES = 2048
# The parts of `task` that compare with another geometry; the third, `consistency`, does not.
COMPARED = ("fp32", "truth")
# head: its output, its confidence, dimensions of its error.
HEADS = {"depth": ("depth", "depth_conf", 1), "points": ("world_points", "world_points_conf", 3)}
# Shares of pixels that a threshold on the confidence keeps: VGGT's demos drop 25 or 50 %.
KEPT = (0.75, 0.5)


def as_arrays(outputs: Outputs) -> dict[str, Array]:
    """A forward's outputs for NumPy, the pose in one piece again, without the batch axis."""
    parts = [outputs.get(f"pose_{part}") for part in ("translation", "rotation", "fov")]
    known = [part for part in parts if part is not None]
    pose = {"pose_enc": torch.cat(known, -1)} if len(known) == len(parts) else {}
    return task_scores.arrays({k: v.float().numpy() for k, v in (outputs | pose).items()})


def of_scene(outputs: Outputs, reference: Outputs, truth: Geometry | None) -> Row:
    """The keys `task`, `pose_errors` and `calibration` of a scene's record.

    outputs: a scheme's; reference: the FP32 model's on the same pictures (the same for the baseline
    itself); truth: None where nothing is known of the scene.
    """
    mine, fp32 = as_arrays(outputs), as_arrays(reference)
    found = {
        "fp32": task_scores.scene_errors(
            mine, task_scores.predicted(fp32), queries=_QUERIES, aligned=False
        ),
        "truth": task_scores.scene_errors(mine, truth, queries=_QUERIES) if truth else None,
    }
    return {
        "task": {
            **{k: task_scores.pooled_scores([e]) if e else None for k, e in found.items()},
            "consistency": task_scores.consistency_scores(mine),
        },
        "pose_errors": {k: _pairs(e.pose) if e else None for k, e in found.items()},
        "calibration": _calibration(mine, fp32, truth),
    }


def over_scenes(scenes: Sequence[Row]) -> Row:
    """The keys `task` and `calibration` of a row, from the records of its scenes.

    Errors of camera pairs are pooled, the rest is averaged over the scenes that have it.
    """
    whole: Row = {"task": {}, "calibration": {}}
    for part in COMPARED:
        found = [_errors(scene, part) for scene in scenes if scene["task"][part] is not None]
        whole["task"][part] = task_scores.pooled_scores(found) if found else None
    whole["task"]["consistency"] = mean_scores([scene["task"]["consistency"] for scene in scenes])
    for head in HEADS:
        rows = [s["calibration"][head] for s in scenes if head in s["calibration"]]
        if rows:
            against = sorted({row["against"] for row in rows})
            figures = [{k: v for k, v in row.items() if k != "against"} for row in rows]
            whole["calibration"][head] = {"against": " and ".join(against), **mean_scores(figures)}
    return whole


def _pairs(pose: PoseErrors | None) -> Row | None:
    if pose is None:
        return None
    return {"rotation_deg": pose.rotation.tolist(), "direction_deg": pose.direction.tolist()}


def _errors(scene: Row, part: str) -> SceneErrors:
    """What a record says of a scene, as `pooled_scores` wants it."""
    pairs = scene["pose_errors"][part]
    pose = None
    if pairs is not None:
        pose = PoseErrors(np.array(pairs["rotation_deg"]), np.array(pairs["direction_deg"]))
    return SceneErrors(
        pose, {k: v for k, v in scene["task"][part].items() if not task_scores.is_pooled(k)}
    )


# ---- calibration ---------------------------------------------------------------------------------


def _calibration(mine: Mapping[str, Array], fp32: Mapping[str, Array], truth: Any) -> Row:
    """What became of the confidence of each head, by HEADS."""
    heads: Row = {}
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
        correlation = confidence.rank_correlation(c[some], c_fp32[some])
        heads[head] = {
            "against": "truth" if known is not None else "fp32",
            "laplace_nll_fp32": other,
            "laplace_nll": own,
            "laplace_nll_difference": own - other,
            "log_confidence_shift": float(np.mean(np.log(c)) - np.mean(np.log(c_fp32))),
            "confidence_correlation": correlation if np.isfinite(correlation) else None,
            **{
                f"kept_{share:.0%}".rstrip("%"): confidence.kept_share(c, c_fp32, share)
                for share in KEPT
            },
        }
    return heads


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
