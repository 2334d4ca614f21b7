# SPDX-License-Identifier: Apache-2.0
"""Products in float16 or bfloat16, as torch.autocast has them; all between them stays float32.

MatMul, Gemm and convolutions read and write the narrow type: weights are stored in it, scales of
DequantizeLinear are of it, and Cast stands around activations. Products that a runtime computes in
integers keep float32 scales.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

DTYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
"""Narrow types by torch's name."""

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_MOVES = ("Transpose", "Reshape", "Identity")


def narrow(model: ir.Model, dtype: str) -> int:
    """Narrow the products of a graph in place; how many there are."""
    graph = model.graph
    products = [n for n in graph if n.op_type in PRODUCTS and not _is_integer(n)]
    values = _Values(graph, DTYPES[dtype])
    for node in products:
        for i, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(i, values.narrowed(value, node))
        old = node.outputs[0]
        wide = ir.node("Cast", [old], attributes={"to": ir.DataType.FLOAT})
        wide.name = f"{node.name}/wide"
        y = wide.outputs[0]
        y.name, y.shape, y.type = f"{old.name}/wide", old.shape, ir.TensorType(ir.DataType.FLOAT)
        old.type = ir.TensorType(values.dtype)
        if old.is_graph_output():
            y.name, old.name = old.name, f"{old.name}/narrow"
        ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
        wide.replace_input_with(0, old)
        graph.insert_after(node, wide)
    _drop_unread(graph)
    return len(products)


class _Values:
    """Narrow ones by the value that they are made of."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self.graph, self.dtype = graph, dtype
        self.made: dict[ir.Value, ir.Value] = {}

    def narrowed(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The value in the narrow type, made before the node that reads it first."""
        if value not in self.made:
            self.made[value] = (
                self._stored(value) or self._moved(value) or self._cast(value, before)
            )
        return self.made[value]

    def _stored(self, value: ir.Value) -> ir.Value | None:
        tensor = value.const_value
        if tensor is None or not value.is_initializer():
            return None
        kind = ml_dtypes.bfloat16 if self.dtype == ir.DataType.BFLOAT16 else np.float16
        array = tensor.numpy().astype(kind)
        name = f"{value.name}/narrow"
        stored = ir.Tensor(array, name=name, dtype=self.dtype)
        made = ir.Value(
            name=name, shape=value.shape, type=ir.TensorType(self.dtype), const_value=stored
        )
        self.graph.register_initializer(made)
        return made

    def _moved(self, value: ir.Value) -> ir.Value | None:
        """A weight that is decoded or transposed: its scale or itself is stored narrow."""
        node = value.producer()
        if node is None:
            return None
        decoded = node.op_type == "DequantizeLinear"
        if not decoded and node.op_type not in _MOVES:
            return None
        place = 1 if decoded else 0
        source = node.inputs[place]
        if source is None:
            return None
        narrow = self.made.get(source) or self._stored(source)
        narrow = narrow or (None if decoded else self._moved(source))
        if narrow is None:
            return None
        self.made[source] = narrow
        inputs = list(node.inputs)
        inputs[place] = narrow
        copy = ir.node(node.op_type, inputs, attributes=dict(node.attributes))
        return self._placed(copy, value, node)

    def _cast(self, value: ir.Value, before: ir.Node) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": self.dtype})
        after = value.producer()
        return self._placed(node, value, after, before)

    def _placed(
        self, node: ir.Node, value: ir.Value, after: ir.Node | None, before: ir.Node | None = None
    ) -> ir.Value:
        node.name = f"{value.name}/narrow"
        made = node.outputs[0]
        made.name, made.shape, made.type = node.name, value.shape, ir.TensorType(self.dtype)
        if after is not None:
            self.graph.insert_after(after, node)
        else:
            assert before is not None
            self.graph.insert_before(before, node)
        return made


def _is_integer(product: ir.Node) -> bool:
    """Whether its activations are coded: runtimes make an integer product of it."""
    x = product.inputs[0]
    decode = None if x is None else x.producer()
    codes = (
        decode.inputs[0] if decode is not None and decode.op_type == "DequantizeLinear" else None
    )
    code = None if codes is None else codes.producer()
    return code is not None and code.op_type == "QuantizeLinear"


def _drop_unread(graph: ir.Graph) -> None:
    """Nodes and constants that nothing reads any more."""
    for node in reversed(list(graph)):
        if not any(y.uses() or y.is_graph_output() for y in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
