# SPDX-License-Identifier: Apache-2.0
"""VGGT's two dense heads, with INT8 convolutions in one module, against torch's.

    OMP_PROC_BIND=close OMP_PLACES={0},{1} python tests/bench/heads.py [--size 350x518]
        [--pictures 1] [--isa avx512bf16] [--realtime]

Random weights and tokens; all candidates take turns, and the fastest round counts. The second
column is processor time divided by the threads. The original's package `vggt` has to be importable.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import machine
import torch
from torch import Tensor, nn

import vggtquant as vq
from vggtquant.dense import QuantizedDPTHead, swap_convolutions

CHANNELS, PATCH, SPECIAL = 2048, 14, 5
Call = Callable[[], object]


def heads() -> nn.ModuleDict:
    """Of depth and of points, as VGGT makes them."""
    from vggt.heads.dpt_head import DPTHead

    depth = DPTHead(CHANNELS, output_dim=2, activation="exp", conf_activation="expp1")
    points = DPTHead(CHANNELS, output_dim=4, activation="inv_log", conf_activation="expp1")
    return nn.ModuleDict({"depth": depth, "points": points}).eval().requires_grad_(False)


def call_of(model: nn.ModuleDict, tokens: list[Tensor], images: Tensor, bf16: bool) -> Call:
    def call() -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return [head(tokens, images, SPECIAL) for head in model.values()]

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="350x518", metavar="HxW")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", choices=machine.ISAS, help="no side goes higher than this")
    parser.add_argument("--realtime", action="store_true", help="real-time priority (Linux, root)")
    args = parser.parse_args()
    machine.lower(args.isa)

    height, width = map(int, args.size.split("x"))
    torch.manual_seed(0)
    original = heads()
    ours = copy.deepcopy(original)
    swap_convolutions(ours, lambda name: "")
    assert all(isinstance(head, QuantizedDPTHead) for head in ours.values())
    patches = (height // PATCH) * (width // PATCH)
    tokens = [torch.randn(1, args.pictures, SPECIAL + patches, CHANNELS)] * 24
    images = torch.rand(1, args.pictures, 3, height, width)
    calls = {
        "ours, INT8": call_of(ours, tokens, images, False),
        "ours, INT8, BF16 autocast": call_of(ours, tokens, images, True),
        "torch FP32": call_of(original, tokens, images, False),
        "torch BF16 autocast": call_of(original, tokens, images, True),
    }
    if vq.isa() == "avx2":  # torch multiplies bfloat16 there one by one, for minutes
        calls = {name: call for name, call in calls.items() if "BF16" not in name}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(args.rounds + 1):
        for name, call in calls.items():
            with machine.realtime(args.realtime):
                start, worked = time.perf_counter(), time.process_time()
                call()
                spent = (time.process_time() - worked) / torch.get_num_threads()
                took = time.perf_counter() - start
            if number:  # the first warms up
                seconds[name].append(took)
                processor[name].append(spent)
    print(
        f"Two dense heads, {args.pictures} pictures of {args.size}; kernels {vq.isa()}, "
        f"{torch.get_num_threads()} threads, {args.rounds} rounds; torch {torch.__version__}\n"
    )
    print("| variant | ms | processors, ms | ours is faster by |\n|---|---|---|---|")
    least = min(processor["ours, INT8"])
    for name in calls:
        ratio = min(processor[name]) / least
        took, spent = 1e3 * min(seconds[name]), 1e3 * min(processor[name])
        print(f"| {name} | {took:.0f} | {spent:.0f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
