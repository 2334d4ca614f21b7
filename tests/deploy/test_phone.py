# SPDX-License-Identifier: Apache-2.0
"""ExecuTorch's file: layers in operators that XNNPACK knows, and the whole format where it is."""

import importlib.util
from dataclasses import replace

import pytest
import torch
import toy
from torch import nn
from torch.nn import functional as F

import vggtquant as vq
from vggtquant import ops
from vggtquant.conv import QuantizedConv2d
from vggtquant.deploy import phone
from vggtquant.linear import QuantizedLinear

SCHEME = "INT8_Per_Channel_Symmetric_A8"


def test_a_layer_of_int8_codes():
    """Tokens are coded in another way than ours; the weights are the same."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    factors = ops.Inputs(torch.rand(64) + 0.5, torch.randn(64), 0.0)
    config = vq.get_config(SCHEME)
    q = vq.quantize(linear.weight.detach(), config)
    layer = QuantizedLinear(q, linear.bias, config, "a layer", factors)
    x = torch.randn(2, 7, 64)
    exact = F.linear(x * factors.weight + factors.bias, layer.weight, layer.bias)
    with torch.inference_mode():
        ours, its = layer(x), phone.stand_in("a layer", layer)(x)
    error = (ours - exact).abs().max()
    assert 0 < (its - exact).abs().max() < 1.5 * error


@pytest.mark.parametrize("scheme", ["INT4_Group_32_A8", "INT4_Group_128_A8"])
def test_a_layer_of_int4_codes(scheme):
    """The same weights, in groups of at most the inputs; XNNPACK alone rounds the scales."""
    torch.manual_seed(0)
    layer = QuantizedLinear.from_linear(nn.Linear(96, 32), scheme)
    if layer.spec.group_size > 96:
        layer = QuantizedLinear.from_linear(nn.Linear(64, 32), scheme)
    stand_in = phone.stand_in("a layer", layer)
    assert isinstance(stand_in, phone.TokenLinear) and phone.form_of(layer) == "dynamic"
    x = torch.randn(2, 7, layer.in_features)
    exact = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        ours, its = layer(x), stand_in(x)
    error = (ours - exact).abs().max()
    assert 0 < (its - exact).abs().max() < 1.5 * error


@pytest.mark.parametrize(
    ("scheme", "inputs"),
    [
        ("INT4_Group_32", 64),
        ("INT8_Per_Channel_Symmetric", 64),
        ("INT4_Group_64_A8", 96),  # a shorter last group
        ("INT4_Group_64_A8", 40),  # a group that is no multiple of 32
    ],
)
def test_other_layers_are_decoded(scheme, inputs):
    torch.manual_seed(0)
    layer = QuantizedLinear.from_linear(nn.Linear(inputs, 32), scheme)
    x = torch.randn(2, 7, inputs)
    assert phone.form_of(layer) == "weights"
    with torch.inference_mode():
        its = phone.stand_in("a layer", layer)(x)
        torch.testing.assert_close(its, F.linear(x, layer.weight, layer.bias))


def test_convolutions_are_decoded():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 40, 3, padding=1)
    layer = QuantizedConv2d.from_conv(conv)
    x = torch.randn(2, 16, 6, 8)
    layer.input_scale = 0.03  # a range is not used
    with torch.inference_mode():
        its, exact = phone.stand_in("a layer", layer)(x), conv(x)
    assert (its - exact).abs().max() < 0.05 * exact.std()


def test_weights_with_a_zero_point_are_refused():
    layer = QuantizedLinear.from_linear(nn.Linear(64, 32), "INT8_Per_Tensor_Asymmetric_A8")
    with pytest.raises(vq.UserError, match="a layer has INT8 weights with a zero point"):
        phone.stand_in("a layer", layer)


def test_attention_is_torchs():
    q, k, v = (torch.randn(2, 3, n, 8) for n in (5, 7, 7))
    torch.testing.assert_close(phone.attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    with pytest.raises(vq.UserError, match="mask"):
        phone.attention(q, k, v, is_causal=True)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "executorch" else found(name)
    )
    with pytest.raises(vq.UserError, match=r"export needs executorch; .*vggtquant\[phone\]"):
        vq.export("builtin:tiny", tmp_path, size=(28, 42), format="executorch")


class Small(nn.Module):
    """A patch convolution, attention over the pictures' patches, Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 14, 14)
        self.qkv, self.fc = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)

    def forward(self, images):
        x = self.patch(images[0]).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return {"depth": (x + self.fc(y)).mean(-1)[None]}


@pytest.mark.slow
def test_the_file_runs_in_xnnpack(tmp_path):
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    torch.manual_seed(0)
    config = replace(vq.get_config(SCHEME), skip_first_last=False)
    model, _ = vq.quantize_model(Small().eval(), config)
    result = vq.export(model, tmp_path, size=(28, 42), frames=2, format="executorch")
    assert result.agrees and result.path.name == "model.pte"
    assert result.nodes["XNNPACK INT8 linear"] == 2 == result.forms["dynamic"]
    assert not [name for name in result.nodes if name.startswith("quantize")]  # all in XNNPACK
    assert result.nbytes == result.path.stat().st_size


@pytest.mark.slow
def test_a_file_of_int4_weights_holds_them_in_four_bits(tmp_path):
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    torch.manual_seed(0)
    sizes = []
    for scheme in (SCHEME, "INT4_Group_32_A8"):
        model = Small().eval()
        model.fc = nn.Sequential(nn.Linear(32, 2048), nn.GELU(), nn.Linear(2048, 32))
        model, _ = vq.quantize_model(model, replace(vq.get_config(scheme), skip_first_last=False))
        result = vq.export(model, tmp_path, size=(28, 42), frames=2, format="executorch")
        assert result.agrees and result.forms["dynamic"] == 3
        sizes.append(result.nbytes)
    assert result.nodes["XNNPACK INT4 linear"] == 3
    weights = 32 * 96 + 2 * 32 * 2048
    assert sizes[0] - sizes[1] > 0.4 * weights  # of a byte each, less scales of two


@pytest.mark.slow
def test_a_file_that_xnnpack_does_not_load_is_told(tmp_path):
    """The toy rearranges its pixels by a tensor of seven axes; the file stays."""
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    with pytest.raises(vq.UserError, match="ExecuTorch does not load .*six axes") as error:
        vq.export(toy.build(), tmp_path, size=(28, 42), format="executorch")
    assert "\n" not in str(error.value) and (tmp_path / "model.pte").exists()
