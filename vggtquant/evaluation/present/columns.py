# SPDX-License-Identifier: Apache-2.0
"""The columns of the main table, for every report that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A figure of a row that finished: heading, where it stands, how it is written."""

    heading: str
    value: Callable[[Row], float | None]
    write: Callable[[float], str]
    more_is_better: bool = False

    def cell(self, row: Row) -> str:
        """The figure as written; a dash where there is none."""
        value = self.value(row)
        return "-" if value is None else self.write(value)


def _short(value: float, digits: int) -> str:
    """A figure without its decimals where it is large, so that every column keeps its width."""
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.0f}"


def _speedup_spread(row: Row) -> float | None:
    """Half of what the quartiles of both times leave open."""
    low, high = (row["time"][f"speedup_{end}"] for end in ("low", "high"))
    return None if low is None or high is None else (high - low) / 2


def _error(row: Row) -> float | None:
    error: float | None = row["error"]
    return error


def _truth(row: Row, score: str) -> float | None:
    value: float | None = (row["task"]["truth"] or {}).get(score)
    return value


COLUMNS = (
    Column("MB", lambda row: row["bytes"]["model_bytes"], lambda v: _short(v / 1e6, 2)),
    Column(
        "smaller", lambda row: row["bytes"]["compression_ratio_model"], lambda v: f"{v:.2f}x", True
    ),
    Column("ms", lambda row: row["time"]["forward_ms_median"], lambda v: _short(v, 1)),
    Column("±", lambda row: row["time"]["forward_ms_iqr"], lambda v: _short(v, 1)),
    Column("speedup", lambda row: row["time"]["speedup"], lambda v: f"{v:.2f}x", True),
    Column("±x", _speedup_spread, lambda v: f"{v:.2f}"),
    Column("error %", _error, lambda v: f"{100 * v:.3g}"),
)
TRUTH = (
    Column("AUC@30", lambda row: _truth(row, "auc_30"), lambda v: f"{100 * v:.1f}", True),
    Column(
        "AbsRel",
        lambda row: _truth(row, "depth_abs_rel_median"),
        lambda v: f"{100 * v:.2f}",
    ),
)


def main(rows: list[Row]) -> list[Column]:
    """The columns that these rows fill: scores against ground truth only where there is one."""
    there = [row for row in rows if row["status"] == "ok"]
    return [*COLUMNS, *(c for c in TRUTH if any(c.value(row) is not None for row in there))]
