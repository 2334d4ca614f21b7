# SPDX-License-Identifier: Apache-2.0
"""Says in words and a table what changed between two documents of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs

from ..analyse.changes import Comparison, Unlike
from ..schema import Document, Row, Status
from . import columns
from .columns import Column


def conditions(found: Sequence[Unlike]) -> list[str]:
    """The differences of conditions, a line each, with what they spoil."""
    lines = []
    for one in found:
        spoils = " and ".join(one.spoils)
        lines.append(
            f"{one.what}: {_short(one.a)} -> {_short(one.b)}"
            + (f" ({spoils} not comparable)" if spoils else "")
        )
    return lines


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    words = str(value)
    return f"{words[:16]}..." if len(words) == 64 and words.isalnum() else words  # a SHA-256


def refusal(found: Comparison) -> list[str]:
    """Why nothing is shown."""
    spoiled = [name for name, good in structs.asdict(found.comparable).items() if not good]
    return [
        *conditions(found.differences),
        f"not compared: {' and '.join(spoiled)} mean nothing side by side; --force shows them all "
        "the same",
    ]


def in_words(found: Comparison, a: Document, b: Document) -> list[str]:
    """The whole comparison in lines: conditions, then a line for each main figure that changed."""
    lines = conditions(found.differences)
    for names, whose in ((found.only_in_a, "A"), (found.only_in_b, "B")):
        if names:
            lines.append(f"only in {whose}: {', '.join(names)}")
    shown = columns.main([*a.schemes, *b.schemes], wide=False)
    table: list[Sequence[str]] = [("Scheme", "figure", "A", "B", "change")]
    same = []
    for name, change in found.schemes.items():
        one, two = a.row(name), b.row(name)
        assert one is not None and two is not None
        if change.status != [Status.OK, Status.OK]:
            if one.status is not two.status:
                table.append((name, "status", one.status.value, two.status.value, ""))
            continue
        before = len(table)
        for column in shown:
            line = _line(column, one, two, found, change.time_beyond_spread)
            if line:
                table.append((name if len(table) == before else "", column.heading, *line))
        if len(table) == before:
            same.append(name)
    if len(table) > 1:
        lines += ["", *_aligned(table), ""]
    if same:
        lines.append(f"no difference in these figures: {', '.join(same)}")
    counts = [len(change.changes) for change in found.schemes.values()]
    lines.append(
        f"{sum(counts)} figures in {len(counts)} schemes differ, all of them in --json; "
        "ms: median ± interquartile range"
    )
    return lines


def _line(
    column: Column, a: Row, b: Row, found: Comparison, apart: bool | None
) -> tuple[str, str, str] | None:
    """A figure before and after, and its change; None where it reads the same."""
    one, two = column.value(a), column.value(b)
    ms = column is columns.MS
    if one == two or (column.cell(a) == column.cell(b) and not ms):
        return None
    cells = [column.cell(a), column.cell(b)]
    if ms:
        spreads = (row.timed.forward_ms_iqr for row in (a, b))
        cells = [
            cell if spread is None else f"{cell} ± {spread:.1f}"
            for cell, spread in zip(cells, spreads, strict=True)
        ]
    if not (found.comparable.times if column.timed else found.comparable.scores):
        return cells[0], cells[1], "not comparable"
    words = f"{100 * (two / one - 1):+.1f} %" if one and two is not None else ""
    if ms and apart is False:
        words += ", within the spread"
    elif ms and apart is None:
        words += ", spread unknown"
    return cells[0], cells[1], words


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
