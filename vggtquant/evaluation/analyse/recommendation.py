# SPDX-License-Identifier: Apache-2.0
"""Which scheme is best for what, and which to use: stated rules over the finished rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import UserError

Row = dict[str, Any]
Budget = Mapping[str, float | None]

BOUNDS = ("max_drop", "max_bytes", "min_speedup")
RULES = {
    "error": (
        "The error of a scheme is the geometric mean over the model's outputs of relative_l2 = "
        "||FP32 - scheme|| / ||FP32||, each first averaged over the scenes."
    ),
    "accuracy": "The smallest error; of equals, the fewest bytes.",
    "size": "The fewest bytes held by the whole model; of equals, the smallest error.",
    "speed": "The largest speedup over FP32 timed beside it; of equals, the smallest error.",
    "balance": (
        "The smallest sum of (bytes / FP32 bytes) and error: one percent of the FP32 model's bytes "
        "weighs as much as one percent of error. Time has no part in it, because it depends on the "
        "machine; of equals, the fewest bytes."
    ),
}
RULE = (
    "Quantized schemes that finished and keep to every bound given: a loss of at most max_drop "
    "percentage points of pose AUC@30 (against ground truth; without it, against FP32's own "
    "poses), at most max_bytes for the whole model, at least min_speedup over FP32 timed beside "
    "it. Of these, the ones that no other beats in error and bytes (the front). Of the front: the "
    "fewest bytes if only the loss is bounded, the smallest error if only the bytes are, and "
    "otherwise the smallest sum of (bytes / FP32 bytes) and error. Figures are taken as measured; "
    "what their spread leaves open is said beside the choice."
)


# ---- the best for one thing ----------------------------------------------------------------------


def candidates(rows: Sequence[Row]) -> list[Row]:
    """The quantized rows that finished and can be believed."""
    return [row for row in rows if row["kind"] == "quantized" and row["status"] == "ok"]


def _bytes(row: Row) -> int:
    return int(row["bytes"]["model_bytes"])


def most_accurate(row: Row) -> tuple[float, ...]:
    """Orders schemes by RULES["accuracy"], the best first."""
    return row["error"], _bytes(row)


def smallest(row: Row) -> tuple[float, ...]:
    """Orders schemes by RULES["size"], the best first."""
    return _bytes(row), row["error"]


def fastest(row: Row) -> tuple[float, ...]:
    """Orders schemes by RULES["speed"], the best first."""
    return -row["time"]["speedup"], row["error"]


def balanced(row: Row) -> tuple[float, ...]:
    """Orders schemes by RULES["balance"], the best first."""
    return 1 / row["bytes"]["compression_ratio_model"] + row["error"], _bytes(row)


_ORDERS = {
    "accuracy": most_accurate,
    "size": smallest,
    "speed": fastest,
    "balance": balanced,
}


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in error or bytes without losing in the other."""

    def beaten(row: Row) -> bool:
        here = (row["error"], _bytes(row))
        others = ((other["error"], _bytes(other)) for other in rows)
        return any(e <= here[0] and b <= here[1] and (e, b) != here for e, b in others)

    return [row for row in rows if not beaten(row)]


def best(rows: Sequence[Row], statistics: Row) -> Row:
    """The best schemes by RULES; null where no scheme finished.

    `tied`: what a pick cannot be told from: other schemes without a shown difference in error from
    the most accurate, and those whose quartiles of the speedup reach into the fastest one's.
    """
    there = [row for row in candidates(rows) if row["error"] is not None]
    first = {why: min(there, key=order, default=None) for why, order in _ORDERS.items()}

    def tied(why: str, alike: Callable[[Row, Row], bool]) -> list[str]:
        row = first[why]
        return [other["name"] for other in there if row and other is not row and alike(row, other)]

    return {
        **{why: row["name"] if row else None for why, row in first.items()},
        "tied": {
            "accuracy": tied("accuracy", lambda a, b: _as_accurate(a, b, statistics)),
            "speed": tied("speed", _as_fast),
        },
        "pareto_front": [row["name"] for row in sorted(pareto(there), key=smallest)],
        "rules": RULES,
    }


def _as_accurate(a: Row, b: Row, statistics: Row) -> bool:
    """Whether no difference in error is shown between two schemes."""
    pair = {a["name"], b["name"]}
    return any(
        not entry["shown"]
        for entry in statistics["between"]
        if entry["score"] == "error" and {entry["a"], entry["b"]} == pair
    )


def _as_fast(a: Row, b: Row) -> bool:
    """Whether b's speedup reaches a's, by the quartiles of both; without these, it is not known."""
    low, high = a["time"]["speedup_low"], b["time"]["speedup_high"]
    return low is None or high is None or bool(high >= low)


# ---- within a budget -----------------------------------------------------------------------------


def check(budget: Budget) -> None:
    """UserError for a bound that no scheme could mean: a negative loss, a speedup of 0."""
    for name in BOUNDS:
        bound = budget.get(name)
        least = "of 0 or more" if name == "max_drop" else "above 0"
        if bound is not None and not (0 < bound < math.inf or (name == "max_drop" and bound == 0)):
            raise UserError(f"--{name} is {bound:g}; wanted a number {least}")


