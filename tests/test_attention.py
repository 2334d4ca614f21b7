# SPDX-License-Identifier: Apache-2.0
"""Attention against torch's in float64, and each instruction set against the scalar table."""

import pytest
import torch
from torch.nn import functional as F

from vggtquant import ops
from vggtquant.errors import UserError

BOUNDS = {("float", "float"): 1e-6, ("bf16", "bf16"): 6e-3, ("int8", "bf16"): 0.012}
BOUNDS |= {("int8", "float"): 0.012, ("int8", "int8"): 0.02}


def exact(qkv: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2).double() for x in qkv.unbind(2))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("tokens, dim", [(1, 64), (5, 32), (70, 64), (300, 64), (517, 96)])
@pytest.mark.parametrize("mode, pv", BOUNDS)
def test_close_to_float64(isa: str, tokens: int, dim: int, mode: str, pv: str) -> None:
    qkv = torch.randn(2, tokens, 3, 3, dim, generator=torch.Generator().manual_seed(tokens))
    y = ops.attention(qkv, mode=mode, pv=pv)
    wanted = exact(qkv)
    assert (y - wanted).norm() / wanted.norm() < BOUNDS[mode, pv]


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="shape"):
        ops.attention(torch.ones(1, 4, 2, 1, 32))
    with pytest.raises(UserError, match="multiple of 8"):
        ops.attention(torch.ones(1, 4, 3, 1, 36))
