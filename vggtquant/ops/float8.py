# SPDX-License-Identifier: Apache-2.0
"""FP8 (float8_e4m3fn): weights with a scale a row, tokens with a scale each, torch's own product.

As torchao's dynamic activation quantization with per-row scales defines it: scale = max |x| / 448,
codes = x / scale rounded to float8. The product is `torch._scaled_mm`, on a GPU (compute capability
8.9 and later) and on the CPU. Where torch has no such product, calls are refused: no weight is ever
decoded to compute with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import UserError
from .records import Norm, Packed

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
"""448; no infinity lies beyond it."""
CAPABILITY = (8, 9)
"""The oldest compute capability with FP8 tensor cores."""
STEP = 16
"""torch._scaled_mm on a GPU takes inputs and outputs in multiples of it."""


def row_scales(largest: torch.Tensor) -> torch.Tensor:
    """The scale of rows whose largest magnitudes are given, float32; at least 2^-126.

    >>> row_scales(torch.tensor([896.0, 448.0]))
    tensor([2., 1.])
    """
    return (largest.float() / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)


def encode(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x / scale as float8, rounded to nearest even, saturated at 448. NaN stays NaN."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3)


def values(codes: Any, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What bytes of float8 (rows, cols), a uint8 array or tensor, stand for, rounded to dtype."""
    held = torch.from_numpy(codes) if isinstance(codes, np.ndarray) else codes
    return (held.view(E4M3).float() * scale.reshape(-1, 1)).to(dtype)


# ---- the packed form: codes [n][k], both padded to STEP, then scales, float32 [n] ---------------


def _padded(about: Packed) -> tuple[int, int]:
    return -(-about.n // STEP) * STEP, -(-about.k // STEP) * STEP


def pack(about: Packed, q: Any, scale: Any, like: torch.Tensor | None) -> torch.Tensor:
    """One uint8 tensor where `like` is (None: the CPU)."""
    n, k = _padded(about)
    packed = torch.zeros(n * (k + 4), dtype=torch.uint8, device="cpu")
    codes, scales = packed[: n * k].view(n, k), packed[n * k :].view(torch.float32)
    codes[: about.n, : about.k] = torch.as_tensor(q, device="cpu")
    scales[: about.n] = torch.as_tensor(scale, device="cpu")
    return packed if like is None else packed.to(like.device)


def _parts(packed: torch.Tensor, about: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes as float8 and scales, padded, on the packed memory."""
    n, k = _padded(about)
    return packed[: n * k].view(E4M3).view(n, k), packed[n * k :].view(torch.float32)


def unpack(packed: torch.Tensor, about: Packed) -> tuple[Any, Any]:
    """Codes, uint8 (n, k), and scales, float32 (n,): NumPy arrays, the inverse of pack."""
    codes, scales = _parts(packed.cpu(), about)
    rows = codes.view(torch.uint8)[: about.n, : about.k].contiguous()
    return rows.numpy(), scales[: about.n].clone().numpy()


# ---- the product --------------------------------------------------------------------------------


@functools.cache
def missing(device: torch.device) -> str | None:
    """Why FP8 products cannot be computed on a device; None where they can be."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < CAPABILITY:
            return (
                f"FP8 wants a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later; "
                f"{device} has {major}.{minor}"
            )
    try:
        codes = torch.ones(STEP, STEP, device=device).to(E4M3)
        ones = torch.ones(STEP, 1, device=device)
        multiplied(codes, ones, codes, ones.view(-1), None, torch.bfloat16)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        return f"torch {torch.__version__} has no FP8 product on {device} ({words})"
    return None


def check(device: torch.device) -> None:
    """UserError where FP8 products cannot be computed on the device."""
    if (words := missing(device)) is not None:
        raise UserError(words)


def multiplied(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(codes weight^T) scale weight_scale + bias: codes (m, k) with scale (m, 1), weight (n, k)
    with (n,), bias (n,).

    In bfloat16, to which the bias is rounded too, or, for other dtypes, float32. A GPU multiplies
    with row-wise scales to bfloat16 only, with sums as torchao takes them (use_fast_accum);
    float32 results come from unit scales, and the scales follow.
    """
    rows, on_gpu = weight_scale.view(1, -1), scale.device.type == "cuda"
    if dtype != torch.bfloat16 and on_gpu:
        one = torch.ones((), device=scale.device)
        y = torch._scaled_mm(codes, weight.t(), one, one, out_dtype=torch.float32)
        y = y.mul_(scale)
        return y.mul_(rows) if bias is None else torch.addcmul(bias, y, rows)
    out = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    added = None if bias is None else bias.to(out)
    return torch._scaled_mm(
        codes, weight.t(), scale, rows, bias=added, out_dtype=out, use_fast_accum=on_gpu
    )


def coded(x: torch.Tensor, norm: Norm | None, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (m, k), normalized where there is a norm, as float8 (m, depth), zeros from k on, and
    their scales (m, 1): by torch's operators.

    >>> codes, scale = coded(torch.tensor([[896.0, -2.0]]), None, 4)
    >>> codes.float().tolist(), scale.tolist()
    ([[448.0, -1.0, 0.0, 0.0]], [[2.0]])
    """
    k = x.shape[1]
    if norm is not None:
        weight, shift = (None if p is None else p.float() for p in norm[:2])
        x = F.layer_norm(x.float(), (k,), weight, shift, norm.eps)
    scale = row_scales(torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True))
    codes = (x / scale).to(E4M3)  # none is above 448, by more than a rounding
    if depth != k:
        codes = F.pad(codes.view(torch.uint8), (0, depth - k)).view(E4M3)
    return codes, scale


def linear(
    packed: torch.Tensor,
    about: Packed,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    norm: Norm | None = None,
    gelu: bool = False,
    layer_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    code: Callable[[torch.Tensor, Norm | None, int], tuple[torch.Tensor, torch.Tensor]] = coded,
) -> torch.Tensor:
    """residual + layer_scale * gelu(norm(x) w^T + bias), each where it is given, in `dtype`.

    x (m, k). code: what takes x to codes and scales. A row with a NaN or an infinity gives a row of
    NaN. What follows the product is computed in float32; for bfloat16 on a GPU, where it would take
    longer than the product, in bfloat16.

    Raises:
        UserError: the device has no FP8 product.
    """
    check(x.device)
    if not len(x):
        return torch.empty((0, about.n), dtype=dtype, device=x.device)
    weight, weight_scale = _parts(packed, about)
    codes, scale = code(x, norm, weight.shape[1])
    if bias is not None and len(weight) != about.n:
        bias = F.pad(bias, (0, len(weight) - about.n))
    plain = not gelu and layer_scale is None and residual is None
    rounded = dtype == torch.bfloat16 and x.device.type == "cuda"
    wanted = dtype if plain or rounded else torch.float32
    y = multiplied(codes, scale, weight, weight_scale, bias, wanted)[:, : about.n]
    if gelu:
        y = F.gelu(y)
    if rounded and layer_scale is not None and residual is not None:
        return torch.addcmul(residual.to(wanted), y, layer_scale.to(wanted))
    if layer_scale is not None:
        y = y * layer_scale.to(wanted)
    if residual is not None:
        y = y + residual.to(wanted)
    return y.to(dtype).contiguous()
