# SPDX-License-Identifier: Apache-2.0
"""A whole model's forward and memory: FP32, BF16 autocast, torch's dynamic INT8, and ours.

    OMP_PROC_BIND=close OMP_PLACES={0},{1} python tests/bench/model.py \\
        --model vggt.models.vggt:VGGT --frames 1 --size 350x518

The model may have random weights: speed and memory do not depend on them. Each variant runs in a
fresh process, and the variants take turns for --rounds rounds; the fastest forward counts, since
what else runs on the machine can only add. "Linear" is the time in Linear layers, measured in a
forward of its own, the limit is the ratio that Linear layers of no cost would give (Amdahl), and
the share is how much of that is reached. RSS is held against a process that has imported torch and
nothing else: "at rest" after the swap, "peak" in the forwards after it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

VARIANTS = {  # name: (how the model is changed, whether under bfloat16 autocast)
    "FP32": ("none", False),
    "BF16 autocast": ("none", True),
    "torch dynamic INT8": ("torch", False),
    "W8A8": ("INT8_Per_Channel_Symmetric_A8", False),
    "W4A8": ("INT4_Group_128_A8", False),
    "W8A8, BF16 autocast": ("INT8_Per_Channel_Symmetric_A8", True),
    "W4A8, BF16 autocast": ("INT4_Group_128_A8", True),
    "W4, float activations": ("INT4_Group_128", False),
}


def rss(field: str = "VmRSS") -> float:
    """GB of this process."""
    with open("/proc/self/status") as lines:
        line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) / 1e6


def changed(model: nn.Module, how: str) -> nn.Module:
    if how == "none":
        return model
    if how == "torch":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    import vggtquant as vq

    return vq.quantize_model(model, how)[0]


def time_linears(model: nn.Module) -> list[float]:
    """A list that the time of each Linear's call, ours and torch's, is appended to."""
    seconds: list[float] = []
    started: list[float] = []
    for module in model.modules():
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            module.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
            module.register_forward_hook(
                lambda *_: seconds.append(time.perf_counter() - started.pop())
            )
    return seconds


def child(args: argparse.Namespace) -> None:
    """One variant; prints its figures as JSON."""
    empty = rss()
    from vggtquant import models

    how, autocast = VARIANTS[args.variant]
    model = changed(models.load_model(args.model).model, how)
    height, width = map(int, args.size.split("x"))
    images = torch.rand(args.frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    rest = rss() - empty
    with open("/proc/self/clear_refs", "w") as refs:  # 5: forget the peak so far
        refs.write("5")
    seconds = []
    cast = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with torch.inference_mode():
        for _ in range(args.runs + 1):
            start = time.perf_counter()
            with cast:
                model(images)
            seconds.append(time.perf_counter() - start)
        peak = rss("VmHWM") - empty
        linear = time_linears(model)
        with cast:
            model(images)
    print(json.dumps({"s": seconds[1:], "linear": sum(linear), "rest": rest, "peak": peak}))


def every_core() -> None:
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {}
    names = args.only or list(VARIANTS)
    for turn in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, "--variant", name]
            for flag in ("model", "frames", "size", "runs"):
                command += [f"--{flag}", str(getattr(args, flag))]
            # OpenMP pins the thread that loads it; a child would inherit that one core.
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, preexec_fn=every_core
            )
            if done.returncode:
                say(f"{name}: {done.stderr.strip().splitlines()[-1]}")
                continue
            found.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
            say(f"round {turn + 1}, {name}: {found[name][-1]}")
    return {
        name: {
            "s": min(s for one in runs for s in one["s"]),
            "linear": min(one["linear"] for one in runs),
            "rest": max(one["rest"] for one in runs),
            "peak": max(one["peak"] for one in runs),
        }
        for name, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:tiny", help="as vggtquant evaluate takes it")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--size", default="112x112", metavar="HxW")
    parser.add_argument("--runs", type=int, default=2, help="timed forwards a process")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", action="append", choices=VARIANTS, help="may be repeated")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        child(args)
        return
    found = measure(args, lambda line: print(line, file=sys.stderr))
    import vggtquant as vq

    with open("/proc/cpuinfo") as info:
        cpu = next((line.split(":")[1].strip() for line in info if "model name" in line), "?")
    print(
        f"{args.model}, {args.frames} frames of {args.size}; {cpu}, {platform.machine()}, "
        f"kernels {vq.isa()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    head = "| seconds | Linear | against FP32 | limit | share | RSS at rest, GB | RSS at peak, GB |"
    print(f"| {head}\n{'|---' * head.count('|')}|")
    for name, row in found.items():
        against = " | | "
        if "FP32" in found:
            fp32 = found["FP32"]["s"]
            limit, ratio = fp32 / max(row["s"] - row["linear"], 1e-9), fp32 / row["s"]
            against = f"{ratio:.2f}x | {limit:.2f}x | {ratio / limit:.0%}"
        print(
            f"| {name} | {row['s']:.3g} | {row['linear']:.3g} | {against} | "
            f"{row['rest']:.2f} | {row['peak']:.2f} |"
        )


if __name__ == "__main__":
    main()
