# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a whole model for a number of pictures: what vq.fit forecasts, and what is taken.

    python tests/bench/memory.py --model vggt.models.vggt:VGGT --size 350x518 \\
        [--variant "INT4_Fast, BF16"] [--pictures 1,2,5,10,20,40] [--every_block]

Each number runs in a fresh process, on a quantized model out of --cache (see model.py). All blocks
but the first and the last two of each kind pass x on, because the sizes are the same and 40
pictures take minutes otherwise; --every_block computes all. GB are those of the whole process; the
last column leaves out what a process with torch has before the model is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import openvino_model
import torch
from model import VARIANTS, cache_folder, kept, rss
from torch import nn

from vggtquant import memory


class Pass(nn.Module):
    """In the place of a block: it holds the block's memory and gives x back."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = (block,)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return x


def shortened(model: Any) -> None:
    lists = [model.aggregator.frame_blocks, model.aggregator.global_blocks]
    for blocks in [*lists, model.aggregator.patch_embed.blocks]:
        for i in range(1, len(blocks) - 2):
            blocks[i] = Pass(blocks[i])


def measured(args: argparse.Namespace) -> dict[str, float]:
    """GB in this process."""
    empty = rss()
    variant = VARIANTS[args.variant]
    model = kept(args, variant)
    if not args.every_block:
        shortened(model)
    size = tuple(map(int, args.size.split("x")))
    images = openvino_model.random_images(args.frames, args.size)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
        # Beside what is there once the model is loaded, pictures included.
        forecast = rss() + memory.forecast(model, args.frames, size) / 1e9
        with open("/proc/self/clear_refs", "w") as refs:  # 5: forget the peak so far
            refs.write("5")
        out = model(images)
    assert all(bool(x.isfinite().all()) for x in out.values() if isinstance(x, torch.Tensor))
    peak = rss("VmHWM")
    return {"forecast": forecast, "measured": peak, "over": peak - empty}


def main() -> None:
    ours = [name for name, variant in VARIANTS.items() if variant.engine == "ours"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:tiny", help="as vggtquant evaluate takes it")
    parser.add_argument("--size", default="350x518", metavar="HxW")
    parser.add_argument("--variant", choices=ours, default="INT4_Fast, BF16")
    parser.add_argument("--pictures", default="1,2,5,10,20,40")
    parser.add_argument("--every_block", action="store_true", help="compute all blocks")
    parser.add_argument("--isa", choices=machine.ISAS, help="no higher than this")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="of quantized models")
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    machine.lower(args.isa)
    if args.frames:
        print(json.dumps(measured(args)))
        return
    print(f"{args.model}, {args.variant}, pictures of {args.size}; torch {torch.__version__}\n")
    print(
        "| pictures | forecast, GB | measured, GB | forecast / measured | over an empty process |"
    )
    print("|---|---|---|---|---|")
    for n in map(int, args.pictures.split(",")):
        command = [sys.executable, *sys.argv, "--frames", str(n)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["forecast"] / found["measured"]
        print(
            f"| {n} | {found['forecast']:.2f} | {found['measured']:.2f} | {ratio:.2f} | "
            f"{found['over']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
