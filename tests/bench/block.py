# SPDX-License-Identifier: Apache-2.0
"""One block of VGGT, quantized and fused, against its Linear layers and its attention alone.

    OMP_PROC_BIND=close OMP_PLACES={0},{1} python tests/bench/block.py [--isa avx512bf16]

What the passes between the products cost: both take turns, and the medians of their rounds and the
ratios of the fastest are printed. The original's package `vggt` has to be importable.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import machine
import torch
from torch import nn
from vggt.layers.block import Block
from vggt.layers.rope import RotaryPositionEmbedding2D

import vggtquant as vq
from vggtquant.blocks import QuantizedAttention, QuantizedBlock

WIDTH, HEADS, COLUMNS = 1024, 16, 37


def made(config: str) -> QuantizedBlock:
    """A block of the aggregator with random weights."""
    rope = RotaryPositionEmbedding2D(100.0)
    block = Block(WIDTH, HEADS, qk_norm=True, init_values=0.01, rope=rope)
    model = nn.ModuleDict({"block": block}).eval()
    vq.quantize_model(model, replace(vq.CONFIGS[config], skip_first_last=False))
    swapped = model["block"]
    assert isinstance(swapped, QuantizedBlock)
    return swapped


def timed(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(block: QuantizedBlock, tokens: int, dtype: torch.dtype, rounds: int) -> str:
    x = torch.randn(1, tokens, WIDTH).to(dtype)
    at = torch.arange(tokens)
    pos = torch.stack([at // COLUMNS, at % COLUMNS], -1)[None]
    attn, mlp = block.attn, block.mlp
    assert isinstance(attn, QuantizedAttention)
    rotation = attn.rotation(x, pos, None)
    assert rotation is not None
    qkv, inner = attn.qkv(x), mlp.fc1(x)
    parts: dict[str, Callable[[], object]] = {
        "block": lambda: block(x, pos=pos),
        "qkv": lambda: attn.qkv(x),
        "attention": lambda: attn.attend(qkv, rotation),
        "proj": lambda: attn.proj(x),
        "fc1": lambda: mlp.fc1(x),
        "fc2": lambda: mlp.fc2(inner),
    }
    timed(parts, 1)
    seconds = timed(parts, rounds)
    whole = seconds.pop("block")
    medians = " | ".join(f"{1e3 * statistics.median(s):.2f}" for s in seconds.values())
    middle = statistics.median(whole) / sum(map(statistics.median, seconds.values()))
    best = min(whole) / sum(map(min, seconds.values()))
    name = str(dtype).removeprefix("torch.")
    shown = f"{1e3 * statistics.median(whole):.2f} | {medians} | {middle:.3f} ({best:.3f})"
    return f"| {name} | {tokens:,} | {shown} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", default="INT8_Fast")
    parser.add_argument("--tokens", default="930")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--isa", choices=machine.ISAS, help="no side goes higher than this")
    args = parser.parse_args()
    machine.lower(args.isa)
    print(f"{args.config}, kernels {vq.isa()}, {torch.get_num_threads()} threads; milliseconds")
    print("| stream | tokens | block | qkv | attention | proj | fc1 | fc2 | block / parts (best) |")
    print("|---|---|---|---|---|---|---|---|---|")
    block = made(args.config)
    with torch.inference_mode():
        for tokens in map(int, args.tokens.split(",")):
            for dtype in (torch.float32, torch.bfloat16):
                print(measure(block, tokens, dtype, args.rounds))


if __name__ == "__main__":
    main()
