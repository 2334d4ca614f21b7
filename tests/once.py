# SPDX-License-Identifier: Apache-2.0
"""What is costly to make is made once for all processes of pytest-xdist."""

import fcntl
import random
from collections.abc import Callable, Iterable
from pathlib import Path


def once(target: Path, make: Callable[[Path], object]) -> Path:
    """The file or folder `target`; the first who asks makes it, by make(PATH), and others wait.

    PATH becomes `target` when make has returned, so `target` is never there half made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = target.with_name(f".{target.name}.part")
            make(part)
            part.replace(target)
    return target


def in_any_order(make: Callable[[Path], Path], of: Iterable[Path]) -> list[Path]:
    """What `make` gives for each path, in their order. Each process makes them in another, so that
    two that want the same share the work instead of waiting for each other."""
    wanted = list(of)
    for item in random.sample(wanted, len(wanted)):
        make(item)
    return [make(item) for item in wanted]
