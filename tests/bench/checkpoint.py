# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints of a model of VGGT-1B's exact names and shapes: sizes, memory, speed, load.

    python tests/bench/checkpoint.py [--folder DIR] [--tracker] [--loads 3]

The float checkpoint has random weights and is made once (4.76 GB; 5.03 GB with the tracker). Each
figure comes from a fresh process, files in the page cache, and stands beside its target. Memory is
the peak of RSS over what the process had after importing torch. Wall time means little on a
machine that others use, so CPU time of all threads stands beside it. With the user's `vggt` package
installed the packed file is loaded into the original, which then computes one picture of 350x518
twice; otherwise into modules of the same names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

Shape = tuple[int, ...]


# ---- names and shapes ----------------------------------------------------------------------------


def linear(name: str, n: int, k: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (n, k)
    yield f"{name}.bias", (n,)


def norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def conv(name: str, n: int, k: int, side: int, *, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (n, k, side, side)
    if bias:
        yield f"{name}.bias", (n,)


def block(name: str, dim: int, *, qk_norm: bool = False) -> Iterator[tuple[str, Shape]]:
    yield from norm(f"{name}.norm1", dim)
    yield from linear(f"{name}.attn.qkv", 3 * dim, dim)
    if qk_norm:
        yield from norm(f"{name}.attn.q_norm", 64)
        yield from norm(f"{name}.attn.k_norm", 64)
    yield from linear(f"{name}.attn.proj", dim, dim)
    yield f"{name}.ls1.gamma", (dim,)
    yield from norm(f"{name}.norm2", dim)
    yield from linear(f"{name}.mlp.fc1", 4 * dim, dim)
    yield from linear(f"{name}.mlp.fc2", dim, 4 * dim)
    yield f"{name}.ls2.gamma", (dim,)


def aggregator() -> Iterator[tuple[str, Shape]]:
    yield "aggregator.camera_token", (1, 2, 1, 1024)
    yield "aggregator.register_token", (1, 2, 4, 1024)
    embed = "aggregator.patch_embed"
    yield f"{embed}.cls_token", (1, 1, 1024)
    yield f"{embed}.pos_embed", (1, 1370, 1024)
    yield f"{embed}.register_tokens", (1, 4, 1024)
    yield f"{embed}.mask_token", (1, 1024)
    yield from conv(f"{embed}.patch_embed.proj", 1024, 3, 14)
    for i in range(24):
        yield from block(f"{embed}.blocks.{i}", 1024)
    yield from norm(f"{embed}.norm", 1024)
    for kind in ("frame", "global"):
        for i in range(24):
            yield from block(f"aggregator.{kind}_blocks.{i}", 1024, qk_norm=True)


def camera_head() -> Iterator[tuple[str, Shape]]:
    for i in range(4):
        yield from block(f"camera_head.trunk.{i}", 2048)
    yield from norm("camera_head.token_norm", 2048)
    yield from norm("camera_head.trunk_norm", 2048)
    yield "camera_head.empty_pose_tokens", (1, 1, 9)
    yield from linear("camera_head.embed_pose", 2048, 9)
    yield from linear("camera_head.poseLN_modulation.1", 6144, 2048)
    yield from linear("camera_head.pose_branch.fc1", 1024, 2048)
    yield from linear("camera_head.pose_branch.fc2", 9, 1024)


def dpt_head(name: str, features: int, out: int | None) -> Iterator[tuple[str, Shape]]:
    widths = (256, 512, 1024, 1024)
    yield from norm(f"{name}.norm", 2048)
    for i, width in enumerate(widths):
        yield from conv(f"{name}.projects.{i}", width, 2048, 1)
    for i, side in ((0, 4), (1, 2), (3, 3)):
        yield from conv(f"{name}.resize_layers.{i}", widths[i], widths[i], side)
    for i, width in enumerate(widths, 1):
        yield from conv(f"{name}.scratch.layer{i}_rn", features, width, 3, bias=False)
    for i in range(1, 5):
        refine = f"{name}.scratch.refinenet{i}"
        yield from conv(f"{refine}.out_conv", features, features, 1)
        for unit in (1, 2) if i < 4 else (2,):
            for c in (1, 2):
                yield from conv(f"{refine}.resConfUnit{unit}.conv{c}", features, features, 3)
    half = features // 2 if out is not None else features
    yield from conv(f"{name}.scratch.output_conv1", half, features, 3)
    if out is not None:
        yield from conv(f"{name}.scratch.output_conv2.0", 32, half, 3)
        yield from conv(f"{name}.scratch.output_conv2.2", out, 32, 1)


def track_head() -> Iterator[tuple[str, Shape]]:
    yield from dpt_head("track_head.feature_extractor", 128, None)
    tracker = "track_head.tracker"
    former = f"{tracker}.updateformer"
    yield f"{tracker}.query_ref_token", (1, 2, 388)
    yield from linear(f"{tracker}.corr_mlp.fc1", 384, 567)
    yield from linear(f"{tracker}.corr_mlp.fc2", 128, 384)
    yield f"{former}.virual_tracks", (1, 64, 1, 384)
    yield from norm(f"{former}.input_norm", 388)
    yield from linear(f"{former}.input_transform", 384, 388)
    yield from norm(f"{former}.output_norm", 384)
    yield from linear(f"{former}.flow_head", 130, 384)
    kinds = {
        "time_blocks": False,
        "space_virtual_blocks": False,
        "space_point2virtual_blocks": True,
        "space_virtual2point_blocks": True,
    }
    for kind, cross in kinds.items():
        for i in range(6):
            name = f"{former}.{kind}.{i}"
            attention = f"{name}.{'cross_attn' if cross else 'attn'}"
            yield from norm(f"{name}.norm1", 384)
            if cross:
                yield from norm(f"{name}.norm_context", 384)
            yield from norm(f"{name}.norm2", 384)
            yield f"{attention}.in_proj_weight", (1152, 384)
            yield f"{attention}.in_proj_bias", (1152,)
            yield from linear(f"{attention}.out_proj", 384, 384)
            yield from linear(f"{name}.mlp.fc1", 1536, 384)
            yield from linear(f"{name}.mlp.fc2", 384, 1536)
    yield from norm(f"{tracker}.fmap_norm", 128)
    yield from norm(f"{tracker}.ffeat_norm", 128)
    yield from linear(f"{tracker}.ffeat_updater.0", 128, 128)
    yield from linear(f"{tracker}.vis_predictor.0", 1, 128)
    yield from linear(f"{tracker}.conf_predictor.0", 1, 128)


def vggt(tracker: bool) -> dict[str, Shape]:
    """Names and shapes of VGGT-1B's state dict."""
    tensors = dict(aggregator()) | dict(camera_head())
    tensors |= dict(dpt_head("point_head", 256, 4)) | dict(dpt_head("depth_head", 256, 2))
    return tensors | (dict(track_head()) if tracker else {})


# ---- one figure, one process ---------------------------------------------------------------------


def make(path: Path, tracker: bool) -> None:
    """A float checkpoint of random weights, written tensor by tensor."""
    import torch

    from vggtquant.weights.container import Blob, Planned, Writer, header_bound

    tensors = vggt(tracker)
    plan = [Planned(name, torch.float32, shape) for name, shape in tensors.items()]
    generator = torch.Generator().manual_seed(0)
    with Writer(path, header_bound(plan, {"format": "pt"})) as out:
        for name, shape in tensors.items():
            x = torch.empty(shape).normal_(0.0, 0.02, generator=generator)
            out.add(Blob.of(name, x + 1 if "norm" in name and name.endswith("weight") else x))
        out.finish({"format": "pt"})


def memory(key: str) -> float:
    """VmRSS or VmHWM in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e3


def child(job: str, arguments: list[str]) -> dict[str, float]:
    """One measurement in this process; torch is imported before it begins."""
    import time

    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.zeros(1) + 1
    before = memory("VmRSS")
    for path in arguments[:1]:  # into the page cache, without mapping it
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 22):
                pass
    wall, cpu = time.perf_counter(), time.process_time()
    import vggtquant as vq

    found: dict[str, float] = {}
    if job == "quantize":
        from vggtquant.checkpoint.streaming import quantize_file

        source, out, scheme, float_dtype = arguments
        done = quantize_file(source, scheme, out, float_dtype=float_dtype)
        found = {"nbytes": done.nbytes, "nbytes_before": done.nbytes_before}
    else:
        path, own = arguments
        model = vq.load(path) if own == "vggt" else vq.load(path, model=skeleton(path))
        found = {"held": vq.model_bytes(model)}
    found |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    found["peak"] = memory("VmHWM") - before
    if job == "load" and arguments[1] == "vggt":
        images = torch.rand(1, 1, 3, *FIRST)
        for which in ("first", "second"):
            start, cpu = time.perf_counter(), time.process_time()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                model(images)
            found[which] = time.perf_counter() - start
            found[f"{which}_cpu"] = time.process_time() - cpu
    return found


def skeleton(path: str) -> object:
    """A function that builds modules of a packed file's names, for who has no vggt package."""
    import torch
    from torch import nn

    from vggtquant.checkpoint.document import Checkpoint

    checkpoint = Checkpoint(path)

    def build() -> nn.Module:
        model = nn.Module()
        linears = {layer.name: layer.shape for layer in checkpoint.document.layers}
        for name in [*linears, *checkpoint.floats]:
            *parents, leaf = name.split(".")
            module = model
            for parent in parents:
                if parent not in module._modules:
                    module.add_module(parent, nn.Module())
                module = module.get_submodule(parent)
            if name in linears:
                n, k = linears[name]
                module.add_module(leaf, nn.Linear(k, n, bias=f"{name}.bias" in checkpoint.entries))
            elif leaf not in module._parameters:
                module.register_parameter(
                    leaf, nn.Parameter(torch.empty(checkpoint.entries[name].shape))
                )
        return model

    return build


# ---- all figures ---------------------------------------------------------------------------------

# file, scheme, float_dtype, with the tracker, bytes that it may have
FILES = (
    ("int4-bf16", "INT4_Group_128", "bfloat16", False, 0.72e9),
    ("int4-f32", "INT4_Group_128", "float32", False, 0.86e9),
    ("int4-bf16-tracker", "INT4_Group_128", "bfloat16", True, 0.81e9),
    ("int4-fast", "INT4_Fast", "bfloat16", False, 0.72e9),
)
FIRST = (350, 518)
"""Pixels of the picture of the first forward."""
BEYOND = 2.5
"""Seconds that loading and the first result may take beside a forward."""


def measure(job: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", job, *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def row(what: str, seen: str, wanted: str, good: bool) -> None:
    print(f"{what:58} {seen:>26}  {wanted:>12}  {'yes' if good else 'NO'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("bench-checkpoints"))
    parser.add_argument("--tracker", action="store_true", help="the file with the tracker too")
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[file[0] for file in FILES])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    own = "vggt" if importlib.util.find_spec("vggt") else "skeleton"
    print(f"{'':58} {'measured':>26}  {'target':>12}  met")
    for name, scheme, float_dtype, tracker, limit in FILES:
        if (tracker and not args.tracker) or name not in (args.only or name):
            continue
        source = args.folder / ("float-tracker.safetensors" if tracker else "float.safetensors")
        if not source.exists():
            make(source, tracker)
        packed = args.folder / f"{name}.safetensors"
        q = measure("quantize", source, packed, scheme, float_dtype)
        speed, alone = q["nbytes_before"] / 1e9 / q["wall"], q["nbytes_before"] / 5e8 / q["cpu"]
        row(f"{name}: MB", f"{q['nbytes'] / 1e6:.1f}", f"{limit / 1e6:.0f}", q["nbytes"] <= limit)
        row(f"{name}: peak RSS of quantize, MB", f"{q['peak']:.0f}", "1500", q["peak"] < 1500)
        shown = f"{speed:.2f} ({q['cpu']:.1f} CPU s: {alone:.2f})"
        row(f"{name}: GB of input a second (2 idle cores)", shown, "0.5", speed >= 0.5)
        loads = [measure("load", packed, own) for _ in range(args.loads)]
        best = min(loads, key=lambda load: load["wall"])
        shown = f"{best['wall']:.2f} ({best['cpu']:.2f} CPU s)"
        row(f"{name}: load into {own}, s (best of {args.loads})", shown, "3", best["wall"] <= 3)
        most = (q["nbytes"] + widened(packed)) * 1.05
        row(
            f"{name}: MB held after load",
            f"{best['held'] / 1e6:.1f}",
            f"{most / 1e6:.1f}",
            best["held"] <= most,
        )
        if "first" in best:
            beyond, cpu = (
                min(load[wall] + load[f"first{of}"] - load[f"second{of}"] for load in loads)
                for wall, of in (("wall", ""), ("cpu", "_cpu"))
            )
            row(
                f"{name}: load to first result, s, beside a forward",
                f"{beyond:.2f} ({cpu:.2f} CPU s)",
                str(BEYOND),
                beyond <= BEYOND,
            )


def widened(path: Path) -> int:
    """Bytes that a file's bfloat16 tensors take more as float32."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    spans = [entry["data_offsets"] for entry in entries if entry["dtype"] == "BF16"]
    return sum(end - start for start, end in spans)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], sys.argv[3:])))
    else:
        main()
