# SPDX-License-Identifier: Apache-2.0
"""Task scores of a scene: poses, depth, points and confidence against another geometry, and views
against each other.

The other geometry is the truth, or what the FP32 model predicted; the definitions are the same.
Protocols and their sources: docs/protocols.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError
from . import confidence, geometry
from .geometry import Array, PoseErrors

# Pixels by which a confidence is judged, spread evenly over all of a scene.
RANKED = 8192
# Pixels that are reprojected, over all ordered pairs of frames.
_REPROJECTED = 16384
# A reprojected pixel is consistent within these, as in MVSNet (Yao et al. 2018, section 4.2).
CONSISTENT_PX, CONSISTENT_DEPTH = 1.0, 0.01

_RANKS = {  # of the outputs that are scored, without the batch axis
    "pose_enc": 2,
    "depth": 4,
    "depth_conf": 3,
    "world_points": 4,
    "world_points_conf": 3,
}


class Geometry(Protocol):
    """What is known of a scene of S frames; None where a part is not known."""

    @property
    def depth(self) -> Any: ...  # (S,H,W)
    @property
    def world_points(self) -> Any: ...  # (S,H,W,3), camera 0 is the world
    @property
    def extrinsics(self) -> Any: ...  # (S,3,4), camera from world
    @property
    def mask(self) -> Any: ...  # (S,H,W), True where depth and points are known


@dataclass(frozen=True)
class Predicted:
    """A model's outputs as a Geometry, all of it known."""

    depth: Array | None
    world_points: Array | None
    extrinsics: Array | None
    mask: Any


@dataclass(frozen=True)
class SceneErrors:
    """What one scene contributes: pose errors to be pooled, and scores to be averaged."""

    pose: PoseErrors | None  # None: no poses, or a single frame, which has no pairs
    scores: dict[str, float]


