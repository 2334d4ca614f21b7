# SPDX-License-Identifier: Apache-2.0
"""TensorRT's rules for explicit quantization, checked on a graph without TensorRT.

The rules are those of "Working with Quantized Types" and of the operator pages of TensorRT 10 and
11 (docs.nvidia.com/deeplearning/tensorrt). A graph that keeps them is not yet one that was run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

BLOCKS = (64, 128)
"""Block sizes of INT4 weights."""

_ABSENT = (
    *("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"),
    "MatMulNBits",
)
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def broken_rules(model: ir.Model) -> list[str]:
    """One line a rule that some node breaks, with the first such node; [] for none."""
    found = []
    for words, broken in RULES.items():
        names = list(broken(model.graph))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            found.append(f"{words}: {names[0]}{more}")
    return found


def _unknown(graph: ir.Graph) -> Iterator[str]:
    return (_name(n) for n in graph if n.op_type in _ABSENT or n.domain not in ("", "ai.onnx"))


def _nonzero(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph):
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is not None and (zero.const_value is None or np.any(zero.const_value.numpy())):
            yield _name(node)


def _unsigned(graph: ir.Graph) -> Iterator[str]:
    """UINT8 or UINT4, which QuantizeLinear writes where nothing says another type."""
    for node in _nodes(graph):
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        said = "output_dtype" in node.attributes
        kind = None if zero is None else zero.dtype
        if kind in (ir.DataType.UINT8, ir.DataType.UINT4):
            yield _name(node)
        elif node.op_type == "QuantizeLinear" and zero is None and not said:
            yield _name(node)


def _scales(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph):
        scale = node.inputs[1]
        known = None if scale is None else scale.const_value
        if known is None or not np.all(known.numpy() > 0):
            yield _name(node)


def _activations(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph, "QuantizeLinear"):
        scale = node.inputs[1]
        if scale is not None and scale.const_value is not None and scale.const_value.size != 1:
            yield _name(node)


def _channels(graph: ir.Graph) -> Iterator[str]:
    """The axis that a scale a channel must have, by what reads the weight and where."""
    wanted = {("MatMul", 1): 1, ("Conv", 1): 0, ("ConvTranspose", 1): 1, ("Gemm", 1): 1}
    for node in _nodes(graph, "DequantizeLinear"):
        scale = node.inputs[1]
        if scale is None or scale.const_value is None or len(scale.const_value.shape) != 1:
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        for user, place in node.outputs[0].uses():
            if wanted.get((user.op_type, place), axis) != axis:
                yield _name(node)


def _blocks(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph, "DequantizeLinear"):
        codes = node.inputs[0]
        size = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
        four_bits = codes is not None and codes.dtype in (ir.DataType.INT4, ir.DataType.UINT4)
        if four_bits and size not in BLOCKS:
            yield _name(node)


def _pairs(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph, "QuantizeLinear"):
        if any(user.op_type != "DequantizeLinear" for user, _ in node.outputs[0].uses()):
            yield _name(node)


RULES: dict[str, Callable[[ir.Graph], Iterator[str]]] = {
    "an operator that TensorRT does not have": _unknown,
    "a zero point that is not 0": _nonzero,
    "codes without a sign": _unsigned,
    "a scale that is not a positive constant": _scales,
    "activations with more than one scale": _activations,
    "a scale a channel along another axis than the outputs'": _channels,
    f"INT4 blocks of another size than {' or '.join(map(str, BLOCKS))}": _blocks,
    "QuantizeLinear that something else than DequantizeLinear reads": _pairs,
}
"""What breaks a rule, in words, and the names of the nodes that do."""


def _nodes(graph: ir.Graph, *kinds: str) -> Iterator[ir.Node]:
    return (node for node in graph if node.op_type in (kinds or _QDQ))


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name}"
