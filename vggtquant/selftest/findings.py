# SPDX-License-Identifier: Apache-2.0
"""What a self-test finds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..about import VERSION


class Product(NamedTuple):
    """Tokens, inputs and outputs of a Linear layer."""

    m: int
    k: int
    n: int

    @property
    def words(self) -> str:
        """For a person.

        >>> Product(3, 40, 24).words
        '3 tokens, 40 x 24'
        """
        return f"{self.m} tokens, {self.k} x {self.n}"


@dataclass(frozen=True)
class Check:
    """One comparison with the scalar kernels."""

    what: str
    scheme: str
    sizes: list[int]
    dtype: str
    kernel: str | None
    error: float | None
    """Largest difference over the largest magnitude; None where the call failed."""
    bound: float
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is not None and self.error <= self.bound


@dataclass(frozen=True)
class Speed:
    """A Linear layer beside torch's BF16: medians, in microseconds of the device."""

    scheme: str
    sizes: list[int]
    kernel: str | None
    us: float
    bf16_us: float
    first_us: float
    """Of the first call, in which an engine is chosen."""
    engines_us: dict[str, float] = field(default_factory=dict)
    """On a GPU, of each engine that serves; `us` is that of the chosen one."""

    @property
    def speedup(self) -> float:
        return self.bf16_us / self.us


@dataclass(frozen=True)
class Held:
    """Bytes of a Linear layer of VGGT's size, bias included."""

    scheme: str
    sizes: list[int]
    nbytes: int
    fp32_nbytes: int
    gpu_peak: int | None
    """Highest memory of the GPU in a forward, weights, input and output included."""


@dataclass
class Findings:
    """All that a self-test found."""

    device: str
    environment: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    memory: list[Held] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> list[Check]:
        """The comparisons that do not hold."""
        return [check for check in self.checks if not check.ok]

    def to_json(self) -> str:
        """All of it, with a verdict for each comparison."""
        found = {"vggtquant": VERSION, "ok": not self.failed, **asdict(self)}
        found["checks"] = [{**asdict(check), "ok": check.ok} for check in self.checks]
        return json.dumps(found, indent=1) + "\n"
