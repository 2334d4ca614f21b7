# SPDX-License-Identifier: Apache-2.0
"""Sums and values of the metrics."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from . import native
from .buffers import Buffer, empty


def moments(reference: Buffer, candidate: Buffer) -> dict[str, float]:
    """Counts, range and sums of two arrays of one shape, from one pass over both (metrics.def)."""
    names = native.cpu.moment_names()
    r, c = reference.reshape(-1), candidate.reshape(-1)
    parts = empty((native.cpu.compare_parts(r.shape[0]), len(names)), "float64", r)
    native.run("compare", r, c, parts)
    return dict(zip(names, parts[0].tolist(), strict=True))


def cross_entropy(reference: Buffer, candidate: Buffer) -> tuple[float, float]:
    """Cross entropy and KL divergence in nats: means over the rows along the last axis."""
    cols = reference.shape[-1]
    r, c = reference.reshape(-1, cols), candidate.reshape(-1, cols)
    module = native.cuda if native.cuda is not None and isinstance(r, torch.Tensor) else native.cpu
    parts = empty((module.cross_entropy_parts(len(r)), 2), "float64", r)
    native.run("cross_entropy", r, c, parts)
    return float(parts[0, 0]), float(parts[0, 1])


SSIM_SIDE, SSIM_CHANNELS = native.cpu.ssim_limits()


def _as_images(x: Buffer, h: int, w: int) -> Buffer:
    """(images, height, width, channels); copied only where the memory does not lie that way."""
    channels = math.prod(x.shape[w + 1 :])
    if w != h + 1 or channels > SSIM_CHANNELS:
        if isinstance(x, torch.Tensor):
            x = x.movedim((h, w), (-2, -1)).contiguous()
        else:
            x = np.ascontiguousarray(np.moveaxis(x, (h, w), (-2, -1)))
        h, w, channels = x.ndim - 2, x.ndim - 1, 1
    return x.reshape(-1, x.shape[h], x.shape[w], channels)


def ssim(
    reference: Buffer,
    candidate: Buffer,
    axes: tuple[int, int],
    data_range: float,
    centre: float,
) -> float:
    """Mean structural similarity; centre: any value near the data (csrc/vgq.h)."""
    r, c = _as_images(reference, *axes), _as_images(candidate, *axes)
    parts = empty(native.cpu.ssim_parts(*r.shape), "float64", r)
    native.run("ssim", r, c, data_range, centre, parts)
    return float(parts[0])


def metric_rows(companions: bool) -> list[tuple[str, str, bool]]:
    """Name, unit and "larger is better" of the metrics, or of the values that stand beside them."""
    return [row[:3] for row in native.cpu.metric_rows() if row[3] == companions]


def metric_values(
    moments: dict[str, float],
    data_range: float,
    cross_entropy: float,
    kl_divergence: float,
    ssim: float,
) -> list[float]:
    """A value for each row, metrics first; NaN where it is undefined. NaN: a part not computed."""
    values = np.empty(len(native.cpu.metric_rows()))
    sums = np.array([moments[name] for name in native.cpu.moment_names()])
    native.cpu.metric_values(sums, data_range, cross_entropy, kl_divergence, ssim, values)
    return values.tolist()


def exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x as the entropies compute it."""
    y = np.empty_like(x)
    native.cpu.exp(x, y)
    return y


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln x as the entropies compute it."""
    y = np.empty_like(x)
    native.cpu.log(x, y)
    return y
