# SPDX-License-Identifier: Apache-2.0
"""Static ranges of INT8 convolutions, from one forward of the quantized model a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .. import adapters
from ..conv import QuantizedConv2d
from ..dense import QuantizedDPTHead, set_module
from .capture import hooks
from .observers import HIGHEST, Observer


def measure(model: nn.Module, batches: Sequence[torch.Tensor], kind: str) -> list[str]:
    """Give each INT8 convolution the range of its inputs; names of those that no batch reaches.

    kind: a name of OBSERVERS. A dense head runs as its original meanwhile: the same convolutions,
    which see there what a QuantizedDPTHead makes inside a kernel.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedConv2d)}
    heads = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedDPTHead)}
    seen = {name: Observer() for name in layers}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            for x in inputs[0]:  # a picture at a time
                pixels = x.flatten(1)
                special = torch.zeros(len(pixels), dtype=torch.bool, device="cpu")
                seen[name].add(pixels, special)

        return hook

    handles = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    try:
        for name, head in heads.items():
            set_module(model, name, head.original)
        with hooks(handles), torch.no_grad():
            for batch in batches:
                adapters.run(model, batch)
    finally:
        for name, head in heads.items():
            set_module(model, name, head)
    for name, layer in layers.items():
        layer.input_scale = seen[name].scale(kind, HIGHEST[layer.activation_bits])
    return [name for name, layer in layers.items() if not layer.input_scale]
