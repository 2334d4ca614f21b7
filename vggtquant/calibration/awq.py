# SPDX-License-Identifier: Apache-2.0
"""AWQ: columns with strong inputs are scaled up before they are coded, inputs down.

Lin et al., AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and
Acceleration, MLSys 2024 (arXiv 2306.00978), equations 4 and 5: minimise over alpha
|Q(W diag(s)) diag(s)^-1 X - W X|^2. s is the ratio form of the authors' code,
s = a^alpha / m^(1 - alpha) with the mean magnitude a_j of the input and m_j of the column's weights
relative to their group: unlike s = a^alpha it does not depend on how channels were scaled before.
"""

from __future__ import annotations

import torch

from ..configs import QuantizationSpec
from ..qtensor import quantize
from .folds import Smoothing
from .statistics import Ranges, Statistics

STEPS = 20
"""Of the grid of alpha."""


def factors(seen: Ranges, s: Statistics, weight: torch.Tensor, spec: QuantizationSpec) -> Smoothing:
    """The scale of each input (k,), a power of two, so that folds are exact; 1 if none is better.

    seen, s: of the float model's inputs; weight (n, k).
    """
    w = weight.detach().float()
    none = torch.zeros(w.shape[1], device="cpu")
    group = min(spec.group_size, w.shape[1]) if spec.granularity == "per_group" else w.shape[1]
    strength, size = seen.mean_magnitude, _relative_size(w, group).double()
    best = torch.ones(w.shape[1], device="cpu")
    least = _error(w, best, s, spec)
    for step in range(1, STEPS + 1):
        alpha = step / STEPS
        ratio = strength.clamp_min(1e-12) ** alpha / size.clamp_min(1e-6) ** (1 - alpha)
        ratio = torch.where((strength > 0) & (size > 0), ratio, torch.ones_like(ratio))
        ratio = ratio / (ratio.max() * ratio.min()).sqrt()
        candidate = torch.exp2(ratio.log2().round()).float()
        error = _error(w, candidate, s, spec)
        if error < least:
            best, least = candidate, error
    return Smoothing(best, none)


def _relative_size(w: torch.Tensor, group: int) -> torch.Tensor:
    """Mean over rows of |w| relative to the largest of its group."""
    k = w.shape[1]
    width = -(-k // group) * group
    size = torch.nn.functional.pad(w.abs(), (0, width - k)).reshape(len(w), -1, group)
    relative = size / size.amax(2, keepdim=True).clamp_min(1e-30)
    return relative.reshape(len(w), width)[:, :k].mean(0)


def _error(w: torch.Tensor, factor: torch.Tensor, s: Statistics, spec: QuantizationSpec) -> float:
    """Squared error of the outputs."""
    delta = (quantize(w * factor, spec).dequantize().float() / factor - w).double()
    return float(((delta @ s.hessian) * delta).sum())
