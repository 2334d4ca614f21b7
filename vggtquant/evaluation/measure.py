# SPDX-License-Identifier: Apache-2.0
"""Runs a model in FP32 and under each scheme on the same inputs, and scores every output.

Holds the measurement and its proof that the quantized layers ran; a result is a row, a plain dict
whose keys docs/report.md explains. What to run is evaluate.py's, what to say of it report.py's.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

import vggtquant as vq

from .. import environment, task_scores, vggt
from ..errors import UserError
from . import task
from .scores import Outputs, Row, error_score, mean_scores, nonfinite, score


@dataclass(frozen=True)
class Sample:
    """The input of one forward: pictures (S,3,H,W) in [0,1], and their ground truth if known."""

    name: str
    images: torch.Tensor
    sha256: Mapping[str, str] = field(default_factory=dict)  # of each picture, by its name
    truth: task_scores.Geometry | None = None


# A forward that takes longer is not repeated beside each scheme for its time alone.
_LONG_SECONDS = 1.0


@dataclass(frozen=True)
class Passes:
    """How often the inputs are run: `warmup` forwards that are not counted, then `runs` passes."""

    runs: int = 3
    warmup: int = 1
    device: str = "cpu"


@dataclass
class Measured:
    """What the passes over all samples gave."""

    outputs: list[Outputs]  # of the first pass, a sample each
    seconds: list[list[float]]  # [pass][sample]
    calls: Counter[str]  # executions by module name in the first pass
    repeats: bool | None  # every later pass gave the same bits; None with a single pass
    peak_bytes: int = 0


@dataclass
class Baseline:
    """The FP32 model's own results, to which every row is held."""

    measured: Measured
    linears: dict[str, nn.Linear]
    model_bytes: int
    row: Row = field(default_factory=dict)

    @property
    def reached(self) -> set[str]:
        """Names of the Linear layers that ran."""
        return {name for name in self.linears if self.measured.calls[name]}

    @property
    def first_scene_seconds(self) -> float:
        """Median time of a forward of the first scene."""
        return statistics.median(turn[0] for turn in self.measured.seconds)


# ---- one forward, watched ------------------------------------------------------------------------


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


def _forward(model: nn.Module, sample: Sample, passes: Passes) -> tuple[Outputs, float]:
    images = sample.images.to(passes.device)
    _synchronize(passes.device)
    start = time.perf_counter()
    predictions = model(images)
    _synchronize(passes.device)
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
    samples: Sequence[Sample],
    passes: Passes,
    *,
    watched: Mapping[str, nn.Module],
    autocast: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Measured:
    """Warms up, then runs all samples `passes.runs` times; the first pass is watched and kept.

    `tick` is called after each forward. Raises UserError for a model that returns no known output.
    """
    result = Measured([], [], Counter(), None)
    cast = torch.autocast(passes.device.partition(":")[0], torch.bfloat16, enabled=autocast)
    environment.reset_peak_memory()
    with torch.inference_mode():
        for _ in range(passes.warmup):
            with cast:
                _forward(model, samples[0], passes)
            tick()
        for turn in range(passes.runs):
            # Hooks stay on in every pass, so that all passes are timed alike.
            calls: Counter[str] = Counter()
            result.seconds.append([])
            with _watch(watched, calls):
                for index, sample in enumerate(samples):
                    with cast:  # entered per forward: its cache of casted weights ends with it
                        outputs, seconds = _forward(model, sample, passes)
                    result.seconds[turn].append(seconds)
                    if turn == 0:
                        result.outputs.append(outputs)
                    else:
                        same = _equal(outputs, result.outputs[index])
                        result.repeats = same and result.repeats is not False
                    tick()
            if turn == 0:
                result.calls = calls
    result.peak_bytes = environment.peak_memory_bytes()
    return result


