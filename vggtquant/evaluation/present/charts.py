# SPDX-License-Identifier: Apache-2.0
"""Draws the charts of a document: as one PNG that survives a grey printer, and one by one as SVG.

Kinds of schemes differ in lightness and hatching, not in hue alone (Okabe and Ito's colours);
every axis has its unit.

A new chart is a row of CHARTS. The first six are those of the PNG. The page names each chart in
page/sections/charts.html. The paper has its own list and captions: CHARTS in paper/figures.py,
`figure_<name>` in paper/phrases.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from ..schema import Difference, Document, Kind, Row
from . import columns
from .columns import Column
from .conclusions import TOLD, Told


class Look(NamedTuple):
    """How a kind of row is drawn."""

    face: str
    hatch: str
    marker: str
    words: str


LOOKS = {
    "baseline": Look("#222222", "", "s", "FP32 reference"),
    "reference": Look("#c0c0c0", "", "D", "float references (FP32 again, bfloat16)"),
    "weights": Look("#0072b2", "", "o", "packed weights, float activations"),
    "a8": Look("#f0c77c", "////", "^", "packed weights, 8-bit activations (A8)"),
}
_WITHHELD = "#bbbbbb"
_PATCH = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind words on a grid
_NAME_POINTS = 7.5  # font size of the names in the chart of the trade-off
_DECADES = 5  # that the axis of errors shows, from the largest down
OUTPUT_MARKERS = "osD^vP*X<>"
OUTPUT_COLOURS = ("#000000", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7")
# No date, and names of elements that do not change: the same document gives the same bytes.
RC: Any = {"svg.hashsalt": "vggtquant", "svg.fonttype": "path", "axes.unicode_minus": False}
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


def chinese_font() -> str | None:
    """The name of an installed font with Chinese characters; None without one."""
    for path in font_manager.findSystemFonts():  # matplotlib's own list may be older than a font
        if re.search(_CHINESE_FILES, Path(path).name.lower()):
            font_manager.fontManager.addfont(path)
    there = set(font_manager.get_font_names())
    return next((name for name in CHINESE if name in there), None)


@contextlib.contextmanager
def drawing(document: Document, *, chinese: bool = False, **more: Any) -> Iterator[None]:
    """Within it, figures of the document are drawn alike wherever; more: rcParams.

    A Chinese font is taken where one is there and the labels, or a name, need it. What no font
    has is drawn as an empty box, and matplotlib does not tell of each.
    """
    names = [document.model.name, *(row.name for row in document.schemes)]
    wanted = chinese or not all(map(str.isascii, names))
    font = chinese_font() if wanted else None
    families = ["DejaVu Sans", font] if font else ["DejaVu Sans"]
    log = logging.getLogger("matplotlib.font_manager")
    before = log.level
    with matplotlib.rc_context(RC | {"font.family": families} | more), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        log.setLevel(logging.ERROR)  # some Chinese fonts have one weight: a line for each text
        try:
            yield
        finally:
            log.setLevel(before)


def kind(row: Row) -> str:
    """A key of LOOKS: the kind of a row, and for quantized ones what they multiply."""
    if row.kind is not Kind.QUANTIZED:
        return row.kind.value
    return "a8" if row.config.quantize_activations else "weights"


Draw = Callable[[Axes, Document], None]


@dataclass(frozen=True)
class Chart:
    """A chart: how it is drawn onto axes, and how high it is beside the others for its rows."""

    title: str
    draw: Draw
    by_row: bool = True


def png(document: Document) -> bytes:
    """The PNG of a document, with its six charts."""
    with drawing(document):
        figure = _six(document)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": "vggtquant"})
    return file.getvalue()


def _six(document: Document) -> Figure:
    rows, data, env = document.schemes, document.data, document.environment
    figure = blank(16.5, 4.6 + 0.58 * max(6, len(rows)), dpi=130)
    scene = data.scenes[0]
    figure.suptitle(
        f"{label(document.model.name, 80)} on {len(data.scenes)} x {scene.frames} pictures "
        f"({data.description}, {scene.width_px} x {scene.height_px} px) · "
        f"{env.processor}\n"
        f"{document.timing.verdict}",
        fontsize=12,
    )
    figure.legend(
        handles=[
            Patch(fc=look.face, hatch=look.hatch, ec="black", lw=0.6, label=look.words)
            for look in LOOKS.values()
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    for index, chart in enumerate(list(CHARTS.values())[:6]):
        axis = figure.add_subplot(2, 3, index + 1)
        chart.draw(axis, document)
        axis.set_title(chart.title, fontweight="bold")
        if chart.by_row and index % 3:  # the names stand at the left
            axis.set_yticklabels([str(number) for number in range(1, len(rows) + 1)])
    return figure


def blank(width: float, height: float, dpi: int = 100) -> Figure:
    """An empty figure of that size in inches."""
    made = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(made)
    return made


def figure(document: Document, name: str) -> Figure:
    """One of CHARTS, or of the differences in TOLD, as a figure of its own."""
    chart = CHARTS[name]
    made = blank(*(7.2, 1.5 + 0.27 * len(document.schemes)) if chart.by_row else (9.6, 5.6))
    chart.draw(made.subplots(), document)
    return made


def svg(document: Document, name: str) -> str:
    """The same as an SVG element."""
    with drawing(document):
        file = io.StringIO()
        figure(document, name).savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    found = file.getvalue()
    return found[found.index("<svg") :]


# ---- a bar a scheme ------------------------------------------------------------------------------


def label(name: str, most: int = 40) -> str:
    """A name in a chart: shortened in its middle where it would squeeze the chart, and no formula.

    most: characters, of which the names of all our schemes need 30.

    >>> label("INT4_Group_64"), len(label(60 * "x")), label("$a$")
    ('INT4_Group_64', 40, '\\\\$a\\\\$')
    """
    half = most // 2
    short = name if len(name) <= most else f"{name[: half - 1]}…{name[-half:]}"
    return short.replace("$", r"\$")


def schemes_axis(axis: Axes, rows: Sequence[Row]) -> None:
    """Schemes from top to bottom, numbered, so that charts beside each other share their rows."""
    axis.set_ylim(len(rows) - 0.4, -0.6)
    names = [f"{label(row.name)}  {number}" for number, row in enumerate(rows, 1)]
    axis.set_yticks(range(len(rows)), names, fontsize=8.5)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _absent(axis: Axes, place: int, words: str) -> None:
    """Why a row has no bar, at the left edge of the chart."""
    axis.text(
        0.01, place, words, transform=axis.get_yaxis_transform(), va="center", fontsize=8,
        style="italic", bbox=_PATCH,
    )  # fmt: skip


def _no_value(row: Row, column: Column) -> str | None:
    """In a word, why a row has no bar."""
    if not row.ok:
        return row.status.value
    if column.timed and row.timed.speedup is None:
        return columns.withheld(row)
    return None


def _spread(row: Row, column: Column) -> tuple[float, float]:
    """How far the quartiles reach below and above the value."""
    time = row.timed
    if column is columns.MS:
        half = (time.forward_ms_iqr or 0.0) / 2
        return half, half
    if column is columns.SPEEDUP and time.speedup is not None:
        low, high = time.speedup_low, time.speedup_high
        if low is not None and high is not None:
            return max(0.0, time.speedup - low), max(0.0, high - time.speedup)
    return 0.0, 0.0


def _bars(column: Column, unit: str, *, scale: float = 1.0, reference: float | None = None) -> Draw:
    """A horizontal bar a scheme, with its value behind it; a withheld one is a grey range."""

    def draw(axis: Axes, document: Document) -> None:
        rows = document.schemes
        schemes_axis(axis, rows)
        axis.set_xlabel(unit)
        ends = [0.0]
        for place, row in enumerate(rows):
            ends.append(_bar(axis, place, row))
        longest = max(ends) or 1.0
        axis.set_xlim(0, 1.2 * longest)
        if reference is not None:
            axis.axvline(reference, color="black", linewidth=0.8, linestyle=":", zorder=0)

    def _bar(axis: Axes, place: int, row: Row) -> float:
        """Draws a row; returns where it ends."""
        why = _no_value(row, column)
        if why is not None:
            return _withheld(axis, place, row, why)
        value = column.value(row)
        if value is None:
            _absent(axis, place, "-")
            return 0.0
        value *= scale
        look = LOOKS[kind(row)]
        low, high = _spread(row, column)
        axis.barh(
            place, value, height=0.72, color=look.face, hatch=look.hatch, edgecolor="black",
            linewidth=0.6, xerr=[[low], [high]] if low or high else None, capsize=2,
        )  # fmt: skip
        axis.annotate(
            column.cell(row), (value + high, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
        return value + high

    def _withheld(axis: Axes, place: int, row: Row, why: str) -> float:
        low = row.timed.speedup_low if row.ok else None
        high = row.timed.speedup_high if row.ok else None
        if column is not columns.SPEEDUP or low is None or high is None:
            _absent(axis, place, why)
            return 0.0
        axis.barh(place, high - low, left=low, height=0.5, color=_WITHHELD, linewidth=0)
        axis.annotate(
            why, (high, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
            style="italic", annotation_clip=True,
        )  # fmt: skip
        return min(high, 4.0)

    return draw


# ---- errors --------------------------------------------------------------------------------------


def _log_axis(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.grid(axis="y", linewidth=0.4, color="#cccccc")
    axis.set_axisbelow(True)


def _mae(axis: Axes, document: Document) -> None:
    """MAE of every output, since no single one stands for the model."""
    rows = document.schemes
    schemes_axis(axis, rows)
    axis.set_xlabel("MAE against FP32, each output in its own unit (log scale)")
    _log_axis(axis)
    names = list(rows[0].metrics)
    found = {
        (place, name): mae
        for place, row in enumerate(rows)
        if row.ok and row.kind is not Kind.BASELINE
        for name in names
        if name in row.metrics and (mae := row.metrics[name].mae)
    }
    least = max(found.values(), default=1.0) / 10**_DECADES
    seen = False
    for index, name in enumerate(names):
        own = {place: mae for (place, output), mae in found.items() if output == name}
        points = [(mae, place) for place, mae in own.items() if mae >= least]
        if points:
            seen = True
            axis.plot(
                *zip(*points, strict=True), linestyle="", label=name, markersize=6,
                marker=OUTPUT_MARKERS[index % len(OUTPUT_MARKERS)], markeredgecolor="black",
                color=OUTPUT_COLOURS[index % len(OUTPUT_COLOURS)], markeredgewidth=0.4,
            )  # fmt: skip
    for place, row in enumerate(rows):
        if not row.ok:
            _absent(axis, place, row.status.value)
        elif words := _no_mae([found.get((place, name), 0.0) for name in names], row, least):
            _absent(axis, place, words)
    if seen:
        _legend_below(axis, *axis.get_legend_handles_labels())


def _no_mae(found: Sequence[float], row: Row, least: float) -> str | None:
    """What stands in the place of a row's points where none of them is on the axis."""
    if row.kind is Kind.BASELINE:
        return "reference: 0"
    if not any(found):
        return "0: the same bits as FP32"
    return f"less than {least:.0e}" if max(found) < least else None


