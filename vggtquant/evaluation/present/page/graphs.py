# SPDX-License-Identifier: Apache-2.0
"""Charts as markup: bars and intervals that follow the page's width, and one SVG of two axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import labels
from .elements import Html, Part, breakable, tag

Row = dict[str, Any]


def look(row: Row) -> str:
    """The class that colours a row: its kind, and for quantized ones what they multiply."""
    if row["kind"] != "quantized":
        return str(row["kind"])
    return "a8" if row["config"]["quantize_activations"] else "weights"


_DECADES = 5  # of a logarithmic axis at most
LOOKS = {
    "baseline": "FP32 reference",
    "reference": "float reference",
    "weights": "packed weights, float activations",
    "a8": "packed weights, INT8 activations (A8)",
}


def legend(rows: Sequence[Row]) -> Html:
    """What the colours and hatches mean, for those that are there."""
    there = {look(row) for row in rows}
    return tag(
        "p",
        *(
            tag("span", tag("i", class_=f"swatch {name}"), f" {words}", class_="key")
            for name, words in LOOKS.items()
            if name in there
        ),
        class_="legend",
    )


@dataclass(frozen=True)
class Bar:
    """A line of a chart: a bar to `value`, with the ends of its spread where there is one."""

    name: str
    look: str
    value: float | None
    words: str  # the value as written, or why there is none
    low: float | None = None
    high: float | None = None


def bars(title: str, unit: str, lines: Sequence[Bar], *, mark: float | None = None) -> Html:
    """A horizontal bar a line, from zero; `mark` is a line across all, such as FP32's 1."""
    ends = [line.high if line.high is not None else line.value for line in lines]
    longest = max((end for end in ends if end is not None), default=1.0) or 1.0

    def place(value: float) -> str:
        return f"{100 * value / longest:.2f}%"

    def draw(line: Bar) -> Html:
        inside: list[Part] = []
        if line.value is not None:
            inside.append(tag("i", class_=f"bar {line.look}", style=f"width:{place(line.value)}"))
        if line.low is not None and line.high is not None:
            low = max(line.low, 0.0)
            style = f"left:{place(low)};width:{place(line.high - low)}"
            inside.append(tag("i", class_="whisker", style=style))
        if mark is not None:
            inside.append(tag("i", class_="mark", style=f"left:{place(mark)}"))
        return _line(line.name, inside, line.words)

    return _chart(title, unit, [draw(line) for line in lines])


def intervals(title: str, unit: str, lines: Sequence[Bar]) -> Html:
    """A dot with its interval a line, about zero, which a line across all marks."""
    known = [line for line in lines if line.value is not None]
    values = [v for line in known for v in (line.value, line.low, line.high) if v is not None]
    reach = max(map(abs, values), default=1.0) or 1.0

    def place(value: float) -> float:
        return 50 + 48 * value / reach

    def draw(line: Bar) -> Html:
        inside: list[Part] = [tag("i", class_="mark", style="left:50%")]
        if line.value is not None:
            if line.low is not None and line.high is not None:
                low, high = place(line.low), place(line.high)
                style = f"left:{low:.2f}%;width:{high - low:.2f}%"
                inside.append(tag("i", class_="whisker", style=style))
            style = f"left:{place(line.value):.2f}%"
            inside.append(tag("i", class_=f"dot {line.look}", style=style))
        return _line(line.name, inside, line.words)

    return _chart(title, unit, [draw(line) for line in lines])


def dots(title: str, unit: str, lines: Sequence[Bar]) -> Html:
    """A dot a line on a logarithmic axis, with a tick a decade; what is far smaller, at its end."""
    known = [line.value for line in lines if line.value]
    if not known:
        return Html("")
    last = math.ceil(math.log10(max(known)))
    first = max(min(math.floor(math.log10(min(known))), last - 1), last - _DECADES)

    def place(value: float) -> str:
        share = max(math.log10(value) - first, 0.0) / (last - first)
        return f"{2 + 96 * share:.2f}%"

    decades = [10.0**n for n in range(first, last + 1)]

    def draw(line: Bar) -> Html:
        inside: list[Part] = [tag("i", class_="grid", style=f"left:{place(d)}") for d in decades]
        if line.value:
            left = f"left:{place(line.value)}"
            off = " off" if line.value < decades[0] else ""
            inside.append(tag("i", class_=f"dot {line.look}{off}", style=left))
        return _line(line.name, inside, line.words)

    ticks: list[Part] = [tag("b", f"{d:g}", style=f"left:{place(d)}") for d in decades]
    axis = tag("div", tag("span"), tag("span", *ticks, class_="track"), tag("span"), class_="axis")
    return _chart(title, unit, [*(draw(line) for line in lines), axis])


