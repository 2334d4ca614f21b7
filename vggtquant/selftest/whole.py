# SPDX-License-Identifier: Apache-2.0
"""The whole self-test."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence

import torch

from .. import environment, ops
from ..configs import CONFIGS
from ..ops import float8
from .compare import RAGGED, checks, served
from .findings import Findings, Product
from .measure import LINEARS, RUNS, SHARE, TOKENS, free_bytes, memory, speeds, wanted_bytes

LIMIT_S = 150.0
"""Seconds after which no further speed is measured, unless --seconds says another limit."""


def selftest(
    device: str | torch.device = "cpu",
    *,
    seconds: float = LIMIT_S,
    sizes: Sequence[Product] = RAGGED,
    linears: Sequence[tuple[int, int]] = LINEARS,
    tokens: Sequence[int] = TOKENS,
    runs: int = RUNS,
    say: Callable[[str], None] = lambda line: None,
) -> Findings:
    """Compare, time and read memory on a device.

    seconds: after so many, no further size is compared or timed. sizes: of the comparison. linears,
    tokens: of the times. runs: calls behind a median.

    Raises:
        UserError: a device that is not there or not served.

    >>> small = Product(3, 40, 24)
    >>> selftest(sizes=[small], linears=[(40, 24)], tokens=[3], runs=1).failed
    []
    """
    target = ops.check_served(device)
    start = time.monotonic()
    found = Findings(str(target), environment.describe(sys.argv, target))

    def over() -> bool:
        return time.monotonic() - start > seconds

    names = [name for name, config in CONFIGS.items() if config.quantizes and not config.fuse]
    if (missing := float8.missing(target)) is not None:
        names = [name for name in names if served(name, target)]
        found.notes.append(f"FP8 is left out: {missing}")
    for i, size in enumerate(sizes):
        if i and over():
            found.notes.append(f"{size.words} and larger: not compared, the time limit is reached")
            break
        say(f"comparing {len(names)} schemes: {size.words}")
        found.checks += checks(target, [size], names)
    say("timing")
    timed = [Product(m, k, n) for m in tokens for k, n in linears]
    for one in speeds(target, timed, runs, over):
        if isinstance(one, str):
            found.notes.append(one)
        else:
            found.speeds.append(one)
            say(f"{Product(*one.sizes).words}, {one.scheme}: {one.speedup:.2f} x BF16")
    largest = max(timed, key=wanted_bytes)
    if wanted_bytes(largest) <= SHARE * free_bytes(target):
        found.memory += memory(target, largest)
    gc.collect()
    found.seconds = round(time.monotonic() - start, 1)
    return found
