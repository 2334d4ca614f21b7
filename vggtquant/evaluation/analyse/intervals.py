# SPDX-License-Identifier: Apache-2.0
"""Can a difference be told from chance? Paired bootstrap over scenes, from the records of scenes.

Scenes are drawn, never pixels or camera pairs, because those of one scene go wrong together. The
same draws serve every scheme and score, so that all comparisons are paired.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...scoring import task_scores
from ..measure import variants
from ..schema import Between, Difference, Kind, Reading, Row, SceneScores, Statistics

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


def interval(resampled: Array) -> tuple[float, float] | None:
    """The percentile interval (Efron and Tibshirani 1993, section 13.3) of resampled differences.

    Quantiles are interpolated linearly; resamples in which the score is not defined are left out.
    None where it is defined in none.

    >>> [round(end, 9) for end in interval(np.arange(1001.0))]
    [25.0, 975.0]
    """
    known = resampled[np.isfinite(resampled)]
    if not known.size:
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(known, (tail, 100 - tail))
    return float(low), float(high)


def scores_of(row: Row) -> dict[str, Sums]:
    """Every score of a row that is a mean over scenes or over pairs, as "part/name", by scene.

    Scenes are in the order of their names. Medians over all pairs are no means, and left out.
    """
    scenes = sorted(row.scenes, key=lambda scene: scene.scene)
    columns: dict[str, list[tuple[float, float]]] = {}
    for index, scene in enumerate(scenes):
        for name, value, weight in _entries(scene):
            if math.isfinite(value):
                column = columns.setdefault(name, [(0.0, 0.0)] * len(scenes))
                column[index] = (value, weight)
    return {name: Sums(*np.array(column).T) for name, column in columns.items()}


def _entries(scene: SceneScores) -> Iterator[tuple[str, float, float]]:
    """(name, value, weight) of each score that a scene has."""
    errors = {"fp32": scene.pose_errors.fp32, "truth": scene.pose_errors.truth}
    for part in scene.task.__struct_fields__:
        pairs = errors.get(part)
        for name, value in (getattr(scene.task, part) or {}).items():
            if value is not None and not name.endswith("_median_deg"):
                pooled = task_scores.is_pooled(name)
                weight = len(pairs.rotation_deg) if pooled and pairs else 0 if pooled else 1
                yield f"{part}/{name}", value, weight
    for head, figures in scene.calibration.items():
        for name in ("laplace_nll", "log_confidence_shift", "confidence_correlation"):
            if (figure := getattr(figures, name)) is not None:
                yield f"calibration/{head}_{name}", figure, 1
    for output, metrics in scene.metrics.items():
        if metrics.relative_l2 is not None:
            yield f"{_OUTPUT}{output}", metrics.relative_l2, 1


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
        found |= {"error": np.exp(np.mean(np.log(np.maximum(outputs, 1e-12)), axis=0))}
    return found


def statistics(rows: Sequence[Row]) -> Statistics:
    """The document's `statistics`: differences and intervals, by docs/report.md.

    Rows that finished are held to the baseline and, on the scores of BETWEEN, to each other. A
    difference is "shown" where its interval does not hold 0. Under LEAST_SCENES scenes there are
    no intervals, and nothing is shown.
    """
    good = [row for row in rows if row.ok and row.scenes]
    baseline = next((row for row in good if row.kind is Kind.BASELINE), None)
    scenes = len(baseline.scenes) if baseline else 0
    enough = scenes >= LEAST_SCENES
    counts = np.concatenate([np.ones((1, scenes)), *([draws(scenes)] if enough else [])])
    found = {row.name: _means(scores_of(row), counts) for row in good if len(row.scenes) == scenes}

    def compared(a: str, b: str, score: str) -> Difference | None:
        """b - a; the first of the means is that of all scenes as they are."""
        difference = found[b][score] - found[a][score]
        if not math.isfinite(difference[0]):
            return None
        low, high = (interval(difference[1:]) if enough else None) or (None, None)
        shown = low is not None and high is not None and (low > 0 or high < 0)
        return Difference(difference=float(difference[0]), low=low, high=high, shown=shown)

    def both(a: str, b: str, names: Sequence[str]) -> dict[str, Difference]:
        there = [name for name in names if name in found[a] and name in found[b]]
        pairs = {name: compared(a, b, name) for name in there}
        return {name: difference for name, difference in pairs.items() if difference is not None}

    fp32 = baseline.name if baseline else ""
    others = [name for name in found if name != fp32]
    names = {name: None for scores in found.values() for name in scores}
    against = {name: both(fp32, name, [*names]) for name in others}
    _read(against)
    return Statistics(
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        seed=SEED,
        scenes=scenes,
        larger_is_better={name: larger_is_better(name) for name in names},
        against_fp32=against,
        between=[
            Between(
                a=a,
                b=b,
                score=score,
                difference=one.difference,
                low=one.low,
                high=one.high,
                shown=one.shown,
            )
            for a, b in itertools.combinations(others, 2)
            for score, one in both(a, b, BETWEEN).items()
        ],
        note=None if enough else TOO_FEW,
    )


def _read(against: Mapping[str, Mapping[str, Difference]]) -> None:
    """Says what each difference from FP32 means, beside those of FP32 from itself."""
    for name, differences in against.items():
        for score, one in differences.items():
            floor = max(
                (
                    abs(against[itself][score].difference)
                    for itself in variants.NOISE_FLOOR
                    if score in against.get(itself, {})
                ),
                default=0.0,
            )
            one.reading = reading(one, floor, score, itself=name in variants.NOISE_FLOOR)


def reading(one: Difference, floor: float, score: str, *, itself: bool = False) -> Reading:
    """What a difference from FP32 says.

    floor: the largest difference of FP32 from itself; what is no larger is no finding. Without an
    interval nothing is known of what is larger. itself: it is one of FP32's own.
    """
    if itself or abs(one.difference) <= floor:
        return Reading.BELOW_FLOOR
    if one.low is None:
        return Reading.UNKNOWN
    if not one.shown:
        return Reading.NOT_SHOWN
    return Reading.BETTER if (one.difference > 0) == larger_is_better(score) else Reading.WORSE
