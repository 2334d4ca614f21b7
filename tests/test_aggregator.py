# SPDX-License-Identifier: Apache-2.0
"""The aggregator that keeps only what heads read: the same bits, fewer outputs, and everything else
is left alone with a reason. Stand-ins have the original's class paths and structure."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_blocks import DIM, FLOAT, aggregator_block, dino_block
from torch import Tensor, nn

import vggtquant as vq
from vggtquant.aggregator import QuantizedAggregator

DEPTH, PATCH = 4, 14


class PositionGetter:
    def __call__(self, n: int, rows: int, columns: int, device: torch.device) -> Tensor:
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        return places.to(device).expand(n, -1, -1)


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.block = dino_block()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x_norm_patchtokens": self.block(self.proj(x).flatten(2).mT)}


class Aggregator(nn.Module):
    """Step by step; it keeps every output, or those of retained layers."""

    def __init__(self, retained: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.patch_embed = Patches()
        self.frame_blocks = nn.ModuleList(aggregator_block() for _ in range(DEPTH))
        self.global_blocks = nn.ModuleList(aggregator_block() for _ in range(DEPTH))
        self.rope = self.frame_blocks[0].attn.rope
        self.position_getter = PositionGetter()
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, DIM))
        self.register_token = nn.Parameter(torch.randn(1, 2, 4, DIM))
        self.patch_start_idx, self.patch_size = 5, PATCH
        self.aa_order, self.aa_block_size = ["frame", "global"], 1
        self.retained = range(DEPTH) if retained is None else retained
        self.register_buffer("_resnet_mean", torch.rand(1, 1, 3, 1, 1), persistent=False)
        self.register_buffer("_resnet_std", 0.5 + torch.rand(1, 1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[list[Tensor | None], int]:
        batch, pictures, _, height, width = images.shape
        patches = self.patch_embed(((images - self._resnet_mean) / self._resnet_std).flatten(0, 1))
        patches = patches["x_norm_patchtokens"].unflatten(0, (batch, pictures))
        rows = []
        for picture in range(pictures):
            which = min(picture, 1)
            special = torch.cat([self.camera_token[:, which], self.register_token[:, which]], 1)
            rows.append(torch.cat([special.expand(batch, -1, -1), patches[:, picture]], 1))
        x = torch.stack(rows, 1)
        pos = self.position_getter(batch * pictures, height // PATCH, width // PATCH, x.device) + 1
        pos = torch.cat([torch.zeros_like(pos[:, :5]), pos], 1) if pos.shape[1] >= 5 else None
        assert pos is not None
        out: list[Tensor | None] = []
        for i in range(DEPTH):
            alone = self.frame_blocks[i](x.flatten(0, 1), pos=pos).view_as(x)
            x = self.global_blocks[i](alone.flatten(1, 2), pos=pos.reshape(batch, -1, 2)).view_as(x)
            out.append(torch.cat([alone, x], -1) if i in self.retained else None)
        return out, self.patch_start_idx


class Head(nn.Module):
    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.intermediate_layer_idx = list(layers)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        return torch.stack([tokens[i] for i in [*self.intermediate_layer_idx, -1]])


class VGGT(nn.Module):
    def __init__(self, aggregator: Aggregator | None = None) -> None:
        super().__init__()
        self.aggregator = aggregator or Aggregator()
        self.depth_head = Head((0, 2))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.depth_head(self.aggregator(images)[0])
        return result


Aggregator.__module__ = "vggt.models.aggregator"
VGGT.__module__ = "vggt.models.vggt"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def made(aggregator: Aggregator | None = None) -> VGGT:
    return VGGT(aggregator).eval().requires_grad_(False)


def row_of(report: vq.ModelReport) -> Any:
    (row,) = (row for row in report.modules if row.kind == "aggregator")
    return row


def pictures(batch: int, n: int) -> Tensor:
    return torch.rand(batch, n, 3, 2 * PATCH, 5 * PATCH)


@pytest.mark.parametrize("retained", [None, (0, 2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize(("batch", "n"), [(1, 1), (1, 3), (2, 2)])
def test_the_same_bits_and_only_what_heads_read(
    retained: tuple[int, ...] | None, batch: int, n: int
) -> None:
    model = made(Aggregator(retained))
    model, report = vq.quantize_model(model, FLOAT)
    mine = model.aggregator
    assert isinstance(mine, QuantizedAggregator)
    assert mine.kept == {0, 2, 3}
    row = row_of(report)
    assert (row.name, row.scheme, row.skipped) == ("aggregator", "keeps 3 outputs", None)
    x = pictures(batch, n)
    with torch.inference_mode():
        got, start = mine(x)
        want, first = mine.original.forward(x)  # type: ignore[operator]
    assert start == first == 5
    assert [i for i, y in enumerate(got) if y is not None] == [0, 2, 3]
    assert all(torch.equal(got[i], want[i]) for i in mine.kept)


def test_state_copies_and_restore() -> None:
    model = made()
    keys, x = list(model.state_dict()), pictures(1, 2)
    before = model.aggregator
    model, report = vq.quantize_model(model, FLOAT, keep_originals=True)
    with torch.inference_mode():
        want = model(x)
        assert torch.equal(copy.deepcopy(model)(x), want)
    modules = {key.rpartition(".")[0] for key in model.state_dict()}
    assert modules == {key.rpartition(".")[0] for key in keys}
    vq.restore_model(model, report)
    assert model.aggregator is before
    assert list(model.state_dict()) == keys


def test_a_gradient_and_training_are_the_originals() -> None:
    model, _ = vq.quantize_model(made(), FLOAT)
    model.train()
    out, _ = model.aggregator(pictures(1, 1))
    assert all(y is not None for y in out)
    model.eval()
    out, _ = model.aggregator(pictures(1, 1))
    assert out[1] is None


class Hasty(Aggregator):
    """Of the same path, but it numbers positions otherwise."""

    def forward(self, images: Tensor) -> tuple[list[Tensor | None], int]:
        out, start = super().forward(images)
        return [None if y is None else y.flip(2) for y in out], start


Hasty.__qualname__, Hasty.__module__ = "Aggregator", "vggt.models.aggregator"


class Mine(VGGT):
    """Somebody's own model, whose heads may read any layer."""


