# SPDX-License-Identifier: Apache-2.0
"""The types of a journal: its first line, a Head, and the records that follow."""

from __future__ import annotations

from typing import Any

import msgspec

from ..configs import QuantizationConfig
from .schema import (
    Calibration,
    Data,
    Environment,
    Forecast,
    GpuMemory,
    Isolated,
    Layer,
    Metrics,
    Model,
    Part,
    PoseErrors,
    Settings,
    Task,
    Why,
)


class Entry(msgspec.Struct, tag_field="kind"):
    """A line of the journal after its head: something about a scheme."""

    scheme: str


class Facts(Entry, tag="scheme", kw_only=True):
    """A scheme before its first scene."""

    prepare_s: float | None = None
    layers: list[Layer] = []
    notes: list[str] = []
    model_bytes: int
    layers_before: int | None = None
    layers_after: int | None = None
    bits_per_weight: float | None = None
    watched: list[str] = []


class ScenePictures(Part):
    """Of the first frame; the input is kept with FP32's."""

    depth: str
    depth_range: list[float]
    input: str | None = None
    height_px: int = 0
    width_px: int = 0
    error: str | None = None
    error_median: float | None = None
    error_p95: float | None = None


class Scene(Entry, tag="scene"):
    """What the passes over one scene gave."""

    scene: str
    seconds: list[float]
    peak_bytes: int
    repeats: bool | None
    calls: list[int]
    nonfinite: dict[str, int]
    equal: bool
    sha256: str | None = None
    shapes: dict[str, list[int]] = {}
    float_weights: list[str] = []
    kernels: dict[str, list[int]] = {}
    metrics: dict[str, Metrics] = {}
    reasons: dict[str, dict[str, str]] = {}
    task: Task = msgspec.field(default_factory=Task)
    pose_errors: PoseErrors = msgspec.field(default_factory=PoseErrors)
    calibration: dict[str, Calibration] = {}
    pictures: ScenePictures | None = None
    gpu_peak: GpuMemory | None = None


class Pair(Part):
    """A forward of the scheme and one of FP32 on the same scene, one right after the other."""

    scene: str
    seconds: float
    fp32_seconds: float
    waited: float | None
    """The larger share of either's time for which its threads waited for a core; None: unknown."""
    processor: float | None = None
    fp32_processor: float | None = None
    """Seconds of processor time of all threads; None where threads that wait may spin."""


class Pairing(Entry, tag="pairs"):
    """Interleaved times."""

    pairs: list[Pair]


class Alone(Entry, tag="isolated"):
    """A scheme in a process of its own."""

    found: Isolated | None
    reason: str | None


class Skip(Entry, tag="skip"):
    why: Why
    reason: str


class Broke(Entry, tag="error"):
    """The scheme raised."""

    reason: str


class Retry(Entry, tag="retry"):
    """Earlier errors of the scheme do not count: it is run again."""


class End(Entry, tag="end"):
    """The scheme is through."""


class Whole(Entry, tag="whole"):
    """All layers of the scheme whose layers are tried alone."""

    scene: str
    error_all: dict[str, float | None]
    layers: list[Layer]
    not_reached: list[str]


class LayerAlone(Entry, tag="layer"):
    """One layer quantized alone."""

    layer: str
    error_alone: dict[str, float | None]
    output_sqnr_db: float | None
    output_cosine: float | None


Record = Facts | Scene | Pairing | Alone | Skip | Broke | Retry | End | Whole | LayerAlone


class Planning(Part):
    """The choices that a continued run has to make alike."""

    amount: int
    runs: int
    warmup: int


class Head(Part):
    """The first line of a journal: all that a report says beside what is measured."""

    journal: int
    identity: dict[str, Any]
    plan: Planning
    configs: list[QuantizationConfig]
    linears: list[str]
    environment: Environment
    model: Model
    data: Data
    settings: Settings
    forecast: list[Forecast]
