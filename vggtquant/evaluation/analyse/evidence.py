# SPDX-License-Identifier: Apache-2.0
"""What speaks for and against a report's figures: FP32's own uncertainty, and the times' spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# Passes that differ by more than this share of their median were disturbed by something else.
WIDE_SPREAD = 0.2

FLOOR_RULE = (
    "A reference row is FP32 itself under other circumstances. A scheme's error that is no larger "
    "is below what FP32's own outputs vary by, and is no finding; errors are compared as a whole "
    "and output by output (relative_l2, mean over scenes)."
)
SPREAD_RULE = (
    f"The interquartile range of a row's times is more than {100 * WIDE_SPREAD:g} % of the median."
)


def noise_floor(rows: Sequence[Row]) -> Row:
    """The references' errors, and each scheme's errors that are no larger."""
    done = [row for row in rows if row["status"] == "ok" and row["error"] is not None]
    references = [row for row in done if row["kind"] == "reference"]

    def below(error: float | None, output: str | None) -> list[str]:
        return [
            reference["name"]
            for reference in references
            if error is not None
            and (floor := _error(reference, output)) is not None
            and 0 < error <= floor
        ]

    return {
        "rule": FLOOR_RULE,
        "errors": {row["name"]: row["error"] for row in references},
        "below": {
            row["name"]: {
                "error": below(row["error"], None),
                "outputs": {
                    output: names
                    for output in row["metrics"]
                    if (names := below(_error(row, output), output))
                },
            }
            for row in done
            if row["kind"] == "quantized"
        },
    }


def _error(row: Row, output: str | None) -> float | None:
    """A row's error: the whole, or that of one output."""
    value: float | None = (
        row["error"] if output is None else row["metrics"].get(output, {}).get("relative_l2")
    )
    return value


def timing(rows: Sequence[Row], threads: int) -> Row:
    """The rows whose passes spread widely, and what to do about it."""
    wide = [
        row["name"]
        for row in rows
        if row["status"] == "ok"
        and (row["time"]["forward_ms_iqr"] or 0) > WIDE_SPREAD * row["time"]["forward_ms_median"]
    ]
    places = ",".join(f"{{{core}}}" for core in range(threads)) if threads <= 8 else "cores"
    advice = (
        "Something else was running, or threads moved between cores: do not compare these times. "
        "Run again on a quiet machine with pinned threads: "
        f"OMP_NUM_THREADS={threads} OMP_PROC_BIND=close OMP_PLACES='{places}' vggtquant evaluate, "
        "or with fewer --threads than there are cores."
    )
    return {"rule": SPREAD_RULE, "wide": wide, "advice": advice if wide else None}
