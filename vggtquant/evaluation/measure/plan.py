# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is asked to do, how much of it there is time for, and what it will take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

import vggtquant as vq

from ...errors import UserError
from ..analyse import recommendation
from ..present.text import duration, megabytes
from . import forecast, inputs, measure, sensitivity, variants
from .journal import Record
from .measure import Passes, Sample


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
    resume: bool = False  # go on with the journal in output_dir, if there is one
    restart: bool = False  # replace it
    shard: tuple[int, int] | None = None  # (i, n): the i-th of n parts of the scenes, from 1
    sensitivity: str | None = None  # the scheme whose layers are quantized one at a time
    isolate: bool = False  # load each scheme in a process of its own, too
    argv: tuple[str, ...] = ()


# ---- checks before any work ----------------------------------------------------------------------


def configs_of(names: Sequence[str]) -> list[vq.QuantizationConfig]:
    """The configurations of `names` (or of all schemes), each once, the FP32 baseline first.

    Raises UserError with the nearest names for one that does not exist.

    >>> [config.name for config in configs_of(["INT4_Group_64"])]
    ['Baseline_FP32', 'INT4_Group_64']
    """
    wanted = dict.fromkeys(["Baseline_FP32", *(names or vq.CONFIGS)])
    return [vq.get_config(name) for name in wanted]


def check(settings: Settings) -> None:
    """Refuses numbers out of range: UserError."""
    for name, least, most in (
        ("max_images", 1, None),
        ("scenes", 1, None),
        ("runs", 1, None),
        ("warmup", 0, None),
        # Far more threads than cores have no room for their stacks.
        ("threads", 1, max(64, 8 * (os.cpu_count() or 1))),
        ("seed", 0, 2**32 - 1),
    ):
        value = getattr(settings, name)
        if value is not None and (value < least or (most is not None and value > most)):
            wanted = f"{least} or more" if most is None else f"{least} to {most}"
            raise UserError(f"--{name} is {value}; wanted {wanted}")
    recommendation.check({name: getattr(settings, name) for name in recommendation.BOUNDS})
    if settings.resume and settings.restart:
        raise UserError("--resume and --restart were both given; wanted one of them")
    if settings.sensitivity is not None:
        sensitivity.config_of(settings.sensitivity)
    if settings.shard is not None:
        part, parts = settings.shard
        if not 1 <= part <= parts:
            raise UserError(f"--shard is {part}/{parts}; wanted i/n with i from 1 to n")


# ---- the plan and its forecast -------------------------------------------------------------------


@dataclass
class Planned:
    """What will be run, and what it should cost."""

    amount: int  # of the input's units, of which a shard takes its part
    passes: Passes
    samples: list[Sample]
    costs: list[forecast.Cost]

    @property
    def forwards(self) -> int:
        """Forwards of a scheme."""
        return self.passes.warmup + self.passes.runs * len(self.samples)

    @property
    def floor_forwards(self) -> int:
        """Forwards of the rows that show FP32's own uncertainty."""
        return len(variants.NOISE_FLOOR) * len(self.samples)

    def seconds_after_baseline(self) -> float:
        """Forecast of all rows but the baseline's, and of FP32 timed beside them."""
        floor = self.floor_forwards * self.costs[0].forward_s
        schemes = forecast.total(self.costs, self.forwards) - self.costs[0].seconds(self.forwards)
        return floor + schemes + _beside_seconds(self.costs, self.passes.runs)

    def to_dict(self) -> dict[str, int]:
        """The choices that a continued run has to make alike."""
        return {"amount": self.amount, "runs": self.passes.runs, "warmup": self.passes.warmup}


def _beside_seconds(costs: Sequence[forecast.Cost], runs: int) -> float:
    """FP32 between all schemes, before the first and after the last."""
    forward_s = costs[0].forward_s
    return len(costs) * measure.forwards_beside(forward_s, runs) * forward_s


