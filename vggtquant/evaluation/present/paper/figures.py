# SPDX-License-Identifier: Apache-2.0
"""The figures of an experiment report, drawn from its document, and any figure as files.

Each figure is an SVG, a PDF and a PNG of 300 dpi. Those that need the model:
evaluation/model_figures.py.
"""

from __future__ import annotations

import fnmatch
import io
import tomllib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from ....errors import UserError
from ...schema import Document, Kind, Row
from .. import charts
from . import content
from .blocks import Drawing

CHARTS = ("size", "time", "compression", "speedup", "error", "tradeoff")
"""The charts that every document has; the names of charts.CHARTS."""

_SQUEEZED = 6.0  # the largest bar over the median one from which on bars are on a log scale
_DPI = 300
# Canvas and metadata of each format. Figure.savefig draws each figure twice, once for a layout that
# is there already.
_CANVASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "svg": (FigureCanvasSVG, {"Date": None, "Creator": None}),
    "pdf": (FigureCanvasPdf, {"CreationDate": None, "Creator": None, "Producer": None}),
    "png": (FigureCanvasAgg, {"Software": "vggtquant"}),
}
CHARTS = ("size", "time", "compression", "speedup", "error", "tradeoff")
"""The charts that every document has; the names of charts.CHARTS."""

_SQUEEZED = 6.0  # the largest bar over the median one from which on bars are on a log scale
_DPI = 300


def drawings(document: Document) -> list[Drawing]:
    """The figures that a report shows: the charts, the SQNR by layer, the metrics by output."""
    found = [Drawing(name, partial(_chart, document, name), f"figure_{name}") for name in CHARTS]
    if _noise(document):
        found.append(Drawing("sqnr", partial(_sqnr, document), "figure_sqnr"))
    for output in content.outputs(document):
        draw = partial(_metrics, document, output)
        found.append(Drawing(f"metrics_{output}", draw, "figure_metrics", {"output": output}))
    return found


def single(document: Document) -> list[Drawing]:
    """One figure for each metric and output, drawn when --figures names it."""
    return [
        Drawing(
            f"metric_{output}_{name}",
            partial(_metric, document, output, name),
            "figure_metric",
            {"output": output, "metric": name},
        )
        for output in content.outputs(document)
        for name in content.EIGHT
    ]


def chosen(document: Document, patterns: Sequence[str] | None) -> list[Drawing]:
    """The figures whose names match one of the patterns; None: those that a report shows.

    Raises UserError for a pattern that matches none.
    """
    usual = drawings(document)
    if patterns is None:
        return usual
    known = {one.name: one for one in [*usual, *single(document)]}
    names: list[str] = []
    for pattern in patterns:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            wanted = ", ".join(one.name for one in usual)
            raise UserError(f"no figure {pattern!r}; wanted {wanted}, or metric_OUTPUT_METRIC")
        names += matching
    return [known[name] for name in dict.fromkeys(names)]


# ---- files ---------------------------------------------------------------------------------------


def files(
    document: Document, found: Sequence[Drawing], language: str
) -> Iterator[tuple[str, bytes]]:
    """File name and content of each figure in each format; labels are English without a font."""
    chinese = language == "zh" and charts.chinese_font() is not None
    with charts.drawing(document, chinese=chinese, **{"pdf.fonttype": 42}):
        for one in found:
            figure = one.draw()
            if chinese:
                _translate(figure)
            figure.set_dpi(_DPI)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # placed once, for all formats
            for form, (canvas, metadata) in _CANVASES.items():
                file = io.BytesIO()
                figure.set_dpi(_DPI)  # those of SVG and PDF leave another
                getattr(canvas(figure), f"print_{form}")(file, metadata=metadata)
                yield f"{one.name}.{form}", file.getvalue()


# ---- charts --------------------------------------------------------------------------------------


def _chart(document: Document, name: str) -> Figure:
    figure = charts.figure(document, name)
    if name in ("time", "size"):
        _stretch(figure)
    return figure


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


# ---- metrics -------------------------------------------------------------------------------------


def _rows(document: Document) -> list[Row]:
    """Rows of the charts of metrics, without float references far below every scheme."""
    errors = {row.name: row.error for row in document.finished() if row.error is not None}
    references = [row.name for row in document.schemes if row.kind is Kind.REFERENCE]
    near = charts.beside_others(errors, references)
    return [
        row
        for row in document.schemes
        if row.kind is not Kind.BASELINE and (row.name in near or row.name not in references)
    ]