def arrays(predictions: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """The outputs that are scored, float64, without a batch axis of 1."""
    found = {name: np.asarray(predictions[name], float) for name in _RANKS if name in predictions}
    return {name: x[0] if x.ndim > _RANKS[name] else x for name, x in found.items()}


def predicted(predictions: Mapping[str, ArrayLike]) -> Predicted:
    """VGGT's outputs as a geometry that others are held to.

    >>> predicted({"depth": np.ones((1, 2, 14, 14, 1))}).mask.shape
    (2, 14, 14)
    """
    out = arrays(predictions)
    shapes = [out[name].shape[:3] for name in ("depth", "world_points") if name in out]
    extrinsics = None
    if "pose_enc" in out:  # extrinsics do not depend on the size of the picture
        extrinsics, _ = geometry.decode_pose(out["pose_enc"], (1, 1))
    return Predicted(
        out["depth"][..., 0] if "depth" in out else None,
        out.get("world_points"),
        extrinsics,
        np.ones(shapes[0], bool) if shapes else None,
    )


# ---- against another geometry --------------------------------------------------------------------


def scene_errors(
    predictions: Mapping[str, ArrayLike],
    truth: Geometry,
    *,
    queries: int | None = 4096,
    aligned: bool = True,
) -> SceneErrors:
    """Scores VGGT's outputs for one scene, with or without a batch axis of 1, against a geometry.

    Depth and world points as they are; with `aligned` also after median scaling and after Umeyama
    over corresponding pixels (names that end in `_median`, `_umeyama`), and confidences are then
    held to these. AUSE and rank correlation (of confidence and falling error) judge depth_conf by
    the relative error of depth, world_points_conf by the distance of the points. A score that is
    not defined, such as the ranking of errors that are all 0, is left out; so are outputs that are
    missing, and what the geometry does not know.
    """
    out = arrays(predictions)
    scores: dict[str, float] = {}
    if "depth" in out and truth.depth is not None:
        scores |= _depth_scores(out, truth, aligned)
    if "world_points" in out and truth.world_points is not None:
        scores |= _point_scores(out, truth, queries, aligned)
    pose = None
    if "pose_enc" in out and truth.extrinsics is not None and len(out["pose_enc"]) > 1:
        extrinsics, _ = geometry.decode_pose(out["pose_enc"], (1, 1))
        pose = geometry.relative_pose_errors(extrinsics, truth.extrinsics)
    return SceneErrors(pose, {k: v for k, v in scores.items() if not math.isnan(v)})


def _depth_scores(out: Mapping[str, Array], truth: Geometry, aligned: bool) -> dict[str, float]:
    mask = np.asarray(truth.mask, bool)
    depth = out["depth"][..., 0]
    scores: dict[str, float] = {}
    for suffix, align in (("", False), ("_median", True))[: 1 + aligned]:
        row = geometry.depth_scores(depth, truth.depth, mask, align=align)
        scores |= {f"depth_{key}{suffix}": value for key, value in row.items()}
    if "depth_conf" in out:
        d, g = geometry.valid_depth(depth, truth.depth, mask)
        conf, _ = geometry.valid_depth(out["depth_conf"], truth.depth, mask)
        scale = geometry.median_scale(d, g) if aligned else 1.0
        scores |= _ranking("depth", conf, np.abs(d * scale - g) / g)
    return scores


def _point_scores(
    out: Mapping[str, Array], truth: Geometry, queries: int | None, aligned: bool
) -> dict[str, float]:
    mask = np.asarray(truth.mask, bool)
    p, g = out["world_points"][mask], np.asarray(truth.world_points, float)[mask]
    clouds = {"": p}
    if aligned:
        finite = bool(np.isfinite(p).all())
        clouds["_umeyama"] = geometry.umeyama(p, g)(p) if finite else p
    scores: dict[str, float] = {}
    for suffix, cloud in clouds.items():
        row = geometry.point_scores(cloud, g, queries=queries)
        scores |= {f"points_{key}{suffix}": value for key, value in row.items()}
    if "world_points_conf" in out:
        distance = geometry.length(list(clouds.values())[-1] - g)
        scores |= _ranking("points", out["world_points_conf"][mask], distance)
    return scores


def _ranking(head: str, conf: Array, error: Array) -> dict[str, float]:
    """How well a confidence ranks the errors; NaN where there is nothing to rank."""
    some = slice(None, None, max(1, len(error) // RANKED))
    conf, error = conf[some], error[some]
    return {
        f"{head}_ause": confidence.ause(conf, error),
        f"{head}_ranking": confidence.rank_correlation(conf, -error),
    }


def pooled_scores(scenes: Sequence[SceneErrors]) -> dict[str, float]:
    """Scores of several scenes: pairs of frames pooled for the poses, means for the rest.

    A mean is over the scenes that have the score. UserError when there is no scene.
    """
    if not scenes:
        raise UserError("no scene to score: at least one is needed")
    poses = [scene.pose for scene in scenes if scene.pose is not None]
    scores: dict[str, float] = {}
    if poses:
        columns = zip(*((p.rotation, p.direction) for p in poses), strict=True)
        scores |= geometry.pose_scores(PoseErrors(*map(np.concatenate, columns)))
    for name in dict.fromkeys(name for scene in scenes for name in scene.scores):
        values = [scene.scores[name] for scene in scenes if name in scene.scores]
        scores[name] = float(np.mean(values))
    return scores


def is_pooled(score: str) -> bool:
    """Whether a score is made of the pairs of all scenes, so that a scene weighs by its pairs.

    >>> is_pooled("auc_30"), is_pooled("depth_abs_rel")
    (True, False)
    """
    return score.startswith(("auc_", "rra_", "rta_")) or score.endswith("_median_deg")


# ---- views against each other --------------------------------------------------------------------


def consistency_scores(predictions: Mapping[str, ArrayLike]) -> dict[str, float]:
    """How well a model's outputs agree among themselves, without any truth.

    points_gap: mean distance between world_points and the depth unprojected with the predicted
    cameras, over the mean distance of world_points from the first camera (VGGT's unit). The others
    are a round trip between all ordered pairs of frames (MVSNet's geometric check, Yao et al. 2018,
    section 4.2): a pixel of one frame goes through its depth into the other, takes that one's
    (bilinear) depth and comes back; reprojection_px is the median distance in pixels from where it
    started, reprojection_depth the median relative difference of depth, consistent_share the share
    within 1 pixel and 1 %. Only pixels that fall into the other picture count; occluded ones do,
    too, so the share does not reach 1 even for a perfect model. Missing outputs, missing scores.
    """
    out = arrays(predictions)
    if "pose_enc" not in out or "depth" not in out:
        return {}
    depth = out["depth"][..., 0]
    size = (depth.shape[1], depth.shape[2])
    cameras = geometry.decode_pose(out["pose_enc"], size)
    cloud = geometry.unproject(depth, *cameras)
    scores: dict[str, float] = {}
    if "world_points" in out:
        points = out["world_points"]
        gap = geometry.length(cloud - points)
        scores["points_gap"] = float(gap.mean() / geometry.length(points).mean())
    if len(depth) > 1:
        scores |= _reprojection(depth, cloud, *cameras)
    return {k: v for k, v in scores.items() if math.isfinite(v)}


def _reprojection(depth: Array, cloud: Array, extrinsics: Array, k: Array) -> dict[str, float]:
    frames, height, width = depth.shape
    first, second = np.nonzero(~np.eye(frames, dtype=bool))
    count = min(height * width, max(16, _REPROJECTED // len(first)))
    pixel = np.linspace(0, height * width - 1, count).astype(int)
    start = np.stack([pixel % width, pixel // width], axis=-1)  # (N,2), column and row
    there, z = geometry.project(
        cloud.reshape(frames, -1, 3)[first][:, pixel], extrinsics[second], k[second]
    )
    inside = (z > 0) & np.all((there >= 0) & (there <= [width - 1, height - 1]), axis=-1)
    if not inside.any():
        return {}
    pair, _ = np.nonzero(inside)
    there = there[inside]
    seen = _bilinear(depth, second[pair], there)
    ray = np.stack([*((there - k[second[pair], :2, 2]) / _focal(k[second[pair]])).T, seen], axis=-1)
    ray[:, :2] *= seen[:, None]
    world = _from_camera(ray, extrinsics[second[pair]])
    # Each point has its own camera here: a cloud of one point a camera.
    back, d = geometry.project(world[:, None], extrinsics[first[pair]], k[first[pair]])
    began = np.broadcast_to(start, (len(first), count, 2))[inside]
    true = depth.reshape(frames, -1)[first][:, pixel][inside]
    px = np.where(d[:, 0] > 0, geometry.length(back[:, 0] - began), np.inf)
    relative = np.abs(d[:, 0] - true) / true
    good = (px < CONSISTENT_PX) & (relative < CONSISTENT_DEPTH)
    return {
        "reprojection_px": float(np.median(px)),
        "reprojection_depth": float(np.median(relative)),
        "consistent_share": float(np.mean(good)),
    }


def _focal(k: Array) -> Array:
    return np.stack([k[..., 0, 0], k[..., 1, 1]], axis=-1)


def _from_camera(points: Array, extrinsics: Array) -> Array:
    """World points (N,3) of points (N,3) in the coordinates of one camera each, (N,3,4)."""
    pose = geometry.invert_pose(extrinsics)
    world: Array = np.einsum("nij,nj->ni", pose[:, :, :3], points) + pose[:, :, 3]
    return world


def _bilinear(maps: Array, index: Any, at: Array) -> Array:
    """Values of maps (S,H,W) at fractional pixels (N,2) inside them, of map `index` (N,) each."""
    height, width = maps.shape[1:]
    u0 = np.minimum(at[:, 0].astype(int), max(width - 2, 0))
    v0 = np.minimum(at[:, 1].astype(int), max(height - 2, 0))
    du, dv = at[:, 0] - u0, at[:, 1] - v0
    u1, v1 = np.minimum(u0 + 1, width - 1), np.minimum(v0 + 1, height - 1)
    top = maps[index, v0, u0] * (1 - du) + maps[index, v0, u1] * du
    bottom = maps[index, v1, u0] * (1 - du) + maps[index, v1, u1] * du
    mixed: Array = top * (1 - dv) + bottom * dv
    return mixed
