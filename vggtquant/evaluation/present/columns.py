# SPDX-License-Identifier: Apache-2.0
"""The columns of the main table, and the tables it is cut into, for every report that shows it.

The eight metrics of each output are another table: `text.metric_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..measure import variants
from ..schema import Basis, Document, Kind, Row, Withheld


class Width(Enum):
    """Where a column is shown."""

    ALWAYS = 1
    WIDE = 2


@dataclass(frozen=True)
class Column:
    """A figure of a row that finished: heading, where it stands, how it is written."""

    heading: str
    value: Callable[[Row], float | None]
    write: Callable[[float], str]
    more_is_better: bool = False
    timed: bool = False
    width: Width = Width.ALWAYS
    mark: Callable[[Row], str] = lambda row: ""  # before the figure

    def cell(self, row: Row) -> str:
        """The figure as written; a dash where there is none."""
        value = self.value(row)
        return "-" if value is None else self.mark(row) + self.write(value)


def _short(value: float, digits: int) -> str:
    """A figure without its decimals where it is large, so that every column keeps its width."""
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.0f}"


def _percent(value: float) -> str:
    words = f"{100 * value:.3g}"
    return words if len(words) <= 7 else f"{100 * value:.1e}"


def _ratio(row: Row) -> float | None:
    return row.bytes.compression_ratio_model if row.bytes else None


def _speedup_spread(row: Row) -> float | None:
    """Half of what the quartiles of the pairs leave open."""
    low, high = row.timed.speedup_low, row.timed.speedup_high
    if low is None or high is None or row.timed.speedup is None:
        return None
    return (high - low) / 2


def _truth(score: str) -> Callable[[Row], float | None]:
    return lambda row: (row.task.truth or {}).get(score)


MB = Column("MB", lambda row: row.nbytes, lambda v: _short(v / 1e6, 2))
SMALLER = Column("smaller", _ratio, lambda v: f"{v:.2f}x", True)
MS = Column("ms", lambda row: row.timed.forward_ms_median, lambda v: _short(v, 1), timed=True)
MS_SPREAD = Column(
    "±", lambda row: row.timed.forward_ms_iqr, lambda v: _short(v, 1), timed=True, width=Width.WIDE
)
SPEEDUP = Column(
    "speedup",
    lambda row: row.timed.speedup,
    lambda v: f"{v:.2f}x",
    True,
    timed=True,
    mark=lambda row: "~" if row.timed.speedup_basis is Basis.PROCESSOR else "",
)
SPEEDUP_SPREAD = Column("±x", _speedup_spread, lambda v: f"{v:.2f}", timed=True, width=Width.WIDE)
ERROR = Column("error %", lambda row: row.error, _percent)
AUC = Column("AUC@30", _truth("auc_30"), lambda v: f"{100 * v:.1f}", True)
ABS_REL = Column("AbsRel", _truth("depth_abs_rel_median"), lambda v: f"{100 * v:.2f}")
COLUMNS = (MB, SMALLER, MS, MS_SPREAD, SPEEDUP, SPEEDUP_SPREAD, ERROR)
TRUTH = (AUC, ABS_REL)


def main(rows: Sequence[Row], *, wide: bool = True) -> list[Column]:
    """The columns that these rows fill: scores against ground truth only where there is one."""
    there = [row for row in rows if row.ok]
    shown = [c for c in COLUMNS if wide or c.width is Width.ALWAYS]
    return [*shown, *(c for c in TRUTH if any(c.value(row) is not None for row in there))]


@dataclass(frozen=True)
class Block:
    """Rows that stand in one table."""

    title: str
    rows: list[Row]
    columns: list[Column]


def blocks(document: Document, *, wide: bool = True) -> list[Block]:
    """FP32 and the schemes; the same with INT8 activations; FP32's own uncertainty."""
    rows = document.schemes
    shown = main(rows, wide=wide)
    floor = [row for row in rows if row.name in variants.NOISE_FLOOR or row.kind is Kind.REFERENCE]
    a8 = [row for row in rows if row.config.quantize_activations]
    first = [row for row in rows if row not in floor and row not in a8]
    # Activations in INT8 do not change the size, and their names are the longest.
    narrower = shown if wide else [c for c in shown if c is not SMALLER]
    found = [
        Block("Schemes: packed weights, float activations", first, shown),
        Block("With 8-bit activations (_A8)", a8, narrower),
        Block("FP32 again, and bfloat16: the noise floor", floor, narrower),
    ]
    return [block for block in found if block.rows]


def plain(row: Row) -> dict[str, Any]:
    """A row's figures under names that say their units."""
    found: dict[str, Any] = {
        "scheme": row.name,
        "kind": row.kind.value,
        "status": row.status.value,
        "reason": row.reason,
        "activations": "int8" if row.config.quantize_activations else "float",
    }
    named: dict[str, Callable[[Row], float | None]] = {
        "model_bytes": MB.value,
        "times_smaller": SMALLER.value,
        "forward_ms": MS.value,
        "speedup": SPEEDUP.value,
        "speedup_low": lambda row: row.timed.speedup_low,
        "speedup_high": lambda row: row.timed.speedup_high,
        "error": ERROR.value,
        "auc_30_against_fp32": lambda row: (row.task.fp32 or {}).get("auc_30"),
        "depth_abs_rel_against_fp32": lambda row: (row.task.fp32 or {}).get("depth_abs_rel"),
        "auc_30": AUC.value,
        "depth_abs_rel": ABS_REL.value,
    }
    return found | {key: value(row) if row.ok else None for key, value in named.items()}


def withheld(row: Row) -> str | None:
    """In a word, why a row has no speedup."""
    return {
        Withheld.ONCE: "once",
        Withheld.SPREAD: "unsure",
        Withheld.BUSY: "busy",
        None: None,
    }[row.timed.speedup_withheld]
