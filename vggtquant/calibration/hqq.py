# SPDX-License-Identifier: Apache-2.0
"""HQQ: scales by half-quadratic splitting under a norm that forgives outliers; no pictures.

Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023
(mobiusml.github.io/hqq_blog): minimise |w - s q|_p^p with p = 0.7 through an auxiliary error e,
e = shrink(w - s q, beta), then the parameter by least squares on w - e. The source solves for a
float zero point; our codes keep integer zero points, so that 0 stays exact, and the scale is
solved for: s = sum q (w - e) / sum q^2 over a group.
"""

from __future__ import annotations

import torch

from ..configs import QuantizationSpec
from ..qtensor import QTensor, grid, group_scales, quantize, recode, rescaled

NORM = 0.7
"""p"""
BETA, GROWTH, ITERATIONS = 10.0, 1.01, 20
"""Of the source; weights are brought to a largest magnitude of 1 first, or beta would mean
something else for each layer."""


def shrink(x: torch.Tensor, beta: float) -> torch.Tensor:
    """sign(x) max(0, |x| - |x|^(p - 1) / beta)."""
    size = x.abs()
    return x.sign() * (size - size.clamp_min(1e-8) ** (NORM - 1) / beta).clamp_min(0)


def hqq(weight: torch.Tensor, spec: QuantizationSpec) -> QTensor:
    """Codes of a weight (n, k); those of `quantize` where the norm of the error does not fall."""
    w = weight.detach().float()
    q = best = quantize(w, spec)
    unit = float(w.abs().max()) or 1.0
    least, beta = _norm(q, w, unit), BETA
    for _ in range(ITERATIONS):
        scale, zero, lowest, highest = grid(q)
        codes = ((w / scale).round() + zero).clamp(lowest, highest) - zero
        e = shrink((w - codes * scale) / unit, beta) * unit
        top, bottom = _sums(q, codes * (w - e)), _sums(q, codes.square())
        before = group_scales(q)
        solved = torch.where((top > 0) & (bottom > 0), top / bottom.clamp_min(1e-30), before)
        q = recode(rescaled(q, solved), w)
        beta *= GROWTH
        norm = _norm(q, w, unit)
        if norm >= least:
            break
        best, least = q, norm
    return best


def _norm(q: QTensor, w: torch.Tensor, unit: float) -> float:
    return float(((q.dequantize().float() - w) / unit).abs().pow(NORM).sum())


def _sums(q: QTensor, x: torch.Tensor) -> torch.Tensor:
    """Over each scale's values."""
    layout = q.layout
    x = x.reshape(layout.rows, layout.cols)
    padded = torch.nn.functional.pad(x, (0, layout.row_groups * layout.group - layout.cols))
    return padded.reshape(layout.groups, layout.group).sum(1)
