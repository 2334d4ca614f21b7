# SPDX-License-Identifier: Apache-2.0
"""The recommendation: a pure function of rows and bounds, with a reason for every exclusion."""

import pytest
from builders import document, row, seven, with_scenes

import vggtquant as vq
from vggtquant.errors import UserError
from vggtquant.evaluation.analyse import intervals, recommendation
from vggtquant.evaluation.measure import plan
from vggtquant.evaluation.present import conclusions, page, text
from vggtquant.evaluation.schema import (
    Budget,
    Document,
    Kind,
    Reading,
    Recommendation,
    Row,
    Status,
    Task,
)

FINE, FAST = "INT8_Per_Channel_Symmetric", "INT8_Per_Channel_Symmetric_A8"
SMALL, TINY = "INT4_Group_64", "INT4_Group_128"


def _row(name: str, error: float, nbytes: int, ms: float, points: list[float], depth: float) -> Row:
    """A row on so many scenes, with the points of AUC@30 that it loses on each."""
    made = row(name, error, nbytes, ms)
    scores = [{"auc_30": 1 - lost / 100, "depth_abs_rel": depth} for lost in points]
    tasks = [Task(fp32=s, truth={"auc_30": s["auc_30"] - 0.3}, consistency={}) for s in scores]
    with_scenes(made, tasks)
    mean = sum(points) / len(points)
    made.task.fp32 = {"auc_30": 1 - mean / 100, "depth_abs_rel": depth}  # without pairs to pool
    made.task.truth = {"auc_30": 0.7 - mean / 100}
    return made


def _rows(scenes: int = 1) -> list[Row]:
    return [
        _row("Baseline_FP32", 0.0, 1_000_000, 100.0, [0.0] * scenes, 0.0),
        _row("Baseline_BF16", 0.001, 1_000_000, 60.0, [0.1] * scenes, 0.003),
        _row(FINE, 0.01, 300_000, 66.7, [0.1] * scenes, 0.001),
        _row(FAST, 0.02, 300_000, 33.3, [0.5] * scenes, 0.002),
        _row(SMALL, 0.05, 200_000, 111.0, [2.0] * scenes, 0.01),
        _row(TINY, 0.30, 150_000, 125.0, [37.88] * scenes, 0.2),
    ]


def _recommend(rows: list[Row], **bounds: float) -> Recommendation:
    return recommendation.recommend(rows, Budget(**bounds), intervals.statistics(rows))


@pytest.mark.parametrize(
    ("bounds", "scheme", "nearest"),
    [
        ({}, FINE, None),
        ({"max_drop": 3.0}, SMALL, None),
        ({"max_drop": 40.0}, TINY, None),
        ({"max_drop": 0.05}, None, FINE),
        ({"min_speedup": 2.0}, FAST, None),
        ({"max_bytes": 250_000}, None, SMALL),
        ({"max_drop": 30.0, "max_bytes": 250_000}, SMALL, None),
    ],
)
def test_the_rule_decides(bounds: dict, scheme: str | None, nearest: str | None) -> None:
    found = _recommend(_rows(), **bounds)
    assert (found.scheme, found.nearest) == (scheme, nearest)
    assert found.budget == Budget(**bounds) and found.rule == recommendation.RULE


def test_one_scheme_alone_is_not_the_smallest_of_one() -> None:
    assert _recommend(_rows()).reason.startswith("It is the smallest of 2 that keep within 1 point")
    alone = _recommend(_rows()[:3]).reason
    assert alone.startswith("It is the only one that keeps within 1 point of AUC@30")


def test_a_scheme_that_loses_the_poses_is_never_recommended() -> None:
    """On photographs, INT4_Group_128 was recommended with 37.88 points of AUC@30 lost."""
    rows = [*_rows()[:2], _rows()[-1]]
    found = _recommend(rows)
    assert found.scheme is None and found.nearest == TINY
    assert "No scheme keeps within the bounds" in found.reason and "37.88 points" in found.reason
    for said in _everywhere(document(rows)):
        assert "37.88 points" in said and "No scheme keeps within the bounds" in said


def _everywhere(made: Document) -> list[str]:
    texts = (text.terminal(made, 80), text.terminal(made, 200), text.full_report(made))
    return [" ".join(said.split()) for said in (*texts, page.draw(made))]


def test_every_exclusion_names_its_bounds() -> None:
    found = _recommend(_rows(), max_drop=0.05, max_bytes=250_000, min_speedup=9)
    assert found.scheme is None
    assert found.excluded[FINE] == [
        "loses 0.10 points of AUC@30 against FP32's poses, more than max_drop 0.05",
        "300000 bytes, more than max_bytes 250000",
        "1.50x FP32's speed, less than min_speedup 9",
    ]
    assert set(found.excluded) == {FINE, FAST, SMALL, TINY}
    found = _recommend(_rows())
    assert found.excluded[SMALL] == [
        "loses 2.00 points of AUC@30 against FP32's poses, more than max_drop 1",
        "its depth is 1 % from FP32's, more than the noise floor's 0.3 %",
    ]


def test_the_depth_is_held_to_the_noise_floor_unless_max_drop_is_given() -> None:
    rows = _rows()
    rows[1] = _row("Baseline_BF16", 0.0001, 1_000_000, 60.0, [0.0], 0.0005)
    assert _recommend(rows).scheme is None and _recommend(rows).depth_bound == 0.0005
    assert _recommend(rows, max_drop=1.0).scheme == FINE
    assert _recommend(rows, max_drop=1.0).depth_bound is None


