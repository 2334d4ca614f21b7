# SPDX-License-Identifier: Apache-2.0
"""Whether a runtime's outputs are ours: differences beside a bound that is stated.

A float graph may differ by rounding alone. With quantized activations every rounding of a norm or
a softmax may move a code by one, and the codes of all later layers with it, so two right executions
differ by noise of the size that coding activations makes. That size is measured: our outputs
against those of the same weights with float activations. The same holds of products in half
precision: these are then under torch.autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..conv import QuantizedConv2d, kernels
from ..linear import QuantizedLinear
from .sites import Sites, put
from .trace import OUTPUTS, plain_autocast

FLOAT_BOUND = 1e-4
"""Of a graph whose layers are all float."""
BOUND = 0.02
"""Of a quantized one, at least."""
NOISE, NOISE_OF_FEW, FEW = 2.5, 4.0, 1000
"""Times what coding of activations changes in an output; in one of fewer numbers than FEW.

Two independent roundings are 1.41 times as far apart as one of them is from no rounding, give or
take what chance does to a percentile: of 9 numbers, the least that poses have, the ratio exceeds 4
in 0.15 % of draws. Values of a depth map are not independent: 2.5 is exceeded as seldom by some
30 independent ones.
"""
PERCENTILE = 99.9


@dataclass(frozen=True)
class Difference:
    """Of one output, in deviations of that output.

    >>> Difference("depth", 0.001, 0.002, 0.02).is_small
    True
    """

    output: str
    size: float
    """The 99.9th percentile of the difference's magnitude."""
    largest: float
    bound: float
    """What `size` may be."""

    @property
    def is_small(self) -> bool:
        """Whether it stays within the bound; NaN does not."""
        return self.size <= self.bound

    def __str__(self) -> str:
        return (
            f"{self.output}: {self.size:.2g} of its deviation (99.9th percentile; largest "
            f"{self.largest:.2g}, bound {self.bound:.2g})"
        )


def expected(model: nn.Module, images: Tensor) -> dict[str, NDArray[np.float32]]:
    """OUTPUTS of the model, those that it has."""
    with torch.inference_mode():
        found = model(images)
    named = {name: found[name] for name in OUTPUTS if isinstance(found.get(name), Tensor)}
    return {name: value.float().numpy() for name, value in named.items()}


def bounds(
    ours: dict[str, NDArray[np.float32]], sites: Sites, images: Tensor, float_dtype: str = "float32"
) -> dict[str, float]:
    """What each output's difference may be. The model of `sites` computes afterwards."""
    if not sites.layers and float_dtype == "float32":
        return dict.fromkeys(ours, FLOAT_BOUND)
    cast = torch.autocast("cpu", getattr(torch, float_dtype), float_dtype != "float32")
    with plain_autocast(), cast:
        other = expected(_decoded(sites, Decoded), images)
    return {name: max(BOUND, _noise(ours[name], x)) for name, x in other.items()}


def _noise(ours: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """How far from `ours` a right execution may be, `other` being one without coded activations."""
    return (NOISE_OF_FEW if ours.size < FEW else NOISE) * _sizes(ours, other)[0]


def with_float_activations(
    sites: Sites, images: Tensor, decoded: Callable[[QuantizedLinear], nn.Module] | None = None
) -> dict[str, NDArray[np.float32]]:
    """Outputs of the same weights with float activations. The model of `sites` computes them.

    decoded: from a layer to the module that has its weight as the file has it; None: our own.
    """
    return expected(_decoded(sites, decoded or Decoded), images)


def differences(
    ours: dict[str, NDArray[np.float32]],
    theirs: dict[str, NDArray[np.float32]],
    bound: dict[str, float],
) -> list[Difference]:
    """One an output.

    >>> one = {"depth": np.arange(4.0)}
    >>> differences(one, one, {"depth": 1e-4})[0].size
    0.0
    """
    return [Difference(name, *_sizes(ours[name], theirs[name]), bound[name]) for name in ours]


def _sizes(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[float, float]:
    if ours.shape != theirs.shape:
        return float("inf"), float("inf")
    apart = np.abs(ours.astype(np.float64) - theirs)
    deviation = max(float(ours.std(dtype=np.float64)), 1e-30)
    return float(np.percentile(apart, PERCENTILE)) / deviation, float(apart.max()) / deviation


def _decoded(sites: Sites, decoded: Callable[[QuantizedLinear], nn.Module]) -> nn.Module:
    """The model of `sites` with float activations: each weight is decoded when it is used."""
    model = sites.model
    for name, layer in sites.layers.items():
        model = put(model, name, decoded(layer))
    return model


class Decoded(nn.Module):
    """A quantized layer whose activations are float."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.layer = layer

    def rows(self) -> Tensor:
        """The weight (outputs, inputs of the product), decoded for this call."""
        return torch.as_tensor(self.layer.qtensor().dequantize(), device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        """What the layer's own forward takes and returns."""
        layer, weight = self.layer, self.rows()
        if layer.input_weight is not None:
            x = x * layer.input_weight
        if layer.input_bias is not None:
            x = x + layer.input_bias
        if not isinstance(layer, QuantizedConv2d):
            return F.linear(x, weight, layer.bias)
        return _convolved(layer, x, weight)


def _convolved(layer: QuantizedConv2d, x: Tensor, rows: Tensor) -> Tensor:
    shape, window = layer.shape, layer.shape.window
    if shape.folded:
        rows = rows[: shape.outputs] + rows[shape.outputs :]
    weight = kernels(rows, shape)
    if shape.transposed:
        return F.conv_transpose2d(x, weight, layer.bias, window.stride)
    return F.conv2d(x, weight, layer.bias, window.stride, window.padding)
