# SPDX-License-Identifier: Apache-2.0
"""Whole attentions and blocks: recognised, verified, swapped, brought back; everything else is left
alone with a reason. The blocks are TinyVGGT's, and stand-ins with the original's class paths."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import vggtquant as vq
from vggtquant import QuantizedLinear, UserError, blocks, recognition, rope, tiny
from vggtquant.blocks import QuantizedAttention, QuantizedBlock, Rotation
from vggtquant.tiny import layers

INT8 = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
FLOAT = replace(INT8, name="fused", fuse=True, skip_first_last=False)
FAST = replace(vq.CONFIGS["INT8_Fast"], name="fast", skip_first_last=False)
DIM, HEADS = 64, 2


# ---- stand-ins with the class paths and the structure of the original ----------------------------


class RotaryPositionEmbedding2D(nn.Module):
    def __init__(self, frequency: float = 100.0) -> None:
        super().__init__()
        self.base_frequency = frequency

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        dim = x.shape[-1] // 2
        steps = torch.arange(0, dim, 2, device=x.device).float()
        rates = 1.0 / self.base_frequency ** (steps / dim)
        halves = []
        for half, place in zip(x.chunk(2, dim=-1), pos.unbind(-1), strict=True):
            angles = place[:, None, :, None] * rates
            cos, sin = (
                f(torch.cat([angles, angles], -1)).to(x.dtype) for f in (torch.cos, torch.sin)
            )
            a, b = half.chunk(2, dim=-1)
            halves.append(half * cos + torch.cat([-b, a], -1) * sin)
        return torch.cat(halves, -1)


class Attention(nn.Module):
    def __init__(self, qk_norm: bool = False, turned: nn.Module | None = None) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(DIM, 3 * DIM)
        norm = (lambda: nn.LayerNorm(DIM // HEADS)) if qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(DIM, DIM)
        self.proj_drop = nn.Dropout(0.0)
        self.rope = turned

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, pos), self.rope(k, pos)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))


class MemEffAttention(Attention):
    def forward(  # type: ignore[override]
        self, x: Tensor, attn_bias: Tensor | None = None, pos: Tensor | None = None
    ) -> Tensor:
        assert pos is None
        y = super().forward(x)
        return y if attn_bias is None else y + attn_bias


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, attn: nn.Module, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM, eps=eps)
        self.attn = attn
        self.ls1 = LayerScale()
        self.drop_path1 = nn.Identity()
        self.norm2 = nn.LayerNorm(DIM, eps=eps)
        self.mlp = layers.Mlp(DIM, 4 * DIM, DIM)
        self.ls2 = LayerScale()
        self.drop_path2 = nn.Identity()
        self.sample_drop_ratio = 0.0

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), pos=pos))
        return x + self.ls2(self.mlp(self.norm2(x)))


class NestedTensorBlock(Block):
    def forward(self, x_or_x_list: Any) -> Any:
        if isinstance(x_or_x_list, list):
            return [super(NestedTensorBlock, self).forward(x) for x in x_or_x_list]
        return super().forward(x_or_x_list)


for kind, place in (
    (Attention, "attention"),
    (MemEffAttention, "attention"),
    (Block, "block"),
    (NestedTensorBlock, "block"),
):
    kind.__module__ = f"vggt.layers.{place}"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()


def aggregator_block() -> Block:
    """With normed and turned queries and keys."""
    block = Block(Attention(True, RotaryPositionEmbedding2D()))
    for name, parameter in block.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return block.eval().requires_grad_(False)


def dino_block() -> Block:
    return NestedTensorBlock(MemEffAttention(), eps=1e-6).eval().requires_grad_(False)


def tiny_block() -> nn.Module:
    return layers.Block(DIM, HEADS, qk_norm=True, init=0.2).eval().requires_grad_(False)


TOKENS = 13


def positions(batch: int = 1) -> Tensor:
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(4)) + 1
    return torch.cat([torch.zeros(1, 2, dtype=torch.int64), grid]).expand(batch, TOKENS, 2)


def tokens(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, TOKENS, DIM, generator=torch.Generator().manual_seed(seed))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "vggt": (aggregator_block, lambda: {"pos": positions(2)}),
    "dinov2": (dino_block, dict),
    "tiny": (tiny_block, lambda: {"rope": layers.rope_tables(positions()[0], DIM // HEADS)}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def swapped(block: nn.Module, config: vq.QuantizationConfig = FLOAT) -> tuple[nn.Module, Any]:
    """The block within a model, swapped, and the report."""
    model = nn.ModuleList([block])
    _, report = vq.quantize_model(model, config, keep_originals=True)
    return model[0], report


def far(got: Tensor, want: Tensor, x: Tensor) -> float:
    """Relative distance of what was added to x."""
    return float((got - want).norm() / (want - x).norm())


# ---- what is swapped -----------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("mode", ["float", "bf16", "int8"])
@pytest.mark.parametrize("fuse", [False, True], ids=["alone", "fused"])
def test_swapped_modules_give_what_the_original_gives(kind: str, mode: Any, fuse: bool) -> None:
    make, given = KINDS[kind]
    config = replace(FLOAT, attention=mode, fuse=fuse)
    block = make()
    layers_only = copy.deepcopy(block)
    swapped(layers_only, INT8_ALL)
    got, report = swapped(block, config)
    assert isinstance(got, QuantizedBlock) == fuse
    assert isinstance(got.attn, QuantizedAttention) == (fuse or mode != "float")
    wanted = {(False, "float"): 0, (True, "float"): 2, (True, mode): 2}.get((fuse, mode), 1)
    assert len(report.modules) == len(report.swapped) == wanted
    assert all(row.skipped is None and row.error is not None for row in report.modules)
    x = tokens()
    with torch.no_grad():
        want, y = layers_only(x, **given()), got(x, **given())
    assert far(y, want, x) < {"float": 0.005, "bf16": 0.01, "int8": 0.03}[mode]
    if fuse or mode != "float":
        assert got.attn.last_kernel is not None
    assert all(m.last_kernel for m in got.modules() if isinstance(m, QuantizedLinear))


INT8_ALL = replace(INT8, name="layers", skip_first_last=False)


@every_kind
def test_weights_alone_are_fused_to_roundings(kind: str) -> None:
    """Without coded activations no code can flip, so the fused block is the original's floats."""
    make, given = KINDS[kind]
    plain = vq.QuantizationConfig("w", "int8_per_channel_sym", skip_first_last=False)
    block = make()
    want = copy.deepcopy(block)
    swapped(want, plain)
    got, _ = swapped(block, replace(plain, fuse=True))
    x = tokens()
    with torch.no_grad():
        assert far(got(x, **given()), want(x, **given()), x) < 2e-6


