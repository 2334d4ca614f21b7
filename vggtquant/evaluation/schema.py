# SPDX-License-Identifier: Apache-2.0
"""The types of a report: every key of comprehensive_results.json stands here.

What a key means is in docs/report.md. `python -m vggtquant.evaluation.schema` prints the JSON
schema that docs/report.schema.json holds. Keys that version 3.0 did not have carry a default, so
that its files are still read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from .. import devices
from ..configs import QuantizationConfig
from ..errors import PATH, UserError, check_type
from ..model import LayerReport

SCHEMA_VERSION = "4.1"
READ_VERSIONS = ("3", "4")
"""Major versions that `read` accepts."""

JSON_NAME = "comprehensive_results.json"
TEXT_NAME = "comprehensive_report.txt"
CHARTS_NAME = "comprehensive_visualizations.png"
PAGE_NAME = "comprehensive_report.html"
SENSITIVITY_NAME = "sensitivity.png"
SHARES_NAME = "sensitivity.json"

Count = Annotated[int, msgspec.Meta(ge=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Utc = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Scores = dict[str, float]
"""Scores by name; one that is not defined is absent."""


class Part(msgspec.Struct):
    """A block of the report."""


# ---- words with a meaning ------------------------------------------------------------------------


class State(StrEnum):
    """Of a whole evaluation."""

    RUNNING = "running"
    COMPLETE = "complete"
    WITH_FAILURES = "with failures"
    INTERRUPTED = "interrupted"


class Kind(StrEnum):
    """Of a row."""

    BASELINE = "baseline"
    REFERENCE = "reference"
    QUANTIZED = "quantized"


class Status(StrEnum):
    """Of a row."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


class Why(StrEnum):
    """Why a row failed or was not run; `text` says it in words."""

    RAISED = "raised"
    NO_RESULTS = "no results"
    NONFINITE = "not finite"
    NOT_SWAPPED = "not swapped"
    FLOAT_WEIGHTS = "float weights"
    NOT_EXECUTED = "not executed"
    SAME_BITS = "same bits"
    CHANGED_NOTHING = "changed nothing"
    NO_KERNEL = "no kernel"
    SLOW = "slow"

    def text(self, **facts: object) -> str:
        """The reason in words.

        >>> Why.NO_RESULTS.text(scene="kitchen")
        'there are no results of scene kitchen'
        """
        return _WHY[self].format(**facts)

    def facts(self, words: str) -> dict[str, str] | None:
        """The facts of such a text; None where it reads otherwise.

        >>> Why.NO_RESULTS.facts("there are no results of scene kitchen")
        {'scene': 'kitchen'}
        """
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.*)", re.escape(_WHY[self]))
        found = re.fullmatch(pattern, words, re.DOTALL)
        return found and found.groupdict()


_WHY = {
    Why.RAISED: "{error}",
    Why.NO_RESULTS: "there are no results of scene {scene}",
    Why.NONFINITE: "{output} holds {count} NaN or Inf on {scene}",
    Why.NOT_SWAPPED: "no layer was swapped, so this would be the baseline under another name",
    Why.FLOAT_WEIGHTS: "{count} swapped layers hold float weights, or are not in the model: "
    "{names}",
    Why.NOT_EXECUTED: "{count} swapped layers did not run on a scene although the baseline's did: "
    "{names}",
    Why.SAME_BITS: "outputs on {scenes} equal the baseline's bit for bit, so the quantized layers "
    "made none of them",
    Why.CHANGED_NOTHING: "outputs on {scenes} equal the baseline's bit for bit, so {what} changed "
    "nothing",
    Why.NO_KERNEL: "{count} layers ran without a packed kernel: {names}",
    Why.SLOW: "this CPU has no bfloat16 instructions, and torch is some {times} times slower "
    "without; --schemes {name} runs it all the same",
}


