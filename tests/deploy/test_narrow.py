# SPDX-License-Identifier: Apache-2.0
"""Products in half precision: what is stored, what is cast, and what stays float32."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import torch
from test_lowering import Around, computed
from torch import nn

import vggtquant as vq
from vggtquant import ops
from vggtquant.deploy import lowering, narrow, sites, trace
from vggtquant.linear import QuantizedLinear


def graph_of(layer: nn.Module) -> ir.Model:
    found = sites.with_sites(Around(layer))
    model = trace.as_onnx(torch.export.export(found.model, (torch.rand(3, 64),)), 21)
    lowering.lower(model, found.layers)
    model.graph.inputs[0].name = "x"
    return model


def stored(model: ir.Model) -> Counter[ir.DataType]:
    return Counter(x.dtype for x in model.graph.initializers.values())


@pytest.mark.parametrize("dtype", narrow.DTYPES)
def test_a_float_layer(dtype):
    model = graph_of(nn.Linear(64, 32))
    assert narrow.narrow(model, dtype) == 1
    kind = narrow.DTYPES[dtype]
    weights = [x for x in model.graph.initializers.values() if x.const_value.size == 64 * 32]
    assert [x.dtype for x in weights] == [kind]
    casts = [n.attributes["to"].as_int() for n in model.graph if n.op_type == "Cast"]
    assert sorted(casts) == sorted([int(kind), int(ir.DataType.FLOAT)])
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("scheme", ["INT8_Per_Channel_Symmetric", "INT4_Group_32"])
def test_decoded_weights_have_narrow_scales(scheme, tmp_path):
    torch.manual_seed(0)
    layer = QuantizedLinear.from_linear(nn.Linear(64, 32), scheme)
    model = graph_of(layer)
    assert narrow.narrow(model, "float16") == 1
    kinds = stored(model)
    assert kinds[ir.DataType.FLOAT16] == 1 and kinds[ir.DataType.FLOAT] == 1  # scales; the bias
    x = torch.randn(3, 64)
    y = computed(model, x, tmp_path, as_written=True)
    wanted = layer(x).detach().numpy()
    assert 0 < np.abs(y - wanted).max() < 5e-3 * wanted.std()


def test_integer_products_stay():
    config = vq.get_config("INT8_Per_Channel_Symmetric_A8")
    q = vq.quantize(nn.Linear(64, 32).weight.detach(), config)
    static = QuantizedLinear(q, None, config, "a layer", ops.Inputs(None, None, 0.05))
    dynamic = QuantizedLinear.from_linear(nn.Linear(64, 32), config)
    for layer in (static, dynamic):
        model = graph_of(layer)
        before = Counter(node.op_type for node in model.graph)
        assert narrow.narrow(model, "float16") == 0
        assert Counter(node.op_type for node in model.graph) == before
