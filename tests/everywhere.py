# SPDX-License-Identifier: Apache-2.0
"""Instruction sets and thread counts that tests run on, and decorators that run a test on all;
parameters that run by default or with `-m slow`.

A decorated test is one item of pytest: thousands of short items cost more than what they test, and
references that all instruction sets share are then computed once. A failure names the one.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

import vggtquant as vq

THREADS = [2, 3, 7]
"""Thread counts of the process's OpenMP runtime; all other tests run on one."""


@contextlib.contextmanager
def using_isa(name: str) -> Iterator[str]:
    """Within it, that instruction set is in use."""
    before = vq.isa()
    vq.use_isa(name)
    try:
        yield name
    finally:
        vq.use_isa(before)


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[int]:
    """Within it, torch, which owns the OpenMP runtime, and we run on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def _looped(
    test: Callable[..., None],
    name: str,
    values: Iterable[Any],
    using: Callable[[Any], contextlib.AbstractContextManager[Any]],
) -> Callable[..., None]:
    """The test, which takes `name`, once for each value."""
    given = list(values)
    known = inspect.signature(test).parameters

    @functools.wraps(test)
    def looped(*args: Any, **kwargs: Any) -> None:
        for value in given:
            with using(value):
                try:
                    test(*args, **{name: value}, **kwargs)
                except Exception as error:
                    error.add_note(f"{name}: {value}")
                    raise

    left = [parameter for key, parameter in known.items() if key != name]
    assert len(left) == len(known) - 1, f"the test takes no {name}"
    looped.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]
    return looped


def on_every_isa(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test that takes `isa` on each instruction set of this machine."""
    return _looped(test, "isa", vq.isas(), using_isa)


def with_any_threads(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test that takes `threads` with each of THREADS."""
    return _looped(test, "threads", THREADS, using_threads)


def by_default(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Values for parametrize: `chosen` run by default and stand for all, `-m slow` has the rest."""
    every = list(values)
    assert chosen and all(one in every for one in chosen), "a chosen value is none of them"
    slow = pytest.mark.slow
    return [value if value in chosen else pytest.param(value, marks=slow) for value in every]
