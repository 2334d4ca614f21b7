# SPDX-License-Identifier: Apache-2.0
"""Convolutions against tests/reference.py, bit for bit; the dense head against the original's."""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from everywhere import THREADS, using_isa, using_threads
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from toy_dense import DPTHead, Model

import vggtquant as vq
from vggtquant import dense, ops
from vggtquant.conv import QuantizedConv2d, product_shape, reason_against
from vggtquant.errors import UserError

CASES = [  # pictures, height, width, in, out, kernel, stride, padding, relu
    (1, 1, 1, 8, 4, (3, 3), (1, 1), (1, 1), True),
    (1, 5, 7, 3, 5, (3, 3), (1, 1), (1, 1), False),
    (2, 13, 19, 64, 64, (3, 3), (1, 1), (1, 1), True),
    (2, 9, 40, 21, 70, (3, 3), (2, 2), (1, 1), False),
    (1, 40, 17, 24, 65, (1, 1), (1, 1), (0, 0), True),
    (1, 6, 6, 4, 3, (5, 3), (1, 2), (2, 0), False),
    (3, 37, 2, 10, 12, (2, 2), (2, 2), (0, 0), True),
]


def made(case: Any, rng: np.random.Generator) -> tuple[Any, ...]:
    """Pictures, codes, scales, bias, the packed weight and its window."""
    n, height, width, inputs, outputs, kernel, stride, padding, _ = case
    x = rng.standard_normal((n, height, width, inputs), np.float32)
    codes = rng.integers(-127, 128, (outputs, inputs, *kernel))
    scale = rng.uniform(0.001, 0.1, outputs).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    padded = np.zeros((outputs, *kernel, ops.conv_channels(inputs)), np.int8)
    padded[..., :inputs] = codes.transpose(0, 2, 3, 1)
    rows = padded.reshape(outputs, -1)
    about = ops.Packed(8, "per_row", *rows.shape, rows.shape[1], False)
    packed = ops.pack(about, rows.view(np.uint8), scale, None, None)
    return x, codes, scale, bias, packed, about, ops.Window(kernel, stride, padding)


def summed(codes: np.ndarray, relu: bool) -> torch.Tensor | None:
    return torch.from_numpy(codes.sum((1, 2, 3)).astype(np.int32)) if relu else None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_bits(case: Any, rng: np.random.Generator) -> None:
    x, codes, scale, bias, packed, about, window = made(case, rng)
    relu = case[-1]
    wanted = reference.conv_int(x, codes, scale, bias, window.stride, window.padding, relu)
    flat = wanted.reshape(len(x), -1)
    for isa, threads in itertools.product(vq.isas(), THREADS):
        with using_isa(isa), using_threads(threads):
            y, most = ops.conv2d(
                packed, about, window, torch.from_numpy(x), torch.from_numpy(bias), torch.float32,
                relu_sums=summed(codes, relu),
            )  # fmt: skip
        where = f"{isa}, {threads} threads"
        np.testing.assert_array_equal(y.numpy(), wanted, where)
        np.testing.assert_array_equal(most[:, 0].numpy(), np.abs(flat).max(1), where)
        np.testing.assert_array_equal(most[:, 1].numpy(), np.maximum(flat, 0).max(1), where)


