# SPDX-License-Identifier: Apache-2.0
"""Scores of whole scenes: perfect and scaled predictions, views among themselves."""

from types import SimpleNamespace

import numpy as np
import pytest

from vggtquant.errors import UserError
from vggtquant.scoring import geometry, task_scores


def scene(frames: int = 3) -> SimpleNamespace:
    rng = np.random.default_rng(5)
    encoded = np.concatenate([0.2 * rng.normal(size=(frames, 7)), np.full((frames, 2), 1.0)], 1)
    encoded[0, :7] = 0
    encoded[:, 6] += 1
    extrinsics, intrinsics = geometry.decode_pose(encoded, (14, 14))
    depth = rng.uniform(1, 3, (frames, 14, 14))
    return SimpleNamespace(
        pose_enc=encoded,
        depth=depth,
        world_points=geometry.unproject(depth, extrinsics, intrinsics),
        extrinsics=extrinsics,
        mask=depth > 1.2,
    )


@pytest.mark.parametrize("batched", [False, True])
def test_a_perfect_prediction_scores_perfectly(batched: bool) -> None:
    truth = scene()
    outputs = {
        "pose_enc": truth.pose_enc,
        "depth": truth.depth[..., None],
        "depth_conf": np.ones_like(truth.depth),
        "world_points": truth.world_points,
        "images": np.zeros((3, 3, 14, 14)),
    }
    if batched:
        outputs = {name: value[None] for name, value in outputs.items()}
    scores = task_scores.pooled_scores([task_scores.scene_errors(outputs, truth)] * 2)
    assert scores["auc_3"] == 1
    assert scores["depth_abs_rel"] == 0
    assert scores["depth_ause"] == 0
    assert scores["points_chamfer"] == 0
    assert scores["points_chamfer_umeyama"] == pytest.approx(0, abs=1e-12)


def test_scaled_predictions_are_forgiven_only_by_alignment() -> None:
    truth = scene()
    outputs = {"depth": 2 * truth.depth[..., None], "world_points": 2 * truth.world_points}
    scores = task_scores.scene_errors(outputs, truth).scores
    assert scores["depth_abs_rel"] == pytest.approx(1)
    assert scores["depth_abs_rel_median"] == 0
    assert scores["points_chamfer"] > 0.1
    assert scores["points_chamfer_umeyama"] == pytest.approx(0, abs=1e-12)


def test_one_frame_has_no_pose_score() -> None:
    truth = scene(frames=1)
    outputs = {"pose_enc": truth.pose_enc, "depth": truth.depth[..., None]}
    scores = task_scores.pooled_scores([task_scores.scene_errors(outputs, truth)])
    assert "auc_30" not in scores
    assert scores["depth_abs_rel"] == 0


def test_no_scene_is_refused() -> None:
    with pytest.raises(UserError, match="no scene"):
        task_scores.pooled_scores([])
