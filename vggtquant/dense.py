# SPDX-License-Identifier: Apache-2.0
"""QuantizedDPTHead: VGGT's dense head as one module, channels last, with INT8 convolutions.

It keeps the original's modules under their names, with QuantizedConv2d in the place of
convolutions, and replaces what lies between them: a ReLU is part of the codes that a convolution
reads, a residual part of what it writes, the last upsampling and position embedding are computed
where the convolution codes its input, and the last 1x1 convolution where it writes its output. A
fusion block's 1x1 convolution comes before the upsampling, with which it commutes, at a quarter of
the pixels.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import ops
from .conv import Conv, QuantizedConv2d, reason_against
from .stand_in import StandIn

LARGEST_ERROR = 0.25
"""Error of the outputs before their activation, as a share of their deviation, on random tokens, up
to which a head counts as the one that was recognised. INT8 makes about 0.05 with random weights."""

_BUDGET = 256 << 20
"""Bytes of pictures' maps at a time."""


@dataclasses.dataclass(frozen=True)
class Swapped:
    """One convolution of a model and what became of it."""

    name: str
    conv: Conv
    layer: QuantizedConv2d | None
    """What took its place; None: it stays, for the reason in `skipped`."""
    skipped: str | None
    note: str | None
    """Why the head around it is not computed as one module."""


