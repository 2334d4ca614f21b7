# SPDX-License-Identifier: Apache-2.0
"""The main job: a model, some scenes and a list of schemes in, the report files out.

Checks everything that can be checked before the first forward, plans (measure/plan.py), measures
scheme by scheme (measure/bench.py) into a journal, and writes reports of what the journal holds, so
that an interruption costs only the forward that was running.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from msgspec import structs
from torch import nn

from .. import adapters, devices, environment, ops
from ..about import VERSION
from ..adapter import PATCH
from ..configs import LONGEST_NAME, QuantizationConfig, get_config
from ..errors import UserError
from ..files import output_folder
from ..linear import QuantizedLinear
from ..model import model_bytes, refuse_nonfinite
from ..notes import told
from ..weights import names, tensors
from .analyse import rows, shares
from .analyse.document import compose
from .formatting import duration
from .measure import forecast, inputs, journal, layers, plan, variants
from .measure.bench import Bench, Sample, watchable
from .measure.forward import Runner, forward, linears, plainly
from .measure.isolate import Isolation
from .measure.journal import Journal
from .measure.plan import Planned, Settings
from .measure.variants import Variant
from .records import Facts, Head, LayerAlone, Record, Scene, Skip
from .schema import Data, Document, Environment, Kind, Model, Row, SceneInput, State, Status, Why
from .schema import Settings as SettingsBlock

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..progress import Progress


# Reports in the course of a run wait for so many times as long as the last ones took.
_WRITE_SHARE = 20

# Settings of which two runs may differ and be one evaluation; of threads, the number in use counts.
_BUDGET = ("max_drop", "max_bytes", "min_speedup")
_NOT_IDENTITY = (
    *("output_dir", "argv", "resume", "restart", "shard", "threads", "sensitivity"),
    "images",  # places differ by machine; the names and contents of pictures count
    *_BUDGET,
)


@dataclass
class Result:
    """A finished, failed or interrupted evaluation."""

    document: Document
    files: list[Path]

    @property
    def failed(self) -> list[str]:
        """Names of the schemes that failed."""
        return [row.name for row in self.document.schemes if row.status is Status.FAILED]


class Interrupted(KeyboardInterrupt):
    """The evaluation was stopped; `result` holds what was kept, or None before the first row."""

    def __init__(self, result: Result | None) -> None:
        super().__init__("interrupted")
        self.result = result


@dataclass
class Task:
    """What is measured: the float model, its rows, and the inputs that there are."""

    settings: Settings
    loaded: LoadedModel
    rows: list[Variant]
    available: inputs.Inputs
    runner: Runner = plainly

    @property
    def watched(self) -> Any:
        """The layers whose executions count."""
        return watchable(self.loaded.model)


def evaluate(
    settings: Settings,
    progress: Progress,
    *,
    model: nn.Module | None = None,
    data: inputs.Inputs | None = None,
    runner: Runner = plainly,
    draw: bool = True,
) -> Result:
    """Runs the whole evaluation and writes its files into `settings.output_dir`.

    model, data: instead of what `settings` name. draw: the page and the pictures, too.

    Raises UserError for bad input, before any work where that can be known, and Interrupted (a
    KeyboardInterrupt that carries what was kept) when it is stopped.
    """

    plan.check(settings)
    settings = replace(settings, device=str(plan.chosen_device(settings, model)))
    folder = Path(settings.output_dir)
    with output_folder(folder):
        _check_unfinished(settings, folder / journal.NAME)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        task = _task(settings, model, data, progress.watching(runner), progress)
        planned, records = _begin(task, progress)
        with records:
            try:
                _run(task, planned, records, progress)
            except KeyboardInterrupt:
                kept = write(folder, records.head, records.records, State.INTERRUPTED)
                raise Interrupted(kept) from None
            return finish(folder, records.head, records.records, charts=draw)


# ---- what is evaluated ---------------------------------------------------------------------------


def _task(
    settings: Settings,
    given: nn.Module | None,
    data: inputs.Inputs | None,
    runner: Runner,
    progress: Progress,
) -> Task:
    loaded, packed, alone = _models(settings, given)
    if not alone:
        _check_weights(linears(loaded.model))
    size = loaded.image_size
    if settings.layout is not None and not settings.images:
        raise UserError(f"--layout is {settings.layout}; it wants one folder with ground truth")
    available = (
        data if data is not None else told(progress.say, inputs_of, settings, size, loaded.patch)
    )
    settings = replace(settings, layout=available.layout)
    found = plan.rows_of(settings, packed, alone)
    return Task(settings, loaded, found, available, runner)


def _check_weights(layers: Mapping[str, nn.Linear]) -> None:
    """UserError for weights that are NaN, infinite or more precise than float32."""
    for name, layer in layers.items():
        if layer.weight.dtype == torch.float64:
            raise UserError(f"layer {name} is float64; wanted a float32 model: model.float()")
    refuse_nonfinite(layers)


def _models(
    settings: Settings, given: nn.Module | None
) -> tuple[LoadedModel, Variant | None, bool]:
    """The float model, the row of a packed file if there is one, and whether that is all."""
    from .. import models
    from ..checkpoint.document import is_checkpoint

    if given is not None:
        loaded = _given(settings, given)
    elif is_checkpoint(Path(settings.model)):
        return _packed(settings)
    else:
        loaded = models.load_model(settings.model, settings.place, adapter=settings.adapter)
    if settings.source is not None:
        raise UserError(f"--source is for a packed file; {settings.model} is none")
    # A compiled forward runs neither hooks nor, once it is compiled, other layers.
    if isinstance(inner := getattr(loaded.model, "_orig_mod", None), nn.Module):
        loaded = replace(loaded, model=inner)
    if any(isinstance(module, QuantizedLinear) for module in loaded.model.modules()):
        raise UserError(
            f"{settings.model} is quantized already; the float model is wanted, or the packed file"
        )
    return loaded, None, False


def _given(settings: Settings, model: nn.Module) -> LoadedModel:
    """A model that the caller built, moved to where it is evaluated."""
    from .. import models

    there = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(there) > 1:
        raise UserError(f"{settings.model} is on {' and '.join(there)}; wanted one device")
    found = adapters.use(model, settings.adapter)
    size = int(getattr(model, "image_size", found.image_size))
    sha256 = tensors.state_hash(model)
    model.to(settings.place)
    return models.LoadedModel(
        model, settings.model, sha256, "given in Python", "not known here", size, found.patch
    )


def _packed(settings: Settings) -> tuple[LoadedModel, Variant, bool]:
    """A packed file with its float source: given, found by the recorded hash, or none."""
    from .. import models
    from ..checkpoint import inspection

    path = Path(settings.model)
    document = inspection.verified(path).document
    config = replace(document.configs[0], name=path.name[-LONGEST_NAME:])
    address = settings.source or _source(path, document.source.name, document.source.sha256)
    if address is None:
        alone = Variant(config.name, Kind.BASELINE, config, path)
        loaded = models.load_model(path, settings.place, adapter=settings.adapter)
        return loaded, alone, True
    loaded = models.load_model(address, settings.place, adapter=settings.adapter)
    wanted = document.source.sha256
    if settings.source is not None and wanted and loaded.sha256 != wanted:
        raise UserError(
            f"{path} was made from other weights than {address}: SHA-256 {wanted[:16]}... there, "
            f"{loaded.sha256[:16]}... here"
        )
    return loaded, Variant(config.name, Kind.QUANTIZED, config, path), False


def _source(path: Path, name: str, sha256: str) -> str | None:
    """What the file was made from, where that is at hand and the same to the bit."""
    from .. import models

    for address in dict.fromkeys((name, str(path.parent / Path(name).name))):
        if not name or not sha256:
            break
        try:
            place = names.resolve(address)
            if place.files and tensors.file_hash(place.files) != sha256:
                continue
            if models.load_model(address).sha256 == sha256:
                return address
        except UserError:
            continue
    return None


def inputs_of(settings: Settings, size: int, patch: int = PATCH) -> inputs.Inputs:
    """The scenes that the settings name."""
    images, most = settings.images, settings.max_images
    if not images:
        if settings.groups is not None:
            raise UserError(f"--groups is {settings.groups}; it wants one folder of pictures")
        frames = most or inputs.DEFAULT_FRAMES
        count = settings.scenes or inputs.DEFAULT_SCENES
        return inputs.rendered(count, frames, settings.seed, size)
    found = inputs.posed(images, settings.layout, settings.mode, settings.scenes, most, size, patch)
    if found is not None:
        if settings.groups is not None:
            raise UserError(
                f"--groups is {settings.groups}; {images[0]} holds scenes with ground truth"
            )
        return found
    return inputs.pictures(
        images,
        settings.mode,
        most,
        size,
        scenes=settings.scenes,
        groups=settings.groups,
        patch=patch,
    )


# ---- the journal: begun, or gone on with ---------------------------------------------------------


def variants_of(head: Head) -> list[Variant]:
    """The rows that a journal's head tells of, in the report's order."""
    configs = head.configs
    if head.settings.source == ALONE:
        return [Variant(configs[0].name, Kind.BASELINE, configs[0], Path(head.settings.model))]
    packed = {config.name for config in configs} & {Path(head.settings.model).name}
    return [
        replace(variant, file=Path(head.settings.model)) if variant.name in packed else variant
        for variant in variants.planned(configs, head.settings.device)
    ]


ALONE = "none"
"""The source of a packed file that is evaluated without its float model."""


def _check_unfinished(settings: Settings, path: Path) -> None:
    """Refuses to lose what an unfinished evaluation in the same folder has measured: UserError."""
    if settings.resume or settings.restart or not journal.begun(path):
        return
    head, records, _ = journal.read(path)
    if journal.kind(records, Scene) and not is_complete(head, records):
        there = [v.name for v in variants_of(head)]
        done = sum(journal.is_over([r for r in records if r.scheme == name]) for name in there)
        raise UserError(
            f"{path} holds an unfinished evaluation ({done} of {len(there)} rows): --resume goes "
            "on with it, --restart drops it, another --output_dir keeps it"
        )


def is_complete(head: Head, records: Sequence[Record]) -> bool:
    """Whether all rows, and the layers alone, were run to the end, left out or broke off."""
    there = [variant.name for variant in variants_of(head)]
    if scheme := _scheme_of_layers(head):
        there.append(layers.key(scheme))
    return all(journal.is_over([r for r in records if r.scheme == name]) for name in there)


def _scheme_of_layers(head: Head) -> str | None:
    """The scheme whose layers are tried one at a time here: on the first scene, so in one shard."""
    shard = head.settings.shard
    return None if shard and not shard.startswith("1/") else head.settings.sensitivity


def _begin(task: Task, progress: Progress) -> tuple[Planned, Journal]:
    """A plan and its journal: those of the run to be continued, or new ones.

    Raises UserError, naming what differs, when the journal is of another evaluation.
    """
    settings = task.settings
    path = Path(settings.output_dir) / journal.NAME
    identity = _identity(task)
    if not (settings.resume and journal.begun(path)):
        planned = plan.plan(
            settings,
            task.loaded.model,
            task.watched,
            task.available,
            task.rows,
            progress.say,
            task.runner,
        )
        return planned, journal.create(path, _head(task, planned, identity))
    records = journal.reopen(path)
    try:
        planned = _continued(task, identity, records)
    except BaseException:
        records.close()
        raise
    progress.say(f"going on with {path}: {len(records.records)} records are there")
    return planned, records


def _continued(task: Task, identity: dict[str, Any], records: Journal) -> Planned:
    differing = journal.differences(records.head.identity, identity)
    if differing:
        raise UserError(
            f"--resume cannot go on with {records.path}: {'; '.join(differing)}; --restart drops it"
        )
    given = task.settings
    changes = {name: getattr(given, name) for name in _BUDGET}
    if given.sensitivity is not None:
        changes |= {"sensitivity": given.sensitivity}
    records.head.settings = structs.replace(records.head.settings, **changes)
    planned = plan.again(given, task.available, records.head)
    there = records.head.data.scenes
    for before, after in zip(there, _data(task, planned.samples).scenes, strict=True):
        if before != after:
            raise UserError(
                f"--resume cannot go on with {records.path}: the pictures of scene "
                f"{before.name} are others; --restart drops it"
            )
    return planned


def _shard(settings: Settings) -> str | None:
    return "/".join(map(str, settings.shard)) if settings.shard else None


def _identity(task: Task) -> dict[str, Any]:
    """What must be the same for records of two processes to belong together."""
    given = {k: v for k, v in asdict(task.settings).items() if k not in _NOT_IDENTITY}
    for name in ("model", "source"):  # of a place, the weights count; of code, its name too
        if given[name] is not None and Path(given[name]).exists():
            del given[name]
    given |= {
        "configs": [row.name for row in task.rows[1:] if not row.once],
        "threads": torch.get_num_threads(),
        "model_sha256": task.loaded.sha256,
        "packed_sha256": [_file_sha256(row.file) for row in task.rows if row.file],
        "data": task.available.description,
        "names_sha256": task.available.names_sha256,
        "isa": ops.isa(),
        "vggtquant": VERSION,
        "torch": str(torch.__version__),
        "shard": _shard(task.settings),
    }
    found: dict[str, Any] = msgspec.to_builtins(
        {("schemes" if k == "configs" else k): v for k, v in given.items()}
    )
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def _file_sha256(path: Path) -> str:
    from ..checkpoint.document import Checkpoint

    return tensors.file_hash((Checkpoint(path).path,))


def _head(task: Task, planned: Planned, identity: dict[str, Any]) -> Head:
    """The first line of a journal: all that a report says beside what is measured."""
    settings, loaded = task.settings, task.loaded
    found = task.watched
    # nn.MultiheadAttention uses its out_proj without calling it, so no hook sees it run.
    plain = [n for n, layer in found.items() if type(layer) in (nn.Linear, QuantizedLinear)]
    weights = sum(layer.in_features * layer.out_features for layer in found.values())
    parameters = sum(p.numel() for p in loaded.model.parameters())
    alone = task.rows[0].file is not None
    given = vars(settings) | {
        "source": ALONE if alone else settings.source,
        "images": list(settings.images),
        "schemes": [row.name for row in task.rows if not row.once],
        "runs": planned.passes.runs,
        "warmup": planned.passes.warmup,
        "shard": _shard(settings),
    }
    return Head(
        journal=journal.VERSION,
        identity=identity,
        plan=planned.block(),
        configs=[row.config for row in task.rows if not row.once],
        linears=plain,
        environment=describe(settings.argv or tuple(sys.argv), settings.place),
        model=Model(
            name=loaded.name,
            source=loaded.source,
            licence=loaded.licence,
            sha256=loaded.sha256,
            parameters=parameters,
            parameter_bytes=model_bytes(loaded.model),
            linear_layers=len(plain),
            linear_subclass_layers=len(found) - len(plain),
            linear_weights=weights,
            linear_share=weights / max(parameters, weights),
        ),
        data=_data(task, planned.samples),
        settings=SettingsBlock(**{name: given[name] for name in SettingsBlock.__struct_fields__}),
        forecast=[
            structs.replace(cost, row_s=forecast.row_s(cost, planned.forwards))
            for cost in planned.costs
        ],
    )


def describe(argv: Sequence[str], device: torch.device | None = None) -> Environment:
    """The environment block of a report of an evaluation on the device; None: on the CPU."""
    return msgspec.convert(environment.describe(argv, device), Environment)


def _data(task: Task, samples: Sequence[Sample]) -> Data:
    return Data(
        description=task.available.description,
        synthetic=task.available.synthetic,
        preprocessing=task.settings.mode if task.settings.images else "none",
        scenes=[
            SceneInput(
                name=sample.name,
                frames=sample.images.shape[0],
                height_px=sample.images.shape[2],
                width_px=sample.images.shape[3],
                ground_truth=sample.truth is not None,
                images_sha256=dict(sample.sha256),
            )
            for sample in samples
        ],
    )


# ---- the run -------------------------------------------------------------------------------------


def _run(task: Task, planned: Planned, records: Journal, progress: Progress) -> None:
    """Runs what the journal lacks, and writes the reports after each row."""
    settings = task.settings
    weights = Path(task.loaded.source)
    isolation = Isolation(settings.model, weights if weights.is_file() else None, settings.adapter)
    bench = Bench(
        task.loaded.model,
        planned.samples,
        planned.passes,
        progress.tick,
        isolation if settings.isolate else None,
        task.runner,
    )
    forwards = planned.forwards * len(planned.costs) + planned.floor_forwards
    progress.start(forwards)
    reports = _Running(Path(settings.output_dir), records)
    for variant in variants.run_order(task.rows):
        records.retry(variant.name)
        progress.scheme(variant.name, len(planned.samples) if variant.once else planned.forwards)
        start = time.perf_counter()
        if journal.is_over(records.of(variant.name)):
            progress.done(f"{variant.name}: kept", 0.0)
        else:
            _run_variant(task, bench, variant, planned, records)
            found = rows.rows(task.rows, records.records, records.head.data.scenes)
            progress.done(_summary(found, variant.name), time.perf_counter() - start)
        if variant.kind is Kind.BASELINE:
            for record in journal.kind(records.of(variant.name), Scene):
                bench.know_fp32(record)
        reports.write()
    if scheme := _scheme_of_layers(records.head):
        _try_layers(get_config(scheme), bench, records, progress)


def _run_variant(
    task: Task, bench: Bench, variant: Variant, planned: Planned, records: Journal
) -> None:
    there = records.of(variant.name)
    on_cpu = task.settings.place == devices.CPU
    is_default = variant.kind is Kind.REFERENCE and task.settings.configs is None
    if variant.autocast and is_default and on_cpu:
        work = forecast.count(bench.model, bench.linears, _shape(planned.samples[0]), task.runner)
        if forecast.hopeless(work, len(planned.samples)):
            reason = Why.SLOW.text(times=f"{forecast.BF16_TIMES:g}", name=variant.name)
            records.add(Skip(scheme=variant.name, why=Why.SLOW, reason=reason))
            return
    done = {record.scene for record in journal.kind(there, Scene)}
    left = [sample for sample in planned.samples if sample.name not in done]
    for record in bench.records(variant, left, known=bool(journal.kind(there, Facts))):
        records.add(record)


def _shape(sample: Sample) -> forecast.Shape:
    frames, _, height, width = sample.images.shape
    return forecast.Shape(frames, height, width)


def _try_layers(
    config: QuantizationConfig, bench: Bench, records: Journal, progress: Progress
) -> None:
    """Quantizes one layer at a time on the first scene, as far as the journal lacks it."""
    key, sample, start = layers.key(config.name), bench.samples[0], time.perf_counter()
    records.retry(key)
    there = records.of(key)
    progress.scheme(key, 1)
    if not journal.is_over(there):
        found = layers.records(
            bench.model,
            config,
            sample.name,
            lambda model: forward(model, sample.images, bench.runner)[0],
            bench.fp32(sample),
            there,
        )
        begun = False
        with torch.inference_mode():
            for record in found:
                records.add(record)
                if isinstance(record, LayerAlone):
                    progress.tick()
                if not begun:
                    begun = True
                    left = layers.left(records.of(key))
                    seconds = left * bench.seconds.get(sample.name, 0.0)
                    progress.say(f"{left} layers one at a time: {duration(seconds)} or more")
                    progress.resize(left)
    progress.done(shares.in_words(records.records), time.perf_counter() - start)


def _summary(found: Sequence[Row], name: str) -> str:
    """A line on a finished row, for the progress display."""
    row = next(row for row in found if row.name == name)
    if not row.ok:
        return f"{row.name}: {row.status.value.upper()}: {row.reason}"
    error = "" if row.kind is Kind.BASELINE else f", error {100 * (row.error or 0):.3f} %"
    return f"{row.name}: {row.nbytes / 1e6:.2f} MB, {row.timed.forward_ms_median:.1f} ms{error}"


# ---- the reports ---------------------------------------------------------------------------------


def write(
    folder: Path, head: Head, records: Sequence[Record], status: State, *, charts: bool = True
) -> Result | None:
    """Writes the reports of what is there; None, and no file, before FP32 is through."""
    from .present import files

    found = variants_of(head)
    if not journal.is_over([r for r in records if r.scheme == found[0].name]):
        return None
    document = compose(head, records, found, status)
    return Result(document, files.write(folder, document, charts=charts))


def finish(folder: Path, head: Head, records: Sequence[Record], *, charts: bool = True) -> Result:
    """Writes the last reports of a complete evaluation."""
    found = rows.rows(variants_of(head), records, head.data.scenes)
    failed = any(row.status is Status.FAILED for row in found)
    state = State.WITH_FAILURES if failed else State.COMPLETE
    result = write(folder, head, records, state, charts=charts)
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
        write(self._folder, self._records.head, self._records.records, State.RUNNING, charts=False)
        end = time.monotonic()
        self._next = end + _WRITE_SHARE * (end - start)
