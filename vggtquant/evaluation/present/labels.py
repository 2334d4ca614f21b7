# SPDX-License-Identifier: Apache-2.0
"""Where labels of points go so that none covers another, for every kind of chart."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

# Sides of a point that are tried in turn, (right, down).
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
_NEAR = 8.0  # points this close share a label
_LINE = 13.0  # height of a line of text


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


@dataclass
class Label:
    """Text centred at (x, y) for the point at (at_x, at_y)."""

    text: str
    at_x: float
    at_y: float
    x: float = 0.0
    y: float = 0.0


def place(
    points: Sequence[tuple[str, float, float]], box: tuple[float, float, float, float]
) -> list[Label]:
    """Labels for (text, x, y), inside `box` (left, top, right, bottom), all in typographic points.

    Points that cover each other share one label, with their texts in their order.

    >>> points = [("1", 50, 50), ("2", 52, 50), ("3", 20, 20)]
    >>> [label.text for label in place(points, (0, 0, 99, 99))]
    ['1, 2', '3']
    """
    labels: list[Label] = []
    for text, x, y in points:
        nearest = min(labels, key=lambda at: math.hypot(at.at_x - x, at.at_y - y), default=None)
        if nearest and math.hypot(nearest.at_x - x, nearest.at_y - y) < _NEAR:
            nearest.text += f", {text}"
        else:
            labels.append(Label(text, x, y))
    taken = [(x, y, 6.0) for _, x, y in points]  # centres and half widths
    left, top, right, bottom = box
    for label in labels:
        half = 2.7 * len(label.text) + 1

        def free(place: tuple[float, float], half: float = half) -> bool:
            x, y = place
            return (
                left + half < x < right - half
                and top + 6 < y < bottom - 6
                and all(abs(x - tx) > half + w or abs(y - ty) > 11 for tx, ty, w in taken)
            )

        there = list(_around(label, half))
        label.x, label.y = next(filter(free, there), there[0])
        taken.append((label.x, label.y, half))
    return labels


def _around(label: Label, half: float) -> Iterator[tuple[float, float]]:
    for far in (1.0, 1.6, 2.2, 3.0):
        for right, down in _SIDES:
            yield label.at_x + right * (half + 10) * far, label.at_y + down * _LINE * far
