# SPDX-License-Identifier: Apache-2.0
"""What torch does around a QuantizedLinear: tracers, modes, transforms, default devices, and code
that reads or writes a layer's weight. Compiled graphs are test_linear_compile.py's."""

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import vggtquant as vq
from vggtquant import QuantizedLinear

INT8 = "INT8_Per_Channel_Symmetric"


@pytest.fixture
def layer() -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear.from_linear(nn.Linear(40, 24), INT8).requires_grad_(False)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 72), nn.GELU(), nn.Linear(72, 40), nn.Linear(40, 8)).eval()
    vq.quantize_model(model, INT8 + "_A8")
    return model.requires_grad_(False)


def inputs(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- tracers -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 40)])
def test_traced(model: nn.Module, shape: tuple[int, ...]) -> None:
    traced = torch.jit.trace(model, inputs(0, *shape))
    for seed in (0, 1):
        x = inputs(seed, *shape)
        assert torch.equal(traced(x), model(x))
    assert "vggtquant::linear" in str(traced.inlined_graph)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(layer: QuantizedLinear, mode: str) -> None:
    graph = make_fx(layer, tracing_mode=mode, _allow_non_fake_inputs=True)(inputs(0, 2, 3, 40))
    for seed in (0, 1):
        assert torch.equal(graph(inputs(seed, 2, 3, 40)), layer(inputs(seed, 2, 3, 40)))


def test_torch_export(model: nn.Module) -> None:
    program = torch.export.export(model, (inputs(0, 5, 40),))
    assert torch.equal(program.module()(inputs(1, 5, 40)), model(inputs(1, 5, 40)))


@pytest.mark.parametrize("dynamo", [False, True])
def test_torch_onnx_export_is_refused(model: nn.Module, dynamo: bool, tmp_path) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    with warnings.catch_warnings(), pytest.raises(Exception, match="vggtquant"):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (inputs(0, 3, 40),), tmp_path / "a.onnx", dynamo=dynamo)


# ---- modes and transforms ------------------------------------------------------------------------


def test_flops_are_those_of_the_float_layer(layer: QuantizedLinear) -> None:
    x = inputs(0, 2, 3, 40)
    counts = []
    for counted in (nn.Linear(40, 24).requires_grad_(False), layer):
        with FlopCounterMode(display=False) as counter:
            counted(x)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 6 * 40 * 24] * 2


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="torch 2.5 has it")
@pytest.mark.parametrize("in_dim", [0, 1, -2])
@pytest.mark.parametrize("grad", [False, True])
def test_vmap_over_inputs(layer: QuantizedLinear, in_dim: int, grad: bool) -> None:
    x = inputs(0, 4, 5, 40)
    with torch.set_grad_enabled(grad):
        y = torch.vmap(layer, in_dims=in_dim, out_dims=in_dim)(x)
    assert torch.equal(y, layer(x))


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="torch 2.5 has it")
def test_vmap_over_layers_is_refused(layer: QuantizedLinear) -> None:
    packed = torch.stack([layer.packed, layer.packed])

    def call(packed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"packed": packed}, x)

    with pytest.raises(NotImplementedError, match="vmap over the weights or biases"):
        torch.vmap(call, in_dims=(0, None))(packed, inputs(0, 3, 40))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_forward_derivatives_are_refused(layer: QuantizedLinear, grad: bool) -> None:
    x = inputs(0, 3, 40)
    with torch.set_grad_enabled(grad):
        with pytest.raises(RuntimeError, match="no functional or forward-mode derivative"):
            torch.func.jvp(layer, (x,), (x,))
        with (
            forward_ad.dual_level(),
            pytest.raises(RuntimeError, match="no functional or forward-mode derivative"),
        ):
            layer(forward_ad.make_dual(x, x))


def test_reverse_transforms_are_refused(layer: QuantizedLinear) -> None:
    with pytest.raises(RuntimeError, match="no functional or forward-mode derivative"):
        torch.func.grad(lambda x: layer(x).sum())(inputs(0, 3, 40))
    with pytest.raises(RuntimeError, match="no functional or forward-mode derivative"):
        torch.func.grad(lambda x: torch.vmap(layer)(x).sum())(inputs(0, 3, 40))


def test_tensor_subclasses_reach_the_operator(layer: QuantizedLinear) -> None:
    class Named(torch.Tensor):
        pass

    x = inputs(0, 3, 40)
    y = layer(x.as_subclass(Named))
    assert type(y) is Named and torch.equal(y.as_subclass(torch.Tensor), layer(x))


# ---- default devices -----------------------------------------------------------------------------


def test_default_devices_do_not_reach_into_a_layer(layer: QuantizedLinear) -> None:
    x = inputs(0, 3, 40)
    want = layer(x)
    with torch.device("meta"):
        assert torch.equal(layer(x), want)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).device.type == "cpu"
        assert layer.weight.device.type == "cpu" and layer.weight.sum().device.type == "cpu"
        for config in vq.CONFIGS.values():
            if config.quantizes:
                fc = nn.Linear(40, 24, device="cpu")
                assert QuantizedLinear.from_linear(fc, config)(x).device.type == "cpu"
        q = vq.quantize(x, INT8)
        assert q.dequantize().device.type == "cpu" and vq.compare(x, x)["mae"] == 0.0


