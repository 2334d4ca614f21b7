# SPDX-License-Identifier: Apache-2.0
"""The parts of the reports that say what the scores mean: tasks, confidence, chance, advice.

Words and tables for what stands in the document; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from msgspec import structs

from ..analyse.recommendation import truth_difference
from ..formatting import ends, megabytes, percent, scaled, signed, some
from ..measure import variants
from ..schema import (
    Basis,
    Between,
    Difference,
    Document,
    Reading,
    Row,
    Sensitivity,
    Statistics,
)
from .tables import Table

Part = str | Table
Column = tuple[str, str, float, str]  # score, heading, factor, format


class Topic(Enum):
    """What a section is about."""

    FP32 = "fp32"
    TRUTH = "truth"
    CONSISTENCY = "consistency"
    CONFIDENCE = "confidence"
    CHANCE = "chance"
    LAYERS = "layers"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    topic: Topic
    title: str
    parts: list[Part]


_POSES: tuple[Column, ...] = (
    ("auc_3", "AUC@3", 100.0, ".1f"),
    ("auc_5", "@5", 100.0, ".1f"),
    ("auc_15", "@15", 100.0, ".1f"),
    ("auc_30", "@30", 100.0, ".1f"),
    ("rotation_median_deg", "rot", 1.0, ".2f"),
    ("translation_median_deg", "trans", 1.0, ".2f"),
)
_TRUTH: tuple[Column, ...] = (
    *_POSES,
    ("depth_abs_rel_median", "AbsRel", 100.0, ".2f"),
    ("depth_delta_1.25_median", "d<1.25", 100.0, ".1f"),
    ("points_chamfer_umeyama", "chamfer", 1.0, ".4f"),
    ("depth_ause", "AUSE", 1.0, ".3f"),
)
_FP32: tuple[Column, ...] = (
    *_POSES,
    ("depth_abs_rel", "AbsRel", 100.0, ".3f"),
    ("depth_rmse", "RMSE", 1.0, ".4f"),
    ("points_chamfer", "chamfer", 1.0, ".5f"),
)
_CONSISTENCY: tuple[Column, ...] = (
    ("points_gap", "depth against points %", 100.0, ".2f"),
    ("reprojection_px", "round trip px", 1.0, ".2f"),
    ("reprojection_depth", "its depth %", 100.0, ".2f"),
    ("consistent_share", "consistent %", 100.0, ".1f"),
)
# part of `task`: title, columns, explanation.
_PARTS: dict[Topic, tuple[str, tuple[Column, ...], str]] = {
    Topic.FP32: (
        "Against FP32's own prediction",
        _FP32,
        "Scores (below) with the FP32 model's outputs in the place of the truth, without any "
        "alignment: what quantizing changed. AUC and AbsRel in percent, angles in degrees, RMSE of "
        "the depth and chamfer of the points in the model's own unit of length.",
    ),
    Topic.TRUTH: (
        "Against ground truth",
        _TRUTH,
        "AUC@k: area under the curve of camera pairs whose rotation and translation direction are "
        "both right to within 1..k degrees, in percent (pairs of all scenes pooled). rot, trans: "
        "median angles in degrees. AbsRel, d<1.25: depth after median scaling, in percent. "
        "chamfer: of the points after Umeyama alignment, in scene units. AUSE: how well confidence "
        "ranks the depth errors, 0 is best. The JSON holds more scores and those of each scene.",
    ),
    Topic.CONSISTENCY: (
        "Views against each other",
        _CONSISTENCY,
        "depth against points: mean distance of the point map from the depth unprojected with the "
        "predicted cameras, over the mean distance from the first camera. round trip: a pixel goes "
        "through its depth into another view and back through that one's depth; median distance "
        "from where it began, and difference of depth; consistent: within 1 px and 1 %.",
    ),
}


@dataclass(frozen=True)
class Told:
    """A score whose differences from FP32 are told."""

    score: str
    title: str
    factor: float
    unit: str


TOLD = (
    Told("truth/auc_30", "Pose AUC@30 against ground truth", 100.0, "points"),
    Told("truth/depth_abs_rel_median", "Depth AbsRel against ground truth", 100.0, "%"),
    Told("fp32/auc_30", "Pose AUC@30 against FP32's own poses", 100.0, "points"),
    Told("fp32/depth_abs_rel", "Depth AbsRel against FP32's own depth", 100.0, "%"),
    Told(
        "calibration/depth_laplace_nll", "Likelihood of the depth (negative logarithm)", 1.0, "nat"
    ),
)
# Schemes in the order in which their depth error should grow, and the score that says so.
_CHAIN = (
    "INT8_Per_Channel_Symmetric",
    "INT8_Per_Tensor_Symmetric",
    "INT4_Group_32",
    "INT4_Group_64",
    "INT4_Group_128",
)
_MOST_LAYERS = 20  # in the text
_CHAIN_SCORE = "fp32/depth_abs_rel"


def sections(document: Document) -> Iterator[Section]:
    """Each part that the document has figures for."""
    rows = document.finished()
    for topic, (title, columns, words) in _PARTS.items():
        scores = {row.name: found for row in rows if (found := getattr(row.task, topic.value))}
        there = [c for c in columns if any(c[0] in found for found in scores.values())]
        if there:
            made = Table(["Scheme", *(heading for _, heading, _, _ in there)])
            for name, found in scores.items():
                made.add(name, *(scaled(found.get(c), k, form) for c, _, k, form in there))
            yield Section(topic, title, [made, words])
    if any(row.calibration for row in rows):
        yield Section(Topic.CONFIDENCE, "Confidence", list(_confidence(rows)))
    if document.statistics.against_fp32:
        yield Section(Topic.CHANCE, "Difference or chance", list(_chance(document.statistics)))
    if document.sensitivity:
        found = list(_layers(document.sensitivity))
        yield Section(Topic.LAYERS, "Which layers make the error", found)


# ---- confidence ----------------------------------------------------------------------------------


def _confidence(rows: Sequence[Row]) -> Iterator[Part]:
    for head in dict.fromkeys(head for row in rows for head in row.calibration):
        there = {row.name: row.calibration[head] for row in rows if head in row.calibration}
        against = next(iter(there.values())).against
        made = Table(
            ("Scheme", "NLL", "more", "shift", "corr.", "threshold", "kept %", "overlap %"),
            title=f"{head}: errors against {_AGAINST.get(against, against)}",
        )
        for name, own in there.items():
            kept = own.kept_50
            made.add(
                name,
                scaled(own.laplace_nll, 1, ".3f"),
                signed(own.laplace_nll_difference, 3),
                signed(own.log_confidence_shift, 3),
                scaled(own.confidence_correlation, 1, ".3f"),
                scaled(kept.threshold, 1, ".3f"),
                scaled(kept.share_at_fp32_threshold, 100, ".1f"),
                scaled(kept.overlap, 100, ".1f"),
            )
        yield made
    yield (
        "NLL: negative log-likelihood (nat, less is better) of the errors, after scale alignment, "
        "under the Laplace density that VGGT's confidence states; more: than FP32's. shift: of the "
        "mean log confidence. corr.: rank correlation with FP32's confidence. threshold: keeps the "
        "half of the pixels that FP32's median keeps; kept: what FP32's threshold would keep of "
        "this scheme's; overlap: of the two halves."
    )


_AGAINST = {
    "truth": "ground truth",
    "fp32": "FP32's prediction",
    "fp32 and truth": "ground truth where known, else FP32's prediction",
}


# ---- chance --------------------------------------------------------------------------------------


def _chance(statistics: Statistics) -> Iterator[Part]:
    share = f"{100 * statistics.confidence:g} %"
    if statistics.note:
        yield (
            f"{statistics.note.capitalize()}. What is more than FP32's own noise may be chance: "
            "unknown does not mean that there is no difference."
        )
    else:
        yield (
            f"Scheme minus FP32, with the {share} interval of a paired bootstrap over "
            f"{statistics.scenes} scenes ({statistics.resamples} resamples, seed "
            f"{statistics.seed}). Each interval stands for itself: of twenty comparisons "
            "without any difference, one is expected to show some. What is no larger than FP32's "
            "difference from itself (other threads, pictures one 8-bit step off) is below the "
            "noise floor."
        )
    for told in TOLD:
        found = {
            name: one
            for name, scores in statistics.against_fp32.items()
            if (one := scores.get(told.score)) and name not in variants.NOISE_FLOOR
        }
        if not found:
            continue
        made = Table(
            ("Scheme", "difference", f"{share} interval", "reading"),
            title=f"{told.title} ({told.unit})",
        )
        for name, one in found.items():
            made.add(
                name,
                signed(told.factor * one.difference, 4),
                ends(one.low, one.high, told.factor, 4),
                one.reading.value,
            )
        yield made
    yield from _chain(statistics)


def _chain(statistics: Statistics) -> Iterator[Part]:
    """Whether the depth error grows with each coarser scheme."""
    pairs = {(e.a, e.b): e for e in statistics.between if e.score == _CHAIN_SCORE}
    made = Table(
        ("Beside the line above", "difference", "interval", "reading"),
        title="Does the depth error against FP32 grow along these? (AbsRel, %)",
    )
    for a, b in zip(_CHAIN, _CHAIN[1:], strict=False):
        entry = pairs.get((a, b)) or _turned(pairs.get((b, a)))
        if entry:
            if not made.rows:
                made.add(a, "", "", "")
            made.add(
                b,
                signed(100 * entry.difference, 4),
                ends(entry.low, entry.high, 100, 4),
                _grows(entry),
            )
    if made.rows:
        yield made


def _grows(entry: Between) -> str:
    if entry.low is None:
        return Reading.UNKNOWN.value
    if not entry.shown:
        return Reading.NOT_SHOWN.value
    return "grows" if entry.difference > 0 else "shrinks"


def _turned(entry: Between | None) -> Between | None:
    """The comparison the other way round."""
    if entry is None:
        return None
    low = None if entry.high is None else -entry.high
    high = None if entry.low is None else -entry.low
    return structs.replace(
        entry, a=entry.b, b=entry.a, difference=-entry.difference, low=low, high=high
    )


# ---- layers --------------------------------------------------------------------------------------


def _layers(found: Sensitivity) -> Iterator[Part]:
    """The layers that alone make most of the error, and what speaks for and against the figures."""
    yield (
        f"{found.scheme} on scene {found.scene}, one layer at a time. The shares of all "
        f"{len(found.layers)} layers add up to {100 * found.share_sum:.0f} %."
    )
    if found.reason:
        yield f"Broke off: {found.reason}"
    made = Table(("Layer", "share %", "weight dB", "cosine", "output dB", "cosine"))
    for layer in found.layers[:_MOST_LAYERS]:
        made.add(
            layer.name,
            scaled(layer.share, 100, ".2f"),
            scaled(layer.sqnr_db, 1, ".1f"),
            scaled(layer.cosine, 1, ".5f"),
            scaled(layer.output_sqnr_db, 1, ".1f"),
            scaled(layer.output_cosine, 1, ".5f"),
        )
    yield made
    more = len(found.layers) - _MOST_LAYERS
    yield (
        (f"{more} more layers are in the JSON. " if more > 0 else "")
        + "dB: signal to quantization noise, of the weight and of the layer's own output (on the "
        f"inputs that it had). {found.rule}"
    )
    if found.left_float:
        names = list(found.left_float)
        yield f"Stay float in this scheme: {some(names, 4, 'layers')}"
    if found.not_reached:
        yield f"Not run by these inputs: {', '.join(found.not_reached)}"


# ---- recommendation ------------------------------------------------------------------------------


def headline(document: Document) -> list[str]:
    """What to use and why, what is best for one thing, and what failed: a line each."""
    advice = document.recommendation
    row = document.row(advice.scheme)
    lines = [f"recommended: {advice.scheme or 'none'}. {advice.reason}"]
    if row is not None:
        lines += [f"  {words}" for words in beside(document, row)]
    for what, name in picks(document):
        lines.append(f"best for {what}: {name}{_doubted(document, what)}")
    for bad in document.schemes:
        if not bad.ok:
            lines.append(f"{bad.status.value}: {bad.name}: {bad.reason}")
    return lines


def beside(document: Document, row: Row) -> Iterator[str]:
    """What stands beside the recommendation: ties, the truth, what is left open."""
    advice = document.recommendation
    if advice.tied:
        yield f"Of the same size and within the bounds: {', '.join(advice.tied)}."
    truth = truth_difference(row, document.statistics)
    if truth is not None:
        yield (
            f"Against ground truth: {signed(100 * truth.difference, 2)} points of AUC@30"
            f"{_interval(truth)}, {truth.reading.value}."
        )
    yield from (f"But {words}." for words in advice.open)


def _interval(one: Difference) -> str:
    return "" if one.low is None else f" ({ends(one.low, one.high, 100, 2)})"


def picks(document: Document) -> list[tuple[str, str]]:
    """What a scheme is best for, and its name."""
    best = document.best
    found = (("accuracy", best.accuracy), ("size", best.size), ("speed", best.speed))
    return [(what, name) for what, name in found if name is not None]


def _doubted(document: Document, what: str) -> str:
    """How many others may be as good, in parentheses."""
    tied = document.best.tied
    if what == "accuracy" and tied.unknown:
        return " (whether others are as good is unknown)"
    names = getattr(tied, what)
    words = {"accuracy": "no difference shown from", "size": "of the same size", "speed": "perhaps"}
    said = ["slower than FP32"] if what == "speed" and _is_slow(document) else []
    said += [f"{words[what]}: {some(names, 2, 'others')}"] if names else []
    return f" ({'; '.join(said)})" if said else ""


def _is_slow(document: Document) -> bool:
    """Whether the fastest scheme is slower than FP32, by its quartiles."""
    fastest = document.row(document.best.speed)
    return bool(fastest and (fastest.timed.speedup_high or 1.0) < 1)


def tied(document: Document, what: str) -> Iterator[str]:
    """What the best for one thing cannot be told from, in a sentence."""
    found = document.best.tied
    if what == "accuracy" and found.unknown:
        yield "Whether others are as accurate is unknown: too few scenes for an interval."
        return
    names = getattr(found, what)
    words = {
        "accuracy": "No difference in error is shown from",
        "size": "Of the same size:",
        "speed": "As fast may be",
    }
    if what == "speed" and _is_slow(document):
        yield "It is slower than FP32."
    if names:
        others = [row.name for row in document.schemes if row.scored()]
        everybody = len(names) > 1 and len(names) + 1 == len(others)
        yield f"{words[what]} {'all others' if everybody else ', '.join(names)}."


def recommendation(document: Document) -> Iterator[tuple[str, str]]:
    """What to use, why, by which rule, and what is best for one thing alone: headings and words."""
    advice = document.recommendation
    row = document.row(advice.scheme)
    if row is None:
        yield "Use", f"none. {advice.reason}"
    else:
        yield "Use", f"{told(row)}."
        yield "Why", advice.reason
        yield from (("", words) for words in beside(document, row))
    yield "Bounds", budget(document)
    yield "Rule", advice.rule
    yield from (("Not", f"{n}: {' and '.join(why)}.") for n, why in advice.excluded.items())
    for what, name in picks(document):
        best = document.row(name)
        if best is not None:
            yield f"Best for {what}", " ".join((f"{told(best)}.", *tied(document, what)))
    if rule := document.best.rules.get("error"):
        yield "Error", rule


def budget(document: Document) -> str:
    """The bounds that were given."""
    given = structs.asdict(document.recommendation.budget)
    words = (f"{name} {bound:g}" for name, bound in given.items() if bound is not None)
    return ", ".join(words) or "the defaults (--max_drop, --max_bytes, --min_speedup set others)"


def told(row: Row) -> str:
    """A scheme with its main figures."""
    time = row.timed
    about = "~" if time.speedup_basis is Basis.PROCESSOR else ""
    fast = (
        f"{about}{time.speedup:.2f}x FP32's speed" if time.speedup is not None else "speed unsure"
    )
    if time.speedup_low is not None and time.speedup_high is not None:
        fast += f" ({time.speedup_low:.2f} .. {time.speedup_high:.2f})"
    return f"{row.name} ({megabytes(row.nbytes)} MB, {fast}, error {percent(row.error)} %)"
