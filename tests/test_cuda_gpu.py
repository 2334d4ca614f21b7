# SPDX-License-Identifier: Apache-2.0
"""On a real GPU: `pytest -m gpu`. The same kernels that tests/test_cuda_shim.py runs on the CPU."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_blocks
import torch
from torch import nn

import vggtquant as vq
from vggtquant import engines, ops
from vggtquant.ops import float8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or ops.cuda_missing() is not None,
        reason=f"no GPU to test on: {ops.cuda_missing() or 'torch sees none'}",
    ),
]


@pytest.fixture(autouse=True)
def our_kernels() -> Iterator[None]:
    """Whichever engine is the fastest here."""
    with engines.use("fused"):
        yield


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FP8 = "FP8_Per_Channel"
PRETENDED = "VGGTQUANT_PRETENDED" in os.environ  # tests/pretended_gpu.py, which is slow
SHAPES = [(3, 70), (2, 5, 7), (33,), (1, 256), (0, 4)]
PRODUCTS = [(1, 64, 64), (3, 130, 65), (33, 136, 72)]  # tokens, inputs, outputs
if not PRETENDED:
    SHAPES += [(257, 4099), (1024, 1024)]
    PRODUCTS += [(131, 328, 200), (1374, 1024, 1024)]


def bits(buffer: ops.Buffer) -> bytes:
    if not isinstance(buffer, torch.Tensor):
        return buffer.tobytes()
    return buffer.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def same(a: vq.QTensor, b: vq.QTensor) -> None:
    assert a.spec == b.spec
    for name in ("packed", "stored_scale", "factor", "stored_zero"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None)
        assert one is None or bits(one) == bits(other), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_has_the_cpu_s_bits(config: vq.QuantizationConfig, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in SHAPES:
        x = torch.randn(shape, generator=generator).to(dtype)
        got, want = vq.quantize(x.cuda(), config), vq.quantize(x, config)
        same(got, want)
        assert torch.equal(got.dequantize().cpu(), want.dequantize())
        assert got.dequantize().device.type == "cuda"


def test_values_that_are_not_finite_are_coded_alike() -> None:
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1e-45, 3e38, -0.0, 1.0]])
    for name in ("INT8_Per_Channel_Asymmetric", "INT4_Group_32"):
        got = vq.quantize(x.cuda(), name, scale=[[0.1]] if "INT4" in name else [0.1])
        want = vq.quantize(x, name, scale=[[0.1]] if "INT4" in name else [0.1])
        assert bits(got.packed) == bits(want.packed)
        with pytest.raises(vq.UserError, match="NaN or infinite"):
            vq.quantize(x.cuda(), name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_metrics_have_the_cpu_s_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = [((2, 3, 24, 17), (2, 3)), ((2, 24, 17, 3), (1, 2)), ((5, 4099), None)]
    if not PRETENDED:
        shapes += [((2, 3, 240, 171), (2, 3)), ((5, 40_990), None), ((4_000_000,), None)]
    for shape, axes in [*shapes, ((700, 3), None)]:
        r = torch.randn(shape, generator=generator)
        c = (r + 0.01 * torch.randn(shape, generator=generator)).to(dtype)
        assert vq.compare(r.cuda(), c.cuda(), image_axes=axes) == vq.compare(r, c, image_axes=axes)


def test_the_current_stream_is_honoured() -> None:
    """Work queued behind a long one on a side stream sees its result."""
    stream = torch.cuda.Stream()
    x = torch.randn(64 if PRETENDED else 4096, 4096)
    with torch.cuda.stream(stream):
        late = torch.empty(x.shape, device="cuda")
        torch.cuda._sleep(200_000_000)
        late.copy_(x.pin_memory(), non_blocking=True)
        got = vq.quantize(late, "INT8_Per_Channel_Symmetric")
    stream.synchronize()
    same(got, vq.quantize(x, "INT8_Per_Channel_Symmetric"))


def test_calls_can_be_captured_in_a_graph() -> None:
    shape = ops.Shape(64, 512, 512)
    x = torch.randn(64, 512, device="cuda")
    lo, hi, _ = ops.ranges(shape, x)
    scale, _ = ops.parameters(8, lo, hi, False)
    ops.quantize(8, shape, x, scale, None)  # whatever is done once is done
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q = ops.quantize(8, shape, x, scale, None)
        back = ops.dequantize(8, shape, q, scale, None)
    x.copy_(torch.randn(64, 512))
    graph.replay()
    on_cpu = scale.cpu().numpy()
    want = ops.quantize(8, shape, x.cpu().numpy(), on_cpu, None)
    assert np.array_equal(q.cpu().numpy(), want)
    assert np.array_equal(back.cpu().numpy(), ops.dequantize(8, shape, want, on_cpu, None))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_the_second_gpu_is_served_while_the_first_is_current() -> None:
    x = torch.randn(33, 65)
    with torch.cuda.device(0):
        got = vq.quantize(x.to("cuda:1"), "INT8_Per_Channel_Symmetric")
    assert got.packed.device == torch.device("cuda:1")
    same(got, vq.quantize(x, "INT8_Per_Channel_Symmetric"))
    with pytest.raises(vq.UserError, match="cuda:0 and cuda:1 are given"):
        vq.compare(x.to("cuda:0"), x.to("cuda:1"))


# ---- linear --------------------------------------------------------------------------------------


def layer_of(config: vq.QuantizationConfig, k: int, n: int) -> vq.QuantizedLinear:
    torch.manual_seed(k + n)
    return vq.QuantizedLinear.from_linear(torch.nn.Linear(k, n), config).requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_has_the_cpu_s_bits(config: vq.QuantizationConfig, dtype: torch.dtype) -> None:
    """With INT8 activations; else within the rounding of the dtype that torch multiplies in."""
    if config.quantize_activations and config.activation_bits != 8:
        pytest.skip("16-bit activations stay on the CPU")
    for m, k, n in PRODUCTS:
        layer = layer_of(config, k, n)
        x = torch.randn(m, k).to(dtype)
        want, packed = layer(x), layer.packed.clone()
        got = layer.cuda()(x.cuda())
        assert got.device.type == "cuda" and got.dtype == dtype
        if config.quantize_activations:
            assert torch.equal(got.cpu(), want)
        else:
            limit = (1e-4 if dtype == torch.float32 else 4e-2) * want.float().abs().max()
            assert (got.cpu().float() - want.float()).abs().max() <= limit
        assert torch.equal(layer.cpu().packed, packed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_is_multiplied_as_it_lies_in_memory(dtype: torch.dtype) -> None:
    """By torch, with the codes of the CPU; engines of other weights are passed over."""
    if (words := float8.missing(torch.device("cuda:0"))) is not None:
        pytest.skip(words)
    for m, k, n in PRODUCTS:
        layer = layer_of(vq.CONFIGS["FP8_Per_Channel"], k, n)
        x = torch.randn(m, k).to(dtype)
        want, packed = layer(x), layer.packed.clone()
        got = layer.cuda()(x.cuda())
        assert layer.packed.dtype == torch.uint8 and layer.packed.numel() < 1.3 * n * k + 1500
        assert got.dtype == dtype and layer.last_kernel == "float8 x float8, cuda scaled_mm"
        limit = (0.01 if dtype == torch.float32 else 4e-2) * want.float().abs().max()
        assert (got.cpu().float() - want.float()).abs().max() <= limit
        assert torch.equal(layer.cpu().packed, packed)
        x[0, 0] = float("nan")
        assert layer.cuda()(x.cuda())[0].isnan().all() and layer(x.cuda()[:0]).shape == (0, n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_stands_around_fp8(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 nothing of the product's size is made in float32."""
    if (words := float8.missing(torch.device("cuda:0"))) is not None:
        pytest.skip(words)
    made: list[torch.dtype] = []
    multiplied = float8.multiplied

    def noted(*given: object) -> torch.Tensor:
        made.append(given[-1])
        return multiplied(*given)

    layer = layer_of(vq.CONFIGS["FP8_Per_Channel"], 64, 72)
    x, norm = torch.randn(20, 64).to(dtype), ops.Norm(torch.rand(64), torch.rand(64), 1e-6)
    scale, residual = torch.rand(72), torch.randn(20, 72).to(dtype)
    around = [{"norm": norm, "gelu": True}, {"layer_scale": scale}, {"residual": residual}]
    around += [{"layer_scale": scale, "residual": residual}]
    wants = [layer.fused(x, **words) for words in around]
    layer.cuda()
    monkeypatch.setattr(float8, "multiplied", noted)
    for words, want in zip(around, wants, strict=True):
        there = {name: to_gpu(value) for name, value in words.items()}
        got = layer.fused(x.cuda(), **there)
        assert got.dtype == dtype and got.device.type == "cuda"
        limit = (0.01 if dtype == torch.float32 else 4e-2) * want.float().abs().max()
        assert (got.cpu().float() - want.float()).abs().max() <= limit
    assert set(made) == {torch.bfloat16 if dtype == torch.bfloat16 else torch.float32}


