# SPDX-License-Identifier: Apache-2.0
"""quantize_model: which layers are swapped, what the report says, what stays when it refuses."""

import copy
import json
import math
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import nn

import vggtquant as vq
from vggtquant import QuantizedLinear, UserError, ops
from vggtquant.adapters import vggt
from vggtquant.meta import parameters_without_memory

INT8 = "INT8_Per_Channel_Symmetric"
ALL_INT8 = replace(vq.CONFIGS[INT8], name="all", skip_first_last=False)
MIXED = vq.QuantizationConfig(
    "mixed", "mixed_precision", skip_first_last=False, sensitive_layers=("blocks.1.*",)
)


class Block(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class Net(nn.Module):
    """Six layers: inlet, 2 blocks of 2, outlet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inlet = nn.Linear(16, 64)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.outlet = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x)
        return self.outlet(x)


NAMES = ["inlet", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2", "outlet"]


@pytest.fixture
def net() -> Net:
    return Net().eval()


def kinds(net: nn.Module) -> dict[str, type]:
    """Name and type of every layer that is or was a Linear."""
    return {
        name: type(m)
        for name, m in net.named_modules()
        if isinstance(m, nn.Linear | QuantizedLinear)
    }


def untouched(net: nn.Module) -> bool:
    return QuantizedLinear not in kinds(net).values()


# ---- the swap ------------------------------------------------------------------------------------


def test_every_config_swaps_in_place_and_runs(net: Net, config: vq.QuantizationConfig) -> None:
    x = torch.randn(5, 16)
    before, originals = net(x), dict(net.named_modules())
    same, report = vq.quantize_model(net, config)
    assert same is net
    assert [row.name for row in report.layers] == NAMES
    assert [row.name for row in report.quantized] == NAMES[1:5]
    assert {row.name: row.skipped for row in report.skipped} == {
        "inlet": "the first Linear (skip_first_last)",
        "outlet": "the last Linear (skip_first_last)",
    }
    swapped = {name for name, kind in kinds(net).items() if kind is QuantizedLinear}
    assert swapped == set(NAMES[1:5]) and net.inlet is originals["inlet"]
    assert report.originals == {}
    assert not net.blocks[0].fc1.training and net.blocks[0].fc1.name == "blocks.0.fc1"
    after = net(x)
    assert after.isfinite().all()
    assert (after - before).norm() / before.norm() < (0.2 if config.bits == 4 else 0.03)


def test_bytes_are_what_arithmetic_says(net: Net) -> None:
    before = vq.model_bytes(net)
    assert before == 4 * sum(p.numel() for p in net.parameters())
    _, report = vq.quantize_model(net, INT8)
    # fc1 is 128 x 64 and fc2 64 x 128: a 64-byte header, a byte a weight, 4 a row; fc1 has a bias
    fc1, fc2 = 64 + 128 * 64 + 4 * 128 + 4 * 128, 64 + 64 * 128 + 4 * 64
    rows = {row.name: row for row in report.quantized}
    assert [rows[name].bytes_after for name in NAMES[1:5]] == [fc1, fc2] * 2
    assert [rows[name].bytes_before for name in NAMES[1:3]] == [
        4 * 64 * 128 + 4 * 128,
        4 * 64 * 128,
    ]
    assert report.bytes_after == 2 * (fc1 + fc2) == sum(net.get_submodule(n).nbytes for n in rows)
    assert vq.model_bytes(net) == before - report.bytes_before + report.bytes_after
    assert report.bits_per_weight == 8 * report.bytes_after / (4 * 64 * 128)


def test_int4_of_wide_layers_takes_at_most_4_2_bits() -> None:
    wide = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 4096, bias=False))
    config = replace(vq.CONFIGS["INT4_Group_128"], skip_first_last=False)
    _, report = vq.quantize_model(wide, config)
    assert 4.0 < report.bits_per_weight < 4.2
    assert vq.model_bytes(wide) == report.bytes_after


def test_shared_tensors_count_once() -> None:
    one = nn.Linear(8, 8)
    assert vq.model_bytes(nn.Sequential(one, nn.ReLU(), one)) == 4 * 72
    buffered = nn.BatchNorm1d(4)
    assert vq.model_bytes(buffered) == 4 * (4 + 4 + 4 + 4) + 8


def test_originals_come_back(net: Net) -> None:
    x, before = torch.randn(5, 16), dict(net.named_modules())
    want, state = net(x), copy.deepcopy(net.state_dict())
    for name in (INT8, "INT4_Group_32"):
        _, report = vq.quantize_model(net, name, keep_originals=True)
        assert list(report.originals) == NAMES[1:5] and not torch.equal(net(x), want)
        vq.restore_model(net, report)
        assert dict(net.named_modules()) == before and torch.equal(net(x), want)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_quantizing_twice_finds_only_what_is_left(net: Net) -> None:
    vq.quantize_model(net, INT8)
    before = kinds(net)
    _, report = vq.quantize_model(net, "INT4_Group_32")
    assert [row.name for row in report.layers] == ["inlet", "outlet"] and not report.quantized
    assert kinds(net) == before
    vq.quantize_model(net, ALL_INT8)
    with pytest.raises(UserError, match="Net has no nn.Linear layer to quantize"):
        vq.quantize_model(net, ALL_INT8)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_floats_go_as_their_layers_are_swapped() -> None:
    """A model of 200 MB never takes much more, and what it leaves goes back to the system."""
    program = (
        "import torch, vggtquant as vq\n"
        "from torch import nn\n"
        "def megabytes(key): return next(int(line.split()[1]) for line in "
        "open('/proc/self/status') if line.startswith(key)) / 1024\n"
        "torch.set_num_threads(2); vq.isa(); empty = megabytes('VmRSS')\n"
        "model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(48)))\n"
        "floats = megabytes('VmRSS') - empty\n"
        "model, _ = vq.quantize_model(model, 'INT8_Per_Channel_Symmetric')\n"
        "print(floats, megabytes('VmHWM') - empty, megabytes('VmRSS') - empty)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    floats, peak, after = map(float, done.stdout.split())
    assert floats > 180 and peak - floats < 30, done.stdout  # 46 MB of codes take their place
    assert after < 54 + 20, done.stdout  # 46 layers of 1 MB, two of 4


def test_progress(net: Net) -> None:
    seen: list[tuple[int, int, str]] = []
    vq.quantize_model(net, INT8, progress=lambda *step: seen.append(step))
    assert seen == [*((i, 4, name) for i, name in enumerate(NAMES[1:5])), (4, 4, "")]


def test_baselines_swap_nothing(net: Net) -> None:
    for name in ("Baseline_FP32", "Baseline_BF16"):
        _, report = vq.quantize_model(net, name)
        assert untouched(net) and not report.quantized and math.isnan(report.bits_per_weight)
        assert {row.skipped for row in report.layers} == {f"{name} quantizes nothing"}
        assert report.notes == [f"{name}: no layer is quantized"]


# ---- which layers --------------------------------------------------------------------------------


def test_filters(net: Net) -> None:
    _, report = vq.quantize_model(net, ALL_INT8, include=["blocks.*"], exclude=["*.fc2", "inlet"])
    assert [row.name for row in report.quantized] == ["blocks.0.fc1", "blocks.1.fc1"]
    reasons = {row.name: row.skipped for row in report.skipped}
    assert reasons == {
        "inlet": "not included",
        "outlet": "not included",
        "blocks.0.fc2": "excluded",
        "blocks.1.fc2": "excluded",
    }


def test_a_single_pattern_needs_no_list(net: Net) -> None:
    _, report = vq.quantize_model(net, ALL_INT8, include="blocks.?.fc1", exclude="blocks.1.*")
    assert [row.name for row in report.quantized] == ["blocks.0.fc1"]
    assert replace(MIXED, sensitive_layers="outlet").sensitive_layers == ("outlet",)  # type: ignore[arg-type]


def test_a_filter_does_not_move_the_edges(net: Net) -> None:
    _, report = vq.quantize_model(net, INT8, exclude=["inlet"])
    assert [row.name for row in report.quantized] == NAMES[1:5]
    assert report.skipped[0].skipped == "excluded"


@pytest.mark.parametrize("what", ["include", "exclude", "sensitive_layers"])
def test_patterns_that_match_nothing_are_errors(net: Net, what: str) -> None:
    config: Any = ALL_INT8
    filters: dict[str, Any] = {}
    if what == "sensitive_layers":
        config = replace(MIXED, sensitive_layers=("outlet", "no.such.*"))
    else:
        filters = {what: ["outlet", "no.such.*"]}
    with pytest.raises(UserError, match=rf"^{what} pattern 'no.such.\*' matches no Linear layer"):
        vq.quantize_model(net, config, **filters)
    assert untouched(net)


def test_mixed_precision(net: Net) -> None:
    _, report = vq.quantize_model(net, MIXED)
    bits = {row.name: row.scheme for row in report.quantized}
    assert bits == {name: f"mixed, INT{8 if 'blocks.1' in name else 4}" for name in NAMES}
    assert net.blocks[1].fc1.spec.bits == 8 and net.blocks[0].fc1.spec.bits == 4
    assert net.blocks[0].fc1.spec.two_level and net.inlet.qtensor().spec.bits == 4
    assert net(torch.randn(2, 16)).isfinite().all()
    other = Net()
    vq.quantize_model(other, replace(MIXED, sensitive_bits=4, normal_bits=8))
    assert other.blocks[1].fc1.spec.bits == 4 and other.blocks[0].fc1.spec.bits == 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4)
        self.first = nn.Linear(32, 32)
        self.last = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.attention(x, x, x)[0]))


def test_multihead_attention_keeps_its_projection() -> None:
    net = Attention()
    _, report = vq.quantize_model(net, ALL_INT8)
    assert [row.name for row in report.quantized] == ["first", "last"]
    assert report.skipped[0].name == "attention.out_proj"
    assert "MultiheadAttention" in str(report.skipped[0].skipped)
    net(torch.randn(5, 2, 32))
    _, report = vq.quantize_model(nn.MultiheadAttention(32, 4), ALL_INT8)
    assert not report.quantized and "MultiheadAttention" in str(report.skipped[0].skipped)


def test_the_edges_are_not_multihead_attention_s() -> None:
    net = Attention()
    _, report = vq.quantize_model(net, INT8)
    assert not report.quantized
    assert [row.skipped for row in report.skipped[1:]] == [
        "the first Linear (skip_first_last)",
        "the last Linear (skip_first_last)",
    ]


def test_tied_weights_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 16)
            self.head = nn.Linear(16, 10, bias=False)
            self.head.weight = self.embedding.weight
            self.one = nn.Linear(16, 16)
            self.same = self.one
            self.free = nn.Linear(16, 16)
            self.own = nn.Parameter(torch.zeros(16, 16))
            self.bare = nn.Linear(16, 16)
            self.bare.weight = self.own

    net = Tied()
    _, report = vq.quantize_model(net, ALL_INT8)
    assert [row.name for row in report.quantized] == ["free"]
    assert {row.name: row.skipped for row in report.skipped} == {
        "head": "its weight is shared with embedding",
        "one": "its weight is shared with same",
        "bare": "its weight is shared with the model itself",
    }
    assert net.head.weight is net.embedding.weight and net.one is net.same


def test_subclasses_are_listed_as_skipped() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    net = nn.Sequential(Scaled(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    _, report = vq.quantize_model(net, INT8)
    assert {row.name: row.skipped for row in report.skipped} == {
        "0": "a subclass of nn.Linear (Scaled)",
        "1": "the first Linear (skip_first_last)",
        "3": "the last Linear (skip_first_last)",
    }


def test_layers_that_cannot_be_served_are_skipped_with_the_reason() -> None:
    net = nn.Sequential(
        nn.Linear(8, 8),
        nn.Linear(8, 8).double(),
        nn.Linear(65537, 2),
        nn.Linear(8, 8, device="meta"),
        nn.Linear(8, 8).half(),
        nn.Linear(8, 8).bfloat16(),
    )
    with pytest.warns(UserWarning, match="zero-element"):
        net.append(nn.Linear(0, 3))
    _, report = vq.quantize_model(net, ALL_INT8)
    assert [row.name for row in report.quantized] == ["0", "4", "5"]
    assert [row.skipped for row in report.skipped] == [
        "its weight is torch.float64",
        "its rows are longer than 65536",
        "its weight is on meta, which is not served here",
        "its weight is empty",
    ]


def test_weights_that_are_computed_and_hooks_are_not_lost() -> None:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    nn.utils.parametrizations.weight_norm(net[0])
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(net[1])
    net[2].register_forward_hook(lambda module, args, y: 2 * y)
    net[3].register_forward_pre_hook(lambda module, args: None)
    net.append(nn.Linear(8, 8))
    _, report = vq.quantize_model(net, ALL_INT8)
    assert [row.skipped for row in report.layers] == [
        "a subclass of nn.Linear (ParametrizedLinear)",
        "its weight is computed anew for each call",
        "it has forward hooks, which would be lost",
        "it has forward pre hooks, which would be lost",
        None,
    ]


def test_what_was_added_to_a_layer_is_not_lost() -> None:
    """As accelerate, pruning and users do it on instances."""
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(7))).eval()
    forward = net[0].forward
    net[0].forward = lambda x: 10 * forward(x)
    net[1].register_buffer("scale", torch.ones(8))
    net[2].register_parameter("scale", nn.Parameter(torch.ones(8)))
    net[3].add_module("adapter", nn.Identity())
    net[4].register_full_backward_hook(lambda *args: None)
    net[5].register_state_dict_post_hook(lambda *args: None)
    net[6].tag = "kept"
    net[6].spec = "another's"
    x = torch.randn(5, 8)
    want = net(x)
    _, report = vq.quantize_model(net, ALL_INT8)
    assert [row.skipped for row in report.layers] == [
        "its forward was replaced",
        "it has buffers, which would be lost",
        "it has scale, which would be lost",
        "it has modules, which would be lost",
        "it has backward hooks, which would be lost",
        "it has state dict hooks, which would be lost",
        None,
    ]
    assert (net(x) - want).norm() / want.norm() < 0.02
    assert net[6].tag == "kept" and net[6].spec == vq.CONFIGS[INT8].spec(8)


class Wrapped(torch.Tensor):
    """A weight with a format of its own, as torchao makes them."""

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> "Wrapped":
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


def test_weights_of_other_libraries_are_left_alone_by_name() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[0].weight = nn.Parameter(Wrapped(torch.zeros(8, 8)), requires_grad=False)
    _, report = vq.quantize_model(net, ALL_INT8)
    assert [(row.name, row.skipped) for row in report.skipped] == [
        ("0", "its weight is a Wrapped, not a plain parameter")
    ]


def test_torchao_s_weights() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    config = torchao.Int8WeightOnlyConfig()
    torchao.quantize_(net, config, filter_fn=lambda module, name: name == "0")
    _, report = vq.quantize_model(net, ALL_INT8)
    assert [row.name for row in report.skipped] == ["0"]
    assert "not a plain parameter" in str(report.skipped[0].skipped)


class Adapted(nn.Module):
    """A Linear with a LoRA adapter beside it, as peft builds it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(32, 32)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(32, 8, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(8, 32, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("library", ["stand-in", "peft"])
def test_adapters_are_left_alone_and_named(library: str) -> None:
    net: nn.Module = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    if library == "peft":
        peft = pytest.importorskip("peft")
        net = peft.get_peft_model(net, peft.LoraConfig(target_modules=["1"], r=8)).base_model.model
    else:
        net[1] = Adapted()
    x = torch.randn(3, 32)
    want = net.eval()(x)
    _, report = vq.quantize_model(net, ALL_INT8)
    assert [row.name for row in report.quantized] == ["0", "1.base_layer"]
    assert {row.name: row.skipped for row in report.skipped} == {
        f"1.lora_{half}.default": "an adapter of 1, which stays in float" for half in "AB"
    }
    assert (net(x) - want).norm() / want.norm() < 0.03
    if library == "peft":
        with pytest.raises(RuntimeError, match="cannot be written"):
            net[1].merge()


def test_adapters_are_no_edges() -> None:
    net = nn.Sequential(Adapted(), Adapted())
    _, report = vq.quantize_model(net, INT8)
    assert [row.name for row in report.skipped if "skip_first_last" in str(row.skipped)] == [
        "0.base_layer",
        "1.base_layer",
    ]


def test_restoring_without_the_originals_is_an_error(net: Net) -> None:
    _, report = vq.quantize_model(net, INT8)
    with pytest.raises(UserError, match="none of the 4 float layers; .*keep_originals=True"):
        vq.restore_model(net, report)
    _, report = vq.quantize_model(Net(), "Baseline_FP32")
    vq.restore_model(net, report)  # nothing was swapped, so nothing is missing


def test_the_model_itself_cannot_be_replaced() -> None:
    _, report = vq.quantize_model(nn.Linear(8, 8), ALL_INT8)
    assert report.skipped[0].skipped == "it is the model itself; use QuantizedLinear.from_linear"


def test_a_single_layer_is_both_edges() -> None:
    _, report = vq.quantize_model(nn.Sequential(nn.Linear(8, 8)), INT8)
    assert [row.skipped for row in report.layers] == ["the first Linear (skip_first_last)"]


def nested(names: list[str]) -> nn.Module:
    """A model with a Linear under each dotted name, in that order."""
    root = nn.Module()
    for name in names:
        *path, leaf = name.split(".")
        parent = root
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, nn.Linear(8, 8))
    return root


VGGT_LIKE = [
    "aggregator.patch_embed.blocks.0.attn.qkv",
    "aggregator.frame_blocks.0.attn.qkv",
    "camera_head.pose_branch.fc1",
    "camera_head.pose_branch.fc2",
    "track_head.tracker.flow_head",
]


@pytest.mark.parametrize("prefix", ["", "model.", "net.vggt."])
def test_the_edges_of_vggt_are_known_by_name(prefix: str) -> None:
    net = nested([prefix + name for name in VGGT_LIKE])
    _, report = vq.quantize_model(net, INT8)
    assert [row.name.removeprefix(prefix) for row in report.skipped] == list(vggt.FIRST_LAST)
    assert [row.skipped for row in report.skipped] == [
        "the first Linear (skip_first_last)",
        "the last Linear (skip_first_last)",
    ]
    assert len(report.quantized) == 3


def test_half_of_vggt_s_edges_are_no_vggt() -> None:
    _, report = vq.quantize_model(nested(VGGT_LIKE[:3]), INT8)
    assert [row.name for row in report.skipped] == [VGGT_LIKE[0], VGGT_LIKE[2]]


# ---- refused, with nothing lost ------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_name_their_layer(net: Net, bad: float) -> None:
    with torch.no_grad():
        net.blocks[1].fc2.weight[3, 5:7] = bad
    with pytest.raises(UserError, match="^layer blocks.1.fc2: 2 weights are NaN or infinite"):
        vq.quantize_model(net, INT8)
    assert untouched(net)
    vq.quantize_model(net, INT8, exclude=["blocks.1.fc2"])  # what is not quantized is not looked at


def test_models_without_a_linear() -> None:
    with pytest.raises(UserError, match="Conv2d has no nn.Linear layer to quantize"):
        vq.quantize_model(nn.Conv2d(3, 3, 3), INT8)


def test_devices_and_schemes_that_are_not_served(net: Net) -> None:
    if missing := ops.cuda_missing():
        with pytest.raises(UserError, match=re.escape(f"device 'cuda': {missing}")):
            vq.quantize_model(net, replace(vq.CONFIGS[INT8], device="cuda"))
    with pytest.raises(UserError, match="scheme 'INT4' is unknown; nearest: INT4_Group"):
        vq.quantize_model(net, "INT4")
    assert untouched(net)


# ---- the report ----------------------------------------------------------------------------------


def test_a_row_says_how_close_the_weight_is(net: Net) -> None:
    weight = net.blocks[0].fc1.weight.detach().clone()
    _, report = vq.quantize_model(net, "INT4_Group_64")
    row = report.quantized[0]
    w, back = weight.double(), net.blocks[0].fc1.weight.double()
    noise = 10 * math.log10(float((w**2).sum() / ((w - back) ** 2).sum()))
    assert row.sqnr_db == pytest.approx(noise, rel=1e-9) and 15 < noise < 30
    cosine = float((w * back).sum() / (w.norm() * back.norm()))
    assert row.cosine == pytest.approx(cosine, rel=1e-9) and cosine > 0.99
    assert (row.shape, row.scheme, row.skipped) == ((128, 64), "INT4_Group_64", None)


def test_a_weight_without_noise_or_signal() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        net[0].weight.zero_()
        net[1].weight.copy_(127 * torch.eye(8))
    _, report = vq.quantize_model(net, ALL_INT8)
    zeros, exact = report.quantized
    assert zeros.sqnr_db is None and zeros.cosine is None
    assert exact.sqnr_db is None and exact.cosine == pytest.approx(1)


def test_the_fallback_to_float_group_scales_is_reported() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 64), nn.Linear(256, 64))
    with torch.no_grad():
        net[0].weight[:, 7] *= 1000
    config = replace(vq.CONFIGS["INT4_Group_32"], skip_first_last=False)
    x = torch.randn(3, 256)
    want = torch.from_numpy(reference_product(net[0], x))
    _, report = vq.quantize_model(net, config)
    notes = [row.note for row in report.layers]
    assert notes == [
        "float group scales: two-level ones would cost more than 5 % in squared error",
        None,
    ]
    assert not net[0].spec.two_level and net[1].spec.two_level
    assert report.layers[0].bytes_after > report.layers[1].bytes_after
    assert notes[0] in str(report)
    assert torch.allclose(net[0](x), want, rtol=1e-4, atol=1e-2)


