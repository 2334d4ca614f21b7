# SPDX-License-Identifier: Apache-2.0
"""FP8_Per_Channel: codes and products against float64 arithmetic on the same codes, files, what is
refused. On a GPU, or a pretended one: tests/test_cuda_gpu.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vggtquant as vq
from vggtquant import gpu_linear, ops
from vggtquant.ops import float8

pytestmark = pytest.mark.skipif(
    float8.missing(torch.device("cpu")) is not None,
    reason=str(float8.missing(torch.device("cpu"))),
)

NAME = "FP8_Per_Channel"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def layer_of(k: int, n: int, bias: bool = True) -> tuple[nn.Linear, vq.QuantizedLinear]:
    torch.manual_seed(k * n)
    plain = nn.Linear(k, n, bias=bias).requires_grad_(False)
    return plain, vq.QuantizedLinear.from_linear(plain, NAME)


def nearest_float8(x: np.ndarray) -> np.ndarray:
    """x rounded to the nearest e4m3fn number, half to even, saturated: by the format alone."""
    numbers = np.array(
        [m / 8 * 2.0**-6 for m in range(8)]
        + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]
    )
    assert numbers[-1] == 448 and len(numbers) == 127
    size = np.minimum(np.abs(x), 448)
    above = np.clip(np.searchsorted(numbers, size), 1, len(numbers) - 1)
    low, high = numbers[above - 1], numbers[above]
    up = (size - low > high - size) | ((size - low == high - size) & ((above - 1) % 2 == 1))
    return np.copysign(np.where(up, high, low), x)


def coded(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows as float8 numbers and their scales, by docs/conventions.md."""
    rows = x.float().numpy()
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scale = np.maximum(largest / np.float32(448), np.float32(2.0**-126))
    return nearest_float8((rows / scale).astype(np.float64)), scale.astype(np.float64)


@pytest.mark.parametrize("shape", [(3, 70), (1, 1), (17, 33), (0, 4), (2, 3, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_the_nearest_numbers_of_the_format(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    q = vq.quantize(x, NAME)
    assert q.packed.nbytes == x.numel() and q.packed.dtype == np.uint8 and q.nbytes <= 5 * x.numel()
    if not x.numel():
        return
    number, scale = coded(x.reshape(len(x), -1))
    held = torch.from_numpy(q.packed).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(held, number)
    assert np.array_equal(q.stored_scale, scale[:, 0].astype(np.float32))
    back = q.dequantize()
    assert back.dtype == dtype and back.shape == x.shape
    assert (back.float() - x.float()).abs().max() <= 2.0**-4 * x.float().abs().max()
    array = vq.quantize(x.float().numpy(), NAME)
    assert isinstance(array.dequantize(), np.ndarray) and array.codes.shape == x.shape


def test_a_row_of_zeros_and_hard_values() -> None:
    q = vq.quantize(torch.tensor([[0.0, -0.0, 0.0], [1e-30, 0.0, -1e-30]]), NAME)
    assert q.scale.tolist()[0] == 2.0**-126 and q.dequantize()[0].tolist() == [0, 0, 0]
    assert torch.allclose(q.dequantize()[1], torch.tensor([1e-30, 0, -1e-30]), rtol=1e-6)
    with pytest.raises(vq.UserError, match="2 values are NaN or infinite"):
        vq.quantize(torch.tensor([[float("nan"), float("inf")]]), NAME)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 64, 64), (3, 130, 65), (33, 37, 21), (5, 16, 1), (2, 1, 3)])
def test_a_product_is_that_of_the_codes(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, k, n = size
    for bias in (True, False):
        plain, layer = layer_of(k, n, bias)
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).to(dtype)
        y = layer(x)
        assert y.dtype == dtype and layer.last_kernel == "float8 x float8, torch"
        tokens, token_scale = coded(x)
        weight, weight_scale = coded(plain.weight)
        want = (tokens @ weight.T) * token_scale * weight_scale.T
        terms = (np.abs(tokens) @ np.abs(weight).T) * token_scale * weight_scale.T
        added = plain.bias.double().numpy() if bias else np.zeros(n)
        want, terms = want + added, terms + np.abs(added)
        rounding = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
        limit = (k + 4) * 2.0**-24 * terms + rounding * (np.abs(want) + np.abs(added))
        assert (np.abs(y.double().numpy() - want) <= limit + 1e-30).all()


def test_weights_are_held_as_bytes_and_nothing_else() -> None:
    _, layer = layer_of(1024, 96)
    assert layer.packed.dtype == torch.uint8 and layer.packed.numel() == 96 * (1024 + 4)
    assert sum(x.nbytes for x in layer.buffers()) == layer.packed.numel()
    q = layer.qtensor()
    assert torch.equal(layer.weight.clone(), q.dequantize())
    assert ops.unpack(layer.packed, layer._about)[0].tobytes() == q.packed.tobytes()


def test_what_is_not_finite_gives_rows_of_nan_and_no_tokens_none() -> None:
    _, layer = layer_of(40, 24)
    x = torch.randn(4, 40)
    x[1, 3], x[2, 0] = float("nan"), float("-inf")
    assert layer(x).isnan().all(dim=1).tolist() == [False, True, True, False]
    assert layer(x[:0]).shape == (0, 24) and layer(x.reshape(2, 2, 40)).shape == (2, 2, 24)


def test_what_stands_around_a_linear_in_a_block() -> None:
    _, layer = layer_of(64, 64)
    x, norm = torch.randn(2, 5, 64), ops.Norm(torch.rand(64), torch.rand(64), 1e-6)
    scale = torch.rand(64)
    got = layer.fused(x, norm=norm, gelu=True, layer_scale=scale, residual=x)
    inner = layer(nn.functional.layer_norm(x, (64,), norm.weight, norm.bias, norm.eps))
    assert torch.equal(got, x + nn.functional.gelu(inner) * scale)


def test_gradients_pass_straight_through() -> None:
    _, layer = layer_of(40, 24)
    x = torch.randn(3, 40, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.qtensor().dequantize().sum(0).expand(3, 40), atol=1e-5)


def test_a_model_is_swapped_saved_and_loaded(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 72), nn.Linear(72, 64)).eval()

    model, report = vq.quantize_model(net(), NAME)
    (row,) = report.quantized
    assert row.scheme == NAME and row.sqnr_db is not None and 28 < row.sqnr_db < 36
    vq.save(model, tmp_path / "a.safetensors")
    loaded = vq.load(tmp_path / "a.safetensors", model=net)
    x = torch.randn(5, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
    loaded = net()
    torch.save(net().state_dict(), tmp_path / "w.pt")
    done = vq.quantize_file(tmp_path / "w.pt", NAME, tmp_path / "b.safetensors")
    assert done.document.layers[0].spec.is_float8
    again, _ = vq.quantize_model(net(), NAME)
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))


