# SPDX-License-Identifier: Apache-2.0
"""The main job: a model, some scenes and a list of schemes in, four report files out.

Checks everything that can be checked before the first forward, plans (plan.py), measures scheme by
scheme (measure.py) into a journal (journal.py), and writes reports of what the journal holds
(rows.py), so that an interruption costs only the forward that was running.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import vggtquant as vq

from .. import environment
from ..errors import UserError
from ..model import refuse_nonfinite
from .analyse import report, rows
from .measure import forecast, inputs, journal, measure, plan, sensitivity, variants
from .measure.isolate import Isolation
from .measure.journal import Journal, Record
from .measure.measure import Bench, Sample
from .measure.plan import Planned, Settings
from .measure.scores import Row
from .present.text import duration

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..progress import Progress


# Reports in the course of a run wait for so many times as long as the last ones took.
_WRITE_SHARE = 20


# Settings of which two runs may differ and be one evaluation; of threads, the number in use counts.
_BUDGET = ("max_drop", "max_bytes", "min_speedup")
_NOT_IDENTITY = (
    *("output_dir", "argv", "resume", "restart", "shard", "threads", "sensitivity"),
    *_BUDGET,
)


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


def evaluate(settings: Settings, progress: Progress) -> Result:
    """Runs the whole evaluation and writes its files into `settings.output_dir`.

    Raises UserError for bad input, before any work where that can be known, and Interrupted (a
    KeyboardInterrupt that carries what was kept) when it is stopped.
    """
    from .. import models

    plan.check(settings)
    configs = plan.configs_of(settings.schemes)
    device = models.check_device(settings.device)
    if device.type != "cpu":
        raise UserError(f"device {settings.device!r} is not served by this version; wanted cpu")
    folder = Path(settings.output_dir)
    with report.written(folder):
        return _evaluate(settings, configs, device, folder, progress)


def _evaluate(
    settings: Settings,
    configs: Sequence[vq.QuantizationConfig],
    device: torch.device,
    folder: Path,
    progress: Progress,
) -> Result:
    from .. import models

    _check_unfinished(settings, folder / journal.NAME)
    posed = inputs.posed(settings.images, settings.layout)
    paths = inputs.find(settings.images) if settings.images and posed is None else []
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)

    loaded = models.load_model(settings.model, device)
    if any(isinstance(module, vq.QuantizedLinear) for module in loaded.model.modules()):
        raise UserError(f"{settings.model} is quantized already; the float model is wanted")
    refuse_nonfinite(measure.linears(loaded.model))
    if posed is not None:
        settings = replace(settings, layout=posed.layout)
        available = inputs.posed_scenes(
            posed, settings.mode, settings.scenes, settings.max_images, loaded.image_size
        )
    elif paths:
        available = inputs.pictures(paths, settings.mode, settings.max_images, loaded.image_size)
    else:
        frames = settings.max_images or inputs.DEFAULT_FRAMES
        scenes = settings.scenes or inputs.DEFAULT_SCENES
        available = inputs.rendered(scenes, frames, settings.seed, loaded.image_size)
    planned, records = _begin(settings, loaded, available, configs, progress)
    with records:
        try:
            _run(settings, loaded, planned, records, progress)
        except KeyboardInterrupt:
            kept = write(folder, records.head, records.records, "interrupted")
            raise Interrupted(kept) from None
        return finish(folder, records.head, records.records)


# ---- the journal: begun, or gone on with ---------------------------------------------------------


def _check_unfinished(settings: Settings, path: Path) -> None:
    """Refuses to lose what an unfinished evaluation in the same folder has measured: UserError."""
    if settings.resume or settings.restart or not path.exists():
        return
    head, records, _ = journal.read(path)
    if any(record["kind"] == "scene" for record in records) and not is_complete(head, records):
        names = [v.name for v in variants.planned(head["settings"]["schemes"])]
        done = sum(journal.is_over([r for r in records if r["scheme"] == name]) for name in names)
        raise UserError(
            f"{path} holds an unfinished evaluation ({done} of {len(names)} rows): --resume goes "
            "on with it, --restart drops it, another --output_dir keeps it"
        )


def is_complete(head: Record, records: Sequence[Record]) -> bool:
    """Whether all rows, and the layers alone, were run to the end, left out or broke off."""
    names = [variant.name for variant in variants.planned(head["settings"]["schemes"])]
    if scheme := _scheme_of_layers(head):
        names.append(sensitivity.key(scheme))
    return all(journal.is_over([r for r in records if r["scheme"] == name]) for name in names)


def _scheme_of_layers(head: Record) -> str | None:
    """The scheme whose layers are tried one at a time here: on the first scene, so in one shard."""
    shard = head["settings"]["shard"]
    return None if shard and not shard.startswith("1/") else head["settings"].get("sensitivity")


def _begin(
    settings: Settings,
    loaded: LoadedModel,
    available: inputs.Inputs,
    configs: Sequence[vq.QuantizationConfig],
    progress: Progress,
) -> tuple[Planned, Journal]:
    """A plan and its journal: those of the run to be continued, or new ones.

    Raises UserError, naming what differs, when the journal is of another evaluation.
    """
    path = Path(settings.output_dir) / journal.NAME
    identity = _identity(settings, loaded)
    if not (settings.resume and path.exists()):
        planned = plan.plan(settings, loaded.model, available, configs, progress.say)
        return planned, journal.create(path, _head(settings, loaded, planned, identity))
    records = journal.reopen(path)
    try:
        planned = _continued(settings, available, identity, records)
    except BaseException:
        records.close()
        raise
    progress.say(f"going on with {path}: {len(records.records)} records are there")
    return planned, records


def _continued(
    settings: Settings, available: inputs.Inputs, identity: Record, records: Journal
) -> Planned:
    differing = journal.differences(records.head["identity"], identity)
    if differing:
        raise UserError(
            f"--resume cannot go on with {records.path}: {'; '.join(differing)}; --restart drops it"
        )
    records.head["settings"] |= {name: getattr(settings, name) for name in _BUDGET}
    if settings.sensitivity is not None:
        records.head["settings"]["sensitivity"] = settings.sensitivity
    planned = plan.again(settings, available, records.head)
    there = records.head["data"]["scenes"]
    for before, after in zip(there, _data_block(settings, planned.samples)["scenes"], strict=True):
        if before != after:
            raise UserError(
                f"--resume cannot go on with {records.path}: the pictures of scene "
                f"{before['name']} are others; --restart drops it"
            )
    return planned


def _identity(settings: Settings, loaded: LoadedModel) -> Record:
    """What must be the same for records of two processes to belong together."""
    given = asdict(settings)
    for name in _NOT_IDENTITY:
        del given[name]
    here = {
        "threads": torch.get_num_threads(),
        "model_sha256": loaded.sha256,
        "isa": vq.isa(),
        "vggtquant": vq.__version__,
        "torch": torch.__version__,
        "shard": "/".join(map(str, settings.shard)) if settings.shard else None,
    }
    plain: Record = {k: list(v) if isinstance(v, tuple) else v for k, v in (given | here).items()}
    return plain


def _head(
    settings: Settings, loaded: LoadedModel, planned: Planned, identity: Record
) -> dict[str, Any]:
    """The first line of a journal: all that a report says beside what is measured."""
    layers = measure.linears(loaded.model)
    # nn.MultiheadAttention uses its out_proj without calling it, so no hook sees it run.
    plain = [name for name, layer in layers.items() if type(layer) is nn.Linear]
    weights = sum(layer.weight.numel() for layer in layers.values())
    parameters = sum(p.numel() for p in loaded.model.parameters())
    private = ("argv", "resume", "restart")
    return {
        "journal": journal.VERSION,
        "identity": identity,
        "plan": planned.to_dict(),
        "linears": plain,
        "environment": environment.describe(settings.argv or sys.argv),
        "model": {
            "name": loaded.name,
            "source": loaded.source,
            "licence": loaded.licence,
            "sha256": loaded.sha256,
            "parameters": parameters,
            "parameter_bytes": vq.model_bytes(loaded.model),
            "linear_layers": len(plain),
            "linear_subclass_layers": len(layers) - len(plain),
            "linear_weights": weights,
            "linear_share": weights / parameters,
        },
        "data": _data_block(settings, planned.samples),
        "settings": {k: v for k, v in asdict(settings).items() if k not in private}
        | {
            "runs": planned.passes.runs,
            "warmup": planned.passes.warmup,
            "schemes": [cost.name for cost in planned.costs],
            "shard": identity["shard"],
        },
        "forecast": [
            asdict(cost) | {"row_s": cost.seconds(planned.forwards)} for cost in planned.costs
        ],
    }


def _description(settings: Settings) -> str:
    if settings.layout is not None:
        return f"scenes with ground truth ({settings.layout})"
    return "pictures" if settings.images else "rendered scenes of vggtquant"


def _data_block(settings: Settings, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "description": _description(settings),
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


# ---- the run -------------------------------------------------------------------------------------


def _run(
    settings: Settings,
    loaded: LoadedModel,
    planned: Planned,
    records: Journal,
    progress: Progress,
) -> None:
    """Runs what the journal lacks, and writes the reports after each row."""
    weights = Path(loaded.source)
    isolation = Isolation(settings.model, weights if weights.is_file() else None)
    bench = Bench(
        loaded.model,
        planned.samples,
        planned.passes,
        progress.tick,
        isolation if settings.isolate else None,
    )
    todo = variants.run_order(variants.planned(records.head["settings"]["schemes"]))
    progress.start(planned.forwards * len(planned.costs) + planned.floor_forwards)
    reports = _Running(Path(settings.output_dir), records)
    for variant in todo:
        records.retry(variant.name)
        forwards = len(planned.samples) if variant.once else planned.forwards
        progress.scheme(variant.name, forwards)
        start = time.perf_counter()
        if journal.is_over(records.of(variant.name)):
            progress.done(f"{variant.name}: kept", 0.0)
        else:
            _run_variant(settings, bench, variant, planned, records)
            summary = _summary(rows.rows(records.head, records.records), variant.name)
            progress.done(summary, time.perf_counter() - start)
        if variant.kind == "baseline":
            _know_baseline(bench, records)
        reports.write()
    if scheme := _scheme_of_layers(records.head):
        _try_layers(scheme, bench, records, progress)


def _run_variant(
    settings: Settings,
    bench: Bench,
    variant: variants.Variant,
    planned: Planned,
    records: Journal,
) -> None:
    there = records.of(variant.name)
    if variant.autocast and variant.name not in settings.schemes:
        cost = next(cost for cost in planned.costs if cost.name == variant.name)
        why = forecast.hopeless(cost, planned.costs[0], planned.forwards)
        if why:
            records.add({"kind": "skip", "scheme": variant.name, "reason": why})
            return
    done = {record["scene"] for record in there if record["kind"] == "scene"}
    left = [sample for sample in planned.samples if sample.name not in done]
    known = any(record["kind"] == "scheme" for record in there)
    for record in bench.records(variant, left, known=known):
        records.add(record)


def _try_layers(scheme: str, bench: Bench, records: Journal, progress: Progress) -> None:
    """Quantizes one layer at a time on the first scene, as far as the journal lacks it."""
    key, sample, start = sensitivity.key(scheme), bench.samples[0], time.perf_counter()
    records.retry(key)
    there = records.of(key)
    progress.scheme(key, 1)
    if not journal.is_over(there):
        found = sensitivity.records(
            bench.model,
            scheme,
            sample.name,
            lambda model: measure.forward(model, sample.images, bench.passes.device)[0],
            bench.fp32(sample),
            there,
        )
        begun = False
        with torch.inference_mode():
            for record in found:
                records.add(record)
                if record["kind"] == "layer":
                    progress.tick()
                if not begun:
                    begun = True
                    left = sensitivity.left(records.of(key))
                    seconds = left * bench.seconds.get(sample.name, 0.0)
                    progress.say(f"{left} layers one at a time: {duration(seconds)} or more")
                    progress.resize(left)
    progress.done(sensitivity.in_words(records.records), time.perf_counter() - start)


def _know_baseline(bench: Bench, records: Journal) -> None:
    """Tells the bench what FP32 gave, which another process may have measured."""
    for record in records.of(variants.BASELINE):
        if record["kind"] == "scene":
            bench.know_fp32(record)


def _summary(found: Sequence[Row], name: str) -> str:
    """A line on a finished row, for the progress display."""
    row = next(row for row in found if row["name"] == name)
    if row["status"] != "ok":
        return f"{row['name']}: {row['status'].upper()}: {row['reason']}"
    size, ms = row["bytes"], row["time"]["forward_ms_median"]
    error = "" if row["kind"] == "baseline" else f", error {100 * row['error']:.3f} %"
    return f"{row['name']}: {size['model_bytes'] / 1e6:.2f} MB, {ms:.1f} ms{error}"


# ---- the reports ---------------------------------------------------------------------------------


def write(
    folder: Path, head: Record, records: Sequence[Record], status: str, *, charts: bool = True
) -> Result | None:
    """Writes the reports of what is there; None, and no file, before FP32 is through."""
    from .present import text

    if not journal.is_over([r for r in records if r["scheme"] == variants.BASELINE]):
        return None
    document = rows.document(head, records, status)
    report.write_json(folder / report.JSON_NAME, document)
    report.write_bytes(folder / report.TEXT_NAME, text.full_report(document).encode())
    names = [report.JSON_NAME, report.TEXT_NAME]
    drawn = _drawn(document) if charts else {}
    for name in (report.CHARTS_NAME, report.PAGE_NAME, report.SENSITIVITY_NAME):
        if name in drawn:
            report.write_bytes(folder / name, drawn[name])
            names.append(name)
        else:  # one of other figures would not belong here
            (folder / name).unlink(missing_ok=True)
    return Result(document, [folder / name for name in names])


def _drawn(document: report.Document) -> dict[str, bytes]:
    """The files that are pictures, and the page, by name."""
    from .present import charts, heatmap, page

    found = {
        report.CHARTS_NAME: charts.draw(document),
        report.PAGE_NAME: page.draw(document).encode(),
    }
    if document["sensitivity"]:
        found[report.SENSITIVITY_NAME] = heatmap.draw(document["sensitivity"])
    return found


def finish(folder: Path, head: Record, records: Sequence[Record]) -> Result:
    """Writes the last reports of a complete evaluation."""
    failed = any(row["status"] == "failed" for row in rows.rows(head, records))
    result = write(folder, head, records, "with failures" if failed else "complete")
    assert result is not None  # FP32 is the first row of all
    return result


class _Running:
    """Writes the reports in the course of a run, as often as costs little beside it."""

    def __init__(self, folder: Path, records: Journal) -> None:
        self._folder, self._records = folder, records
        self._next = 0.0

    def write(self) -> None:
        start = time.monotonic()
        if start < self._next:
            return
        write(self._folder, self._records.head, self._records.records, "running", charts=False)
        end = time.monotonic()
        self._next = end + _WRITE_SHARE * (end - start)
