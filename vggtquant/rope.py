# SPDX-License-Identifier: Apache-2.0
"""Tables of 2-D rotary position embedding for `ops.attention`, computed once a set of positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adapter import Form

KEPT = 8
"""Tables that are kept: a model asks for the same few in every block."""


class Tables(NamedTuple):
    """What the channels of a head are multiplied by: cos for a channel itself, sin for the channel
    that it turns with; float32 (rows, head_dim). Token i has row i % rows."""

    cos: Tensor
    sin: Tensor


_BASES = {"RotaryPositionEmbedding2D": "base_frequency", "RoPE2D": "base"}
"""Classes that turn as `tables` says, and where they keep the base of their frequencies."""


def base_of(turning: nn.Module | None) -> float | None:
    """The base of a module that turns queries and keys by positions; None for another module."""
    base = getattr(turning, _BASES.get(type(turning).__name__, ""), None)
    return float(base) if isinstance(base, int | float) else None


class _Known(NamedTuple):
    base: float
    head_dim: int
    pos: Tensor
    tables: Tables


_known: list[_Known] = []


def tables(pos: Tensor, head_dim: int, base: float) -> Tables | None:
    """The tables of positions (batch, tokens, 2), whole numbers (y, x); None where the positions of
    the batch differ, so that no single table serves them.

    The first half of a head's channels turns with y, the second with x; within a half, channel i
    turns with channel i + head_dim / 4 by pos * base^(-4 i / head_dim) (Heo et al., arXiv
    2403.13298, as VGGT has it). Positions that repeat along the tokens, as those of several frames
    do, get the rows of one period.

    >>> tables(torch.zeros(1, 5, 2, dtype=torch.int64), 32, 100.0).cos.shape
    torch.Size([1, 32])
    """
    for known in _known:
        if (
            known.base == base
            and known.head_dim == head_dim
            and known.pos.shape == pos.shape
            and torch.equal(known.pos, pos)
        ):
            return known.tables
    if not torch.equal(pos, pos[:1].expand_as(pos)):
        return None
    made = _made(_period(pos[0]), head_dim, base)
    _known.insert(0, _Known(base, head_dim, pos.clone(), made))
    del _known[KEPT:]
    return made


def _made(pos: Tensor, head_dim: int, base: float) -> Tables:
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, device=pos.device, dtype=torch.float32) / half
    angles = pos.float()[..., None] * (1.0 / base**exponents)  # (rows, 2, half / 2)
    angles = torch.cat([angles, angles], dim=-1).flatten(-2)
    return Tables(angles.cos(), angles.sin())


def _period(pos: Tensor) -> Tensor:
    """The first rows of (tokens, 2) that all others repeat."""
    tokens = len(pos)
    starts = (pos == pos[0]).all(dim=-1).nonzero().flatten().tolist()
    for rows in starts[1:]:
        if tokens % rows == 0 and torch.equal(pos[rows:], pos[:-rows]):
            return pos[:rows]
    return pos


def unsigned(signed: Tensor) -> Tensor:
    """Sines (rows, head_dim) from those with the rotation's signs in them: the first half of the
    channels that turn together has a minus."""
    rows, head_dim = signed.shape
    halves = signed.reshape(rows, 2, 2, head_dim // 4)
    return torch.stack([-halves[:, :, 0], halves[:, :, 1]], dim=2).reshape(rows, head_dim)


# ---- tables that a model's own forward gives -----------------------------------------------------


def regrouped(x: Tensor) -> Tensor:
    """x (…, head_dim) with its second and third quarter exchanged: channels that are half a head
    apart come to be a quarter apart within a half, and the reverse.

    >>> regrouped(torch.arange(8)).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    a, b, c, d = x.chunk(4, dim=-1)
    return torch.cat([a, c, b, d], dim=-1)


def given(form: Form, found: Any, tokens: int) -> tuple[Tensor | None, Tensor | None, bool] | None:
    """Cosines and sines of so many tokens as `ops.attention` takes them, and whether channels have
    to be regrouped; all None without rotation; None for tables that no single call serves."""
    if found is None:
        return None, None, False
    if not (isinstance(found, tuple) and len(found) == 2 and all(x.ndim == 2 for x in found)):
        return None
    if form == "cos_sin":
        cos, sin = found
        return cos, unsigned(sin), False
    sin, cos = (regrouped(x.float()) for x in found)
    before = tokens - len(sin)  # tokens that do not turn
    if before < 0:
        return None
    still = sin.new_zeros(before, sin.shape[1])
    return torch.cat([still + 1, cos]), torch.cat([still, sin]), True


def example(form: Form, pos: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Tables of that form for positions (tokens, 2), to try a module with."""
    cos, sin = _made(pos, head_dim, 100.0)
    if form == "cos_sin":
        return cos, unsigned(sin)  # its own inverse
    return regrouped(sin)[5:], regrouped(cos)[5:]  # as after a camera and four registers
