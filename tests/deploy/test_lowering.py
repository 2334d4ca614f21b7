# SPDX-License-Identifier: Apache-2.0
"""Layers as ONNX nodes: ONNX Runtime computes what the layer computes."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from everywhere import by_default
from torch import nn

import vggtquant as vq
from vggtquant import ops
from vggtquant.conv import QuantizedConv2d
from vggtquant.deploy import lowering, sites, tensorrt, trace
from vggtquant.linear import QuantizedLinear


class Around(nn.Module):
    """A module whose forward is its one layer's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def lowered(layer: nn.Module, x: torch.Tensor) -> tuple[ir.Model, str]:
    """The layer's graph and its form."""
    found = sites.with_sites(Around(layer))
    model = trace.as_onnx(torch.export.export(found.model, (x,)), 21)
    (form,) = lowering.lower(model, found.layers).values()
    model.graph.inputs[0].name = "x"
    return model, form


def computed(model: ir.Model, x: torch.Tensor, folder: object, *, as_written: bool) -> np.ndarray:
    """By ONNX Runtime, as the graph is or with all that it fuses."""
    path = f"{folder}/layer.onnx"
    ir.save(model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options).run(None, {"x": x.numpy()})[0]


def check(layer, x, wanted, folder, form, exact=False):
    model, found = lowered(layer, x)
    assert found == form
    for as_written in (True, False):
        y = computed(model, x, folder, as_written=as_written)
        if exact:
            assert np.array_equal(y, wanted.numpy()), as_written
        else:
            np.testing.assert_allclose(y, wanted.numpy(), rtol=0, atol=3e-6 * wanted.std().item())
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    "scheme", ["INT8_Per_Channel_Symmetric_A8", "INT8_Per_Tensor_Asymmetric_A8"]
)
def test_dynamic_layers_have_our_bits(scheme, tmp_path):
    torch.manual_seed(0)
    layer = QuantizedLinear.from_linear(nn.Linear(200, 96), scheme)
    x = torch.randn(3, 7, 200)
    x[1, 2] = 0  # a token of zeros has codes of 0
    x[1, 3] = 1e-38
    with torch.inference_mode():
        nodes = check(layer, x, layer(x), tmp_path, "dynamic", exact=True)
    assert nodes["MatMulInteger"] == 1 and "MatMul" not in nodes


@pytest.mark.parametrize(
    "scheme",
    ["INT8_Per_Tensor_Symmetric", "INT8_Per_Channel_Asymmetric", "INT4_Group_32", "INT4_Group_128"],
)
@pytest.mark.parametrize("inputs", by_default([9, 128, 200], 200))
def test_weights_decode_to_our_weights(scheme, inputs, tmp_path):
    torch.manual_seed(0)
    layer = QuantizedLinear.from_linear(nn.Linear(inputs, 48, bias=inputs != 9), scheme)
    x = torch.randn(2, 5, inputs)
    wanted = torch.nn.functional.linear(x.double(), layer.weight.double())
    wanted = wanted if layer.bias is None else wanted + layer.bias.double()
    nodes = check(layer, x, wanted.detach(), tmp_path, "weights")
    assert nodes["DequantizeLinear"] == nodes["MatMul"] == 1


def test_a_static_scale_is_a_pair_around_the_input(tmp_path):
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    config = vq.get_config("INT8_Per_Channel_Symmetric_A8")
    q = vq.quantize(linear.weight.detach(), config)
    factors = ops.Inputs(torch.rand(64) + 0.5, torch.randn(64), 0.06)
    layer = QuantizedLinear(q, linear.bias, config, "a layer", factors)
    x = torch.randn(4, 6, 64)
    with torch.inference_mode():
        wanted = layer(x)
    model, form = lowered(layer, x)
    assert form == "static"
    nodes = Counter(node.op_type for node in model.graph)
    assert nodes["QuantizeLinear"] == 1 and nodes["DequantizeLinear"] == 2
    y = computed(model, x, tmp_path, as_written=True)
    # Division and multiplication by the reciprocal round ties differently: a code at most.
    step = 0.06 * layer.weight.abs().max().item()
    assert np.abs(y - wanted.numpy()).max() <= 2 * step
    assert np.median(np.abs(y - wanted.numpy())) <= 1e-6


CONVOLUTIONS = {
    "3x3": nn.Conv2d(16, 40, 3, padding=1),
    "two parts": nn.Conv2d(12, 6, 3, padding=1),
    "1x1": nn.Conv2d(16, 8, 1),
    "stride 2": nn.Conv2d(8, 40, 3, stride=2, padding=1),
    "transposed": nn.ConvTranspose2d(16, 8, 2, stride=2),
}