class Withheld(StrEnum):
    """Why a speedup is not given as a number."""

    ONCE = "run once"
    SPREAD = "spread"
    BUSY = "busy"


class Basis(StrEnum):
    """What a speedup is a ratio of."""

    CLOCK = "clock"
    PROCESSOR = "processor"


class Usable(StrEnum):
    """Whether the times of a report can be used."""

    YES = "yes"
    SOME = "some"
    NO = "no"


class Reading(StrEnum):
    """What a difference from FP32 says."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "no difference shown"
    BELOW_FLOOR = "below the noise floor"
    UNKNOWN = "unknown"


# ---- circumstances -------------------------------------------------------------------------------


class Cpu(Part):
    model: str
    cores_usable: Count
    flags: list[str]
    isa_active: str
    isa_available: list[str]


class Threads(Part):
    torch: Count
    omp_num_threads: str | None
    wait_policy: str | None = None


class Gpu(Part):
    """What a model ran on, where that was a GPU; tf32: whether torch may use it for FP32."""

    name: str
    capability: str
    processors: Count
    memory_bytes: Count
    driver: str | None
    cuda: str | None
    tf32_products: bool
    tf32_convolutions: bool

    @property
    def words(self) -> str:
        """All of it in a line."""
        tf32 = {"products": self.tf32_products, "convolutions": self.tf32_convolutions}
        return (
            f"{self.name}, compute capability {self.capability}, {self.processors} processors, "
            f"{self.memory_bytes / 1e9:.1f} GB, driver {self.driver or 'not known'}, "
            f"CUDA {self.cuda}; TF32 of FP32: "
            + ", ".join(f"{kind} {'on' if on else 'off'}" for kind, on in tf32.items())
        )


class Environment(Part):
    utc: Utc
    argv: list[str]
    cpu: Cpu
    machines: list[str]
    memory_bytes: int | None
    system: str
    threads: Threads
    load_average_1min: float
    versions: dict[str, str | None]
    gpu: Gpu | None = None

    @property
    def processor(self) -> str:
        """What the model ran on, and its kernels, in words."""
        if self.gpu is not None:
            return f"{self.gpu.name}, kernels: CUDA"
        return f"{self.cpu.model}, threads: {self.threads.torch}, kernels: {self.cpu.isa_active}"


class Model(Part):
    name: str
    source: str
    licence: str
    sha256: Sha256
    parameters: Count
    parameter_bytes: Count
    linear_layers: Count
    linear_subclass_layers: Count
    linear_weights: Count
    linear_share: float
    linear_layers_not_reached: list[str] = []
    outputs: dict[str, list[int]] = {}


class SceneInput(Part):
    name: str
    frames: Count
    height_px: Count
    width_px: Count
    ground_truth: bool
    images_sha256: dict[str, str]


class Data(Part):
    description: str
    synthetic: bool
    preprocessing: str
    scenes: list[SceneInput]


class Settings(Part):
    model: str
    images: list[str]
    max_images: int | None
    scenes: int | None
    mode: str
    schemes: list[str]
    output_dir: str
    device: str
    runs: Count
    warmup: Count
    threads: int | None
    seed: Count
    layout: str | None
    max_drop: float | None
    max_bytes: int | None
    min_speedup: float | None
    shard: str | None
    isolate: bool
    sensitivity: str | None
    groups: int | None = None
    source: str | None = None


class MetricFacts(Part):
    name: str
    unit: str
    larger_is_better: bool


class Forecast(Part):
    """What a scheme was expected to cost: seconds to prepare it, a forward and the whole row."""

    name: str
    prepare_s: float
    forward_s: float
    model_bytes: Count
    row_s: float = 0.0


# ---- scores --------------------------------------------------------------------------------------


class Metrics(Part):
    """The eight metrics of an output against FP32's, and what `compare` gives beside them."""

    mae: float | None = None
    mse: float | None = None
    rmse: float | None = None
    psnr: float | None = None
    cross_entropy: float | None = None
    cosine_similarity: float | None = None
    relative_error: float | None = None
    ssim: float | None = None
    relative_l2: float | None = None
    kl_divergence: float | None = None
    data_range: float | None = None


