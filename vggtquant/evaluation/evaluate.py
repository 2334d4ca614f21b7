# SPDX-License-Identifier: Apache-2.0
"""The main job: a model, some scenes and a list of schemes in, four report files out.

Checks everything that can be checked before the first forward, forecasts, measures scheme by scheme
(measure.py) and writes after each, so that an interruption loses only the scheme that was running.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import vggtquant as vq

from .. import environment
from ..errors import UserError
from . import forecast, inputs, measure, report
from .measure import Passes, Sample
from .scores import Row

if TYPE_CHECKING:
    from ..progress import Progress


@dataclass(frozen=True)
class Settings:
    """What to evaluate; None stands for a default that depends on the model and the machine."""

    model: str = "builtin:tiny"
    images: tuple[str, ...] = ()  # a folder, or pictures; none: built-in rendered scenes
    max_images: int | None = None
    scenes: int | None = None  # of the rendered ones
    mode: str = "crop"
    schemes: tuple[str, ...] = ()  # none: all of CONFIGS
    output_dir: str = "vggtquant_results"
    device: str = "cpu"
    runs: int | None = None
    warmup: int | None = None
    threads: int | None = None
    seed: int = 0
    layout: str | None = None  # of a folder with ground truth; None: by what is in it
    max_drop: float | None = None  # percentage points of pose AUC@30
    max_bytes: int | None = None
    min_speedup: float | None = None
    argv: tuple[str, ...] = ()


@dataclass
class Result:
    """A finished, failed or interrupted evaluation."""

    document: report.Document
    files: list[Path]

    @property
    def failed(self) -> list[str]:
        """Names of the schemes that failed."""
        return [row["name"] for row in self.document["schemes"] if row["status"] == "failed"]


class Interrupted(KeyboardInterrupt):
    """The evaluation was stopped; `result` holds what was kept, or None before the first row."""

    def __init__(self, result: Result | None) -> None:
        super().__init__("interrupted")
        self.result = result


# ---- checks before any work ----------------------------------------------------------------------


def configs_of(names: Sequence[str]) -> list[vq.QuantizationConfig]:
    """The configurations of `names` (or of all schemes), each once, the FP32 baseline first.

    Raises UserError with the nearest names for one that does not exist.

    >>> [config.name for config in configs_of(["INT4_Group_64"])]
    ['Baseline_FP32', 'INT4_Group_64']
    """
    wanted = dict.fromkeys(["Baseline_FP32", *(names or vq.CONFIGS)])
    return [vq.get_config(name) for name in wanted]


def _check_counts(settings: Settings) -> None:
    for name, least in (
        ("max_images", 1),
        ("scenes", 1),
        ("runs", 1),
        ("warmup", 0),
        ("threads", 1),
    ):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; wanted {least} or more")
    if settings.seed < 0:
        raise UserError(f"--seed is {settings.seed}; wanted 0 or more")


# ---- the plan and its forecast -------------------------------------------------------------------


@dataclass
class Planned:
    """What will be run, and what it should cost."""

    passes: Passes
    samples: list[Sample]
    costs: list[forecast.Cost]
    lines: list[str]

    @property
    def forwards(self) -> int:
        """Forwards of a scheme."""
        return self.passes.warmup + self.passes.runs * len(self.samples)

    def seconds_of_schemes(self) -> float:
        """Forecast of all rows but the baseline's."""
        return forecast.total(self.costs, self.forwards) - self.costs[0].seconds(self.forwards)


def plan(
    settings: Settings,
    model: nn.Module,
    available: inputs.Inputs,
    configs: Sequence[vq.QuantizationConfig],
) -> Planned:
    """Chooses how much to run and forecasts what it will take, before the first forward."""
    layers = measure.linears(model)
    work = forecast.count(model, layers, available.shape(available.amount))
    costs = forecast.costs(model, layers, work, configs)

    def scaled(n: int) -> list[forecast.Cost]:
        return forecast.rescale(costs, work, forecast.count(model, layers, available.shape(n)))

    given = settings.max_images if settings.images else settings.scenes
    chosen = forecast.plan(
        lambda n, runs, warmup: forecast.total(scaled(n), warmup + runs * available.scenes(n)),
        available.amount,
        least=available.amount if given is not None else available.least,
        runs=settings.runs,
        warmup=settings.warmup,
        budget=forecast.budget(bool(settings.images)),
    )
    planned = Planned(
        Passes(chosen.runs, chosen.warmup, settings.device),
        available.take(chosen.amount),
        scaled(chosen.amount),
        [],
    )
    work = forecast.count(model, layers, available.shape(chosen.amount))
    planned.lines = _forecast_lines(planned, work, available, chosen)
    return planned


