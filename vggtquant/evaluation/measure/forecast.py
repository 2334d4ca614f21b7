# SPDX-License-Identifier: Apache-2.0
"""Says before the first forward what an evaluation will cost, from the speed of one layer.

Linear layers are counted exactly, attention from the width of its `qkv` layers; convolutions are
not counted. So it is a forecast: after the baseline, `update` puts its measured time in.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

import vggtquant as vq

from ... import vggt

# What the default amount of input fits into: a coffee for a user's pictures, a first look at the
# rendered scenes.
COFFEE_SECONDS, LOOK_SECONDS = 600.0, 90.0
# The bfloat16 row is left out when it would take longer than both; torch is some 50 times slower
# on CPUs without instructions for it.
HOPELESS_SECONDS, HOPELESS_TIMES = 20.0, 10.0
_PROBE_ROWS = 512  # rows of the measured layer: enough to be compute bound, few enough to be quick


@dataclass(frozen=True)
class Shape:
    """The size of a forward: frames of height x width pixels."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a forward and the layer whose speed stands for all."""

    layers: int
    weights: int
    linear_macs: int
    attention_macs: int
    probe: str
    probe_rows: int


@dataclass(frozen=True)
class Cost:
    """The forecast of a scheme: seconds to prepare it and for one forward, and bytes."""

    name: str
    prepare_s: float
    forward_s: float
    model_bytes: int

    def seconds(self, forwards: float) -> float:
        """Seconds of the whole row."""
        return self.prepare_s + forwards * self.forward_s


def patch_size(model: nn.Module) -> int:
    """The side of a patch in pixels: kernel of the first convolution that does not overlap, or 14.

    >>> patch_size(nn.Sequential(nn.Conv2d(3, 8, 16, stride=16)))
    16
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride != (1, 1):
            return int(module.kernel_size[0])
    return 14


def rows(name: str, shape: Shape, patch: int) -> int:
    """The number of activation rows that the Linear `name` sees in a forward."""
    for pattern, passes in vggt.FRAME_PASSES:
        if fnmatch.fnmatchcase("." + name, pattern):
            return passes * shape.frames
    patches = max(1, shape.height // patch) * max(1, shape.width // patch)
    return shape.frames * (patches + vggt.TOKENS)


def count(model: nn.Module, layers: Mapping[str, nn.Linear], shape: Shape) -> Work:
    """Counts a forward's multiply-adds and picks the layer with the most of them as the probe."""
    patch = patch_size(model)
    linear = attention = 0
    best, probe, probe_rows = -1, "", 0
    for name, layer in layers.items():
        m = rows(name, shape, patch)
        macs = m * layer.in_features * layer.out_features
        linear += macs
        if macs > best:
            best, probe, probe_rows = macs, name, m
        if name.rpartition(".")[2] == "qkv":
            span = m if "global" in name else m // shape.frames
            attention += 2 * m * span * layer.in_features
    weights = sum(layer.weight.numel() for layer in layers.values())
    return Work(len(layers), weights, linear, attention, probe, max(1, probe_rows))


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of `call`: the best of three after one to warm up, or that one when it is slow."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > 1.0:
        return first
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.inference_mode()
def costs(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    work: Work,
    configs: Sequence[vq.QuantizationConfig],
) -> list[Cost]:
    """Measures the probe layer under each scheme and scales it to the whole model."""
    layer = layers[work.probe]
    m = min(work.probe_rows, _PROBE_ROWS)
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(m, layer.in_features, generator=generator).to(layer.weight)
    macs = m * layer.weight.numel()
    float_s = _seconds(lambda: layer(x)) / macs
    held = vq.model_bytes(model)
    found = []
    for config in configs:
        prepare_s, mac_s, nbytes = 0.0, float_s, held
        if config.quant_type == "bf16":
            with torch.autocast(x.device.type, torch.bfloat16):
                mac_s = _seconds(lambda: layer(x)) / macs
        elif config.quant_type != "fp32":
            start = time.perf_counter()
            packed = vq.QuantizedLinear.from_linear(layer, config)
            ratio = work.weights / layer.weight.numel()
            prepare_s = (time.perf_counter() - start) * ratio
            mac_s = _packed_seconds(packed, x) / macs
            saved = sum(t.numel() * t.element_size() for t in layer.parameters()) - packed.nbytes
            nbytes = max(0, held - int(saved * ratio))
        forward_s = work.linear_macs * mac_s + work.attention_macs * float_s
        found.append(Cost(config.name, prepare_s, forward_s, nbytes))
    return found


