# SPDX-License-Identifier: Apache-2.0
"""What a person sees while an evaluation runs: bars on a terminal, a line per scheme elsewhere.

Everything goes to stderr, so that stdout holds the result alone.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

SLOW_SECONDS = 2.0
"""What a forward takes at least before it has a bar of its own."""


def steps(model: Any) -> list[Any]:
    """The modules of a model whose ends show how far a forward is: its blocks and its heads."""
    children: Any = getattr(model, "named_modules", dict)()
    return [
        module
        for name, module in children
        if name.split(".")[-2:-1] in (["blocks"], ["frame_blocks"], ["global_blocks"])
        or (name.endswith("_head") and "." not in name)
    ]


class Progress:
    """Shows the work as it is done; `bars=None` decides by whether stderr is a terminal.

    Use as a context manager: leaving it takes the bars away, also after an error.
    """

    def __init__(self, *, bars: bool | None = None) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        shown = self._console.is_terminal if bars is None else bars and self._console.is_terminal
        self._bars: Bars | None = None
        if shown:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
        self._all: TaskID | None = None
        self._one: TaskID | None = None
        self._schemes = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self._console.print(line, soft_wrap=True)

    def start(self, forwards: int) -> None:
        """Begins the display of a run of that many forwards, or corrects that number."""
        if self._bars is None:
            return
        if self._all is None:
            self._bars.start()
            self._all = self._bars.add_task("all schemes", total=forwards)
        self._bars.update(self._all, total=forwards)

    def scheme(self, name: str, forwards: int) -> None:
        """Begins a scheme of that many forwards."""
        self._schemes += 1
        if self._bars is not None:
            self._one = self._bars.add_task(name, total=forwards)
        sys.stderr.flush()

    def shards(self, done: int, total: int, each: str) -> None:
        """Shows how far the shards of an evaluation are: all of them, and each."""
        if self._bars is None:
            self.say(f"{done} of {total}  ({each})")
            return
        self.start(total)
        assert self._all is not None
        self._bars.update(self._all, completed=done, description=each)

    def resize(self, forwards: int) -> None:
        """Corrects the number of forwards of the scheme that was begun."""
        if self._bars is not None and self._one is not None and self._all is not None:
            task = self._bars.tasks[self._bars.task_ids.index(self._one)]
            whole = self._bars.tasks[self._bars.task_ids.index(self._all)]
            self._bars.update(self._all, total=(whole.total or 0) + forwards - (task.total or 0))
            self._bars.update(self._one, total=forwards)

    def tick(self) -> None:
        """Counts one forward."""
        if self._bars is not None:
            for task in (self._one, self._all):
                if task is not None:
                    self._bars.advance(task)

    @contextmanager
    def forward(self, model: Any) -> Iterator[None]:
        """A forward of a model; one that takes over 2 s has a bar over its blocks."""
        modules = [] if self._bars is None else steps(model)
        start, bar, done = time.monotonic(), None, 0

        def step(*_: object) -> None:
            nonlocal bar, done
            assert self._bars is not None
            done += 1
            if bar is None and time.monotonic() - start > SLOW_SECONDS:
                self._bars.start()
                bar = self._bars.add_task("this forward", total=len(modules))
            if bar is not None:
                self._bars.update(bar, completed=done)

        handles = [module.register_forward_hook(step) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if self._bars is not None and bar is not None:
                self._bars.remove_task(bar)

    def watching(self, runner: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """The runner of a model, whose forwards are shown where there are bars."""
        if self._bars is None:
            return runner

        def run(model: Any, images: Any) -> Any:
            with self.forward(model):
                return runner(model, images)

        return run

    def done(self, summary: str, seconds: float) -> None:
        """Ends a scheme, wherever its bar stands, with a line on its result."""
        if self._bars is not None and self._one is not None:
            task = self._bars.tasks[self._bars.task_ids.index(self._one)]
            if self._all is not None:  # a failed scheme leaves forwards undone
                self._bars.advance(self._all, (task.total or 0) - task.completed)
            self._bars.remove_task(self._one)
            self._one = None
        self.say(f"[{self._schemes}] {summary} ({seconds:.1f} s)")


class _Silent(Progress):
    """Shows nothing."""

    def say(self, line: str) -> None:
        """Keeps it to itself."""


def silent() -> Progress:
    """One that shows nothing."""
    return _Silent(bars=False)


class _Notebook(Progress):
    """One bar in a notebook's cell, with what is done beside it."""

    def __init__(self, display: Any) -> None:
        super().__init__(bars=False)
        self._show = display
        self._handle: Any = None
        self._total, self._ticks, self._words = 1, 0, ""

    def say(self, line: str) -> None:
        """Keeps it to itself: a cell is no log."""

    def start(self, forwards: int) -> None:
        self._total = max(1, forwards)
        self._draw()

    def scheme(self, name: str, forwards: int) -> None:
        self._words = name
        self._draw()

    def resize(self, forwards: int) -> None:
        self._total += forwards

    def tick(self) -> None:
        self._ticks += 1
        self._draw()

    def done(self, summary: str, seconds: float) -> None:
        self._words = summary
        self._draw()

    def __exit__(self, *_: object) -> None:
        self._ticks, self._words = self._total, "done"
        self._draw()

    def _draw(self) -> None:
        bar = f'<progress value="{self._ticks}" max="{self._total}"></progress>'
        content = {"text/html": f"{bar} {html.escape(self._words)}", "text/plain": self._words}
        if self._handle is None:
            self._handle = self._show(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def notebook_bar() -> Progress | None:
    """A bar for a notebook; None outside of one."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    if type(running).__name__ != "ZMQInteractiveShell":
        return None
    from IPython.display import display

    return _Notebook(display)
