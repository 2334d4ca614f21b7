# SPDX-License-Identifier: Apache-2.0
"""Convolutions and resizing on the CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from . import native
from .buffers import bits_of, into, memory, room, values
from .records import Packed


class Window(NamedTuple):
    """A convolution's kernel, strides and padding, each (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what comes of pictures of that height and width."""
        high, wide = (
            (side + 2 * padding - kernel) // stride + 1
            for side, kernel, stride, padding in zip(
                size, self.kernel, self.stride, self.padding, strict=True
            )
        )
        return high, wide


class Tables(NamedTuple):
    """A position embedding: (width, channels / 2) and (height, channels / 2) of float32."""

    columns: torch.Tensor
    rows: torch.Tensor


class Projection(NamedTuple):
    """A float product after the convolution: weight (outputs, 64), bias (outputs)."""

    weight: torch.Tensor
    bias: torch.Tensor


def conv_channels(channels: int) -> int:
    """Inputs that a pixel has in a packed weight: whole steps of eight."""
    return -(-channels // 8) * 8


def conv2d(
    packed: torch.Tensor,
    about: Packed,
    window: Window,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    size: tuple[int, int] | None = None,
    out_size: tuple[int, int] | None = None,
    relu_sums: torch.Tensor | None = None,
    relu: bool = False,
    relu_sum: bool = False,
    folded: bool = False,
    largest: torch.Tensor | None = None,
    embedding: Tables | None = None,
    residual: torch.Tensor | None = None,
    projection: Projection | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution of pictures x (n, height, width, channels) with a packed INT8 weight.

    y (n, height, width, outputs) of `dtype`, and its largest magnitudes (n, 2) as vgq_conv_call
    in csrc/vgq.h has them. size: x is resized to it first. relu_sums: x counts as relu(x); the sums
    of each output's weights. relu, relu_sum: before and after the residual is added. largest: those
    of x, where they are known. folded: the second half of the outputs is added to the first.
    """
    size = size or (x.shape[1], x.shape[2])
    high, wide = out_size or window.outputs(size)
    last = projection or Projection(None, None)  # type: ignore[arg-type]
    own = about.n // 2 if folded else about.n
    outputs = own if projection is None else len(projection.bias)
    y = room((x.shape[0], high, wide, outputs), dtype)
    found = torch.empty((x.shape[0], 2), dtype=torch.float32, device="cpu")
    columns, rows = embedding or (None, None)
    args: list[Any] = [
        memory(packed),
        values(x),
        size,
        *window,
        relu_sums is not None,
        relu,
        relu_sum,
        folded,
        *map(into, (largest, columns, rows, relu_sums, bias, residual, *last, y, found)),
    ]
    scratch = room(native.cpu.conv2d(*[*args, None]), torch.uint8).numpy()
    native.cpu.conv2d(*[*args, scratch])
    return y, found


def resize(
    x: torch.Tensor, size: tuple[int, int], added: torch.Tensor | None = None
) -> torch.Tensor:
    """x (n, height, width, channels) made `size` by bilinear interpolation, corners aligned; plus
    `added`, whose dtype y then has."""
    y = room((x.shape[0], *size, x.shape[3]), x.dtype if added is None else added.dtype)
    args = values(x), into(added), bits_of(y)
    scratch = room(native.cpu.resize(*args, None), torch.uint8).numpy()
    native.cpu.resize(*args, scratch)
    return y
