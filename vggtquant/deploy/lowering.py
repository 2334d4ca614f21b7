# SPDX-License-Identifier: Apache-2.0
"""From sites to ONNX nodes with the layers' own codes, scales and zero points.

FORMS says how a layer is written:

- "weights": DequantizeLinear of the weight, then MatMul of float activations. INT4 is blocked along
  the inputs (opset 21), which ONNX Runtime makes MatMulNBits of.
- "dynamic": each token is coded as docs/conventions.md says, then MatMulInteger, then the scales.
- "static": QuantizeLinear and DequantizeLinear with the calibrated scale, then as "weights", which
  runtimes fuse to an integer product. What lies beyond the range becomes -128 and not -127.

A convolution is "static" or "weights"; a transposed one is written as a Linear of each pixel.
Residual additions and norms stay float.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ..conv import QuantizedConv2d, kernels
from ..errors import UserError
from ..linear import QuantizedLinear
from ..qtensor import QTensor
from .sites import DOMAIN

Form = Literal["weights", "dynamic", "static"]

_TINY = np.float32(2.0**-120)
"""Largest magnitude of a token below which its codes are 0 (docs/conventions.md, Activations)."""


def form_of(layer: QuantizedLinear) -> Form:
    """How a layer is written: as its config codes activations, where ONNX can say it.

    Products with 16-bit activations, and INT4 ones, have no integer operator: float activations.
    """
    if layer.spec.is_float8:
        raise UserError(
            f"layer {layer.name}: FP8 is not exported; an INT8 or INT4 scheme is wanted"
        )
    if layer.spec.bits != 8 or not layer.config.quantize_activations or layer.activation_bits != 8:
        return "weights"
    if layer.input_scale:
        return "static"
    # ConvInteger takes 5 times a float convolution's time in ONNX Runtime (docs/deploy.md).
    slow = isinstance(layer, QuantizedConv2d) and not layer.shape.transposed
    return "weights" if slow else "dynamic"


class _Nodes:
    """Appends nodes and constants of one site; names begin with the layer's."""

    def __init__(self, graph: ir.Graph, name: str, call: str) -> None:
        self.graph, self.name, self.call = graph, name, call
        self.nodes: list[ir.Node] = []

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        name = f"{self.call}/{kind}_{len(self.nodes)}"
        node = ir.node(kind, list(inputs), attributes=attributes, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def constant(
        self, what: str, array: Any, dtype: ir.DataType | None = None, owner: str = ""
    ) -> ir.Value:
        """An initializer of the layer, or of another owner; the same one for the same name."""
        name = f"{owner or self.name}.{what}"
        known = self.graph.initializers.get(name)
        if known is not None:
            return known
        tensor = ir.Tensor(np.asarray(array), name=name, dtype=dtype)
        value = ir.Value(
            name=name,
            shape=tensor.shape,
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value


def lower(model: ir.Model, layers: dict[str, QuantizedLinear]) -> dict[str, Form]:
    """Replace each site in place; the form of each layer by name."""
    forms: dict[str, Form] = {}
    calls: Counter[str] = Counter()
    graph = model.graph
    for node in [n for n in graph if n.domain == DOMAIN]:
        name = node.attributes["name"].as_string()
        call = name if node.op_type == "LinearSite" else f"{name}/{node.op_type}"
        calls[call] += 1  # the camera head calls its layers four times
        call = call if calls[call] == 1 else f"{call}.{calls[call]}"
        layer, nodes = layers[name], _Nodes(graph, name, call)
        forms[name] = form_of(layer)
        x = node.inputs[0]
        assert x is not None
        y = SITES[node.op_type](nodes, x, layer, forms[name])
        old = node.outputs[0]
        y.shape, y.type = old.shape, old.type
        graph.insert_before(node, nodes.nodes)
        ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    model.opset_imports.pop(DOMAIN, None)
    return forms


def _weights(nodes: _Nodes, x: ir.Value, layer: QuantizedLinear) -> ir.Value:
    return nodes.op("MatMul", _smoothed(nodes, x, layer), _decoded(nodes, layer.qtensor()))


def _static(nodes: _Nodes, x: ir.Value, layer: QuantizedLinear) -> ir.Value:
    values = _pair(nodes, _smoothed(nodes, x, layer), layer)
    return nodes.op("MatMul", values, _decoded(nodes, layer.qtensor()))


def _pair(nodes: _Nodes, x: ir.Value, layer: QuantizedLinear) -> ir.Value:
    """x as codes of the layer's static range stand for it."""
    scale = nodes.constant("input_scale", np.float32(layer.input_scale))
    zero = nodes.constant("input_zero_point", np.int8(0))
    codes = nodes.op("QuantizeLinear", x, scale, zero)
    return nodes.op("DequantizeLinear", codes, scale, zero)


def _dynamic(nodes: _Nodes, x: ir.Value, layer: QuantizedLinear) -> ir.Value:
    """(((float(acc) * scale_x) * scale_w), as docs/conventions.md has it."""
    q = layer.qtensor()
    x = _smoothed(nodes, x, layer)
    most = nodes.constant("most", np.float32(127), owner=DOMAIN)
    tiny = nodes.constant("tiny", _TINY, owner=DOMAIN)
    middle = nodes.constant("middle", np.float32(128), owner=DOMAIN)
    last = nodes.constant("last_axis", np.array([-1], np.int64), owner=DOMAIN)
    largest = nodes.op("ReduceMax", nodes.op("Abs", x), last, keepdims=1)
    inverse = nodes.op("Div", most, nodes.op("Max", largest, tiny))
    scale = nodes.op("Div", largest, most)
    rounded = nodes.op("Round", nodes.op("Mul", x, inverse))
    # Without a sign and with 128 as their zero: ONNX Runtime multiplies such codes by signed
    # weights 28 times as fast as signed ones (VNNI, AMX).
    codes = nodes.op("Cast", nodes.op("Add", rounded, middle), to=ir.DataType.UINT8)
    code_zero = nodes.constant("code_zero_point", np.uint8(128), owner=DOMAIN)
    weight = nodes.constant("weight_codes", _turned(q.codes))
    zero_points = [code_zero]
    if q.stored_zero is not None:
        zero = np.broadcast_to(q.zero_point, (q.shape[0],)).astype(np.int8)
        zero_points.append(nodes.constant("weight_zero_point", zero))
    total = nodes.op("MatMulInteger", codes, weight, *zero_points)
    y = nodes.op("Mul", nodes.op("Cast", total, to=ir.DataType.FLOAT), scale)
    return nodes.op("Mul", y, nodes.constant("weight_scale", _row_scales(q)))


FORMS: dict[Form, Callable[[_Nodes, ir.Value, QuantizedLinear], ir.Value]] = {
    "weights": _weights,
    "dynamic": _dynamic,
    "static": _static,
}


def _linear(nodes: _Nodes, x: ir.Value, layer: QuantizedLinear, form: Form) -> ir.Value:
    y = FORMS[form](nodes, x, layer)
    if layer.bias is None:
        return y
    bias = _floats(layer.bias)
    if isinstance(layer, QuantizedConv2d):
        bias = np.tile(bias, math.prod(layer.shape.window.kernel))
    # In x's rank: with fewer axes ONNX Runtime makes a Gemm of product and sum, which it has
    # neither for blocked INT4 nor for INT8 with float results.
    rank = 1 if x.shape is None else len(x.shape)
    return nodes.op("Add", y, nodes.constant("bias", bias.reshape(*[1] * (rank - 1), -1)))


def _conv_input(nodes: _Nodes, x: ir.Value, layer: QuantizedLinear, form: Form) -> ir.Value:
    """The pair of a static range. A ReLU between two convolutions has one before it as well: the
    values are the same, and ONNX Runtime then computes the first convolution in integers."""
    if form != "static":
        return x
    relu = x.producer()
    before = None if relu is None or relu.op_type != "Relu" else relu.inputs[0]
    conv = None if before is None else before.producer()
    if relu is not None and before is not None and conv is not None and conv.op_type == "Conv":
        readers = [node for node, _ in x.uses() if node.op_type != "WeightSite"]
        if len(readers) == len(before.uses()) == 1 and not x.is_graph_output():
            first = _Nodes(nodes.graph, nodes.name, f"{nodes.call}/before")
            relu.replace_input_with(0, _pair(first, before, layer))
            nodes.graph.insert_before(relu, first.nodes)
    return _pair(nodes, x, layer)


def _conv_weight(nodes: _Nodes, _: ir.Value, layer: QuantizedLinear, form: Form) -> ir.Value:
    """The weight in torch's shape, by DequantizeLinear; one of two parts is their sum."""
    assert isinstance(layer, QuantizedConv2d)
    q, shape = layer.qtensor(), layer.shape
    codes = kernels(torch.from_numpy(np.array(q.codes)), shape).numpy()
    parts = []
    for word, first in (("weight", 0), ("weight_rest", shape.outputs)):
        some = slice(first, first + shape.outputs)
        if len(codes[some]):
            part = nodes.constant(f"{word}_codes", np.ascontiguousarray(codes[some]))
            scale = nodes.constant(f"{word}_scale", _row_scales(q)[some])
            parts.append(nodes.op("DequantizeLinear", part, scale, axis=0))
    return parts[0] if len(parts) == 1 else nodes.op("Add", *parts)


SITES: dict[str, Callable[[_Nodes, ir.Value, QuantizedLinear, Form], ir.Value]] = {
    "LinearSite": _linear,
    "InputSite": _conv_input,
    "WeightSite": _conv_weight,
}
"""What takes the place of a site, by the operator that sites.py records."""


def _smoothed(nodes: _Nodes, x: ir.Value, layer: QuantizedLinear) -> ir.Value:
    """x * weight + bias, for a calibrated layer that has them."""
    if layer.input_weight is not None:
        x = nodes.op("Mul", x, nodes.constant("input_weight", _floats(layer.input_weight)))
    if layer.input_bias is not None:
        x = nodes.op("Add", x, nodes.constant("input_bias", _floats(layer.input_bias)))
    return x


def _decoded(nodes: _Nodes, q: QTensor) -> ir.Value:
    """The weight (inputs, outputs) by DequantizeLinear."""
    dtype = ir.DataType.INT8 if q.spec.bits == 8 else ir.DataType.INT4
    codes = _turned(q.codes)
    attributes: dict[str, Any] = {"axis": 1}
    if q.spec.granularity == "per_group":
        # Blocks that divide the inputs: a shorter last one is not served everywhere.
        block = math.gcd(len(codes), q.spec.group_size)
        groups = np.arange(len(codes) // block) * block // q.spec.group_size
        scale, zero = _turned(q.scale)[groups], _turned(q.zero_point)[groups]
        attributes = {"axis": 0, "block_size": block}
    else:
        scale = _row_scales(q)
        zero = np.broadcast_to(q.zero_point, scale.shape).astype(np.int8)
    if dtype == ir.DataType.INT4:
        codes, zero = codes.astype(ml_dtypes.int4), zero.astype(ml_dtypes.int4)
    inputs = [
        nodes.constant("weight_codes", codes, dtype),
        nodes.constant("weight_scale", scale),
    ]
    if q.stored_zero is not None:
        inputs.append(nodes.constant("weight_zero_point", zero, dtype))
    return nodes.op("DequantizeLinear", *inputs, **attributes)


def _turned(a: Any) -> NDArray[Any]:
    return np.ascontiguousarray(np.asarray(a).T)


def _row_scales(q: QTensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.broadcast_to(q.scale, (q.shape[0],)), np.float32)


def _floats(x: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(x.detach().float().cpu().numpy())
