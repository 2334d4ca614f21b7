# SPDX-License-Identifier: Apache-2.0
"""Bits by layer: within a budget of bytes, by sensitivity, by name, from a file."""

from pathlib import Path

import pytest
import torch
from checkpoints import Zoo
from zoo import in_memory, same

import vggtquant as vq
from vggtquant import UserError
from vggtquant.checkpoint import budget
from vggtquant.checkpoint.document import Checkpoint
from vggtquant.checkpoint.streaming import quantize_file
from vggtquant.selection import Request
from vggtquant.weights import linears
from vggtquant.weights.tensors import open_weights


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Zoo's float weights, in the order of its modules."""
    torch.save(Zoo().state_dict(), tmp_path / "zoo.pt")
    return tmp_path / "zoo.pt"


# ---- mixed precision -----------------------------------------------------------------------------


def test_within_a_budget_everything_else_is_worse() -> None:
    costs = {
        "a": budget.Cost(40, 80, 9.0),
        "b": budget.Cost(40, 80, 1.0),
        "c": budget.Cost(10, 20, 1.0),
        "never": budget.Cost(30, 30, 0.0),
    }
    assert budget.within(costs, 210) == dict.fromkeys(costs, 8)
    assert budget.within(costs, 200)["b"] == 4
    assert budget.within(costs, 165) == {"a": 8, "b": 4, "c": 4, "never": 8}
    assert budget.within(costs, 120)["a"] == 4
    with pytest.raises(UserError, match="at 4 bits"):
        budget.within(costs, 119)


def test_max_bytes(zoo: Path, tmp_path: Path) -> None:
    config = vq.get_config("INT4_Group_32_A8")
    found = open_weights(zoo)
    small = quantize_file(found, config, tmp_path / "small.safetensors").nbytes
    most = small + 1000
    plan = budget.from_bytes(found, config, most)
    assert set(plan.bits.values()) == {4, 8}
    done = quantize_file(found, plan.config, tmp_path / "mixed.safetensors", max_bytes=most)
    assert small < done.nbytes <= most
    layers = Checkpoint(tmp_path / "mixed.safetensors").document.layers
    assert {layer.name: layer.spec.bits for layer in layers} == plan.bits
    assert plan.config.quantize_activations
    # The same config gives the same codes in memory.
    assert same(tmp_path / "mixed.safetensors", in_memory(Zoo(), plan.config))
    with pytest.raises(UserError, match="--max_bytes 2000: "):
        budget.from_bytes(found, config, 2000)
    with pytest.raises(UserError, match="not written"):
        quantize_file(found, config, tmp_path / "x.safetensors", max_bytes=small - 1)


def test_sensitivity_decides(zoo: Path) -> None:
    found = open_weights(zoo)
    names = list(linears.choose(found, Request(vq.get_config("INT4_Group_32"))).chosen)
    costs = dict.fromkeys(names, 1.0)
    small = budget.from_bytes(found, "INT4_Group_32", 34_500, sensitivity=costs | {"wide": 1e9})
    assert small.bits["wide"] == 8
    small = budget.from_bytes(found, "INT4_Group_32", 34_500, sensitivity=costs | {"wide": 0.0})
    assert small.bits["wide"] == 4
    with pytest.raises(UserError, match="sensitivity of 1 layers is missing"):
        budget.from_bytes(found, "INT4_Group_32", 10**6, sensitivity={n: 1.0 for n in names[1:]})


def test_bits_by_name(zoo: Path, tmp_path: Path) -> None:
    found = open_weights(zoo)
    wanted = {"blocks.0": 8, "blocks.*": "float", "w*": 8}
    plan = budget.from_bits(found, "INT4_Group_32", wanted)
    quantize_file(found, plan.config, tmp_path / "a.safetensors", exclude=plan.exclude)
    document = Checkpoint(tmp_path / "a.safetensors").document
    bits = {layer.name: layer.spec.bits for layer in document.layers}
    assert bits == {"blocks.0": 8, "wide": 8, "qkv": 4, "narrow": 4}
    assert document.skipped["blocks.2"] == "excluded"
    for nonsense in ({"wide": 5}, {"wide": True}, {"nobody": 4}):
        with pytest.raises(UserError, match="bits"):
            budget.from_bits(found, "INT4_Group_32", nonsense)
    with pytest.raises(UserError, match="starts from an INT4_Group scheme"):
        budget.from_bits(found, "INT8_Per_Channel_Symmetric", {})


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"sensitivity": {"a": 1, "b": 0.5}, "other": 3}')
    assert budget.read_sensitivity(path) == {"a": 1.0, "b": 0.5}
    for words in ("", "[]", '{"a": "x"}', '{"a": -1}', '{"a": NaN}', "[" * 100_000):
        path.write_text(words)
        with pytest.raises(UserError):
            budget.read_sensitivity(path)
    with pytest.raises(UserError):
        budget.read_sensitivity(tmp_path / "absent.json")
    for words in ("x", "-1", "0", "1e30", "nan", "M"):
        with pytest.raises(UserError, match="number of bytes"):
            budget.parse_bytes(words)
    assert budget.parse_bytes("763Mi") == 763 * 2**20 and budget.parse_bytes("1.5GB") == 1.5e9