def plan(
    settings: Settings,
    model: nn.Module,
    available: inputs.Inputs,
    configs: Sequence[vq.QuantizationConfig],
    say: Callable[[str], None],
) -> Planned:
    """Chooses how much to run and says what it will take, before the first forward that counts.

    A shard is not cut to the time that there is, lest the shards differ.
    """
    layers = measure.linears(model)
    work = forecast.count(model, layers, available.shape(available.amount))
    costs = forecast.costs(model, layers, work, configs)

    def scaled(n: int) -> list[forecast.Cost]:
        return forecast.rescale(costs, work, forecast.count(model, layers, available.shape(n)))

    def seconds(n: int, runs: int, warmup: int) -> float:
        scenes = available.scenes(n)
        floor = len(variants.NOISE_FLOOR) * scenes * scaled(n)[0].forward_s
        every = forecast.total(scaled(n), warmup + runs * scenes)
        return floor + every + _beside_seconds(scaled(n), runs)

    given = settings.max_images if available.unit == "pictures" else settings.scenes
    budget = math.inf if settings.shard else forecast.budget(bool(settings.images))
    chosen = forecast.plan(
        seconds,
        available.amount,
        least=available.amount if given is not None else available.least,
        runs=settings.runs,
        warmup=settings.warmup,
        budget=budget,
    )
    planned = Planned(
        chosen.amount,
        Passes(chosen.runs, chosen.warmup, settings.device),
        take(settings, available, chosen.amount),
        scaled(chosen.amount),
    )
    work = forecast.count(model, layers, available.shape(chosen.amount))
    for line in _forecast_lines(planned, work, available):
        say(line)
    _correct(planned, model)
    rest = planned.seconds_after_baseline()
    if settings.runs is None and planned.passes.runs > 1 and rest > budget:
        say(f"FP32 was slower than forecast: {duration(rest)} to come, so one pass a scheme")
        planned.passes = replace(planned.passes, runs=1)
        rest = planned.seconds_after_baseline()
    say(f"from FP32's own time: all that comes after it takes about {duration(rest)}")
    return planned


def _correct(planned: Planned, model: nn.Module) -> None:
    """Puts FP32's own time into the forecast: the best of a few forwards, or of a long one."""
    took: list[float] = []
    with torch.inference_mode():
        while len(took) < 4 and sum(took) < 1.0:
            _, seconds = measure.forward(model, planned.samples[0].images, planned.passes.device)
            took.append(seconds)
    planned.costs = forecast.update(planned.costs, min(took))


def again(settings: Settings, available: inputs.Inputs, head: Record) -> Planned:
    """The plan that a journal's head tells of."""
    kept = head["plan"]
    costs = [
        forecast.Cost(**{k: v for k, v in cost.items() if k != "row_s"})
        for cost in head["forecast"]
    ]
    passes = Passes(kept["runs"], kept["warmup"], settings.device)
    return Planned(kept["amount"], passes, take(settings, available, kept["amount"]), costs)


def take(settings: Settings, available: inputs.Inputs, amount: int) -> list[Sample]:
    """The scenes of so many units of input, or the shard's share of them.

    Raises UserError for fewer scenes than shards, and for two scenes of one name.
    """
    samples = available.take(amount)
    names = [sample.name for sample in samples]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two scenes are named {twice}; wanted a name for each")
    if settings.shard is None:
        return samples
    part, parts = settings.shard
    if len(samples) < parts:
        raise UserError(f"--shard is {part}/{parts}; there are only {len(samples)} scenes")
    return samples[(part - 1) * len(samples) // parts : part * len(samples) // parts]


def _forecast_lines(planned: Planned, work: forecast.Work, available: inputs.Inputs) -> list[str]:
    """What is about to happen, how long it should take, and what to change if that is too long."""
    count, _, height, width = planned.samples[0].images.shape
    scenes, passes = len(planned.samples), planned.passes
    lines = [
        *available.warnings,
        f"{work.layers} Linear layers, {work.weights / 1e6:.1f} M weights, about "
        f"{work.linear_macs / 1e9:.2f} G multiply-adds in them a forward",
        f"{scenes} scene{'s' if scenes > 1 else ''} of {count} pictures, {width} x {height} px; "
        f"{passes.warmup} warm-up and {passes.runs} x {scenes} timed forwards a scheme",
    ]
    if planned.amount < available.there:
        flag = "--max_images" if available.unit == "pictures" else "--scenes"
        lines.append(
            f"{planned.amount} of {available.there} {available.unit} are used; {flag} takes more"
        )
    lines.append(f"forecast, from the speed of the layer {work.probe}:")
    for cost in planned.costs:
        lines.append(
            f"  {cost.name:32} {duration(cost.seconds(planned.forwards)):>12} "
            f"{megabytes(cost.model_bytes):>10} MB of parameters"
        )
    seconds = planned.seconds_after_baseline() + planned.costs[0].seconds(planned.forwards)
    lines.append(
        f"in all about {duration(seconds)}, FP32's noise floor included, convolutions and scoring "
        f"not; FP32 and packed weights together at most "
        f"{megabytes(2 * planned.costs[0].model_bytes)} MB"
    )
    if seconds > forecast.COFFEE_SECONDS:
        lines.append("that is long: --schemes selects, --max_images, --scenes and --runs shorten")
    return lines