def beside_others(errors: Mapping[str, float], references: Collection[str]) -> set[str]:
    """The names whose errors a logarithmic axis can show: references not far below all the others.

    FP32 with other threads differs from itself by rounding; an axis that reached down to it would
    press together what is to be compared.

    >>> sorted(beside_others({"threads": 1e-9, "bf16": 9e-4, "int8": 2e-3}, ["threads", "bf16"]))
    ['bf16', 'int8']
    """
    others = [error for name, error in errors.items() if name not in references and error > 0]
    least = min(others, default=0.0) / 10
    return {name for name, error in errors.items() if error > 0 and error >= least}


def _tradeoff(axis: Axes, document: Document) -> None:
    """Error against compression; the line joins the schemes that no other beats in both."""
    rows = document.schemes
    axis.set_xlabel("FP32 bytes / bytes, whole model (x)")
    axis.set_ylabel("error against FP32 (%, log scale)")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.4, color="#dddddd")
    axis.set_axisbelow(True)
    errors = {row.name: row.error for row in rows if row.ok and row.error}
    references = [row.name for row in rows if row.kind is Kind.REFERENCE]
    shown = beside_others(errors, references)
    points = [
        (row, columns.SMALLER.value(row) or 0.0, 100 * errors[row.name])
        for row in rows
        if row.name in shown
    ]
    if not points:
        axis.text(0.5, 0.5, "no scheme finished", transform=axis.transAxes, ha="center")
        return
    front = set(document.best.pareto_front)
    line = sorted((x, y) for row, x, y in points if row.name in front)
    axis.plot(*zip(*line, strict=True), color="black", linewidth=1, linestyle="--", zorder=1)
    intervals = False
    for row, x, y in points:
        one = document.statistics.against_fp32.get(row.name, {}).get("error")
        if one and one.low is not None and one.high is not None:
            intervals = True
            ends = [[max(0.0, y - 100 * one.low)], [max(0.0, 100 * one.high - y)]]
            axis.errorbar(x, y, yerr=ends, color="#555555", linewidth=0.7, capsize=2.5, zorder=1)
        _marker(axis, row, x, y, row.name == document.recommendation.scheme)
    axis.margins(0.12, 0.15)
    _name_points(axis, [(label(row.name), x, y) for row, x, y in points])
    handles: dict[str, dict[str, Any]] = {
        "no other is better in both": {"linestyle": "--", "linewidth": 1},
        "recommended": {"linestyle": "", "marker": "o", "markersize": 12, "fillstyle": "none"},
    }
    if intervals:
        words = f"{100 * document.statistics.confidence:g} % interval over scenes"
        handles |= {words: {"linestyle": "", "marker": "|", "markersize": 10}}
    if len(errors) > len(shown):
        handles |= {f"not shown, far below: {len(errors) - len(shown)}": {"linestyle": ""}}
    lines = [Line2D([], [], color="black", **looks) for looks in handles.values()]
    _legend_below(axis, lines, list(handles), columns=2)


