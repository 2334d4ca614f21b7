# SPDX-License-Identifier: Apache-2.0
"""Speed on a GPU beside what torch offers there, and beside our CPU kernels.

    python tests/bench/cuda.py [--quick] [--out bench.md]

Times are CUDA events around one call, the median of many after a warm-up, in an L2 that holds
nothing of the operands; candidates take turns. Calls that bring a number home (metrics, the whole
vq.quantize) include the host's part. It needs an NVIDIA GPU; without one it says so in a
line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import vggtquant as vq
from vggtquant import ops

Call = Callable[[], object]

# Elements of VGGT's largest weight and of a frame's activations; a batch of depth maps.
WEIGHTS = [(4096, 1024), (8192, 2048)]
MAPS = [(1, 3, 518, 518), (16, 1, 518, 518)]


def flush() -> torch.Tensor:
    """More than any L2 holds; written between calls."""
    return torch.empty(256 << 20, dtype=torch.uint8, device="cuda")


def microseconds(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median time of each call; the candidates take turns."""
    other, times = flush(), {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            other.zero_()
            torch.cuda._sleep(500_000)  # meanwhile the host gets ahead: only the GPU's time counts
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn >= 3:
                times[name].append(start.elapsed_time(end) * 1000)
    return {name: statistics.median(seen) for name, seen in times.items()}


def cpu_microseconds(call: Call, rounds: int) -> float:
    seen = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        seen.append((time.perf_counter() - start) * 1e6)
    return statistics.median(seen[1:])


def eager_int8(x: torch.Tensor) -> Call:
    """Per-channel INT8 as torch's own operators do it."""

    def call() -> object:
        scale = x.abs().amax(1, keepdim=True).float() / 127
        return torch.clamp(torch.round(x / scale), -128, 127).to(torch.int8)

    return call


def quantize_rows(rounds: int) -> list[str]:
    lines = []
    for shape in WEIGHTS:
        host = torch.randn(shape)
        x = host.cuda()
        at = ops.Shape(*shape, shape[1])
        lo, hi, _ = ops.ranges(at, x)
        scale, _ = ops.parameters(8, lo, hi, False)
        q = ops.quantize(8, at, x, scale, None)
        cpu = ops.values(host)
        scale_cpu = scale.cpu().numpy()
        seen = microseconds(
            {
                "quantize": lambda x=x, at=at, s=scale: ops.quantize(8, at, x, s, None),
                "dequantize": lambda q=q, at=at, s=scale: ops.dequantize(8, at, q, s, None),
                "torch, eager": eager_int8(x),
                "copy": lambda x=x: x.clone(),
                "whole vq.quantize": lambda x=x: vq.quantize(x, "INT8_Per_Channel_Symmetric"),
                "two-level INT4": lambda x=x: vq.quantize(x, "INT4_Group_128"),
            },
            rounds,
        )
        own = cpu_microseconds(lambda x=cpu, at=at, s=scale_cpu: ops.quantize(8, at, x, s, None), 5)
        lines += [
            f"| {shape} {name} | {us:.1f} | {us / seen['copy']:.2f} |" for name, us in seen.items()
        ]
        lines.append(f"| {shape} quantize on the CPU | {own:.1f} | {own / seen['copy']:.2f} |")
    return lines


def metric_rows(rounds: int) -> list[str]:
    lines = []
    for shape in MAPS:
        r = torch.randn(shape, device="cuda")
        c = r + 0.01 * torch.randn_like(r)
        seen = microseconds(
            {
                "moments": lambda r=r, c=c: ops.moments(r, c),
                "ssim": lambda r=r, c=c: ops.ssim(r, c, (2, 3), 2.0, 0.0),
                "cross entropy": lambda r=r, c=c: ops.cross_entropy(r, c),
                "torch mse": lambda r=r, c=c: torch.nn.functional.mse_loss(r, c).item(),
                "copy": lambda r=r: r.clone(),
            },
            rounds,
        )
        lines += [
            f"| {shape} {name} | {us:.1f} | {us / seen['copy']:.2f} |" for name, us in seen.items()
        ]
    return lines


# (inputs, outputs) of VGGT's aggregator, and tokens of one to eight frames.
LINEARS = [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]
TOKENS = [1374, 2748, 5496, 11000]
SCHEMES = ["INT8_Per_Channel_Symmetric_A8", "INT4_Group_32_A8", "INT8_Per_Channel_Symmetric"]


def linear_rows(rounds: int) -> list[str]:
    """Times, and ratios to cuBLAS in BF16: above 1 is faster. Coding the tokens is included."""
    lines = []
    for k, n in LINEARS:
        plain = torch.nn.Linear(k, n).requires_grad_(False)
        layers = {name: vq.QuantizedLinear.from_linear(plain, name).cuda() for name in SCHEMES}
        on_cpu = vq.QuantizedLinear.from_linear(plain, SCHEMES[0])
        half = plain.to("cuda", torch.bfloat16)
        codes = torch.randint(-127, 128, (n, k), dtype=torch.int8, device="cuda")
        for m in TOKENS:
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            x_codes = torch.randint(-127, 128, (m, k), dtype=torch.int8, device="cuda")
            calls: dict[str, Call] = {"cuBLAS BF16": lambda half=half, x=x: half(x)}
            calls |= {name: lambda at=layer, x=x: at(x) for name, layer in layers.items()}
            if m % 8 == 0:  # torch refuses other sizes
                calls["torch._int_mm, int32 out"] = lambda a=x_codes, b=codes: torch._int_mm(
                    a, b.t()
                )
            with torch.no_grad():
                seen = microseconds(calls, rounds)
                host = x.cpu()
                seen["W8A8 on the CPU"] = cpu_microseconds(lambda h=host, at=on_cpu: at(h), 1)
            lines += [
                f"| {k} x {n}, {m} tokens, {name} | {us:.1f} | {seen['cuBLAS BF16'] / us:.2f} |"
                for name, us in seen.items()
            ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--out", type=Path, help="also write the tables here")
    args = parser.parse_args()
    if missing := ops.cuda_missing():
        sys.exit(f"no bench: {missing}")
    rounds = 5 if args.quick else 50
    head = ["| call | us | of a copy of the same bytes |", "|---|---|---|"]
    name = torch.cuda.get_device_name()
    lines = [f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}", ""]
    lines += [*head, *quantize_rows(rounds), *metric_rows(rounds)]
    lines += ["", "| Linear | us | times as fast as cuBLAS BF16 |", "|---|---|---|"]
    lines += linear_rows(rounds)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