def test_all_sizes(isa: str, rng: np.random.Generator) -> None:
    for height in (1, 2, 3, 16, 33, 40):
        for width in (1, 2, 5, 6, 7, 13, 32, 40):
            case = (1, height, width, 9, 66, (3, 3), (1, 1), (1, 1), bool(width % 2))
            x, codes, scale, bias, packed, about, window = made(case, rng)
            wanted = reference.conv_int(x, codes, scale, bias, (1, 1), (1, 1), case[-1])
            y, _ = ops.conv2d(
                packed, about, window, torch.from_numpy(x), torch.from_numpy(bias), torch.float32,
                relu_sums=summed(codes, case[-1]),
            )  # fmt: skip
            np.testing.assert_array_equal(y.numpy(), wanted, err_msg=f"{height} x {width}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_follows_the_product(isa: str, dtype: torch.dtype, rng: np.random.Generator) -> None:
    """Interpolation, embedding, ReLU before and after the residual, and the last product."""
    case = (2, 5, 6, 16, 24, (3, 3), (1, 1), (1, 1), False)
    x, codes, scale, bias, packed, about, window = made(case, rng)
    size, source = (11, 9), torch.from_numpy(x).to(dtype)
    columns, rows = (rng.uniform(-0.1, 0.1, (n, 8)).astype(np.float32) for n in (9, 11))
    given = reference.resize(source.float().numpy(), size)
    given[..., :8] += columns
    given[..., 8:] += rows[:, None]
    tables = ops.Tables(torch.from_numpy(columns), torch.from_numpy(rows))
    bound = np.abs(source.float().numpy()).reshape(2, -1).max(1) + np.float32(
        max(np.abs(columns).max(), np.abs(rows).max())
    )
    # the scale comes of the bound, which a value out of the way makes the reference's largest
    wide = np.concatenate([given, np.zeros((2, 4, 9, 16), np.float32)], 1)
    wide[:, -1, -1, -1] = bound
    product = reference.conv_int(wide, codes, scale, bias, (1, 1), (1, 1), False)[:, :10]
    residual = torch.from_numpy(rng.standard_normal((2, 11, 9, 24), np.float32)).to(dtype)
    total = np.maximum(np.maximum(product, 0) + residual.float().numpy()[:, :10], 0)
    y, most = ops.conv2d(
        packed, about, window, source, torch.from_numpy(bias), dtype, size=size, embedding=tables,
        residual=residual, relu=True, relu_sum=True,
    )  # fmt: skip
    assert torch.equal(y[:, :10], torch.from_numpy(total).to(dtype))
    assert torch.equal(most[:, 0], most[:, 1])

    weight = torch.zeros(3, 64)
    weight[:, :24] = torch.from_numpy(rng.standard_normal((3, 24), np.float32))
    last = ops.Projection(weight, torch.ones(3))
    z, _ = ops.conv2d(
        packed, about, window, source, torch.from_numpy(bias), torch.float32, size=size,
        embedding=tables, relu=True, projection=last,
    )  # fmt: skip
    wanted = reference.project(np.maximum(product, 0), weight.numpy(), last.bias.numpy())
    np.testing.assert_array_equal(z[:, :10].numpy(), wanted)


def test_pictures_without_negative_values_have_unsigned_codes() -> None:
    conv = nn.Conv2d(16, 12, 3, padding=1)
    layer = QuantizedConv2d.from_conv(conv)
    x = torch.randn(3, 16, 9, 9)
    x[1] = x[1].relu()
    y = layer(x)
    inside = x.permute(0, 2, 3, 1)
    for i, relu in enumerate((False, True, False)):
        alone, _ = layer.pictures(inside[i : i + 1], torch.float32, relu_x=relu)
        assert torch.equal(y[i], alone[0].permute(2, 0, 1))
    errors = [(y[i] - conv(x[i : i + 1])[0]).norm() for i in range(3)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("embedded", [False, True])
def test_a_static_range_holds_for_all_pictures(
    isa: str, embedded: bool, rng: np.random.Generator
) -> None:
    """Values beyond it become its ends; codes have a sign, whatever x has."""
    case = (3, 5, 6, 16, 70, (3, 3), (1, 1), (1, 1), False)
    x, codes, scale, bias, packed, about, window = made(case, rng)
    x[1] = np.abs(x[1])
    layer = QuantizedConv2d.from_conv(nn.Conv2d(16, 70, 3, padding=1))
    layer.packed, layer.bias = packed, nn.Parameter(torch.from_numpy(bias))
    layer.input_scale = 0.01
    given, rest = x, {}
    if embedded:
        columns, rows = (rng.uniform(-0.1, 0.1, (n, 8)).astype(np.float32) for n in (9, 11))
        given = reference.resize(x, (11, 9))
        given[..., :8] += columns
        given[..., 8:] += rows[:, None]
        tables = ops.Tables(torch.from_numpy(columns), torch.from_numpy(rows))
        rest = {"size": (11, 9), "embedding": tables, "largest": torch.ones(3, 2)}
    wanted = reference.conv_int(
        given, codes, scale, bias, (1, 1), (1, 1), False, np.float32(layer.input_scale)
    )
    y, _ = layer.pictures(torch.from_numpy(x), torch.float32, **rest)
    np.testing.assert_array_equal(y.detach().numpy(), wanted)
    if not embedded:
        found = layer(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_array_equal(found.detach().numpy(), wanted)


def test_a_static_range_of_a_product_of_pixels() -> None:
    for conv in (nn.ConvTranspose2d(16, 9, 2, 2), nn.Conv2d(16, 9, 1)):
        layer = QuantizedConv2d.from_conv(conv)
        x = torch.randn(2, 16, 5, 7)
        x[0] *= 0.01
        dynamic = layer(x)
        layer.input_scale = x.abs().max().item() / (2 ** (layer.activation_bits - 1) - 1)
        y = layer(x)
        again = copy.deepcopy(layer)
        again.load_state_dict(layer.state_dict())
        assert torch.equal(again(x), y)
        errors = [(z - conv(x)).flatten(1).norm(dim=1) for z in (dynamic, y)]
        assert (errors[1][0] > 2 * errors[0][0]) == (layer.activation_bits == 8)


def test_a_dense_head_with_static_ranges() -> None:
    """As one module and as its parts; a bound of the embedding does not widen the range."""
    torch.manual_seed(0)
    model, given = Model().eval(), tokens_of(2, (5, 7))
    whole, _ = vq.quantize_model(copy.deepcopy(model), "INT8_Fast")
    layers = [m for m in whole.modules() if isinstance(m, QuantizedConv2d)]
    seen: dict[QuantizedConv2d, float] = {}
    head = whole.depth_head
    whole.depth_head = head.original

    def look(layer: Any, inputs: Any) -> None:
        seen[layer] = max(seen.get(layer, 0), float(inputs[0].abs().max()))

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    with torch.inference_mode():
        whole(*given)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.input_scale = seen[layer] / (127 if layer.activation_bits == 8 else 32512)
        parts = whole(*given)
        whole.depth_head = head
        found, wanted = whole(*given), model(*given)
    for a, b, c in zip(parts, found, wanted, strict=True):
        assert (a.log() - b.log()).norm() / c.log().norm() < 0.01
        assert 0 < (b.log() - c.log()).norm() / c.log().norm() < 0.05


def test_numbers_at_the_edges(isa: str) -> None:
    layer = QuantizedConv2d.from_conv(nn.Conv2d(8, 4, 3, padding=1))
    x = torch.randn(4, 8, 5, 5)
    x[1, 3, 2, 2] = torch.nan
    x[2, 0, 0, 0] = -torch.inf
    x[3] = 0
    y = layer(x)
    assert y[0].isfinite().all() and y[1].isnan().all() and y[2].isnan().all()
    assert layer.bias is not None
    assert torch.equal(y[3], layer.bias.detach()[:, None, None].expand(4, 5, 5))
    relu, most = layer.pictures(x.permute(0, 2, 3, 1), torch.float32, relu_x=True)
    assert relu[1].isnan().all() and relu[2].isfinite().all()
    assert most[1].isnan().all()


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (14, 5)])
def test_resize(isa: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 7, 5, 19), np.float32)
    added = torch.from_numpy(rng.standard_normal((2, *size, 19), np.float32))
    y = ops.resize(torch.from_numpy(x), size, added)
    np.testing.assert_array_equal(y.numpy(), reference.resize(x, size) + added.numpy())
    torches = F.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(y - added, torches.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    half = ops.resize(torch.from_numpy(x).bfloat16(), size, added.bfloat16())
    torch.testing.assert_close(half.float(), y, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 12, 3, padding=1),
        nn.Conv2d(16, 12, 3, 2, 1, bias=False),
        nn.Conv2d(24, 7, 1),
        nn.ConvTranspose2d(16, 9, 2, 2),
        nn.ConvTranspose2d(8, 5, (4, 3), (4, 3), bias=False),
    ],
    ids=str,
)
def test_quantized_conv2d(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    layer = QuantizedConv2d.from_conv(conv, name="one")
    x = torch.randn(2, conv.in_channels, 6, 9)
    wanted = conv(x)
    y = layer(x)
    assert y.shape == wanted.shape and (y - wanted).norm() / wanted.norm() < 0.02
    assert product_shape(conv) == (layer.out_features, layer.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(x), y)
    other = QuantizedConv2d.from_conv(copy.deepcopy(conv))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    with pytest.raises(UserError, match="is wanted"):
        layer(x[0])


@pytest.mark.parametrize(
    "conv, reason",
    [
        (nn.Conv2d(16, 16, 3, groups=2), "groups"),
        (nn.Conv2d(16, 16, 3, dilation=2), "dilation"),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Conv2d(16, 16, 3, padding="same"), "same"),
        (nn.Conv2d(3, 16, 3), "3 input channels"),
        (nn.ConvTranspose2d(16, 16, 3, 2), "kernel is not its stride"),
        (nn.Conv1d(16, 16, 3), "Conv1d"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_stays_in_float(conv: nn.Module, reason: str) -> None:
    assert reason in (reason_against(conv) or "")
    with pytest.raises(UserError, match=reason):
        QuantizedConv2d.from_conv(conv, name="c")  # type: ignore[arg-type]


def tokens_of(pictures: int, size: tuple[int, int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    shape = (1, pictures, 1 + size[0] * size[1], 24)
    return [torch.randn(shape) for _ in range(4)], torch.zeros(
        1, pictures, 3, *(4 * n for n in size)
    )


def test_the_dense_head_is_the_original(isa: str) -> None:
    torch.manual_seed(0)
    model = Model().eval()
    whole = copy.deepcopy(model)
    whole, report = vq.quantize_model(whole, "INT8_Fast", keep_originals=True)
    assert isinstance(whole.depth_head, dense.QuantizedDPTHead)
    rows = {row.name: row for row in report.layers if row.kind == "conv"}
    last = rows["depth_head.scratch.output_conv2.2"]
    assert last.skipped == "the last convolution of its head"
    kept = {name: row.skipped for name, row in rows.items() if row.skipped and row is not last}
    assert list(kept) == [f"depth_head.projects.{i}" for i in range(4)]
    assert set(kept.values()) == {"a projection of tokens, which INT8 would cost most"}
    assert len(rows) == 32
    given = tokens_of(3, (5, 7))
    with torch.inference_mode():
        wanted, found = model(*given), whole(*given)
        for a, b in zip(wanted, found, strict=True):
            assert a.shape == b.shape
            assert (a.log() - b.log()).norm() / a.log().norm() < 0.05
        calls: list[str] = []
        for name, row in rows.items():
            if row.skipped is None:
                layer = whole.get_submodule(name)
                layer.register_forward_hook(lambda m, x, y: calls.append(m.name))
        whole(*given)
        assert set(calls) == {name for name, row in rows.items() if row.skipped is None}
        # any number of pictures at a time gives the same bits
        for chunk in (1, 2, 8, None):
            again = whole.depth_head([whole.trunk(t) for t in given[0]], given[1], 1, chunk)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        vq.restore_model(whole, report)
        again = whole(*given)
        assert all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True))
    assert type(whole.depth_head) is DPTHead


def test_heads_that_are_not_it_keep_their_own_forward() -> None:
    model, report = vq.quantize_model(Model(inplace=False).eval(), "INT8_Fast")
    assert type(model.depth_head) is DPTHead
    assert isinstance(model.depth_head.scratch.output_conv1, QuantizedConv2d)
    assert "depth_head: its units' ReLU is not in place" in report.notes

    other = Model().eval()
    other.depth_head.down_ratio = 2  # which this forward does not look at
    other, report = vq.quantize_model(other, "INT8_Fast")
    assert type(other.depth_head) is DPTHead
    assert any("its answer to random tokens differs" in note for note in report.notes)


@pytest.mark.parametrize("outputs", [4, 40])
def test_default_devices_do_not_reach_into_a_convolution(outputs: int) -> None:
    conv = nn.Conv2d(16, outputs, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 16, 5, 7)
    want = QuantizedConv2d.from_conv(conv)(x)
    with torch.device("meta"):
        assert torch.equal(QuantizedConv2d.from_conv(conv)(x), want)


def test_default_devices_do_not_reach_into_a_dense_head() -> None:
    model, given = Model().eval(), tokens_of(2, (3, 4))
    again = copy.deepcopy(model)
    vq.quantize_model(model, "INT8_Fast")
    with torch.inference_mode():
        want = model(*given)
        with torch.device("meta"):
            vq.quantize_model(again, "INT8_Fast")
            assert isinstance(again.depth_head, dense.QuantizedDPTHead)
            found = again(*given)
    assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))


def test_fake_tensors_leave_nothing_behind() -> None:
    """As when a forward's multiply-adds are counted before it."""
    model, _ = vq.quantize_model(Model().eval(), "INT8_Fast")
    tokens, images = tokens_of(1, (3, 4))
    with torch.inference_mode():
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, pytest.raises(Exception):  # noqa: B017
            model([fake.from_tensor(t) for t in tokens], fake.from_tensor(images))
        assert all(torch.isfinite(y).all() for y in model(tokens, images))


def test_a_file_may_hold_projections_in_int8_too() -> None:
    torch.manual_seed(2)
    model, _ = vq.quantize_model(Model().eval(), "INT8_Fast")
    head, given = model.depth_head, tokens_of(1, (3, 4))
    tokens = torch.randn(1, 12, 24)
    with torch.inference_mode():
        wanted = head._projected(1, tokens, (3, 4), 1.0)
        head.projects[1] = QuantizedConv2d.from_conv(head.projects[1])
        found = head._projected(1, tokens, (3, 4), 1.0)
        assert 0 < (wanted - found).norm() < 0.01 * wanted.norm()
        model(*given)


def test_patterns_hold_for_convolutions() -> None:
    model, report = vq.quantize_model(
        Model().eval(), "INT8_Fast", exclude=["trunk.1", "*.scratch.*"]
    )
    skipped = {row.name: row.skipped for row in report.layers}
    assert skipped["depth_head.scratch.output_conv1"] == "excluded"
    assert skipped["depth_head.resize_layers.0"] is None
    assert type(model.depth_head) is DPTHead


class Tracked(Model):
    """With the head that gives features to VGGT's tracker, which has no last convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = DPTHead()
        self.tracker.feature_only = True
        del self.tracker.scratch.output_conv2


def test_a_file_holds_a_head_of_features(tmp_path: Path) -> None:
    model, _ = vq.quantize_model(Tracked().eval(), "INT8_Fast")
    path = tmp_path / "tracked.safetensors"
    vq.save(model, path, float_dtype="float32")
    again = vq.load(path, model=Tracked)
    assert isinstance(again.depth_head, dense.QuantizedDPTHead)
    assert type(again.tracker) is type(model.tracker) is DPTHead
    assert isinstance(again.tracker.scratch.layer1_rn, QuantizedConv2d)


def test_a_file_holds_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, _ = vq.quantize_model(Model().eval(), "INT8_Fast")
    given = tokens_of(2, (3, 4))
    path = tmp_path / "dense.safetensors"
    vq.save(model, path, float_dtype="float32")
    again = vq.load(path, model=Model)
    assert isinstance(again.depth_head, dense.QuantizedDPTHead)
    with torch.inference_mode():
        for a, b in zip(model(*given), again(*given), strict=True):
            assert torch.equal(a, b)
