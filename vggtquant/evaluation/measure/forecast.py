# SPDX-License-Identifier: Apache-2.0
"""Says before the first forward what an evaluation will cost, from the speed of one layer.

torch's flop counter counts a forward of fake tensors; the layer with most of the work is timed
under each scheme. How many scenes and pictures are used depends on the count alone, never on a
time, so that a busy machine measures what a quiet one does.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ... import devices, environment
from ...configs import QuantizationConfig
from ...conv import packed_nbytes
from ...dense import convolutions_of, reasons_against
from ...linear import QuantizedLinear
from ...model import model_bytes
from ..schema import Forecast
from .forward import Runner, plainly

# What the default amount of input fits into on a machine of NOMINAL multiply-adds a second: a
# coffee for a user's pictures, a first look at the rendered scenes.
COFFEE_SECONDS, LOOK_SECONDS = 600.0, 90.0
NOMINAL = 100e9
# torch in bfloat16 on CPUs without instructions for it: so many times slower; the row is left out
# where it would nominally take longer than HOPELESS_SECONDS.
BF16_TIMES, HOPELESS_SECONDS = 50.0, 20.0
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_PROBE_ROWS = 512  # rows of the measured layer: enough to be compute bound, few enough to be quick


@dataclass(frozen=True)
class Shape:
    """The size of a forward: frames of height x width pixels."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a forward, and the layer whose speed stands for all."""

    macs: int
    linear_macs: int
    weights: int
    layers: int
    probe: str
    probe_rows: int

    def nominal_s(self) -> float:
        """Seconds of a forward at the nominal speed."""
        return self.macs / NOMINAL


class Uncounted(Exception):
    """A model does not run on fake tensors."""


