# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: ranges of quantized activations moved into the weights and biases.

Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models, ICML 2023 (arXiv 2211.10438), equation 4, with the shift of Wei et al., Outlier
Suppression+, EMNLP 2023 (arXiv 2304.09145), equation 4. qkv and fc1 are smoothed through the
LayerNorm before them (F2) and proj through the values of attention (F4), at no cost. Before other
layers stands no operation that takes the factors (GELU before fc2, the camera head's own layers):
their kernels multiply and add as they read the input.
"""

from __future__ import annotations

import torch

from .folds import Smoothing
from .statistics import Ranges

STRENGTH = {8: 0.8, 4: 0.65}
"""alpha by the bits of the weight: 1 moves all of the activations' range, 0 none."""


def factors(
    seen: Ranges, weight: torch.Tensor, alpha: float = STRENGTH[8], shifts: bool = True
) -> Smoothing:
    """What makes channels alike: inputs become (x_j - c_j) / s_j.

    c_j is the middle of the channel's range, s_j = r_j^alpha / max|W_j|^(1 - alpha) with half the
    range r_j, relative to the mean channel. s_j is 1 for a channel that never changes. shifts:
    False leaves c at 0.
    """
    middle = (seen.highest + seen.lowest) / 2 if shifts else torch.zeros_like(seen.highest)
    reach = torch.maximum(seen.highest - middle, middle - seen.lowest).double()
    largest = weight.detach().abs().amax(0).double()
    usable = (reach > 0) & (largest > 0)
    s = reach.clamp_min(1e-30) ** alpha / largest.clamp_min(1e-30) ** (1 - alpha)
    s = s / s[usable].log().mean().exp() if usable.any() else s  # the typical channel stays
    s = torch.where(usable, s, torch.ones_like(s))
    return Smoothing(s.float(), middle)
