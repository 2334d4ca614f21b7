# SPDX-License-Identifier: Apache-2.0
"""Puts a document together from a journal's head and records.

Nothing here runs a model. The types of the document are schema.py's, its keys are explained in
docs/report.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import structs

from ...about import VERSION
from ...metrics import METRICS
from ..measure import pictures
from ..measure.variants import Variant
from ..records import Head, Record
from ..schema import SCHEMA_VERSION, Budget, Document, Generator, MetricFacts, Model, Row, State
from . import evidence, intervals, recommendation, rows, shares, times


def compose(
    head: Head, records: Sequence[Record], variants: Sequence[Variant], status: State
) -> Document:
    """The whole result, as far as there are rows."""
    scenes = head.data.scenes
    groups = rows.groups(variants, records, scenes)
    baseline = groups[variants[0].name]
    found = rows.rows(variants, records, scenes)
    shown = {
        row.name: record.pictures if (record := groups[row.name].by_scene[scenes[0].name]) else None
        for row in found
        if row.ok
    }
    return assemble(
        head,
        found,
        status,
        model=_model(head, baseline),
        pictures=pictures.block(scenes[0].name, shown),
        sensitivity=shares.block(records),
    )


def assemble(head: Head, found: Sequence[Row], status: State, **blocks: Any) -> Document:
    """A document of rows and a head, with what follows from them; `blocks` replace its own."""
    settings = head.settings
    statistics = intervals.statistics(found)
    budget = Budget(
        max_drop=settings.max_drop,
        max_bytes=settings.max_bytes,
        min_speedup=settings.min_speedup,
    )
    parts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "generator": Generator(name="vggtquant", version=VERSION),
        "status": status,
        "environment": head.environment,
        "model": head.model,
        "data": head.data,
        "settings": settings,
        "metrics": [
            MetricFacts(name=m.name, unit=m.unit, larger_is_better=bool(m.larger_is_better))
            for m in METRICS
        ],
        "forecast": head.forecast,
        "schemes": list(found),
        "baseline_recheck": evidence.recheck(found),
        "noise_floor": evidence.noise_floor(found),
        "timing": times.verdict(found, head.environment.threads.torch),
        "best": recommendation.best(found, statistics),
        "statistics": statistics,
        "recommendation": recommendation.recommend(found, budget, statistics),
        "pictures": None,
        "sensitivity": None,
    }
    return _finite(Document(**(parts | blocks)))


def _model(head: Head, baseline: rows.Group) -> Model:
    """The head's model with what FP32's forwards showed of it."""
    plain = set(head.linears)
    return structs.replace(
        head.model,
        linear_layers_not_reached=[
            name for name, count in baseline.calls().items() if not count and name in plain
        ],
        outputs=baseline.scenes[0].shapes if baseline.scenes else {},
    )


def _finite(whole: Document) -> Document:
    """The same without NaN and Inf, which JSON cannot hold: `nulls` says where they were."""
    lost: dict[str, str] = {}
    clean = _plain(msgspec.to_builtins(whole), "", lost)
    found = msgspec.convert(clean, Document)
    found.nulls = lost
    return found


def _plain(value: Any, path: str, lost: dict[str, str]) -> Any:
    """`value` with None for NaN and Inf; `lost` says where and which."""
    if isinstance(value, Mapping):
        return {key: _plain(v, f"{path}/{key}", lost) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, f"{path}/{i}", lost) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        lost[path] = f"the value was {value}"
        return None
    return value


def regressions(found: Sequence[Row], most: int = 8) -> list[tuple[float, str, str]]:
    """The largest relative_l2 as (value, scheme, output), largest first."""
    values = [
        (metrics.relative_l2, row.name, output)
        for row in recommendation.candidates(found)
        for output, metrics in row.metrics.items()
        if metrics.relative_l2 is not None
    ]
    return sorted(values, reverse=True)[:most]
