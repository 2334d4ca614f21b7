# SPDX-License-Identifier: Apache-2.0
"""Times that mean something on a machine that others use: a scheme and FP32, forward by forward.

Each forward of a scheme has one of FP32 on the same scene right before or after it, so that a load
that comes and goes strikes both. Linux tells how long our threads waited for a core meanwhile; a
pair that did not wait is calm. Processor time is what a machine that is always busy leaves to
compare. What is made of the pairs is analyse/times.py's.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..records import Pair

# A scheme is timed for so many seconds and pairs; as long again, twice, while its pairs disagree.
SECONDS, PAIRS, ROUNDS = 1.0, 24, 3
# A longer forward is timed in one pair, and in none where one pass has to do.
LONG_SECONDS = 1.0
CALM = 0.05
"""The share of a forward's time up to which its threads may wait for a core in a calm one."""
_STEADY = 1.1  # quartiles of the ratios of calm pairs this close to each other need no more pairs


def waited() -> dict[str, int] | None:
    """Nanoseconds that each thread of this process waited for a core, being able to run.

    From /proc/self/task/*/schedstat (Linux, Documentation/scheduler/sched-stats); None where the
    system does not tell.
    """
    try:
        return {
            task.name: int((task / "schedstat").read_text().split()[1])
            for task in Path("/proc/self/task").iterdir()
        }
    except (OSError, ValueError, IndexError):
        return None


def sleeps() -> bool:
    """Whether threads that wait sleep, so that processor time is work and not waiting."""
    return os.environ.get("OMP_WAIT_POLICY", "").strip().upper() == "PASSIVE"


class Clock:
    """Times a call that returns its seconds. Says which share of them the thread that waited most
    had to wait, and the seconds of processor time of all threads; None where they are not known.

    counts_work: whether processor time is work, which it is not while a GPU computes.
    """

    def __init__(self, counts_work: bool = True) -> None:
        self.counts_work = counts_work
        self.share: float | None = None
        self.processor: float | None = None

    def __call__(self, call: Callable[[], float]) -> float:
        before, worked = waited(), time.process_time()
        seconds = call()
        works = self.counts_work and sleeps()
        self.processor = time.process_time() - worked if works else None
        after = waited()
        self.share = None
        if before is not None and after is not None:
            worst = max((ns - before.get(task, 0) for task, ns in after.items()), default=0)
            self.share = round(min(1.0, 1e-9 * worst / max(seconds, 1e-9)), 4)
        return seconds


def count(seconds: float, runs: int, rounds: int = 1) -> int:
    """How many pairs are timed where one takes so many seconds.

    >>> count(0.02, 3), count(0.2, 3), count(3, 3), count(3, 1)
    (24, 5, 1, 0)
    """
    if seconds > 2 * LONG_SECONDS:
        return 1 if runs > 1 else 0
    return rounds * max(2, min(PAIRS, round(SECONDS / max(seconds, 1e-9))))


@dataclass(frozen=True)
class Side:
    """One of the two that are timed: what sets it up, untimed, and a forward on a scene, which
    returns its seconds."""

    ready: Callable[[], object]
    run: Callable[[int], float]


def pairs(
    scenes: Sequence[str],
    scheme: Side,
    fp32: Side,
    *,
    seconds: float,
    runs: int,
    clock: Clock | None = None,
) -> list[Pair]:
    """Times pairs on scenes in turn, the scheme first in every other one.

    seconds: what a pair is expected to take. Goes on while the pairs disagree, ROUNDS times as long
    at most. The scheme is ready afterwards.
    """
    found: list[Pair] = []
    clock = clock or Clock()
    for turn in range(ROUNDS):
        start, most = len(found), count(seconds, runs, turn + 1)
        for i in range(start, most):
            scene = i * len(scenes) // most if turn == 0 else i % len(scenes)
            took: dict[bool, tuple[float, float | None, float | None]] = {}
            for is_scheme in (True, False) if i % 2 else (False, True):
                side = scheme if is_scheme else fp32
                side.ready()
                took[is_scheme] = clock(partial(side.run, scene)), clock.share, clock.processor
            shares = [share for _, share, _ in took.values() if share is not None]
            found.append(
                Pair(
                    scene=scenes[scene],
                    seconds=took[True][0],
                    fp32_seconds=took[False][0],
                    waited=max(shares, default=None),
                    processor=took[True][2],
                    fp32_processor=took[False][2],
                )
            )
        if most <= start or _steady(found):
            break
    scheme.ready()
    return found


def calm(found: Sequence[Pair]) -> list[Pair]:
    """The pairs whose threads hardly waited; all where the system does not tell."""
    return [pair for pair in found if pair.waited is None or pair.waited <= CALM]


def _steady(found: Sequence[Pair]) -> bool:
    ratios = [pair.fp32_seconds / pair.seconds for pair in calm(found)]
    if len(ratios) < 4:  # a long forward has few pairs; others go on until enough are calm
        return len(ratios) == len(found) < 4
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return high <= _STEADY * low
