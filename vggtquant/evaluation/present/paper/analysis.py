# SPDX-License-Identifier: Apache-2.0
"""The sentences of the analysis and the conclusion, each under the condition that it needs.

A phrase whose key begins with `claim_` says that one thing is better than another. It stands only
where intervals (scores, error) or quartiles (speed) of the document exclude the opposite.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...analyse.recommendation import DEFAULT_DROP
from ...formatting import megabytes, number, percent
from ...schema import Document, Kind, Reading, Row, Usable
from .phrases import Phrases

SCORES = {
    "truth/auc_30": ("score_auc_truth", 100.0),
    "truth/depth_abs_rel_median": ("score_depth_truth", 100.0),
    "fp32/auc_30": ("score_auc_fp32", 100.0),
    "fp32/depth_abs_rel": ("score_depth_fp32", 100.0),
    "calibration/depth_laplace_nll": ("score_nll", 1.0),
}
"""Scores whose differences from FP32 are told: phrase and factor."""

_READINGS = {
    Reading.WORSE: "claim_worse",
    Reading.BETTER: "claim_better",
    Reading.NOT_SHOWN: "difference_none",
    Reading.BELOW_FLOOR: "difference_floor",
    Reading.UNKNOWN: "difference_unknown",
}


def scored(document: Document) -> list[Row]:
    """The quantized schemes that finished."""
    return [row for row in document.schemes if row.scored()]


def paragraphs(document: Document, say: Phrases) -> Iterator[str]:
    """The analysis, a paragraph a topic."""
    baseline = next((r for r in document.finished() if r.kind is Kind.BASELINE), None)
    if baseline is not None:
        ms = number(baseline.timed.forward_ms_median)
        yield say("baseline", scheme=baseline.name, mb=megabytes(baseline.nbytes), ms=ms)
    if not scored(document):
        yield say("nothing")
        return
    for part in (_size, _accuracy, _speed, _recommendation, _front, _floor):
        if found := list(part(document, say)):
            yield say.sentences(found)
    yield from scores(document, say)


def _size(document: Document, say: Phrases) -> Iterator[str]:
    row = document.row(document.best.size)
    if row is None or row.bytes is None:
        return
    ratio = number(row.bytes.compression_ratio_model, 3)
    yield say("smallest", scheme=row.name, mb=megabytes(row.nbytes), ratio=ratio)
    if document.best.tied.size:
        yield say("smallest_tied", names=say.names(document.best.tied.size))


def _accuracy(document: Document, say: Phrases) -> Iterator[str]:
    row = document.row(document.best.accuracy)
    if row is None:
        return
    yield say("least_error", scheme=row.name, error=percent(row.error))
    others = {other.name for other in scored(document)} - {row.name}
    below = document.noise_floor.below.get(row.name)
    if not others:
        yield say("only_one")
    elif document.statistics.note is not None:
        yield say("error_unknown", scenes=document.statistics.scenes)
    elif document.best.tied.accuracy:
        yield say("error_tied", names=say.names(document.best.tied.accuracy))
    elif others <= _less_accurate(document, row.name):
        yield say("claim_accurate")
    else:
        yield say("error_open")
    if below and below.error:
        yield say("error_floor", names=say.names(below.error))


def _less_accurate(document: Document, name: str) -> set[str]:
    """The schemes whose error is larger by an interval that excludes 0."""
    found = set()
    for one in document.statistics.between:
        if one.score == "error" and one.shown and name in (one.a, one.b):
            larger = one.b if one.difference > 0 else one.a
            found.add(larger)
    return found - {name}


def _speed(document: Document, say: Phrases) -> Iterator[str]:
    row = document.row(document.best.speed)
    if row is None or row.timed.speedup is None:
        yield say("no_speed")
    else:
        time = row.timed
        yield say("largest_speedup", scheme=row.name, speedup=number(time.speedup, 3))
        if time.speedup_low is not None and time.speedup_high is not None:
            low, high = number(time.speedup_low, 3), number(time.speedup_high, 3)
            yield say("speed_quartiles", low=low, high=high)
            if document.timing.usable is Usable.NO:
                pass
            elif time.speedup_low > 1:
                yield say("claim_faster")
            elif time.speedup_high < 1:
                yield say("claim_slower")
            else:
                yield say("speed_not_shown")
        if document.best.tied.speed:
            yield say("speed_tied", names=say.names(document.best.tied.speed))
    if document.timing.usable is not Usable.YES:
        yield say("times_unusable" if document.timing.usable is Usable.NO else "times_some")


def _bounds(document: Document, say: Phrases) -> str:
    advice, given = document.recommendation, document.recommendation.budget
    most = DEFAULT_DROP if given.max_drop is None else given.max_drop
    found = [say("bound_drop", points=number(most))]
    if advice.depth_bound is not None:
        found.append(say("bound_depth", depth=percent(advice.depth_bound)))
    if given.max_bytes is not None:
        found.append(say("bound_bytes", mb=megabytes(given.max_bytes)))
    if given.min_speedup is not None:
        found.append(say("bound_speed", speedup=number(given.min_speedup)))
    return ("；" if say.language == "zh" else "; ").join(found)


def _recommendation(document: Document, say: Phrases) -> Iterator[str]:
    advice, given = document.recommendation, document.recommendation.budget
    row = document.row(advice.scheme)
    if row is None:
        yield say("not_recommended", bounds=_bounds(document, say))
        if advice.nearest is not None:
            yield say("nearest", scheme=advice.nearest)
            yield from _loss(document, say)
        return
    fitting = len(scored(document)) - len(advice.excluded)
    words = "recommended_alone" if fitting == 1 else "recommended"
    yield say(words, scheme=row.name, count=fitting, bounds=_bounds(document, say))
    yield from _loss(document, say)
    lost = advice.loss
    most = DEFAULT_DROP if given.max_drop is None else given.max_drop
    if document.statistics.note is not None:
        yield say("open_scenes", scenes=document.statistics.scenes)
    elif lost is not None and lost.high is not None and lost.high > most:
        yield say("open_drop")
    if given.min_speedup is not None:
        slowest = row.timed.speedup_low
        if slowest is None or slowest < given.min_speedup:
            yield say("open_speed")
    if advice.tied:
        yield say("recommended_tied", names=say.names(advice.tied))


def _loss(document: Document, say: Phrases) -> Iterator[str]:
    lost = document.recommendation.loss
    if lost is None or lost.points is None:
        yield say("loss_unknown")
    else:
        yield say("loss", points=f"{lost.points + 0.0:.2f}")
        if lost.low is not None and lost.high is not None:
            share = f"{100 * document.statistics.confidence:g}"
            low, high = f"{lost.low + 0.0:.2f}", f"{lost.high + 0.0:.2f}"
            yield say("loss_interval", share=share, low=low, high=high)
    if lost is not None and lost.depth is not None:
        yield say("loss_depth", depth=percent(lost.depth))


def _front(document: Document, say: Phrases) -> Iterator[str]:
    yield say("front", names=say.names(document.best.pareto_front))
    if document.statistics.note is not None:
        yield say("front_unknown")


def _floor(document: Document, say: Phrases) -> Iterator[str]:
    floor = document.noise_floor
    if not floor.errors:
        yield say("floor_absent")
        return
    whole = [name for name, below in floor.below.items() if below.error]
    yield say("floor", names=say.names(whole)) if whole else say("floor_none")
    single = [
        f"{name} ({say.names(below.outputs)})"
        for name, below in floor.below.items()
        if below.outputs and not below.error
    ]
    if single:
        yield say("floor_outputs", names=say.names(single))


def readings(document: Document, score: str) -> dict[Reading, list[str]]:
    """The schemes by what their difference from FP32 in a score says."""
    found: dict[Reading, list[str]] = {}
    for row in scored(document):
        one = document.statistics.against_fp32.get(row.name, {}).get(score)
        if one is not None:
            found.setdefault(one.reading, []).append(row.name)
    return found


def _all(document: Document, say: Phrases, names: list[str]) -> str:
    """Names, or a word where they are those of every scheme that finished."""
    there = len(scored(document))
    return say("all_schemes", count=there) if len(names) == there > 3 else say.names(names)


def scores(document: Document, say: Phrases) -> Iterator[str]:
    """For each task score, which differences from FP32 are shown, and which are not."""
    seen = False
    for score, (title, _) in SCORES.items():
        found = readings(document, score)
        sentences = [
            say(key, names=_all(document, say, found[reading]))
            for reading, key in _READINGS.items()
            if reading in found
        ]
        if sentences:
            seen = True
            yield say.sentences([say("score_topic", score=say(title)), *sentences])
    statistics = document.statistics
    if seen and statistics.note is None:
        yield say(
            "intervals_text",
            share=f"{100 * statistics.confidence:g}",
            scenes=statistics.scenes,
            resamples=statistics.resamples,
        )


def conclusion(document: Document, say: Phrases) -> Iterator[str]:
    """What the experiment shows, in a few sentences."""
    quantized = [row for row in document.schemes if row.kind is Kind.QUANTIZED]
    there = scored(document)
    yield say("finished", count=len(there), total=len(quantized))
    row = document.row(document.recommendation.scheme)
    baseline = next((r for r in document.finished() if r.kind is Kind.BASELINE), None)
    if row is not None and baseline is not None:
        mb, fp32 = megabytes(row.nbytes), megabytes(baseline.nbytes)
        yield say("conclude_recommended", scheme=row.name, mb=mb, fp32=fp32)
    else:
        yield say("conclude_none")
    if there:
        yield _shown(document, say, len(there))
    yield say("conclude_limits")


def _shown(document: Document, say: Phrases, total: int) -> str:
    if document.statistics.note is not None:
        return say("conclude_unknown")
    names = {
        name
        for score in SCORES
        for reading, found in readings(document, score).items()
        if reading in (Reading.BETTER, Reading.WORSE)
        for name in found
    }
    if names:
        return say("conclude_shown", count=len(names), total=total)
    return say("conclude_not_shown")
