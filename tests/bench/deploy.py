# SPDX-License-Identifier: Apache-2.0
"""An exported model beside ours: memory and time of export, then each runtime's pass and outputs.

    PYTHONPATH=path/of/vggt python tests/bench/deploy.py --model vggt.models.vggt:VGGT \\
        --size 350x518 --frames 1 2 --steps export ours onnxruntime --results deploy.jsonl

The weights may be random; the pictures are random too. Each step runs in a fresh process: "export"
writes the model, "ours" computes with pinned threads, then each runtime loads the file. "bounds"
measures what coding activations changes (the bound of `export`), "noise" is our own outputs beside
ours after half of the patch embedding's values moved to the next float. A step that --results has
is not run again, and quantized models are kept in --cache, which belongs to one --model. RSS is the
peak of a process, over one that has imported torch (ours) or nothing else (a runtime); that of
export is the whole process. "Static" has the ranges that the same pictures have.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import rss
from openvino_model import random_images
from torch import nn

INT8 = "INT8_Per_Channel_Symmetric_A8"
SCHEMES = {
    "float": None,
    "INT8 dynamic": INT8,
    "INT8 static": INT8,
    "INT4": "INT4_Group_128",
    "INT8_Fast": "INT8_Fast",
    "INT8 static, convolutions": {"quant_type": "int8_per_channel_sym", "convolutions": "int8"},
}
"""A scheme's name, or the fields of one with INT8 activations, by case."""

