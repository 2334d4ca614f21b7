# SPDX-License-Identifier: Apache-2.0
"""Clipping of weights: the scale with the least squared error, not the one that covers the largest.

Nagel et al., A White Paper on Neural Network Quantization (arXiv 2106.08295), section 3.1:
minimise over the range sum_j h_j (w_j - q_j(range))^2; h_j is 1, or the mean square of input j.
"""

from __future__ import annotations

import torch

from ..configs import QuantizationSpec
from ..qtensor import QTensor, group_scales, quantize, recode, rescaled

RATIOS = tuple(1 - i / 50 for i in range(26))
"""Of the covering range that are tried: 1 to 0.5."""


def clip(
    weight: torch.Tensor, spec: QuantizationSpec, power: torch.Tensor | None = None
) -> QTensor:
    """Codes of a weight (n, k) with clipped scales, rounded to nearest.

    power: of each input, (k,); all alike where None. No group's error is larger than that of
    `quantize`, which is one of the candidates.
    """
    w = weight.detach().float()
    start = quantize(w, spec)
    h = (
        torch.ones(w.shape[1], device="cpu")
        if power is None
        else power.float() / max(1e-30, float(power.max()))
    )
    best_cost = _cost(start, w, h)
    covering = group_scales(start)
    best = covering.clone()
    for ratio in RATIOS[1:]:
        q = rescaled(start, covering * ratio)
        cost = _cost(recode(q, w), w, h)
        better = cost < best_cost
        best = torch.where(better, group_scales(q), best)
        best_cost = torch.where(better, cost, best_cost)
    return recode(rescaled(start, best), w)


def _cost(q: QTensor, w: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of each scale's values."""
    layout = q.layout
    error = (h * (q.dequantize().float() - w).square()).reshape(layout.rows, layout.cols)
    width = layout.row_groups * layout.group
    padded = torch.nn.functional.pad(error, (0, width - layout.cols))
    return padded.reshape(layout.groups, layout.group).sum(1)