METRIC_NAMES = Metrics.__struct_fields__


class Task(Part):
    """Scores against FP32's prediction, against the truth, and of the views among themselves."""

    fp32: Scores | None = None
    truth: Scores | None = None
    consistency: Scores | None = None


class Kept(Part):
    """What becomes of a threshold on the confidence."""

    threshold_fp32: float | None
    threshold: float | None
    share_at_fp32_threshold: float | None
    overlap: float | None


class Calibration(Part):
    """What became of a head's confidence."""

    against: str
    laplace_nll_fp32: float | None
    laplace_nll: float | None
    laplace_nll_difference: float | None
    log_confidence_shift: float | None
    confidence_correlation: float | None
    kept_75: Kept
    kept_50: Kept


class Pairs(Part):
    """The angles of a scene's camera pairs."""

    rotation_deg: list[float]
    direction_deg: list[float]


class PoseErrors(Part):
    fp32: Pairs | None = None
    truth: Pairs | None = None


class SceneScores(Part):
    scene: str
    metrics: dict[str, Metrics]
    reasons: dict[str, dict[str, str]]
    task: Task
    pose_errors: PoseErrors
    calibration: dict[str, Calibration]
    forward_ms_runs: list[float]


# ---- a row ---------------------------------------------------------------------------------------


class Bytes(Part):
    model_bytes: Count
    compression_ratio_model: float
    quantized_layers_bytes_before: int | None
    quantized_layers_bytes_after: int | None
    compression_ratio_quantized_layers: float | None
    bits_per_weight: float | None


class Time(Part):
    forward_ms_median: float
    forward_ms_iqr: float | None
    forward_ms_min: float
    forward_ms_max: float
    fp32_ms_nearby: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_withheld: Withheld | None = None
    speedup_basis: Basis | None = None
    pairs: Count = 0
    waited: float | None = None


class GpuMemory(Part):
    """Highest memory of the GPU: of tensors, and what torch's allocator took for them."""

    allocated_bytes: Count
    reserved_bytes: Count

    @classmethod
    def of(cls, peak: devices.Memory | None) -> GpuMemory | None:
        """The block of a reading; None for none."""
        return peak and cls(*peak)


class Isolated(Part):
    load_s: float
    first_forward_s: float
    peak_rss_bytes: int
    file_bytes: int | None = None
    gpu_peak: GpuMemory | None = None


class KernelUse(Part):
    kernel: str
    layers: Count
    calls: Count


class Proof(Part):
    layers_swapped: Count
    layers_executed: Count
    layer_calls: Count
    layers_not_executed: list[str]
    layers_not_exercised: list[str]
    layers_with_float_weights: list[str]
    layers_without_kernel: list[str]
    kernels: list[KernelUse]
    packed_bytes_touched: Count
    scenes_equal_baseline: list[str]


class Layer(Part):
    """What became of a Linear or a convolution."""

    name: str
    shape: list[int] = []
    scheme: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    sqnr_db: float | None = None
    cosine: float | None = None
    skipped: str | None = None
    note: str | None = None
    calls: int | None = None
    kernel: str | None = None
    kind: str = "linear"

    @classmethod
    def of(cls, report: LayerReport) -> Layer:
        """The block of what quantize_model says of a layer."""
        return msgspec.convert(asdict(report), cls)


