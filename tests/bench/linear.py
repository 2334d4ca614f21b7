# SPDX-License-Identifier: Apache-2.0
"""Speed of one Linear at VGGT's shapes, ours beside every peer that installs, in one run.

    OMP_PROC_BIND=close OMP_PLACES={0},{1} python tests/bench/linear.py [--quick] [--out bench.md]

Candidates take turns within a round, so that a machine that slows down slows all of them. A figure
is GMAC/s of the whole call, activation coding included, at the median round; ratios are of medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import vggtquant as vq
from vggtquant import ops

Call = Callable[[], object]

# (inputs, outputs) of VGGT's Linear layers: aggregator, then camera head
AGGREGATOR = [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]
CAMERA = [(2048, 6144), (2048, 8192), (8192, 2048)]
ROWS = [930, 1374, 2748]
FEW_ROWS = [1, 4, 10]


def ours(scheme: str) -> Callable[[nn.Linear, torch.Tensor], Call]:
    def make(linear: nn.Linear, x: torch.Tensor) -> Call:
        layer = vq.QuantizedLinear.from_linear(linear, scheme)
        return lambda: layer(x)

    return make


def torch_fp32(linear: nn.Linear, x: torch.Tensor) -> Call:
    return lambda: linear(x)


def torch_bf16(linear: nn.Linear, x: torch.Tensor) -> Call:
    import copy

    half, narrow = copy.deepcopy(linear).bfloat16(), x.bfloat16()
    return lambda: half(narrow)


def torch_int8(linear: nn.Linear, x: torch.Tensor) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear})
    return lambda: model(x)


def onnx_session(linear: nn.Linear, rewrite: Callable[[Path], Path]) -> Callable[[dict], object]:
    import tempfile

    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(linear.weight.detach().numpy().T.copy(), "w")
    bias = numpy_helper.from_array(linear.bias.detach().numpy(), "b")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", linear.in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", linear.out_features])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "linear.onnx"
        onnx.save(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            rewrite(path), options, providers=["CPUExecutionProvider"]
        )
    return lambda feed: session.run(None, feed)


def ort_fp32(linear: nn.Linear, x: torch.Tensor) -> Call:
    run, feed = onnx_session(linear, lambda path: path), {"x": x.numpy()}
    return lambda: run(feed)


def ort_int8(linear: nn.Linear, x: torch.Tensor) -> Call:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def rewrite(path: Path) -> Path:
        out = path.with_name("int8.onnx")
        quantize_dynamic(path, out, weight_type=QuantType.QInt8)
        return out

    run, feed = onnx_session(linear, rewrite), {"x": x.numpy()}
    return lambda: run(feed)


def ort_int4(block: int) -> Callable[[nn.Linear, torch.Tensor], Call]:
    def make(linear: nn.Linear, x: torch.Tensor) -> Call:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        def rewrite(path: Path) -> Path:
            quantizer = MatMulNBitsQuantizer(
                onnx.load(path), block_size=block, is_symmetric=True, accuracy_level=4
            )
            quantizer.process()
            out = path.with_name("int4.onnx")
            quantizer.model.save_model_to_file(str(out))
            return out

        run, feed = onnx_session(linear, rewrite), {"x": x.numpy()}
        return lambda: run(feed)

    return make


def torchao_int8(linear: nn.Linear, x: torch.Tensor) -> Call:
    import copy

    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = nn.Sequential(copy.deepcopy(linear))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return lambda: model(x)


def quanto(bits: int) -> Callable[[nn.Linear, torch.Tensor], Call]:
    def make(linear: nn.Linear, x: torch.Tensor) -> Call:
        import copy

        from optimum.quanto import freeze, qint4, qint8, quantize

        model = nn.Sequential(copy.deepcopy(linear))
        quantize(model, weights=qint8 if bits == 8 else qint4)
        freeze(model)
        return lambda: model(x)

    return make


CANDIDATES: dict[str, Callable[[nn.Linear, torch.Tensor], Call]] = {
    "torch FP32": torch_fp32,
    "torch BF16": torch_bf16,
    "torch dynamic INT8": torch_int8,
    "ORT FP32": ort_fp32,
    "ORT dynamic INT8": ort_int8,
    "ORT INT4 g128": ort_int4(128),
    "ORT INT4 g32": ort_int4(32),
    "torchao W8A8": torchao_int8,
    "quanto W8": quanto(8),
    "quanto W4": quanto(4),
    "ours W8A8": ours("INT8_Per_Channel_Symmetric_A8"),
    "ours W4A8 g128": ours("INT4_Group_128_A8"),
    "ours W4A8 g32": ours("INT4_Group_32_A8"),
    "ours W8": ours("INT8_Per_Channel_Symmetric"),
    "ours W4 g128": ours("INT4_Group_128"),
}


def measure(
    shape: tuple[int, int, int], names: list[str], rounds: int, missing: dict[str, str]
) -> dict[str, float]:
    """Median GMAC/s of each candidate at (m, k, n)."""
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(k, n)
    nn.init.normal_(linear.weight, std=k**-0.5, generator=generator)
    x = torch.randn(m, k, generator=generator)
    calls: dict[str, Call] = {}
    for name in names:
        if name in missing:
            continue
        try:
            calls[name] = CANDIDATES[name](linear, x)
            calls[name]()
        except Exception as error:  # a peer that is not there or fails is a note, not the end
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            calls.pop(name, None)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.05)  # until the last one's threads have stopped spinning
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: m * k * n / statistics.median(t) / 1e9 for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape of each kind, few rounds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", action="append", help="a candidate; may be repeated")
    parser.add_argument("--out", type=Path, help="also write the table there")
    args = parser.parse_args()

    many = [(m, k, n) for m in ROWS for k, n in AGGREGATOR]
    few = [(m, k, n) for m in FEW_ROWS for k, n in CAMERA]
    shapes = [many[0], few[0]] if args.quick else many + few
    names = args.only or list(CANDIDATES)
    missing: dict[str, str] = {}
    rows: dict[tuple[int, int, int], dict[str, float]] = {}
    with torch.inference_mode():
        for shape in shapes:
            rows[shape] = measure(shape, names, 3 if args.quick else args.rounds, missing)
            print(shape, {k: round(v, 1) for k, v in rows[shape].items()}, file=sys.stderr)

    names = [name for name in names if name not in missing]
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "?"
    )
    lines = [
        f"{cpu}, {platform.machine()}, kernels {vq.isa()}, {torch.get_num_threads()} threads, "
        f"OpenMP {ops.openmp()}, torch {torch.__version__}. GMAC/s, median of rounds.",
        "",
        "| M,K,N | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for (m, k, n), row in rows.items():
        cells = " | ".join(f"{row[name]:.3g}" for name in names)
        lines.append(f"| {m},{k},{n} | {cells} |")
    large = [row for (m, _, _), row in rows.items() if m >= 930]
    for mine in [name for name in names if name.startswith("ours")]:
        ratios = [
            f"{statistics.median(row[mine] / row[peer] for row in large):.2f}x {peer}"
            for peer in names
            if not peer.startswith("ours") and large
        ]
        lines += ["", f"{mine}, M >= 930, median ratio: " + ", ".join(ratios)]
    lines += [f"\nNot measured: {name} ({why})" for name, why in missing.items()]
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