def reference_product(linear: nn.Linear, x: torch.Tensor) -> np.ndarray:
    w = reference.quantize(
        linear.weight.detach().numpy(), vq.QuantizationSpec(4, True, "per_group", 32, True)
    )
    assert w.factor is None
    return x.numpy() @ reference.dequantize(w).T + linear.bias.detach().numpy()


def test_the_report_as_table_and_as_json(net: Net) -> None:
    _, report = vq.quantize_model(net, "INT4_Group_32_A8")
    lines = str(report).splitlines()
    assert len(lines) == 1 + 6 + 1 + len(report.notes)
    assert lines[1].startswith("inlet") and "skipped: the first Linear" in lines[1]
    assert "128 x 64" in lines[2] and "INT4_Group_32_A8" in lines[2]
    assert lines[7].startswith("4 of 6 layers quantized: ")
    again = json.loads(json.dumps(report.to_dict()))
    assert again == report.to_dict()
    assert vq.QuantizationConfig.from_dict(again["config"]) == report.config
    assert again["layers"][1]["shape"] == [128, 64] and again["bytes_after"] == report.bytes_after


def test_fields_with_nothing_to_do_are_named(net: Net) -> None:
    _, report = vq.quantize_model(copy.deepcopy(net), replace(vq.CONFIGS[INT8], group_size=64))
    assert report.notes == ["group_size=64 had nothing to do: INT8 has no groups"]
    _, report = vq.quantize_model(net, replace(vq.CONFIGS["INT4_Group_64"]))
    assert not any("group_size" in note for note in report.notes)