def hooked() -> VGGT:
    model = made()
    model.aggregator.register_forward_hook(lambda *_: None)
    return model


def reversed_order() -> VGGT:
    model = made()
    model.aggregator.aa_order = ["global", "frame"]
    return model


def repeated() -> VGGT:
    model = made()
    model.aggregator.aa_block_size = 2
    return model


def patched() -> VGGT:
    model = made()
    model.aggregator.forward = model.aggregator.forward  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: made(Hasty()), "it gives other tokens for blocks of a test"),
        (lambda: made(Aggregator((2, 3))), "it gives other tokens for blocks of a test"),
        (lambda: Mine().eval(), "it is part of a Mine, whose heads may read any layer"),
        (lambda: VGGT().train(), "it is in training mode"),
        (hooked, "it has hooks"),
        (reversed_order, "its order is not frame, global"),
        (repeated, "it repeats blocks of a kind"),
        (patched, "it has a forward of its own"),
    ],
)
def test_others_are_left_alone_with_a_reason(model: Any, reason: str) -> None:
    model = model()
    before = model.aggregator
    _, report = vq.quantize_model(model, FLOAT)
    assert row_of(report).skipped == reason
    assert model.aggregator is before


def test_linear_schemes_leave_it() -> None:
    model, report = vq.quantize_model(made(), replace(FLOAT, fuse=False))
    assert not any(row.kind == "aggregator" for row in report.modules)
    assert type(model.aggregator) is Aggregator


def test_an_aggregator_alone_is_the_model_itself() -> None:
    _, report = vq.quantize_model(Aggregator().eval(), FLOAT)
    assert row_of(report).skipped == "it is the model itself"
