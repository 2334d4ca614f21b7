# SPDX-License-Identifier: Apache-2.0
"""Loads a model in a process of its own and runs it once: what a user waits for, and the memory.

A scheme is loaded from a packed checkpoint as `vggtquant quantize` writes it, with what is not
quantized as bfloat16; FP32 and BF16 from where the evaluation has them. Run as a module, this is
the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import vggtquant as vq

from ... import environment
from .variants import Variant


@dataclass(frozen=True)
class Isolation:
    """Where the float model comes from, for processes that have to load it themselves."""

    spec: str
    weights: Path | None  # its file, where there is one

    def __call__(self, variant: Variant, model: nn.Module, images: torch.Tensor) -> dict[str, Any]:
        """The keys `found` and `reason` of a record; `model` holds the scheme's packed layers."""
        with tempfile.TemporaryDirectory(prefix="vggtquant-") as folder:
            packed = None
            file = self.weights
            if variant.kind == "quantized":
                file = Path(folder) / "packed.safetensors"
                packed = str(vq.save(model, file).path)
            np.save(Path(folder) / "images.npy", images.numpy())
            request = {
                "spec": self.spec,
                "packed": packed,
                "images": str(Path(folder) / "images.npy"),
                "autocast": variant.autocast,
                "threads": torch.get_num_threads(),
            }
            done = subprocess.run(
                [sys.executable, "-m", "vggtquant.evaluation.measure.isolate", json.dumps(request)],
                capture_output=True,
                text=True,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "VGGTQUANT_ISA": vq.isa(),
                },
            )
            if done.returncode != 0:
                said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                return {"found": None, "reason": f"in a process of its own: {said[-1]}"}
            found = json.loads(done.stdout.splitlines()[-1])
            found["file_bytes"] = file.stat().st_size if file is not None else None
            return {"found": found, "reason": None}


def _load(request: dict[str, Any]) -> nn.Module:
    from ... import models
    from ...checkpoint.document import Checkpoint

    if request["packed"] is None:
        return models.load_model(request["spec"]).model
    known = Checkpoint(request["packed"]).document.architecture
    # Only code knows how other models are built, float weights and all.
    model = None if known else models.load_model(request["spec"]).model
    return vq.load(request["packed"], model=model)


def main(words: Sequence[str]) -> None:
    """Loads, runs once, and prints seconds and bytes as a line of JSON."""
    from .measure import forward

    request = json.loads(words[0])
    torch.set_num_threads(request["threads"])
    images = torch.from_numpy(np.load(request["images"]))
    start = time.perf_counter()
    model = _load(request)
    load_s = time.perf_counter() - start
    cast = torch.autocast("cpu", torch.bfloat16, enabled=request["autocast"])
    with torch.inference_mode(), cast:
        _, first_forward_s = forward(model, images)
    found = {
        "load_s": load_s,
        "first_forward_s": first_forward_s,
        "peak_rss_bytes": environment.peak_memory_bytes(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
