# SPDX-License-Identifier: Apache-2.0
"""What several commands have in common."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from ..configs import QuantizationConfig
    from ..evaluation.evaluate import Result

FOLDER = ("--out", "--output_dir")
"""Both names of the place for results."""

ADAPTER = ("--adapter",)
ADAPTER_HELP = (
    "which model of VGGT's family it is, e.g. pi3, or a .py file that holds an ADAPTER "
    "(default: by the model's class)"
)


def config_of(words: str) -> QuantizationConfig:
    """The config of a scheme's name, or the one that a .toml or .json file holds.

    >>> config_of("INT4_Group_64").bits
    4
    """
    from ..configs import CONFIG_SUFFIXES, get_config, read_configs

    if Path(words).suffix not in CONFIG_SUFFIXES:
        return get_config(words)
    configs = read_configs(words)
    if len(configs) != 1:
        raise UserError(f"{words} holds {len(configs)} configs; a file of one is wanted")
    return configs[0]


_EXTRA = ("matplotlib", "rich", "PIL", "scipy", "jinja2", "msgspec")


def need_extra() -> None:
    """UserError when a package of the extra `eval` is missing."""
    import importlib.util

    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"this command needs {', '.join(missing)}; install with: pip install 'vggtquant[eval]'"
        )


def show(result: Result) -> None:
    """Prints the tables and what was written."""
    from ..evaluation.present import tables, text

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else tables.WIDTH
    print()
    print(text.terminal(result.document, width, colour=colour), end="")
    for path in result.files:
        print(f"wrote {path}")


class Bar:
    """One line on a terminal's stderr, rewritten as the work is done; nothing elsewhere.

    words: what has been done, from how much of how much.
    """

    def __init__(self, words: Callable[[float, float], str]) -> None:
        self._words = words
        self._shown = sys.stderr.isatty()
        self._start = self._last = time.perf_counter()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def __call__(self, done: int, total: int, name: str) -> None:
        now = time.perf_counter()
        if not self._shown or (now - self._last < 0.1 and done < total):
            return
        self._last = now
        left = (now - self._start) * (total - done) / max(done, 1)
        words = f"{self._words(done, total)}, {left:.0f} s left"
        print(f"\r{words}  {name[:40]}\033[K", end="", file=sys.stderr, flush=True)
