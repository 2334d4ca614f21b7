# SPDX-License-Identifier: Apache-2.0
"""What a result depends on besides model and input: CPU, ISA, threads, versions, memory.

Everything here is a reading; nothing is set, except by `reset_peak_memory`.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The instruction sets that decide which kernel runs, here or in torch; /proc/cpuinfo's names.
_FLAGS = (
    ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni")
    + ("avx512_bf16", "amx_int8", "amx_bf16")
    + ("asimd", "asimddp", "i8mm", "bf16", "sve")
)
_PACKAGES = ("torch", "numpy", "pillow", "matplotlib", "rich", "safetensors")


def _proc(path: str, key: str) -> str:
    """The text after `key:` in a /proc file, or "" where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def cpu_model() -> str:
    """The processor's own name, as far as the system tells it."""
    return _proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The CPU's instruction sets that matter to the kernels, in a fixed order."""
    there = set((_proc("/proc/cpuinfo", "flags") or _proc("/proc/cpuinfo", "Features")).split())
    return [flag for flag in _FLAGS if flag in there]


def usable_cores() -> int:
    """The number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """The machine's memory in bytes, or None where the system does not say."""
    words = _proc("/proc/meminfo", "MemTotal").split()
    return int(words[0]) * 1024 if words else None


def resident_bytes() -> int:
    """The process's resident memory in bytes; 0 where the system does not say."""
    words = _proc("/proc/self/status", "VmRSS").split()
    return int(words[0]) * 1024 if words else 0


def reset_peak_memory() -> None:
    """Starts a new peak for `peak_memory_bytes` where Linux allows it (writing 5 to clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak then stays that of the whole process, an upper bound


def peak_memory_bytes() -> int:
    """The process's highest resident memory in bytes since `reset_peak_memory`."""
    words = _proc("/proc/self/status", "VmHWM").split()
    if words:
        return int(words[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak if platform.system() == "Darwin" else peak * 1024


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on; None for one not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def describe(argv: Sequence[str], device: torch.device | None = None) -> dict[str, Any]:
    """The environment block of a report: what another machine must match to repeat the figures.

    device: what the model runs on; None: the CPU.

    >>> describe(["vggtquant", "evaluate"])["cpu"]["cores_usable"] >= 1
    True
    """
    import torch

    from . import devices, ops
    from .about import VERSION

    return {
        "utc": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "argv": list(argv),
        "cpu": {
            "model": cpu_model(),
            "cores_usable": usable_cores(),
            "flags": cpu_flags(),
            "isa_active": ops.isa(),
            "isa_available": list(ops.isas()),
        },
        "machines": [cpu_model()],
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": {
            "torch": torch.get_num_threads(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
            "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        },
        "load_average_1min": round(os.getloadavg()[0], 2),
        "versions": {"vggtquant": VERSION, **versions()},
        "gpu": devices.describe(device or devices.CPU),
    }
