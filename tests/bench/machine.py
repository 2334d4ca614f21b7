# SPDX-License-Identifier: Apache-2.0
"""What the other files here need of the machine: instruction sets, cores, priority."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ISAS = {  # ours: (oneDNN's, which OpenVINO has too; torch's own kernels)
    "avx2": ("AVX2", "avx2"),
    "avx512": ("AVX512_CORE", "avx512"),
    "avx512vnni": ("AVX512_CORE_VNNI", "avx512"),
    "avx512bf16": ("AVX512_CORE_BF16", "avx512"),
    "amx": ("DEFAULT", "avx512"),
}


def lowered(isa: str | None) -> dict[str, str]:
    """The environment of a process that goes no higher than that instruction set."""
    if isa is None:
        return {}
    onednn, aten = ISAS[isa]
    return {
        "VGGTQUANT_ISA": isa,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "ATEN_CPU_CAPABILITY": aten,
        "MKL_ENABLE_INSTRUCTIONS": aten.upper(),
    }


def lower(isa: str | None) -> None:
    """Start this program anew with those variables, which libraries read when they are loaded."""
    if isa and os.environ.get("VGGTQUANT_ISA") != isa:
        use_every_core()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | lowered(isa))


def use_every_core() -> None:
    """torch's OpenMP pins the thread that loads it to one core; children would inherit that."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


@contextmanager
def every_core() -> Iterator[None]:
    """For other thread pools, which inherit what this thread is pinned to."""
    before = os.sched_getaffinity(0)
    use_every_core()
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def realtime(asked: bool) -> Iterator[None]:
    """Real-time priority for all threads of this process, where asked."""
    threads = [int(name) for name in os.listdir("/proc/self/task")] if asked else []
    for thread in threads:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        for thread in threads:
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
