# SPDX-License-Identifier: Apache-2.0
"""Keys and values that a streaming model keeps between calls, in INT8 instead of float.

A scale for each token and head, symmetric: head_dim + 4 bytes where float32 has 4 * head_dim, 3.8
times fewer for heads of 64 channels. A call decodes those of one attention, for as long as it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .configs import QuantizationSpec
from .qtensor import QTensor, quantize

ARGUMENTS = ("past_key_values", "use_cache")
"""Of an attention that returns its keys and values for the next call, each (batch, heads, pictures,
tokens, head_dim)."""

_SPEC = QuantizationSpec(8, symmetric=True, granularity="per_channel")


class CodedTensor:
    """Keys or values in INT8: a part for each call that added some.

    >>> kept = CodedTensor().extended(torch.ones(1, 2, 1, 5, 16))
    >>> kept.shape, kept.nbytes < 2 * 5 * 16 * 4
    (torch.Size([1, 2, 1, 5, 16]), True)
    """

    def __init__(self, parts: tuple[tuple[torch.Size, QTensor], ...] = ()) -> None:
        self.parts = parts
        """Shape and codes of each part."""

    @property
    def shape(self) -> torch.Size:
        """Of the values: (batch, heads, pictures, tokens, head_dim)."""
        first = self.parts[0][0]
        return torch.Size((*first[:2], sum(shape[2] for shape, _ in self.parts), *first[3:]))

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return sum(q.nbytes for _, q in self.parts)

    def extended(self, x: Tensor) -> CodedTensor:
        """With the values of more pictures, (batch, heads, more, tokens, head_dim); codes that are
        there are shared, not copied."""
        rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
        return CodedTensor((*self.parts, (x.shape, quantize(rows, _SPEC))))

    def decoded(self) -> Tensor:
        """What the codes stand for, in the shape and dtype that came in."""
        return torch.cat([q.dequantize().reshape(shape) for shape, q in self.parts], dim=2)

    def __repr__(self) -> str:
        return f"CodedTensor(shape={tuple(self.shape)}, INT8, {self.nbytes} bytes)"


def call(forward: Callable[..., Any], x: Any, given: Mapping[str, Any]) -> Any:
    """forward(x, **given) with use_cache, its keys and values in the form of CodedTensors.

    given: arguments by name; past_key_values may hold CodedTensors, or tensors from a call that
    kept floats.
    """
    past = given.get("past_key_values")
    coded = [p if isinstance(p, CodedTensor) else CodedTensor().extended(p) for p in past or ()]
    floats = {"past_key_values": tuple(p.decoded() for p in coded)} if past else {}
    y, new = forward(x, **{**given, **floats})
    coded = coded or [CodedTensor() for _ in new]
    seen = coded[0].shape[2] if past else 0
    return y, tuple(c.extended(n[:, :, seen:]) for c, n in zip(coded, new, strict=True))
