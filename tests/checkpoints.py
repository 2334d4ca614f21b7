# SPDX-License-Identifier: Apache-2.0
"""Small models and hand-made files for the tests of packed checkpoints."""

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

Header = dict[str, Any]


class Zoo(nn.Module):
    """What a walker over names and shapes must tell apart, and Linear layers of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 16, 2, 2)
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 16))
        self.mask_token = nn.Parameter(torch.randn(1, 16))
        self.table = nn.Embedding(7, 16)
        self.first = nn.Linear(16, 40)
        self.norm = nn.LayerNorm(40)
        self.attn = nn.MultiheadAttention(40, 2)
        self.blocks = nn.Sequential(nn.Linear(40, 33), nn.GELU(), nn.Linear(33, 40))
        self.qkv = nn.Linear(40, 24, bias=False)
        self.wide = nn.Linear(24, 130)
        self.narrow = nn.Linear(130, 1)
        self.last = nn.Linear(130, 9)
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        with torch.no_grad():
            self.blocks[0].weight[:, ::9] *= 60  # columns so extreme that float scales are taken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.wide(self.qkv(self.blocks(self.norm(self.first(x)))))
        return torch.cat([self.narrow(y), self.last(y)], dim=-1)


def read(path: Path) -> tuple[Header, bytes]:
    """Header and data of a safetensors file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(path: Path, header: Header, data: bytes) -> Path:
    """A safetensors file of any header, resealed, so that nothing else is wrong with it."""
    header = {**header, "__metadata__": dict(header.get("__metadata__", {}))}
    metadata = header["__metadata__"]
    if "header_sha256" in metadata:
        metadata["header_sha256"] = "0" * 64
        digest = hashlib.sha256(encode(header)).hexdigest()
        metadata["header_sha256"] = digest
    text = encode(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def encode(header: Header) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def document(header: Header) -> dict[str, Any]:
    """The document in a header."""
    return json.loads(header["__metadata__"]["vggtquant"])


def with_document(header: Header, values: dict[str, Any]) -> Header:
    """The header with another document."""
    return {**header, "__metadata__": {**header["__metadata__"], "vggtquant": json.dumps(values)}}


def with_bytes(header: Header, data: bytes, name: str, new: bytes) -> tuple[Header, bytes]:
    """The file with other bytes in a tensor, and the checksum that fits them."""
    start, end = header[name]["data_offsets"]
    assert len(new) == end - start
    values = document(header)
    values["sha256"][name] = hashlib.sha256(new).hexdigest()
    return with_document(header, values), data[:start] + new + data[end:]


def fake_vggt(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """A stand-in for the user's vggt package: its class, names and arguments, no forward."""

    class VGGT(nn.Module):
        def __init__(self, img_size: int = 518, enable_track: bool = True) -> None:
            super().__init__()
            self.img_size = img_size
            self._hub_mixin_config = {"img_size": img_size, "enable_track": enable_track}
            block = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(16, 48)})})
            blocks = nn.ModuleList([block])
            patch_embed = nn.ModuleDict({"blocks": blocks})
            self.aggregator = nn.ModuleDict({"patch_embed": patch_embed, "fc": nn.Linear(16, 64)})
            branch = nn.ModuleDict({"fc1": nn.Linear(16, 64), "fc2": nn.Linear(64, 9)})
            self.camera_head = nn.ModuleDict({"pose_branch": branch})
            self.track_head = nn.Linear(16, 2) if enable_track else None

    VGGT.__module__, VGGT.__qualname__ = "vggt.models.vggt", "VGGT"
    module = ModuleType("vggt.models.vggt")
    module.VGGT = VGGT  # type: ignore[attr-defined]
    for name in ("vggt", "vggt.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vggt.models.vggt", module)
    return VGGT


def small() -> nn.Module:
    """A model whose file is small enough to fuzz."""
    return nn.Sequential(nn.Linear(16, 9), nn.LayerNorm(9), nn.Linear(9, 3))
