# SPDX-License-Identifier: Apache-2.0
"""A grid of models, configs, calibration seeds and data: an evaluation of each model on each data,
and one table of all, with intervals over the seeds."""

from __future__ import annotations

import math
import re
import statistics
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from scipy.stats import t as student

from ..configs import DEFAULTS, read_configs
from ..errors import UserError
from ..evaluation.evaluate import Result
from ..evaluation.measure import plan
from ..evaluation.measure.plan import Settings
from ..evaluation.present import columns
from ..evaluation.present.columns import Column
from ..evaluation.schema import Kind, Row, Status
from ..files import writable_folder, write_bytes

BUILTIN = "builtin"
"""As data: rendered scenes."""

OPTIONS = (
    *("scenes", "max_images", "groups", "mode", "layout", "runs", "warmup", "threads", "seed"),
    *("device", "adapter", "max_memory"),
)
"""What [evaluate] of a grid may hold: fields of plan.Settings."""

COLUMNS = (columns.MB, columns.SPEEDUP, columns.ERROR, columns.AUC, columns.ABS_REL)
CONFIDENCE = 0.95


class Grid(msgspec.Struct, forbid_unknown_fields=True):
    """What is evaluated: every model on all of the data, with every config, method and seed."""

    models: list[str] = msgspec.field(default_factory=lambda: ["builtin:tiny"])
    data: list[str] = msgspec.field(default_factory=lambda: [BUILTIN])
    schemes: list[str] = []
    configs: list[str] = []
    """Files of configs."""
    methods: list[str] = []
    seeds: int = 1
    samples: int | None = None
    evaluate: dict[str, Any] = {}


class Figure(msgspec.Struct):
    """A column of a scheme: the mean over seeds, and half of its 95 % interval."""

    mean: float
    half: float | None
    """None for a single seed."""


class Line(msgspec.Struct):
    """A scheme of one model on one of the data."""

    model: str
    data: str
    scheme: str
    seeds: int
    failed: int
    figures: dict[str, Figure]


def read(path: str | Path) -> Grid:
    """The grid of a TOML file.

    Raises:
        UserError: no such file, no TOML, a field that is not known or of another type.
    """
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        grid = msgspec.convert(found, Grid)
    except (OSError, ValueError) as error:  # msgspec's and TOML's errors are ValueErrors
        raise UserError(f"cannot read {path}: {error}") from error
    unknown = sorted(set(grid.evaluate) - set(OPTIONS))
    if unknown:
        raise UserError(f"{path}: [evaluate] holds {unknown[0]}; wanted {', '.join(OPTIONS)}")
    for name in ("models", "data"):
        if not getattr(grid, name):
            raise UserError(f"{path}: {name} is empty; wanted one or more")
    return grid


def settings_of(grid: Grid, out: Path) -> Iterator[tuple[str, str, Settings]]:
    """Model, data and settings of each evaluation, in a folder of its own below `out`."""
    configs = _configs(grid)
    for number, (model, data) in enumerate(product(grid.models, grid.data), 1):
        words = (re.sub(r"[^\w.-]+", "_", word).strip("_.") for word in (model, data))
        settings = Settings(
            model=model,
            images=() if data == BUILTIN else (data,),
            configs=configs,
            output_dir=str(out / "_".join((f"{number:02d}", *words))),
            argv=("vggtquant", "sweep"),
        )
        try:
            yield model, data, replace(settings, **grid.evaluate)
        except TypeError as error:
            raise UserError(f"[evaluate]: {error}") from error


def _configs(grid: Grid) -> tuple[Any, ...] | None:
    files = [config for path in grid.configs for config in read_configs(path)]
    chosen = plan.configs_of([*grid.schemes, *files]) if grid.schemes or files else None
    if not grid.methods:
        if grid.seeds != 1 or grid.samples is not None:
            raise UserError("seeds and samples are for methods, which are empty; e.g. gptq")
        return chosen
    whole = DEFAULTS if chosen is None else chosen
    return plan.calibrated(whole, grid.methods, grid.samples, grid.seeds)


def run(
    grid: Grid, out: str | Path, evaluate: Callable[[Settings], Result]
) -> tuple[list[Line], list[Path]]:
    """Evaluates the grid and writes sweep.json and sweep.md; returns the lines and the files.

    evaluate: runs one evaluation, here or in shards.
    """
    folder = writable_folder(out)
    lines: list[Line] = []
    files = [folder / "sweep.json", folder / "sweep.md"]
    for model, data, settings in settings_of(grid, folder):
        lines += lines_of(model, data, evaluate(settings).document.schemes)
        # After each: a stop leaves a table of what there is.
        write_bytes(files[0], msgspec.json.format(msgspec.json.encode(lines)) + b"\n")
        write_bytes(files[1], table(lines).encode())
    return lines, files


def lines_of(model: str, data: str, rows: Sequence[Row]) -> list[Line]:
    """The schemes among the rows, those that differ in their calibration's seed alone together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind is not Kind.REFERENCE or row.config.quant_type == "bf16":
            seed = row.config.calibration_seed
            groups.setdefault(row.name.removesuffix(f"_seed{seed}"), []).append(row)
    return [
        Line(
            model=model,
            data=data,
            scheme=name,
            seeds=len(group),
            failed=sum(row.status is Status.FAILED for row in group),
            figures=_figures([row for row in group if row.ok]),
        )
        for name, group in groups.items()
    ]


def _figures(rows: Sequence[Row]) -> dict[str, Figure]:
    found = {}
    for column in COLUMNS:
        values = [value for row in rows if (value := column.value(row)) is not None]
        if values:
            found[column.heading] = Figure(statistics.fmean(values), half_interval(values))
    return found


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean, by Student's t; None for one value.

    >>> round(half_interval([1.0, 2.0, 3.0]), 3)
    2.484
    """
    if len(values) < 2:
        return None
    quantile = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * statistics.stdev(values) / math.sqrt(len(values)))


def table(lines: Sequence[Line]) -> str:
    """All lines as Markdown."""
    shown = [c for c in COLUMNS if any(c.heading in line.figures for line in lines)]
    head = ["model", "data", "scheme", "seeds", *(c.heading for c in shown)]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        seeds = f"{line.seeds}, {line.failed} failed" if line.failed else str(line.seeds)
        figures = [_cell(column, line.figures) for column in shown]
        rows.append([line.model, line.data, line.scheme, seeds, *figures])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{text}\n\n± is half of the 95 % interval over the calibration seeds.\n"


def _cell(column: Column, figures: Mapping[str, Figure]) -> str:
    figure = figures.get(column.heading)
    if figure is None:
        return "-"
    spread = "" if figure.half is None else f" ± {column.write(figure.half)}"
    return column.write(figure.mean) + spread
