# SPDX-License-Identifier: Apache-2.0
"""The device that a model runs on: its clock, its memory, and what a report says of it.

A CPU's clock is the system's. A GPU works behind the host's back: its clock is CUDA events on the
current stream, and its memory is that of torch's allocator.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

T = TypeVar("T")

CPU = torch.device("cpu")


class Memory(NamedTuple):
    """Highest bytes of a GPU since `reset_peak`."""

    allocated: int
    """Of tensors."""
    reserved: int
    """That torch's allocator took from the GPU for them."""


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter or buffer lies; the CPU for a model without any.

    >>> device_of(nn.Linear(2, 2))
    device(type='cpu')
    """
    held = next((x for x in [*model.parameters(), *model.buffers()] if not x.is_meta), None)
    return CPU if held is None else held.device


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, call: Callable[[], T]) -> tuple[T, float]:
    """What `call` returns, and its seconds on the device.

    On a GPU: between two CUDA events on the current stream, after all earlier work is done; time in
    which the GPU waits for the host counts.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        result = call()
        return result, time.perf_counter() - start
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)
        events: Any = torch.cuda.Event
        begin, end = (events(enable_timing=True) for _ in range(2))
        begin.record()
        result = call()
        end.record()
        end.synchronize()
    return result, begin.elapsed_time(end) / 1e3


def reset_peak(device: torch.device) -> None:
    """Starts a new peak for `peak`, after memory that torch holds in reserve is given back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> Memory | None:
    """The GPU's highest memory since `reset_peak`; None for a CPU."""
    if device.type != "cuda":
        return None
    return Memory(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))


def driver() -> str | None:
    """Version of NVIDIA's kernel driver, as Linux tells it; None elsewhere."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module\D*?(?:x86_64|aarch64)?\s+(\d+(?:\.\d+)+)", words)
    return found and found[1]


def describe(device: torch.device) -> dict[str, Any] | None:
    """What a report says of a GPU; None for a CPU.

    tf32_products, tf32_convolutions: whether torch may compute FP32 with 10-bit mantissas.
    """
    if device.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(device)
    return {
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "processors": facts.multi_processor_count,
        "memory_bytes": facts.total_memory,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }
