# SPDX-License-Identifier: Apache-2.0
"""The table of calibration methods: what each does before a layer is coded, and how it codes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..configs import QuantizationSpec
from ..errors import UserError
from ..qtensor import QTensor, quantize
from . import awq, clip, gptq, hqq, smoothquant
from .folds import Smoothing
from .statistics import Ranges, Statistics

Coder = Callable[[torch.Tensor, Statistics, QuantizationSpec], QTensor]


class Scaling(NamedTuple):
    """How channels of a layer's input are scaled against the columns of its weight."""

    factors: Callable[[Ranges, Statistics, torch.Tensor, QuantizationSpec], Smoothing]
    coded_inputs: bool
    """For layers whose activations are quantized, fc2 among them; else for all that have a fold."""
    hessian: bool
    """Whether it asks for the statistics, which take time."""


class Method(NamedTuple):
    """What a method does to a model."""

    words: str
    folds: bool
    """F1, F3 and F4 first, where they lower the rounding cost."""
    codes: dict[str, Coder]
    """By name; with several, each layer takes the one with the least error on held-out pictures."""
    scaling: Scaling | None = None
    bias: bool = True
    """Correct the bias by the means of the inputs."""
    rotates: bool = False
    """Rotate the values of attention, head by head (F4)."""

    @property
    def looks(self) -> bool:
        """Whether pictures change anything."""
        blind = {nearest, blind_hqq, blind_clip}
        return self.bias or self.scaling is not None or not set(self.codes.values()) <= blind


def nearest(weight: torch.Tensor, _: Statistics, spec: QuantizationSpec) -> QTensor:
    """Round to nearest."""
    return quantize(weight, spec)


def blind_hqq(weight: torch.Tensor, _: Statistics, spec: QuantizationSpec) -> QTensor:
    """HQQ looks at the weight alone."""
    return hqq.hqq(weight, spec)


def blind_clip(weight: torch.Tensor, _: Statistics, spec: QuantizationSpec) -> QTensor:
    """The scale with the least squared error of the weight."""
    return clip.clip(weight, spec)


def clip_by_power(weight: torch.Tensor, s: Statistics, spec: QuantizationSpec) -> QTensor:
    """The scale with the least error of the output, if inputs were independent."""
    return clip.clip(weight, spec, s.hessian.diagonal())


def to_float_output(weight: torch.Tensor, s: Statistics, spec: QuantizationSpec) -> QTensor:
    """GPTQ of the weight that gives the float layer's output on the quantized model's inputs."""
    return gptq.gptq(gptq.target(weight, s), s, spec)


def clip_to_float_output(weight: torch.Tensor, s: Statistics, spec: QuantizationSpec) -> QTensor:
    """The same target, clipped and rounded to nearest: for few tokens, to which GPTQ overfits."""
    return clip.clip(gptq.target(weight, s), spec, s.hessian.diagonal())


SMOOTH = Scaling(
    lambda r, s, w, spec: smoothquant.factors(r, w, smoothquant.STRENGTH[spec.bits]), True, False
)
AWQ = Scaling(awq.factors, False, True)

METHODS = {
    "rtn": Method("round to nearest", False, {"rtn": nearest}, bias=False),
    "folds": Method("folds, round to nearest", True, {"rtn": nearest}, bias=False),
    "clip": Method(
        "clipping by squared error, round to nearest", False, {"clip": blind_clip}, bias=False
    ),
    "hqq": Method("half-quadratic scales", False, {"hqq": blind_hqq}, bias=False),
    "hadamard": Method(
        "folds, Hadamard rotation of attention's values, round to nearest",
        True,
        {"rtn": nearest},
        bias=False,
        rotates=True,
    ),
    "bias": Method("round to nearest, bias correction", False, {"rtn": nearest}),
    "smoothquant": Method(
        "folds, SmoothQuant, round to nearest, bias correction", True, {"rtn": nearest}, SMOOTH
    ),
    "awq": Method(
        "folds, AWQ, clipping, round to nearest, bias correction", True, {"awq": clip_by_power}, AWQ
    ),
    "gptq": Method(
        "folds, SmoothQuant of quantized activations, GPTQ for the float layer's output, "
        "bias correction",
        True,
        {"gptq": to_float_output},
        SMOOTH,
    ),
    "best": Method(
        "folds, SmoothQuant of quantized activations, the best of GPTQ, clipping and rounding to "
        "nearest on held-out pictures for each layer, bias correction",
        True,
        {"gptq": to_float_output, "clip": clip_to_float_output, "rtn": nearest},
        SMOOTH,
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
