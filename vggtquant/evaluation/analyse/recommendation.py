# SPDX-License-Identifier: Apache-2.0
"""Which scheme is best for what, and which to use: stated rules over the finished rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..formatting import count, percent
from ..schema import (
    Best,
    Budget,
    Difference,
    Kind,
    Loss,
    Recommendation,
    Row,
    Statistics,
    Tied,
)

DEFAULT_DROP = 1.0  # percentage points of AUC@30
_AUC, _DEPTH = "auc_30", "depth_abs_rel"
RULES = {
    "error": (
        "The error of a scheme is the geometric mean over the model's outputs of relative_l2 = "
        "||FP32 - scheme|| / ||FP32||, each first averaged over the scenes."
    ),
    "accuracy": "The smallest error; of equals, the fewest bytes.",
    "size": "The fewest bytes held by the whole model; of equals, the smallest error.",
    "speed": "The largest speedup over FP32 timed beside it; of equals, the smallest error.",
}
RULE = (
    "The smallest scheme whose outputs stay as near to FP32's own as this: at most max_drop "
    f"percentage points of pose AUC@30 (default {DEFAULT_DROP:g}) are lost against FP32's poses, "
    "and the depth's AbsRel from FP32's depth is at most the noise floor, the largest of the float "
    "references (FP32 on pictures one 8-bit step off, bfloat16). With --max_drop the depth has no "
    "bound. --max_bytes and --min_speedup "
    "bound the model's size and speed. Of schemes of the same size, the one that loses least."
)


# ---- the best for one thing ----------------------------------------------------------------------


def candidates(rows: Sequence[Row]) -> list[Row]:
    """The quantized rows that finished and can be believed."""
    return [row for row in rows if row.scored()]


def _error(row: Row) -> float:
    assert row.error is not None  # of candidates
    return row.error


def most_accurate(row: Row) -> tuple[float, ...]:
    """Orders schemes by RULES["accuracy"], the best first."""
    return _error(row), row.nbytes


def smallest(row: Row) -> tuple[float, ...]:
    """Orders schemes by RULES["size"], the best first."""
    return row.nbytes, _error(row)


def fastest(row: Row) -> tuple[float, ...]:
    """Orders schemes by RULES["speed"], the best first; for those that have a speedup."""
    return -(row.timed.speedup or 0.0), _error(row)


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in error or bytes without losing in the other."""

    def beaten(row: Row) -> bool:
        here = (_error(row), row.nbytes)
        others = ((_error(other), other.nbytes) for other in rows)
        return any(e <= here[0] and b <= here[1] and (e, b) != here for e, b in others)

    return [row for row in rows if not beaten(row)]


def best(rows: Sequence[Row], statistics: Statistics) -> Best:
    """The best schemes by RULES; null where no scheme finished.

    `tied`: what a pick cannot be told from: schemes without a shown difference in error from the
    most accurate, those of the smallest one's size, and those whose quartiles of the speedup reach
    into the fastest one's. Without intervals nothing is known of differences in error, and the
    other schemes are `unknown`.
    """
    there = candidates(rows)
    timed = [row for row in there if row.timed.speedup is not None]
    accuracy = min(there, key=most_accurate, default=None)
    size = min(there, key=smallest, default=None)
    speed = min(timed, key=fastest, default=None)

    def alike(pick: Row | None, same: Callable[[Row, Row], bool], among: list[Row]) -> list[str]:
        return [row.name for row in among if pick and row is not pick and same(pick, row)]

    def named(row: Row | None) -> str | None:
        return row.name if row else None

    return Best(
        accuracy=named(accuracy),
        size=named(size),
        speed=named(speed),
        tied=Tied(
            accuracy=alike(accuracy, lambda a, b: _as_accurate(a, b, statistics), there),
            speed=alike(speed, _as_fast, timed),
            size=alike(size, lambda a, b: a.nbytes == b.nbytes, there),
            unknown=alike(accuracy, lambda a, b: statistics.note is not None, there),
        ),
        pareto_front=[row.name for row in sorted(pareto(there), key=smallest)],
        rules=RULES,
    )


def _as_accurate(a: Row, b: Row, statistics: Statistics) -> bool:
    """Whether an interval says that no difference in error is shown between two schemes."""
    pair = {a.name, b.name}
    return any(
        entry.low is not None and not entry.shown
        for entry in statistics.between
        if entry.score == "error" and {entry.a, entry.b} == pair
    )


