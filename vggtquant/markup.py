# SPDX-License-Identifier: Apache-2.0
"""HTML tables, as a notebook shows a QTensor or a ModelReport. Jinja2 is an extra, so not used."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table as HTML; every text is escaped.

    >>> table(["bits"], [[8]])
    '<table><thead><tr><th>bits</th></tr></thead><tbody><tr><td>8</td></tr></tbody></table>'
    """
    head = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(_row("td", row) for row in rows)
    return f"<table>{head}<thead>{_row('th', headings)}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Sequence[object]) -> str:
    found = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
    return f"<tr>{found}</tr>"
