# SPDX-License-Identifier: Apache-2.0
"""Best and regressed schemes: pure functions of rows, so no model runs."""

from builders import document, row, seven

from vggtquant.evaluation.analyse import intervals, recommendation
from vggtquant.evaluation.analyse.document import regressions
from vggtquant.evaluation.present import text
from vggtquant.evaluation.schema import Best, Row, Status

# ---- picks ---------------------------------------------------------------------------------------


def _best(found: list[Row]) -> Best:
    return recommendation.best(found, intervals.statistics(found))


def test_picks_follow_their_rules() -> None:
    best = _best(seven())
    assert best.accuracy == "INT8_Per_Channel_Symmetric"
    assert best.size == "INT4_Group_128"
    assert best.speed == "INT8_Per_Channel_Symmetric_A8"
    assert best.pareto_front == [
        "INT4_Group_128",
        "INT4_Group_32",
        "INT8_Per_Tensor_Symmetric",
        "INT8_Per_Channel_Symmetric",
    ]


def test_failed_rows_and_references_are_never_picked() -> None:
    found = seven()
    found[5].status, found[5].reason = Status.FAILED, "NaN"
    best = _best(found)
    assert best.size == "INT4_Group_32"
    assert "Baseline_BF16" not in (best.accuracy, best.size, best.speed)


def test_without_a_finished_scheme_there_is_no_pick() -> None:
    best = _best(seven()[:2])
    assert [best.accuracy, best.size, best.speed] == [None] * 3
    assert "none. No scheme finished" in text.full_report(document(seven()[:2]))


def test_ties_go_to_the_smaller_and_the_more_accurate() -> None:
    rows = [
        row("INT4_Group_64", 0.01, 200_000, 10.0),
        row("INT4_Group_128", 0.01, 190_000, 10.0),
        row("INT4_Group_32", 0.02, 190_000, 10.0),
    ]
    best = _best(rows)
    assert best.accuracy == best.size == "INT4_Group_128"
    assert best.tied.size == ["INT4_Group_32"]
    assert best.pareto_front == ["INT4_Group_128"]


def test_regressions_are_sorted() -> None:
    found = regressions(seven(), most=3)
    assert [(value, name) for value, name, _ in found] == [
        (0.08, "INT4_Group_128"),
        (0.08, "INT4_Group_128"),
        (0.06, "INT4_Group_32"),
    ]