# ---- the original VGGT ---------------------------------------------------------------------------


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """VGGT-1B as its authors wrote it, with its tracker, without the memory of its weights."""
    if "VGGT_SOURCE" in os.environ:
        monkeypatch.syspath_prepend(os.environ["VGGT_SOURCE"])
    with warnings.catch_warnings(), parameters_without_memory():
        warnings.simplefilter("ignore")  # its deprecations are not ours to mend
        module = pytest.importorskip(
            "vggt.models.vggt",
            reason="the original vggt is not installed; VGGT_SOURCE=folder also names it",
        )
        built: nn.Module = module.VGGT()
    return built


@pytest.mark.slow
def test_the_layers_of_the_original_vggt(original: nn.Module) -> None:
    """363 plain Linears are found and 361 swapped: its names, order and types, on 8 x 8 weights."""
    for name, module in list(original.named_modules()):
        if isinstance(module, nn.Linear):
            narrow = copy.copy(module)
            narrow.in_features = narrow.out_features = 8
            narrow._parameters = dict(nn.Linear(8, 8)._parameters)
            parent, _, leaf = name.rpartition(".")
            setattr(original.get_submodule(parent), leaf, narrow)
    _, report = vq.quantize_model(original, INT8)
    plain = [row for row in report.layers if "MultiheadAttention" not in (row.skipped or "")]
    parts = Counter(row.name.split(".")[0] for row in plain)
    assert parts == {"aggregator": 288, "camera_head": 20, "track_head": 55}
    assert len(plain) == 363 and len(report.quantized) == 361
    assert {row.name for row in plain if row.skipped} == set(vggt.FIRST_LAST)


def test_a_notebook_shows_a_model_report_as_a_table() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    _, report = vq.quantize_model(model, "INT8_Per_Channel_Symmetric")
    shown = report._repr_html_()
    assert shown.count("<tr>") == 1 + 4 and "2 of 4 layers quantized" in shown
    assert "<td>1</td><td>16 x 16</td>" in shown
