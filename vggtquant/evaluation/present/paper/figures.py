# SPDX-License-Identifier: Apache-2.0
"""The figures of an experiment report, one a file: SVG and PDF, and PNG at 300 dpi."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from ...schema import Document, Kind
from .. import charts, labels
from . import content

FORMATS = ("svg", "pdf", "png")
NAMES = ("size", "time", "compression", "speedup", "error", "tradeoff")
"""Of the charts beside the metrics of each output."""

CHINESE = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "Microsoft YaHei",
    "PingFang SC",
    "SimHei",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Noto Sans CJK JP",
)
"""Fonts with simplified Chinese characters, the first that is installed is used."""

_CHINESE_FILES = "cjk|sourcehan|msyh|pingfang|simhei|wqy"
_SQUEEZED = 6.0  # the largest bar over the median one from which on bars are on a log scale
_META: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": "vggtquant"},
}


def chinese_font() -> str | None:
    """The name of an installed font with Chinese characters; None without one."""
    for path in font_manager.findSystemFonts():  # matplotlib's own list may be older than a font
        if re.search(_CHINESE_FILES, Path(path).name.lower()):
            font_manager.fontManager.addfont(path)
    there = set(font_manager.get_font_names())
    return next((name for name in CHINESE if name in there), None)


def names(document: Document) -> list[str]:
    """The figures that a document has."""
    return [*NAMES, *(f"metrics_{output}" for output in content.outputs(document))]


def files(document: Document, language: str) -> Iterator[tuple[str, bytes]]:
    """File name and content of each figure in each format; labels are English without a font."""
    font = chinese_font() if language == "zh" else None
    families = ["DejaVu Sans", font] if font else ["DejaVu Sans"]
    rc: Any = charts.RC | {"font.family": families, "axes.unicode_minus": False, "pdf.fonttype": 42}
    with matplotlib.rc_context(rc), _no_words_on_weights():
        for name in names(document):
            figure = _figure(document, name)
            if font:
                _translate(figure)
            figure.set_dpi(300)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # placed once, for all formats
            for form in FORMATS:
                file = io.BytesIO()
                figure.savefig(file, format=form, dpi=300, metadata=_META[form])
                yield f"{name}.{form}", file.getvalue()


@contextlib.contextmanager
def _no_words_on_weights() -> Iterator[None]:
    """Some Chinese fonts have one weight, of which matplotlib would tell at each text."""
    log = logging.getLogger("matplotlib.font_manager")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _figure(document: Document, name: str) -> Figure:
    kind, _, output = name.partition("_")
    if kind == "metrics":
        return _metrics(document, output)
    figure = charts.figure(document, name)
    if name == "tradeoff":
        _name_points(figure, document)
    elif name in ("time", "size"):
        _stretch(figure)
    return figure


def _name_points(figure: Figure, document: Document) -> None:
    """The names of the numbered points at the right, since the figure stands alone."""
    figure.axes[0].set_xlabel("FP32 bytes / bytes, whole model (x); numbers: legend")
    words = "\n".join(f"{i}  {row.name}" for i, row in enumerate(document.schemes, 1))
    figure.set_size_inches(9.6, max(4.6, 1.0 + 0.17 * len(document.schemes)))
    figure.legend(
        handles=[Line2D([], [], linestyle="")],
        labels=[words],
        loc="outside right center",
        fontsize=8,
        frameon=False,
        handlelength=0,
    )


def _stretch(figure: Figure) -> None:
    """A logarithmic axis where one bar would squeeze all the others."""
    axis = figure.axes[0]
    widths = sorted(bar.get_width() for bar in axis.patches if hasattr(bar, "get_width"))
    widths = [width for width in widths if width > 0]
    if not widths or widths[-1] < _SQUEEZED * widths[len(widths) // 2]:
        return
    axis.set_xscale("log")
    axis.set_xlim(widths[0] / 2, 2 * widths[-1])
    axis.set_title("log scale", fontsize=8, loc="right")


def _metrics(document: Document, output: str) -> Figure:
    """The eight metrics of an output, a panel each, with the schemes in the same order.

    Float references far below every scheme are left out, as in the chart of the trade-off.
    """
    errors = {row.name: row.error for row in document.finished() if row.error is not None}
    references = [row.name for row in document.schemes if row.kind is Kind.REFERENCE]
    shown = labels.beside_others(errors, references)
    rows = [
        row
        for row in document.schemes
        if row.kind is not Kind.BASELINE and (row.name in shown or row.name not in references)
    ]
    figure = Figure(figsize=(11.0, 2.2 + 0.42 * max(4, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.1)
    axes = figure.subplots(2, 4, sharey=True)
    units = {one.name: one.unit for one in document.metrics}
    for axis, name in zip(axes.flat, content.EIGHT, strict=True):
        charts.schemes_axis(axis, rows)
        axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7.5)
        axis.tick_params(axis="x", labelsize=7.5)
        axis.set_xlabel(f"{name} ({units[name]})" if units.get(name) else name, fontsize=9)
        axis.grid(linewidth=0.4, color="#dddddd")
        axis.set_axisbelow(True)
        seen = []
        for place, row in enumerate(rows):
            found = row.metrics.get(output) if row.ok else None
            value = getattr(found, name) if found else None
            if value is None:
                continue
            seen.append(value)
            look = charts.LOOKS[charts.kind(row)]
            axis.plot(
                value, place, marker=look.marker, color=look.face, markeredgecolor="black",
                markeredgewidth=0.5, markersize=6, linestyle="",
            )  # fmt: skip
        positive = [value for value in seen if value > 0]
        if positive and len(positive) == len(seen) and max(seen) > 100 * min(seen):
            axis.set_xscale("log")
        if not seen:
            axis.set_xticks([])
            axis.text(0.5, 0.5, "-", transform=axis.transAxes, ha="center")
        elif axis.get_xscale() == "linear":
            axis.locator_params(axis="x", nbins=3)
            axis.ticklabel_format(axis="x", useOffset=False)
    return figure


def words() -> dict[str, str]:
    """The words of figures and their Chinese; a key may be the beginning of what stands there."""
    file = Path(__file__).parent / "phrases" / "figures.zh.toml"
    found: dict[str, str] = tomllib.loads(file.read_text("utf-8"))
    return found


def _translate(figure: Figure) -> None:
    """Puts Chinese in the place of each word of `words`; names of schemes and numbers stay."""
    table = words()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        seen = text.get_text()
        if seen in table:
            text.set_text(table[seen])
            continue
        begin = next((key for key in table if key.endswith(" ") and seen.startswith(key)), None)
        if begin:
            text.set_text(table[begin] + seen.removeprefix(begin))
