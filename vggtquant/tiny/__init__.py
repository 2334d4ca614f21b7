# SPDX-License-Identifier: Apache-2.0
"""The embedded model `builtin:tiny` and its weights (see MODEL_CARD.md)."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from vggtquant.errors import UserError
from vggtquant.tiny.model import TinyVGGT

WEIGHTS = Path(__file__).with_name("weights.safetensors")


def build(weights: str | Path | None = None) -> TinyVGGT:
    """Return TinyVGGT in eval mode, in float32, with the shipped weights or those of a file.

    Raises UserError when the file is missing, damaged or of another model.

    >>> import torch
    >>> build()(torch.rand(2, 3, 112, 112))["pose_enc"].shape
    torch.Size([1, 2, 9])
    """
    path = WEIGHTS if weights is None else Path(weights)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error})") from error
    model = TinyVGGT()
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        seen = tuple(state[name].shape) if name in state else "nothing"
        if name not in wanted or seen != tuple(wanted[name].shape):
            shape = tuple(wanted[name].shape) if name in wanted else "nothing"
            raise UserError(f"{path} is not TinyVGGT: {name} is {seen}, wanted {shape}")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


__all__ = ["WEIGHTS", "TinyVGGT", "build"]
