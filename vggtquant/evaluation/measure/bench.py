# SPDX-License-Identifier: Apache-2.0
"""Runs a model in FP32 and under each scheme, scene by scene, and says what each forward gave.

What is measured comes as records, one a scene, for the journal; among them is what proves that the
quantized layers made the outputs. Rows and their verdicts are made of records by analyse/rows.py;
what to run is evaluate.py's choice.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ... import devices, environment
from ...errors import UserError
from ...linear import QuantizedLinear
from ...model import ModelReport, model_bytes, restore_model
from ...scoring.task_scores import Geometry
from ..records import Broke, End, Facts, Pair, Pairing, Record, Scene
from ..schema import GpuMemory, Kind, Layer
from . import pictures, scores, task, timing, variants
from .forward import Outputs, Runner, forward, linears, plainly, put, same_bits, sha256, watch
from .isolate import Isolation
from .variants import Variant


@dataclass(frozen=True)
class Sample:
    """The input of one forward: pictures (S,3,H,W) in [0,1], and their ground truth if known."""

    name: str
    images: torch.Tensor
    sha256: Mapping[str, str] = field(default_factory=dict)  # of each picture, by its name
    truth: Geometry | None = None


@dataclass(frozen=True)
class Passes:
    """How often a scene is run: `warmup` forwards that are not counted, then `runs` passes."""

    runs: int = 3
    warmup: int = 1


@dataclass
class Measured:
    """What the passes over one scene gave."""

    outputs: Outputs  # of the first pass
    seconds: list[float]
    calls: Counter[str]  # executions by module name in the first pass
    repeats: bool | None  # every later pass gave the same bits; None with a single pass
    peak_bytes: int
    gpu_peak: GpuMemory | None = None


@dataclass
class Subject:
    """What a row runs: a model, the layers whose executions count, and how to have it or FP32."""

    model: nn.Module
    facts: Facts
    watched: Mapping[str, nn.Module]
    originals: Mapping[str, nn.Module] = field(default_factory=dict)


def measure(
    model: nn.Module,
    images: torch.Tensor,
    passes: Passes,
    *,
    watched: Mapping[str, nn.Module],
    autocast: bool = False,
    tick: Callable[[], None] = lambda: None,
    runner: Runner = plainly,
) -> Measured:
    """Warms up, then runs a scene `passes.runs` times; the first pass is watched and kept.

    `tick` is called after each forward. Raises UserError for a model that returns no known output.
    """
    device = devices.device_of(model)
    cast = bfloat16(device, autocast)
    outputs: Outputs = {}
    seconds: list[float] = []
    first_calls: Counter[str] = Counter()
    repeats: bool | None = None
    environment.reset_peak_memory()
    devices.reset_peak(device)
    with torch.inference_mode():
        for _ in range(passes.warmup):
            with cast:
                forward(model, images, runner)
            tick()
        for turn in range(passes.runs):
            # Hooks stay on in every pass, so that all passes are timed alike.
            calls: Counter[str] = Counter()
            with watch(watched, calls), cast:  # autocast's cache of weights ends with the forward
                found, took = forward(model, images, runner)
            seconds.append(took)
            if turn == 0:
                outputs, first_calls = found, calls
            else:
                repeats = same_bits(found, outputs) and repeats is not False
            tick()
    memory = environment.peak_memory_bytes(), GpuMemory.of(devices.peak(device))
    return Measured(outputs, seconds, first_calls, repeats, *memory)


def bfloat16(device: torch.device, enabled: bool) -> torch.autocast:
    """Autocast as VGGT's own scripts use it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


# ---- what proves it ------------------------------------------------------------------------------


