# SPDX-License-Identifier: Apache-2.0
"""info, dequantize and diff look into packed files."""

from pathlib import Path

import checkpoints
import pytest
import safetensors.torch
import torch
from checkpoints import Zoo

import vggtquant as vq
from vggtquant import UserError
from vggtquant.checkpoint import inspection
from vggtquant.checkpoint.storage import load
from vggtquant.checkpoint.streaming import quantize_file

ASYMMETRIC = vq.QuantizationConfig(
    "asymmetric", "int4_group", bits=4, symmetric=False, group_size=32
)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Zoo's float weights, in the order of its modules."""
    torch.save(Zoo().state_dict(), tmp_path / "zoo.pt")
    return tmp_path / "zoo.pt"


def test_info(zoo: Path, tmp_path: Path) -> None:
    done = quantize_file(zoo, ASYMMETRIC, tmp_path / "a.safetensors")
    assert "float group scales in 1 of 5 layers" in done.notes[1] and "narrow" in done.notes[1]
    text = "\n".join(inspection.info(tmp_path / "a.safetensors", layers=True))
    for words in ("asymmetric", "zoo.pt", "bfloat16", "with float scales", "130 x 24", "fit"):
        assert words in text
    header, data = checkpoints.read(tmp_path / "a.safetensors")
    checkpoints.write(tmp_path / "b.safetensors", header, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        inspection.info(tmp_path / "b.safetensors")


def test_dequantize(config: vq.QuantizationConfig, zoo: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "a.safetensors", tmp_path / "float.safetensors"
    if config.convolutions != "float":
        pytest.skip("Zoo's convolutions are packed in memory only")
    quantize_file(zoo, config, packed)
    inspection.dequantize(packed, out)
    state = safetensors.torch.load_file(out)
    model = load(packed, model=Zoo)
    plain = Zoo()
    plain.load_state_dict(state)
    assert {k: (x.dtype, x.shape) for k, x in state.items()} == {
        k: (x.dtype, x.shape) for k, x in Zoo().state_dict().items()
    }
    assert torch.equal(state["wide.weight"], model.wide.weight)
    assert torch.equal(state["norm.weight"], model.norm.weight)
    with pytest.raises(UserError, match="the source itself"):
        inspection.dequantize(packed, packed)


def test_diff(zoo: Path, tmp_path: Path) -> None:
    four, eight = tmp_path / "4.safetensors", tmp_path / "8.safetensors"
    quantize_file(zoo, "INT4_Group_32", four)
    quantize_file(zoo, "INT8_Per_Channel_Symmetric", eight)
    assert inspection.diff(four, four).identical and "identical" in str(inspection.diff(zoo, zoo))
    found = inspection.diff(zoo, four)
    errors = {row.name: row.relative_l2 for row in found.rows}
    assert 0.02 < errors["wide.weight"] < 0.2 and 0 < errors["wide.bias"] < 0.004
    assert not found.identical and not (found.only_a or found.only_b or found.shapes)
    assert {row.name for row in inspection.diff(eight, four).rows} == {
        f"{name}.weight" for name in ("blocks.0", "blocks.2", "qkv", "wide", "narrow")
    }
    inspection.dequantize(four, tmp_path / "f.safetensors")
    assert all(
        row.relative_l2 == 0 for row in inspection.diff(four, tmp_path / "f.safetensors").rows
    )
    state = Zoo().state_dict()
    state["more"], state["norm.weight"] = torch.ones(1), torch.ones(3)
    del state["norm.bias"]
    torch.save(state, tmp_path / "other.pt")
    found = inspection.diff(zoo, tmp_path / "other.pt")
    assert (found.only_a, found.only_b) == (["norm.bias"], ["more"]) and len(found.shapes) == 1
