# SPDX-License-Identifier: Apache-2.0
"""Draws the layers' shares of the error, as a PNG: a heat map over blocks and kinds of layers, and
the error against the bytes as layers go back to float."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..analyse import shares
from ..schema import Sensitivity

# As bright as it is important; grey printers keep the order.
_PALETTE = "cividis"
_DECADES = 4
_CELL = 0.42  # inches
_CURVE = 2.6


def png(found: Sensitivity) -> bytes:
    """The PNG of a document's `sensitivity`: a map for each group of numbered blocks, a curve."""
    by_name = {layer.name: layer.share or 0.0 for layer in found.layers}
    left = dict.fromkeys(found.left_float, "float") | dict.fromkeys(found.not_reached, "not run")
    grids = shares.grids([*by_name, *(name for name in left if name not in by_name)])
    shapes = [(len(shares.kinds(grid)), len(grid)) for grid in grids.values()]
    widest = max((blocks for _, blocks in shapes), default=1)
    height = sum(kinds for kinds, _ in shapes) * _CELL + 1.15 * len(shapes) + 1.2 + _CURVE
    figure = Figure(figsize=(max(9.0, widest * _CELL + 4.5), height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{found.scheme}, one layer at a time, scene {found.scene}: share of the final error"
    )
    if shapes:
        ratios = [*(kinds + 1.0 for kinds, _ in shapes), _CURVE / _CELL]
        *axes, last = figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
        worst = max(by_name.values(), default=0.0) or 1.0
        norm = LogNorm(100 * worst / 10**_DECADES, 100 * worst, clip=True)
        for axis, (group, grid) in zip(axes, grids.items(), strict=True):
            image = _map(axis, group, grid, by_name, left, norm)
        _curve(last, found)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30)
        bar.set_label("share of the final error (%, log scale); hatched: no such layer")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": "vggtquant"})
    return file.getvalue()


def _curve(axis: Axes, found: Sensitivity) -> None:
    """The error that is left against the bytes of the layers; each point has one more in float. An
    estimate: the shares of the layers that are still quantized are added."""
    nbytes, left = zip(*shares.curve(found), strict=True)
    axis.plot([n / 1e6 for n in nbytes], [100 * part for part in left], marker=".", color="#0072b2")
    axis.set_title(
        "from all layers quantized to all in float, the most harmful for a byte first",
        loc="left",
        fontsize=10,
        fontweight="bold",
    )
    axis.set_xlabel("the layers, MB", fontsize=8.5)
    axis.set_ylabel(f"sum of shares, % of {found.scheme}'s error", fontsize=8.5)
    axis.grid(linewidth=0.4, color="#dddddd")
    axis.spines[["top", "right"]].set_visible(False)


def _map(
    axis: Axes,
    group: str,
    grid: shares.Grid,
    by_name: Mapping[str, float],
    left: Mapping[str, str],
    norm: LogNorm,
) -> Any:
    """One group: kinds downwards, blocks to the right; blocks without a number by their names.

    Layers that were left out are grey, with the reason in a word.
    """
    kinds = shares.kinds(grid)
    values = np.full((len(kinds), len(grid)), np.nan)
    words: dict[tuple[int, int], str] = {}
    for column, names in enumerate(grid.values()):
        for kind, name in names.items():
            if name in by_name:
                values[kinds.index(kind), column] = 100 * max(by_name[name], 1e-30)
            else:
                words[kinds.index(kind), column] = left[name]
    axis.set_facecolor("white")
    axis.patch.set_hatch("////")
    axis.patch.set_edgecolor("#bbbbbb")
    image = axis.imshow(values, cmap=_PALETTE, norm=norm, aspect="auto", interpolation="nearest")
    axis.set_title(group or "other layers", loc="left", fontsize=10, fontweight="bold")
    axis.set_yticks(range(len(kinds)), kinds, fontsize=8.5)
    axis.set_xticks(range(len(grid)), list(grid), fontsize=8.5)
    if group:
        axis.set_xlabel("block", fontsize=8.5)
    else:
        axis.tick_params(axis="x", rotation=12)
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        colour = "white" if norm(value) < 0.55 else "black"
        axis.text(column, row, share(value), ha="center", va="center", fontsize=7, color=colour)
    for (row, column), word in words.items():
        axis.axvspan(
            column - 0.5, column + 0.5, 1 - (row + 1) / len(kinds), 1 - row / len(kinds),
            facecolor="#e4e4e4", linewidth=0,
        )  # fmt: skip
        axis.text(column, row, word, ha="center", va="center", fontsize=6, color="#333333")
    return image


def share(percent: float) -> str:
    """A share in percent, in three characters or so."""
    return f"{percent:.1f}" if percent >= 0.95 else f"{percent:.1g}"
