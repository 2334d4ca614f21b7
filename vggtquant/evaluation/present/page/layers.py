# SPDX-License-Identifier: Apache-2.0
"""Section of the page: the layers' shares of the error as shaded tables, a group of blocks each."""

from __future__ import annotations

from typing import Any

from ...measure import sensitivity
from .elements import Html, Part, breakable, heat, heat_table, join, tag
from .scores import parts

Row = dict[str, Any]


def section(document: dict[str, Any]) -> Html | None:
    """Heat maps over blocks and kinds of layers, and the list of the layers that matter most."""
    found = document["sensitivity"]
    if not found or not found["layers"]:
        return None
    worst = max(layer["share"] or 0.0 for layer in found["layers"])
    maps = [_map(group, grid, worst) for group, grid in sensitivity.grids(found["layers"]).items()]
    return join(
        [
            tag("p", "Share of the final error in percent, a line a block, a column a kind."),
            tag("div", *maps, class_="maps"),
            parts(document, "Which layers make the error"),
        ]
    )


def _map(group: str, grid: dict[str, dict[str, Row]], worst: float) -> Html:
    kinds = sensitivity.kinds(grid)
    rows: list[list[Part]] = [
        [breakable(block), *(_cell(layers.get(kind), worst) for kind in kinds)]
        for block, layers in grid.items()
    ]
    title = group or "other layers"
    table = heat_table(["block", *map(breakable, kinds)], rows, title)
    return tag("figure", tag("figcaption", tag("strong", breakable(title))), table)


def _cell(layer: Row | None, worst: float) -> Html:
    if layer is None or layer["share"] is None:
        return heat(None, worst, "")
    value = 100 * layer["share"]
    return heat(layer["share"], worst, f"{value:.1f}" if value >= 0.95 else f"{value:.1g}")
