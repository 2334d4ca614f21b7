# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is asked to do, how much of it there is, and what it will take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ... import devices, environment, memory, ops
from ...calibration import get_method
from ...configs import CONFIGS, DEFAULTS, QuantizationConfig, get_config
from ...data.images import check_mode
from ...data.scenes import MOST_SCENES
from ...errors import UserError
from ...notes import told
from ..formatting import duration, megabytes
from ..records import Head, Planning
from ..schema import Budget, Forecast
from . import forecast, inputs, layers, timing, variants
from .bench import Passes, Sample
from .forward import Runner, forward, plainly
from .variants import Variant

MOST_PASSES = 10_000


@dataclass(frozen=True)
class Settings:
    """What to evaluate; None stands for a default that depends on the model."""

    model: str = "builtin:tiny"
    source: str | None = None  # the float model of a packed file
    images: tuple[str, ...] = ()  # a folder, or pictures; none: built-in rendered scenes
    max_images: int | None = None
    scenes: int | None = None  # at most so many of several
    groups: int | None = None  # one folder of pictures in so many overlapping groups
    mode: str = "crop"
    configs: tuple[QuantizationConfig, ...] | None = None  # None: DEFAULTS
    output_dir: str = "vggtquant_results"
    device: str | None = None  # None: that of the configs, or of a model given in Python
    runs: int | None = None
    warmup: int | None = None
    threads: int | None = None
    seed: int = 0
    layout: str | None = None  # of a folder with ground truth; None: by what is in it
    max_drop: float | None = None  # percentage points of pose AUC@30
    max_bytes: int | None = None
    max_memory: int | None = None  # of the process
    min_speedup: float | None = None
    resume: bool = False  # go on with the journal in output_dir, if there is one
    restart: bool = False  # replace it
    shard: tuple[int, int] | None = None  # (i, n): the i-th of n parts of the scenes, from 1
    sensitivity: str | None = None  # the scheme whose layers are quantized one at a time
    adapter: str | None = None  # of the model; None: by its class
    isolate: bool = False  # load each scheme in a process of its own, too
    argv: tuple[str, ...] = ()

    @property
    def place(self) -> torch.device:
        """The device, once it is chosen (chosen_device)."""
        return torch.device(self.device or "cpu")

    @property
    def budget(self) -> Budget:
        """The bounds of the recommendation."""
        return Budget(
            max_drop=self.max_drop, max_bytes=self.max_bytes, min_speedup=self.min_speedup
        )


# ---- checks before any work ----------------------------------------------------------------------


def configs_of(wanted: Sequence[str | QuantizationConfig]) -> tuple[QuantizationConfig, ...]:
    """The configs of names or the configs themselves, each once; UserError for an unknown name.

    >>> [config.name for config in configs_of(["INT4_Group_64", "INT4_Group_64"])]
    ['INT4_Group_64']
    """
    return tuple(dict.fromkeys(get_config(config) for config in wanted))


def calibrated(
    configs: Sequence[QuantizationConfig], methods: Sequence[str], samples: int | None, seeds: int
) -> tuple[QuantizationConfig, ...]:
    """Each config with each method, and with each seed of the pictures that a method looks at.

    A method's name, and a seed above 0, are added to the config's. UserError for an unknown method.

    >>> configs = configs_of(["Baseline_FP32", "INT4_Group_64"])
    >>> [config.name for config in calibrated(configs, ["rtn", "gptq"], None, 2)]
    ['Baseline_FP32', 'INT4_Group_64', 'INT4_Group_64_gptq', 'INT4_Group_64_gptq_seed1']
    """
    if seeds < 1:
        raise UserError(f"--calibration_seeds is {seeds}; wanted 1 or more")
    found = [config for config in configs if not config.quantizes]
    for config in configs:
        if not config.quantizes:
            continue
        count = config.calibration_samples if samples is None else samples
        for method in methods:
            looks = get_method(method).looks or config.activation_range != "dynamic"
            for seed in range(seeds if looks else 1):
                name = config.name + (f"_{method}" if method != "rtn" else "")
                found.append(
                    replace(
                        config,
                        name=f"{name}_seed{seed}" if seed else name,
                        calibration=method,
                        calibration_seed=seed,
                        calibration_samples=count,
                    )
                )
    return tuple(found)


def rows_of(settings: Settings, packed: Variant | None, alone: bool) -> list[Variant]:
    """The rows in the report's order: of FP32, the noise floor, a packed file and the configs.

    alone: the packed file is all there is, without a float model to compare it with.
    """
    if packed is not None and alone:
        return [packed]
    defaults = DEFAULTS if packed is None else ()
    configs = settings.configs if settings.configs is not None else defaults
    fp32 = CONFIGS[variants.BASELINE]
    device = str(settings.place)
    found = variants.planned([fp32, *(config for config in configs if config != fp32)], device)
    if packed is not None:
        floor = 1 + len(variants.noise_floor(device))
        found[floor:floor] = [packed]
    return found