def test_a_transposed_convolution_has_our_bits(tmp_path):
    torch.manual_seed(0)
    for bias in (True, False):
        layer = QuantizedConv2d.from_conv(nn.ConvTranspose2d(16, 9, (4, 3), (4, 3), bias=bias))
        x = torch.randn(2, 16, 6, 8)
        with torch.inference_mode():
            nodes = check(layer, x, layer(x), tmp_path, "dynamic", exact=True)
        assert nodes["MatMulInteger"] == 1 and "ConvTranspose" not in nodes


@pytest.mark.parametrize("name", [n for n in CONVOLUTIONS if n != "1x1"])
def test_a_static_convolution_is_ours(name, tmp_path):
    torch.manual_seed(0)
    layer = QuantizedConv2d.from_conv(CONVOLUTIONS[name])
    x = torch.randn(2, layer.shape.inputs, 6, 8)
    layer.input_scale = 0.8 * x.abs().max().item() / 127
    with torch.inference_mode():
        wanted = layer(x)
    model, form = lowered(layer, x)
    assert form == "static"
    nodes = Counter(node.op_type for node in model.graph)
    assert nodes["QuantizeLinear"] == 1 and nodes["DequantizeLinear"] == 2 + (name == "two parts")
    y = computed(model, x, tmp_path, as_written=True)
    # beyond the range a code is -128 and not -127: a hundredth of what such a value adds
    apart = np.abs(y - wanted.numpy())
    assert np.median(apart) <= 1e-6 * wanted.std().item() and apart.max() < 0.1 * wanted.std()


class Twice(nn.Module):
    """Two convolutions with a ReLU between them, which another addition may read too."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 40, 3, padding=1), nn.Conv2d(40, 48, 3, padding=1))
        self.read = read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.first(x).relu()
        y = self.second(inner)
        return y + inner.mean() if self.read else y


@pytest.mark.parametrize("read", [False, True])
def test_onnx_runtime_joins_convolutions_through_a_relu(read, tmp_path):
    torch.manual_seed(0)
    model, x = Twice(read).eval(), torch.randn(1, 16, 12, 20)
    for name in ("first", "second"):
        layer = QuantizedConv2d.from_conv(getattr(model, name))
        layer.input_scale = 0.03
        setattr(model, name, layer)
    with torch.inference_mode():
        wanted = model(x).numpy()
    found = sites.with_sites(model)
    graph = trace.as_onnx(torch.export.export(found.model, (x,)), 21)
    lowering.lower(graph, found.layers)
    graph.graph.inputs[0].name = "x"
    pairs = Counter(node.op_type for node in graph.graph)["QuantizeLinear"]
    assert pairs == (2 if read else 3)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert tensorrt.broken_rules(graph) == []
    plain = computed(graph, x, tmp_path, as_written=True)
    assert np.abs(plain - wanted).max() <= 0.05 * wanted.std()
    y, kinds = fused(graph, x, tmp_path)
    assert ("QLinearConv" in kinds) == (not read)
    assert np.abs(y - wanted).max() <= 0.05 * wanted.std()


def fused(model: ir.Model, x: torch.Tensor, folder: object) -> tuple[np.ndarray, set[str]]:
    """What ONNX Runtime computes, and the kinds of its own nodes."""
    path = f"{folder}/fused.onnx"
    ir.save(model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = f"{folder}/optimized.onnx"
    y = ort.InferenceSession(path, options).run(None, {"x": x.numpy()})[0]
    return y, {node.op_type for node in onnx.load(f"{folder}/optimized.onnx").graph.node}


@pytest.mark.parametrize("name", by_default(CONVOLUTIONS, "two parts", "stride 2"))
def test_convolutions_without_a_range_have_our_weights(name, tmp_path):
    layer = QuantizedConv2d.from_conv(CONVOLUTIONS[name])
    x = torch.randn(2, layer.shape.inputs, 6, 8)
    with torch.inference_mode():
        ours = layer(x)
        model, form = lowered(layer, x)
        y = computed(model, x, tmp_path, as_written=False)
    assert form == ("dynamic" if name == "transposed" else "weights")
    assert y.shape == tuple(ours.shape)
    # Ours codes activations to INT8; the graph does not.
    assert np.abs(y - ours.numpy()).max() < 0.05 * ours.std().item()
    float_weights = CONVOLUTIONS[name](x).detach()
    assert np.abs(y - float_weights.numpy()).max() < 0.05 * ours.std().item()


def test_layers_without_an_integer_operator_have_float_activations():
    wide = vq.QuantizationConfig(
        "wide", "int8_per_channel_sym", quantize_activations=True, wide_layers=("*",)
    )
    for config in (wide, vq.get_config("INT4_Group_64_A8")):
        layer = QuantizedLinear.from_linear(nn.Linear(64, 32), config, name="any")
        assert lowering.form_of(layer) == "weights"