def count(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    shape: Shape,
    runner: Runner = plainly,
    *,
    really: bool = True,
) -> Work:
    """Counts a forward's multiply-adds and picks the layer with the most of them as the probe.

    What cannot run on fake tensors is counted while it runs on real ones, which takes as long as a
    forward; with really=False that raises Uncounted instead.
    """
    counts = _flops(model, shape, runner, really)
    root = type(model).__name__
    macs = {name: sum(counts.get(f"{root}.{name}", {}).values()) // 2 for name in layers}
    weights = {name: _weights(layer) for name, layer in layers.items()}
    probe = max(macs, key=lambda name: (macs[name], weights[name]))
    return Work(
        macs=sum(counts.get("Global", {}).values()) // 2,
        linear_macs=sum(macs.values()),
        weights=sum(weights.values()),
        layers=len(layers),
        probe=probe,
        probe_rows=max(1, macs[probe] // max(1, weights[probe])),
    )


def _weights(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Linear | QuantizedLinear)
    return layer.in_features * layer.out_features


@contextmanager
def _caches_kept(model: nn.Module) -> Iterator[None]:
    """Dictionaries of modules and of objects that they hold, such as the positions by size of
    VGGT's PositionGetter, keep no fake tensors."""
    owners: list[Any] = list(model.modules())
    owners += [
        held
        for module in model.modules()
        for held in vars(module).values()
        if hasattr(held, "__dict__") and not isinstance(held, (nn.Module, torch.Tensor, type))
    ]
    caches = [
        (cache, dict(cache))
        for owner in owners
        for name, cache in vars(owner).items()
        if type(cache) is dict and name not in _OF_MODULES
    ]
    try:
        yield
    finally:
        for cache, before in caches:
            cache.clear()
            cache.update(before)


_OF_MODULES = frozenset(vars(nn.Module()))


def _flops(
    model: nn.Module, shape: Shape, runner: Runner, really: bool
) -> dict[str, dict[Any, int]]:
    """The counter's table: operations by module, then by kind."""
    device = devices.device_of(model)
    images = torch.zeros(shape.frames, 3, shape.height, shape.width, device=device)
    # The counter hooks gradients.
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            try:
                fakes = FakeTensorMode(allow_non_fake_inputs=True)
                with _caches_kept(model), fakes as fake, _counter() as counter:
                    runner(model, fake.from_tensor(images))
            except Exception as error:  # whatever a model does that fake tensors cannot
                if not really:
                    raise Uncounted from error
                with _counter() as counter:
                    runner(model, images)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    found: dict[str, dict[Any, int]] = counter.get_flop_counts()
    return found


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """torch's counter knows the attention of GPUs only."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _counter() -> FlopCounterMode:
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={attention: _attention})


# ---- seconds -------------------------------------------------------------------------------------


def row_s(cost: Forecast, forwards: float) -> float:
    """Seconds of a row of that many forwards."""
    return cost.prepare_s + forwards * cost.forward_s


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds of `call`: the best of three after one to warm up, or that one when it is slow."""
    _, first = devices.timed(device, call)
    return first if first > 1.0 else min(devices.timed(device, call)[1] for _ in range(3))


@torch.inference_mode()
def costs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    work: Work,
    configs: Sequence[QuantizationConfig],
) -> list[Forecast]:
    """Measures the probe layer under each scheme and scales it to the whole model."""
    layer = layers[work.probe]
    assert isinstance(layer, nn.Linear)
    m = min(work.probe_rows, _PROBE_ROWS)
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(m, layer.in_features, generator=generator, device="cpu").to(layer.weight)
    macs = m * layer.weight.numel()
    device = x.device
    float_s = _seconds(device, lambda: layer(x)) / macs
    held = model_bytes(model)
    found = []
    for config in configs:
        prepare_s, mac_s, nbytes = 0.0, float_s, held
        if config.quant_type == "bf16":
            with torch.autocast(device.type, torch.bfloat16):
                mac_s = _seconds(device, lambda: layer(x)) / macs
        elif config.quantizes:
            start = time.perf_counter()
            packed = _packed(layer, config, work.probe)
            ratio = work.weights / layer.weight.numel()
            prepare_s = (time.perf_counter() - start) * ratio
            run = functools.partial(packed, x)
            mac_s = _seconds(device, run) / macs
            saved = sum(t.numel() * t.element_size() for t in layer.parameters()) - packed.nbytes
            nbytes = max(0, held - int(saved * ratio) - _saved_by_convolutions(model, config))
        forward_s = work.linear_macs * mac_s + (work.macs - work.linear_macs) * float_s
        found.append(
            Forecast(name=config.name, prepare_s=prepare_s, forward_s=forward_s, model_bytes=nbytes)
        )
    return found


def _packed(layer: nn.Linear, config: QuantizationConfig, name: str) -> QuantizedLinear:
    """The probe under a config; patterns of a mixed one name layers of the whole model."""
    if config.quant_type == "mixed_precision":
        config = replace(config, sensitive_layers=())
    return QuantizedLinear.from_linear(layer, config)


def _saved_by_convolutions(model: nn.Module, config: QuantizationConfig) -> int:
    """Bytes by which the convolutions that become INT8 are smaller."""
    if config.convolutions != "int8":
        return 0
    convolutions = convolutions_of(model)
    return sum(
        convolutions[name].weight.nbytes - packed_nbytes(convolutions[name])
        for name, kept in reasons_against(convolutions).items()
        if not kept
    )


def rescaled(found: Sequence[Forecast], ratio: float) -> list[Forecast]:
    """The costs of a forward of another size."""
    return [
        Forecast(
            name=cost.name,
            prepare_s=cost.prepare_s,
            forward_s=ratio * cost.forward_s,
            model_bytes=cost.model_bytes,
        )
        for cost in found
    ]


def update(found: Sequence[Forecast], measured_forward_s: float) -> list[Forecast]:
    """The forecast once the baseline, the first, ran: its time, and each scheme's difference."""
    expected = found[0].forward_s
    updated = rescaled(found, 1.0)
    for cost in updated:
        # never below what the non-Linear part and the forecast leave
        least = 0.1 * measured_forward_s
        cost.forward_s = max(measured_forward_s + cost.forward_s - expected, least)
    return updated


def hopeless(work: Work, scenes: int) -> bool:
    """Whether the bfloat16 row is not worth running here: by the CPU's flags and the count."""
    slow_s = BF16_TIMES * work.nominal_s() * scenes
    return not _BF16_FLAGS & set(environment.cpu_flags()) and slow_s > HOPELESS_SECONDS


# ---- how much ------------------------------------------------------------------------------------


def budget(pictures: bool) -> float:
    """Nominal seconds of the default amount: of a user's pictures, or of rendered scenes."""
    return COFFEE_SECONDS if pictures else LOOK_SECONDS


def fitting(amount: int, least: int, nominal_s: Callable[[int], float], budget: float) -> int:
    """The largest amount, down to `least`, whose nominal seconds fit the budget.

    >>> fitting(9, 2, lambda n: 100.0 * n, 600.0), fitting(9, 2, lambda n: 1e6 * n, 600.0)
    (6, 2)
    """
    while amount > least and nominal_s(amount) > budget:
        amount -= 1
    return amount


def passes(
    seconds: Callable[[int, int], float], runs: int | None, warmup: int | None, budget: float
) -> tuple[int, int]:
    """Counted passes and warm-up forwards that fit the budget: 3 and 1, else 1 and 1, else 1 and 0.

    What the user gave stays.

    >>> passes(lambda runs, warmup: 100.0 * (runs + warmup), None, None, 250.0)
    (1, 1)
    """
    steps = [
        (runs if runs is not None else r, warmup if warmup is not None else w)
        for r, w in ((3, 1), (1, 1), (1, 0))
    ]
    return next((step for step in steps if seconds(*step) <= budget), steps[-1])