def check(settings: Settings) -> None:
    """Refuses numbers out of range: UserError."""
    for name, least, most in (
        ("max_images", 1, MOST_SCENES),
        ("scenes", 1, MOST_SCENES),
        ("groups", 1, MOST_SCENES),
        ("runs", 1, MOST_PASSES),
        ("warmup", 0, MOST_PASSES),
        # Far more threads than cores have no room for their stacks.
        ("threads", 1, max(64, 8 * (os.cpu_count() or 1))),
        ("seed", 0, 2**32 - 1),
        ("max_memory", 1, None),
    ):
        value = getattr(settings, name)
        if value is None and name != "seed":
            continue
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"--{name} is {value!r}; wanted an integer, {wanted}")
        if value < least or (most is not None and value > most):
            raise UserError(f"--{name} is {value}; wanted {wanted}")
    for name in ("mode", "layout", "sensitivity", "adapter"):
        word = getattr(settings, name)
        if not isinstance(word, str) and (word is not None or name == "mode"):
            raise UserError(f"--{name} is {word!r}; wanted a word")
    check_mode(settings.mode)
    check_budget(settings.budget)
    if settings.resume and settings.restart:
        raise UserError("--resume and --restart were both given; wanted one of them")
    if settings.sensitivity is not None:
        layers.check(get_config(settings.sensitivity))
    if settings.shard is not None:
        part, parts = settings.shard
        if not 1 <= part <= parts:
            raise UserError(f"--shard is {part}/{parts}; wanted i/n with i from 1 to n")


def chosen_device(settings: Settings, model: nn.Module | None = None) -> torch.device:
    """Where the evaluation takes place: on settings.device, else where a given model is that is not
    on the CPU, else on the device that the configs name.

    Raises UserError for configs with several devices, a device that is not served, and what a GPU
    does not serve.
    """
    named = sorted({config.device for config in settings.configs or ()} - {"cpu"})
    own = devices.CPU if model is None else devices.device_of(model)
    if settings.device is not None:
        wanted = settings.device
    elif own != devices.CPU:
        wanted = str(own)
    elif len(named) > 1:
        raise UserError(f"the configs name the devices {', '.join(named)}; one is wanted: --device")
    else:
        wanted = named[0] if named else "cpu"
    found = ops.check_served(wanted)
    if found != devices.CPU and settings.max_memory is not None:
        raise UserError(f"--max_memory is that of a process on the CPU; the device is {wanted}")
    return found


def check_budget(budget: Budget) -> None:
    """UserError for a bound that no scheme could mean: a negative loss, a speedup of 0."""
    for name in budget.__struct_fields__:
        bound = getattr(budget, name)
        least = "of 0 or more" if name == "max_drop" else "above 0"
        if bound is None:
            continue
        if not isinstance(bound, int | float):
            raise UserError(f"--{name} is {bound!r}; wanted a number {least}")
        if not (0 < bound < math.inf or (name == "max_drop" and bound == 0)):
            raise UserError(f"--{name} is {bound:g}; wanted a number {least}")


# ---- the plan and its forecast -------------------------------------------------------------------


@dataclass
class Planned:
    """What will be run, and what it should cost."""

    amount: int  # of the input's units, of which a shard takes its part
    passes: Passes
    samples: list[Sample]
    costs: list[Forecast]
    work: forecast.Work
    device: str = "cpu"

    @property
    def forwards(self) -> int:
        """Forwards of a scheme."""
        return self.passes.warmup + self.passes.runs * len(self.samples)

    @property
    def floor_forwards(self) -> int:
        """Forwards of the rows that show FP32's own uncertainty."""
        return len(variants.noise_floor(self.device)) * len(self.samples)

    def seconds_after_baseline(self) -> float:
        """Forecast of all rows but the baseline's, and of the pairs that they are timed in."""
        fp32, *rest = self.costs
        pairs = sum(
            timing.count(fp32.forward_s + cost.forward_s, self.passes.runs)
            * (fp32.forward_s + cost.forward_s)
            for cost in rest
        )
        rows = sum(forecast.row_s(cost, self.forwards) for cost in rest)
        return self.floor_forwards * fp32.forward_s + rows + pairs

    def block(self) -> Planning:
        """The choices that a continued run has to make alike."""
        return Planning(amount=self.amount, runs=self.passes.runs, warmup=self.passes.warmup)


