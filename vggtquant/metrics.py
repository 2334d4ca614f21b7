# SPDX-License-Identifier: Apache-2.0
"""The eight metrics between a reference and a candidate array, computed by the C core.

Every definition and edge case is stated in docs/conventions.md; here values get names and reasons.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from . import ops
from .errors import UserError
from .ops import Array, Buffer


class Metric(NamedTuple):
    """A row of the metric table."""

    name: str
    unit: str
    larger_is_better: bool


METRICS = tuple(Metric(*row) for row in ops.metric_rows(companions=False))
COMPANIONS = tuple(Metric(*row) for row in ops.metric_rows(companions=True))
_NAMES = tuple(metric.name for metric in METRICS + COMPANIONS)


def compare(
    reference: Array,
    candidate: Array,
    *,
    data_range: float | None = None,
    image_axes: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Eight metrics, two companions and what they rest on, from arrays of the same shape.

    Keys: the names of METRICS, `relative_l2`, `kl_divergence` and `data_range` (floats, or None
    where undefined); `nonfinite_reference` and `nonfinite_candidate` (counts of NaN and infinite
    values, which never raise); `reasons` (why a metric is None, by its name).
    PSNR of equal arrays is `inf`.

    Args:
        reference: the array taken as right: float32, float16 or bfloat16; NumPy, or torch
            (CPU or CUDA, where the figures are the same to the bit).
        candidate: the array to judge, of any of these dtypes.
        data_range: peak of PSNR and scale of SSIM; None: max - min of the finite reference.
        image_axes: (height axis, width axis) for SSIM; None: not an image.

    Raises:
        UserError: shapes that differ or are empty, a data_range that is not positive and finite,
            axes that the arrays do not have.
        TypeError: another dtype.

    Example:
        >>> compare(np.zeros(4, np.float32), np.ones(4, np.float32))["mae"]
        1.0
    """
    r, c = _pair(reference, candidate)
    moments = ops.moments(r, c)
    peak = _peak(data_range, moments)
    similarity, no_similarity = _similarity(r, c, moments, peak, image_axes)
    bad = moments["nonfinite_r"] + moments["nonfinite_c"] > 0
    entropy = divergence = math.nan
    if not bad and _has_softmax(r):
        entropy, divergence = ops.cross_entropy(r, c)

    values = ops.metric_values(moments, _or_nan(peak), entropy, divergence, _or_nan(similarity))
    result: dict[str, Any] = {
        name: None if math.isnan(value) else value
        for name, value in zip(_NAMES, values, strict=True)
    }
    why = {name: _nonfinite(moments) if bad else reason for name, reason in _UNDEFINED.items()}
    why["ssim"] = no_similarity
    return result | {
        "data_range": peak,
        "nonfinite_reference": int(moments["nonfinite_r"]),
        "nonfinite_candidate": int(moments["nonfinite_c"]),
        "reasons": {name: why[name] for name in _NAMES if result[name] is None},
    }


def ssim(
    reference: Array,
    candidate: Array,
    *,
    data_range: float | None = None,
    image_axes: tuple[int, int],
) -> float:
    """Mean structural similarity over the images and channels of two arrays of the same shape.

    Wang et al. 2004 with an 11x11 Gaussian of sigma 1.5; axes other than the height and width given
    are images and channels. Arguments and dtypes as for `compare`.

    Raises:
        UserError: where `compare` does, and where it would give None: images smaller than the
            window, a constant reference without `data_range`, NaN or infinite values.
        TypeError: another dtype.

    Example:
        >>> image = torch.rand(16, 16)
        >>> ssim(image, image, image_axes=(0, 1))
        1.0
    """
    r, c = _pair(reference, candidate)
    moments = ops.moments(r, c)
    similarity, why = _similarity(r, c, moments, _peak(data_range, moments), image_axes)
    if similarity is None:
        raise UserError(f"SSIM is undefined: {why}")
    return similarity


# ---- checks, and why a metric is None ------------------------------------------------------------

_FLAT = "the reference is constant, so its data_range is 0; give data_range"
_NO_SOFTMAX = "the last axis has one element, whose softmax is 1 whatever it holds"

# Why a metric of finite arrays can be undefined; the others never are.
_UNDEFINED = dict.fromkeys(_NAMES, "undefined") | {
    "psnr": _FLAT,
    "cross_entropy": _NO_SOFTMAX,
    "kl_divergence": _NO_SOFTMAX,
    "cosine_similarity": "reference or candidate is all zeros",
    "relative_l2": "the reference is all zeros",
}


def _or_nan(x: float | None) -> float:
    return math.nan if x is None else x


def _pair(reference: Array, candidate: Array) -> tuple[Buffer, Buffer]:
    r, c = ops.values(reference), ops.values(candidate)
    if r.shape != c.shape:
        raise UserError(
            f"reference of shape {r.shape} and candidate of shape {c.shape} are given; "
            "the same shape is wanted"
        )
    if 0 in r.shape:
        raise UserError(f"arrays of shape {r.shape} are given; at least one element is wanted")
    return r, c


def _peak(given: float | None, moments: dict[str, float]) -> float | None:
    """The data_range given, else that of the finite reference; None where nothing is finite."""
    if given is None:
        return moments["hi"] - moments["lo"] if moments["hi"] >= moments["lo"] else None
    if not 1e-100 <= given <= 1e100:
        raise UserError(f"data_range {given} is given; one between 1e-100 and 1e100 is wanted")
    return float(given)


def _has_softmax(r: Buffer) -> bool:
    return len(r.shape) > 0 and r.shape[-1] > 1


def _nonfinite(moments: dict[str, float]) -> str:
    r, c, n = (int(moments[name]) for name in ("nonfinite_r", "nonfinite_c", "n"))
    return f"NaN or infinite: {r} of {n} reference values, {c} of {n} candidate values"


def _axes(axes: tuple[int, int], ndim: int) -> tuple[int, int]:
    h, w = (axis + ndim if axis < 0 else axis for axis in axes)
    if not (0 <= h < ndim and 0 <= w < ndim and h != w):
        raise UserError(
            f"image_axes {tuple(axes)} are given for arrays of {ndim} dimensions; "
            "two different ones of these are wanted"
        )
    return h, w


def _similarity(
    r: Buffer,
    c: Buffer,
    moments: dict[str, float],
    peak: float | None,
    image_axes: tuple[int, int] | None,
) -> tuple[float | None, str]:
    """SSIM, or None and why."""
    if image_axes is None:
        return None, "not an image: no image_axes were given"
    h, w = _axes(image_axes, r.ndim)
    if moments["nonfinite_r"] + moments["nonfinite_c"] > 0:
        return None, _nonfinite(moments)
    if min(r.shape[h], r.shape[w]) < ops.SSIM_SIDE:
        side = ops.SSIM_SIDE
        return None, f"{r.shape[h]}x{r.shape[w]} is smaller than the window, {side}x{side}"
    if not peak:
        return None, _FLAT
    centre = (moments["lo"] + moments["hi"]) / 2
    return ops.ssim(r, c, (h, w), peak, centre), ""
