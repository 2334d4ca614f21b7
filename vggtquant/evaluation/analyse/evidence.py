# SPDX-License-Identifier: Apache-2.0
"""What speaks for and against a report's errors: FP32's own uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

from ..measure import variants
from ..schema import Below, Kind, NoiseFloor, Recheck, Row

FLOOR_RULE = (
    "A reference row is FP32 itself under other circumstances. A scheme's error that is no larger "
    "is below what FP32's own outputs vary by, and is no finding; errors are compared as a whole "
    "and output by output (relative_l2, mean over scenes)."
)


def noise_floor(rows: Sequence[Row]) -> NoiseFloor:
    """The references' errors, and each scheme's errors that are no larger."""
    done = [row for row in rows if row.ok and row.error is not None]
    references = [row for row in done if row.kind is Kind.REFERENCE]

    def below(error: float | None, output: str | None) -> list[str]:
        floors = {reference.name: _error(reference, output) for reference in references}
        return [
            name
            for name, floor in floors.items()
            if error is not None and floor is not None and 0 < error <= floor
        ]

    def of(row: Row) -> Below:
        by_output = {output: below(_error(row, output), output) for output in row.metrics}
        return Below(
            error=below(row.error, None),
            outputs={output: names for output, names in by_output.items() if names},
        )

    return NoiseFloor(
        rule=FLOOR_RULE,
        errors={row.name: row.error for row in references if row.error is not None},
        below={row.name: of(row) for row in done if row.kind is Kind.QUANTIZED},
    )


def _error(row: Row, output: str | None) -> float | None:
    """A row's error: the whole, or that of one output."""
    if output is None:
        return row.error
    return row.metrics[output].relative_l2 if output in row.metrics else None


def recheck(rows: Sequence[Row]) -> Recheck | None:
    """FP32 once more after all schemes: the same bits, and how far its time drifted."""
    again = next((row for row in rows if row.name == variants.REPEAT), None)
    if again is None or not again.ok or again.outputs_equal_baseline is None:
        return None
    first, last = rows[0].timed.forward_ms_median, again.timed.forward_ms_median
    return Recheck(
        outputs_equal_first_run=again.outputs_equal_baseline,
        forward_ms=last,
        time_drift_percent=100 * (last / first - 1),
    )