def _equal(a: Outputs, b: Outputs) -> bool:
    """True when both hold the same outputs with the same bits (NaN counts as different)."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _time(measured: Measured, fp32_ms: float | None) -> Row:
    """Milliseconds a forward: median over the passes for each scene, then the mean over scenes.

    `fp32_ms` is the baseline's time to which the speedup is held; None for the baseline itself.
    """
    by_scene = [
        [1e3 * seconds for seconds in scene] for scene in zip(*measured.seconds, strict=True)
    ]
    median = statistics.fmean(map(statistics.median, by_scene))
    spread = None
    if len(measured.seconds) > 1:
        quarters = [statistics.quantiles(scene, n=4, method="inclusive") for scene in by_scene]
        spread = statistics.fmean(high - low for low, _, high in quarters)
    return {
        "forward_ms_median": median,
        "forward_ms_iqr": spread,
        "forward_ms_min": statistics.fmean(map(min, by_scene)),
        "forward_ms_max": statistics.fmean(map(max, by_scene)),
        "fp32_ms_nearby": fp32_ms,
        "speedup": fp32_ms / median if fp32_ms else 1.0,
    }


# ---- checks --------------------------------------------------------------------------------------


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The model's Linear layers by name, subclasses too; UserError when there is none."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not found:
        raise UserError(f"{type(model).__name__} has no Linear layer; there is nothing to quantize")
    return found


def check_weights(layers: Mapping[str, nn.Linear]) -> None:
    """Refuses a model with NaN or Inf in a Linear weight: UserError that names the layer."""
    for name, layer in layers.items():
        bad = int((~torch.isfinite(layer.weight)).sum())
        if bad:
            raise UserError(f"weight of {name} holds {bad} NaN or Inf; wanted finite numbers")


def _floats_held(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of swapped layers that still hold a float tensor as large as their weight."""
    held = []
    for name, module in modules.items():
        if isinstance(module, vq.QuantizedLinear):
            size = module.in_features * module.out_features
            tensors = [*module.parameters(), *module.buffers()]
            packed = not any(t.is_floating_point() and t.numel() >= size > 1 for t in tensors)
        else:
            packed = False
        if not packed:
            held.append(name)
    return held


def _proof(
    swapped: Mapping[str, nn.Module], baseline: Baseline, measured: Measured, identical: bool
) -> Row:
    """What shows that the quantized layers, and no float ones, made these outputs."""
    ran = [name for name in swapped if measured.calls[name]]
    return {
        "layers_swapped": len(swapped),
        "layers_executed": len(ran),
        "layer_calls": sum(measured.calls[name] for name in swapped),
        "layers_not_executed": [n for n in swapped if n in baseline.reached and n not in ran],
        "layers_not_exercised": [n for n in swapped if n not in baseline.reached],
        "layers_with_float_weights": _floats_held(swapped),
        "isa": vq.isa(),
        "outputs_equal_baseline": identical,
    }


def _doubt(proof: Row) -> str | None:
    """Why these results are not those of a quantized model, or None when they are."""
    if not proof["layers_swapped"]:
        return "no layer was swapped, so this would be the baseline under another name"
    for key, words in (
        ("layers_with_float_weights", "swapped layers still hold float weights"),
        ("layers_not_executed", "swapped layers did not run although the baseline's did"),
    ):
        if proof[key]:
            return f"{len(proof[key])} {words}: {', '.join(proof[key][:3])}"
    if proof["outputs_equal_baseline"]:
        return "outputs equal the baseline's bit for bit, so the quantized layers made none of them"
    return None


# ---- rows ----------------------------------------------------------------------------------------