def _metrics(document: Document, output: str) -> Figure:
    """The eight metrics of an output, a panel each, with the schemes in the same order."""
    rows = _rows(document)
    # As wide and as high as a page, so that a report does not shrink the letters.
    figure = charts.blank(7.2, min(9.4, 0.8 + 4 * (0.4 + 0.12 * max(4, len(rows)))))
    axes = list(figure.subplots(4, 2, sharey=True).flat)
    _named(axes[0], rows)
    for axis, name in zip(axes, content.EIGHT, strict=True):
        _panel(axis, document, rows, output, name)
    return figure


def _metric(document: Document, output: str, name: str) -> Figure:
    """One metric of one output."""
    rows = _rows(document)
    figure = charts.blank(7.2, 1.1 + 0.24 * max(4, len(rows)))
    axis = figure.subplots()
    _named(axis, rows)
    _panel(axis, document, rows, output, name)
    return figure


def _named(axis: Axes, rows: Sequence[Row]) -> None:
    """The names of the rows, of an axis or of all that share it."""
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), [charts.label(row.name) for row in rows])


def _panel(axis: Axes, document: Document, rows: Sequence[Row], output: str, name: str) -> None:
    units = {one.name: one.unit for one in document.metrics}
    axis.tick_params(axis="y", length=0, labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{name} ({units[name]})" if units.get(name) else name, fontsize=9)
    axis.grid(linewidth=0.4, color="#dddddd")
    axis.set_axisbelow(True)
    by_kind: dict[str, list[tuple[float, int]]] = {}
    for place, row in enumerate(rows):
        found = row.metrics.get(output) if row.ok else None
        value = getattr(found, name) if found else None
        if value is not None:
            by_kind.setdefault(charts.kind(row), []).append((value, place))
    for kind, points in by_kind.items():
        look = charts.LOOKS[kind]
        axis.plot(
            *zip(*points, strict=True), marker=look.marker, color=look.face,
            markeredgecolor="black", markeredgewidth=0.5, markersize=6, linestyle="",
        )  # fmt: skip
    seen = [value for points in by_kind.values() for value, _ in points]
    positive = [value for value in seen if value > 0]
    if positive and len(positive) == len(seen) and max(seen) > 100 * min(seen):
        axis.set_xscale("log")
    if not seen:
        axis.set_xticks([])
        axis.text(0.5, 0.5, "-", transform=axis.transAxes, ha="center")
    elif axis.get_xscale() == "linear":
        axis.locator_params(axis="x", nbins=3)
        axis.ticklabel_format(axis="x", useOffset=False)


# ---- layers --------------------------------------------------------------------------------------


def _noise(document: Document) -> dict[str, dict[str, float]]:
    """SQNR by Linear layer of each scheme; of schemes with the same weight codes, the first."""
    rows = [row for row in document.schemes if row.ok and row.layers]
    common = (
        set.intersection(*({one.name for one in row.layers} for row in rows)) if rows else set()
    )
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        own = {
            one.name: one.sqnr_db
            for one in row.layers
            if one.name in common and one.sqnr_db is not None
        }
        if own and own not in found.values():
            found[row.name] = own
    return found


def _sqnr(document: Document) -> Figure:
    """A line a scheme over the layers, in the order of the model."""
    noise = _noise(document)
    order = list(dict.fromkeys(name for own in noise.values() for name in own))
    place = {name: i for i, name in enumerate(order)}
    figure = charts.blank(9.6, 4.8)
    axis = figure.subplots()
    for i, (scheme, own) in enumerate(noise.items()):
        axis.plot(
            [place[name] for name in own], list(own.values()),
            label=charts.label(scheme), linewidth=1,
            color=charts.OUTPUT_COLOURS[i % len(charts.OUTPUT_COLOURS)],
            marker=charts.OUTPUT_MARKERS[i % len(charts.OUTPUT_MARKERS)], markersize=3,
        )  # fmt: skip
    groups = [".".join(name.split(".")[:2]) for name in order]
    ticks: list[int] = []
    for i in range(len(groups)):
        far = not ticks or i - ticks[-1] >= len(order) / 25  # so that no names overlap
        if far and (i == 0 or groups[i - 1] != groups[i]):
            ticks.append(i)
    axis.set_xticks(ticks, [groups[i] for i in ticks], rotation=30, ha="right", fontsize=7)
    axis.grid(axis="both", linewidth=0.4, color="#dddddd")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylabel("SQNR of the weights (dB)")
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    return figure


# ---- Chinese -------------------------------------------------------------------------------------


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
