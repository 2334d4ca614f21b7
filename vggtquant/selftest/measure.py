# SPDX-License-Identifier: Apache-2.0
"""Times of Linear layers beside BF16, and their memory."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from .. import devices, engines, environment, gpu_linear
from ..configs import CONFIGS
from ..linear import QuantizedLinear
from .compare import layer_of, served, tokens_of
from .findings import Held, Product, Speed

SHARE = 0.5
"""Of the free memory that a measurement may take."""

LINEARS = ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024))
"""(inputs, outputs) of VGGT's aggregator."""
TOKENS = (1374, 5496, 11_000, 8)
"""Of one picture of 518 x 518, of four, of eight, and of a camera head."""
TIMED = (
    "INT8_Per_Channel_Symmetric_A8",
    "INT4_Group_128_A8",
    "INT8_Per_Channel_Symmetric",
    "FP8_Per_Channel",
)
RUNS = 15
LONG_S = 0.5
"""Seconds after which a call is not repeated."""


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return (environment.memory_bytes() or 8 << 30) - environment.resident_bytes()


def wanted_bytes(size: Product) -> int:
    """That a measurement takes at most: weights in float32 and twice in bfloat16, tokens, codes,
    outputs of 32 bits and of 16."""
    return 8 * size.k * size.n + size.m * (3 * size.k + 8 * size.n)


def _median(device: torch.device, call: Callable[[], object], runs: int) -> float:
    """Microseconds: of `runs` calls after two, or of fewer where they take more than LONG_S."""
    spent = sum(devices.timed(device, call)[1] for _ in range(2 if runs > 1 else 1))
    took: list[float] = []
    while len(took) < runs and (not took or spent + sum(took) < LONG_S):
        took.append(devices.timed(device, call)[1])
    return 1e6 * statistics.median(took)


def speeds(
    device: torch.device, sizes: Sequence[Product], runs: int, over: Callable[[], bool]
) -> Iterator[Speed | str]:
    """Times of each scheme at each size; or a note on a size that is left out."""
    for size in sizes:
        if over():
            yield f"{size.words} and what follows: not timed, the time limit is reached"
            return
        if (wanted := wanted_bytes(size)) > SHARE * free_bytes(device):
            yield f"{size.words}: not timed, {wanted} bytes do not fit into the free memory"
            continue
        x = tokens_of(size, torch.bfloat16).to(device)
        half = nn.Linear(size.k, size.n).requires_grad_(False).to(device, torch.bfloat16)
        with torch.inference_mode():
            bf16 = _median(device, lambda half=half, x=x: half(x), runs)  # type: ignore[misc]
            for name in (name for name in TIMED if served(name, device)):
                layer = layer_of(CONFIGS[name], size).to(device)
                call = functools.partial(layer, x)
                first = 1e6 * devices.timed(device, call)[1]
                us, kernel = _median(device, call, runs), layer.last_kernel
                each = {} if device == devices.CPU else _each(device, layer, call, runs)
                yield Speed(name, list(size), kernel, us, bf16, first, each)
        del x, half


def _each(
    device: torch.device, layer: QuantizedLinear, call: Callable[[], object], runs: int
) -> dict[str, float]:
    """Microseconds of each engine that serves the call."""
    found = {}
    for name in gpu_linear.NAMES:
        with engines.use(name):
            us = _median(device, call, runs)
        if str(layer.last_kernel).endswith(name):
            found[name] = us
    return found


def memory(device: torch.device, size: Product) -> Iterator[Held]:
    """Bytes of a layer under each timed scheme, and of a forward on a GPU."""
    plain = 4 * (size.k + 1) * size.n
    for name in (name for name in TIMED if served(name, device)):
        layer = layer_of(CONFIGS[name], size).to(device)
        x = tokens_of(size, torch.bfloat16).to(device)
        devices.reset_peak(device)
        with torch.inference_mode():
            layer(x)
        peak = devices.peak(device)
        yield Held(name, list(size), layer.nbytes, plain, peak and peak.allocated)
        del layer, x
