# SPDX-License-Identifier: Apache-2.0
"""Can a difference be told from chance? Paired bootstrap over scenes, from the records of scenes.

Scenes are drawn, never pixels or camera pairs, because those of one scene go wrong together. The
same draws serve every scheme and score, so that all comparisons are paired.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...scoring import task_scores

Row = dict[str, Any]
Array = NDArray[np.float64]

CONFIDENCE, RESAMPLES, SEED = 0.95, 10_000, 0
LEAST_SCENES = 5
TOO_FEW = "under five scenes: no interval"

# The scores on which schemes are compared with each other, where there are.
BETWEEN = (
    "error",
    "fp32/depth_abs_rel",
    "fp32/auc_30",
    "truth/depth_abs_rel_median",
    "truth/auc_30",
)
# Scores for which more is better; for the others less is.
_LARGER = ("auc_", "rra_", "rta_", "delta_", "ranking", "consistent_share", "_correlation")


def larger_is_better(score: str) -> bool:
    """Whether more of a score is better.

    >>> larger_is_better("truth/auc_30"), larger_is_better("fp32/depth_rmse")
    (True, False)
    """
    return any(part in score for part in _LARGER)


@dataclass(frozen=True)
class Sums:
    """What a score is made of: over scenes, a weighted mean of `values` with `weights`."""

    values: Array  # (scenes,)
    weights: Array  # (scenes,): pairs of frames for scores of poses, else 1; 0 without the score


def draws(scenes: int, resamples: int = RESAMPLES, seed: int = SEED) -> Array:
    """How often each scene is drawn in each resample, (resamples, scenes).

    >>> draws(6, 3).sum(axis=1).tolist()
    [6.0, 6.0, 6.0]
    """
    index = np.random.default_rng(seed).integers(0, scenes, (resamples, scenes))
    flat = index + scenes * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resamples * scenes)
    return counts.reshape(resamples, scenes).astype(np.float64)


def interval(resampled: Array) -> tuple[float, float]:
    """The percentile interval (Efron and Tibshirani 1993, section 13.3) of resampled differences.

    Quantiles are interpolated linearly; resamples in which the score is not defined are left out.

    >>> [round(end, 9) for end in interval(np.arange(1001.0))]
    [25.0, 975.0]
    """
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled[~np.isnan(resampled)], (tail, 100 - tail))
    return float(low), float(high)


def scores_of(row: Row) -> dict[str, Sums]:
    """Every score of a row that is a mean over scenes or over pairs, as "part/name", by scene.

    Scenes are in the order of their names. Medians over all pairs are no means, and left out.
    """
    scenes = sorted(row["scenes"], key=lambda scene: str(scene["scene"]))
    columns: dict[str, list[tuple[float, float]]] = {}
    for index, scene in enumerate(scenes):
        for name, value, weight in _entries(scene):
            column = columns.setdefault(name, [(0.0, 0.0)] * len(scenes))
            column[index] = (value, weight)
    return {name: Sums(*np.array(column).T) for name, column in columns.items()}


def _entries(scene: Row) -> list[tuple[str, float, float]]:
    """(name, value, weight) of each score that a scene has."""
    found: list[tuple[str, float, float]] = []
    for part, scores in scene["task"].items():
        pairs = (scene["pose_errors"].get(part) or {}).get("rotation_deg", ())
        for name, value in (scores or {}).items():
            if value is not None and not name.endswith("_median_deg"):
                weight = len(pairs) if task_scores.is_pooled(name) else 1
                found.append((f"{part}/{name}", value, weight))
    for head, figures in scene["calibration"].items():
        for name in ("laplace_nll", "log_confidence_shift", "confidence_correlation"):
            if figures[name] is not None:
                found.append((f"calibration/{head}_{name}", figures[name], 1))
    for output, metrics in scene["metrics"].items():
        if metrics["relative_l2"] is not None:
            found.append((f"{_OUTPUT}{output}", metrics["relative_l2"], 1))
    return found


_OUTPUT = "relative_l2/"


def _means(scores: Mapping[str, Sums], counts: Array) -> dict[str, Array]:
    """Each score for each row of counts; NaN where no scene that was drawn has it.

    Those of relative_l2 become the one figure `error`, their geometric mean (scores.error_score).
    """
    if not scores:
        return {}
    values = np.stack([sums.values for sums in scores.values()], axis=1)
    weights = np.stack([sums.weights for sums in scores.values()], axis=1)
    with np.errstate(invalid="ignore"):
        means = (counts @ (values * weights)) / (counts @ weights)
    found = dict(zip(scores, means.T, strict=True))
    outputs = [found.pop(name) for name in scores if name.startswith(_OUTPUT)]
    if outputs:
        found["error"] = np.exp(np.mean(np.log(np.maximum(outputs, 1e-12)), axis=0))
    return found


def statistics(rows: Sequence[Row]) -> Row:
    """The document's `statistics`: differences and intervals, by docs/report.md.

    Rows that finished are held to the baseline and, on the scores of BETWEEN, to each other. A
    difference is "shown" where its interval does not hold 0. Under LEAST_SCENES scenes there are
    no intervals, and nothing is shown.
    """
    good = [row for row in rows if row["status"] == "ok" and row["scenes"]]
    baseline = next((row for row in good if row["kind"] == "baseline"), None)
    scenes = len(baseline["scenes"]) if baseline else 0
    enough = scenes >= LEAST_SCENES
    counts = np.concatenate([np.ones((1, scenes)), *([draws(scenes)] if enough else [])])
    found = {
        row["name"]: _means(scores_of(row), counts) for row in good if len(row["scenes"]) == scenes
    }

    def compared(a: str, b: str, score: str) -> Row:
        """b - a; the first of the means is that of all scenes as they are."""
        difference = found[b][score] - found[a][score]
        low, high = interval(difference[1:]) if enough else (None, None)
        shown = low is not None and high is not None and (low > 0 or high < 0)
        return {"difference": float(difference[0]), "low": low, "high": high, "shown": shown}

    def both(a: str, b: str, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in found[a] and name in found[b]]

    fp32 = baseline["name"] if baseline else ""
    others = [name for name in found if name != fp32]
    names = {name: None for scores in found.values() for name in scores}
    return {
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "scenes": scenes,
        "larger_is_better": {name: larger_is_better(name) for name in names},
        "against_fp32": {
            name: {score: compared(fp32, name, score) for score in both(fp32, name, [*names])}
            for name in others
        },
        "between": [
            {"a": a, "b": b, "score": score, **compared(a, b, score)}
            for a, b in itertools.combinations(others, 2)
            for score in both(a, b, BETWEEN)
        ],
        "note": None if enough else TOO_FEW,
    }
