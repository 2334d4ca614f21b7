# SPDX-License-Identifier: Apache-2.0
"""The table of calibration methods: what each does before a layer is coded, and how it codes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..configs import QuantizationSpec
from ..errors import UserError
from ..qtensor import QTensor, quantize
from . import gptq
from .statistics import Statistics

Coder = Callable[[torch.Tensor, Statistics, QuantizationSpec], QTensor]


class Method(NamedTuple):
    """What a method does to a model."""

    words: str
    folds: bool
    """F1, F3 and F4 first, where they lower the rounding cost."""
    code: Coder
    smooths: bool = False
    """SmoothQuant for layers whose activations are quantized."""
    bias: bool = True
    """Correct the bias by the means of the inputs."""

    @property
    def looks(self) -> bool:
        """Whether pictures change anything."""
        return self.bias or self.smooths or self.code is not nearest


def nearest(weight: torch.Tensor, _: Statistics, spec: QuantizationSpec) -> QTensor:
    """Round to nearest."""
    return quantize(weight, spec)


def to_float_output(weight: torch.Tensor, s: Statistics, spec: QuantizationSpec) -> QTensor:
    """GPTQ of the weight that gives the float layer's output on the quantized model's inputs."""
    return gptq.gptq(gptq.target(weight, s), s, spec)


METHODS = {
    "rtn": Method("round to nearest", False, nearest, bias=False),
    "folds": Method("folds, round to nearest", True, nearest, bias=False),
    "bias": Method("round to nearest, bias correction", False, nearest),
    "smoothquant": Method("folds, SmoothQuant, round to nearest", True, nearest, smooths=True),
    "gptq": Method(
        "folds, SmoothQuant of quantized activations, GPTQ for the float layer's output, "
        "bias correction",
        True,
        to_float_output,
        smooths=True,
    ),
}


def get_method(name: str) -> Method:
    """The method of that name; UserError for another one."""
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown; one of {', '.join(METHODS)} is wanted")
    return METHODS[name]


def corrected_bias(
    bias: torch.Tensor, weight: torch.Tensor, coded: torch.Tensor, s: Statistics
) -> torch.Tensor:
    """b + W E[y] - W' E[x]: the mean output becomes that of the float layer.

    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019
    (arXiv 1906.04721), equation 13, with measured means of both models' inputs.
    """
    shift = weight.double() @ s.float_mean - coded.double() @ s.mean
    return (bias.double() + shift).to(bias.dtype)
