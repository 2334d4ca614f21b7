# SPDX-License-Identifier: Apache-2.0
"""Statistics over scenes: SciPy's bootstrap agrees, pairs count by scene, few show nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import variant
from numpy.typing import NDArray
from scipy import stats

from vggtquant.evaluation.analyse import intervals, rows
from vggtquant.evaluation.measure import task
from vggtquant.evaluation.schema import (
    Calibration,
    Difference,
    Kept,
    Metrics,
    Pairs,
    PoseErrors,
    Reading,
    Row,
    SceneScores,
    Statistics,
    Status,
    Task,
)
from vggtquant.scoring import geometry

Array = NDArray[np.float64]


def _scene(name: str, depth: float, rotation: Array, output: float = 0.1) -> SceneScores:
    """A record as task.of_scene makes it, of one score of depth and of errors of camera pairs."""
    pose = geometry.PoseErrors(rotation, np.zeros_like(rotation))
    scores = geometry.pose_scores(pose) | {"depth_abs_rel": depth}
    pairs = Pairs(rotation_deg=rotation.tolist(), direction_deg=pose.direction.tolist())
    return SceneScores(
        scene=name,
        metrics={"depth": Metrics(relative_l2=output), "pose_fov": Metrics(relative_l2=0.2)},
        reasons={},
        task=Task(fp32=scores, consistency={}),
        pose_errors=PoseErrors(fp32=pairs),
        calibration={},
        forward_ms_runs=[1.0],
    )


def _rows(scenes: int, rng: np.random.Generator, *, shift: float = 0.0) -> list[Row]:
    """FP32 and two schemes, whose scenes have different numbers of pairs."""
    pairs = rng.integers(1, 12, scenes)
    hard = rng.exponential(0.1, scenes)
    found = []
    for index, (name, scheme) in enumerate(
        (("Baseline_FP32", "Baseline_FP32"), ("A", "INT4_Group_64"), ("B", "INT4_Group_32"))
    ):
        row = rows.empty(variant(scheme))
        row.name = name
        row.scenes = [
            _scene(f"s{i}", hard[i] + index * shift + rng.normal(0, 0.01), rng.uniform(0, 40, n))
            for i, n in enumerate(pairs)
        ]
        found.append(row)
    return found


def _bootstrap(statistic, data: tuple[Array, ...]) -> tuple[float, float]:
    """SciPy's paired percentile interval from the same stream of draws."""
    found = stats.bootstrap(
        data,
        statistic,
        n_resamples=intervals.RESAMPLES,
        paired=True,
        vectorized=False,
        confidence_level=intervals.CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(intervals.SEED),
    ).confidence_interval
    return found.low, found.high


def test_means_have_scipy_s_interval(rng: np.random.Generator) -> None:
    found = _rows(9, rng)
    entry = intervals.statistics(found).against_fp32["A"]["fp32/depth_abs_rel"]
    fp32, a = (np.array([s.task.fp32["depth_abs_rel"] for s in row.scenes]) for row in found[:2])
    low, high = _bootstrap(lambda x, y: np.mean(y) - np.mean(x), (fp32, a))
    assert entry.difference == pytest.approx(np.mean(a - fp32), abs=1e-12)
    assert (entry.low, entry.high) == pytest.approx((low, high), abs=1e-12)


def test_the_auc_is_that_of_all_pairs_and_drawn_by_scene(rng: np.random.Generator) -> None:
    found = _rows(7, rng)
    entry = next(
        entry
        for entry in intervals.statistics(found).between
        if (entry.a, entry.b, entry.score) == ("A", "B", "fp32/auc_30")
    )
    errors = [[s.pose_errors.fp32.rotation_deg for s in row.scenes] for row in found[1:]]

    def auc(scheme: int, scenes: Array) -> float:
        pooled = np.concatenate([errors[scheme][int(scene)] for scene in scenes])
        return geometry.pose_auc(pooled, np.zeros_like(pooled), 30)

    everything = np.arange(7.0)
    difference = auc(1, everything) - auc(0, everything)
    low, high = _bootstrap(lambda s: auc(1, s) - auc(0, s), (everything,))
    assert entry.difference == pytest.approx(difference, abs=1e-12)
    assert (entry.low, entry.high) == pytest.approx((low, high), abs=1e-12)
    by_pair = np.subtract(*[geometry.pose_auc(np.concatenate(e), 0.0, 30) for e in errors[::-1]])
    assert by_pair == pytest.approx(difference)


def test_the_row_s_auc_is_what_statistics_start_from(rng: np.random.Generator) -> None:
    found = _rows(6, rng)
    whole = [task.over_scenes(row.scenes)[0].fp32 for row in found]
    entry = intervals.statistics(found).against_fp32["B"]["fp32/auc_15"]
    assert entry.difference == pytest.approx(whole[2]["auc_15"] - whole[0]["auc_15"], abs=1e-12)


def _depth(found: Statistics, name: str = "B") -> Difference:
    return found.against_fp32[name]["fp32/depth_abs_rel"]


