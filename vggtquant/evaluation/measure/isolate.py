# SPDX-License-Identifier: Apache-2.0
"""Loads a model in a process of its own and runs it once: what a user waits for, and the memory.

A scheme is loaded from a packed checkpoint as `vggtquant quantize` writes it, with what is not
quantized as bfloat16; FP32 and BF16 from where the evaluation has them. Run as a module, this is
the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from ... import adapters, devices, environment, ops
from ..records import Alone
from ..schema import GpuMemory, Isolated, Kind
from .forward import forward
from .variants import Variant

_MODULE = "vggtquant.evaluation.measure.isolate"  # __name__ is another where it is run


class Request(msgspec.Struct):
    """What the process is asked to do."""

    address: str
    packed: str | None
    images: str
    autocast: bool
    threads: int
    device: str = "cpu"
    adapter: str | None = None


@dataclass(frozen=True)
class Isolation:
    """Where the float model comes from, for processes that have to load it themselves."""

    address: str
    weights: Path | None  # its file, where there is one
    adapter: str | None = None

    def __call__(self, variant: Variant, model: nn.Module, images: torch.Tensor) -> Alone:
        """The record; `model` holds the scheme's packed layers."""
        from ...checkpoint import storage

        with tempfile.TemporaryDirectory(prefix="vggtquant-") as folder:
            packed = None
            file = self.weights
            if variant.kind is Kind.QUANTIZED:
                file = Path(folder) / "packed.safetensors"
                packed = str(storage.save(model, file, float_dtype="bfloat16").path)
            pictures = Path(folder) / "images.npy"
            np.save(pictures, images.numpy())
            request = Request(
                self.address,
                packed,
                str(pictures),
                variant.autocast,
                torch.get_num_threads(),
                str(devices.device_of(model)),
                self.adapter,
            )
            words = msgspec.json.encode(request).decode()
            done = subprocess.run(
                [sys.executable, "-m", _MODULE, words],
                capture_output=True,
                text=True,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "VGGTQUANT_ISA": ops.isa(),
                },
            )
            if done.returncode != 0:
                said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                reason = f"in a process of its own: {said[-1]}"
                return Alone(scheme=variant.name, found=None, reason=reason)
            found = msgspec.json.decode(done.stdout.splitlines()[-1], type=Isolated)
            found.file_bytes = file.stat().st_size if file is not None else None
            return Alone(scheme=variant.name, found=found, reason=None)


def _load(request: Request) -> nn.Module:
    from ... import models
    from ...checkpoint import storage
    from ...checkpoint.document import Checkpoint

    if request.packed is None:
        return models.load_model(request.address, request.device, adapter=request.adapter).model
    known = Checkpoint(request.packed).document.architecture
    # Only code knows how other models are built, float weights and all.
    model = None
    if not known:
        model = models.load_model(request.address, adapter=request.adapter).model
    model = storage.load(request.packed, model=model, device=request.device)
    adapters.use(model, request.adapter)
    return model


def main(words: Sequence[str]) -> None:
    """Loads, runs once, and prints seconds and bytes as a line of JSON."""
    request = msgspec.json.decode(words[0], type=Request)
    torch.set_num_threads(request.threads)
    images = torch.from_numpy(np.load(request.images))
    device = ops.check_device(request.device)
    start = time.perf_counter()
    model = _load(request)
    devices.synchronize(device)
    load_s = time.perf_counter() - start
    cast = torch.autocast(device.type, torch.bfloat16, enabled=request.autocast)
    with torch.inference_mode(), cast:
        _, first_forward_s = forward(model, images)
    found = Isolated(load_s, first_forward_s, environment.peak_memory_bytes())
    found.gpu_peak = GpuMemory.of(devices.peak(device))
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
