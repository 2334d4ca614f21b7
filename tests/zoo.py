# SPDX-License-Identifier: Apache-2.0
"""Zoo's float weights, quantized in memory, beside the tensors of a packed file."""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

import vggtquant as vq
from vggtquant.checkpoint.document import tensors_of


def in_memory(model: nn.Module, config: str | vq.QuantizationConfig) -> dict[str, torch.Tensor]:
    """The tensors of the layers that quantize_model swaps."""
    vq.quantize_model(model, config)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, vq.QuantizedLinear)}
    return {k: x for n, m in layers.items() for k, x in tensors_of(n, m.qtensor()).items()}


def same(path: Path, wanted: dict[str, torch.Tensor]) -> bool:
    state = safetensors.torch.load_file(path)
    parts = {name: x for name, x in state.items() if ".weight_" in name}
    return parts.keys() == wanted.keys() and all(torch.equal(parts[k], wanted[k]) for k in parts)
