# SPDX-License-Identifier: Apache-2.0
"""Turns rows of results into a document, and writes JSON and files safely.

Nothing here runs a model. The keys of the document are explained in docs/report.md, and
docs/report.schema.json is their schema; text.py says the same in words, charts.py in
pictures, page/ as HTML.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import vggtquant as vq

from ...errors import UserError
from . import evidence, intervals, recommendation

Row = dict[str, Any]
Document = dict[str, Any]

SCHEMA_VERSION = "3.0"
JSON_NAME = "comprehensive_results.json"
TEXT_NAME = "comprehensive_report.txt"
CHARTS_NAME = "comprehensive_visualizations.png"
PAGE_NAME = "comprehensive_report.html"
SENSITIVITY_NAME = "sensitivity.png"


def regressions(rows: Sequence[Row], most: int = 8) -> list[tuple[float, str, str]]:
    """The largest relative_l2 as (value, scheme, output), largest first."""
    found = [
        (values["relative_l2"], row["name"], output)
        for row in rows
        if row["kind"] == "quantized" and row["status"] == "ok"
        for output, values in row["metrics"].items()
        if values["relative_l2"] is not None
    ]
    return sorted(found, reverse=True)[:most]


# ---- the document --------------------------------------------------------------------------------


def document(
    *,
    status: str,
    environment: Mapping[str, Any],
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    forecast: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    recheck: Mapping[str, Any] | None,
    pictures: Mapping[str, Any] | None = None,
    sensitivity: Mapping[str, Any] | None = None,
) -> Document:
    """The whole result as plain JSON values, in a fixed order of keys and without NaN or Inf."""
    statistics = intervals.statistics(rows)
    whole = {
        "schema_version": SCHEMA_VERSION,
        "generator": {"name": "vggtquant", "version": vq.__version__},
        "status": status,
        "environment": dict(environment),
        "model": dict(model),
        "data": dict(data),
        "settings": dict(settings),
        "metrics": [
            {"name": m.name, "unit": m.unit, "larger_is_better": bool(m.larger_is_better)}
            for m in vq.METRICS
        ],
        "forecast": [dict(cost) for cost in forecast],
        "schemes": list(rows),
        "baseline_recheck": dict(recheck) if recheck else None,
        "noise_floor": evidence.noise_floor(rows),
        "timing": evidence.timing(rows, environment["threads"]["torch"]),
        "best": recommendation.best(rows, statistics),
        "statistics": statistics,
        "recommendation": recommendation.recommend(rows, settings, statistics),
        "pictures": pictures,
        "sensitivity": sensitivity,
    }
    lost: dict[str, str] = {}
    clean: Document = _plain(whole, "", lost)
    clean["nulls"] = lost
    return clean


def _plain(value: Any, path: str, lost: dict[str, str]) -> Any:
    """`value` in JSON's types; a NaN or Inf becomes None, and `lost` says where and which."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{path}/{k}", lost) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{path}/{i}", lost) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        lost[path] = f"the value was {value}"
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} holds a {type(value).__name__}, which JSON has no form for")


# ---- files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def written(folder: Path) -> Iterator[None]:
    """Checks that `folder` can be written; made for nothing, it is taken away again.

    UserError, before the body, when it cannot be made or written.
    """
    there = folder.exists()
    check_writable(folder)
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def check_writable(folder: Path) -> None:
    """Makes `folder` and writes to it once; UserError when that does not work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"vggtquant")
    except OSError as error:
        raise UserError(
            f"cannot write to output directory {folder}: {error.strerror or error}"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: beside its place first, then renamed into it.

    Raises UserError when the disk refuses; what was there before then stays.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, content: Document) -> None:
    """Writes a document; ValueError when it holds NaN or Inf, which JSON cannot."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())
