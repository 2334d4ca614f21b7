# SPDX-License-Identifier: Apache-2.0
"""Single nodes of VGGT-1B in float and in integers: what ONNX Runtime and OpenVINO make of each.

    python tests/bench/deploy_nodes.py

A convolution is 3x3, 256 to 256 channels, as in the dense heads; two with a ReLU between them are a
residual unit. Attention has 16 heads of 64 channels and the 1,374 tokens of a picture of 518x518.
Times are medians of repeated calls, milliseconds; coding is part of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

CHANNELS, HEADS, TOKENS, DIM = 256, 16, 1374, 64
SECONDS = 1.5


class Graph:
    """Nodes and constants, until `model` ends it."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.random = np.random.default_rng(0)
        self.inputs = inputs
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.last = ""

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def pair(self, x: str, scale: float = 4 / 127) -> str:
        about = self.constant(np.float32(scale)), self.constant(np.int8(0))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *about), *about)

    def codes(self, x: str, axes: list[int] | None, *, unsigned: bool) -> tuple[str, str]:
        """x as run-time codes, 128 more where `unsigned`, and their scales."""
        most = self.constant(np.float32(127))
        over = [] if axes is None else [self.constant(np.array(axes))]
        largest = self.op("ReduceMax", self.op("Abs", x), *over, keepdims=1)
        rounded = self.op("Round", self.op("Mul", x, self.op("Div", most, largest)))
        if unsigned:
            rounded = self.op("Add", rounded, self.constant(np.float32(128)))
        kind = TensorProto.UINT8 if unsigned else TensorProto.INT8
        return self.op("Cast", rounded, to=kind), self.op("Div", largest, most)

    def convolution(self, x: str, form: str) -> str:
        k = CHANNELS
        weight = self.random.normal(size=(k, k, 3, 3)).astype(np.float32) / np.float32(48)
        bias = self.random.normal(size=k).astype(np.float32)
        if form == "float":
            return self.op("Conv", x, *map(self.constant, (weight, bias)), pads=[1] * 4)
        scale = np.abs(weight).max((1, 2, 3)) / np.float32(127)
        codes = self.constant(np.rint(weight / scale[:, None, None, None]).astype(np.int8))
        if form == "static":
            decoded = self.op("DequantizeLinear", codes, self.constant(scale), axis=0)
            return self.op("Conv", x, decoded, self.constant(bias), pads=[1] * 4)
        x, x_scale = self.codes(x, None, unsigned=True)
        zero = self.constant(np.uint8(128))
        y = self.op("ConvInteger", x, codes, zero, pads=[1] * 4)
        y = self.op("Mul", self.op("Cast", y, to=TensorProto.FLOAT), x_scale)
        y = self.op("Mul", y, self.constant(scale[:, None, None]))
        return self.op("Add", y, self.constant(bias[:, None, None]))

    def model(self, y: str) -> Any:
        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        made = [helper.make_tensor_value_info(n, 1, shape) for n, shape in self.inputs.items()]
        result = helper.make_tensor_value_info("y", 1, None)
        graph = helper.make_graph(self.nodes, "node", made, [result], self.constants)
        opset = [helper.make_opsetid("", 21)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10)


def convolution(form: str, side: int) -> Graph:
    g = Graph(x=(1, CHANNELS, side, side))
    x = g.op("Relu", "x")
    g.last = g.convolution(g.pair(x) if form == "static" else x, form)
    return g


def unit(form: str, side: int) -> Graph:
    """form "static, joined": a pair before the inner ReLU too."""
    g = Graph(x=(1, CHANNELS, side, side))
    kind = "float" if form == "float" else "static"
    coded: Callable[[str], str] = (lambda x: x) if form == "float" else g.pair
    x = g.op("Relu", "x")
    inner = g.convolution(coded(x), kind)
    inner = g.op("Relu", g.pair(inner) if form == "static, joined" else inner)
    g.last = g.op("Add", g.convolution(coded(inner), kind), x)
    return g


def attention(form: str, _: int) -> Graph:
    g = Graph(**dict.fromkeys("qkv", (1, HEADS, TOKENS, DIM)))
    turned, root = {"perm": [0, 1, 3, 2]}, g.constant(np.float32(DIM**-0.5))
    if form == "dynamic":
        (q, q_scale), (k, k_scale) = (g.codes(x, [-1], unsigned=x == "q") for x in "qk")
        v, v_scale = g.codes("v", [-2], unsigned=False)
        zero = g.constant(np.uint8(128))
        s = g.op("MatMulInteger", q, g.op("Transpose", k, **turned), zero)
        s = g.op("Mul", g.op("Cast", s, to=TensorProto.FLOAT), g.op("Mul", q_scale, root))
        p = g.op("Softmax", g.op("Mul", s, g.op("Transpose", k_scale, **turned)), axis=-1)
        p, p_scale = g.codes(p, [-1], unsigned=True)
        y = g.op("Cast", g.op("MatMulInteger", p, v, zero), to=TensorProto.FLOAT)
        g.last = g.op("Mul", g.op("Mul", y, p_scale), v_scale)
        return g
    q, k, v = "q", g.op("Transpose", "k", **turned), "v"
    if form != "float":
        q, k = g.pair(q), g.pair(k)
    p = g.op("Softmax", g.op("Mul", g.op("MatMul", q, k), root), axis=-1)
    if form == "static":
        p, v = g.pair(p, 1 / 127), g.pair(v)
    g.last = g.op("MatMul", p, v)
    return g


CASES: list[tuple[str, Callable[[str, int], Graph], int, tuple[str, ...]]] = [
    ("convolution, 74x74", convolution, 74, ("float", "static", "dynamic")),
    ("convolution, 148x148", convolution, 148, ("float", "static", "dynamic")),
    ("residual unit, 74x74", unit, 74, ("float", "static", "static, joined")),
    ("attention, 1,374 tokens", attention, 0, ("float", "dynamic", "static q and k", "static")),
]


def milliseconds(call: Callable[[], Any]) -> float:
    call()
    taken: list[float] = []
    while sum(taken) < SECONDS or len(taken) < 3:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def main() -> None:
    print("| node | form | ONNX Runtime, ms | OpenVINO, ms |\n|---|---|---|---|")
    for words, build, side, forms in CASES:
        for form in forms:
            graph = build(form, side)
            model = graph.model(graph.last)
            given = {
                name: graph.random.normal(size=shape).astype(np.float32)
                for name, shape in graph.inputs.items()
            }
            options = ort.SessionOptions()
            options.log_severity_level = 3
            session = ort.InferenceSession(model.SerializeToString(), options)
            first = milliseconds(lambda: session.run(None, given))  # noqa: B023
            core = ov.Core()
            read = core.read_model(model.SerializeToString())
            compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            request = compiled.create_infer_request()
            second = milliseconds(lambda: request.infer(given))  # noqa: B023
            print(f"| {words} | {form} | {first:.1f} | {second:.1f} |", flush=True)


if __name__ == "__main__":
    main()