def _line(name: str, inside: Sequence[Part], words: str) -> Html:
    return tag(
        "div",
        tag("span", breakable(name), class_="name"),
        tag("span", *inside, class_="track", aria_hidden="true"),
        tag("span", words, class_="value"),
        class_="line",
    )


def _chart(title: str, unit: str, lines: Sequence[Part]) -> Html:
    head = tag("figcaption", tag("strong", title), " ", tag("small", unit))
    return tag("figure", head, *lines, class_="chart")


# ---- two axes ------------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 460, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44
_POINT = 1.3  # of these units, for the text is larger than on paper


@dataclass(frozen=True)
class Point:
    """A scheme in the chart of two axes."""

    label: str
    name: str
    look: str
    x: float
    y: float  # more than 0
    front: bool
    chosen: bool


def scatter(title: str, x_words: str, y_words: str, points: Sequence[Point]) -> Html:
    """y (logarithmic) over x (linear); a line joins the points that no other beats in both."""
    if not points:
        return Html("")
    low_x, high_x = _padded([p.x for p in points])
    low_y, high_y = _padded([math.log10(p.y) for p in points])

    def at_x(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - low_x) / (high_x - low_x)

    def at_y(y: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high_y - math.log10(y)) / (high_y - low_y)

    drawn: list[Part] = [_grid_x(x, at_x(x)) for x in _linear_ticks(low_x, high_x)]
    drawn += [_grid_y(y, at_y(y)) for y in _log_ticks(low_y, high_y)]
    front = sorted((at_x(p.x), at_y(p.y)) for p in points if p.front)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
    drawn.append(tag("polyline", points=path, class_="front"))
    drawn += [_marker(p, at_x(p.x), at_y(p.y)) for p in points]
    drawn += _labels([(p.label, at_x(p.x), at_y(p.y)) for p in points])
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    drawn.append(tag("text", x_words, x=middle_x, y=_HEIGHT - 6, text_anchor="middle"))
    turn = f"translate(13 {middle_y}) rotate(-90)"
    drawn.append(tag("text", y_words, transform=turn, text_anchor="middle"))
    svg = tag(
        "svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
        aria_label=f"{title}: {y_words} over {x_words}",
    )  # fmt: skip
    return tag("figure", tag("figcaption", tag("strong", title)), svg, class_="chart plot")


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.5
    return low - room, high + room


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= rough)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    subs = (1, 2, 5) if high - low < 3 else (1,)
    there = [k * 10.0**n for n in decades for k in subs]
    return [y for y in there if low <= math.log10(y) <= high]


def _grid_x(value: float, x: float) -> Html:
    line = tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=_TOP, y2=_HEIGHT - _BOTTOM)
    text = tag("text", f"{value:g}", x=f"{x:.1f}", y=_HEIGHT - _BOTTOM + 16, text_anchor="middle")
    return tag("g", line, text, class_="grid")


def _grid_y(value: float, y: float) -> Html:
    line = tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}")
    text = tag("text", f"{value:g}", x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end")
    return tag("g", line, text, class_="grid")


_SHAPES: dict[str, Callable[[float, float], str]] = {
    "baseline": lambda x, y: f"M{x - 5:.1f} {y - 5:.1f}h10v10h-10z",
    "reference": lambda x, y: f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z",
    "weights": lambda x, y: f"M{x - 5.5:.1f} {y:.1f}a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0z",
    "a8": lambda x, y: f"M{x:.1f} {y - 6:.1f}l6 11h-12z",
}


def _marker(point: Point, x: float, y: float) -> Html:
    ring = tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=11, class_="ring")
    return tag(
        "g",
        tag("title", f"{point.name}: {point.x:.3g}, {point.y:.3g}"),
        tag("path", d=_SHAPES[point.look](x, y), class_=f"marker {point.look}"),
        ring if point.chosen else None,
    )


def _labels(points: Sequence[tuple[str, float, float]]) -> list[Part]:
    """Labels beside their points."""
    box = (_LEFT / _POINT, _TOP / _POINT, (_WIDTH - _RIGHT) / _POINT, (_HEIGHT - _BOTTOM) / _POINT)
    found = labels.place([(text, x / _POINT, y / _POINT) for text, x, y in points], box)
    return [
        tag(
            "text", label.text, x=f"{_POINT * label.x:.1f}", y=f"{_POINT * label.y + 4:.1f}",
            text_anchor="middle", class_="label",
        )
        for label in found
    ]  # fmt: skip
