# SPDX-License-Identifier: Apache-2.0
"""Draws the six charts of a document of results as one PNG that survives a grey printer.

Kinds of schemes differ in lightness and hatching, not in hue alone (Okabe and Ito's colours);
every axis has its unit.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from . import labels

Row = dict[str, Any]

# kind: face colour, hatch, marker, words
_LOOKS = {
    "baseline": ("#222222", "", "s", "FP32 reference"),
    "reference": ("#c0c0c0", "", "D", "float references (FP32 again, bfloat16)"),
    "weights": ("#0072b2", "", "o", "packed weights, float activations"),
    "a8": ("#f0c77c", "////", "^", "packed weights, INT8 activations (A8)"),
}
_PATCH = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind words on a grid
_MAE_DECADES = 5  # that the axis of errors shows, from the largest down
_OUTPUT_MARKERS = "osD^vP*X<>"
_OUTPUT_COLOURS = ("#000000", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7")


def _look(row: Row) -> tuple[str, str, str, str]:
    if row["kind"] != "quantized":
        return _LOOKS[row["kind"]]
    return _LOOKS["a8" if row["config"]["quantize_activations"] else "weights"]


def draw(document: dict[str, Any]) -> bytes:
    """The PNG of a document, with its six charts."""
    rows = document["schemes"]
    figure = Figure(figsize=(16.5, 4.6 + 0.58 * max(6, len(rows))), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    data, model, env = document["data"], document["model"], document["environment"]
    scene = data["scenes"][0]
    figure.suptitle(
        f"{model['name']} on {len(data['scenes'])} x {scene['frames']} pictures "
        f"({data['description']}, {scene['width_px']} x {scene['height_px']} px) · "
        f"{env['cpu']['model']}, threads: {env['threads']['torch']}, "
        f"kernels: {env['cpu']['isa_active']}",
        fontsize=12,
    )
    _bars(axes[0, 0], rows, "Model size", "parameters as held (MB)", _size, "{:.2f}")
    _bars(
        axes[0, 1], rows, "Inference time", "median time of a forward (ms)", _ms, "{:.1f}",
        spread=_quartiles,
    )  # fmt: skip
    _bars(
        axes[0, 2], rows, "Compression", "FP32 bytes / bytes, whole model (x)", _ratio, "{:.2f}",
        reference=1.0,
    )  # fmt: skip
    _bars(
        axes[1, 0], rows, "Speedup", "FP32 time / time (x)", _speedup, "{:.2f}",
        spread=_speedups, reference=1.0,
    )  # fmt: skip
    _mae(axes[1, 1], figure, rows)
    _tradeoff(axes[1, 2], figure, document)
    for axis in (*axes[:, 1], axes[0, 2]):
        axis.set_yticklabels([str(number) for number in range(1, len(rows) + 1)])
    figure.legend(
        handles=[
            Patch(facecolor=face, hatch=hatch, edgecolor="black", linewidth=0.6, label=words)
            for face, hatch, _, words in _LOOKS.values()
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    file = io.BytesIO()
    # No date in the file: the same document gives the same bytes.
    figure.savefig(file, format="png", metadata={"Software": "vggtquant"})
    return file.getvalue()


def _size(row: Row) -> float:
    return float(row["bytes"]["model_bytes"]) / 1e6


def _ms(row: Row) -> float | None:
    """None where a row was run once, without a warm-up: that is no time to be compared."""
    return None if row["time"]["speedup"] is None else float(row["time"]["forward_ms_median"])


def _ratio(row: Row) -> float:
    return float(row["bytes"]["compression_ratio_model"])


def _speedup(row: Row) -> float | None:
    speedup: float | None = row["time"]["speedup"]
    return speedup


def _speedups(row: Row) -> tuple[float, float]:
    low, high = (row["time"][f"speedup_{end}"] for end in ("low", "high"))
    if low is None or high is None:
        return 0.0, 0.0
    # The median need not lie between the means of quartiles.
    return max(0.0, row["time"]["speedup"] - low), max(0.0, high - row["time"]["speedup"])


def _quartiles(row: Row) -> tuple[float, float]:
    half = float(row["time"]["forward_ms_iqr"] or 0.0) / 2
    return half, half


def _schemes_axis(axis: Axes, rows: Sequence[Row]) -> None:
    """Schemes from top to bottom, numbered, so that charts beside each other share their rows."""
    axis.set_ylim(len(rows) - 0.4, -0.6)
    names = [f"{row['name']}  {number}" for number, row in enumerate(rows, 1)]
    axis.set_yticks(range(len(rows)), names, fontsize=8.5)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _absent(axis: Axes, place: int, words: str) -> None:
    """Why a row has no bar, at the left edge of the chart."""
    axis.text(
        0.01, place, words, transform=axis.get_yaxis_transform(), va="center", fontsize=8,
        style="italic", bbox=_PATCH,
    )  # fmt: skip


def _bars(
    axis: Axes,
    rows: Sequence[Row],
    title: str,
    unit: str,
    value: Callable[[Row], float | None],
    form: str,
    *,
    spread: Callable[[Row], tuple[float, float]] = lambda row: (0.0, 0.0),
    reference: float | None = None,
) -> None:
    """A horizontal bar a scheme, with its value behind it."""
    _schemes_axis(axis, rows)
    axis.set_title(title, fontweight="bold")
    axis.set_xlabel(unit)
    found = [value(row) if row["status"] == "ok" else None for row in rows]
    ends = [v + spread(row)[1] for v, row in zip(found, rows, strict=True) if v is not None]
    longest = max(ends, default=1.0)
    axis.set_xlim(0, 1.18 * longest)
    if reference is not None:
        axis.axvline(reference, color="black", linewidth=0.8, linestyle=":", zorder=0)
    for place, (row, width) in enumerate(zip(rows, found, strict=True)):
        if width is None:
            words = row["status"] if row["status"] != "ok" else "run once"
            _absent(axis, place, words)
            continue
        face, hatch, _, _ = _look(row)
        low, high = spread(row)
        axis.barh(
            place, width, height=0.72, color=face, hatch=hatch, edgecolor="black", linewidth=0.6,
            xerr=[[low], [high]] if low or high else None, capsize=2,
        )  # fmt: skip
        axis.text(
            width + high + 0.012 * longest, place, form.format(width), va="center", fontsize=8
        )


def _mae(axis: Axes, figure: Figure, rows: Sequence[Row]) -> None:
    """MAE of every output, since no single one stands for the model."""
    _schemes_axis(axis, rows)
    axis.set_title("Mean absolute error", fontweight="bold")
    axis.set_xlabel("MAE against FP32, each output in its own unit (log scale)")
    axis.set_xscale("log")
    axis.grid(axis="y", linewidth=0.4, color="#cccccc")
    axis.set_axisbelow(True)
    names = list(rows[0]["metrics"]) if rows else []
    found = {
        (place, name): float(row["metrics"][name]["mae"])
        for place, row in enumerate(rows)
        if row["status"] == "ok" and row["kind"] != "baseline"
        for name in names
        if row["metrics"][name]["mae"]
    }
    least = max(found.values(), default=1.0) / 10**_MAE_DECADES
    seen = False
    for index, name in enumerate(names):
        points = [
            (mae, place)
            for (place, output), mae in found.items()
            if output == name and mae >= least
        ]
        if not points:
            continue
        seen = True
        axis.plot(
            *zip(*points, strict=True),
            linestyle="",
            marker=_OUTPUT_MARKERS[index % len(_OUTPUT_MARKERS)],
            color=_OUTPUT_COLOURS[index % len(_OUTPUT_COLOURS)],
            markeredgecolor="black",
            markeredgewidth=0.4,
            markersize=6,
            label=name,
        )
    for place, row in enumerate(rows):
        if row["status"] != "ok":
            _absent(axis, place, row["status"])
        elif words := _no_mae([found.get((place, name), 0.0) for name in names], row, least):
            _absent(axis, place, words)
    if seen:
        _legend_below(axis, figure, *axis.get_legend_handles_labels())


def _no_mae(found: Sequence[float], row: Row, least: float) -> str | None:
    """What stands in the place of a row's points where none of them is on the axis."""
    if row["kind"] == "baseline":
        return "reference: 0"
    if not any(found):
        return "0: the same bits as FP32"
    return f"less than {least:.0e}" if max(found) < least else None


