# SPDX-License-Identifier: Apache-2.0
"""QuantizedLinear in torch.compile's graphs: one op, no break, the same bits."""

import pytest
import torch
from everywhere import by_default
from torch import nn

import vggtquant as vq
from vggtquant import QuantizedLinear

SCHEMES = ["INT8_Per_Channel_Asymmetric_A8", "INT4_Group_32_A8", "INT8_Per_Tensor_Symmetric"]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 72), nn.GELU(), nn.Linear(72, 40)).requires_grad_(False)


@pytest.mark.parametrize("backend", by_default(["eager", "aot_eager"], "aot_eager"))
@pytest.mark.parametrize("scheme", by_default(SCHEMES, "INT4_Group_32_A8"))
def test_one_graph_with_the_same_bits(model: nn.Module, scheme: str, backend: str) -> None:
    for i in (0, 2):
        model[i] = QuantizedLinear.from_linear(model[i], scheme)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for shape in ((3, 40), (2, 5, 40), (7, 40)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(compiled(x), model(x))
            assert compiled(x.bfloat16()).dtype == torch.bfloat16


def test_autocast_is_followed(model: nn.Module) -> None:
    model[0] = QuantizedLinear.from_linear(model[0], "INT4_Group_32_A8")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 40)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(x), model(x))


def test_gradients(model: nn.Module) -> None:
    """As without compiling."""
    layer = QuantizedLinear.from_linear(nn.Linear(40, 8), "INT8_Per_Channel_Symmetric_A8")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for x in (torch.randn(3, 40), torch.randn(3, 40, requires_grad=True)):
        grads = []
        for call in (compiled, layer):
            layer.zero_grad()
            x.grad = None
            y = call(x)
            assert torch.equal(y, layer(x))
            y.square().sum().backward()
            grads.append((layer.bias.grad, x.grad))
        assert torch.equal(grads[0][0], grads[1][0])
        assert not x.requires_grad or torch.equal(grads[0][1], grads[1][1])


def test_the_op_keeps_its_promises() -> None:
    """torch's own checks of an op: schema, fake implementation, tracing."""
    layer = QuantizedLinear.from_linear(nn.Linear(40, 8), vq.CONFIGS["INT4_Group_32_A8"])
    x = torch.randn(3, 40)
    bias = layer.bias.detach()  # type: ignore[union-attr]
    for dtype in (torch.float32, torch.bfloat16):
        arguments = (x.to(dtype), layer.packed, bias, *layer._about, "int8", dtype)
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(torch.ops.vggtquant.linear.default, arguments, test_utils=tests)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_layer_tells_its_kernel(model: nn.Module, backend: str, whole: bool) -> None:
    """An evaluation of a compiled model asks its layers, which the graph never calls."""
    compiled: nn.Module = torch.compile(model, backend=backend)  # type: ignore[assignment]
    vq.quantize_model(compiled if whole else model, "INT8_Per_Channel_Symmetric_A8")
    layers = [m for m in compiled.modules() if isinstance(m, QuantizedLinear)]
    assert not layers  # the first and the last one
    config = vq.QuantizationConfig("all", "int8_per_channel_sym", skip_first_last=False)
    vq.quantize_model(compiled if whole else model, config)
    layers = [m for m in compiled.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 2
    for _ in range(2):
        for layer in layers:
            layer.last_kernel = None
        with torch.no_grad():
            compiled(torch.randn(3, 40))
        assert all(layer.last_kernel is not None for layer in layers)