def run_baseline(
    model: nn.Module,
    samples: Sequence[Sample],
    passes: Passes,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Baseline:
    """Runs the FP32 model; UserError for a NaN or Inf in a weight or output, or with no Linear."""
    layers = linears(model)
    check_weights(layers)
    measured = measure(model, samples, passes, watched=layers, tick=tick)
    for sample, outputs in zip(samples, measured.outputs, strict=True):
        for name, count in nonfinite(outputs).items():
            raise UserError(
                f"the baseline's {name} holds {count} NaN or Inf on {sample.name}; "
                "nothing can be compared with it"
            )
    baseline = Baseline(measured, layers, vq.model_bytes(model))
    baseline.row = _row("Baseline_FP32", "baseline", vq.get_config("Baseline_FP32"))
    _fill(baseline.row, samples, baseline, measured)
    baseline.row["bytes"] = _bytes(baseline, baseline.model_bytes, None)
    return baseline


def _row(name: str, kind: str, config: vq.QuantizationConfig) -> Row:
    """An empty row: every key that a row has, so that all rows have the same."""
    return {
        "name": name,
        "kind": kind,
        "status": "ok",
        "reason": None,
        "config": config.to_dict(),
        "error": None,
        "bytes": None,
        "time": None,
        "prepare_s": None,
        "process_peak_bytes": None,
        "outputs_repeat_bit_for_bit": None,
        "metrics": {},
        "reasons": {},
        "task": dict.fromkeys(("fp32", "truth", "consistency")),
        "calibration": {},
        "proof": None,
        "notes": [],
        "layers": [],
        "scenes": [],
    }


def skipped_row(config: vq.QuantizationConfig, reason: str) -> Row:
    """The row of a scheme that was not run, with the reason."""
    return _row(config.name, _kind(config), config) | {"status": "skipped", "reason": reason}


def _kind(config: vq.QuantizationConfig) -> str:
    return {"fp32": "baseline", "bf16": "reference"}.get(config.quant_type, "quantized")


def _bytes(baseline: Baseline, held: int, report: vq.ModelReport | None) -> Row:
    """Bytes of parameters and buffers as held by the model that ran, and the ratios from them."""
    swapped = report is not None and bool(report.bytes_after)
    return {
        "model_bytes": held,
        "compression_ratio_model": baseline.model_bytes / held,
        "quantized_layers_bytes_before": report.bytes_before if report and swapped else None,
        "quantized_layers_bytes_after": report.bytes_after if report and swapped else None,
        "compression_ratio_quantized_layers": (
            report.bytes_before / report.bytes_after if report and swapped else None
        ),
        "bits_per_weight": report.bits_per_weight if report and swapped else None,
    }


def _fill(row: Row, samples: Sequence[Sample], baseline: Baseline, measured: Measured) -> None:
    """Puts times and scores of `measured` into `row`: each scene's, and over all scenes."""
    first = baseline.row.get("time")  # the baseline's own row has none yet
    row["time"] = _time(measured, first["forward_ms_median"] if first else None)
    row["process_peak_bytes"] = measured.peak_bytes
    row["outputs_repeat_bit_for_bit"] = measured.repeats
    for index, sample in enumerate(samples):
        outputs = measured.outputs[index]
        metrics, reasons = score(baseline.measured.outputs[index], outputs)
        scene = {
            "scene": sample.name,
            "metrics": metrics,
            "reasons": reasons,
            **task.of_scene(outputs, baseline.measured.outputs[index], sample.truth),
            "forward_ms_runs": [1e3 * turn[index] for turn in measured.seconds],
        }
        row["scenes"].append(scene)
    row["metrics"] = mean_scores([scene["metrics"] for scene in row["scenes"]])
    row["reasons"] = {k: v for scene in row["scenes"] for k, v in scene["reasons"].items()}
    row |= task.over_scenes(row["scenes"])
    row["error"] = error_score(row["metrics"]) if row["kind"] != "baseline" else 0.0


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _fail(row: Row, reason: str) -> Row:
    return row | {"status": "failed", "reason": reason}


def run_scheme(
    model: nn.Module,
    samples: Sequence[Sample],
    config: vq.QuantizationConfig,
    passes: Passes,
    baseline: Baseline,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Row:
    """Quantizes in place, runs, scores, and sets the original modules back, whatever happens.

    A scheme that cannot be believed (NaN outputs, layers that did not run, an exception) comes back
    as a row with status "failed" and the reason. UserError and KeyboardInterrupt pass through.
    """
    if _kind(config) == "baseline":
        return baseline.row
    nearby = _fp32_again(model, samples, passes, baseline)
    row = _run_scheme(model, samples, config, passes, baseline, tick)
    if row["time"] and nearby:
        nearby += _fp32_again(model, samples, passes, baseline)
        drift = statistics.median(nearby) / baseline.first_scene_seconds
        row["time"] |= {
            "fp32_ms_nearby": drift * baseline.row["time"]["forward_ms_median"],
            "speedup": drift * row["time"]["speedup"],
        }
    return row


def _fp32_again(
    model: nn.Module, samples: Sequence[Sample], passes: Passes, baseline: Baseline
) -> list[float]:
    """Seconds of two more FP32 forwards of the first scene; none where they would take long.

    On a machine that others use, a scheme's time means something only beside an FP32 time of the
    same minute.
    """
    if passes.runs < 2 or baseline.first_scene_seconds > _LONG_SECONDS:
        return []
    again = measure(model, samples[:1], Passes(2, 0, passes.device), watched=baseline.linears)
    return [seconds for turn in again.seconds for seconds in turn]


def _run_scheme(
    model: nn.Module,
    samples: Sequence[Sample],
    config: vq.QuantizationConfig,
    passes: Passes,
    baseline: Baseline,
    tick: Callable[[], None],
) -> Row:
    row = _row(config.name, _kind(config), config)
    report: vq.ModelReport | None = None
    try:
        if row["kind"] == "quantized":
            start = time.perf_counter()
            model, report = vq.quantize_model(model, config, keep_originals=True)
            row["prepare_s"] = time.perf_counter() - start
            row["layers"] = report.to_dict()["layers"]
            row["notes"] = list(report.notes)
        names = [layer.name for layer in report.quantized] if report else []
        swapped = {name: model.get_submodule(name) for name in names}
        measured = measure(
            model, samples, passes, watched=swapped, autocast=row["kind"] == "reference", tick=tick
        )
        row["bytes"] = _bytes(baseline, vq.model_bytes(model), report)
        identical = all(map(_equal, measured.outputs, baseline.measured.outputs))
        if report is not None:
            row["proof"] = _proof(swapped, baseline, measured, identical)
        return _judge(row, samples, baseline, measured, identical)
    except UserError:
        raise
    except Exception as error:  # a scheme that breaks is a failed row; the others still count
        return _fail(row, f"{type(error).__name__}: {_first_line(error)}")
    finally:
        if report is not None:
            vq.restore_model(model, report)
        _put_back(model, baseline.linears)


def _put_back(model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    """Sets the original layers back where a swap broke off halfway and left no report."""
    for name, layer in layers.items():
        if model.get_submodule(name) is not layer:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)


def _judge(
    row: Row, samples: Sequence[Sample], baseline: Baseline, measured: Measured, identical: bool
) -> Row:
    """The finished row: filled if its outputs can be believed, otherwise failed with the reason."""
    for sample, outputs in zip(samples, measured.outputs, strict=True):
        for name, count in nonfinite(outputs).items():
            return _fail(row, f"{name} holds {count} NaN or Inf on {sample.name}")
    doubt = _doubt(row["proof"]) if row["proof"] else None
    if row["kind"] == "reference" and identical:
        doubt = "outputs equal the baseline's bit for bit, so autocast changed nothing"
    _fill(row, samples, baseline, measured)
    return _fail(row, doubt) if doubt else row


def recheck(model: nn.Module, samples: Sequence[Sample], passes: Passes, baseline: Baseline) -> Row:
    """Runs the baseline again after all schemes: the same bits, and how far its time drifted."""
    again = measure(model, samples, Passes(1, 0, passes.device), watched=baseline.linears)
    first = baseline.row["time"]["forward_ms_median"]
    last = _time(again, None)["forward_ms_median"]
    return {
        "outputs_equal_first_run": all(map(_equal, again.outputs, baseline.measured.outputs)),
        "forward_ms": last,
        "time_drift_percent": 100 * (last / first - 1),
    }