def _tradeoff(axis: Axes, figure: Figure, document: dict[str, Any]) -> None:
    """Error against compression; the line joins the schemes that no other beats in both."""
    rows, best = document["schemes"], document["best"]
    intervals = document["statistics"]["against_fp32"]
    axis.set_title("Accuracy against compression", fontweight="bold")
    axis.set_xlabel("FP32 bytes / bytes, whole model (x); numbers: rows beside")
    axis.set_ylabel("error against FP32 (%, log scale)")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.4, color="#dddddd")
    axis.set_axisbelow(True)
    errors = {row["name"]: row["error"] for row in rows if row["status"] == "ok" and row["error"]}
    references = [row["name"] for row in rows if row["kind"] == "reference"]
    shown = labels.beside_others(errors, references)
    points = [
        (number, row, _ratio(row), 100 * row["error"])
        for number, row in enumerate(rows, 1)
        if row["name"] in shown
    ]
    if not points:
        axis.text(0.5, 0.5, "no scheme finished", transform=axis.transAxes, ha="center")
        return
    front = set(best["pareto_front"])
    line = sorted((x, y) for _, row, x, y in points if row["name"] in front)
    axis.plot(*zip(*line, strict=True), color="black", linewidth=1, linestyle="--", zorder=1)
    for _, row, x, y in points:
        face, _, marker, _ = _look(row)
        error = intervals.get(row["name"], {}).get("error")
        if error and error["low"] is not None:
            ends = [[y - 100 * error["low"]], [100 * error["high"] - y]]
            axis.errorbar(x, y, yerr=ends, color="#555555", linewidth=0.7, capsize=2.5, zorder=1)
        axis.plot(
            x, y, marker=marker, markersize=9, color=face, markeredgecolor="black",
            linestyle="", zorder=2,
        )  # fmt: skip
        if row["name"] == document["recommendation"]["scheme"]:
            axis.plot(
                x, y, marker="o", markersize=17, markerfacecolor="none", markeredgecolor="black",
                markeredgewidth=1.2, zorder=2,
            )  # fmt: skip
    axis.margins(0.12, 0.15)
    _number_points(axis, figure, [(number, x, y) for number, _, x, y in points])
    handles: dict[str, dict[str, Any]] = {
        "no other is better in both": {"linestyle": "--", "linewidth": 1},
        "recommended": {
            "linestyle": "", "marker": "o", "markersize": 12, "fillstyle": "none",
        },
    }  # fmt: skip
    if any(entry.get("error", {}).get("low") is not None for entry in intervals.values()):
        handles[f"{100 * document['statistics']['confidence']:g} % interval over scenes"] = {
            "linestyle": "",
            "marker": "|",
            "markersize": 10,
        }
    if len(errors) > len(shown):
        handles[f"not shown, far below: {len(errors) - len(shown)}"] = {"linestyle": ""}
    lines = [Line2D([], [], color="black", **looks) for looks in handles.values()]
    _legend_below(axis, figure, lines, list(handles), columns=2)