def _floats_held(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of swapped layers that hold a float tensor as large as their weight, or left the model.

    Asked after the run of those that were there before it, so that neither layers swapped too late
    nor layers put back too early pass.
    """
    held = []
    for name, module in modules.items():
        packed = False
        if isinstance(module, QuantizedLinear) and model.get_submodule(name) is module:
            size = module.in_features * module.out_features
            tensors = [*module.parameters(), *module.buffers()]
            packed = not any(t.is_floating_point() and t.numel() >= size > 1 for t in tensors)
        if not packed:
            held.append(name)
    return held


def _kernels_run(modules: Mapping[str, nn.Module]) -> dict[str, list[int]]:
    """The layers, by their number, whose last product each kernel made; forgets that product."""
    found: dict[str, list[int]] = {}
    for number, module in enumerate(modules.values()):
        if isinstance(module, QuantizedLinear) and module.last_kernel is not None:
            found.setdefault(module.last_kernel, []).append(number)
            module.last_kernel = None
    return found


# ---- records -------------------------------------------------------------------------------------


class Bench:
    """A float model, the scenes that it is measured on, and FP32's outputs on them."""

    def __init__(
        self,
        model: nn.Module,
        samples: Sequence[Sample],
        passes: Passes,
        tick: Callable[[], None] = lambda: None,
        isolation: Isolation | None = None,
        runner: Runner = plainly,
    ) -> None:
        self.model, self.samples, self.passes, self.tick = model, samples, passes, tick
        self.isolation, self.runner = isolation, runner
        self.device = devices.device_of(model)
        self.linears: Mapping[str, nn.Module] = watchable(model)
        self.expected_sha256: dict[str, str | None] = {}  # of FP32's outputs, by scene, where known
        self.seconds: dict[str, float] = {}  # of FP32's forward, by scene, where known
        self._fp32: dict[str, Outputs] = {}

    def know_fp32(self, record: Scene) -> None:
        """Takes over what a scene's record says of FP32, maybe that of an earlier process."""
        self.expected_sha256[record.scene] = record.sha256
        self.seconds[record.scene] = statistics.median(record.seconds)

    def fp32(self, sample: Sample) -> Outputs:
        """FP32's outputs on a scene, computed where this process has not done so.

        Raises UserError when an earlier process got other bits.
        """
        if sample.name not in self._fp32:
            with torch.inference_mode():
                outputs, _ = forward(self.model, sample.images, self.runner)
            if sha256(outputs) != self.expected_sha256.get(sample.name, sha256(outputs)):
                raise UserError(
                    f"FP32's outputs on {sample.name} are other bits than those of the journal, so "
                    "it cannot be continued here (another machine, or torch); --restart begins anew"
                )
            self._fp32[sample.name] = outputs
        return self._fp32[sample.name]

    def records(
        self, variant: Variant, todo: Sequence[Sample], *, known: bool = False
    ) -> Iterator[Record]:
        """Runs a row on the scenes `todo` and yields its records; `known`: not those on itself.

        Whatever a scheme raises becomes its last record. UserError and KeyboardInterrupt pass
        through. The model is as it was afterwards.
        """
        threads = torch.get_num_threads()
        report: list[ModelReport] = []
        try:
            if variant.kind is not Kind.BASELINE:
                for sample in todo:  # before the layers or threads that FP32 wants are gone
                    self.fp32(sample)
            subject = self._subject(variant, threads, report)
            if not known:
                yield subject.facts
            passes = replace(self.passes, warmup=0, runs=1) if variant.once else self.passes
            for sample in todo:
                record = self._scene(variant, sample, passes, subject)
                yield record
                passes = replace(passes, warmup=0)
                if record.nonfinite:
                    break
            else:
                if variant.kind is not Kind.BASELINE and not variant.once:
                    yield Pairing(scheme=variant.name, pairs=self._pairs(variant, subject))
                if self.isolation is not None and not variant.once:
                    yield self.isolation(variant, subject.model, self.samples[0].images)
            yield End(scheme=variant.name)
        except UserError:
            raise
        except Exception as error:  # a scheme that breaks is a failed row; the others still count
            reason = f"{type(error).__name__}: {_first_line(error)}"
            yield Broke(scheme=variant.name, reason=reason)
        finally:
            torch.set_num_threads(threads)
            for one in report:
                restore_model(self.model, one)
            put(self.model, self.linears)  # where a swap broke off halfway and left no report
            if self.device != devices.CPU:
                self.model.to(self.device)

    def _subject(self, variant: Variant, threads: int, report: list[ModelReport]) -> Subject:
        """Makes what the row runs; a swap's report is added to `report`."""
        if variant.file is not None:
            return self._packed(variant)
        facts = Facts(scheme=variant.name, model_bytes=0, watched=list(self.linears))
        watched, originals = self.linears, {}
        if variant.kind is Kind.QUANTIZED:
            start = time.perf_counter()
            done = variants.swap(self.model, variant.config, [s.images for s in self.samples])
            report.append(done)
            facts.prepare_s = time.perf_counter() - start
            facts.layers = list(map(Layer.of, done.layers))
            facts.notes = list(done.notes)
            facts.watched = [layer.name for layer in done.quantized]
            watched = {name: self.model.get_submodule(name) for name in facts.watched}
            originals = dict(done.originals)
            self._park(originals, devices.CPU)
            if done.bytes_after:
                facts.layers_before, facts.layers_after = done.bytes_before, done.bytes_after
                facts.bits_per_weight = done.bits_per_weight
        if variant.name == variants.OTHER_THREADS:
            torch.set_num_threads(variants.other_threads(threads))
            facts.notes = [f"{torch.get_num_threads()} threads instead of {threads}"]
        facts.model_bytes = model_bytes(self.model)
        return Subject(self.model, facts, watched, originals)

    def _packed(self, variant: Variant) -> Subject:
        """The model of a packed file, beside the float one."""
        from ...checkpoint import storage
        from ...checkpoint.document import Checkpoint

        assert variant.file is not None
        start = time.perf_counter()
        document = Checkpoint(variant.file).document
        model = self.model
        if variant.kind is not Kind.BASELINE:  # else there is no other model
            own = None if document.architecture else copy.deepcopy(self.model)
            model = storage.load(variant.file, model=own, device=self.device)
        seconds = time.perf_counter() - start
        watched = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
        noise = {layer.name: layer.sqnr_db for layer in document.layers}
        layers = []
        for name, module in watched.items():
            bias = 0 if module.bias is None else module.out_features
            shape = [module.out_features, module.in_features]
            layers.append(
                Layer(
                    name=name,
                    shape=shape,
                    scheme=f"{module.config.name}, {module.spec.label}",
                    bytes_before=4 * (shape[0] * shape[1] + bias),
                    bytes_after=module.nbytes,
                    sqnr_db=noise.get(name),
                )
            )
        weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
        after = sum(layer.bytes_after for layer in layers)
        skipped = [Layer(name=name, skipped=why) for name, why in document.skipped.items()]
        facts = Facts(
            scheme=variant.name,
            prepare_s=seconds,
            layers=[*layers, *skipped],
            notes=[f"loaded from {variant.file.name}; what is not quantized is as it stands there"],
            model_bytes=model_bytes(model),
            layers_before=sum(layer.bytes_before for layer in layers),
            layers_after=after,
            bits_per_weight=8 * after / weights if weights else None,
            watched=list(watched),
        )
        return Subject(model, facts, watched)

    def _scene(self, variant: Variant, sample: Sample, passes: Passes, subject: Subject) -> Scene:
        images = sample.images
        if variant.name == variants.NOISY_INPUT:
            images = variants.with_noise(images, sample.name)
        watched = subject.watched
        _kernels_run(watched)
        got = measure(
            subject.model,
            images,
            passes,
            watched=watched,
            autocast=variant.autocast,
            tick=self.tick,
            runner=self.runner,
        )
        nonfinite = scores.nonfinite(got.outputs)
        if variant.kind is Kind.BASELINE:
            for name, count in nonfinite.items():
                raise UserError(
                    f"the baseline's {name} holds {count} NaN or Inf on {sample.name}; "
                    "nothing can be compared with it"
                )
            self._fp32[sample.name] = got.outputs
        reference = self.fp32(sample)
        record = Scene(
            scheme=variant.name,
            scene=sample.name,
            seconds=got.seconds,
            peak_bytes=got.peak_bytes,
            gpu_peak=got.gpu_peak,
            repeats=got.repeats,
            calls=[got.calls[name] for name in watched],
            nonfinite=nonfinite,
            equal=same_bits(got.outputs, reference),
        )
        if variant.kind is Kind.BASELINE:
            record.sha256 = sha256(got.outputs)
            record.shapes = {name: list(value.shape) for name, value in got.outputs.items()}
        if variant.packed:
            record.float_weights = _floats_held(subject.model, watched)
            record.kernels = _kernels_run(watched)
        if not nonfinite:
            record.metrics, record.reasons = scores.score(reference, got.outputs)
            record.task, record.pose_errors, record.calibration = task.of_scene(
                got.outputs, reference, sample.truth
            )
            if sample is self.samples[0]:
                record.pictures = pictures.of_scene(got.outputs, reference, sample.images)
        return record

    def _pairs(self, variant: Variant, subject: Subject) -> list[Pair]:
        """The scheme and FP32 in turn, on all scenes."""
        cast = bfloat16(self.device, variant.autocast)
        self._park(subject.originals, self.device)

        def scheme(number: int) -> float:
            with cast:
                return forward(subject.model, self.samples[number].images, self.runner)[1]

        def fp32(number: int) -> float:
            return forward(self.model, self.samples[number].images, self.runner)[1]

        def swapped(layers: Mapping[str, nn.Module]) -> Callable[[], None]:
            return lambda: put(self.model, layers) if subject.originals else None

        typical = statistics.median(self.seconds.values()) if self.seconds else 0.0
        with torch.inference_mode():
            return timing.pairs(
                [sample.name for sample in self.samples],
                timing.Side(swapped(subject.watched), scheme),
                timing.Side(swapped(subject.originals), fp32),
                seconds=2 * typical,
                runs=self.passes.runs,
                clock=timing.Clock(counts_work=self.device == devices.CPU),
            )

    def _park(self, layers: Mapping[str, nn.Module], where: torch.device) -> None:
        """Brings float layers that were swapped out off the GPU, whose memory is then the scheme's
        alone, or back there. On a CPU they stay where they are."""
        if self.device != devices.CPU:
            for layer in layers.values():
                layer.to(where)


def watchable(model: nn.Module) -> Mapping[str, nn.Module]:
    """The layers whose executions are counted: Linear ones, or those that are packed already."""
    packed = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    return packed or linears(model)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
