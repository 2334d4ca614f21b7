# SPDX-License-Identifier: Apache-2.0
"""Folds: neighbouring operations of a transformer block that are merged or rescaled exactly.

A block computes x += ls1 * proj(attention(qkv(norm1 x))) and x += ls2 * fc2(gelu(fc1(norm2 x))).
A fold changes what a quantizer sees, not the function (up to float rounding) nor its cost.
Modules are replaced, never changed, so that the float model can be set back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from ..weights.tensors import page_out


@dataclass
class Edits:
    """Modules of a model that were replaced, by name, as they were at first; none unless `keep`."""

    model: nn.Module
    keep: bool = True
    originals: dict[str, nn.Module] = field(default_factory=dict)

    def set(self, name: str, module: nn.Module) -> None:
        """Puts a module in the place of another, whose pages of a mapped file are not needed any
        more unless it is kept."""
        before = self.model.get_submodule(name)
        if self.keep:
            self.originals.setdefault(name, before)
        else:
            for parameter in before.parameters():
                page_out(parameter)
        put(self.model, name, module)

    def undo(self) -> None:
        """Sets all of them back."""
        for name, module in self.originals.items():
            put(self.model, name, module)
        self.originals.clear()


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in its place, whatever attribute of whatever parent that is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


class Smoothing(NamedTuple):
    """Input channel j becomes (x_j - shift_j) / scale_j."""

    scale: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class Branch:
    """One residual branch of a block: names of its modules."""

    norm: str
    """LayerNorm, the only reader's producer."""
    first: str
    """qkv or fc1."""
    last: str
    """proj or fc2."""
    scale: str
    """LayerScale after `last`; "" where there is none."""
    attention: bool


def branches(model: nn.Module) -> Iterator[Branch]:
    """The residual branches of all blocks that are built as VGGT's and DINOv2's."""
    for name, block in model.named_modules():
        dot = f"{name}." if name else ""
        for norm, first, last, scale in (
            ("norm1", "attn.qkv", "attn.proj", "ls1"),
            ("norm2", "mlp.fc1", "mlp.fc2", "ls2"),
        ):
            try:
                parts = [block.get_submodule(part) for part in (norm, first, last)]
            except AttributeError:
                continue
            if not isinstance(parts[0], nn.LayerNorm) or not all(
                type(part) is nn.Linear and not part._forward_hooks and not part._forward_pre_hooks
                for part in parts[1:]
            ):
                continue
            gamma = getattr(getattr(block, scale, None), "gamma", None)
            yield Branch(
                dot + norm,
                dot + first,
                dot + last,
                dot + scale if isinstance(gamma, nn.Parameter) else "",
                norm == "norm1",
            )


def linear(weight: torch.Tensor, bias: torch.Tensor | None, like: nn.Linear) -> nn.Linear:
    """A new nn.Linear with these values, in the dtype of another one."""
    layer = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.to(like.weight.dtype), like.weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(like.weight.dtype), like.weight.requires_grad)
    return layer.train(like.training)


def norm_like(norm: nn.LayerNorm, weight: torch.Tensor, bias: torch.Tensor) -> nn.LayerNorm:
    """A new LayerNorm with these values."""
    new = nn.LayerNorm(norm.normalized_shape, norm.eps, device="meta")
    new.weight = nn.Parameter(weight, norm.weight.requires_grad)
    new.bias = nn.Parameter(bias, norm.weight.requires_grad)
    return new.train(norm.training)


def doubles(layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    weight = layer.weight.detach().double()
    if layer.bias is None:
        return weight, weight.new_zeros(len(weight))
    return weight, layer.bias.detach().double()


@torch.no_grad()
def fold_norm(edits: Edits, branch: Branch, group: int | None = None) -> None:
    """F1: the affine part of LayerNorm into the layer that reads it.

    W' = W diag(g), b' = b + W beta. With a group size, only where that lowers the rounding cost.
    """
    norm = edits.model.get_submodule(branch.norm)
    reader = edits.model.get_submodule(branch.first)
    assert isinstance(norm, nn.LayerNorm) and isinstance(reader, nn.Linear)
    if not norm.elementwise_affine:
        return
    weight, bias = doubles(reader)
    g = norm.weight.double()
    if group is not None and not (
        rounding_cost(weight * g, torch.ones_like(g), group)
        < rounding_cost(weight, g.square(), group)
    ):
        return
    beta = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
    bias = bias + weight @ beta.double()
    edits.set(branch.first, linear(weight * g, bias, reader))
    ones = torch.ones_like(norm.weight)
    edits.set(branch.norm, norm_like(norm, ones, torch.zeros_like(ones)))


@torch.no_grad()
def fold_layer_scale(edits: Edits, branch: Branch) -> None:
    """F3: LayerScale into the layer before it. W' = diag(gamma) W, b' = gamma b."""
    if not branch.scale:
        return
    module = edits.model.get_submodule(branch.scale)
    last = edits.model.get_submodule(branch.last)
    assert isinstance(last, nn.Linear) and isinstance(module.gamma, nn.Parameter)
    gamma = module.gamma.double()
    weight, bias = doubles(last)
    edits.set(branch.last, linear(gamma[:, None] * weight, gamma * bias, last))
    edits.set(branch.scale, _with_gamma(module, torch.ones_like(module.gamma)))


def _with_gamma(module: nn.Module, gamma: torch.Tensor) -> nn.Module:
    new = type(module).__new__(type(module))
    nn.Module.__init__(new)
    new.__dict__ |= {k: v for k, v in module.__dict__.items() if not k.startswith("_")}
    new.gamma = nn.Parameter(gamma, bool(module.gamma.requires_grad))
    return new.train(module.training)


@torch.no_grad()
def balance_values(edits: Edits, branch: Branch, group: int | None = None) -> None:
    """F4: values of attention rescaled a channel, and the projection's columns by the inverse.

    The factors are powers of two that balance the norms of both sides. With a group size, only
    where that lowers the rounding cost.
    """
    found = values_of(edits, branch)
    if found is None:
        return
    qkv, proj = found
    values = qkv.weight.detach().double()[2 * proj.in_features :].norm(dim=1)
    out = proj.weight.detach().double()
    s = balance(values, out.norm(dim=0))
    if group is None or (
        rounding_cost(out * s, (values / s).square(), group)
        < rounding_cost(out, values.square(), group)
    ):
        smooth_values(edits, branch, Smoothing(s, torch.zeros_like(s)))


def values_of(edits: Edits, branch: Branch) -> tuple[nn.Linear, nn.Linear] | None:
    """qkv and proj of an attention whose last third of outputs are values as wide as proj."""
    if not branch.attention:
        return None
    qkv, proj = (edits.model.get_submodule(name) for name in (branch.first, branch.last))
    assert isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)
    return (qkv, proj) if qkv.out_features == 3 * proj.in_features else None


