# SPDX-License-Identifier: Apache-2.0
"""What times say: of a row's own forwards, and of a scheme beside FP32, from interleaved pairs.

A speedup is the ratio of the lower quartiles of FP32's and the scheme's times, over the calm pairs
where there are enough. Its ends are the quartiles of the pairs' own ratios. Where threads had to
wait for a core in too many pairs, the clock says nothing; the speedup is then the median ratio of
processor times, if these are known. One whose ends are more than WIDE apart is withheld.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ..measure.timing import CALM, calm
from ..records import Pair
from ..schema import Basis, Kind, Row, Time, Timing, Usable, Withheld

WIDE = 1.5
_ENOUGH = 6  # calm pairs that are enough to leave the others out
_FEWEST = 4  # pairs whose processor times have quartiles
WIDE_SPREAD = 0.2
"""Passes that differ by more than this share of their median were disturbed by something else."""
SPREAD_RULE = (
    f"The interquartile range of a row's times is more than {100 * WIDE_SPREAD:g} % of the median."
)


def quarters(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile, interpolated linearly."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def typical(
    scenes: Sequence[Sequence[float]], alike: bool
) -> tuple[float | None, float, float | None]:
    """Quartiles and median of a row's times: of all forwards where all scenes are of one size.

    Else of each scene, then the mean over scenes. No quartiles of a single forward.
    """
    own = [[ms for scene in scenes for ms in scene]] if alike else scenes
    found = [quarters(scene) for scene in own]
    low, median, high = (statistics.fmean(quarter[i] for quarter in found) for i in range(3))
    return (low, median, high) if min(map(len, own)) > 1 else (None, median, None)


def of_row(
    own: Sequence[Sequence[float]],
    fp32: Mapping[str, float],
    pairs: Sequence[Pair],
    *,
    alike: bool,
    kind: Kind,
    once: bool,
) -> Time:
    """A row's block of times.

    own: milliseconds of the passes of each scene; fp32: FP32's median on each scene; alike: all
    scenes are of one size; once: without any FP32 beside it, so that there is no speedup.
    """
    low, median, high = typical(own, alike)
    time = Time(
        forward_ms_median=median,
        forward_ms_iqr=None if low is None or high is None else high - low,
        forward_ms_min=statistics.fmean(map(min, own)),
        forward_ms_max=statistics.fmean(map(max, own)),
    )
    if kind is Kind.BASELINE:
        time.speedup = 1.0
    elif once:
        time.speedup_withheld = Withheld.ONCE
    elif not pairs:  # forwards so long that one pass had to do
        time.fp32_ms_nearby = statistics.fmean(fp32.values())
        time.speedup = time.fp32_ms_nearby / median
    else:
        _beside(time, pairs, fp32)
    return time


def _beside(time: Time, pairs: Sequence[Pair], fp32: Mapping[str, float]) -> None:
    """Puts the speedup into a row's times, or the reason why it is withheld."""
    quiet = calm(pairs)
    chosen = quiet if len(quiet) >= min(_ENOUGH, len(pairs)) else list(pairs)
    waits = [pair.waited for pair in pairs if pair.waited is not None]
    # Scenes of other sizes count alike: each time is over FP32's usual one on its scene.
    mine = [1e3 * pair.seconds / fp32[pair.scene] for pair in chosen]
    others = [1e3 * pair.fp32_seconds / fp32[pair.scene] for pair in chosen]
    speedup = quarters(others)[0] / quarters(mine)[0]
    ratios = [b / a for a, b in zip(mine, others, strict=True)]
    time.pairs = len(chosen)
    time.waited = statistics.median(waits) if waits else None
    time.fp32_ms_nearby = quarters(others)[1] * statistics.fmean(fp32.values())
    if len(ratios) > 1:
        low, _, high = quarters(ratios)
        time.speedup_low, time.speedup_high = min(low, speedup), max(high, speedup)
        if time.speedup_high > WIDE * time.speedup_low:
            time.speedup_withheld = Withheld.SPREAD
    basis = Basis.CLOCK
    if any(pair.waited is not None and pair.waited > CALM for pair in chosen):
        worked = [
            pair.fp32_processor / pair.processor
            for pair in chosen
            if pair.processor and pair.fp32_processor
        ]
        time.speedup_withheld = Withheld.BUSY
        if len(worked) == len(chosen) >= _FEWEST:
            basis = Basis.PROCESSOR
            time.speedup_low, speedup, time.speedup_high = quarters(worked)
            wide = time.speedup_high > WIDE * time.speedup_low
            time.speedup_withheld = Withheld.SPREAD if wide else None
    if time.speedup_withheld is None:
        time.speedup, time.speedup_basis = speedup, basis


def verdict(rows: Sequence[Row], threads: int) -> Timing:
    """Whether the times of a report can be used, in plain words, and what to do if not."""
    there = [row for row in rows if row.ok]
    wide = [
        row.name
        for row in there
        if (row.timed.forward_ms_iqr or 0) > WIDE_SPREAD * row.timed.forward_ms_median
    ]
    beside = [row for row in there if row.timed.pairs]
    lost = [row for row in beside if row.timed.speedup_withheld in (Withheld.SPREAD, Withheld.BUSY)]
    waits = [row.timed.waited for row in beside if row.timed.waited is not None]
    waited = statistics.median(waits) if waits else None
    worked = [row for row in beside if row.timed.speedup_basis is Basis.PROCESSOR]
    usable = Usable.SOME if wide else Usable.YES
    if lost or worked:
        usable = Usable.NO if len(lost) == len(beside) else Usable.SOME
    return Timing(
        rule=SPREAD_RULE,
        wide=wide,
        advice=_advice(threads) if wide or lost or worked else None,
        usable=usable,
        verdict=_words(usable, len(lost), len(worked), len(wide), len(beside), waited),
    )


def _words(
    usable: Usable, lost: int, worked: int, wide: int, pairs: int, waited: float | None
) -> str:
    busy = "" if waited is None else f"; our threads waited {100 * waited:.0f} % of their time"
    if not pairs:
        return "Times: one forward a scheme, nothing beside it. Do not rely on them."
    if usable is Usable.YES:
        return f"Times can be used: they hold for this machine{busy}."
    if usable is Usable.NO:
        return (
            f"Times CANNOT be used: other programs kept this machine busy{busy}. "
            "No speedup is given."
        )
    missing = f" {lost} of {pairs} speedups are not given." if lost else ""
    if worked:
        return (
            f"Times can be used in part: other programs kept this machine busy{busy}. Milliseconds "
            f"are too long; speedups with ~ are ratios of processor time.{missing}"
        )
    if lost:
        return f"Times can be used in part: other programs ran at times{busy}.{missing}"
    rows = "one row vary" if wide == 1 else f"{wide} rows vary"
    return (
        f"Times can be used in part: speedups hold, each is measured beside FP32{busy}. The "
        f"milliseconds of {rows} too much to be compared."
    )


def _advice(threads: int) -> str:
    places = ",".join(f"{{{core}}}" for core in range(threads)) if threads <= 8 else "cores"
    return (
        "Something else was running, or threads moved between cores. "
        "Run again on a quiet machine with pinned threads: "
        f"OMP_NUM_THREADS={threads} OMP_PROC_BIND=close OMP_PLACES='{places}' vggtquant evaluate, "
        "or with fewer --threads than there are cores."
    )
