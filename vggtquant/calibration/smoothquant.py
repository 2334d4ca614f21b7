# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: ranges of quantized activations moved into the weights, where a fold makes it free.

Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models, ICML 2023 (arXiv 2211.10438), equation 4. qkv and fc1 are scaled through the LayerNorm
before them (F2), proj through the values of attention (F4); fc2 has no exact fold.
"""

from __future__ import annotations

import torch

from . import folds

STRENGTH = 0.5
"""alpha: 1 moves all of the activations' range, 0 none."""


def factors(absmax: torch.Tensor, weight: torch.Tensor, alpha: float = STRENGTH) -> torch.Tensor:
    """s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), to the nearest power of two; 1 for a dead input.

    Inputs are divided by s, columns multiplied: powers of two make both exact.
    """
    largest = weight.detach().abs().amax(0).double()
    usable = (absmax > 0) & (largest > 0)
    s = absmax.double().clamp_min(1e-30) ** alpha / largest.clamp_min(1e-30) ** (1 - alpha)
    s = torch.where(usable, s, torch.ones_like(s))
    s = s / s[usable].log().mean().exp() if usable.any() else s  # the typical channel stays
    s = torch.where(usable, s, torch.ones_like(s))
    return torch.exp2(s.log2().round()).float()


def smooth(edits: folds.Edits, branch: folds.Branch, found: dict[str, torch.Tensor]) -> None:
    """Scales the inputs of the branch's layers; `found` has a factor for some of them, by name."""
    if branch.first in found:
        folds.scale_inputs(edits, branch, found[branch.first])
    if branch.attention and branch.last in found:
        folds.scale_values(edits, branch, factor=found[branch.last])