@pytest.mark.parametrize("name", ["INT8_Fast", "INT4_Fast"])
def test_the_whole_model(name: str) -> None:
    model = tiny.build()
    images = torch.rand(1, 2, 3, 56, 70)
    with torch.no_grad():
        want = model(images)
    _, report = vq.quantize_model(model, name)
    assert sum(isinstance(m, QuantizedBlock) for m in model.modules()) == 12
    assert not [row for row in report.modules if row.skipped]
    with torch.no_grad():
        got = model(images)
    for key in ("depth", "world_points", "pose_enc"):
        error = (got[key] - want[key]).norm() / want[key].norm()
        assert error < (0.03 if name == "INT8_Fast" else 0.2)
    assert "aggregator.frame_blocks.0 " in str(report) and "block: fused" in str(report)
    assert report.to_dict()["modules"][0]["kind"] == "attention"


def test_a_file_has_the_first_module_of_its_parts_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [aggregator_block(), aggregator_block(), aggregator_block(), dino_block()]
    blocks[2].norm1.eps = 1e-3
    calls = []
    of_parts = recognition.error_of
    monkeypatch.setattr(
        recognition, "error_of", lambda *given, **how: calls.append(1) or of_parts(*given, **how)
    )
    model = nn.ModuleList(copy.deepcopy(blocks))
    vq.quantize_model(model, FLOAT)
    assert len(calls) == 8  # an attention and a block each
    vq.save(model, tmp_path / "blocks.safetensors")
    calls.clear()
    again = vq.load(tmp_path / "blocks.safetensors", model=nn.ModuleList(blocks))
    assert sum(isinstance(m, QuantizedBlock) for m in again.modules()) == 4
    assert len(calls) == 5  # attentions of two kinds, blocks of three