PINNED = {"OMP_PROC_BIND": "close", "OMP_PLACES": "threads"}


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def with_ranges(model: nn.Module, images: torch.Tensor) -> None:
    """Gives each layer with INT8 activations the range that these pictures have."""
    from vggtquant.calibration import convolutions
    from vggtquant.conv import QuantizedConv2d
    from vggtquant.linear import QuantizedLinear

    seen: dict[QuantizedLinear, float] = {}

    def look(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[layer] = max(seen.get(layer, 0.0), float(inputs[0].abs().max()))

    hooks = [
        m.register_forward_pre_hook(look)
        for m in model.modules()
        if isinstance(m, QuantizedLinear) and not isinstance(m, QuantizedConv2d)
    ]
    with torch.inference_mode():
        model(images)
    for hook in hooks:
        hook.remove()
    for layer, largest in seen.items():
        layer.input_scale = largest / 127
    convolutions.measure(model, [images], "minmax")


def config_of(case: str) -> Any:
    """What quantize_model takes for a case; None for float."""
    import vggtquant as vq

    scheme = SCHEMES[case]
    if not isinstance(scheme, dict):
        return scheme
    return vq.QuantizationConfig("convolutions", quantize_activations=True, **scheme)


def kept(name: str, case: str, cache: Path) -> nn.Module:
    """The model, float or from its packed file in the cache, which is written where it is not."""
    import vggtquant as vq
    from vggtquant import models

    scheme = config_of(case)
    file = cache / f"{getattr(scheme, 'name', scheme)}.safetensors"
    if scheme and file.exists():
        return vq.load(file)
    torch.manual_seed(0)
    model = models.load_model(name).model
    if hasattr(model, "track_head"):
        model.track_head = None  # without points to follow it does not run
    if scheme:
        model, _ = vq.quantize_model(model, scheme)
        cache.mkdir(parents=True, exist_ok=True)
        vq.save(model, file, float_dtype="float32")
    return model


def prepared(args: argparse.Namespace) -> tuple[nn.Module, torch.Tensor]:
    """The model of args.case and its pictures."""
    images = random_images(args.frames[0], args.size)
    model = kept(args.model, args.case, args.cache)
    if "static" in args.case:
        with_ranges(model, images)
    return model, images


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Writes args.case."""
    import vggtquant as vq

    model, _ = prepared(args)
    before, start, spent = rss(), time.perf_counter(), time.process_time()
    forget_peak()
    options = {"frames": args.frames[0], "dynamic_frames": args.dynamic_frames}
    found = vq.export(model, args.folder, size=args.size, check=False, **options)
    return {
        "s": time.perf_counter() - start,
        "processor": time.process_time() - spent,
        "peak": rss("VmHWM"),
        "before": before,
        "MB": found.nbytes / 1e6,
        "forms": found.forms,
        "nodes": found.nodes,
        "tensorrt": found.tensorrt,
    }


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Our outputs, stored beside the file; time and memory of a forward."""
    from vggtquant.deploy import check

    empty = rss()
    model, images = prepared(args)
    forget_peak()
    outputs = check.expected(model, images)
    start, spent = time.perf_counter(), time.process_time()
    outputs = check.expected(model, images)
    figures = {
        "s": time.perf_counter() - start,
        "processor": (time.process_time() - spent) / torch.get_num_threads(),
        "peak": rss("VmHWM") - empty,
    }
    args.folder.mkdir(parents=True, exist_ok=True)
    np.savez(args.folder / "ours.npz", **outputs)
    return figures


def bounds(args: argparse.Namespace) -> dict[str, Any]:
    """The check's bound of each output, from our outputs as stored."""
    from vggtquant.deploy import check, sites

    model, images = prepared(args)
    expected = dict(np.load(args.folder / "ours.npz"))
    return {"bounds": check.bounds(expected, sites.with_sites(model), images)}


def noise(args: argparse.Namespace) -> dict[str, Any]:
    """Ours against ours, as `run` compares, with one more rounding in the patch embedding."""
    from vggtquant.deploy import check

    model, images = prepared(args)
    expected = dict(np.load(args.folder / "ours.npz"))
    embedding = next(m for m in model.modules() if type(m) is nn.Conv2d)
    random = torch.Generator().manual_seed(0)

    def moved(_: Any, __: Any, y: torch.Tensor) -> torch.Tensor:
        above = torch.nextafter(y, torch.full_like(y, torch.inf))
        return torch.where(torch.rand(y.shape, generator=random) < 0.5, y, above)

    embedding.register_forward_hook(moved)
    return {"differences": apart(expected, check.expected(model, images))}


def apart(expected: Any, found: Any) -> dict[str, tuple[float, float]]:
    """The 99.9th percentile and the largest of each output's difference, in deviations."""
    from vggtquant.deploy import check

    unbounded = dict.fromkeys(expected, 0.0)
    return {d.output: (d.size, d.largest) for d in check.differences(expected, found, unbounded)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """args.step, a runtime, on the file that export wrote."""
    from vggtquant.deploy import runtimes

    expected = dict(np.load(args.folder / "ours.npz"))
    images = random_images(args.frames[0], args.size).numpy()
    empty = rss()
    forget_peak()
    ran = runtimes.RUNTIMES[args.step].run(args.folder / "model.onnx", images)
    figures = {
        "s": ran.seconds,
        "processor": ran.processor_seconds / torch.get_num_threads(),
        "load": ran.load_seconds,
        "peak": rss("VmHWM") - empty,
        "kernels": ran.kernels,
    }
    figures["differences"] = apart(expected, ran.outputs)
    return figures


STEPS = {
    "export": export,
    "ours": ours,
    "onnxruntime": run,
    "openvino": run,
    "bounds": bounds,
    "noise": noise,
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="an exported model beside ours")
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--size", default="350x518")
    parser.add_argument("--frames", type=int, nargs="+", default=[1])
    parser.add_argument("--dynamic_frames", action="store_true", help="one file for all --frames")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES)[:4])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS)[:3])
    parser.add_argument("--folder", type=Path, default=Path("deployed"))
    parser.add_argument("--results", type=Path, default=Path("deploy.jsonl"))
    parser.add_argument("--cache", type=Path, default=Path("deploy-cache"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    if args.step:
        print(json.dumps(STEPS[args.step](args)))
        return
    done = []
    if args.results.exists():
        done = [json.loads(line) for line in args.results.read_text().splitlines()]
    told = ("model", "case", "frames", "step", "dynamic_frames")
    known = {tuple(x.get(key, False) for key in told) for x in done}
    for frames in args.frames:
        for case in args.schemes:
            for step in args.steps:
                again = step == "export" and args.dynamic_frames and frames != args.frames[0]
                if again or (args.model, case, frames, step, args.dynamic_frames) in known:
                    continue
                flags = ["--model", args.model, "--size", args.size, "--frames", str(frames)]
                flags += ["--cache", str(args.cache), "--folder", str(args.folder)]
                flags += ["--step", step, "--case", case]
                flags += ["--dynamic_frames"] * args.dynamic_frames
                command = [sys.executable, __file__, *flags]
                environment = os.environ | (PINNED if step == "ours" else {})
                done_by = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, check=True
                )
                figures = json.loads(done_by.stdout.splitlines()[-1])
                line = dict(
                    zip(told, (args.model, case, frames, step, args.dynamic_frames), strict=True)
                )
                with args.results.open("a") as results:
                    results.write(json.dumps(line | figures) + "\n")


if __name__ == "__main__":
    main()
