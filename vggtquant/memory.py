# SPDX-License-Identifier: Apache-2.0
"""How many pictures a forward of VGGT takes into how much memory: said before, and kept to.

The bytes of a forward follow from the sizes of its tensors. What stands beside them, which the C
library and torch keep, was measured (docs/performance.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from . import environment
from .adapter import FRAME_SIZE, PATCH
from .adapters.vggt import TOKENS
from .aggregator import QuantizedAggregator
from .checkpoint.budget import parse_bytes
from .conv import QuantizedConv2d
from .dense import QuantizedDPTHead
from .errors import UserError, check_type

OVERHEAD = 100 << 20
"""Bytes that a first forward takes for good: code, threads' scratch, what malloc keeps."""
HELD = 0.12
"""Of a forward's tensors, that freed memory between them takes beside them."""
AT_ONCE = 8
"""Pictures that VGGT's own dense head computes at a time."""
MOST = 100_000
"""Pictures beyond which nobody asks."""

_FLOAT = 4
_VALUES = 6  # of a pixel: depth, a point of three, a confidence of each


@dataclass(frozen=True)
class Fit:
    """What fits."""

    pictures: int
    """The most that one forward takes."""
    chunk: int
    """Pictures that a dense head computes at a time."""
    nbytes: int
    """The process's peak that is forecast for the pictures that were asked for, else the most."""


class _Sizes(NamedTuple):
    """What a forward's tensors are made of."""

    channels: int
    patch: int
    kept: int  # layers whose outputs are held until the heads have read them
    pair: int  # outputs of the pair of blocks before, which VGGT's own aggregator holds
    heads: list[Any]


def _sizes(model: nn.Module) -> _Sizes:
    aggregator: Any = getattr(model, "aggregator", None)
    blocks = getattr(aggregator, "frame_blocks", None)
    heads = [m for m in model.modules() if type(m).__name__.endswith("DPTHead")]
    if not blocks or not all(hasattr(head, "projects") for head in heads):
        raise UserError(
            f"the memory of a {type(model).__name__} is not known; a model with an aggregator of "
            "frame blocks is wanted, as VGGT has"
        )
    channels = blocks[0].norm1.normalized_shape[0]
    ours = isinstance(aggregator, QuantizedAggregator)
    kept = aggregator.kept if ours else getattr(aggregator, "retained_layer_idx", blocks)
    patch = getattr(aggregator, "patch_size", PATCH)
    return _Sizes(channels, patch, len(kept), 0 if ours else 2, heads)


def _picture_nbytes(head: Any, size: tuple[int, int], patches: tuple[int, int]) -> int:
    """Of a dense head's maps of one picture: three of the whole size, where it is torch's."""
    if isinstance(head, QuantizedDPTHead):
        return head.picture_nbytes(patches)
    first = head.projects[0]
    outputs = first.shape.outputs if isinstance(first, QuantizedConv2d) else first.out_channels
    return int(3 * size[0] * size[1] * max(outputs // 2, 32) * _FLOAT)


def forecast(
    model: nn.Module, pictures: int, size: tuple[int, int], *, chunk: int | None = None
) -> int:
    """Bytes that a forward of so many pictures (height, width) takes beside the model, at its peak.

    Activations are float32, or bfloat16 under CPU autocast. chunk: pictures that a dense head
    computes at a time; None: those of its present budget.
    """
    s = _sizes(model)
    item = 2 if torch.is_autocast_enabled("cpu") else _FLOAT
    patches = (size[0] // s.patch, size[1] // s.patch)
    tokens = pictures * (patches[0] * patches[1] + TOKENS)
    pixels = pictures * size[0] * size[1]
    stream = _FLOAT * s.channels * tokens
    held = 2 * s.kept * stream
    # The last block: kept outputs but its own, the pair of layers before, x before, between and
    # after, the hidden layer; the pictures twice.
    block = held - 2 * stream + s.pair * stream + 3 * stream + 4 * item * s.channels * tokens
    block += 2 * 3 * _FLOAT * pixels
    maps = max(
        (
            min(pictures, _at_once(head, patches, chunk)) * _picture_nbytes(head, size, patches)
            for head in s.heads
        ),
        default=0,
    )
    heads = held + (3 + _VALUES) * _FLOAT * pixels + maps
    return OVERHEAD + int((1 + HELD) * max(block, heads))


def _at_once(head: Any, patches: tuple[int, int], chunk: int | None = None) -> int:
    """Pictures that a dense head computes at a time; torch's computes eight."""
    if not isinstance(head, QuantizedDPTHead):
        return AT_ONCE
    return min(AT_ONCE, chunk or max(1, head.budget // head.picture_nbytes(patches)))


def most(model: nn.Module, room: int, size: tuple[int, int], extra: int = 0) -> int:
    """The largest number of pictures whose forward takes at most `room` bytes beside the model."""

    def fits(pictures: int) -> bool:
        return extra + forecast(model, pictures, size, chunk=1) <= room

    low, high = 0, 1  # bytes grow with pictures
    while high <= MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def refuse(pictures: int, size: tuple[int, int], nbytes: int, limit: int, fitting: int) -> None:
    """UserError: so many pictures do not fit."""
    would = count(fitting) if fitting else "not even one"
    raise UserError(
        f"{count(pictures)} of {size[0]}x{size[1]} would take {gigabytes(nbytes)} of memory, and "
        f"{gigabytes(limit)} are allowed; {would} would fit"
    )


def fit(
    model: nn.Module,
    memory: str | int,
    *,
    pictures: int | None = None,
    size: tuple[int, int] = (FRAME_SIZE, FRAME_SIZE),
) -> Fit:
    """Make a VGGT's forwards fit into so much memory, and say how many pictures that takes.

    memory: of the whole process, "8 GB", "800MB" or bytes. size: height and width of the pictures.
    Dense heads of ours then compute as many pictures at a time as there is room for; results are
    the same for any number.

    Raises:
        UserError: a model that is not built like VGGT, or memory that one picture, or `pictures`,
            does not fit into.

    >>> fit(model, "8 GB", pictures=20, size=(350, 518)).pictures   # doctest: +SKIP
    101
    """
    check_type("the model", model, nn.Module, "a torch.nn.Module")
    check_type("memory", memory, (str, int, float), "a size such as '8 GB', or bytes")
    limit = parse_bytes(memory) if isinstance(memory, str) else memory
    s = _sizes(model)
    resident = environment.resident_bytes()
    room = limit - resident
    fitting = most(model, room, size)
    wanted = max(fitting, 1) if pictures is None else pictures
    if wanted > fitting:
        refuse(wanted, size, resident + forecast(model, wanted, size, chunk=1), limit, fitting)
    patches = (size[0] // s.patch, size[1] // s.patch)
    chunk = 1
    while chunk < AT_ONCE and forecast(model, wanted, size, chunk=chunk + 1) <= room:
        chunk += 1
    for head in s.heads:
        if isinstance(head, QuantizedDPTHead):
            head.budget = min(type(head).budget, chunk * head.picture_nbytes(patches))
    return Fit(
        fitting,
        max((_at_once(head, patches) for head in s.heads), default=1),
        resident + forecast(model, wanted, size),
    )


def count(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures} pictures"


def gigabytes(nbytes: float) -> str:
    """In powers of ten, with two digits after the point, rounded up."""
    return f"{math.ceil(nbytes / 1e7) / 100:.2f} GB"