def test_blocks_with_float_layers_in_them() -> None:
    """skip_first_last and exclude leave Linear layers of a swapped block in float."""
    block = aggregator_block()
    plain = copy.deepcopy(block)
    model, reference = nn.ModuleList([block]), nn.ModuleList([plain])
    for net, config in ((model, FLOAT), (reference, INT8_ALL)):
        vq.quantize_model(net, config, exclude=["0.attn.qkv", "0.mlp.fc2"])
    assert isinstance(model[0], QuantizedBlock) and type(model[0].mlp.fc2) is nn.Linear
    x = tokens()
    with torch.no_grad():
        assert far(model[0](x, pos=positions(2)), plain(x, pos=positions(2)), x) < 0.005


def test_only_modules_that_hold_quantized_layers() -> None:
    model = nn.ModuleList([aggregator_block(), aggregator_block()])
    _, report = vq.quantize_model(model, FAST, include=["0.*"])
    assert isinstance(model[0], QuantizedBlock) and type(model[1]) is Block
    assert {row.skipped for row in report.modules if row.name.startswith("1")} == {
        "it holds no layer that was quantized"
    }


# ---- what is left alone --------------------------------------------------------------------------


class Odd(Attention):
    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, pos)


class WrongScale(Attention):
    __module__ = "other.vggt.layers.attention"
    __qualname__ = "Attention"

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, pos)


class Cached(Attention):
    __module__ = "streamvggt.vggt.layers.attention"
    __qualname__ = "Attention"

    def forward(  # type: ignore[override]
        self, x: Tensor, pos: Tensor | None = None, past_key_values: Any = None
    ) -> Tensor:
        return super().forward(x, pos)


def hooked(block: Block) -> None:
    block.attn.q_norm.register_forward_hook(lambda *_: None)


def hooked_itself(block: Block) -> None:
    block.attn.register_forward_pre_hook(lambda *_: None)


def own_forward(block: Block) -> None:
    forward = block.attn.forward
    block.attn.forward = lambda *args, **kwargs: forward(*args, **kwargs)  # type: ignore[method-assign]


def dropout(block: Block) -> None:
    block.attn.attn_drop.p = 0.5
    block.train()


def another(attn: type[nn.Module]) -> Callable[[Block], None]:
    def put(block: Block) -> None:
        block.attn = attn().eval().requires_grad_(False)

    return put


def no_weight(block: Block) -> None:
    block.norm1 = nn.LayerNorm(DIM, elementwise_affine=False)


def tanh_gelu(block: Block) -> None:
    block.mlp.act = nn.GELU("tanh")


def odd_heads(block: Block) -> None:
    block.attn.num_heads = 3


def more_inside(block: Block) -> None:
    block.attn.register_module("gate", nn.Linear(DIM, DIM))


def a_parameter(block: Block) -> None:
    block.attn.register_parameter("bias_table", nn.Parameter(torch.zeros(3)))


