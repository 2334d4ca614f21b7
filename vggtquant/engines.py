# SPDX-License-Identifier: Apache-2.0
"""Which of several ways to compute a Linear layer on a GPU is taken: the fastest, measured there.

A kernel that was tuned elsewhere may be slow on the GPU at hand. So the first call of a kind (a
weight's shape, the dtypes, the number of tokens up to the next power of two) times every engine
that serves it. The choice is kept in the user's cache folder by GPU and versions. `use`, or the
variable VGGTQUANT_ENGINE, takes one engine without timing.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import devices
from .about import VERSION
from .errors import UserError
from .files import write_bytes

FASTER = 0.97
"""A later engine of a table takes the place of an earlier one below this share of its time: of
engines that are as fast, the first is taken each time."""
TRIALS = 5
HOPELESS = 4.0
"""An engine whose first trial takes so many times as long as the best one is not tried again."""
FILE = "engines.json"


Clock = Callable[[torch.device, Callable[[], object]], float]
"""Seconds of a call on the device."""


def _clock(device: torch.device, call: Callable[[], object]) -> float:
    return devices.timed(device, call)[1]


def bucket(tokens: int) -> int:
    """Up to how many tokens share a choice: the next power of two.

    >>> bucket(1), bucket(1374), bucket(2048)
    (1, 2048, 2048)
    """
    return 1 << max(0, tokens - 1).bit_length()


def cache_folder() -> Path | None:
    """The user's, by the XDG Base Directory Specification; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vggtquant"
    except RuntimeError:
        return None


def machine(device: torch.device) -> str:
    """What a choice holds for: the GPU's name and the versions.

    >>> machine(devices.CPU).startswith("cpu, torch ")
    True
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, vggtquant {VERSION}"


@dataclass
class Chooser:
    """Choices by machine and kind of call, in memory and in a file; threads wait for each other."""

    clock: Clock = _clock
    file: Path | None = None
    """None: engines.json in cache_folder()."""
    known: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """On engines that failed."""
    taken: dict[Hashable, str] = field(default_factory=dict)
    """Choices by a key that is quick to make, for who calls often."""
    dropped: set[tuple[str, str, str]] = field(default_factory=set)
    """Machine, kind and engine of choices that failed later."""
    _read: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def choose(
        self, device: torch.device, kind: str, calls: Mapping[str, Callable[[], object]]
    ) -> str:
        """The name of the engine for calls of a kind; calls: of the engines that serve it, in the
        table's order.

        A choice for which the memory of an engine was missing is not kept. Raises what the last
        engine raised, where all fail.
        """
        with self._lock:
            self._load()
            name = machine(device)
            sound = {k: v for k, v in calls.items() if (name, kind, k) not in self.dropped}
            sound = sound or dict(calls)
            here = self.known.setdefault(name, {})
            if here.get(kind) in sound:
                return here[kind]
            chosen, keep = next(iter(sound)), True
            if len(sound) > 1:
                chosen, keep = self._fastest(device, sound)
            if keep:
                here[kind] = chosen
                self._save()
            return chosen

    def drop(self, device: torch.device, kind: str, name: str, error: Exception) -> None:
        """Forgets a choice that failed later, on another number of tokens."""
        with self._lock:
            self._note(name, error)
            self.dropped.add((machine(device), kind, name))
            self.taken.clear()

    def _fastest(
        self, device: torch.device, calls: Mapping[str, Callable[[], object]]
    ) -> tuple[str, bool]:
        """The engine, and whether every one had the memory to be tried."""
        best, least, last, tried = "", float("inf"), None, True
        for name, call in calls.items():
            try:
                call()  # the first call loads kernels
                seconds = self.clock(device, call)
                if seconds < HOPELESS * least:
                    again = (self.clock(device, call) for _ in range(TRIALS - 1))
                    seconds = min([seconds, *again])
            except RuntimeError as error:
                self._note(name, error)
                last, tried = error, tried and not isinstance(error, torch.cuda.OutOfMemoryError)
                continue
            if seconds < (FASTER * least if best else least):
                best, least = name, seconds
        if not best:
            assert last is not None
            raise last
        return best, tried

    def _note(self, name: str, error: Exception) -> None:
        words = f"engine {name} failed and is not used: {' '.join(str(error).split())[:200]}"
        if words not in self.notes:
            self.notes.append(words)
            warnings.warn(words, stacklevel=4)

    def _path(self) -> Path | None:
        folder = cache_folder()
        return self.file or (None if folder is None else folder / FILE)

    def _load(self) -> None:
        """What earlier processes chose; a file that cannot be read is as good as none."""
        if self._read:
            return
        self._read = True
        path = self._path()
        try:
            found: Any = None if path is None else json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            return
        for name, chosen in found.items() if isinstance(found, dict) else ():
            if isinstance(chosen, dict):
                words = {k: v for k, v in chosen.items() if isinstance(v, str)}
                self.known[name] = words | self.known.get(name, {})

    def _save(self) -> None:
        """With what others wrote meanwhile. Where nothing can be written, each process chooses."""
        mine, self._read = self.known, False
        self.known = {}
        self._load()
        for name, chosen in mine.items():
            self.known[name] = self.known.get(name, {}) | chosen
        path = self._path()
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, (json.dumps(self.known, indent=1) + "\n").encode())
        except (OSError, UserError):
            pass


CHOOSER = Chooser()
_forced: list[str | None] = [os.environ.get("VGGTQUANT_ENGINE") or None]


def forced() -> str | None:
    """The engine that is taken without timing; None: the fastest one."""
    return _forced[-1]


@contextmanager
def use(name: str | None) -> Iterator[None]:
    """Within it, that engine is taken wherever it serves; None: the fastest one.

    >>> with use("fused"):
    ...     forced()
    'fused'
    """
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def checked(name: str | None, names: Sequence[str]) -> str | None:
    """The name; UserError for one that no engine has."""
    if name is not None and name not in names:
        raise UserError(f"VGGTQUANT_ENGINE is {name!r}; one of {', '.join(names)} is wanted")
    return name