def _packed_seconds(packed: nn.Module, x: torch.Tensor) -> float:
    return _seconds(lambda: packed(x))


def rescale(found: Sequence[Cost], measured: Work, other: Work) -> list[Cost]:
    """The costs of a forward of another size, from those of the one that was counted."""
    ratio = (other.linear_macs + other.attention_macs) / max(
        1, measured.linear_macs + measured.attention_macs
    )
    return [replace(cost, forward_s=cost.forward_s * ratio) for cost in found]


def update(found: Sequence[Cost], measured_forward_s: float) -> list[Cost]:
    """The forecast once the baseline ran: its own time, and each scheme's difference to it."""
    expected = next(cost.forward_s for cost in found if cost.name == "Baseline_FP32")
    return [
        replace(
            cost,
            forward_s=max(
                measured_forward_s + cost.forward_s - expected,
                # never below what the non-Linear part and the forecast leave
                0.1 * measured_forward_s,
            ),
        )
        for cost in found
    ]


def hopeless(cost: Cost, baseline: Cost, forwards: float) -> str | None:
    """Why a bfloat16 row is not worth running here, or None."""
    seconds = cost.seconds(forwards)
    times = cost.forward_s / baseline.forward_s
    if seconds <= HOPELESS_SECONDS or times <= HOPELESS_TIMES:
        return None
    return (
        f"would take {seconds:.0f} s, {times:.0f} times the baseline, by a trial before the run: "
        "torch is slow in bfloat16 on a CPU without instructions for it, or the machine was busy; "
        f"--schemes {cost.name} runs it all the same"
    )


def budget(pictures: bool) -> float:
    """Seconds that the default amount may take: of a user's pictures, or of rendered scenes."""
    return COFFEE_SECONDS if pictures else LOOK_SECONDS


def total(found: Sequence[Cost], forwards: float) -> float:
    """Seconds of all rows, FP32 first, without a bfloat16 row that would be left out."""
    return sum(
        cost.seconds(forwards)
        for cost in found
        if cost.name != "Baseline_BF16" or hopeless(cost, found[0], forwards) is None
    )


@dataclass(frozen=True)
class Plan:
    """How much to run: units of input (scenes or pictures), counted passes, warm-up forwards."""

    amount: int
    runs: int
    warmup: int
    seconds: float


def plan(
    seconds: Callable[[int, int, int], float],
    amount: int,
    *,
    least: int = 1,
    runs: int | None = None,
    warmup: int | None = None,
    budget: float = COFFEE_SECONDS,
) -> Plan:
    """Chooses amount, runs and warm-up so that `seconds(amount, runs, warmup)` fits the budget.

    What the user gave stays. Of the rest, passes go first (3 and a warm-up, then 1 and a warm-up,
    then 1), then units of input, down to `least`.

    >>> plan(lambda amount, runs, warmup: 100.0 * amount * (runs + warmup), 9)
    Plan(amount=6, runs=1, warmup=0, seconds=600.0)
    """
    steps = [
        (runs if runs is not None else r, warmup if warmup is not None else w)
        for r, w in ((3, 1), (1, 1), (1, 0))
    ]
    for r, w in steps:
        if seconds(amount, r, w) <= budget:
            return Plan(amount, r, w, seconds(amount, r, w))
    r, w = steps[-1]
    while amount > least and seconds(amount, r, w) > budget:
        amount -= 1
    return Plan(amount, r, w, seconds(amount, r, w))
