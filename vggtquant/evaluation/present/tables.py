# SPDX-License-Identifier: Apache-2.0
"""Tables as values, which the text report and the page draw, each in its own way."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

WIDTH = 100
"""Columns of the text report; the terminal's tables fit into NARROW."""
NARROW = 80


@dataclass
class Table:
    """Headings and rows; the first column is a name, the others are figures."""

    headings: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    title: str | None = None
    marked: set[str] = field(default_factory=set)
    """Names of rows that stand out."""
    bad: set[str] = field(default_factory=set)
    """Names of rows that failed or were not run."""

    def add(self, *cells: str) -> None:
        """One row more."""
        self.rows.append(cells)

    def rich(self) -> RichTable:
        """For a terminal: a name may be broken, a figure never."""
        made = RichTable(
            box=SIMPLE_HEAD,
            title=self.title,
            title_justify="left",
            show_edge=False,
            pad_edge=False,
            padding=0,
        )
        for index, heading in enumerate(self.headings):
            first = index == 0
            made.add_column(
                heading,
                justify="left" if first else "right",
                no_wrap=not first,
                overflow="fold",
            )
        for name, *cells in self.rows:
            style = "bold" if name in self.marked else "red" if name in self.bad else ""
            made.add_row(Text(name, style=style), *cells)
        return made


def rendered(parts: Sequence[RenderableType | Table], width: int, *, colour: bool = False) -> str:
    """Tables and lines as text, the same wherever it is asked for: in Jupyter, too."""
    file = io.StringIO()
    out = Console(
        file=file,
        width=width,
        force_terminal=colour,
        force_jupyter=False,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        out.print(part.rich() if isinstance(part, Table) else part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
