# SPDX-License-Identifier: Apache-2.0
"""Attention alone, 16 heads of 64: ours against torch's and, where it is installed, OpenVINO's.

    python tests/bench/attention.py [--tokens 930,3720] [--repeats 5] [--threads 2]

Prints a Markdown table of GMAC/s (two products of tokens x tokens x 64 a head), the median of the
runs, all candidates in turns. To lower every side to the same instructions: VGGTQUANT_ISA,
ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY. Leave OMP_PLACES unset: OpenVINO's threads would share a
core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

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
        compiled = ov.Core().compile_model(model, "CPU", options)
        return lambda: compiled(arrays, share_inputs=True, share_outputs=True)

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


def measure(tokens: int, repeats: int) -> dict[str, float]:
    """GMAC/s of each candidate that can be made here."""
    qkv = torch.randn(1, tokens, 3, HEADS, DIM, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Call] = {}
    for name, make in CANDIDATES.items():
        try:
            calls[name] = make(qkv)
            calls[name]()
        except Exception as error:  # a peer that is not installed, or cannot
            calls.pop(name, None)
            print(f"{name} is left out: {str(error).splitlines()[0]}")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    work = 2 * tokens * tokens * HEADS * DIM / 1e9
    return {name: work / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", default="930,1374,3720,9300")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"instruction set {ops.isa()}, {ops.threads()} threads, GMAC/s, median")
    rows = {n: measure(n, options.repeats) for n in map(int, options.tokens.split(","))}
    names = [name for name in CANDIDATES if any(name in row for row in rows.values())]
    print("| tokens | " + " | ".join(names) + " |")
    print("|" + "---|" * (len(names) + 1))
    for tokens, row in rows.items():
        print(f"| {tokens} | " + " | ".join(f"{row.get(name, 0):.0f}" for name in names) + " |")


if __name__ == "__main__":
    main()
