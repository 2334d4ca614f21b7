# SPDX-License-Identifier: Apache-2.0
"""Conformance with ONNX: the node tests that the onnx package ships, and its ReferenceEvaluator.

Unsigned types are ours shifted by half their range: code - 128 and zero point - 128 (4 bits: 8).
"""

import warnings

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import vggtquant as vq

# The vectors are made when their modules are imported; those of other operators take ten seconds.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnx.backend.test.case import node
    from onnx.backend.test.case.node import (  # noqa: F401
        dequantizelinear,
        dynamicquantizelinear,
        quantizelinear,
    )

    NODES = {case.name: case for case in node._NodeTestCases}

QUANTIZE = ["", "_axis", "_uint4", "_int4", "_blocked_asymmetric"]
DEQUANTIZE = ["", "_axis", "_uint4", "_int4", "_blocked"]
DYNAMIC = ["", "_max_adjusted", "_min_adjusted"]
# The same data, for backends that have no DynamicQuantizeLinear of their own.
DYNAMIC += [f"{name}_expanded" for name in DYNAMIC]
# Formats that we do not have: 16 and 2 bits, and floats.
FOREIGN = ("int16", "int2", "e4m3fn", "e5m2", "float4e2m1", "blocked_symmetric")
BITS = {"int8": (8, 0), "uint8": (8, 128), "int4": (4, 0), "uint4": (4, 8)}


def case_of(name):
    """The node, its inputs and its outputs as arrays."""
    case = NODES[f"test_{name}"]
    inputs, outputs = case.data_sets[0]
    arrays = [
        [a if hasattr(a, "shape") else numpy_helper.to_array(a) for a in s]
        for s in (inputs, outputs)
    ]
    attributes = {a.name: a.i for a in case.model.graph.node[0].attribute}
    return attributes, arrays[0], arrays[1]


def scheme_of(attributes, shape, scale, bits):
    """Our spec, and the axis that becomes the first (a scale a channel) or the last (blocks)."""
    axis = attributes.get("axis", 1)
    if scale.ndim > 1:
        return vq.QuantizationSpec(bits, False, "per_group", attributes["block_size"]), axis, -1
    if scale.size == 1:
        return vq.QuantizationSpec(bits, False, "per_tensor"), 0, 0
    return vq.QuantizationSpec(bits, False, "per_channel"), axis, 0


def quantize(attributes, x, scale, zero):
    """ONNX QuantizeLinear by vq.quantize."""
    bits, shift = BITS[str(zero.dtype)]
    spec, axis, to = scheme_of(attributes, x.shape, scale, bits)
    moved = np.moveaxis(x, axis, to)
    rows = moved.reshape(-1, moved.shape[-1]) if to == -1 else moved
    scale, zero = (np.moveaxis(a, axis, to) if a.ndim > 1 else a for a in (scale, zero))
    q = vq.quantize(rows, spec, scale=scale, zero_point=zero.astype(int) - shift)
    return np.moveaxis((q.codes.astype(int) + shift).reshape(moved.shape), to, axis)


def test_every_node_test_is_used_or_foreign():
    ours = {f"test_quantizelinear{name}" for name in QUANTIZE}
    ours |= {f"test_dequantizelinear{name}" for name in DEQUANTIZE}
    ours |= {f"test_dynamicquantizelinear{name}" for name in DYNAMIC}
    shipped = {name for name in NODES if "quantizelinear" in name}
    foreign = {name for name in shipped - ours if any(word in name for word in FOREIGN)}
    print(f"{len(shipped)} vectors: {len(ours)} agree, {len(foreign)} are of formats we lack")
    assert ours <= shipped and shipped == ours | foreign


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantizelinear(name, isa):
    attributes, (x, scale, zero), (wanted,) = case_of(f"quantizelinear{name}")
    np.testing.assert_array_equal(quantize(attributes, x, scale, zero), wanted.astype(int))


@pytest.mark.parametrize("name", DEQUANTIZE)
def test_dequantizelinear(name, isa):
    attributes, (codes, scale, zero), (wanted,) = case_of(f"dequantizelinear{name}")
    bits, shift = BITS[str(codes.dtype)]
    spec, axis, to = scheme_of(attributes, codes.shape, scale, bits)
    # Values that code exactly to these codes, whatever the scales: the codes less the zero point,
    # with scales of one; the true scales are put in their place.
    moved = np.moveaxis(codes.astype(int) - shift, axis, to)
    rows = moved.reshape(-1, moved.shape[-1]) if to == -1 else moved
    scale, zero = (np.moveaxis(a, axis, to) if a.ndim > 1 else a for a in (scale, zero))
    zero = zero.astype(int) - shift
    unit = vq.quantize(rows.astype(np.float32), spec, scale=np.ones_like(scale))
    assert (unit.codes == rows).all()
    q = vq.QTensor(
        spec, unit.shape, "float32", False, unit.packed,
        np.ascontiguousarray(scale, np.float32).reshape(-1), None,
        np.ascontiguousarray(zero, np.int8).reshape(-1),
    )  # fmt: skip
    got = np.moveaxis(vq.dequantize(q).reshape(moved.shape), to, axis)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamicquantizelinear(name, isa):
    _, (x,), (codes, scale, zero) = case_of(f"dynamicquantizelinear{name}")
    q = vq.quantize(x, vq.QuantizationSpec(8, False, "per_tensor"))
    np.testing.assert_array_equal(q.codes.astype(int) + 128, codes)
    assert q.zero_point.astype(int) + 128 == zero
    # ONNX divides in float32, we in double: at most the last bit differs.
    np.testing.assert_allclose(q.scale, scale, rtol=2**-23)


def reference(x, scale, zero, kind):
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=0)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "q",
        [
            info("x", onnx.TensorProto.FLOAT, x.shape),
            info("s", onnx.TensorProto.FLOAT, scale.shape),
            info("z", kind, zero.shape),
        ],
        [info("y", kind, x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return ReferenceEvaluator(model).run(None, {"x": x, "s": scale, "z": zero})[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans())
def test_random_inputs_with_ties_equal_the_reference_evaluator(seed, cols, unsigned):
    rng = np.random.default_rng(seed)
    scale = np.float32(2.0 ** rng.integers(-4, 4, 3))
    steps = rng.integers(-300, 300, (3, cols)) / 2  # halves: every second one is a tie
    x = np.float32(steps) * scale[:, None]
    x[:, ::3] = rng.normal(0, 100, x[:, ::3].shape)
    zero = (
        rng.integers(0, 256, 3).astype(np.uint8)
        if unsigned
        else rng.integers(-128, 128, 3).astype(np.int8)
    )
    kind = onnx.TensorProto.UINT8 if unsigned else onnx.TensorProto.INT8
    got = quantize({"axis": 0}, x, scale, zero)
    np.testing.assert_array_equal(got, reference(x, scale, zero, kind).astype(int))