def _marker(axis: Axes, row: Row, x: float, y: float, chosen: bool) -> None:
    look = LOOKS[kind(row)]
    axis.plot(
        x, y, marker=look.marker, markersize=9, color=look.face, markeredgecolor="black",
        linestyle="", zorder=2,
    )  # fmt: skip
    if chosen:
        axis.plot(
            x, y, marker="o", markersize=17, markerfacecolor="none", markeredgecolor="black",
            markeredgewidth=1.2, zorder=2,
        )  # fmt: skip


def _differences(told: Told) -> Draw:
    """A dot with its interval a scheme, about zero."""

    def draw(axis: Axes, document: Document) -> None:
        found = _against(document, told)
        rows = [row for row, _ in found]
        schemes_axis(axis, rows)
        axis.set_yticks(range(len(rows)), [label(row.name) for row in rows], fontsize=8.5)
        better = "right" if document.statistics.larger_is_better.get(told.score) else "left"
        axis.set_xlabel(f"minus FP32, {told.unit}; {better} is better")
        axis.axvline(0, color="black", linewidth=0.8, linestyle=":", zorder=0)
        for place, (row, one) in enumerate(found):
            value = told.factor * one.difference
            if one.low is not None and one.high is not None:
                low, high = told.factor * one.low, told.factor * one.high
                axis.plot([low, high], [place, place], color="#555555", linewidth=1.2, zorder=1)
            look = LOOKS[kind(row)]
            axis.plot(
                value, place, marker=look.marker, color=look.face, markeredgecolor="black",
                markersize=7, linestyle="",
            )  # fmt: skip

    return draw