def test_it_compiles() -> None:
    _, layer = layer_of(64, 32)
    x = torch.randn(3, 64)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"activation_bits": 16}, "activation_bits is 16; FP8 rounds to nearest and takes 8 alone"),
        ({"calibration": "gptq"}, "calibration is 'gptq'; FP8 rounds to nearest"),
        ({"activation_range": "mse"}, "activation_range is 'mse'; FP8"),
        ({"bits": 4}, "fp8_per_channel has bits=8, not 4"),
        ({"symmetric": False}, "fp8_per_channel has symmetric=True"),
    ],
)
def test_a_config_that_contradicts_itself(fields: dict[str, object], words: str) -> None:
    with pytest.raises(vq.UserError, match=words):
        replace(vq.CONFIGS[NAME], **fields)


def test_what_fp8_does_not_serve_is_refused_in_a_line(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    with pytest.raises(vq.UserError, match="layer 1: FP8 rounds to nearest, without calibration"):
        vq.calibrate(net, torch.rand(2, 64), config=NAME, method="gptq")
    with pytest.raises(vq.UserError, match="float8_e4m3fn is for bits=8, symmetric"):
        vq.QuantizationSpec(4, number="float8_e4m3fn")
    _, layer = layer_of(64, 64)
    with pytest.raises(vq.UserError, match="FP8_Per_Channel codes each token as it comes"):
        layer._take_inputs(ops.Inputs(None, None, 0.5))


def test_a_device_without_the_product_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _, layer = layer_of(64, 64)

    def none(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("no FP8\nhere")

    monkeypatch.setattr(torch, "_scaled_mm", none)
    float8.missing.cache_clear()
    try:
        with pytest.raises(vq.UserError, match=r"has no FP8 product on cpu \(no FP8 here\)"):
            layer(torch.randn(1, 64))
        net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)).eval()
        with pytest.raises(vq.UserError, match="no FP8 product on cpu"):
            vq.quantize_model(net, NAME)
        assert isinstance(net[1], nn.Linear)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
        with pytest.raises(vq.UserError, match=r"capability 8\.9 or later; cuda:0 has 8\.6"):
            float8.check(torch.device("cuda:0"))
    finally:
        float8.missing.cache_clear()


def test_its_only_engine_on_a_gpu_is_torch_s() -> None:
    _, layer = layer_of(64, 64)
    call = gpu_linear.Call(
        layer.packed, layer._about, "float8", torch.randn(3, 64), None, torch.float32, False
    )
    assert [engine.name for engine in gpu_linear.serving(call)] == ["scaled_mm"]
    assert call.kind.startswith("float8 float8 64 x 64")
    for name in gpu_linear.NAMES:  # a forced one that does not serve is passed over
        with gpu_linear.engines.use(name):
            assert gpu_linear.chosen(call).name == "scaled_mm"
