# SPDX-License-Identifier: Apache-2.0
"""Scales, zero points and codes of arrays: quantize and dequantize."""

from __future__ import annotations

import torch

from . import native
from .buffers import Buffer, empty, filled
from .records import Shape, format_word, row_nbytes


def ranges(shape: Shape, x: Buffer) -> tuple[Buffer, Buffer, int]:
    """Lowest and highest value of each group, widened to hold 0, and how many are not finite."""
    lo, hi = empty(shape.groups, "float32", x), empty(shape.groups, "float32", x)
    nonfinite = filled(shape.rows, 0, "int64" if isinstance(x, torch.Tensor) else "uint64", x)
    native.run("range", shape, x, lo, hi, nonfinite)
    return lo, hi, int(nonfinite.sum())


def parameters(
    bits: int, lo: Buffer, hi: Buffer, zero_points: bool
) -> tuple[Buffer, Buffer | None]:
    """Scale of each range and, if asked for, its zero point."""
    scale = empty(lo.shape, "float32", lo)
    zero = empty(lo.shape, "int8", lo) if zero_points else None
    native.run("parameters", format_word(bits), lo, hi, scale, zero)
    return scale, zero


def two_level(
    shape: Shape, x: Buffer, zero_points: bool
) -> tuple[Buffer, Buffer, Buffer | None, Buffer]:
    """Channel scales, factors, zero points; squared errors (rows, 2): two-level, float scales."""
    channel_scale = empty(shape.rows, "float32", x)
    factor = empty(shape.groups, "uint8", x)
    zero = empty(shape.groups, "int8", x) if zero_points else None
    error = empty((shape.rows, 2), "float64", x)
    native.run("two_level", shape, x, channel_scale, factor, zero, error)
    return channel_scale, factor, zero, error


def quantize(bits: int, shape: Shape, x: Buffer, scale: Buffer, zero: Buffer | None) -> Buffer:
    """Codes as bytes, (rows, row_nbytes)."""
    q = empty((shape.rows, row_nbytes(bits, shape.cols)), "uint8", x)
    native.run("quantize", format_word(bits), shape, x, scale, zero, q)
    return q


def dequantize(
    bits: int,
    shape: Shape,
    q: Buffer,
    scale: Buffer,
    zero: Buffer | None,
    name: str = "float32",
) -> Buffer:
    """The values that codes stand for, (rows, cols), rounded once to that dtype."""
    x = empty((shape.rows, shape.cols), name, q)
    native.run("dequantize", format_word(bits), shape, q, scale, zero, x)
    return x
