# SPDX-License-Identifier: Apache-2.0
"""TensorRT's rules: a graph that keeps them, and one that breaks each."""

import numpy as np
import onnx_ir as ir
import pytest

from vggtquant.deploy import tensorrt


class Graph:
    """A quantized MatMul that keeps all rules, until a test changes it."""

    def __init__(self) -> None:
        self.values: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        x = ir.Value(name="x", shape=ir.Shape([2, 8]), type=ir.TensorType(ir.DataType.FLOAT))
        scale = self.constant("scale", np.float32(0.1))
        zero = self.constant("zero", np.int8(0))
        codes = self.node("QuantizeLinear", x, scale, zero)
        values = self.node("DequantizeLinear", codes, scale, zero)
        weight = self.constant("codes", np.ones((8, 4), np.int8))
        weight_scale = self.constant("weight_scale", np.ones(4, np.float32))
        decoded = self.node("DequantizeLinear", weight, weight_scale, axis=1)
        y = self.node("MatMul", values, decoded)
        self.graph = ir.Graph(
            [x], [y], nodes=self.nodes, initializers=self.values, opset_imports={"": 21}
        )

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.Tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.values.append(value)
        return value

    def node(self, kind: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        made = ir.node(kind, list(inputs), attributes=attributes, name=f"{kind}_{len(self.nodes)}")
        made.outputs[0].name = made.name
        self.nodes.append(made)
        return made.outputs[0]

    def set(self, name: str, array: np.ndarray) -> None:
        value = self.graph.initializers[name]
        value.const_value = ir.Tensor(np.asarray(array), name=name)
        value.type = ir.TensorType(value.const_value.dtype)

    def broken(self) -> list[str]:
        return tensorrt.broken_rules(ir.Model(self.graph, ir_version=10))


def test_a_graph_that_keeps_the_rules():
    assert Graph().broken() == []


def _dynamic(g: Graph) -> None:
    g.nodes[0].op_type = "DynamicQuantizeLinear"


def _other_domain(g: Graph) -> None:
    g.nodes[3].domain = "com.microsoft"


def _four_bits(g: Graph) -> None:
    import ml_dtypes

    g.set("codes", np.ones((8, 4)).astype(ml_dtypes.int4))
    g.set("weight_scale", np.ones((2, 4), np.float32))
    g.nodes[2].attributes["axis"] = ir.AttrInt64("axis", 0)
    g.nodes[2].attributes["block_size"] = ir.AttrInt64("block_size", 4)


def _product_of_codes(g: Graph) -> None:
    g.nodes[3].replace_input_with(0, g.nodes[0].outputs[0])


BREAKS = {
    "an operator that TensorRT does not have": _dynamic,
    "an operator that TensorRT does not have ": _other_domain,
    "a zero point that is not 0": lambda g: g.set("zero", np.int8(3)),
    "codes without a sign": lambda g: g.set("zero", np.uint8(0)),
    "codes without a sign ": lambda g: [n.replace_input_with(2, None) for n in g.nodes[:2]],
    "a scale that is not a positive constant": lambda g: g.set("scale", np.float32(-0.1)),
    "activations with more than one scale": lambda g: g.set("scale", np.ones(2, np.float32)),
    "a scale a channel along another axis than the outputs'": lambda g: g.nodes[
        2
    ].attributes.update({"axis": ir.AttrInt64("axis", 0)}),
    "INT4 blocks of another size than 64 or 128": _four_bits,
    "QuantizeLinear that something else than DequantizeLinear reads": _product_of_codes,
}


@pytest.mark.parametrize("words", BREAKS)
def test_a_broken_rule_is_named(words):
    graph = Graph()
    BREAKS[words](graph)
    assert [line.partition(":")[0] for line in graph.broken()] == [words.strip()]


def test_every_rule_is_broken_by_a_test():
    assert {words.strip() for words in BREAKS} == set(tensorrt.RULES)
