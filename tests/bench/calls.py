# SPDX-License-Identifier: Apache-2.0
"""Where a forward's time goes: the calls of our kernels, by kind and shape."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from vggtquant import ops


class Call(NamedTuple):
    """A kind of call."""

    label: str
    macs: int


def _linear(args: tuple[Any, ...]) -> Call:
    _, activations, x, norm, _, _, gelu, _, residual, y = args
    (m, k), n = x.shape, y.shape[-1]
    around = {"norm": norm[0] is not None, "GELU": gelu, "residual": residual is not None}
    words = [
        f"linear {m} x {k} x {n}",
        activations,
        *(word for word, given in around.items() if given),
    ]
    return Call(", ".join(words), m * k * n)


def _attention(args: tuple[Any, ...]) -> Call:
    mode, pv, qkv, *_ = args
    batch, tokens, _, heads, dim = qkv.shape
    return Call(
        f"attention {batch} x {heads} x {tokens} x {dim}, {mode} and {pv}",
        2 * batch * heads * dim * tokens**2,
    )


def _conv2d(args: tuple[Any, ...]) -> Call:
    x, size, kernel, stride, bias, y = args[1], args[2], args[3], args[4], args[-7], args[-3]
    channels, outputs = x.shape[-1], y.shape[-1] if bias is None else len(bias)
    label = f"conv2d {size[0]} x {size[1]} x {channels} to {outputs}, {kernel[0]} x {kernel[1]}"
    label += f", stride {stride[0]}" if stride[0] > 1 else ""
    return Call(label, math.prod(y.shape[:-1]) * outputs * math.prod(kernel) * channels)


def _resize(args: tuple[Any, ...]) -> Call:
    x, y = args[0], args[2]
    return Call(f"resize {x.shape[1]} x {x.shape[2]} to {y.shape[1]} x {y.shape[2]}", 0)


KINDS: dict[str, Callable[[tuple[Any, ...]], Call]] = {
    "linear": _linear,
    "attention": _attention,
    "conv2d": _conv2d,
    "resize": _resize,
}


class Timed:
    """The C core; calls of KINDS are timed."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.seconds: dict[Call, list[float]] = {}

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.core, name)
        if name not in KINDS:
            return function

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            if args[-1] is not None:  # None: it asked for the size of the scratch memory
                took = time.perf_counter() - start
                self.seconds.setdefault(KINDS[name](args), []).append(took)
            return result

        return timed


@contextmanager
def timed() -> Iterator[Timed]:
    """Calls of the CPU's kernels are timed within it."""
    before = ops.native.cpu
    ops.native.cpu = Timed(before)  # type: ignore[assignment, misc]
    try:
        yield ops.native.cpu  # type: ignore[misc]
    finally:
        ops.native.cpu = before  # type: ignore[misc]


Row = tuple[str, int, float, int]
"""Label, calls, their seconds, multiply-adds of all of them."""


def rows(found: Timed, whole_s: float) -> list[Row]:
    """The most seconds first; the last row is what is none of our kernels."""
    taken = [
        (call.label, len(times), sum(times), call.macs * len(times))
        for call, times in found.seconds.items()
    ]
    taken.sort(key=lambda row: -row[2])
    rest = whole_s - sum(row[2] for row in taken)
    return [*taken, ("torch, Python", 0, rest, 0)]


def table(found: list[Row]) -> list[str]:
    """The rows in Markdown."""
    whole = sum(row[2] for row in found)
    lines = ["| call | calls | seconds | share, % | GMAC/s |", "|---|---|---|---|---|"]
    for label, calls, seconds, macs in found:
        speed = f"{macs / seconds / 1e9:.0f}" if macs else ""
        lines.append(
            f"| {label} | {calls or ''} | {seconds:.3f} | {100 * seconds / whole:.1f} | {speed} |"
        )
    return lines
