# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: a quantized model that trains, and the way back to packed codes.

A layer's codes become numbers that round to them (straight-through estimator: Bengio et al., arXiv
1308.3432); scales train too (Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv
1902.08153). Grids are the packed format's, so what is written back computes what was trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..linear import QuantizedLinear
from ..qtensor import grid, recode
from .folds import put
from .observers import HIGHEST


class _Round(torch.autograd.Function):
    """Rounds; passes the gradient on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def rounded(x: Tensor) -> Tensor:
    found: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return found


class TrainedLinear(nn.Module):
    """A QuantizedLinear of symmetric codes whose codes, scales and bias train.

    `codes` are in steps of the grid and start at the layer's own, so the first forward computes
    what the layer computes, up to float rounding. `log_scale` multiplies each row's scales.
    """

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        if not layer.spec.symmetric:
            raise UserError("symmetric codes train; the layer's are asymmetric")
        self.layer = (layer,)  # no child: its packed codes are not the model's any more
        self.in_features, self.out_features = layer.in_features, layer.out_features
        q = layer.qtensor()
        scale, _, self.lowest, self.highest = grid(q)
        self.register_buffer("scale", scale, persistent=False)
        self.codes = nn.Parameter((q.dequantize().float() / scale).round())
        self.log_scale = nn.Parameter(torch.zeros(self.out_features, 1, device=scale.device))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def weight(self) -> Tensor:
        """What the codes stand for now, (out, in)."""
        codes = rounded(self.codes.clamp(self.lowest, self.highest))
        scale: Tensor = self.scale  # type: ignore[assignment]
        return codes * (scale * self.log_scale.exp())

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer[0]
        if layer.input_weight is not None:
            x = x * layer.input_weight
            x = x if layer.input_bias is None else x + layer.input_bias
        if layer.config.quantize_activations:
            highest = HIGHEST[layer.activation_bits]
            step = layer.input_scale or x.detach().abs().amax(-1, keepdim=True) / highest
            step = torch.as_tensor(step, device=x.device).clamp_min(2.0**-112)
            x = rounded((x / step).clamp(-highest, highest)) * step
        return F.linear(x, self.weight(), self.bias)

    @torch.no_grad()
    def packed(self) -> QuantizedLinear:
        """The layer with the codes, scales and bias that were trained."""
        layer = self.layer[0]
        q = layer.qtensor()
        stored = torch.from_numpy(np.asarray(q.stored_scale)).reshape(-1).float()
        if q.spec.granularity == "per_tensor":
            raise UserError("a scale a row or group trains; the layer has one for the whole weight")
        rows = self.log_scale.exp().reshape(-1)
        stored = stored * rows.repeat_interleave(len(stored) // len(rows))
        stored = round17(stored) if q.factor is not None else stored
        q = replace(q, stored_scale=np.ascontiguousarray(stored.numpy()))
        codes = self.codes.clamp(self.lowest, self.highest).round()
        q = recode(q, codes * grid(q)[0])
        bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone(), False)
        return QuantizedLinear(q, bias, layer.config, layer.name, layer.inputs)


def round17(x: Tensor) -> Tensor:
    """To 17 significant bits, ties to even, as two-level scales are (docs/conventions.md)."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x3F + ((bits >> 7) & 1)) & ~0x7F).view(torch.float32)


def trainable(model: nn.Module) -> list[str]:
    """Puts a TrainedLinear in the place of every QuantizedLinear; their names."""
    names = [n for n, m in model.named_modules() if type(m) is QuantizedLinear]
    if not names:
        raise UserError(f"{type(model).__name__} has no quantized layer; vq.calibrate first")
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        put(model, name, TrainedLinear(layer))
    return names


def pack(model: nn.Module) -> None:
    """Puts packed layers back; what model computes is what was trained, in integers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, TrainedLinear):
            put(model, name, module.packed().train(module.training))


def parameter_groups(model: nn.Module, codes: float, rest: float) -> list[dict[str, Any]]:
    """For a torch optimizer: codes at one rate (in steps of the grid), scales, biases and norms at
    another. Everything else is frozen."""
    steps, others = [], []
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, TrainedLinear):
            steps.append(module.codes)
            others += [module.log_scale, *([] if module.bias is None else [module.bias])]
        elif isinstance(module, nn.LayerNorm):
            others += list(module.parameters())
    for parameter in (*steps, *others):
        parameter.requires_grad_(True)
    return [{"params": steps, "lr": codes}, {"params": others, "lr": rest}]