def drop(row: Row, baseline: Row) -> tuple[str, float] | None:
    """Percentage points of pose AUC@30 that a scheme loses, and against what; None without poses.

    Against ground truth where there is ("truth"), otherwise against FP32's own poses ("fp32"),
    whose AUC is 100.
    """
    for part in ("truth", "fp32"):
        mine, fp32 = (r["task"].get(part) or {} for r in (row, baseline))
        if "auc_30" in mine and "auc_30" in fp32:
            return part, 100 * (float(fp32["auc_30"]) - float(mine["auc_30"]))
    return None


def _loss(row: Row, baseline: Row, statistics: Row) -> Row | None:
    """What a scheme loses, with the ends of its interval; None without poses."""
    found = drop(row, baseline)
    if found is None:
        return None
    part, points = found
    entry = statistics["against_fp32"].get(row["name"], {}).get(f"{part}/auc_30") or {}
    low, high = (entry.get(end) for end in ("low", "high"))
    return {
        "against": part,
        "points": points,
        "low": None if high is None else -100 * high,
        "high": None if low is None else -100 * low,
    }


def _open(row: Row, loss: Row | None, budget: Budget) -> list[str]:
    """The bounds that a scheme keeps by its figures, but not by all that these leave open."""
    words = []
    most, least = budget["max_drop"], budget["min_speedup"]
    if most is not None and loss is not None:
        if loss["high"] is None:
            words.append("without an interval, nothing is known of what the loss is by chance")
        elif loss["high"] > most:
            words.append(
                f"the loss may be up to {loss['high']:.2f} points by its interval, more than "
                f"max_drop {most:g}"
            )
    slowest = row["time"]["speedup_low"]
    if least is not None and (slowest is None or slowest < least):
        words.append(
            "the speedup has no spread, so min_speedup may be missed"
            if slowest is None
            else f"the speedup may be {slowest:.2f}x by its quartiles, less than min_speedup "
            f"{least:g}"
        )
    return words


def _too_much(row: Row, baseline: Row, budget: Budget) -> list[str]:
    """The bounds that a row does not keep, in words."""
    _, lost = drop(row, baseline) or (None, None)
    words = []
    most, size, speed = (budget[name] for name in BOUNDS)
    if most is not None and lost is None:
        words.append("no poses, so max_drop cannot be checked")
    elif most is not None and lost is not None and lost > most:
        words.append(f"loses {lost:.2f} points of AUC@30, more than max_drop {most:g}")
    held = row["bytes"]["model_bytes"]
    if size is not None and held > size:
        words.append(f"{held} bytes, more than max_bytes {size:.0f}")
    fast = row["time"]["speedup"]
    if speed is not None and fast < speed:
        words.append(f"{fast:.2f}x FP32's speed, less than min_speedup {speed:g}")
    return words


def _choice(budget: Budget) -> tuple[str, Callable[[Row], tuple[float, ...]]]:
    """What decides on the front, in words and as a key to be made small."""
    if budget["max_drop"] is not None and budget["max_bytes"] is None:
        return "the fewest bytes", smallest
    if budget["max_bytes"] is not None and budget["max_drop"] is None:
        return "the smallest error", most_accurate
    return "the smallest sum of bytes / FP32 bytes and error", balanced


def recommend(rows: Sequence[Row], budget: Budget, statistics: Row) -> Row:
    """The document's `recommendation`, by RULE, and the bounds that exclude each other scheme.

    budget: max_drop (percentage points of AUC@30), max_bytes, min_speedup; None for no bound.
    statistics: the document's, for what the choice leaves open.
    """
    budget = {name: budget.get(name) for name in BOUNDS}
    there = [row for row in candidates(rows) if row["error"] is not None]
    baseline = next((row for row in rows if row["kind"] == "baseline"), None)
    excluded: dict[str, list[str]] = {}
    if baseline is not None:
        found = {row["name"]: _too_much(row, baseline, budget) for row in there}
        excluded = {name: words for name, words in found.items() if words}
    fitting = [row for row in there if row["name"] not in excluded]
    front = sorted(pareto(fitting), key=smallest)
    words, key = _choice(budget)
    best = min(front, key=key, default=None)
    loss = _loss(best, baseline, statistics) if best and baseline else None
    return {
        "rule": RULE,
        "budget": budget,
        "front": [row["name"] for row in front],
        "excluded": excluded,
        "scheme": best["name"] if best else None,
        "reason": _reason(best, front, excluded, words),
        "loss": loss,
        "open": _open(best, loss, budget) if best else [],
    }


def _reason(
    best: Row | None, front: Sequence[Row], excluded: Mapping[str, Sequence[str]], words: str
) -> str:
    if best is not None:
        others = "it is alone" if len(front) == 1 else f"it has {words} of {len(front)}"
        kept = f" Beyond the budget: {len(excluded)}." if excluded else ""
        return f"On the front of error and bytes {others}.{kept}"
    if excluded:
        said = "; ".join(f"{name}: {' and '.join(why)}" for name, why in excluded.items())
        return f"No scheme keeps to the budget. {said}."
    return "No scheme finished with results that can be believed."