def rms(block: Block) -> None:
    block.attn.q_norm = nn.RMSNorm(DIM // HEADS)


def swiglu(block: Block) -> None:
    block.mlp = nn.Sequential(nn.Linear(DIM, DIM))


REASONS: dict[str, tuple[Callable[[Block], None], str, str]] = {
    "subclass": (another(Odd), "attention", r"its class .*Odd is not known"),
    "differs": (another(WrongScale), "attention", r"it differs by \d.* on random tokens"),
    "cache": (another(Cached), "attention", r"its forward takes \(x, pos, past_key_values\)"),
    "hook": (hooked, "attention", "its q_norm has hooks"),
    "own hook": (hooked_itself, "attention", "it has hooks"),
    "own forward": (own_forward, "attention", "it has a forward of its own"),
    "dropout": (dropout, "attention", "its attn_drop drops out while training"),
    "heads": (odd_heads, "attention", "64 channels do not fit 3 heads"),
    "module": (more_inside, "attention", "it has a module gate that is not known"),
    "parameter": (a_parameter, "attention", "it has parameters of its own"),
    "rms norm": (rms, "attention", "its q_norm is a RMSNorm"),
    "norm": (no_weight, "block", "its norm1 is no LayerNorm of its width with a weight"),
    "gelu": (tanh_gelu, "block", "its mlp has a GELU that is not the exact GELU"),
    "mlp": (swiglu, "block", "its mlp, a Sequential, is no pair of Linear layers"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_left_alone_has_a_reason(name: str) -> None:
    spoil, kind, words = REASONS[name]
    block = aggregator_block()
    spoil(block)
    model = nn.ModuleList([block])
    attn = block.attn
    _, report = vq.quantize_model(model, FAST)
    rows = {row.kind: row for row in report.modules}
    assert type(model[0]) is Block and rows["block"].skipped is not None
    if kind == "attention":
        assert model[0].attn is attn
        assert (
            rows["block"].skipped == "its attention was not swapped"
            or "hooks" in words
            or ("forward of its own" in words or "drops out" in words)
        )
    else:
        assert isinstance(model[0].attn, QuantizedAttention)
    assert __import__("re").search(words, str(rows[kind].skipped)), rows[kind].skipped


def test_float_attention_is_not_swapped_without_its_block() -> None:
    block = aggregator_block()
    tanh_gelu(block)
    attn = block.attn
    got, report = swapped(block, FLOAT)
    assert got.attn is attn and not report.swapped
    assert [row.kind for row in report.modules] == ["block"]


# ---- calls that the original takes ---------------------------------------------------------------


def runs_fused(block: nn.Module, call: Callable[[], Any]) -> bool:
    """Whether the block itself was computed, not its original."""
    fused, seen = type(block)._fused, []
    vars(block)["_fused"] = lambda *args: seen.append(1) or fused(block, *args)
    try:
        with torch.no_grad():
            call()
    finally:
        del vars(block)["_fused"]
    return bool(seen)


def test_other_arguments_go_to_the_original() -> None:
    block, _ = swapped(dino_block())
    x = tokens()
    assert runs_fused(block, lambda: block(x))
    assert not runs_fused(block, lambda: block([x, x]))
    bias = torch.ones(DIM)
    with torch.no_grad():
        want = block.attn(x) + bias
        assert torch.allclose(block.attn(x, attn_bias=bias), want, atol=0.02)
    with pytest.raises(AssertionError), torch.no_grad():
        block.attn(x, pos=positions(2))
    with pytest.raises(TypeError), torch.no_grad():
        block(x, colour=1)


def test_positions_of_their_own_for_each_of_the_batch() -> None:
    block, _ = swapped(aggregator_block())
    x, pos = tokens(), torch.stack([positions()[0], positions()[0].flip(0)])
    assert runs_fused(block, lambda: block(x, pos=pos))
    with torch.no_grad():
        each = [block(x[i : i + 1], pos=pos[i : i + 1]) for i in range(2)]
        assert torch.equal(block(x, pos=pos), torch.cat(each))
    with pytest.raises((TypeError, AttributeError)), torch.no_grad():
        block(x)  # positions are wanted, as the original says


def test_hooks_that_come_later_are_called() -> None:
    block, _ = swapped(aggregator_block())
    x, seen = tokens(), []
    for name in ("mlp.fc1", "norm1", "attn.q_norm", "ls2"):
        handle = block.get_submodule(name).register_forward_hook(lambda m, *_: seen.append(m))
        assert not runs_fused(block, lambda: block(x, pos=positions(2)))
        assert set(map(id, seen)) == {id(block.get_submodule(name))}
        handle.remove()
        seen.clear()
    block.register_forward_hook(lambda m, *_: seen.append(m))  # on the block itself
    assert runs_fused(block, lambda: block(x, pos=positions(2))) and seen == [block]


def test_dropout_of_a_model_that_trains_again() -> None:
    block, _ = swapped(aggregator_block())
    block.attn.original.proj_drop.p = 0.5
    x = tokens()
    assert runs_fused(block, lambda: block(x, pos=positions(2)))
    block.train()
    assert not runs_fused(block, lambda: block(x, pos=positions(2)))


def test_a_layer_that_is_replaced_is_used() -> None:
    block, _ = swapped(aggregator_block())
    x = tokens()
    block.mlp.fc2 = nn.Linear(4 * DIM, DIM).requires_grad_(False)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    with torch.no_grad():
        middle = x + block.ls1(block.attn(block.norm1(x), pos=positions(2)))
        torch.testing.assert_close(block(x, pos=positions(2)), middle, atol=0.02, rtol=0)
        block.ls1 = nn.Identity()
        assert block.original.ls1 is block.ls1


# ---- as other modules ----------------------------------------------------------------------------


def test_originals_come_back() -> None:
    model = tiny.build()
    modules = dict(model.named_modules())
    images = torch.rand(1, 1, 3, 28, 28)
    with torch.no_grad():
        want = model(images)["depth"]
    _, report = vq.quantize_model(model, "INT8_Fast", keep_originals=True)
    keys = list(model.state_dict())
    vq.restore_model(model, report)
    assert dict(model.named_modules()) == modules
    with torch.no_grad():
        assert torch.equal(model(images)["depth"], want)
    assert {k.rpartition(".")[0] for k in keys} == {
        k.rpartition(".")[0] for k in model.state_dict()
    }


@every_kind
def test_copies_pickles_and_state_dicts(kind: str) -> None:
    make, given = KINDS[kind]
    block, _ = swapped(make(), FAST)
    x = tokens()
    other, _ = swapped(make(), FAST)
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    with torch.no_grad():
        want = block(x, **given())
        assert torch.equal(other(x, **given()), want)
        copies = [copy.deepcopy(block)]
        if kind == "tiny":  # the others' class paths are pretended
            copies.append(pickle.loads(pickle.dumps(block)))
        for again in copies:
            assert torch.equal(again(x, **given()), want)
            assert again.original.attn is again.attn and again.attn is not block.attn
            nn.init.zeros_(again.ls1.gamma)
            assert not torch.equal(again(x, **given()), want)
        assert torch.equal(block(x, **given()), want)


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = tiny.build()
    vq.quantize_model(model, "INT8_Fast")
    vq.save(model, tmp_path / "a.safetensors", float_dtype="float32")
    loaded = vq.load(tmp_path / "a.safetensors")
    kinds = {name: type(m) for name, m in model.named_modules()}
    assert {name: type(m) for name, m in loaded.named_modules()} == kinds
    images = torch.rand(1, 2, 3, 28, 42)
    with torch.no_grad():
        assert torch.equal(loaded(images)["depth"], model(images)["depth"])


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_the_original_s(kind: str, dtype: torch.dtype) -> None:
    """The stream keeps its dtype, under autocast too."""
    make, given = KINDS[kind]
    block = make()
    plain = copy.deepcopy(block)
    got, _ = swapped(block, FAST)
    x = tokens().to(dtype)
    if dtype == torch.bfloat16:
        if kind == "tiny":
            pytest.skip("TinyVGGT's own tables are float32")
        got, plain = got.to(dtype), plain.to(dtype)
    with torch.no_grad():
        want, y = plain(x, **given()), got(x, **given())
        assert y.dtype == want.dtype == dtype and far(y.float(), want.float(), x.float()) < 0.06
        with torch.autocast("cpu", torch.bfloat16):
            want, y = plain(x, **given()), got(x, **given())
        assert y.dtype == want.dtype and far(y.float(), want.float(), x.float()) < 0.06


def test_modes_of_gradients() -> None:
    block, _ = swapped(aggregator_block(), FAST)
    x = tokens()
    with torch.no_grad():
        want = block(x, pos=positions(2))
    with torch.inference_mode():
        assert torch.equal(block(x.clone(), pos=positions(2).clone()), want)
    assert torch.equal(block(x, pos=positions(2)), want)  # nothing wants a gradient
    for trained in (False, True):  # the original has one
        block.norm1.weight.requires_grad_(trained)
        given = x.clone().requires_grad_(not trained)
        y = block(given, pos=positions(2))
        assert far(y.detach(), want, x) < 0.03
        y.sum().backward()
        assert ((block.norm1.weight if trained else given).grad != 0).any()


@every_kind
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(kind: str, backend: str) -> None:
    make, given = KINDS[kind]
    block, _ = swapped(make(), FAST)
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    x = tokens()
    with torch.no_grad():
        want = block(x, **given())
        block.attn.qkv.last_kernel = None
        got = compiled(x, **given())
    assert far(got, want, x) < 1e-5 and block.attn.qkv.last_kernel is not None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@every_kind
def test_traced(kind: str) -> None:
    make, given = KINDS[kind]
    block, _ = swapped(make(), FAST)
    call = [tokens(), *given().values()]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = make_fx(block, _allow_non_fake_inputs=True)(*call)
        traced = torch.jit.trace(block, tuple(call), check_trace=False)
        x = tokens(seed=1)
        want = block(x, *call[1:])
        for recorded in (graph, traced):
            assert far(recorded(x, *call[1:]), want, x) < 1e-5


def test_default_devices() -> None:
    block = aggregator_block()
    x, pos = tokens(), positions(2)
    with torch.device("meta"):
        got, report = swapped(block, FAST)
        assert not [row for row in report.modules if row.skipped]
        with torch.no_grad():
            assert got(x, pos=pos).device.type == "cpu"


def test_flops_are_counted() -> None:
    """By module, so the originals' forwards run, whose attention torch does not count."""
    block, _ = swapped(aggregator_block(), FAST)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(tokens(), pos=positions(2))
    assert counter.get_total_flops() == 2 * 2 * TOKENS * 12 * DIM * DIM
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block.attn.attend(torch.randn(2, TOKENS, 3 * DIM), Rotation())
    assert counter.get_total_flops() == 2 * 2 * 2 * TOKENS * TOKENS * DIM


# ---- tables of positions -------------------------------------------------------------------------


def test_tables_are_kept_and_found_by_their_positions() -> None:
    pos = positions(2)
    first = rope.tables(pos, 32, 100.0)
    assert first is not None and rope.tables(pos.clone(), 32, 100.0) is first
    moved = pos.clone()
    moved[:, 3] += 1
    other = rope.tables(moved, 32, 100.0)
    assert other is not None and not torch.equal(other.cos, first.cos)
    moved[0, 4] += 1
    assert rope.tables(moved, 32, 100.0) is None
    assert rope.tables(pos, 32, 50.0) is not first and rope.tables(pos, 64, 100.0) is not first


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_tables_of_frames_have_the_rows_of_one(frames: int) -> None:
    one = positions()[0]
    made = rope.tables(one.repeat(frames, 1)[None], 32, 100.0)
    assert made is not None and len(made.cos) == TOKENS
    same = rope.tables(torch.zeros(1, 6, 2, dtype=torch.int64), 32, 100.0)
    assert same is not None and len(same.cos) == 1


def test_few_tables_are_kept() -> None:
    for i in range(3 * rope.KEPT):
        rope.tables(torch.full((1, 4, 2), i), 32, 100.0)
    assert len(rope._known) == rope.KEPT


# ---- configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"attention": "int4"}, "attention is 'int4'; one of 'float', 'bf16', 'int8'"),
        ({"attention_values": "int8"}, "attention_values is 'int8', but attention is 'float'"),
        ({"attention": "int8", "attention_values": "float"}, "one of 'bf16', 'int8'"),
        ({"fuse": "yes"}, "fuse is 'yes'"),
        ({"quant_type": "fp32", "fuse": True}, "quantizes nothing"),
        ({"quant_type": "fp32", "attention": "int8"}, "quantizes nothing"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        vq.QuantizationConfig(**{"name": "a", "quant_type": "int8_per_channel_sym"} | fields)


def test_older_readers_read_what_they_know() -> None:
    plain, fast = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"], vq.CONFIGS["INT8_Fast"]
    assert not {"attention", "fuse"} & plain.to_dict().keys()
    assert {"attention", "fuse"} <= fast.to_dict().keys()
    assert vq.QuantizationConfig.from_dict(fast.to_dict()) == fast


def test_a_gradient_is_said_once() -> None:
    model = nn.ModuleDict({"block": aggregator_block().requires_grad_(True)})
    report = vq.quantize_model(model, FAST)[1]
    assert blocks.GRADIENTS in report.notes and isinstance(model["block"], QuantizedBlock)
    blocks._say_differentiated.cache_clear()
    x, pos = torch.randn(1, 6, DIM), torch.zeros(1, 6, 2, dtype=torch.long)
    with pytest.warns(UserWarning, match="where a gradient is wanted"):
        model["block"](x, pos=pos)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model["block"](x, pos=pos)  # said already
        with torch.no_grad():
            model["block"](x, pos=pos)
    frozen = nn.ModuleDict({"block": aggregator_block()})
    assert blocks.GRADIENTS not in vq.quantize_model(frozen, FAST)[1].notes
