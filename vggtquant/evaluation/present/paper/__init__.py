# SPDX-License-Identifier: Apache-2.0
"""An experiment report with figures and tables as files, for a paper or to hand in.

content.py makes blocks of a document and the phrases of a language; a Jinja2 template a format (or
python-docx) sets them. Nothing is measured here.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import jinja2

from ....errors import UserError
from ....files import writable_folder, write_bytes
from ...schema import Document
from .. import charts
from . import content, figures
from .blocks import Block, Drawing, Grid, Picture
from .phrases import LANGUAGES, Phrases

FORMATS = ("md", "latex", "html", "docx")
_NAMES = {"md": "report.md", "latex": "report.tex", "html": "report.html", "docx": "report.docx"}
NO_FONT = (
    "no font with Chinese characters was found, so the labels of the figures are English; "
    "install one, such as the package fonts-noto-cjk"
)


def write(
    document: Document,
    folder: str | Path,
    *,
    form: str = "md",
    language: str = "en",
    core: bool = False,
    chosen: Sequence[str] | None = None,
    extra: Callable[[Document], Sequence[Drawing]] = lambda shown: (),
    flags: Sequence[str] = (),
    results: str = "RESULTS",
    warn: Callable[[str], None] = lambda words: None,
) -> list[Path]:
    """Writes report.*, figures/ and tables/ into a folder, made if missing; returns their paths.

    form: md, latex, html or docx, or several with commas between them, which share the figures.
    core: the eight schemes alone. chosen: names of figures, * allowed; None: all that are usual.
    extra: makes more figures of what is shown; flags: the options that stand for them. results: the
    file or folder that the command in the report names. warn: gets a line where something is not as
    asked.
    Raises UserError for an unknown format, language or figure, or without python-docx for docx.
    """
    forms = form.split(",")
    for one in forms:
        _one_of("format", one, FORMATS)
    _one_of("language", language, LANGUAGES)
    shown = content.core(document) if core else document
    phrases = Phrases(language)
    drawings = [*figures.chosen(shown, chosen), *extra(shown)]
    there = writable_folder(Path(folder).expanduser())
    for name in ("figures", "tables"):
        writable_folder(there / name)
    words = ["vggtquant", "report", results, "--format", form, "--lang", language]
    words += ["--core"] if core else []
    words += ["--figures", *chosen] if chosen is not None else []
    blocks = content.blocks(shown, phrases, drawings, shlex.join([*words, *flags]))
    if language == "zh" and charts.chinese_font() is None:
        warn(NO_FONT)
    drawn = dict(figures.files(shown, drawings, language))
    made = {f"figures/{name}": found for name, found in drawn.items()}
    grids = [block for block in blocks if isinstance(block, Grid) and block.name is not None]
    made |= {f"tables/{grid.name}.csv": _csv(grid) for grid in grids}
    title = phrases("title", model=document.model.name)
    for one in forms:
        made[_NAMES[one]] = _set(one, title, blocks, document, phrases, drawn)
    for name, found in made.items():
        write_bytes(there / name, found)
    return [there / name for name in made]


def _one_of(what: str, seen: str, wanted: tuple[str, ...]) -> None:
    if seen not in wanted:
        raise UserError(f"no {what} {seen!r}; wanted one of {', '.join(wanted)}")


def _csv(grid: Grid) -> bytes:
    """With a byte order mark, without which spreadsheets misread Chinese."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(grid.exact)
    return file.getvalue().encode("utf-8-sig")


def _set(
    form: str,
    title: str,
    blocks: list[Block],
    document: Document,
    say: Phrases,
    drawn: Mapping[str, bytes],
) -> bytes:
    """The report in one format."""
    if form != "latex":  # which numbers by itself
        blocks = list(_numbered(blocks, say))
    if form == "docx":
        from . import word

        return word.docx(title, blocks, say.language, drawn)

    def picture(name: str) -> str:
        data = base64.b64encode(drawn[f"{name}.svg"]).decode()
        return f"data:image/svg+xml;base64,{data}"

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # each format has its own filter `text`, which all text goes through
        comment_start_string="{##",  # LaTeX has {#
        comment_end_string="##}",
    )
    env.filters |= {"text": _ESCAPES[form], "kind": lambda b: type(b).__name__, "picture": picture}
    found = env.get_template(_NAMES[form]).render(
        title=title, blocks=blocks, language=say.language, date=document.environment.utc[:10]
    )
    return (found if form != "md" else _spaced(found)).encode()


def _numbered(blocks: list[Block], say: Phrases) -> Iterator[Block]:
    """The blocks, with the number of each table and figure before its caption."""
    tables, pictures = count(1), count(1)
    for block in blocks:
        if isinstance(block, Grid):
            caption = say("table_number", number=next(tables), caption=block.caption)
            yield replace(block, caption=caption)
        elif isinstance(block, Picture):
            caption = say("figure_number", number=next(pictures), caption=block.caption)
            yield replace(block, caption=caption)
        else:
            yield block


# ---- escapes -------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_\allowbreak{}",  # names of schemes are long
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "Σ": r"$\Sigma$",
    "√": r"$\surd$",
    "−": r"$-$",
    "²": r"$^2$",
    "₁₀": r"$_{10}$",
    "⁻⁸": r"$^{-8}$",
}


def _tex(text: str) -> str:
    """For LaTeX; long words without blanks, such as a SHA-256, may be broken."""
    escaped = re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found.group()], text)
    return re.sub(r"[^\W_]{33,}", _breakable, escaped)


def _breakable(word: re.Match[str]) -> str:
    text = word.group()
    if not text.isascii():
        return text
    return r"\allowbreak ".join(text[i : i + 8] for i in range(0, len(text), 8))


def _markdown(text: str) -> str:
    """For Markdown, on one line. An underscore within a word is no mark, and is left."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _spaced(text: str) -> str:
    """At most one blank line after another; the template sets more than it needs."""
    return re.sub(r"\n{3,}", "\n\n", text)


_ESCAPES: Mapping[str, Callable[[str], str]] = {
    "md": _markdown,
    "latex": _tex,
    "html": html.escape,
}