def _as_fast(a: Row, b: Row) -> bool:
    """Whether b's speedup reaches a's, by the quartiles of both; without these, it is not known."""
    low, high = a.timed.speedup_low, b.timed.speedup_high
    return low is None or high is None or high >= low


# ---- the loss ------------------------------------------------------------------------------------


def loss(row: Row, baseline: Row, statistics: Statistics) -> Loss:
    """What a scheme loses against FP32's own poses and depth, with the ends of the intervals."""
    mine, fp32 = row.task.fp32 or {}, baseline.task.fp32 or {}
    points = 100 * (fp32[_AUC] - mine[_AUC]) if _AUC in mine and _AUC in fp32 else None
    ends = statistics.against_fp32.get(row.name, {})
    auc, depth = ends.get(f"fp32/{_AUC}"), ends.get(f"fp32/{_DEPTH}")
    return Loss(
        against="fp32",
        points=points,
        low=_negative(auc.high if auc else None),
        high=_negative(auc.low if auc else None),
        depth=mine.get(_DEPTH),
        depth_high=depth.high if depth else None,
    )


def _negative(value: float | None) -> float | None:
    return None if value is None else -100 * value


def depth_floor(rows: Sequence[Row]) -> float | None:
    """The largest AbsRel of the references' depth from FP32's; None without such a row."""
    found = [
        (row.task.fp32 or {}).get(_DEPTH) for row in rows if row.ok and row.kind is Kind.REFERENCE
    ]
    return max((value for value in found if value is not None), default=None)


def truth_difference(row: Row, statistics: Statistics) -> Difference | None:
    """The difference in AUC@30 against ground truth, where it is known."""
    return statistics.against_fp32.get(row.name, {}).get(f"truth/{_AUC}")


# ---- within the bounds ---------------------------------------------------------------------------


def _too_much(row: Row, lost: Loss, budget: Budget, most: float, floor: float | None) -> list[str]:
    """The bounds that a row does not keep, in words."""
    words = []
    if lost.points is None and budget.max_drop is not None:
        words.append("no poses, so max_drop cannot be checked")
    elif lost.points is not None and lost.points > most:
        words.append(
            f"loses {lost.points:.2f} points of AUC@30 against FP32's poses, more than "
            f"max_drop {most:g}"
        )
    if floor is not None and lost.depth is not None and lost.depth > floor:
        words.append(
            f"its depth is {percent(lost.depth)} % from FP32's, more than the noise floor's "
            f"{percent(floor)} %"
        )
    if budget.max_bytes is not None and row.nbytes > budget.max_bytes:
        words.append(f"{row.nbytes} bytes, more than max_bytes {budget.max_bytes:.0f}")
    if budget.min_speedup is not None:
        fast = row.timed.speedup
        if fast is None:
            words.append("no speedup that could be held to min_speedup")
        elif fast < budget.min_speedup:
            words.append(f"{fast:.2f}x FP32's speed, less than min_speedup {budget.min_speedup:g}")
    return words


def _open(
    row: Row,
    lost: Loss,
    budget: Budget,
    most: float,
    floor: float | None,
    statistics: Statistics,
) -> list[str]:
    """The bounds that a scheme keeps by its figures, but not by all that these leave open."""
    words = []
    if lost.points is None:
        words.append("the model gives no poses, so nothing is known of what they lose")
    elif statistics.note is not None:
        scenes = count(statistics.scenes, "scene")
        words.append(f"of {scenes} nothing is known about chance: another may lose more")
    elif lost.high is not None and lost.high > most:
        words.append(
            f"the loss may be up to {lost.high:.2f} points by its interval, more than max_drop "
            f"{most:g}"
        )
    if floor is not None and lost.depth_high is not None and lost.depth_high > floor:
        words.append(
            f"its depth may be up to {percent(lost.depth_high)} % from FP32's by its interval, "
            f"more than the noise floor's {percent(floor)} %"
        )
    least, slowest = budget.min_speedup, row.timed.speedup_low
    if least is not None and slowest is None:
        words.append("the speedup has no spread, so min_speedup may be missed")
    elif least is not None and slowest is not None and slowest < least:
        words.append(
            f"the speedup may be {slowest:.2f}x by its quartiles, less than min_speedup {least:g}"
        )
    return words


