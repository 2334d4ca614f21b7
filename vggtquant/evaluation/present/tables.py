# SPDX-License-Identifier: Apache-2.0
"""Tables of the text report."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table


def new_table(headings: Iterable[str], title: str | None = None) -> Table:
    """An empty table: the first column to the left, figures to the right."""
    made = Table(
        box=SIMPLE_HEAD,
        title=title,
        title_justify="left",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    return made


def scaled(value: float | None, factor: float, form: str) -> str:
    """A figure times a factor, as written by `form`; a dash for None.

    >>> scaled(0.125, 100, ".1f"), scaled(None, 1, ".1f")
    ('12.5', '-')
    """
    return "-" if value is None else format(factor * value, form)


def signed(value: float | None, digits: int) -> str:
    """A difference with its sign; what rounds to zero has a plus, and a dash stands for None.

    >>> signed(-0.00001, 4), signed(-0.2, 1), signed(None, 4)
    ('+0.0000', '-0.2', '-')
    """
    return "-" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"