def plan(
    settings: Settings,
    model: nn.Module,
    watched: Mapping[str, nn.Module],
    available: inputs.Inputs,
    rows: Sequence[Variant],
    say: Callable[[str], None],
    runner: Runner = plainly,
) -> Planned:
    """Chooses how much to run and says what it will take, before the first forward that counts.

    A shard is not cut to what is usual, lest the shards differ.
    """
    work = forecast.count(model, watched, available.shape(available.amount), runner)
    timed = [row.config for row in rows if not row.once and row.file is None]
    first = forecast.costs(model, watched, work, timed) if timed else [_unknown(rows[0])]
    first += [_unknown(row, first[0]) for row in rows if row.file is not None and timed]
    per_unit = 1 / available.amount if available.unit == "pictures" else 0.0

    def share(n: int) -> float:
        """Of the work of a forward that was counted, that of one of n units."""
        return n * per_unit if per_unit else 1.0

    def nominal_s(n: int) -> float:
        return len(rows) * available.scenes(n) * share(n) * work.nominal_s()

    chosen = settings.max_images if available.unit == "pictures" else settings.scenes
    budget = math.inf if settings.shard else forecast.budget(bool(settings.images))
    amount = available.amount
    if chosen is None and not settings.shard:
        amount = forecast.fitting(amount, available.least, nominal_s, budget)
    if settings.max_memory is not None:
        amount = _fitting(settings, model, available, amount, max(c.model_bytes for c in first))
    costs = forecast.rescaled(first, share(amount))
    samples = told(say, take, settings, available, amount)
    planned = Planned(amount, Passes(), samples, costs, work, str(settings.place))

    def seconds(runs: int, warmup: int) -> float:
        planned.passes = Passes(runs, warmup)
        return planned.seconds_after_baseline() + forecast.row_s(costs[0], planned.forwards)

    planned.passes = Passes(*forecast.passes(seconds, settings.runs, settings.warmup, budget))
    for line in _forecast_lines(planned, available):
        say(line)
    _correct(planned, model, runner)
    rest = planned.seconds_after_baseline()
    if settings.runs is None and planned.passes.runs > 1 and rest > budget:
        say(f"FP32 was slower than forecast: {duration(rest)} to come, so one pass a scheme")
        planned.passes = replace(planned.passes, runs=1)
        rest = planned.seconds_after_baseline()
    say(f"from FP32's own time: all that comes after it takes about {duration(rest)}")
    return planned


def _fitting(
    settings: Settings, model: nn.Module, available: inputs.Inputs, amount: int, weights: int
) -> int:
    """The amount whose forwards fit into settings.max_memory beside FP32 and a scheme's weights.

    Raises UserError where that is less than what was asked for.
    """
    limit = settings.max_memory or 0
    shape = available.shape(amount)
    size = (shape.height, shape.width)
    resident = environment.resident_bytes() + weights
    fitting = memory.most(model, limit - resident, size)
    asked = available.unit != "pictures" or settings.max_images is not None
    if fitting < (shape.frames if asked else 1):
        nbytes = resident + memory.forecast(model, shape.frames, size, chunk=1)
        memory.refuse(shape.frames, size, nbytes, limit, fitting)
    return amount if asked else min(amount, fitting)


def _unknown(row: Variant, like: Forecast | None = None) -> Forecast:
    """The forecast of a packed file: FP32's time, and the bytes of the file."""
    nbytes = row.file.stat().st_size if row.file is not None else 0
    forward_s = like.forward_s if like is not None else 0.0
    return Forecast(name=row.name, prepare_s=0.0, forward_s=forward_s, model_bytes=nbytes)


def _correct(planned: Planned, model: nn.Module, runner: Runner) -> None:
    """Puts FP32's own time into the forecast: the best of a few forwards, or of a long one."""
    took: list[float] = []
    with torch.inference_mode():
        while len(took) < 4 and sum(took) < 1.0:
            _, seconds = forward(model, planned.samples[0].images, runner)
            took.append(seconds)
    planned.costs = forecast.update(planned.costs, min(took))


def again(settings: Settings, available: inputs.Inputs, head: Head) -> Planned:
    """The plan that a journal's head tells of."""
    kept = head.plan
    return Planned(
        kept.amount,
        Passes(kept.runs, kept.warmup),
        told(lambda line: None, take, settings, available, kept.amount),  # the first run said it
        head.forecast,
        forecast.Work(0, 0, 0, 0, "", 0),
        str(settings.place),
    )


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


def _forecast_lines(planned: Planned, available: inputs.Inputs) -> list[str]:
    """What is about to happen, how long it should take, and what to change if that is too long."""
    count, _, height, width = planned.samples[0].images.shape
    scenes, passes, work = len(planned.samples), planned.passes, planned.work
    lines = [
        f"{work.layers} Linear layers, {work.weights / 1e6:.1f} M weights, about "
        f"{work.linear_macs / 1e9:.2f} G of {work.macs / 1e9:.2f} G multiply-adds a forward",
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
            f"  {cost.name:32} {duration(forecast.row_s(cost, planned.forwards)):>12} "
            f"{megabytes(cost.model_bytes):>10} MB of parameters"
        )
    fp32 = planned.costs[0]
    seconds = planned.seconds_after_baseline() + forecast.row_s(fp32, planned.forwards)
    lines.append(
        f"in all about {duration(seconds)}, FP32's noise floor included, scoring not; FP32 and "
        f"packed weights together at most {megabytes(2 * fp32.model_bytes)} MB"
    )
    if seconds > forecast.COFFEE_SECONDS:
        lines.append("that is long: --schemes selects, --max_images, --scenes and --runs shorten")
    return lines
