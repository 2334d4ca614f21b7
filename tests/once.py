# SPDX-License-Identifier: Apache-2.0
"""What is costly to make is made once for all processes of pytest-xdist."""

import fcntl
from collections.abc import Callable
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
