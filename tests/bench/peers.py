# SPDX-License-Identifier: Apache-2.0
"""What linear.py measures: the ways to compute one nn.Linear, ours and every peer's.

A maker takes the layer and an input and gives a call without arguments. One that raises is not
installed, or cannot.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import every_core
from torch import nn

import vggtquant as vq

Call = Callable[[], object]
Maker = Callable[[nn.Linear, torch.Tensor], Call]


class Candidate(NamedTuple):
    """A way to compute a Linear."""

    make: Maker
    bits: int  # of a weight
    peak: str = ""  # the row of peak.c that ours is held against: a prefix, without the table


def ours(scheme: str, dtype: torch.dtype = torch.float32) -> Maker:
    def make(linear: nn.Linear, x: torch.Tensor) -> Call:
        layer = vq.QuantizedLinear.from_linear(linear, scheme)
        given = x.to(dtype)
        return lambda: layer(given)

    return make


def torch_fp32(linear: nn.Linear, x: torch.Tensor) -> Call:
    return lambda: linear(x)


def torch_bf16(linear: nn.Linear, x: torch.Tensor) -> Call:
    half, narrow = copy.deepcopy(linear).bfloat16(), x.bfloat16()
    return lambda: half(narrow)


def torch_int8(linear: nn.Linear, x: torch.Tensor) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear})
    return lambda: model(x)


def onnx_call(linear: nn.Linear, x: torch.Tensor, rewrite: Callable[[Path], Path]) -> Call:
    """A session with as many threads as torch has, free to run on every core.

    Threads that inherit the one core of the caller halve the speed; pinned ones wake slowly.
    """
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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, every_core():
        path = Path(folder) / "linear.onnx"
        onnx.save(model, path)
        session = onnxruntime.InferenceSession(
            rewrite(path), options, providers=["CPUExecutionProvider"]
        )
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)


def ort_fp32(linear: nn.Linear, x: torch.Tensor) -> Call:
    return onnx_call(linear, x, lambda path: path)


def ort_int8(linear: nn.Linear, x: torch.Tensor) -> Call:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def rewrite(path: Path) -> Path:
        out = path.with_name("int8.onnx")
        quantize_dynamic(path, out, weight_type=QuantType.QInt8)
        return out

    return onnx_call(linear, x, rewrite)


def ort_int4(block: int) -> Maker:
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

        return onnx_call(linear, x, rewrite)

    return make


def torchao_int8(linear: nn.Linear, x: torch.Tensor) -> Call:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = nn.Sequential(copy.deepcopy(linear))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return lambda: model(x)


def quanto(bits: int) -> Maker:
    def make(linear: nn.Linear, x: torch.Tensor) -> Call:
        from optimum.quanto import freeze, qint4, qint8, quantize

        model = nn.Sequential(copy.deepcopy(linear))
        quantize(model, weights=qint8 if bits == 8 else qint4)
        freeze(model)
        return lambda: model(x)

    return make


CANDIDATES = {
    "torch FP32": Candidate(torch_fp32, 32),
    "torch BF16": Candidate(torch_bf16, 16),
    "torch dynamic INT8": Candidate(torch_int8, 8),
    "ORT FP32": Candidate(ort_fp32, 32),
    "ORT dynamic INT8": Candidate(ort_int8, 8),
    "ORT INT4 g128": Candidate(ort_int4(128), 4),
    "ORT INT4 g32": Candidate(ort_int4(32), 4),
    "torchao W8A8": Candidate(torchao_int8, 8),
    "quanto W8": Candidate(quanto(8), 8),
    "quanto W4": Candidate(quanto(4), 4),
    "ours W8A8": Candidate(ours("INT8_Per_Channel_Symmetric_A8"), 8, "W8A8"),
    "ours W4A8 g128": Candidate(ours("INT4_Group_128_A8"), 4, "W4A8"),
    "ours W4A8 g32": Candidate(ours("INT4_Group_32_A8"), 4, "W4A8"),
    "ours W8": Candidate(ours("INT8_Per_Channel_Symmetric"), 8, "FP32"),
    "ours W4 g128": Candidate(ours("INT4_Group_128"), 4, "FP32"),
    "ours W8, BF16": Candidate(ours("INT8_Per_Channel_Symmetric", torch.bfloat16), 8, "BF16"),
}


def versions() -> dict[str, Any]:
    """Version of each library that is there."""
    from importlib import metadata

    found = {}
    for name in ("torch", "onnxruntime", "torchao", "optimum-quanto"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