def test_a_difference_is_shown_only_where_there_is_one(rng: np.random.Generator) -> None:
    for shift, shown in ((0.0, False), (0.5, True)):
        entry = _depth(
            intervals.statistics(_rows(16, np.random.default_rng(5), shift=shift)),
        )
        assert entry.shown is shown
        assert entry.reading is (Reading.WORSE if shown else Reading.NOT_SHOWN)
    equal = _rows(8, rng)
    equal[1].scenes = equal[0].scenes
    entry = _depth(intervals.statistics(equal), "A")
    assert (entry.difference, entry.low, entry.high, entry.shown) == (0.0, 0.0, 0.0, False)


def test_few_scenes_have_differences_but_no_interval(rng: np.random.Generator) -> None:
    found = intervals.statistics(_rows(4, rng, shift=9.0))
    entry = _depth(found)
    assert entry.difference > 1
    assert (entry.low, entry.high, entry.shown) == (None, None, False)
    assert entry.reading is Reading.UNKNOWN
    assert found.note == "under five scenes: no interval"
    assert intervals.statistics(_rows(5, rng)).note is None
    assert intervals.statistics([]).against_fp32 == {}


def test_what_fp32_differs_from_itself_by_is_no_finding(rng: np.random.Generator) -> None:
    found = _rows(16, np.random.default_rng(5), shift=0.5)
    found[1].name = "Baseline_FP32_Noisy_Input"  # half as far from FP32 as B
    assert _depth(intervals.statistics(found)).reading is Reading.WORSE
    found[1].scenes, found[2].scenes = found[2].scenes, found[1].scenes
    read = intervals.statistics(found)
    assert _depth(read).shown and _depth(read).reading is Reading.BELOW_FLOOR
    assert _depth(read, "Baseline_FP32_Noisy_Input").reading is Reading.BELOW_FLOOR
    tiny = Difference(difference=1e-7, low=0.9e-7, high=1.1e-7, shown=True)
    assert intervals.reading(tiny, 2e-7, "fp32/depth_abs_rel") is Reading.BELOW_FLOOR


def test_a_score_that_no_scene_defines_is_left_out(rng: np.random.Generator) -> None:
    """A confidence of 0 everywhere has an infinite likelihood: it once broke np.percentile."""
    assert intervals.interval(np.full(100, np.nan)) is None
    kept = Kept(threshold_fp32=0.0, threshold=0.0, share_at_fp32_threshold=1.0, overlap=1.0)
    figures = dict.fromkeys(Calibration.__struct_fields__) | {"against": "fp32"}
    figures |= {"laplace_nll": math.inf, "kept_75": kept, "kept_50": kept}
    found = _rows(6, rng)
    for row in found:
        for scene in row.scenes:
            scene.calibration = {"depth": Calibration(**figures)}
    made = intervals.statistics(found)
    assert "calibration/depth_laplace_nll" not in made.against_fp32["A"] and _depth(made)


def test_the_order_of_scenes_does_not_matter(rng: np.random.Generator) -> None:
    found = _rows(11, rng)
    wanted = intervals.statistics(found)
    for row in found:
        row.scenes = row.scenes[::-1]
    assert intervals.statistics(found) == wanted


def test_the_error_is_the_geometric_mean_of_the_outputs_means(rng: np.random.Generator) -> None:
    found = _rows(6, rng)
    for row in found:
        for scene in row.scenes:
            scene.metrics["depth"].relative_l2 = float(rng.uniform(0.01, 0.2))
    a, b = ([scene.metrics["depth"].relative_l2 for scene in row.scenes] for row in found[1:])
    entry = next(e for e in intervals.statistics(found).between if e.score == "error")
    wanted = np.sqrt(np.mean(b) * 0.2) - np.sqrt(np.mean(a) * 0.2)
    assert entry.difference == pytest.approx(wanted, abs=1e-12)


def test_a_score_that_some_scenes_lack_is_of_the_others(rng: np.random.Generator) -> None:
    found = _rows(8, rng)
    for row in found:
        del row.scenes[3].task.fp32["depth_abs_rel"]
    entry = _depth(intervals.statistics(found), "A")
    fp32, a = (
        np.mean([s.task.fp32["depth_abs_rel"] for i, s in enumerate(r.scenes) if i != 3])
        for r in found[:2]
    )
    assert entry.difference == pytest.approx(a - fp32, abs=1e-12)
    assert entry.low <= entry.difference <= entry.high


def test_failed_rows_take_no_part(rng: np.random.Generator) -> None:
    found = _rows(6, rng)
    found[1].status = Status.FAILED
    made = intervals.statistics(found)
    assert list(made.against_fp32) == ["B"] and made.between == []


@pytest.mark.parametrize(("scenes", "least"), [(8, 0.85), (64, 0.92)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(scenes: int, least: float) -> None:
    """Percentile intervals of few scenes are too narrow; docs/protocols.md gives the shares."""
    generator = np.random.default_rng(1)
    counts = intervals.draws(scenes, 2000)
    held = []
    for _ in range(400):
        values = generator.normal(size=scenes)
        low, high = intervals.interval(counts @ values / scenes)
        held.append(low <= 0 <= high)
    assert least < np.mean(held) < 0.98
