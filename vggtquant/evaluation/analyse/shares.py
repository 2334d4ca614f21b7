# SPDX-License-Identifier: Apache-2.0
"""What each layer alone adds to the error: the document's `sensitivity`, made of the records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from ..formatting import percent
from ..measure import layers
from ..measure.journal import kind
from ..records import Broke, LayerAlone, Record, Whole
from ..schema import Layer, LayerShare, Sensitivity

RULE = (
    "share: of the final error, what one layer makes when it alone is quantized: the mean over "
    "outputs of (relative_l2 with this layer alone / relative_l2 with all layers)^2. Squares, as "
    "errors that know nothing of each other add up so; share_sum, the sum over all layers, is then "
    "1, and says by its distance from 1 how far that holds. The geometric mean that ranks schemes "
    "would not do: a layer of one head leaves the other heads' outputs exact."
)


def block(records: Sequence[Record]) -> Sensitivity | None:
    """The document's `sensitivity` from a journal's records; None where no layer was tried.

    Layers are in the order of their share of the error, the largest first.
    """
    first = next(iter(reversed(kind(records, Whole))), None)
    if first is None:
        return None
    own = [record for record in records if record.scheme == first.scheme]
    by_name = {record.layer: record for record in kind(own, LayerAlone)}
    rows = [
        _layer(layer, by_name[layer.name], first.error_all)
        for layer in first.layers
        if layer.name in by_name
    ]
    return Sensitivity(
        scheme=layers.scheme_of(first.scheme),
        scene=first.scene,
        rule=RULE,
        reason=next((one.reason for one in kind(own, Broke)), None),
        layers_to_try=len(layers.to_try(first)),
        error_all=first.error_all,
        share_sum=math.fsum(row.share or 0.0 for row in rows),
        not_reached=first.not_reached,
        layers=sorted(rows, key=lambda row: (-(row.share or 0.0), row.name)),
        left_float={layer.name: layer.skipped for layer in first.layers if layer.skipped},
    )


def in_words(records: Sequence[Record]) -> str:
    """A line on what was found."""
    found = block(records)
    if found is None or not found.layers:
        return "no layer was tried alone" + (f": {found.reason}" if found else "")
    first = found.layers[0]
    return (
        f"{len(found.layers)} of {found.layers_to_try} layers of {found.scheme} one at a "
        f"time: most of the error ({percent(first.share)} %) comes from {first.name}"
    )


def harms(found: Sensitivity) -> dict[str, float]:
    """What `vggtquant quantize --sensitivity` reads: a number a layer, larger where it hurts more.

    A layer that these inputs did not run does no harm.
    """
    shares = {layer.name: layer.share or 0.0 for layer in found.layers}
    return shares | dict.fromkeys(found.not_reached, 0.0)


def share(alone: Mapping[str, float | None], whole: Mapping[str, float | None]) -> float | None:
    """Mean over outputs of the squared ratio of two errors; None where no output has any error.

    >>> share({"depth": 0.01, "pose": 0.0}, {"depth": 0.02, "pose": 0.3})
    0.125
    """
    pairs = [(alone.get(name), error) for name, error in whole.items()]
    ratios = [(one / error) ** 2 for one, error in pairs if one is not None and error]
    return statistics.fmean(ratios) if ratios else None


def _layer(layer: Layer, record: LayerAlone, error_all: Mapping[str, float | None]) -> LayerShare:
    group, what = place(layer.name)
    return LayerShare(
        name=layer.name,
        block=group,
        kind=what,
        sqnr_db=layer.sqnr_db,
        cosine=layer.cosine,
        output_sqnr_db=record.output_sqnr_db,
        output_cosine=record.output_cosine,
        error_alone=record.error_alone,
        share=share(record.error_alone, error_all),
        bytes_before=layer.bytes_before,
        bytes_after=layer.bytes_after,
    )


def curve(found: Sensitivity) -> list[tuple[int, float]]:
    """Bytes of the layers that were tried and the error that is left, as a part of the scheme's.

    The first point has all layers quantized. At each next one, the layer whose share of the error
    is the largest for a byte more is float again. Shares are of squares: the error is their root.
    """
    least = sum(layer.bytes_after for layer in found.layers)
    shares = [
        (layer.share or 0.0, layer.bytes_before - layer.bytes_after) for layer in found.layers
    ]
    shares.sort(key=lambda one: one[0] / max(1, one[1]), reverse=True)
    points, nbytes = [], least
    for i, (_, more) in enumerate([(0.0, 0), *shares]):
        nbytes += more
        left = math.fsum(share for share, _ in shares[i:])
        points.append((nbytes, math.sqrt(left / found.share_sum) if found.share_sum else 0.0))
    return points


def place(name: str) -> tuple[str, str]:
    """Block and kind of a layer by its name: blocks end with their number, where they have one.

    >>> place("aggregator.frame_blocks.3.attn.qkv"), place("camera_head.pose_branch.fc1")
    (('aggregator.frame_blocks.3', 'attn.qkv'), ('camera_head.pose_branch', 'fc1'))
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), len(parts) - 2)
    return ".".join(parts[: number + 1]), ".".join(parts[number + 1 :])


Grid = dict[str, dict[str, str]]
"""Layers' names by block and kind: {block's number: {kind: name}}."""


def grids(names: Sequence[str]) -> dict[str, Grid]:
    """Layers as heat maps want them, by group of blocks; those without a number in the group ""."""
    found: dict[str, Grid] = {}
    for name in names:
        block, what = place(name)
        group, _, number = block.rpartition(".")
        if not number.isdecimal():
            group, number = "", block
        found.setdefault(group, {}).setdefault(number, {})[what] = name
    return {
        group: dict(sorted(found[group].items(), key=lambda item: (len(item[0]), item[0])))
        if group
        else found[group]
        for group in sorted(found, key=lambda group: (not group, group))
    }


def kinds(grid: Grid) -> list[str]:
    """The kinds of layers in one of `grids`, in alphabetical order."""
    return sorted({what for layers in grid.values() for what in layers})
