# SPDX-License-Identifier: Apache-2.0
"""An experiment report as a Word document, by python-docx (the extra `report`)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ....errors import UserError
from .blocks import Block, Bullets, Code, Formula, Grid, Heading, Paragraph, Picture

_SMALL, _SMALLEST = 7.5, 6.5  # points, for tables of more than four columns, and of nine
_EAST_ASIAN = "SimSun"
_PAGE, _MARGIN = (8.27, 11.69), 0.75  # inches, of A4
_WIDTH = _PAGE[0] - 2 * _MARGIN
_FORMULA = 64  # characters of a formula that fit a line; a longer one has a line a part
_LONGEST = 40  # characters of a cell that count for the width of its column


def docx(title: str, blocks: list[Block], language: str, drawn: Mapping[str, bytes]) -> bytes:
    """The file's bytes. Raises UserError without python-docx."""
    try:
        from docx import Document
    except ImportError as error:
        raise UserError(
            "--format docx needs python-docx; install with: pip install 'vggtquant[report]'"
        ) from error
    made = Document()
    _paper(made)
    made.core_properties.title = title
    if language == "zh":
        _chinese(made)
    made.add_heading(title, 0)
    for block in blocks:
        _add(made, block, drawn)
    file = io.BytesIO()
    made.save(file)
    return file.getvalue()


def _paper(made: Any) -> None:
    from docx.shared import Inches

    page = made.sections[0]
    page.page_width, page.page_height = map(Inches, _PAGE)
    page.left_margin = page.right_margin = page.top_margin = page.bottom_margin = Inches(_MARGIN)


def _chinese(made: Any) -> None:
    from docx.oxml.ns import qn

    for style in made.styles:
        if getattr(style, "font", None) is not None and style.element.rPr is not None:
            style.element.rPr.get_or_add_rFonts().set(qn("w:eastAsia"), _EAST_ASIAN)


def _add(made: Any, block: Block, drawn: Mapping[str, bytes]) -> None:
    from docx.enum.text import WD_ALIGN_PARAGRAPH
    from docx.shared import Inches, Pt

    if isinstance(block, Heading):
        made.add_heading(block.text, block.level)
    elif isinstance(block, Paragraph):
        made.add_paragraph(block.text)
    elif isinstance(block, Bullets):
        for item in block.items:
            made.add_paragraph(item, style="List Bullet")
    elif isinstance(block, Formula):
        line = made.add_paragraph()
        line.alignment = WD_ALIGN_PARAGRAPH.CENTER
        plain = block.plain
        if len(plain) > _FORMULA:
            plain = plain.replace(",  ", ",\n")
        line.add_run(plain).italic = True
    elif isinstance(block, Code):
        line = made.add_paragraph()
        run = line.add_run(block.text)
        run.font.name, run.font.size = "Courier New", Pt(9)
    elif isinstance(block, Picture):
        made.add_picture(io.BytesIO(drawn[f"{block.name}.png"]), width=Inches(_WIDTH))
        made.add_paragraph(block.caption, style="Caption")
    else:
        _table(made, block)


def _table(made: Any, block: Grid) -> None:
    from docx.enum.text import WD_ALIGN_PARAGRAPH
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn
    from docx.shared import Inches, Pt

    caption = made.add_paragraph(block.caption, style="Caption")
    caption.paragraph_format.keep_with_next = True
    table = made.add_table(rows=1 + len(block.rows), cols=len(block.headings), style="Table Grid")
    table.autofit = False
    margins = OxmlElement("w:tblCellMar")
    for side in ("left", "right"):
        margin = OxmlElement(f"w:{side}")
        margin.set(qn("w:w"), "55")  # twentieths of a point
        margin.set(qn("w:type"), "dxa")
        margins.append(margin)
    table._tbl.tblPr.append(margins)
    widths = _widths(block)
    for column, inches in zip(table.columns, widths, strict=True):
        column.width = Inches(inches)
    cells = table._cells  # all at once: `cell(i, j)` counts through the table each time
    texts = [*block.headings, *(text for row in block.rows for text in row)]
    columns = len(block.headings)
    size = _SMALLEST if columns > 8 else _SMALL if columns > 4 else 9
    for place, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        cell.width = Inches(widths[place % len(widths)])
        line = cell.paragraphs[0]
        run = line.add_run(text)
        run.bold = place < len(block.headings)
        run.font.size = Pt(size)
        if block.figures and place % len(block.headings):
            line.alignment = WD_ALIGN_PARAGRAPH.RIGHT
    for number, row in enumerate(table.rows):
        kept = row._tr.get_or_add_trPr()
        kept.append(OxmlElement("w:cantSplit"))
        if number == 0:
            kept.append(OxmlElement("w:tblHeader"))  # again on each page
    made.add_paragraph()


def _widths(block: Grid) -> list[float]:
    """Inches of the columns: by the longest text of each, Chinese characters counted twice.

    >>> [round(width, 1) for width in _widths(Grid("", ("a", "b"), [("x" * 27, "y" * 7)]))]
    [5.4, 1.4]
    """
    lines = [block.headings, *block.rows]
    longest = [max(map(_length, column)) for column in zip(*lines, strict=True)]
    shares = [2.0 + min(_LONGEST, length) for length in longest]
    if block.figures:
        shares[0] *= 1.2  # capitals and underscores are wider than digits
    return [_WIDTH * share / sum(shares) for share in shares]


def _length(text: str) -> int:
    return sum(1 if ord(letter) < 0x2E80 else 2 for letter in text)
