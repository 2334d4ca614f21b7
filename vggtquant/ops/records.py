# SPDX-License-Identifier: Apache-2.0
"""What describes a call: shapes, packed weights, norms, coded inputs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray

from .buffers import floats
from .native import cpu


class Shape(NamedTuple):
    """rows x cols values, of which `group` neighbours in a row share a scale."""

    rows: int
    cols: int
    group: int

    @property
    def row_groups(self) -> int:
        """Groups of a row, the last of which may be shorter."""
        return -(-self.cols // self.group) if self.cols else 0

    @property
    def groups(self) -> int:
        """Groups of the matrix."""
        return self.rows * self.row_groups


def format_word(bits: int) -> Any:
    """i8 or i4, the core's word for codes of that many bits."""
    return f"i{bits}"


def row_nbytes(bits: int, cols: int) -> int:
    """Bytes of a row of codes; two 4-bit codes share a byte, and a row starts at a new one."""
    return -(-cols * bits // 8)


class Packed(NamedTuple):
    """What packed bytes hold; see vgq_weight in csrc/vgq.h."""

    bits: int
    scales: cpu.Scales | Literal["float8"]
    """float8: codes are FP8 numbers, with a scale a row; float8.pack lays them out, on any device
    the same."""
    n: int
    k: int
    group: int
    asymmetric: bool

    @property
    def row_groups(self) -> int:
        """Groups of a row."""
        return -(-self.k // self.group)

    @property
    def is_float8(self) -> bool:
        """Whether codes are FP8 numbers."""
        return self.scales == "float8"

    @property
    def number(self) -> str:
        """What a code is, for a report."""
        return "float8" if self.is_float8 else f"int{self.bits}"


class Norm(NamedTuple):
    """LayerNorm over the last axis; weight and bias of its length."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    eps: float = 1e-5


def norm_parts(norm: Norm | None) -> tuple[NDArray[Any] | None, NDArray[Any] | None, float]:
    """Weight, bias and eps as the core wants them."""
    if norm is None:
        return None, None, 0.0
    return floats(norm.weight), floats(norm.bias), norm.eps


class Inputs(NamedTuple):
    """How a Linear's input is coded: x * weight + bias, a value a channel, then by one scale."""

    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    scale: float = 0.0
    """0: a scale a token, as it comes."""


NO_INPUTS = Inputs()