def _forecast_lines(
    planned: Planned, work: forecast.Work, available: inputs.Inputs, chosen: forecast.Plan
) -> list[str]:
    """What is about to happen, how long it should take, and what to change if that is too long."""
    from .text import duration, megabytes

    count, _, height, width = planned.samples[0].images.shape
    scenes, passes = len(planned.samples), planned.passes
    lines = [
        *available.warnings,
        f"{work.layers} Linear layers, {work.weights / 1e6:.1f} M weights, about "
        f"{work.linear_macs / 1e9:.2f} G multiply-adds in them a forward",
        f"{scenes} scene{'s' if scenes > 1 else ''} of {count} pictures, {width} x {height} px; "
        f"{passes.warmup} warm-up and {passes.runs} x {scenes} timed forwards a scheme",
    ]
    if chosen.amount < available.there:
        flag = "--max_images" if available.unit == "pictures" else "--scenes"
        lines.append(
            f"{chosen.amount} of {available.there} {available.unit} are used; {flag} takes more"
        )
    lines.append(f"forecast, from the speed of the layer {work.probe}:")
    for cost in planned.costs:
        lines.append(
            f"  {cost.name:32} {duration(cost.seconds(planned.forwards)):>12} "
            f"{megabytes(cost.model_bytes):>10} MB of parameters"
        )
    lines.append(
        f"in all about {duration(chosen.seconds)}, convolutions and scoring not counted; FP32 and "
        f"packed weights together at most {megabytes(2 * planned.costs[0].model_bytes)} MB"
    )
    if chosen.seconds > forecast.COFFEE_SECONDS:
        lines.append("that is long: --schemes selects, --max_images, --scenes and --runs shorten")
    return lines


# ---- the run -------------------------------------------------------------------------------------


class _Writer:
    """Keeps the rows and writes the documents after each of them."""

    def __init__(self, folder: Path, parts: dict[str, Any]) -> None:
        self.folder, self.parts = folder, parts
        self.rows: list[Row] = []
        self.recheck: Row | None = None

    def add(self, row: Row) -> None:
        if not self.rows:  # those of an earlier run would not belong to the new figures
            for name in (report.CHARTS_NAME, report.PAGE_NAME):
                (self.folder / name).unlink(missing_ok=True)
        self.rows.append(row)
        self.write("running")

    def write(self, status: str, *, charts: bool = False) -> Result:
        from . import text

        document = report.document(
            status=status, rows=self.rows, recheck=self.recheck, **self.parts
        )
        report.write_json(self.folder / report.JSON_NAME, document)
        report.write_bytes(self.folder / report.TEXT_NAME, text.full_report(document).encode())
        names = [report.JSON_NAME, report.TEXT_NAME]
        if charts:
            from . import charts as drawing
            from . import page

            report.write_bytes(self.folder / report.CHARTS_NAME, drawing.draw(document))
            report.write_bytes(self.folder / report.PAGE_NAME, page.draw(document).encode())
            names += [report.CHARTS_NAME, report.PAGE_NAME]
        return Result(document, [self.folder / name for name in names])


def evaluate(settings: Settings, progress: Progress) -> Result:
    """Runs the whole evaluation and writes its four files into `settings.output_dir`.

    Raises UserError for bad input, before any work where that can be known, and Interrupted (a
    KeyboardInterrupt that carries what was kept) when it is stopped.
    """
    from .. import models

    _check_counts(settings)
    configs = configs_of(settings.schemes)
    device = models.check_device(settings.device)
    if device.type != "cpu":
        raise UserError(f"device {settings.device!r} is not served by this version; wanted cpu")
    folder = Path(settings.output_dir)
    report.check_writable(folder)
    paths = inputs.find(settings.images) if settings.images else []
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)

    loaded = models.load_model(settings.model, device)
    if any(isinstance(module, vq.QuantizedLinear) for module in loaded.model.modules()):
        raise UserError(f"{settings.model} is quantized already; the float model is wanted")
    measure.check_weights(measure.linears(loaded.model))
    if paths:
        available = inputs.pictures(paths, settings.mode, settings.max_images, loaded.image_size)
    else:
        frames = settings.max_images or inputs.DEFAULT_FRAMES
        scenes = settings.scenes or inputs.DEFAULT_SCENES
        available = inputs.rendered(scenes, frames, settings.seed, loaded.image_size)
    planned = plan(settings, loaded.model, available, configs)
    for line in planned.lines:
        progress.say(line)

    writer = _Writer(folder, {})
    try:
        _rows(settings, loaded, planned, configs, writer, progress)
    except KeyboardInterrupt:
        kept = writer.write("interrupted", charts=True) if writer.rows else None
        raise Interrupted(kept) from None
    failed = any(row["status"] == "failed" for row in writer.rows)
    return writer.write("with failures" if failed else "complete", charts=True)