def _against(document: Document, told: Told) -> list[tuple[Row, Difference]]:
    """The finished rows with a difference in that score."""
    against = document.statistics.against_fp32
    return [
        (row, against[row.name][told.score])
        for row in document.finished()
        if told.score in against.get(row.name, {})
    ]


def has_differences(document: Document, told: Told) -> bool:
    """Whether there is anything to draw."""
    return document.statistics.note is None and bool(_against(document, told))


# ---- what charts share ---------------------------------------------------------------------------


def _legend_below(
    axis: Axes, handles: Sequence[Any], names: Sequence[str], columns: int = 4
) -> None:
    """A legend under the axis label, at a distance in points, whatever the chart's height."""
    figure = axis.get_figure(root=True)
    assert isinstance(figure, Figure)
    below = axis.transAxes + ScaledTranslation(0, -40 / 72, figure.dpi_scale_trans)
    axis.legend(
        handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.0), bbox_transform=below,
        fontsize=8, ncols=columns, frameon=False, handletextpad=0.4, columnspacing=1.0,
    )  # fmt: skip


def _name_points(axis: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Writes names at the right of points, one below the other where points are close."""
    figure = axis.get_figure(root=True)
    assert isinstance(figure, Figure)
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    longest = max(_width(name) for name, _, _ in points) / 72 + 0.3  # inches
    low, high = axis.get_xlim()
    share = min(0.6, longest / (axis.bbox.width / figure.dpi))
    axis.set_xlim(low, low + (high - low) / (1 - share))
    layout.execute(figure)  # with the scales settled
    point = figure.dpi / 72
    placed = [(name, x, y, *axis.transData.transform((x, y)) / point) for name, x, y in points]
    left: list[list[Any]] = []
    for one in sorted(placed, key=lambda one: one[3]):
        if left and one[3] < max(x + 24 + _width(name) for name, _, _, x, _ in left[-1]):
            left[-1].append(one)
        else:
            left.append([one])
    for column in left:
        column.sort(key=lambda one: one[4])
        edge = max(one[3] for one in column) + 12
        for (name, x, y, at_x, at_y), height in zip(
            column, _apart([one[4] for one in column], _NAME_POINTS + 2), strict=True
        ):
            line = {"arrowstyle": "-", "linewidth": 0.4, "relpos": (0, 0.5), "shrinkB": 4}
            axis.annotate(
                name, (x, y), xytext=(edge - at_x, height - at_y), textcoords="offset points",
                ha="left", va="center", fontsize=_NAME_POINTS, arrowprops=line,
            )  # fmt: skip


def _width(name: str) -> float:
    """Of a name beside a point, in typographic points: an estimate."""
    return 0.62 * _NAME_POINTS * len(name)


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Rising heights as near to the wanted ones, in rising order, as a gap between them allows.

    >>> _apart([0.0, 0.0, 30.0], 10)
    [-5.0, 5.0, 30.0]
    """
    groups: list[tuple[float, int]] = []  # the middle and the count of heights that touch
    for height in wanted:
        groups.append((height, 1))
        while len(groups) > 1:
            (a, n), (b, m) = groups[-2:]
            if b - a >= gap * (n + m) / 2:
                break
            groups[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [middle + gap * (i - (n - 1) / 2) for middle, n in groups for i in range(n)]


CHARTS = {
    "size": Chart("Model size", _bars(columns.MB, "parameters as held (MB)", scale=1e-6)),
    "time": Chart("Inference time", _bars(columns.MS, "median time of a forward (ms)")),
    "compression": Chart(
        "Compression",
        _bars(columns.SMALLER, "FP32 bytes / bytes, whole model (x)", reference=1.0),
    ),
    "speedup": Chart(
        "Speedup",
        _bars(columns.SPEEDUP, "FP32 time / time (x); grey: a range alone", reference=1.0),
    ),
    "error": Chart("Mean absolute error", _mae),
    "tradeoff": Chart("Accuracy against compression", _tradeoff, by_row=False),
} | {told.score: Chart(told.title, _differences(told)) for told in TOLD}
"""The first six make the PNG."""