def _uv(width: int, height: int, aspect: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture's columns and rows on the unit diagonal, pixels' centres."""
    diagonal = math.hypot(aspect, 1.0)

    def axis(span: float, n: int) -> torch.Tensor:
        end = span * (n - 1) / n
        return torch.linspace(-end, end, n, device="cpu")

    return axis(aspect / diagonal, width), axis(1 / diagonal, height)


def _waves(at: torch.Tensor, channels: int) -> torch.Tensor:
    """(n, channels) of sines, then cosines, of the positions `at` (n); base 100, times 0.1."""
    steps = torch.arange(channels // 2, dtype=torch.float64, device=at.device) / (channels / 2)
    angles = at.double()[:, None] / 100 ** steps[None]
    return (0.1 * torch.cat([angles.sin(), angles.cos()], 1)).float()


class QuantizedDPTHead(StandIn):
    """What `DPTHead` computes, from its own modules; see the top of this file.

    tokens, a list of (batch, pictures, tokens, dim), images (batch, pictures, 3, height, width) and
    the index of the first patch token give predictions and their confidence. Pictures are computed
    some at a time, as many as `budget` bytes hold; results are the same for any number.
    """

    budget = _BUDGET

    def __init__(self, head: nn.Module) -> None:
        super().__init__(head)
        of: Any = head
        self.patch_size: int = of.patch_size
        self.down_ratio: int = of.down_ratio
        self.pos_embed: bool = of.pos_embed
        self.activation: str = of.activation
        self.conf_activation: str = of.conf_activation
        self.intermediate_layer_idx: list[int] = list(of.intermediate_layer_idx)
        self.activate = sys.modules[type(head).__module__].activate_head
        self._tables: dict[tuple[int, int, float, int], ops.Tables] = {}
        self.train(head.training)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def tables(self, width: int, height: int, aspect: float, channels: int) -> ops.Tables | None:
        """The position embedding of maps of that size, made once."""
        if not self.pos_embed:
            return None
        key = (width, height, aspect, channels)
        found = self._tables.get(key)
        if found is None:
            columns, rows = _uv(width, height, aspect)
            half = channels // 2
            found = ops.Tables(_waves(columns, half), _waves(rows, half))
            if type(found.columns) is torch.Tensor:  # not of a FakeTensorMode, which has no values
                self._tables[key] = found
        return found

    def forward(
        self,
        aggregated_tokens_list: list[torch.Tensor],
        images: torch.Tensor,
        patch_start_idx: int,
        frames_chunk_size: int | None = 8,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions (batch, pictures, height, width, n) and confidence (batch, pictures, …)."""
        batch, pictures, _, height, width = images.shape
        taps = [aggregated_tokens_list[i] for i in self.intermediate_layer_idx]
        for i, tokens in zip(self.intermediate_layer_idx, taps, strict=True):
            if tokens is None:
                raise ValueError(f"the aggregator did not keep the outputs of its layer {i}")
        taps = [t.flatten(0, 1) for t in taps]
        size = (height // self.patch_size, width // self.patch_size)
        step = max(1, min(self.budget // self.picture_nbytes(size), frames_chunk_size or pictures))
        found = []
        for i in range(0, batch * pictures, step):
            if batch * pictures > 1:
                ops.trim()  # what the aggregator and the chunk before have left
            some = [t[i : i + step, patch_start_idx:] for t in taps]
            found.append(self._pictures(some, size, width / height))
        values, confidence = (
            torch.cat(part) if len(part) > 1 else part[0] for part in zip(*found, strict=True)
        )
        return (
            values.reshape(batch, pictures, *values.shape[1:]),
            confidence.reshape(batch, pictures, *confidence.shape[1:]),
        )

    def picture_nbytes(self, size: tuple[int, int]) -> int:
        """About the most bytes of maps that one picture of so many patches has at a time."""
        first: Any = self.scratch.layer1_rn
        maps = 4 * first.shape.outputs * 4  # four float maps at four times the patches' grid
        return int(size[0] * size[1] * (16 * maps + 4 * first.shape.outputs * 2))

    def _pictures(
        self, taps: list[torch.Tensor], size: tuple[int, int], aspect: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scratch: Any = self.scratch
        maps = []
        largest = []
        for i, tokens in enumerate(taps):
            x = self._resized(i, self._projected(i, tokens, size, aspect))
            layer: QuantizedConv2d = getattr(scratch, f"layer{i + 1}_rn")
            y, most = layer.pictures(x, torch.float32, relu=True)
            maps.append(y)
            largest.append(most)
        out = None
        while maps:
            block = getattr(scratch, f"refinenet{len(maps)}")
            out = self._fused(block, out, maps.pop(), largest.pop())
        assert out is not None
        double = (2 * out.shape[1], 2 * out.shape[2])
        y, most = scratch.output_conv1.pictures(out, torch.float32, size=double)
        whole = tuple(int(n * self.patch_size / self.down_ratio) for n in size)
        conv, _, last = scratch.output_conv2
        logits, _ = conv.pictures(
            y,
            torch.float32,
            size=whole,
            embedding=self.tables(whole[1], whole[0], aspect, y.shape[3]),
            largest=most,
            relu=True,
            projection=_projection(last),
        )
        return self.activate(  # type: ignore[no-any-return]
            logits.permute(0, 3, 1, 2),
            activation=self.activation,
            conf_activation=self.conf_activation,
        )

    def _projected(
        self, i: int, tokens: torch.Tensor, size: tuple[int, int], aspect: float
    ) -> torch.Tensor:
        """Tokens (n, patches, dim), normed, as a map (n, high, wide, channels)."""
        normed = self.norm(tokens)
        project: Any = self.projects[i]
        normed = normed.reshape(len(tokens), *size, -1)
        if isinstance(project, QuantizedConv2d):  # of a file that holds it so
            x = project.by_pixel(normed, torch.float32)
        else:
            x = _by_pixel(project, normed)
        tables = self.tables(size[1], size[0], aspect, x.shape[3])
        if tables:
            half = x.shape[3] // 2
            x[..., :half] += tables.columns
            x[..., half:] += tables.rows[:, None]
        return x

    def _resized(self, i: int, x: torch.Tensor) -> torch.Tensor:
        resize: Any = self.resize_layers[i]
        if isinstance(resize, nn.Identity):
            return x
        if resize.shape.by_pixel:
            return resize.by_pixel(x, torch.float32)  # type: ignore[no-any-return]
        return resize.pictures(x, torch.float32)[0]  # type: ignore[no-any-return]

    def _fused(
        self, block: Any, out: torch.Tensor | None, skip: torch.Tensor, most: torch.Tensor
    ) -> torch.Tensor:
        """A fusion block up to its upsampling, which the next step does.

        A unit's first ReLU works in place: what it adds is relu(x) too. So x comes without its
        negative values (relu, relu_sum), and one map serves both.
        """
        if out is not None:
            # skip + residual unit of skip + the map below, made as large
            added = ops.resize(out, (skip.shape[1], skip.shape[2]), skip)
            skip, most = self._unit(block.resConfUnit1, skip, most, added, relu_sum=True)
        skip, _ = self._unit(block.resConfUnit2, skip, most, skip, relu_sum=False)
        return block.out_conv.by_pixel(skip, torch.float32)  # type: ignore[no-any-return]

    @staticmethod
    def _unit(
        unit: Any, x: torch.Tensor, most: torch.Tensor, added: torch.Tensor, *, relu_sum: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """conv2(relu(conv1(x))) + added, and its largest values."""
        inner, most = unit.conv1.pictures(x, torch.float32, relu_x=True, relu=True, largest=most)
        return unit.conv2.pictures(  # type: ignore[no-any-return]
            inner,
            torch.float32,
            relu_x=True,
            largest=most,
            residual=added,
            relu_sum=relu_sum,
        )


def _by_pixel(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution in float of x (n, height, width, in), as a Linear of each pixel; float32.

    bfloat16 under autocast where AMX multiplies it; other CPUs gain little or nothing by it.
    """
    bf16 = torch.is_autocast_enabled("cpu") and ops.isa() == "amx"
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return F.linear(x.float(), conv.weight.detach().flatten(1), conv.bias).float()


def _projection(last: nn.Conv2d) -> ops.Projection:
    """The last 1x1 convolution, in float, as the convolution before it applies it."""
    outputs, inputs = last.weight.shape[:2]
    weight = torch.zeros(outputs, 64, device="cpu")
    weight[:, :inputs] = last.weight.detach().reshape(outputs, inputs)
    bias = weight.new_zeros(outputs) if last.bias is None else last.bias.detach().float()
    return ops.Projection(weight, bias)


# ---- the swap ------------------------------------------------------------------------------------

_CHILDREN = {"norm", "projects", "resize_layers", "scratch"}
_SCRATCH = {
    *(f"layer{i}_rn" for i in range(1, 5)),
    *(f"refinenet{i}" for i in range(1, 5)),
    *("output_conv1", "output_conv2"),
}


def is_dense_head(module: nn.Module) -> bool:
    """Whether a module is of VGGT's DPTHead and of its kin, by the name of its class."""
    return (
        any(kind.__name__ == "DPTHead" for kind in type(module).__mro__)
        and {name for name, _ in module.named_children()} == _CHILDREN
    )


def is_projection(name: str) -> bool:
    """Whether a convolution of that name makes maps of tokens, one of the 1x1 `projects`."""
    return name.split(".")[-2:-1] == ["projects"]


def reason_against_head(head: nn.Module) -> str | None:
    """Why the parts of a dense head stay as they are and only its convolutions change."""
    scratch: Any = head.scratch
    parts = {name for name, _ in scratch.named_children()}
    if parts != _SCRATCH:
        return f"its scratch has other parts: {', '.join(sorted(parts ^ _SCRATCH))}"
    units = [
        unit
        for i in range(1, 5)
        for name, unit in getattr(scratch, f"refinenet{i}").named_children()
        if name.startswith("resConfUnit")
    ]
    convolutions = convolutions_of(head)
    projects = [conv for name, conv in convolutions.items() if is_projection(name)]
    last = scratch.output_conv2[-1]
    checks = (
        (getattr(head, "feature_only", True), "it gives features only"),
        (len(units) != 7, f"it has {len(units)} residual units; 7 are known"),
        (any(getattr(unit, "bn", True) for unit in units), "its units normalize their batch"),
        (
            not all(getattr(unit.activation, "inplace", False) for unit in units),
            "its units' ReLU is not in place",
        ),
        (
            not isinstance(scratch.output_conv2[0], (nn.Conv2d, QuantizedConv2d))
            or [type(m) for m in scratch.output_conv2[1:]] != [nn.ReLU, nn.Conv2d],
            "its last convolutions are others",
        ),
        (last.in_channels > 64 or last.kernel_size != (1, 1), "its last convolution is another"),
        (
            any(m.weight[0, 0].numel() > 1 or m.groups > 1 or any(m.padding) for m in projects),
            "its projections are no Linears of a pixel",
        ),
        (not hasattr(sys.modules[type(head).__module__], "activate_head"), "no activate_head"),
        (any(m._forward_hooks or m._forward_pre_hooks for m in head.modules()), "it has hooks"),
        (head.training, "it is in training mode"),
    )
    for holds, reason in checks:
        if holds:
            return reason
    for name, conv in convolutions.items():
        if conv is last or is_projection(name):
            continue
        if against := reason_against(conv):
            return f"one of its convolutions stays in float: {against}"
    return None


def convolutions_of(model: nn.Module) -> dict[str, Conv]:
    """Each convolution of a model that is not quantized, by name."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def reasons_against(convolutions: Mapping[str, Conv]) -> dict[str, str]:
    """Why each convolution of a model stays in float; "" for one that does not.

    The last convolution of each part of the model and the 1x1 projections of tokens stay: they
    would make most of the error, at a fiftieth of the time (docs/performance.md).
    """
    last_of = {name.partition(".")[0]: name for name in convolutions}

    def reason(name: str, conv: Conv) -> str:
        if is_projection(name):
            return "a projection of tokens, which INT8 would cost most"
        if last_of[name.partition(".")[0]] == name:
            return "the last convolution of its head"
        return reason_against(conv) or ""

    return {name: reason(name, conv) for name, conv in convolutions.items()}


def swap_convolutions(
    model: nn.Module, left_out: Callable[[str], str]
) -> tuple[list[Swapped], dict[str, nn.Module]]:
    """Put QuantizedConv2d and QuantizedDPTHead in place; what became of each convolution.

    left_out: why a layer of a name stays, or "". The second result holds what was swapped out, in
    the order in which setting it back restores the model.
    """
    convolutions = convolutions_of(model)
    reasons = {name: left_out(name) or kept for name, kept in reasons_against(convolutions).items()}
    heads = {name: m for name, m in model.named_modules() if is_dense_head(m)}
    notes: dict[str, str | None] = {}
    originals: dict[str, nn.Module] = {}
    rows = []
    for name, head in heads.items():
        inside = [n for n in convolutions if n.startswith(f"{name}.")]
        within = [n for n in inside[:-1] if left_out(n) or not is_projection(n)]
        stays = next((reasons[n] for n in within if reasons[n]), None)
        notes[name] = stays or reason_against_head(head)
        if notes[name] is None:
            originals[name] = head
    for name, conv in convolutions.items():
        note = next((f"{h}: {n}" for h, n in notes.items() if n and name.startswith(f"{h}.")), None)
        if reasons[name]:
            rows.append(Swapped(name, conv, None, reasons[name], note))
            continue
        layer = QuantizedConv2d.from_conv(conv, name=name)
        layer.train(conv.training)
        originals[name] = conv
        rows.append(Swapped(name, conv, layer, None, note))
    references = {name: _answers(head) for name, head in heads.items() if name in originals}
    for row in rows:
        if row.layer is not None:
            set_module(model, row.name, row.layer)
    for name, expected in references.items():
        fused = QuantizedDPTHead(heads[name])
        error = _error(expected, _answers(fused))
        if error <= LARGEST_ERROR:
            set_module(model, name, fused)
            continue
        originals.pop(name)
        reason = f"{name}: its answer to random tokens differs by {error:.2f}, so it keeps its own"
        rows = [
            dataclasses.replace(r, note=reason) if r.name.startswith(f"{name}.") else r
            for r in rows
        ]
    return rows, originals


def fuse_heads(model: nn.Module) -> None:
    """Put QuantizedDPTHead around convolutions that are quantized already, as those of a file."""
    for name, head in [(n, m) for n, m in model.named_modules() if is_dense_head(m)]:
        left = [m for n, m in convolutions_of(head).items() if not is_projection(n)]
        last: Any = getattr(head.scratch, "output_conv2", [None])  # the tracker's gives features
        if left == [last[-1]] and reason_against_head(head.eval()) is None:
            set_module(model, name, QuantizedDPTHead(head))


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _answers(head: Any) -> tuple[torch.Tensor, ...]:
    """A head's outputs before their activations, for two small pictures of random tokens."""
    random = torch.Generator().manual_seed(0)
    high, wide, start = 3, 4, 1
    taps = range(max(head.intermediate_layer_idx) + 1)
    shape = (1, 2, start + high * wide, head.norm.normalized_shape[0])
    tokens = [torch.randn(shape, generator=random, device="cpu") for _ in taps]
    size = high * head.patch_size, wide * head.patch_size
    images = torch.zeros(1, 2, 3, *size, device="cpu")
    before = head.activation, head.conf_activation
    head.activation, head.conf_activation = "linear", "expp0"
    try:
        with torch.inference_mode(), torch.device("cpu"):
            values, confidence = head(tokens, images, start)
    finally:
        head.activation, head.conf_activation = before
    return values, confidence.log()


def _error(expected: tuple[torch.Tensor, ...], found: tuple[torch.Tensor, ...]) -> float:
    """The largest error of a channel, of its deviation from its mean; infinite: other shapes."""
    if any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
        return math.inf
    return max(
        float((a - b).norm() / (a - a.mean()).norm().clamp(min=1e-30))
        for whole, other in zip(expected, found, strict=True)
        for a, b in zip(_channels(whole), _channels(other), strict=True)
    )


def _channels(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.unbind(-1) if x.ndim == 5 else (x,)
