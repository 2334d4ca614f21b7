# SPDX-License-Identifier: Apache-2.0
"""Sites: where a model's graph calls for a quantized layer.

A copy of the model that shares all tensors has a Site in the place of each quantized layer. A site
records one operator with the layer's name; `lowering` puts ONNX nodes with the layer's own codes
and scales in its place. So the exporter of torch sees no packed bytes, and no weight is decoded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..aggregator import QuantizedAggregator
from ..blocks import Swapped
from ..conv import QuantizedConv2d
from ..dense import QuantizedDPTHead, set_module
from ..linear import QuantizedLinear

DOMAIN = "vggtquant"
"""Of the nodes that stand for sites until `lowering` replaces them."""


def _recorded(kind: str, x: Tensor, name: str, shape: Sequence[int]) -> Tensor:
    """A node of DOMAIN with x's dtype and that shape; it is never computed."""
    y: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{kind}", (x,), {"name": name}, dtype=x.dtype, shape=shape, version=1
    )
    return y


class LinearSite(nn.Module):
    """Stands for a QuantizedLinear while a graph is recorded."""

    def __init__(self, name: str, layer: QuantizedLinear) -> None:
        super().__init__()
        self.name = name
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) to (..., out_features)."""
        return _recorded("LinearSite", x, self.name, (*x.shape[:-1], self.out_features))


class ConvSite(nn.Module):
    """Stands for a QuantizedConv2d while a graph is recorded: its input and its weight are sites.

    A transposed one is the Linear of each pixel that our kernels compute.
    """

    def __init__(self, name: str, layer: QuantizedConv2d) -> None:
        super().__init__()
        self.name = name
        self.shape = layer.shape
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (n, in, height, width) to (n, out, …)."""
        shape, window = self.shape, self.shape.window
        if shape.transposed:
            n, _, high, wide = x.shape
            up, across = window.kernel
            rows = (n, high, wide, up * across * shape.outputs)
            y = _recorded("LinearSite", x.permute(0, 2, 3, 1), self.name, rows)
            y = y.reshape(n, high, wide, up, across, shape.outputs).permute(0, 5, 1, 3, 2, 4)
            return y.reshape(n, shape.outputs, high * up, wide * across)
        weight = (shape.outputs, shape.inputs, *window.kernel)
        return F.conv2d(
            _recorded("InputSite", x, self.name, x.shape),
            _recorded("WeightSite", x, self.name, weight),
            self.bias,
            window.stride,
            window.padding,
        )


class Rotary(nn.Module):
    """VGGT's 2-D rotary embedding without the largest position as a Python number, which a graph
    cannot hold; the same list of operations as `rope.tables`."""

    def __init__(self, base: float) -> None:
        super().__init__()
        self.base = base

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens (batch, heads, n, dim), positions (batch, n, 2), whole numbers (y, x)."""
        quarter = tokens.shape[-1] // 4
        rates = self.base ** -(torch.arange(quarter, dtype=torch.float32, device="cpu") / quarter)
        angles = (positions.float()[..., None] * rates)[:, None]  # (batch, 1, n, 2, quarter)
        cos, sin = angles.cos().to(tokens), angles.sin().to(tokens)
        cosines = torch.stack([cos, cos], -2).flatten(-3)
        sines = torch.stack([-sin, sin], -2).flatten(-3)
        a, b, c, d = tokens.chunk(4, dim=-1)
        return tokens * cosines + torch.cat([b, a, d, c], dim=-1) * sines


@dataclass
class Sites:
    """A model's copy for the exporter, and the layers that its sites stand for, by name."""

    model: nn.Module
    layers: dict[str, QuantizedLinear] = field(default_factory=dict)
    attentions: int = 0
    """Attentions that the kernels compute in integers or BF16 here, and the graph in float."""


StandIn = Callable[[str, QuantizedLinear], nn.Module]
"""From a quantized layer's name and itself to the module in its place."""


def site(name: str, layer: QuantizedLinear) -> nn.Module:
    """The layer's site."""
    return ConvSite(name, layer) if isinstance(layer, QuantizedConv2d) else LinearSite(name, layer)


def with_sites(model: nn.Module, stand_in: StandIn = site) -> Sites:
    """A copy of the model, its tensors shared, with sites in the place of quantized layers.

    Blocks, attentions and dense heads that this package computes as one are their originals again.
    """
    tensors = {id(x): x for x in [*model.parameters(), *model.buffers()]}
    sites = Sites(copy.deepcopy(model, tensors))
    for name, module in _modules(sites.model):
        if isinstance(module, Swapped):
            sites.attentions += type(module).__name__ == "QuantizedAttention"
            sites.model = put(sites.model, name, module.original)
        elif isinstance(module, QuantizedDPTHead | QuantizedAggregator):
            sites.model = put(sites.model, name, module.original)
    for name, module in _modules(sites.model):
        base = getattr(module, "base_frequency", None)
        if type(module).__name__ == "RotaryPositionEmbedding2D" and base is not None:
            sites.model = put(sites.model, name, Rotary(float(base)))
        if isinstance(module, QuantizedLinear):
            sites.layers[name] = module
            sites.model = put(sites.model, name, stand_in(name, module))
    return sites


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Inner ones first, a module of two names under each: what is put in place shows everywhere."""
    return list(model.named_modules(remove_duplicate=False))[::-1]


def put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The model with that module in the place of a name; the module itself for the name ""."""
    if not name:
        return module
    set_module(model, name, module)
    return model
