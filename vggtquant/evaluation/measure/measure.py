# SPDX-License-Identifier: Apache-2.0
"""Runs a model in FP32 and under each scheme, scene by scene, and says what each forward gave.

What is measured comes as records, one a scene, for the journal; among them is what proves that the
quantized layers made the outputs. Rows and their verdicts are made of records by rows.py; what to
run is evaluate.py's choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

import vggtquant as vq

from ... import environment, vggt
from ...errors import UserError
from ...scoring import task_scores
from . import energy, pictures, scores, task, variants
from .isolate import Isolation
from .journal import Record
from .scores import Outputs
from .variants import Variant


@dataclass(frozen=True)
class Sample:
    """The input of one forward: pictures (S,3,H,W) in [0,1], and their ground truth if known."""

    name: str
    images: torch.Tensor
    sha256: Mapping[str, str] = field(default_factory=dict)  # of each picture, by its name
    truth: task_scores.Geometry | None = None


# FP32 is timed beside each scheme for about so long, by so many forwards at most.
_BESIDE_SECONDS, _MOST_BESIDE = 0.4, 16
# A longer forward is timed once beside a scheme, and not at all where one pass has to do.
_LONG_SECONDS = 1.0


@dataclass(frozen=True)
class Passes:
    """How often a scene is run: `warmup` forwards that are not counted, then `runs` passes."""

    runs: int = 3
    warmup: int = 1
    device: str = "cpu"


@dataclass
class Measured:
    """What the passes over one scene gave."""

    outputs: Outputs  # of the first pass
    seconds: list[float]
    calls: Counter[str]  # executions by module name in the first pass
    repeats: bool | None  # every later pass gave the same bits; None with a single pass
    peak_bytes: int
    joules: float | None  # a forward


def forwards_beside(seconds: float, runs: int) -> int:
    """How often FP32, of so many seconds a forward, is timed before a scheme and after it.

    >>> forwards_beside(0.05, 3), forwards_beside(0.5, 3), forwards_beside(2, 3)
    (8, 2, 1)
    """
    if seconds > _LONG_SECONDS:
        return 1 if runs > 1 else 0
    return max(2, min(_MOST_BESIDE, round(_BESIDE_SECONDS / max(seconds, 1e-9))))


# ---- one scene, watched --------------------------------------------------------------------------


@contextlib.contextmanager
def _watch(modules: Mapping[str, nn.Module], calls: Counter[str]) -> Iterator[None]:
    """Counts the executions of `modules` by name, through forward hooks."""

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: calls.update((name,))

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def forward(model: nn.Module, images: torch.Tensor, device: str = "cpu") -> tuple[Outputs, float]:
    """The known outputs of one forward, on the CPU, and its seconds.

    Raises UserError for a model that returns none.
    """
    images = images.to(device)
    _synchronize(device)
    start = time.perf_counter()
    predictions = model(images)
    _synchronize(device)
    seconds = time.perf_counter() - start
    if not isinstance(predictions, Mapping):
        raise UserError(
            f"the model returned {type(predictions).__name__}; wanted a dict of named outputs"
        )
    outputs = {
        name: value.detach().to("cpu") for name, value in vggt.split_outputs(predictions).items()
    }
    if not outputs:
        raise UserError(f"none of the model's outputs is known: {', '.join(map(str, predictions))}")
    return outputs, seconds


def measure(
    model: nn.Module,
    images: torch.Tensor,
    passes: Passes,
    *,
    watched: Mapping[str, nn.Module],
    autocast: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Measured:
    """Warms up, then runs a scene `passes.runs` times; the first pass is watched and kept.

    `tick` is called after each forward. Raises UserError for a model that returns no known output.
    """
    cast = torch.autocast(passes.device.partition(":")[0], torch.bfloat16, enabled=autocast)
    outputs: Outputs = {}
    seconds: list[float] = []
    first_calls: Counter[str] = Counter()
    repeats: bool | None = None
    environment.reset_peak_memory()
    with torch.inference_mode():
        for _ in range(passes.warmup):
            with cast:
                forward(model, images, passes.device)
            tick()
        before = energy.read()
        for turn in range(passes.runs):
            # Hooks stay on in every pass, so that all passes are timed alike.
            calls: Counter[str] = Counter()
            with _watch(watched, calls), cast:  # autocast's cache of weights ends with the forward
                found, took = forward(model, images, passes.device)
            seconds.append(took)
            if turn == 0:
                outputs, first_calls = found, calls
            else:
                repeats = same_bits(found, outputs) and repeats is not False
            tick()
        joules = before.joules_until(energy.read())
    return Measured(
        outputs,
        seconds,
        first_calls,
        repeats,
        environment.peak_memory_bytes(),
        None if joules is None else joules / passes.runs,
    )


def same_bits(a: Outputs, b: Outputs) -> bool:
    """True when both hold the same outputs with the same bits (NaN counts as different)."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def sha256(outputs: Outputs) -> str:
    """SHA-256 over names, shapes and bytes of outputs."""
    digest = hashlib.sha256()
    for name, value in sorted(outputs.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- checks --------------------------------------------------------------------------------------


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The model's Linear layers by name, subclasses too; UserError when there is none."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not found:
        raise UserError(f"{type(model).__name__} has no Linear layer; there is nothing to quantize")
    return found


def _floats_held(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of swapped layers that hold a float tensor as large as their weight, or left the model.

    Asked after the run of those that were there before it, so that neither layers swapped too late
    nor layers put back too early pass.
    """
    held = []
    for name, module in modules.items():
        packed = False
        if isinstance(module, vq.QuantizedLinear) and model.get_submodule(name) is module:
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
        if isinstance(module, vq.QuantizedLinear) and module.last_kernel is not None:
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
    ) -> None:
        self.model, self.samples, self.passes, self.tick = model, samples, passes, tick
        self.isolation = isolation
        self.linears = linears(model)
        self.expected_sha256: dict[str, str] = {}  # of FP32's outputs, by scene, where known
        self.seconds: dict[str, float] = {}  # of FP32's forward, by scene, where known
        self._fp32: dict[str, Outputs] = {}
        self._beside: list[tuple[str, float]] = []

    def know_fp32(self, record: Record) -> None:
        """Takes over what a scene's record says of FP32, maybe that of an earlier process."""
        self.expected_sha256[record["scene"]] = record["sha256"]
        self.seconds[record["scene"]] = statistics.median(record["seconds"])

    def fp32(self, sample: Sample) -> Outputs:
        """FP32's outputs on a scene, computed where this process has not done so.

        Raises UserError when an earlier process got other bits.
        """
        if sample.name not in self._fp32:
            with torch.inference_mode():
                outputs, _ = forward(self.model, sample.images, self.passes.device)
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

        Whatever a scheme raises becomes its last record, of kind "error". UserError and
        KeyboardInterrupt pass through. The model is as it was afterwards.
        """
        timed = variant.kind != "baseline" and not variant.once
        if timed:
            yield from self._fp32_beside(variant, "before")
        failed = False
        for record in self._measured(variant, todo, known):
            failed = record["kind"] == "error"
            yield {"kind": "", "scheme": variant.name} | record
        if timed and not failed:
            self._beside = []
            yield from self._fp32_beside(variant, "after")
        if not failed:
            yield {"kind": "end", "scheme": variant.name}

    def _fp32_beside(self, variant: Variant, when: str) -> Iterator[Record]:
        """FP32's times on scenes spread evenly; nothing where that takes long.

        On a machine that others use, a scheme's time means something only beside an FP32 time of
        the same minute. What came after the last scheme is what comes before the next.
        """
        if not self._beside and self.seconds:
            self._beside = self._fp32_times()
        if self._beside:
            found = {"when": when, "seconds": self._beside}
            yield {"kind": "beside", "scheme": variant.name} | found

    def _fp32_times(self) -> list[tuple[str, float]]:
        """Scene and seconds of each of FP32's forwards beside a scheme."""
        typical = statistics.median(self.seconds.values())
        count = forwards_beside(typical, self.passes.runs)
        found = []
        warmup = min(1, max(0, count - 1))  # what ran last may have left other weights in caches
        for i in range(count):
            sample = self.samples[i * len(self.samples) // count]
            passes = Passes(1, warmup, self.passes.device)
            again = measure(self.model, sample.images, passes, watched=self.linears)
            found.append((sample.name, again.seconds[0]))
            warmup = 0
        return found

    def _measured(self, variant: Variant, todo: Sequence[Sample], known: bool) -> Iterator[Record]:
        report: vq.ModelReport | None = None
        threads = torch.get_num_threads()
        try:
            facts: Record = {"kind": "scheme", "prepare_s": None, "layers": [], "notes": []}
            if variant.kind != "baseline":
                for sample in todo:  # before the layers or threads that FP32 wants are gone
                    self.fp32(sample)
            if variant.kind == "quantized":
                start = time.perf_counter()
                _, report = vq.quantize_model(self.model, variant.config, keep_originals=True)
                facts["prepare_s"] = time.perf_counter() - start
                facts["layers"] = report.to_dict()["layers"]
                facts["notes"] = list(report.notes)
            if variant.name == variants.OTHER_THREADS:
                torch.set_num_threads(variants.other_threads(threads))
                facts["notes"] = [f"{torch.get_num_threads()} threads instead of {threads}"]
            names = [layer.name for layer in report.quantized] if report else list(self.linears)
            watched = {name: self.model.get_submodule(name) for name in names}
            if not known:
                yield facts | self._bytes(report) | {"watched": names}
            passes = replace(self.passes, warmup=0, runs=1) if variant.once else self.passes
            for sample in todo:
                record = self._scene(variant, sample, passes, watched)
                yield record
                passes = replace(passes, warmup=0)
                if record["nonfinite"]:
                    return
            if self.isolation is not None and not variant.once:
                images = self.samples[0].images
                yield {"kind": "isolated", **self.isolation(variant, self.model, images)}
        except UserError:
            raise
        except Exception as error:  # a scheme that breaks is a failed row; the others still count
            yield {"kind": "error", "reason": f"{type(error).__name__}: {_first_line(error)}"}
        finally:
            torch.set_num_threads(threads)
            if report is not None:
                vq.restore_model(self.model, report)
            _put_back(self.model, self.linears)

    def _scene(
        self, variant: Variant, sample: Sample, passes: Passes, watched: Mapping[str, nn.Module]
    ) -> Record:
        images = sample.images
        if variant.name == variants.NOISY_INPUT:
            images = variants.with_noise(images, sample.name)
        _kernels_run(watched)
        got = measure(
            self.model,
            images,
            passes,
            watched=watched,
            autocast=variant.autocast,
            tick=self.tick,
        )
        nonfinite = scores.nonfinite(got.outputs)
        if variant.kind == "baseline":
            for name, count in nonfinite.items():
                raise UserError(
                    f"the baseline's {name} holds {count} NaN or Inf on {sample.name}; "
                    "nothing can be compared with it"
                )
            self._fp32[sample.name] = got.outputs
        reference = self.fp32(sample)
        record: Record = {
            "kind": "scene",
            "scene": sample.name,
            "seconds": got.seconds,
            "joules": got.joules,
            "peak_bytes": got.peak_bytes,
            "repeats": got.repeats,
            "calls": [got.calls[name] for name in watched],
            "nonfinite": nonfinite,
            "equal": same_bits(got.outputs, reference),
        }
        if variant.kind == "baseline":
            record["sha256"] = sha256(got.outputs)
            record["shapes"] = {name: list(value.shape) for name, value in got.outputs.items()}
        if variant.kind == "quantized":
            record["float_weights"] = _floats_held(self.model, watched)
            record["kernels"] = _kernels_run(watched)
        if not nonfinite:
            record["metrics"], record["reasons"] = scores.score(reference, got.outputs)
            record |= task.of_scene(got.outputs, reference, sample.truth)
            if sample is self.samples[0]:
                record["pictures"] = pictures.of_scene(got.outputs, reference, sample.images)
        return record

    def _bytes(self, report: vq.ModelReport | None) -> Record:
        """Bytes of parameters and buffers as held by the model that is about to run."""
        swapped = report if report is not None and report.bytes_after else None
        return {
            "model_bytes": vq.model_bytes(self.model),
            "layers_before": swapped.bytes_before if swapped else None,
            "layers_after": swapped.bytes_after if swapped else None,
            "bits_per_weight": swapped.bits_per_weight if swapped else None,
        }


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _put_back(model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    """Sets the original layers back where a swap broke off halfway and left no report."""
    for name, layer in layers.items():
        if model.get_submodule(name) is not layer:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