def _legend_below(
    axis: Axes, figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int = 4
) -> None:
    """A legend under the axis label, at a distance in points, whatever the chart's height."""
    axis.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axis.transAxes + ScaledTranslation(0, -40 / 72, figure.dpi_scale_trans),
        fontsize=8,
        ncols=columns,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.0,
    )


def _number_points(axis: Axes, figure: Figure, points: Sequence[tuple[int, float, float]]) -> None:
    """Writes the points' numbers beside them."""
    figure.draw_without_rendering()  # settles the scales
    point = figure.dpi / 72  # in pixels; downwards is negative in matplotlib

    def paper(x: float, y: float) -> tuple[float, float]:
        px, py = axis.transData.transform((x, y))
        return px / point, -py / point

    def data(px: float, py: float) -> tuple[float, float]:
        x, y = axis.transData.inverted().transform((px, py))
        return x, y

    box = axis.bbox
    found = labels.place(
        [(str(number), *paper(x, y)) for number, x, y in points],
        (box.x0 / point, -box.y1 / point, box.x1 / point, -box.y0 / point),
    )
    for label in found:
        axis.annotate(
            label.text,
            data(label.at_x * point, -label.at_y * point),
            xytext=(label.x - label.at_x, label.at_y - label.y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
            arrowprops=(
                {"arrowstyle": "-", "linewidth": 0.4} if abs(label.y - label.at_y) > 18 else None
            ),
        )
