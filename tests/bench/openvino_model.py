# SPDX-License-Identifier: Apache-2.0
"""The original VGGT in OpenVINO, for model.py: converted, quantized by NNCF, kept in a cache.

OpenVINO has no rule for three operators that VGGT calls (cartesian_prod, meshgrid, einsum); while
the model is traced, equal expressions stand in for them. What is kept is bound to one model, number
of pictures and size, for a trace holds these as constants.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")


def cartesian_prod(*axes: torch.Tensor) -> torch.Tensor:
    """torch.cartesian_prod of two axes: (rows * columns, 2)."""
    rows, columns = axes
    return torch.stack((rows.repeat_interleave(len(columns)), columns.repeat(len(rows))), dim=-1)


def meshgrid(*axes: torch.Tensor, indexing: str = "ij") -> tuple[torch.Tensor, torch.Tensor]:
    """torch.meshgrid of two axes, indexing "xy": two tensors of (len(y), len(x))."""
    x, y = axes
    if indexing != "xy":
        raise ValueError(f"indexing is {indexing!r}; 'xy' is what VGGT asks for")
    return x[None, :].repeat(len(y), 1), y[:, None].repeat(1, len(x))


def einsum(equation: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """torch.einsum of an outer product, the only one that VGGT's heads and RoPE ask for."""
    if equation not in ("i,j->ij", "m,d->md"):
        raise ValueError(f"einsum {equation!r}; an outer product is what VGGT asks for")
    return first[:, None] * second[None, :]


@contextmanager
def convertible() -> Iterator[None]:
    """Operators without a conversion rule are replaced by equal expressions."""
    with (
        mock.patch.object(torch, "cartesian_prod", cartesian_prod),
        mock.patch.object(torch, "meshgrid", meshgrid),
        mock.patch.object(torch, "einsum", einsum),
    ):
        yield


class Flat(nn.Module):
    """VGGT with a tuple of tensors as its output, as a trace wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(images)
        return tuple(found[name] for name in OUTPUTS)


def place(cache: Path, model: str, frames: int, size: str) -> Path:
    """The directory of one conversion."""
    import openvino

    key = json.dumps([model, frames, size, openvino.__version__])
    return cache / f"{frames}x{size}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _replace(folder: Path, name: str, save: Callable[[Path], None]) -> None:
    """Save under another name, then rename: a file that is there is whole."""
    save(folder / f"new-{name}.xml")
    for suffix in (".bin", ".xml"):
        (folder / f"new-{name}{suffix}").rename(folder / f"{name}{suffix}")


def prepare(cache: Path, model: str, frames: int, size: str, quantized: bool) -> Path:
    """Convert, and quantize where asked; return the .xml. Takes minutes and up to 14 GB once."""
    import openvino as ov

    folder = place(cache, model, frames, size)
    folder.mkdir(parents=True, exist_ok=True)
    images = random_images(frames, size)
    floats, integers = folder / "fp32.xml", folder / "int8.xml"
    if not floats.exists():
        from vggtquant import models

        start = time.perf_counter()
        whole = models.load_model(model).model
        whole.track_head = None  # not run without query points; 0.07 B parameters
        flat = Flat(whole)
        with convertible(), torch.no_grad():
            traced = torch.jit.trace(flat, images, check_trace=False)
            converted = ov.convert_model(traced, example_input=images, input=[list(images.shape)])
        for output, name in zip(converted.outputs, OUTPUTS, strict=True):
            output.get_tensor().set_names({name})
        _replace(folder, "fp32", lambda to: ov.save_model(converted, to, compress_to_fp16=False))
        print(f"converted in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if quantized:  # in a process of its own: this one holds the floats twice
            command = [sys.executable, __file__, str(cache), model, str(frames), size, "1"]
            os.execv(sys.executable, command)
    if quantized and not integers.exists():
        import nncf

        start = time.perf_counter()
        source = ov.Core().read_model(floats)
        done: Any = nncf.quantize(
            source,
            nncf.Dataset([images.numpy()]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=1,
        )
        _replace(folder, "int8", lambda to: ov.save_model(done, to, compress_to_fp16=False))
        print(f"quantized in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return integers if quantized else floats


def random_images(frames: int, size: str) -> torch.Tensor:
    """(1, frames, 3, height, width), the same for every engine."""
    height, width = map(int, size.split("x"))
    return torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(0))


def forward_of(path: Path, precision: str, threads: int) -> Callable[[torch.Tensor], Any]:
    """The compiled model as a function. precision: f32 or bf16, of what is not INT8."""
    import openvino as ov

    compiled = ov.Core().compile_model(
        path,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()

    def forward(images: torch.Tensor) -> dict[str, Any]:
        found = request.infer([images.numpy()], share_inputs=True, share_outputs=True)
        return dict(zip(OUTPUTS, found.values(), strict=True))

    return forward


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5] == "1")