def _rows(
    settings: Settings,
    loaded: Any,
    planned: Planned,
    configs: Sequence[vq.QuantizationConfig],
    writer: _Writer,
    progress: Progress,
) -> None:
    """Runs the baseline and every scheme, and hands each row to the writer when it is done."""
    from .text import duration

    model, samples, passes = loaded.model, planned.samples, planned.passes
    baseline_forwards = planned.forwards
    progress.start(len(configs) * baseline_forwards)
    progress.scheme("Baseline_FP32", baseline_forwards)
    start = time.perf_counter()
    baseline = measure.run_baseline(model, samples, passes, tick=progress.tick)
    progress.done(_summary(baseline.row), time.perf_counter() - start)
    planned.costs = forecast.update(planned.costs, baseline.row["time"]["forward_ms_median"] / 1e3)
    rest = planned.seconds_of_schemes()
    budget = forecast.budget(bool(settings.images))
    if settings.runs is None and passes.runs > 1 and rest > budget:
        progress.say(
            f"FP32 was slower than forecast: {duration(rest)} to come, so one pass a scheme"
        )
        passes = planned.passes = Passes(1, passes.warmup, passes.device)
        rest = planned.seconds_of_schemes()
        progress.start(baseline_forwards + (len(configs) - 1) * planned.forwards)
    progress.say(f"from the baseline's own time: the other schemes take about {duration(rest)}")
    writer.parts = {
        "environment": environment.describe(settings.argv or sys.argv),
        "model": _model_block(loaded, baseline),
        "data": _data_block(settings, samples),
        "settings": {key: value for key, value in asdict(settings).items() if key != "argv"}
        | {"runs": passes.runs, "warmup": passes.warmup, "schemes": [c.name for c in configs]},
        "forecast": [
            asdict(cost) | {"row_s": cost.seconds(planned.forwards)} for cost in planned.costs
        ],
    }
    writer.add(baseline.row)
    by_name = {cost.name: cost for cost in planned.costs}
    for config in configs[1:]:
        progress.scheme(config.name, planned.forwards)
        why = None
        if config.quant_type == "bf16" and config.name not in settings.schemes:
            why = forecast.hopeless(by_name[config.name], planned.costs[0], planned.forwards)
        start = time.perf_counter()
        if why:
            row = measure.skipped_row(config, why)
        else:
            row = measure.run_scheme(model, samples, config, passes, baseline, tick=progress.tick)
        progress.done(_summary(row), time.perf_counter() - start)
        writer.add(row)
    writer.recheck = measure.recheck(model, samples, passes, baseline)


def _summary(row: Row) -> str:
    """A line on a finished row, for the progress display."""
    if row["status"] != "ok":
        return f"{row['name']}: {row['status'].upper()}: {row['reason']}"
    size, ms = row["bytes"], row["time"]["forward_ms_median"]
    error = "" if row["kind"] == "baseline" else f", error {100 * row['error']:.3f} %"
    return f"{row['name']}: {size['model_bytes'] / 1e6:.2f} MB, {ms:.1f} ms{error}"


def _model_block(loaded: Any, baseline: measure.Baseline) -> dict[str, Any]:
    # nn.MultiheadAttention uses its out_proj without calling it, so no hook sees it run.
    other = [name for name, layer in baseline.linears.items() if type(layer) is not nn.Linear]
    weights = sum(layer.weight.numel() for layer in baseline.linears.values())
    parameters = sum(p.numel() for p in loaded.model.parameters())
    return {
        "name": loaded.name,
        "source": loaded.source,
        "licence": loaded.licence,
        "sha256": loaded.sha256,
        "parameters": parameters,
        "parameter_bytes": baseline.model_bytes,
        "linear_layers": len(baseline.linears) - len(other),
        "linear_subclass_layers": len(other),
        "linear_weights": weights,
        "linear_share": weights / parameters,
        "linear_layers_not_reached": [
            name for name in baseline.linears if name not in baseline.reached and name not in other
        ],
        "outputs": {
            name: list(value.shape) for name, value in baseline.measured.outputs[0].items()
        },
    }


def _data_block(settings: Settings, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "description": "pictures" if settings.images else "rendered scenes of vggtquant",
        "synthetic": not settings.images,
        "preprocessing": settings.mode if settings.images else "none",
        "scenes": [
            {
                "name": sample.name,
                "frames": sample.images.shape[0],
                "height_px": sample.images.shape[2],
                "width_px": sample.images.shape[3],
                "ground_truth": sample.truth is not None,
                "images_sha256": dict(sample.sha256),
            }
            for sample in samples
        ],
    }
