# SPDX-License-Identifier: Apache-2.0
"""The recommendation: a pure function of rows and a budget, with a reason for every exclusion."""

import pytest

from vggtquant.errors import UserError
from vggtquant.evaluation.analyse import recommendation
from vggtquant.evaluation.measure.scores import Row

NONE = dict.fromkeys(recommendation.BOUNDS)
NO_STATISTICS = {"against_fp32": {}, "between": []}


def _row(name: str, error: float, nbytes: int, speedup: float, auc: float) -> Row:
    return {
        "name": name,
        "kind": "baseline" if name == "FP32" else "quantized",
        "status": "ok",
        "error": error,
        "bytes": {"model_bytes": nbytes, "compression_ratio_model": 1000 / nbytes},
        "time": {
            "speedup": speedup,
            "speedup_low": 0.9 * speedup,
            "speedup_high": 1.1 * speedup,
        },
        "task": {"fp32": {"auc_30": auc + 0.2}, "truth": {"auc_30": auc}, "consistency": {}},
    }


ROWS = [
    _row("FP32", 0.0, 1000, 1.0, 0.700),
    _row("fine", 0.01, 300, 1.5, 0.699),
    _row("fast", 0.02, 300, 3.0, 0.695),
    _row("small", 0.05, 200, 0.9, 0.680),
    _row("tiny", 0.30, 150, 0.8, 0.500),
]


@pytest.mark.parametrize(
    ("budget", "scheme", "front"),
    [
        ({}, "small", ["tiny", "small", "fine"]),  # 0.20 + 0.05 < 0.30 + 0.01
        ({"max_drop": 1.0}, "fine", ["fine"]),
        ({"max_drop": 3.0}, "small", ["small", "fine"]),  # the fewest bytes
        ({"max_bytes": 300}, "fine", ["tiny", "small", "fine"]),  # the smallest error
        ({"min_speedup": 2.0}, "fast", ["fast"]),  # on the front of those that are left
        ({"max_drop": 30.0, "max_bytes": 250}, "small", ["tiny", "small"]),
        ({"max_drop": 0.05}, None, []),
    ],
)
def test_the_rule_decides(budget: Row, scheme: str | None, front: list[str]) -> None:
    found = recommendation.recommend(ROWS, NONE | budget, NO_STATISTICS)
    assert (found["scheme"], found["front"]) == (scheme, front)
    assert found["budget"] == NONE | budget and found["rule"] == recommendation.RULE


def test_every_exclusion_names_its_bounds() -> None:
    found = recommendation.recommend(
        ROWS, {"max_drop": 0.05, "max_bytes": 250, "min_speedup": 9}, NO_STATISTICS
    )
    assert found["scheme"] is None
    assert found["excluded"]["fine"] == [
        "loses 0.10 points of AUC@30, more than max_drop 0.05",
        "300 bytes, more than max_bytes 250",
        "1.50x FP32's speed, less than min_speedup 9",
    ]
    for row in ROWS[1:]:
        assert f"{row['name']}: loses" in found["reason"]


def test_without_truth_the_loss_is_against_fp32_s_poses() -> None:
    rows = [row | {"task": row["task"] | {"truth": None}} for row in ROWS]
    assert recommendation.drop(rows[3], rows[0]) == ("fp32", pytest.approx(2.0))
    rows = [row | {"task": {"fp32": {}, "truth": None, "consistency": {}}} for row in ROWS]
    assert recommendation.drop(rows[3], rows[0]) is None
    found = recommendation.recommend(rows, NONE | {"max_drop": 1.0}, NO_STATISTICS)
    assert found["scheme"] is None and "cannot be checked" in found["reason"]


def test_failed_schemes_and_references_are_not_considered() -> None:
    rows = [*ROWS[:2], ROWS[3] | {"status": "failed"}, ROWS[4] | {"kind": "reference"}]
    assert recommendation.recommend(rows, NONE, NO_STATISTICS)["scheme"] == "fine"
    assert recommendation.recommend(rows[:1], NONE, NO_STATISTICS)["reason"].startswith(
        "No scheme finished"
    )


@pytest.mark.parametrize(("name", "bound"), [("max_drop", -1.0), ("min_speedup", 0.0)])
def test_a_bound_that_means_nothing_is_refused(name: str, bound: float) -> None:
    with pytest.raises(UserError, match=f"--{name} is {bound:g}"):
        recommendation.check({name: bound})
    recommendation.check({"max_drop": 0.0})


# ---- what the spread leaves open -----------------------------------------------------------------


def test_the_loss_has_the_interval_of_its_difference() -> None:
    entry = {"difference": -0.001, "low": -0.03, "high": 0.02, "shown": False}
    statistics = NO_STATISTICS | {"against_fp32": {"fine": {"truth/auc_30": entry}}}
    found = recommendation.recommend(ROWS, NONE | {"max_drop": 1.0}, statistics)
    assert found["scheme"] == "fine"
    assert found["loss"] == {
        "against": "truth",
        "points": pytest.approx(0.1),
        "low": pytest.approx(-2),
        "high": pytest.approx(3),
    }
    (words,) = found["open"]
    assert words.startswith("the loss may be up to 3.00 points by its interval, more than max_drop")
    assert recommendation.recommend(ROWS, NONE | {"max_drop": 3.5}, statistics)["open"] == [
        "without an interval, nothing is known of what the loss is by chance"  # of "small"
    ]
    wide = recommendation.recommend(ROWS[:2], NONE | {"max_drop": 3.0}, statistics)
    assert wide["scheme"] == "fine" and wide["open"] == []


@pytest.mark.parametrize(("least", "words"), [(1.3, []), (1.4, ["may be 1.35x by its quartiles"])])
def test_a_speedup_that_its_quartiles_do_not_hold_is_told(least: float, words: list[str]) -> None:
    found = recommendation.recommend(ROWS[:2], NONE | {"min_speedup": least}, NO_STATISTICS)
    assert found["scheme"] == "fine" and len(found["open"]) == len(words)
    assert all(word in said for word, said in zip(words, found["open"], strict=True))


def test_picks_name_what_they_cannot_be_told_from() -> None:
    between = [
        {"a": "fast", "b": "fine", "score": "error", "shown": False},
        {"a": "fine", "b": "small", "score": "error", "shown": True},
        {"a": "fine", "b": "tiny", "score": "fp32/auc_30", "shown": False},
    ]
    rows = [*ROWS, _row("quick", 0.5, 300, 2.5, 0.6)]  # up to 2.75, from 2.7 on for the fastest
    tied = recommendation.best(rows, NO_STATISTICS | {"between": between})["tied"]
    assert tied == {"accuracy": ["fast"], "speed": ["quick"]}