def test_default_devices_do_not_reach_into_whole_models() -> None:
    """tiny, packed files and pictures under `torch.set_default_device`: the same results."""
    script = """
import tempfile, torch, vggtquant as vq
from vggtquant import tiny
model = tiny.build()
x = torch.rand(1, 3, 56, 70)
want = vq.quantize_model(model, "INT8_Per_Channel_Symmetric_A8")[0](x)["depth"]
path = tempfile.mkdtemp() + "/a.safetensors"
torch.set_default_device("meta")
vq.save(model, path)
assert torch.equal(model(x)["depth"], want)
assert vq.load(path)(x)["depth"].device.type == "cpu"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- weights that are read -----------------------------------------------------------------------


def test_the_fast_path_of_encoders_runs_packed_kernels() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True), 3)
    encoder.eval()
    x, mask = inputs(0, 2, 9, 64), torch.zeros(2, 9, dtype=torch.bool)
    mask[1, 6:] = True
    want = encoder(x, src_key_padding_mask=mask)[~mask]
    vq.quantize_model(
        encoder, vq.QuantizationConfig("all", "int8_per_channel_sym", skip_first_last=False)
    )
    layers = [m for m in encoder.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 6
    for context in (torch.no_grad, torch.inference_mode):
        for padding in (None, mask):
            with context():
                got = encoder(x, src_key_padding_mask=padding)
            assert all(layer.last_kernel for layer in layers)
            if padding is not None:
                assert (got[~mask] - want).norm() / want.norm() < 0.02
            for layer in layers:
                layer.last_kernel = None


def test_attributes_of_a_weight_decode_nothing(
    layer: QuantizedLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QuantizedLinear, "qtensor", None)
    weight = layer.weight
    assert weight.shape == (24, 40) and weight.dtype == torch.float32 and weight.ndim == 2
    assert weight.numel() == 960 and weight.device.type == "cpu" and weight.is_contiguous()
    assert not weight.requires_grad and isinstance(weight, torch.Tensor)


READS: dict[str, Callable[[torch.Tensor], object]] = {
    "numpy": lambda w: torch.from_numpy(w.numpy().copy()),
    "tolist": lambda w: torch.tensor(w.tolist()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "clone": lambda w: w.clone(),
    "detach": lambda w: w.detach(),
    "data": lambda w: w.data,
    "view": lambda w: w.view(-1).view(24, 40),
    "transposed": lambda w: w.T.contiguous().T,
    "rows": lambda w: torch.stack(list(w.unbind())),
    "index": lambda w: torch.cat([w[:5], w[5:]]),
    "to": lambda w: w.to(torch.float64).float(),
    "times one": lambda w: w * torch.ones(1),
}


@pytest.mark.parametrize("name", READS)
def test_reading_a_weight(layer: QuantizedLinear, name: str) -> None:
    want = torch.as_tensor(layer.qtensor().dequantize())
    got = READS[name](layer.weight)
    assert torch.equal(torch.empty(24, 40).copy_(got), want)
    assert torch.equal(torch.nn.functional.linear(torch.eye(40), layer.weight), want.T)
    assert "DecodedWeight" not in type(layer.weight.clone()).__name__


# ---- weights that are written --------------------------------------------------------------------


def _data_is(w: torch.Tensor) -> None:
    w.data = torch.zeros(24, 40)


def _row(w: torch.Tensor) -> None:
    w[0] = 1


def _row_of_data(w: torch.Tensor) -> None:
    w.data[0] += 1


def _add(w: torch.Tensor) -> None:
    w += 1


def _add_to_data(w: torch.Tensor) -> None:
    w.data += 1


def _out(w: torch.Tensor) -> None:
    torch.add(w, 1, out=w)


WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "data =": _data_is,
    "[0] =": _row,
    "data[0] +=": _row_of_data,
    "+=": _add,
    "data +=": _add_to_data,
    "out=": _out,
    "copy_": lambda w: w.data.copy_(torch.zeros(24, 40)),
    "view": lambda w: w.view(-1).zero_(),
    "row": lambda w: w[0].zero_(),
    "transposed": lambda w: w.T.mul_(2),
    "split": lambda w: w.chunk(2)[1].zero_(),
    "init": nn.init.zeros_,
    "mask": lambda w: w.masked_fill_(torch.ones(24, 40, dtype=torch.bool), 0),
    "numpy": lambda w: w.numpy().fill(0),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_a_weight_is_an_error(layer: QuantizedLinear, name: str) -> None:
    """What merges adapters, prunes or initializes writes into .weight: nothing would change."""
    x = inputs(0, 3, 40)
    before = layer(x)
    with pytest.raises((RuntimeError, ValueError), match="cannot be written|read-only"):
        WRITES[name](layer.weight)
    assert torch.equal(layer(x), before)


def test_replacing_a_weight_is_an_error(layer: QuantizedLinear) -> None:
    for value in (torch.zeros(24, 40), nn.Parameter(torch.zeros(24, 40))):
        with pytest.raises(RuntimeError, match="cannot be written"):
            layer.weight = value


@pytest.mark.parametrize("strict", [True, False])
def test_float_state_dicts_are_refused(strict: bool) -> None:
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])
    state = model.state_dict()
    vq.quantize_model(model, INT8)
    with pytest.raises(RuntimeError, match=r"1: a float weight .* before quantizing"):
        model.load_state_dict(state, strict=strict)
