# SPDX-License-Identifier: Apache-2.0
"""An experiment report as a Word document, by python-docx (the extra `report`)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ....errors import UserError
from .blocks import Block, Bullets, Code, Formula, Grid, Heading, Paragraph, Picture

_SMALL = 7.5  # points, for tables of more than four columns
_EAST_ASIAN = "SimSun"


def docx(title: str, blocks: list[Block], language: str, drawn: Mapping[str, bytes]) -> bytes:
    """The file's bytes. Raises UserError without python-docx."""
    try:
        from docx import Document
    except ImportError as error:
        raise UserError(
            "--format docx needs python-docx; install with: pip install 'vggtquant[report]'"
        ) from error
    made = Document()
    made.core_properties.title = title
    if language == "zh":
        _chinese(made)
    made.add_heading(title, 0)
    for block in blocks:
        _add(made, block, drawn)
    file = io.BytesIO()
    made.save(file)
    return file.getvalue()


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
        line.add_run(block.plain).italic = True
    elif isinstance(block, Code):
        line = made.add_paragraph()
        run = line.add_run(block.text)
        run.font.name, run.font.size = "Courier New", Pt(9)
    elif isinstance(block, Picture):
        made.add_picture(io.BytesIO(drawn[f"{block.name}.png"]), width=Inches(6))
        made.add_paragraph(block.caption, style="Caption")
    else:
        _table(made, block)


def _table(made: Any, block: Grid) -> None:
    from docx.enum.text import WD_ALIGN_PARAGRAPH
    from docx.shared import Pt

    made.add_paragraph(block.caption, style="Caption")
    table = made.add_table(rows=1 + len(block.rows), cols=len(block.headings), style="Table Grid")
    cells = table._cells  # all at once: `cell(i, j)` counts through the table each time
    texts = [*block.headings, *(text for row in block.rows for text in row)]
    wide = len(block.headings) > 4
    for place, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        line = cell.paragraphs[0]
        run = line.add_run(text)
        run.bold = place < len(block.headings)
        run.font.size = Pt(_SMALL if wide else 9)
        if block.figures and place % len(block.headings):
            line.alignment = WD_ALIGN_PARAGRAPH.RIGHT
    made.add_paragraph()