def to_gpu(x: object) -> object:
    if isinstance(x, ops.Norm):
        return ops.Norm(x.weight.cuda(), None if x.bias is None else x.bias.cuda(), x.eps)
    return x.cuda() if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize(
    "name", ["INT8_Per_Channel_Symmetric_A8", "INT4_Group_32", "FP8_Per_Channel"]
)
def test_tokens_and_weight_on_two_devices_are_refused(name: str) -> None:
    layer = layer_of(vq.CONFIGS[name], 64, 48)
    for x in (torch.randn(3, 64), torch.randn(3, 64).cuda()):
        if x.device.type == "cpu":
            layer.cuda()
        with pytest.raises(
            vq.UserError, match="x is on c.*, the layer on c.*; one device is wanted"
        ):
            layer(x)
        layer.cpu()


def test_a_graph_of_calls_can_be_captured_and_replayed() -> None:
    layer = layer_of(vq.CONFIGS["INT4_Group_32_A8"], 256, 128).cuda()
    x = torch.randn(300, 256, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        layer(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = layer(x)
    x.copy_(torch.randn(300, 256))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, layer(x))


@pytest.mark.parametrize("engine", ["fused", "int_mm"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_stands_around_a_linear_has_the_cpu_s_bits(engine: str, dtype: torch.dtype) -> None:
    """LayerNorm, GELU, LayerScale and residual, as a fused block asks for them."""
    for name in ("INT8_Per_Channel_Asymmetric_A8", "INT4_Group_32_A8"):
        for m, k, n in PRODUCTS:
            layer = layer_of(vq.CONFIGS[name], k, n)
            x, residual = torch.randn(m, k).to(dtype), torch.randn(m, n).to(dtype)
            norm = ops.Norm(torch.rand(k), torch.rand(k) if k % 2 else None, 1e-6)
            scale = torch.rand(n)
            around = {"norm": norm, "gelu": True, "layer_scale": scale, "residual": residual}
            want = layer.fused(x, **around)
            there = ops.Norm(norm[0].cuda(), None if norm[1] is None else norm[1].cuda(), norm[2])
            around |= {"norm": there, "layer_scale": scale.cuda(), "residual": residual.cuda()}
            with engines.use(engine):
                got = layer.cuda().fused(x.cuda(), **around)
            served = engine == "fused" or (m > 16 and n % 8 == 0)
            assert layer.last_kernel.endswith(f"cuda {engine}") == served
            assert torch.equal(got.cpu(), want), (name, m, k, n)
            with engines.use("decode"):
                near = layer.fused(x.cuda(), **around).cpu().float()
            assert (near - want.float()).abs().max() <= 0.1 * want.float().abs().max()


@pytest.mark.parametrize("scheme", ["INT8_Per_Channel_Symmetric_A8", "INT4_Group_32", FP8])
@pytest.mark.parametrize("kind", ["aggregator", "dino", "tiny"])
@torch.inference_mode()
def test_a_block_is_fused_and_captured(kind: str, scheme: str) -> None:
    """Tokens are coded once behind each norm; attention is torch's."""
    if scheme == FP8 and (words := float8.missing(torch.device("cuda:0"))) is not None:
        pytest.skip(words)
    torch.manual_seed(1)
    config = replace(vq.CONFIGS[scheme], name="fused", fuse=True, skip_first_last=False)
    block = getattr(test_blocks, f"{kind}_block")().eval()
    if scheme.endswith("_A8"):  # swapped on the GPU
        block, report = vq.quantize_model(nn.Sequential(block).cuda(), config)
    else:
        block, report = vq.quantize_model(nn.Sequential(block), config)
    assert [(row.kind, row.skipped) for row in report.modules][-1] == ("block", None)
    (swapped,) = block.cuda()
    assert isinstance(swapped, vq.blocks.QuantizedBlock)
    x = test_blocks.tokens(1).cuda()
    given = {"pos": test_blocks.positions().cuda()} if kind == "aggregator" else {}
    want = swapped.original.cuda()(x, **given)
    got = swapped(x, **given)
    assert swapped._attention().last_kernel == "attention, torch"
    added, wanted = (got - x).float(), (want - x).float()
    assert (added - wanted).norm() <= 0.01 * wanted.norm()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = swapped(x, **given)
    x.copy_(torch.randn(x.shape))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, swapped(x, **given)) and not torch.equal(y, got)


class Block(nn.Module):
    """A transformer's block: norms, attention, MLP and residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)
        self.fc1, self.fc2 = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


@torch.inference_mode()
def test_a_graph_of_a_whole_block_can_be_captured_and_replayed() -> None:
    torch.manual_seed(0)
    config = replace(vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"], skip_first_last=False)
    block, report = vq.quantize_model(Block().eval(), config)
    assert len(report.quantized) == 4
    block.cuda()
    x = torch.randn(1, 20, 64, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block(x)  # whatever is done once is done
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = block(x)
    before = y.clone()
    x.copy_(torch.randn(1, 20, 64))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, block(x)) and not torch.equal(y, before)


@pytest.mark.skipif(PRETENDED, reason="its tensors are seen through")
def test_the_op_keeps_its_promises_on_the_gpu() -> None:
    layer = layer_of(vq.CONFIGS["INT4_Group_32_A8"], 40, 8).cuda()
    arguments = (torch.randn(3, 40, device="cuda"), layer.packed, None, *layer._about)
    tests = ("test_schema", "test_faketensor")
    op = torch.ops.vggtquant.linear.default
    torch.library.opcheck(op, (*arguments, "int8", torch.bfloat16), test_utils=tests)


@pytest.mark.skipif(PRETENDED, reason="its tensors are seen through")
def test_torch_compile_on_the_gpu() -> None:
    layer = layer_of(vq.CONFIGS["INT8_Per_Channel_Asymmetric_A8"], 256, 128).cuda()
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(33, 256, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))


def test_the_device_of_the_tensors_is_used_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    layer = layer_of(vq.CONFIGS["INT4_Group_32_A8"], 256, 128)
    x = torch.randn(33, 256)
    want = layer(x)
    assert torch.equal(layer.to("cuda:1")(x.to("cuda:1")).cpu(), want)


def test_load_puts_packed_weights_where_the_model_is(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 72), nn.Linear(72, 64)).eval()

    model, _ = vq.quantize_model(net(), "INT8_Per_Channel_Symmetric_A8")
    vq.save(model, tmp_path / "a.safetensors")
    loaded = [
        vq.load(tmp_path / "a.safetensors", model=net().cuda()),
        vq.load(tmp_path / "a.safetensors", model=net, device="cuda"),
    ]
    x = torch.ones(3, 64)
    for there in loaded:
        assert there[1].packed.device.type == "cuda"
        with torch.inference_mode():
            assert torch.allclose(there(x.cuda()).cpu(), model(x), atol=1e-5)
