# SPDX-License-Identifier: Apache-2.0
"""Rows: means over scenes, the error that ranks schemes, what is infinite."""

import pytest
import torch

from vggtquant.evaluation.measure import scores
from vggtquant.evaluation.schema import (
    Metrics,
)


def test_means_leave_out_what_is_missing() -> None:
    found = scores.mean([{"a": Metrics(mae=1.0)}, {"a": Metrics(mae=3.0, mse=5.0)}])
    assert found == {"a": Metrics(mae=2.0, mse=5.0)}


def test_the_error_is_a_geometric_mean() -> None:
    found = {"a": Metrics(relative_l2=1e-2), "b": Metrics(relative_l2=1e-4), "c": Metrics()}
    assert scores.error_score(found) == pytest.approx(1e-3)
    assert scores.error_score({"a": Metrics()}) is None


def test_what_is_infinite_has_a_reason() -> None:
    outputs = {"pose_fov": torch.rand(1, 2, 2)}
    metrics, reasons = scores.score(outputs, {"pose_fov": outputs["pose_fov"].clone()})
    assert metrics["pose_fov"].psnr is None and metrics["pose_fov"].mae == 0
    assert reasons["pose_fov"]["psnr"] == "infinite: the two are equal"
