# SPDX-License-Identifier: Apache-2.0
"""Attention alone, 16 heads of 64: ours against torch's and, where it is installed, OpenVINO's.

    OMP_PROC_BIND=close OMP_PLACES={0},{1} python tests/bench/attention.py [--isa avx512bf16]
        [--tokens 930,3720] [--rounds 7] [--only ours] [--out attention.md] [--realtime]

Prints Markdown tables of GMAC/s (two products of tokens x tokens x 64 a head), the median of the
rounds and, in brackets, the best; all candidates take turns. The first table is by wall time, the
second by processor time divided by the threads, which other work on the machine changes less; set
OMP_WAIT_POLICY=PASSIVE for it, or threads that wait count too. --isa lowers every side to the same
instruction set. OpenVINO's calls may run on every core, whatever OMP_PLACES pins the thread to.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import machine
import torch
from torch.nn import functional as F

from vggtquant import ops

HEADS, DIM = 16, 64
Call = Callable[[], object]


def torch_call(dtype: torch.dtype) -> Callable[[torch.Tensor], Call]:
    def make(qkv: torch.Tensor) -> Call:
        q, k, v = (x.transpose(1, 2).to(dtype) for x in qkv.unbind(2))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    return make


def ours(mode: str, pv: str) -> Callable[[torch.Tensor], Call]:
    return lambda qkv: lambda: ops.attention(qkv, mode=mode, pv=pv)


def openvino(precision: str) -> Callable[[torch.Tensor], Call]:
    """A model of one attention, on as many threads as torch has; INT8 by NNCF."""

    def make(qkv: torch.Tensor) -> Call:
        import nncf
        import openvino as ov
        from openvino import opset13

        shape = [1, HEADS, qkv.shape[1], DIM]
        inputs = [opset13.parameter(shape, ov.Type.f32, name=name) for name in "qkv"]
        attention = opset13.scaled_dot_product_attention(*inputs)
        model = ov.Model([attention], inputs, "attention")
        arrays = [x.transpose(1, 2).contiguous().numpy() for x in qkv.unbind(2)]
        if precision == "int8":
            feed = {i.get_friendly_name(): x for i, x in zip(inputs, arrays, strict=True)}
            model = nncf.quantize(
                model,
                nncf.Dataset([feed]),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=1,
            )
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
        }
        with machine.every_core():
            compiled = ov.Core().compile_model(model, "CPU", options)

        def call() -> object:
            with machine.every_core():
                return compiled(arrays, share_inputs=True, share_outputs=True)

        return call

    return make


CANDIDATES: dict[str, Callable[[torch.Tensor], Call]] = {
    "ours int8": ours("int8", "int8"),
    "ours int8, P V bf16": ours("int8", "bf16"),
    "ours bf16": ours("bf16", "bf16"),
    "ours float": ours("float", "float"),
    "torch float32": torch_call(torch.float32),
    "torch bfloat16": torch_call(torch.bfloat16),
    "OpenVINO float32": openvino("f32"),
    "OpenVINO bfloat16": openvino("bf16"),
    "OpenVINO INT8": openvino("int8"),
}


class Seconds(NamedTuple):
    """Of one call: wall time, and processor time a thread."""

    wall: float
    processor: float


def measure(tokens: int, rounds: int, only: str, realtime: bool) -> dict[str, list[Seconds]]:
    """Seconds of each candidate that can be made here, one a round."""
    qkv = torch.randn(1, tokens, 3, HEADS, DIM, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Call] = {}
    for name, make in CANDIDATES.items():
        if not any(name.startswith(part) for part in only.split(",")):
            continue
        try:
            calls[name] = make(qkv)
            calls[name]()
        except Exception as error:  # a peer that is not installed, or cannot
            calls.pop(name, None)
            print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
    seconds: dict[str, list[Seconds]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            with machine.realtime(realtime):
                start, worked = time.perf_counter(), time.process_time()
                call()
                spent = (time.process_time() - worked) / torch.get_num_threads()
                seconds[name].append(Seconds(time.perf_counter() - start, spent))
    return seconds


def shown(tokens: int, seconds: list[float]) -> str:
    if not seconds:
        return ""
    work = 2 * tokens * tokens * HEADS * DIM / 1e9
    return f"{work / statistics.median(seconds):.0f} ({work / min(seconds):.0f})"


def version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", default="930,1374,3720,9300")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="beginnings of names, with commas between")
    parser.add_argument("--isa", choices=machine.ISAS, help="no side goes higher than this")
    parser.add_argument("--realtime", action="store_true", help="real-time priority (Linux, root)")
    parser.add_argument("--out", type=Path, help="the table is written there too")
    args = parser.parse_args()
    machine.lower(args.isa)
    sizes = [int(tokens) for tokens in args.tokens.split(",")]
    rows = {n: measure(n, args.rounds, args.only, args.realtime) for n in sizes}
    names = [name for name in CANDIDATES if any(name in row for row in rows.values())]
    lines = [
        f"Kernels {ops.isa()}, {ops.threads()} threads, {args.rounds} rounds; "
        + ", ".join(map(version, ("torch", "openvino", "nncf")))
        + "; GMAC/s, median (best)",
    ]
    for clock in Seconds._fields:
        lines += ["", f"| tokens, {clock} time | " + " | ".join(names) + " |"]
        lines.append("|" + "---|" * (len(names) + 1))
        for n, row in rows.items():
            cells = [shown(n, [getattr(s, clock) for s in row.get(name, [])]) for name in names]
            lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
