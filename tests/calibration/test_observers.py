# SPDX-License-Identifier: Apache-2.0
"""Static activations and smoothing in the kernel: what a calibrated layer does with its input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from linears import F32, coded, layer_of, same
from torch import nn

import vggtquant as vq
from vggtquant import QuantizedLinear, ops, tiny
from vggtquant.calibration.observers import HEADROOM, Observer, special_rows
from vggtquant.conv import QuantizedConv2d

W8A8 = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
STATIC = replace(W8A8, name="static", activation_range="minmax")


def layer(inputs: ops.Inputs, bits: int = 8, scheme: str = "INT4_Group_32_A8") -> QuantizedLinear:
    generator = torch.Generator().manual_seed(1)
    config = replace(vq.CONFIGS[scheme], activation_bits=bits)
    q = vq.quantize(torch.randn(65, 96, generator=generator), config.layer_spec())
    return QuantizedLinear(q, nn.Parameter(torch.randn(65)), config, "", inputs).requires_grad_(
        False
    )


def tokens() -> torch.Tensor:
    return torch.randn(7, 96, generator=torch.Generator().manual_seed(2))


INPUTS = {
    "static": ops.Inputs(scale=0.01),
    "smoothed": ops.Inputs(torch.linspace(0.5, 2, 96)),
    "shifted": ops.Inputs(torch.linspace(0.5, 2, 96), torch.linspace(-1, 1, 96)),
    "all": ops.Inputs(torch.linspace(0.5, 2, 96), torch.linspace(-1, 1, 96), 0.01),
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", INPUTS)
def test_the_kernel_does_what_the_conventions_say(name: str, bits: int, isa: str) -> None:
    """Clipped values too: 0.01 * 127 is less than the largest of the tokens."""
    given, x = INPUTS[name], tokens()
    subject = layer(given, bits)
    rows = x.numpy()
    if given.weight is not None:
        weight = given.weight.numpy()
        rows = rows * weight
        if given.bias is not None:
            rows = reference.fma(x.numpy(), weight, given.bias.numpy())
    assert subject.bias is not None
    want = reference.linear_int(
        rows, coded(subject.qtensor()), subject.bias.numpy(), bits, F32(given.scale)
    )
    same(subject(x), want)


def test_a_static_scale_looks_at_no_value() -> None:
    """An infinity saturates and a NaN counts as zero: the rule of docs/conventions.md."""
    subject = layer(INPUTS["static"])
    x = tokens()
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    zero, large = x.clone(), x.clone()
    zero[0, 0] = 0
    large[1, 0] = 1e6
    assert torch.equal(subject(x)[0], subject(zero)[0])
    assert torch.equal(subject(x)[1], subject(large)[1])


def test_gradients_and_graphs_know_the_smoothing() -> None:
    subject, x = layer(INPUTS["shifted"]), tokens().requires_grad_()
    subject(x).sum().backward()
    weight = INPUTS["shifted"].weight
    assert weight is not None and x.grad is not None
    torch.testing.assert_close(x.grad[0], subject.weight.sum(0) * weight, rtol=1e-4, atol=1e-4)
    batched = torch.func.vmap(subject)(tokens()[:, None])
    assert torch.equal(batched[:, 0], subject(tokens()))


@pytest.mark.parametrize("name", INPUTS)
def test_state_dict_round_trip(name: str) -> None:
    subject, other = layer(INPUTS[name]), layer(ops.NO_INPUTS)
    assert other.load_state_dict(subject.state_dict()).missing_keys == []
    assert torch.equal(other(tokens()), subject(tokens()))
    subject.load_state_dict(layer(ops.NO_INPUTS).state_dict())
    assert not subject.input_tensors()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (ops.Inputs(torch.ones(5)), r"\(5,\) is given; \(96,\)"),
        (ops.Inputs(torch.full((96,), torch.nan)), "finite"),
        (ops.Inputs(None, torch.ones(96)), "without an input weight"),
        (ops.Inputs(scale=-1.0), "input scale is -1"),
        (ops.Inputs(scale=1e-40), "input scale is 1e-40"),
    ],
)
def test_impossible_inputs_are_refused(inputs: ops.Inputs, words: str) -> None:
    with pytest.raises(vq.UserError, match=words):
        layer(inputs)


def test_float_activations_have_no_inputs() -> None:
    with pytest.raises(vq.UserError, match="float activations"):
        layer(INPUTS["static"], scheme="INT4_Group_32")


# ---- observers -----------------------------------------------------------------------------------


def test_ranges() -> None:
    x = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    x[7, 3] = -50
    observer = Observer()
    observer.add(x, torch.zeros(1000, dtype=torch.bool))
    assert observer.scale("minmax", 127) == F32(HEADROOM * 50 / 127)
    exact = float(x.abs().reshape(-1).kthvalue(99_990).values)
    assert exact <= 127 * observer.scale("percentile", 127) <= 1.03 * exact

    def cost(limit: float) -> float:
        scale = limit / 127
        codes = (x / scale).round().clamp(-127, 127)
        return float((codes * scale - x).square().sum())

    least = min(cost(limit) for limit in torch.linspace(2, 50, 500).tolist())
    assert cost(127 * observer.scale("mse", 127)) < 1.02 * least < 0.7 * cost(50)


def test_special_tokens_are_never_clipped() -> None:
    x = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    x[7, 3] = -50
    special = torch.arange(1000) == 7
    observer = Observer()
    observer.add(x, special)
    assert all(observer.scale(kind, 127) == F32(50 / 127) for kind in ("percentile", "mse"))
    pictures = torch.zeros(2, 3, 3, 28, 42)
    found = special_rows(2 * 3 * 11, pictures, 5)
    assert (
        found is not None and found.sum() == 30 and found[:11].tolist() == [True] * 5 + [False] * 6
    )
    assert special_rows(6, pictures, 5) is None  # the camera head's tokens
    assert Observer().scale("minmax", 127) == 0  # nothing seen: dynamic


# ---- whole models --------------------------------------------------------------------------------


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 2, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def test_a_static_model_is_saved_bit_for_bit(images: torch.Tensor, tmp_path: Path) -> None:
    net, killed = tiny.build(), tiny.build()
    _, report = vq.calibrate(net, images, config=STATIC, folder=tmp_path / "work")
    layers = {n: m for n, m in net.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(layers) == len(report.quantized) == 50
    assert all(m.input_scale > 0 for m in layers.values())
    smoothed = {n for n, m in layers.items() if m.input_weight is not None}
    unfolded = ("mlp.fc2", "embed_pose", "poseLN_modulation.1", "pose_branch.fc1")
    assert smoothed == {n for n in layers if n.endswith(unfolded)}  # the others have a fold
    vq.save(net, tmp_path / "a.safetensors")
    loaded = vq.load(tmp_path / "a.safetensors")
    vq.calibrate(killed, images, config=STATIC, folder=tmp_path / "work")  # all from the folder
    with torch.inference_mode():
        wanted = net(images)
        for other in (loaded, killed):
            assert torch.equal(other(images)["depth"], wanted["depth"])
            assert torch.equal(other(images)["pose_enc"], wanted["pose_enc"])


def test_static_ranges_of_convolutions(images: torch.Tensor, tmp_path: Path) -> None:
    config = replace(vq.CONFIGS["INT8_Fast"], name="fast", activation_range="minmax")
    net, head = tiny.build(), tiny.build()
    with torch.inference_mode():
        wanted = head(images)["depth"]
    vq.calibrate(net, images, config=config, method="rtn")
    layers = {n: m for n, m in net.named_modules() if isinstance(m, QuantizedConv2d)}
    assert len(layers) == 18 and all(m.input_scale > 0 for m in layers.values())
    largest: dict[str, float] = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, given, name=name: largest.update({name: float(given[0].abs().max())})
        )
    with torch.inference_mode():
        found = net(images)
    for name, layer in layers.items():  # another one's codes move it a little
        limit = layer.input_scale * (127 if layer.activation_bits == 8 else 32512)
        assert largest[name] == pytest.approx(limit / HEADROOM, rel=0.05)
    assert 0 < (found["depth"] - wanted).norm() / wanted.norm() < 0.02
    vq.save(net, tmp_path / "a.safetensors", float_dtype="float32")
    loaded = vq.load(tmp_path / "a.safetensors")
    with torch.inference_mode():
        assert torch.equal(loaded(images)["depth"], found["depth"])


def test_fused_blocks_read_inputs_the_same_way(images: torch.Tensor) -> None:
    """A fused block rounds less between its products, so outputs are near, not equal."""
    outputs = []
    for fuse in (False, True):
        net = tiny.build()
        config = replace(STATIC, fuse=fuse, convolutions="int8" if fuse else "float")
        how: dict[str, Any] = {
            "method": "rtn",
            "keep_originals": True,
        }  # ranges are read all the same
        _, report = vq.calibrate(net, images, config=config, **how)
        assert bool(report.swapped) == fuse
        with torch.inference_mode():
            outputs.append(net(images)["pose_enc"])
        vq.restore_model(net, report)
        assert not any(isinstance(m, QuantizedLinear) for m in net.modules())
    assert float((outputs[0] - outputs[1]).norm() / outputs[0].norm()) < 0.01


def test_rounding_to_nearest_with_a_static_range_looks_at_pictures(images: torch.Tensor) -> None:
    net = tiny.build()
    _, report = vq.calibrate(net, images, config=STATIC, method="rtn")
    assert "4 pictures" in report.notes[0]
    assert all(m.input_scale > 0 for m in net.modules() if isinstance(m, QuantizedLinear))
    assert not any(m.input_weight is not None for m in net.modules() if hasattr(m, "input_weight"))


def test_quantize_model_has_no_pictures() -> None:
    with pytest.raises(vq.UserError, match="found by calibration"):
        vq.quantize_model(tiny.build(), STATIC)
    with pytest.raises(vq.UserError, match="quantize_activations is False"):
        replace(STATIC, quantize_activations=False)
    assert layer_of(vq.quantize(np.eye(8, dtype=F32), W8A8), None, True).input_scale == 0