def test_the_nearest_says_its_loss_once() -> None:
    rows = _rows()
    for one in rows[2:]:
        one.task.fp32 = {"auc_30": 0.9, "depth_abs_rel": 0.1}
    reason = _recommend(rows).reason
    assert reason.count("10.00 points") == 1 and reason.count("10 %") == 1, reason
    reason = _recommend(_rows()[:4], max_bytes=250_000).reason  # of a bound that is no loss
    assert "more than max_bytes" in reason and "it loses 0.10 points and 0.1 % of depth" in reason


def test_a_depth_whose_interval_reaches_beyond_the_floor_is_told() -> None:
    rows = _rows(8)
    for scene, one in enumerate(rows[2].scenes):
        one.task.fp32["depth_abs_rel"] = 0.001 if scene % 2 else 0.0049
    rows[2].task.fp32["depth_abs_rel"] = 0.00295  # the floor is 0.003
    found = _recommend(rows[:3])
    assert found.scheme == FINE
    assert any("its depth may be up to" in words for words in found.open), found.open


def test_ties_name_their_members() -> None:
    found = _recommend(_rows())
    assert found.tied == [FAST]  # the same bytes, and within the bounds
    for said in _everywhere(document(_rows())):
        assert f"Of the same size and within the bounds: {FAST}" in said.replace("<wbr>", "")
    assert document(_rows()).best.tied.size == []


def test_one_scene_is_unknown_and_never_no_difference() -> None:
    made = document(_rows())
    assert made.best.tied.accuracy == [] and set(made.best.tied.unknown) == {FAST, SMALL, TINY}
    (words,) = made.recommendation.open
    assert words == "of 1 scene nothing is known about chance: another may lose more"
    for said in _everywhere(made):
        assert "no difference in error is shown" not in said.lower()
        assert "no difference shown" not in said
        assert "nothing is known about chance" in said
    readings = {one.reading for s in made.statistics.against_fp32.values() for one in s.values()}
    assert readings <= {Reading.UNKNOWN, Reading.BELOW_FLOOR}


def test_without_poses_the_loss_is_unknown() -> None:
    rows = _rows()
    for one in rows:
        one.task.fp32 = {k: v for k, v in one.task.fp32.items() if k != "auc_30"}
    found = _recommend(rows)
    assert found.scheme == FINE and "gives no poses" in found.open[0]
    found = _recommend(rows, max_drop=1.0)
    assert found.scheme is None and "cannot be checked" in found.reason


def test_failed_schemes_and_references_are_not_considered() -> None:
    rows = _rows()
    rows[2].status, rows[3].kind = Status.FAILED, Kind.REFERENCE
    found = _recommend(rows, max_drop=40.0)
    assert found.scheme == TINY and FINE not in found.front
    assert _recommend(rows[:2]).reason.startswith("No scheme finished")


@pytest.mark.parametrize(("name", "bound"), [("max_drop", -1.0), ("min_speedup", 0.0)])
def test_a_bound_that_means_nothing_is_refused(name: str, bound: float) -> None:
    with pytest.raises(UserError, match=f"--{name} is {bound:g}"):
        plan.check_budget(Budget(**{name: bound}))
    plan.check_budget(Budget(max_drop=0.0))


# ---- what the spread leaves open -----------------------------------------------------------------


def test_the_loss_has_the_interval_of_its_difference() -> None:
    rows = _rows(6)
    rows[2] = _row(FINE, 0.01, 300_000, 66.7, [0.0, 0.0, 0.0, 0.0, 0.0, 3.0], 0.001)
    for one in rows[2].scenes:  # a pair each, so that AUC is averaged
        one.task.fp32["auc_30"] = one.task.fp32["auc_30"]
    statistics = intervals.statistics(rows)
    statistics.against_fp32[FINE]["fp32/auc_30"] = type(
        next(iter(statistics.against_fp32[FINE].values()))
    )(difference=-0.005, low=-0.015, high=0.0, shown=False)
    found = recommendation.recommend(rows[:3], Budget(), statistics)
    assert found.scheme == FINE and found.loss.points == pytest.approx(0.5)
    assert (found.loss.low, found.loss.high) == pytest.approx((0.0, 1.5))
    (words,) = found.open
    assert words.startswith("the loss may be up to 1.50 points by its interval, more than max_drop")
    assert "0.50 points (0.00 .. 1.50)" in found.reason
    wide = recommendation.recommend(rows[:3], Budget(max_drop=2.0), statistics)
    assert wide.scheme == FINE and wide.open == []


@pytest.mark.parametrize(("least", "words"), [(1.25, 0), (1.4, 1)])
def test_a_speedup_that_its_quartiles_do_not_hold_is_told(least: float, words: int) -> None:
    found = _recommend(_rows()[:3], min_speedup=least)
    said = [line for line in found.open if "by its quartiles" in line]
    assert found.scheme == FINE and len(said) == words


def test_the_fastest_names_what_it_cannot_be_told_from() -> None:
    rows = seven()
    rows[3].time.speedup_high = 10.0
    best = recommendation.best(rows, intervals.statistics(rows))
    assert best.speed == FAST and best.tied.speed == [FINE]
    assert vq.get_config(best.speed).quantize_activations
    assert any("As fast may be" in line for line in conclusions.tied(document(rows), "speed"))


def test_the_fastest_is_told_where_it_is_slower_than_fp32() -> None:
    rows = [*_rows()[:2], _rows()[-1]]  # 0.80x, from 0.68x to 0.92x
    for said in _everywhere(document(rows)):
        assert "lower than FP32" in said
    assert rows[-1].time is not None
    rows[-1].time.speedup_high = 1.1  # not shown
    for said in _everywhere(document(rows)):
        assert "lower than FP32" not in said
