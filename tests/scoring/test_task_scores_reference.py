# SPDX-License-Identifier: Apache-2.0
"""The task scores on random inputs, against implementations written here from the papers.

Loops over pairs, pixels and points; SciPy's rotations; no line of vggtquant's own.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vggtquant.scoring import geometry, task_scores

Array = NDArray[np.float64]
EXACT = 1e-9
FRAMES, SIZE = 5, 14


def _outputs(rng: np.random.Generator, near: dict | None = None) -> dict[str, Array]:
    """Random outputs, or outputs near other ones."""
    if near is not None:
        return {name: value + 0.1 * rng.normal(size=value.shape) for name, value in near.items()}
    pose = rng.normal(size=(FRAMES, 9))
    pose[:, 7:] = rng.uniform(0.8, 1.2, (FRAMES, 2))
    return {
        "pose_enc": pose,
        "depth": rng.uniform(1, 4, (FRAMES, SIZE, SIZE, 1)),
        "depth_conf": rng.uniform(2, 9, (FRAMES, SIZE, SIZE)),
        "world_points": rng.normal(size=(FRAMES, SIZE, SIZE, 3)),
        "world_points_conf": rng.uniform(2, 9, (FRAMES, SIZE, SIZE)),
    }


# ---- poses ---------------------------------------------------------------------------------------


def _pair_errors(predicted: Array, truth: Array) -> tuple[list[float], list[float]]:
    rotations, directions = [], []
    for i in range(FRAMES):
        for j in range(i + 1, FRAMES):
            # VGGT first makes camera 0 the world: E' = E E_0^-1; then compares E'_i^-1 E'_j.
            found = []
            for pose in (predicted, truth):
                first = np.eye(4)
                first[:3, :3] = Rotation.from_quat(pose[0, 3:7]).as_matrix()
                first[:3, 3] = pose[0, :3]
                moved = []
                for k in (i, j):
                    matrix = np.eye(4)
                    matrix[:3, :3] = Rotation.from_quat(pose[k, 3:7]).as_matrix()
                    matrix[:3, 3] = pose[k, :3]
                    moved.append(matrix @ np.linalg.inv(first))
                found.append(np.linalg.inv(moved[0]) @ moved[1])
            a, b = found
            turn = Rotation.from_matrix(a[:3, :3]).inv() * Rotation.from_matrix(b[:3, :3])
            rotations.append(math.degrees(turn.magnitude()))
            # Of the cross product, as the arc cosine keeps half the digits of small angles.
            sine, cosine = np.linalg.norm(np.cross(a[:3, 3], b[:3, 3])), a[:3, 3] @ b[:3, 3]
            angle = math.degrees(math.atan2(sine, cosine))
            directions.append(min(angle, 180 - angle))
    return rotations, directions


def _auc(rotations: list[float], directions: list[float], k: int) -> float:
    """The mean over bins of the share of pairs in or below them: a double loop."""
    worst = [max(pair) for pair in zip(rotations, directions, strict=True)]
    shares = [sum(error < edge for error in worst) / len(worst) for edge in range(1, k + 1)]
    return sum(shares) / k


def test_poses(rng: np.random.Generator) -> None:
    truth = _outputs(rng)
    mine = _outputs(rng, truth)
    rotations, directions = _pair_errors(mine["pose_enc"], truth["pose_enc"])
    errors = task_scores.scene_errors(mine, task_scores.predicted(truth))
    assert errors.pose is not None
    np.testing.assert_allclose(errors.pose.rotation, rotations, rtol=0, atol=EXACT)
    np.testing.assert_allclose(errors.pose.translation, directions, rtol=0, atol=EXACT)
    scores = geometry.pose_scores(errors.pose)
    for k in (3, 5, 15, 30):
        assert scores[f"auc_{k}"] == pytest.approx(_auc(rotations, directions, k), abs=EXACT)
        for name, angles in (("rra", rotations), ("rta", directions)):
            below = [angle < k for angle in angles]
            assert scores[f"{name}_{k}"] == pytest.approx(sum(below) / len(below), abs=EXACT)
    for name, angles in (("rotation", rotations), ("translation", directions)):
        assert scores[f"{name}_median_deg"] == pytest.approx(np.median(angles), abs=EXACT)


def test_the_auc_is_an_area(rng: np.random.Generator) -> None:
    """Of the step curve of the cumulative histogram: the trapezoid rule over its corners."""
    rotation, translation = rng.uniform(0, 40, (2, 200))
    error = np.maximum(rotation, translation)
    for k in (3, 5, 15, 30):
        shares = np.array([np.mean(error < edge) for edge in range(1, k + 1)])
        x = np.repeat(np.arange(k + 1), 2)[1:-1]
        area = np.trapezoid(np.repeat(shares, 2), x) / k
        assert geometry.pose_auc(rotation, translation, k) == pytest.approx(area, abs=EXACT)


# ---- depth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "_median"])
def test_depth(suffix: str, rng: np.random.Generator) -> None:
    truth = _outputs(rng)
    mine = _outputs(rng, truth)
    d, g = mine["depth"].ravel().tolist(), truth["depth"].ravel().tolist()
    if suffix:
        middle = [sorted(x)[len(x) // 2 - 1] + sorted(x)[len(x) // 2] for x in (d, g)]
        d = [value * middle[1] / middle[0] for value in d]
    n = len(d)
    scores = task_scores.scene_errors(mine, task_scores.predicted(truth)).scores
    relative = sum(abs(a - b) / b for a, b in zip(d, g, strict=True)) / n
    assert scores[f"depth_abs_rel{suffix}"] == pytest.approx(relative, abs=EXACT)
    rmse = math.sqrt(sum((a - b) ** 2 for a, b in zip(d, g, strict=True)) / n)
    assert scores[f"depth_rmse{suffix}"] == pytest.approx(rmse, abs=EXACT)
    close = sum(max(a / b, b / a) < 1.25 for a, b in zip(d, g, strict=True)) / n
    assert scores[f"depth_delta_1.25{suffix}"] == pytest.approx(close, abs=EXACT)


# ---- points --------------------------------------------------------------------------------------


def _nearest(a: Array, b: Array) -> float:
    return float(np.mean([min(math.dist(p, q) for q in b) for p in a]))


def _horn(source: Array, target: Array) -> Array:
    """The best similarity by Horn 1987 (quaternion of the largest eigenvalue), applied."""
    x, y = source - source.mean(0), target - target.mean(0)
    s = x.T @ y
    symmetric = s + s.T - np.trace(s) * np.eye(3)
    skew = np.array([s[1, 2] - s[2, 1], s[2, 0] - s[0, 2], s[0, 1] - s[1, 0]])
    n = np.block([[np.trace(s), skew[None]], [skew[:, None], symmetric]])
    w, x_, y_, z_ = np.linalg.eigh(n)[1][:, -1]
    turned = Rotation.from_quat([x_, y_, z_, w]).apply(x)
    return (turned * y).sum() / (x * x).sum() * turned + target.mean(0)


def test_points(rng: np.random.Generator) -> None:
    truth = _outputs(rng)
    mine = _outputs(rng, truth)
    for outputs in (truth, mine):  # few points: the loops here are slow
        outputs["world_points"] = outputs["world_points"][:, :6, :6]
    p, g = (outputs["world_points"].reshape(-1, 3) for outputs in (mine, truth))
    only = {"world_points": mine["world_points"]}
    known = task_scores.predicted({"world_points": truth["world_points"]})
    scores = task_scores.scene_errors(only, known, queries=None).scores
    for suffix, cloud in (("", p), ("_umeyama", _horn(p, g))):
        accuracy, completeness = _nearest(cloud, g), _nearest(g, cloud)
        assert scores[f"points_accuracy{suffix}"] == pytest.approx(accuracy, abs=EXACT)
        assert scores[f"points_completeness{suffix}"] == pytest.approx(completeness, abs=EXACT)
        chamfer = (accuracy + completeness) / 2
        assert scores[f"points_chamfer{suffix}"] == pytest.approx(chamfer, abs=EXACT)


# ---- views against each other --------------------------------------------------------------------


def _smooth(rng: np.random.Generator) -> dict[str, Array]:
    """Two or more views of a slanted plane by cameras side by side, depths a little off."""
    pose = np.zeros((3, 9))
    pose[:, 6], pose[:, 7:] = 1, 1.0
    pose[:, 0] = [0.0, 0.15, -0.2]
    focal, middle = SIZE / 2 / math.tan(0.5), SIZE / 2
    depth = np.zeros((3, SIZE, SIZE, 1))
    for s, v, u in np.ndindex(3, SIZE, SIZE):
        x, y = (u - middle) / focal, (v - middle) / focal
        # z + 0.2 X + 0.1 Y = 3 with X = x z - t_x
        depth[s, v, u] = (3 + 0.2 * pose[s, 0]) / (1 + 0.2 * x + 0.1 * y)
    depth *= 1 + 0.004 * rng.normal(size=depth.shape)
    return {"pose_enc": pose, "depth": depth}


def test_the_round_trip(rng: np.random.Generator) -> None:
    outputs = _smooth(rng)
    pose, depth = outputs["pose_enc"], outputs["depth"][..., 0]
    focal, middle = SIZE / 2 / math.tan(0.5), SIZE / 2

    def world(s: int, u: float, v: float, d: float) -> Array:
        return np.array([(u - middle) / focal * d, (v - middle) / focal * d, d]) - pose[s, :3]

    def seen(s: int, point: Array) -> tuple[float, float, float]:
        x, y, z = point + pose[s, :3]
        return x / z * focal + middle, y / z * focal + middle, z

    px, relative = [], []
    for i in range(3):
        for j in range(3):
            for v, u in np.ndindex(SIZE, SIZE):
                a, b, _ = seen(j, world(i, u, v, depth[i, v, u]))
                if i == j or not (0 <= a <= SIZE - 1 and 0 <= b <= SIZE - 1):
                    continue
                a0, b0 = min(int(a), SIZE - 2), min(int(b), SIZE - 2)
                corner = depth[j, b0 : b0 + 2, a0 : a0 + 2]
                d = np.array([1 - b + b0, b - b0]) @ corner @ np.array([1 - a + a0, a - a0])
                u2, v2, d2 = seen(i, world(j, a, b, d))
                px.append(math.hypot(u2 - u, v2 - v))
                relative.append(abs(d2 - depth[i, v, u]) / depth[i, v, u])
    scores = task_scores.consistency_scores(outputs)
    assert scores["reprojection_px"] == pytest.approx(np.median(px), abs=EXACT)
    assert scores["reprojection_depth"] == pytest.approx(np.median(relative), abs=EXACT)
    good = [a < 1 and b < 0.01 for a, b in zip(px, relative, strict=True)]
    assert 0 < np.mean(good) < 1
    assert scores["consistent_share"] == pytest.approx(np.mean(good), abs=EXACT)


def test_points_that_are_the_unprojected_depth_have_no_gap(rng: np.random.Generator) -> None:
    outputs = _smooth(rng)
    cameras = geometry.decode_pose(outputs["pose_enc"], (SIZE, SIZE))
    points = geometry.unproject(outputs["depth"], *cameras)
    assert task_scores.consistency_scores(outputs | {"world_points": points})["points_gap"] == 0
    far = task_scores.consistency_scores(outputs | {"world_points": 2 * points})["points_gap"]
    assert far == pytest.approx(0.5)
    assert "points_gap" not in task_scores.consistency_scores(outputs)
    assert task_scores.consistency_scores({"depth": outputs["depth"]}) == {}
