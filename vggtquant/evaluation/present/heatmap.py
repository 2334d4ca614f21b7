# SPDX-License-Identifier: Apache-2.0
"""Draws the layers' shares of the error as a heat map over blocks and kinds of layers, as a PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..measure import sensitivity

# As bright as it is important; grey printers keep the order.
_PALETTE = "cividis"
_DECADES = 4
_CELL = 0.42  # inches


def draw(block: dict[str, Any]) -> bytes:
    """The PNG of a document's `sensitivity`: a map for each group of numbered blocks."""
    grids = sensitivity.grids(block["layers"])
    shapes = [(len(sensitivity.kinds(grid)), len(grid)) for grid in grids.values()]
    widest = max((blocks for _, blocks in shapes), default=1)
    height = sum(kinds for kinds, _ in shapes) * _CELL + 1.15 * len(shapes) + 1.2
    figure = Figure(figsize=(max(9.0, widest * _CELL + 4.5), height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{block['scheme']}, one layer at a time, scene {block['scene']}: share of the final error"
    )
    if shapes:
        ratios = [kinds + 1.0 for kinds, _ in shapes]
        axes = figure.subplots(len(shapes), 1, height_ratios=ratios, squeeze=False)[:, 0]
        worst = max(layer["share"] or 0.0 for layer in block["layers"]) or 1.0
        norm = LogNorm(100 * worst / 10**_DECADES, 100 * worst, clip=True)
        for axis, (group, grid) in zip(axes, grids.items(), strict=True):
            image = _map(axis, group, grid, norm)
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=30)
        bar.set_label("share of the final error (%, log scale); hatched: no such layer")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": "vggtquant"})
    return file.getvalue()


def _map(axis: Axes, group: str, grid: dict[str, dict[str, Any]], norm: LogNorm) -> Any:
    """One group: kinds downwards, blocks to the right; blocks without a number by their names."""
    kinds = sensitivity.kinds(grid)
    shares = np.full((len(kinds), len(grid)), np.nan)
    for column, layers in enumerate(grid.values()):
        for kind, layer in layers.items():
            shares[kinds.index(kind), column] = 100 * max(layer["share"] or 0.0, 1e-30)
    axis.set_facecolor("white")
    axis.patch.set_hatch("////")
    axis.patch.set_edgecolor("#bbbbbb")
    image = axis.imshow(shares, cmap=_PALETTE, norm=norm, aspect="auto", interpolation="nearest")
    axis.set_title(group or "other layers", loc="left", fontsize=10, fontweight="bold")
    axis.set_yticks(range(len(kinds)), kinds, fontsize=8.5)
    axis.set_xticks(range(len(grid)), list(grid), fontsize=8.5)
    if group:
        axis.set_xlabel("block", fontsize=8.5)
    else:
        axis.tick_params(axis="x", rotation=12)
    for row, column in np.argwhere(np.isfinite(shares)):
        value = shares[row, column]
        dark = norm(value) < 0.55
        words = f"{value:.1f}" if value >= 0.95 else f"{value:.1g}"
        colour = "white" if dark else "black"
        axis.text(column, row, words, ha="center", va="center", fontsize=7, color=colour)
    return image