@torch.no_grad()
def smooth_values(edits: Edits, branch: Branch, by: Smoothing) -> None:
    """F4: proj's input becomes (x - shift) / scale, through the values of attention.

    Attention mixes tokens with weights that sum to 1, never channels of a value: W_v' = W_v / s,
    b_v' = (b_v - c) / s, W_proj' = W_proj diag(s), b_proj' = b_proj + W_proj c. Without biases on
    both sides there is no shift.
    """
    found = values_of(edits, branch)
    if found is None:
        return
    qkv, proj = found
    (weight, bias), (out, out_bias) = doubles(qkv), doubles(proj)
    s, c = by.scale.double(), by.shift.double()
    biased = qkv.bias is not None and proj.bias is not None
    c = c if biased else torch.zeros_like(c)
    rows = slice(2 * proj.in_features, None)
    weight, bias = weight.clone(), bias.clone()
    weight[rows] /= s[:, None]
    bias[rows] = (bias[rows] - c) / s
    edits.set(branch.first, linear(weight, bias if qkv.bias is not None else None, qkv))
    out_bias = out_bias + out @ c
    edits.set(branch.last, linear(out * s, out_bias if proj.bias is not None else None, proj))


def rounding_cost(weight: torch.Tensor, power: torch.Tensor, group: int) -> float:
    """Expected squared error of the outputs, up to a factor, if the weight is rounded to nearest.

    A group's step is proportional to its largest weight, errors are independent, and `power` is
    the mean square of each input.
    """
    k = weight.shape[1]
    cost = 0.0
    for start in range(0, k, group):
        columns = slice(start, min(start + group, k))
        largest = weight[:, columns].abs().amax(1)
        cost += float((largest.square().sum() * power[columns].sum()).item())
    return cost


def balance(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Powers of two near sqrt(rows / columns); 1 where a side is zero."""
    usable = (rows > 0) & (columns > 0)
    ratio = torch.where(usable, rows / columns.clamp_min(1e-30), torch.ones_like(rows))
    return torch.exp2(ratio.clamp_min(1e-30).log2().div(2).round())


@torch.no_grad()
def smooth_inputs(edits: Edits, branch: Branch, by: Smoothing) -> None:
    """F2: the reader's input becomes (x - shift) / scale, through the LayerNorm before it.

    g' = g / s, beta' = (beta - c) / s, W' = W diag(s), b' = b + W c. A reader without a bias has no
    shift.
    """
    norm = edits.model.get_submodule(branch.norm)
    reader = edits.model.get_submodule(branch.first)
    assert isinstance(norm, nn.LayerNorm) and isinstance(reader, nn.Linear)
    smoothed, c = smooth_linear(reader, by)
    edits.set(branch.first, smoothed)
    s = by.scale.double()
    gain = torch.ones_like(s) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(s) if norm.bias is None else norm.bias.double()
    dtype = reader.weight.dtype
    edits.set(branch.norm, norm_like(norm, (gain / s).to(dtype), ((beta - c) / s).to(dtype)))


@torch.no_grad()
def smooth_linear(layer: nn.Linear, by: Smoothing) -> tuple[nn.Linear, torch.Tensor]:
    """The layer that gives on (x - shift) / scale what `layer` gives on x, and its shift (float64):
    0 without a bias."""
    weight, bias = doubles(layer)
    s, c = by.scale.double(), by.shift.double()
    if layer.bias is None:
        return linear(weight * s, None, layer), torch.zeros_like(c)
    return linear(weight * s, bias + weight @ c, layer), c


def fold_branch(edits: Edits, branch: Branch, group: int | None = None) -> None:
    """F1, F3 and F4 on one branch.

    group: size of the groups that are to share a scale; F1 and F4 are then made only where they
    lower the rounding cost.
    """
    fold_norm(edits, branch, group)
    fold_layer_scale(edits, branch)
    balance_values(edits, branch, group)


def fold(edits: Edits, group: int | None = None) -> int:
    """F1, F3 and F4 on every block; returns how many branches there are."""
    found = list(branches(edits.model))
    for branch in found:
        fold_branch(edits, branch, group)
    return len(found)