class Row(Part, kw_only=True):
    name: str
    kind: Kind
    status: Status = Status.OK
    why: Why | None = None
    reason: str | None = None
    config: QuantizationConfig
    error: float | None = None
    bytes: Bytes | None = None
    time: Time | None = None
    isolated: Isolated | None = None
    prepare_s: float | None = None
    process_peak_bytes: int | None = None
    gpu_peak: GpuMemory | None = None
    outputs_repeat_bit_for_bit: bool | None = None
    outputs_equal_baseline: bool | None = None
    metrics: dict[str, Metrics] = {}
    reasons: dict[str, dict[str, str]] = {}
    task: Task = msgspec.field(default_factory=Task)
    calibration: dict[str, Calibration] = {}
    proof: Proof | None = None
    notes: list[str] = []
    layers: list[Layer] = []
    scenes: list[SceneScores] = []

    @property
    def ok(self) -> bool:
        """Whether the row finished with results that can be believed."""
        return self.status is Status.OK

    def scored(self) -> bool:
        """Whether it is a scheme that can be chosen."""
        return self.ok and self.kind is Kind.QUANTIZED and self.error is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the model as held; of a row that finished."""
        assert self.bytes is not None
        return self.bytes.model_bytes

    @property
    def timed(self) -> Time:
        """The times of a row that finished."""
        assert self.time is not None
        return self.time


# ---- conclusions ---------------------------------------------------------------------------------


class Recheck(Part):
    outputs_equal_first_run: bool
    forward_ms: float
    time_drift_percent: float


class Below(Part):
    """References whose error is no smaller: as a whole, and by output."""

    error: list[str]
    outputs: dict[str, list[str]]


class NoiseFloor(Part):
    rule: str
    errors: dict[str, float]
    below: dict[str, Below]


class Timing(Part):
    rule: str
    wide: list[str]
    advice: str | None
    usable: Usable = Usable.YES
    verdict: str = ""


class Tied(Part):
    accuracy: list[str]
    speed: list[str]
    size: list[str] = []
    unknown: list[str] = []


class Best(Part):
    accuracy: str | None
    size: str | None
    speed: str | None
    tied: Tied
    pareto_front: list[str]
    rules: dict[str, str]


class Difference(Part):
    difference: float
    low: float | None
    high: float | None
    shown: bool
    reading: Reading = Reading.UNKNOWN


class Between(Part):
    """b minus a."""

    a: str
    b: str
    score: str
    difference: float
    low: float | None
    high: float | None
    shown: bool


class Statistics(Part):
    confidence: float
    resamples: Count
    seed: Count
    scenes: Count
    larger_is_better: dict[str, bool]
    against_fp32: dict[str, dict[str, Difference]]
    between: list[Between]
    note: str | None


class Budget(Part):
    max_drop: float | None = None
    max_bytes: float | None = None
    min_speedup: float | None = None


class Loss(Part):
    """Points of AUC@30 that a scheme loses, and its depth's AbsRel from FP32's own depth."""

    against: str
    points: float | None
    low: float | None
    high: float | None
    depth: float | None = None
    depth_high: float | None = None


class Recommendation(Part):
    rule: str
    budget: Budget
    front: list[str]
    excluded: dict[str, list[str]]
    scheme: str | None
    reason: str
    loss: Loss | None
    open: list[str]
    nearest: str | None = None
    tied: list[str] = []
    depth_bound: float | None = None


class PictureSet(Part):
    depth: str
    error: str | None = None
    error_median: float | None = None
    error_p95: float | None = None


class Pictures(Part):
    scene: str
    frame: Count
    input: str
    height_px: Count
    width_px: Count
    depth_range: list[float]
    error_range: list[float]
    schemes: dict[str, PictureSet]


class LayerShare(Part):
    name: str
    block: str
    kind: str
    sqnr_db: float | None
    cosine: float | None
    output_sqnr_db: float | None
    output_cosine: float | None
    error_alone: dict[str, float | None]
    share: float | None
    bytes_before: Count = 0
    bytes_after: Count = 0


class Sensitivity(Part):
    scheme: str
    scene: str
    rule: str
    reason: str | None
    layers_to_try: Count
    error_all: dict[str, float | None]
    share_sum: float
    not_reached: list[str]
    layers: list[LayerShare]
    left_float: dict[str, str] = {}


class Generator(Part):
    name: str
    version: str


class Document(Part):
    """comprehensive_results.json."""

    schema_version: str
    generator: Generator
    status: State
    environment: Environment
    model: Model
    data: Data
    settings: Settings
    metrics: list[MetricFacts]
    forecast: list[Forecast]
    schemes: Annotated[list[Row], msgspec.Meta(min_length=1)]
    baseline_recheck: Recheck | None
    noise_floor: NoiseFloor
    timing: Timing
    best: Best
    statistics: Statistics
    recommendation: Recommendation
    pictures: Pictures | None
    sensitivity: Sensitivity | None
    nulls: dict[str, str] = {}

    def row(self, name: str | None) -> Row | None:
        """The row of that name."""
        return next((row for row in self.schemes if row.name == name), None)

    def finished(self) -> list[Row]:
        """The rows that have figures."""
        return [row for row in self.schemes if row.ok]


# ---- reading and the JSON schema -----------------------------------------------------------------

T = TypeVar("T")


def convert(value: object, wanted: type[T], where: str) -> T:
    """A plain value as one of the types above; UserError that names the place of what is wrong."""
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {error}") from error


def read(path: str | Path) -> Document:
    """A document of results, from its file or from the folder that holds it.

    Raises UserError for what is no such document, or one of another major schema version.
    """
    check_type("path", path, PATH, "a file of results or its folder")
    file = Path(path)
    if file.is_dir():
        file = file / JSON_NAME
    try:
        value = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON
        hint = "; checkpoints are for `vggtquant diff`" if file.suffix == ".safetensors" else ""
        raise UserError(f"{file} is no JSON: {error}{hint}") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(version, str) or "schemes" not in value:
        raise UserError(f"{file} is no {JSON_NAME} of vggtquant evaluate")
    if version.partition(".")[0] not in READ_VERSIONS:
        raise UserError(
            f"{file} has schema version {version}; this version reads "
            f"{' and '.join(f'{major}.x' for major in READ_VERSIONS)}"
        )
    found = convert(value, Document, f"{file} is damaged")
    if why := _contradiction(found, value):
        raise UserError(f"{file} is damaged: {why}")
    return found


def _contradiction(document: Document, value: object) -> str | None:
    """What no evaluation writes, though each part is of its type."""
    if not document.data.scenes:
        return "it has no scene"
    for row in document.schemes:
        if row.ok and (row.time is None or row.bytes is None):
            return f"{row.name} is ok, but has no time or no bytes"
    return None if _finite(value) else "it holds a number that is not finite"


def _finite(value: object) -> bool:
    """Whether all numbers of a JSON value are: 1e999 and NaN are read as floats."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def json_schema() -> dict[str, Any]:
    """The JSON schema of Document; keys that no type has are not allowed in what we write."""
    (found,), parts = msgspec.json.schema_components((Document,), ref_template="#/$defs/{name}")
    for part in parts.values():
        for key in ("title", "description"):
            part.pop(key, None)
        for one in part.get("properties", {}).values():
            one.pop("default", None)
        if "properties" in part:
            part |= {"additionalProperties": False, "required": sorted(part.get("properties"))}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vggtquant {JSON_NAME}, schema_version {SCHEMA_VERSION}",
        **found,
        "$defs": dict(sorted(parts.items())),
    }


def json_text() -> str:
    """What docs/report.schema.json holds: a property a line."""
    lines: list[str] = []
    whole = json_schema()
    parts = whole.pop("$defs")
    lines += [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in whole.items()]
    shown = []
    for name, part in parts.items():
        inner = part.pop("properties", None)
        own = [f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items()]
        if inner is not None:
            made = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in inner.items()]
            own.append('   "properties": {\n' + ",\n".join(made) + "\n   }")
        shown.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(own) + "\n  }")
    lines.append(' "$defs": {\n' + ",\n".join(shown) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    print(json_text(), end="")