def recommend(rows: Sequence[Row], budget: Budget, statistics: Statistics) -> Recommendation:
    """The document's `recommendation`, by RULE, and the bounds that exclude each other scheme.

    budget: None for no bound of the user's. statistics: the document's, for what the choice leaves
    open.
    """
    there = candidates(rows)
    baseline = next((row for row in rows if row.kind is Kind.BASELINE), None)
    most = DEFAULT_DROP if budget.max_drop is None else budget.max_drop
    floor = depth_floor(rows) if budget.max_drop is None else None
    losses = {row.name: loss(row, baseline, statistics) for row in there if baseline}
    excluded = {
        row.name: words
        for row in there
        if baseline and (words := _too_much(row, losses[row.name], budget, most, floor))
    }
    fitting = [row for row in there if row.name not in excluded]

    def rank(row: Row) -> tuple[float, ...]:
        lost = losses[row.name]
        return row.nbytes, lost.points or 0.0, lost.depth or 0.0, _error(row)

    def excess(row: Row) -> tuple[float, float]:
        lost = losses[row.name]
        parts = [(lost.points or 0.0) / max(most, 1e-9)]
        if floor:
            parts.append((lost.depth or 0.0) / floor)
        return max(parts), row.nbytes

    pick = min(fitting, key=rank, default=None)
    within = [row for row in there if not _beyond_size(row, budget)]
    near = None if pick else min(within or there, key=excess, default=None)
    shown = pick or near
    tied = [row.name for row in fitting if pick and row is not pick and row.nbytes == pick.nbytes]
    return Recommendation(
        rule=RULE,
        budget=budget,
        front=[row.name for row in sorted(pareto(fitting), key=smallest)],
        excluded=excluded,
        scheme=pick.name if pick else None,
        reason=_reason(pick, near, fitting, excluded, losses, most, floor),
        loss=losses[shown.name] if shown else None,
        open=_open(pick, losses[pick.name], budget, most, floor, statistics) if pick else [],
        nearest=near.name if near else None,
        tied=tied,
        depth_bound=floor,
    )


def _beyond_size(row: Row, budget: Budget) -> bool:
    return budget.max_bytes is not None and row.nbytes > budget.max_bytes


def _reason(
    pick: Row | None,
    near: Row | None,
    fitting: Sequence[Row],
    excluded: Mapping[str, Sequence[str]],
    losses: Mapping[str, Loss],
    most: float,
    floor: float | None,
) -> str:
    """One sentence, with the loss in it."""
    bounds = f"{most:g} {'point' if most == 1 else 'points'} of AUC@30"
    if floor is not None:
        bounds += f" and {percent(floor)} % of depth, FP32's noise floor"
    if pick is not None:
        one = len(fitting) == 1
        which = "the only one" if one else f"the smallest of {len(fitting)}"
        keeps = f"{'keeps' if one else 'keep'} within {bounds}"
        return f"It is {which} that {keeps}: it loses {_lost(losses[pick.name])}."
    if near is None:
        return "No scheme finished with results that can be believed."
    return (
        f"No scheme keeps within the bounds ({bounds}). Nearest: {near.name}: "
        f"{', and '.join(excluded[near.name])}{_rest(excluded[near.name], losses[near.name])}. "
        "--max_drop sets another bound."
    )


def _rest(said: Sequence[str], lost: Loss) -> str:
    """The loss in words, unless the bounds that it breaks have said all of it."""
    parts = sum(value is not None for value in (lost.points, lost.depth))
    named = sum(words.startswith(("loses ", "its depth ")) for words in said)
    return "" if named == parts and lost.low is None else f"; it loses {_lost(lost)}"


def _lost(lost: Loss) -> str:
    """The loss in words, with its interval."""
    words = []
    if lost.points is not None:
        ends = ""
        if lost.low is not None and lost.high is not None:
            ends = f" ({lost.low + 0.0:.2f} .. {lost.high + 0.0:.2f})"
        words.append(f"{lost.points + 0.0:.2f} points{ends}")
    if lost.depth is not None:
        words.append(f"{percent(lost.depth)} % of depth")
    return " and ".join(words) or "nothing that could be measured"
