# SPDX-License-Identifier: Apache-2.0
"""GPTQ: columns are coded one after the other, and each one's error moves into those that follow.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
ICLR 2023 (arXiv 2210.17323), algorithm 1, with columns in descending order of their inputs' power
("act-order"). The target is the output of the float layer on the float model's inputs: the layer
also corrects what the layers before it did.
"""

from __future__ import annotations

import torch

from ..configs import QuantizationSpec
from ..qtensor import QTensor, grid, quantize, recode
from .statistics import Statistics

DAMPING = 0.01
"""Of each column's own power: a mean over columns would drown normal ones under outliers."""
SHRINKAGE = 0.05
"""Damping that comes on top, times inputs over tokens: few tokens say little of correlations."""
RIDGE = 1.0
"""How much the weight itself counts beside the inputs seen, in units of each column's power."""
BLOCK = 128
"""Columns whose updates of all later columns are made in one product."""


def target(weight: torch.Tensor, s: Statistics, ridge: float = RIDGE) -> torch.Tensor:
    """The float weight w' that does on x what `weight` does on y, near `weight`.

    Minimises sum |w' x - weight y|^2 + |(w' - weight) sqrt(R)|^2 with R = ridge diag(sum x x^T):
    w' = (weight C + weight R) (H + R)^-1, C = sum y x^T, H = sum x x^T.
    """
    w = weight.double()
    power = s.hessian.diagonal()
    r = ridge * torch.where(power > 0, power, torch.ones_like(power))
    root = (power + r).rsqrt()  # the system is solved with a unit diagonal
    right = (w @ s.cross + w * r) * root
    h = s.hessian.clone()  # k x k in float64: half a GB of VGGT's camera head, so in place
    h.diagonal().add_(r)
    lower = torch.linalg.cholesky(h.mul_(root).mul_(root[:, None]))
    del h
    return (torch.cholesky_solve(right.T, lower).T * root).float()


def gptq(weight: torch.Tensor, s: Statistics, spec: QuantizationSpec) -> QTensor:
    """Codes of a weight (n, k) whose error on the inputs is small.

    Scales are chosen for the weight as it comes and fixed before columns are ordered.
    """
    q = quantize(weight, spec)
    scale, zero, lowest, highest = grid(q)
    order, upper = _inverse_factor(s)
    w, scale, zero = (m.float().T[order] for m in (weight, scale, zero))  # a column is a line here
    coded = torch.empty_like(w)
    k, n = w.shape
    for start in range(0, k, BLOCK):
        end = min(start + BLOCK, k)
        errors = torch.empty(end - start, n, device="cpu")
        for j in range(start, end):
            code = (w[j] / scale[j]).round_().add_(zero[j])
            coded[j] = code.clamp_(lowest, highest).sub_(zero[j]).mul_(scale[j])
            errors[j - start] = (w[j] - coded[j]) / upper[j, j]
            w[j:end].addr_(upper[j, j:end], errors[j - start], alpha=-1)
        w[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return recode(q, coded[torch.argsort(order)].T.contiguous())


def _inverse_factor(s: Statistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of the columns, and U with U^T U = (H + DAMPING * diag H)^-1 in that order."""
    power = s.hessian.diagonal()
    order = torch.argsort(power, descending=True, stable=True)
    power = torch.where(power > 0, power, torch.ones_like(power))  # a dead input keeps its weight
    root = power.rsqrt()[order]
    h = s.hessian[order[:, None], order].mul_(root).mul_(root[:, None])
    h.diagonal().fill_(1 + DAMPING + SHRINKAGE * len(h) / max(1, s.count))
    h = torch.linalg.cholesky(h)  # each one is freed as the next is there
    h = torch.cholesky_inverse(h)
    h = torch.linalg.cholesky(h, upper=True)
    return order, h.mul_(root).float()
