# SPDX-License-Identifier: Apache-2.0
"""What a predicted confidence is worth: how it ranks errors, what density it states, what it keeps.

Arrays of one entry a pixel; NumPy float64. The density is derived in docs/conventions.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError

Array = NDArray[np.float64]

# VGGT's training loss a pixel is c * r - ALPHA * log(c), with the Euclidean distance r (its
# training/loss.py, alpha = 0.2; Wang et al. 2025).
ALPHA = 0.2
# The volume of exp(-|x|) over d dimensions: the unit sphere's surface times (d - 1)!.
_VOLUME = {1: 2.0, 3: 8.0 * math.pi}


def ause(confidence: ArrayLike, error: ArrayLike) -> float:
    """Area under the sparsification error: 0 when confidence ranks the errors perfectly.

    Ilg et al. 2018: drop the least confident k of n pixels, k = 0 … n-1, and take the mean error of
    the rest over the mean of all; do the same by true error; the score is the mean difference of
    the two curves. Equal confidences share their mean error, so their order does not matter.
    UserError for different sizes or no pixel.

    >>> ause([3, 2, 1], [0, 1, 2]), ause([1, 2, 3], [0, 1, 2])
    (0.0, 1.0)
    """
    c, e = _pair(confidence, error)
    if not np.mean(e) > 0:
        return 0.0 if np.all(e == 0) else float("nan")
    _, group, size = np.unique(c, return_inverse=True, return_counts=True)
    shared = (np.bincount(group, weights=e) / size)[group]
    kept = np.arange(1, c.size + 1)

    def curve(order: NDArray[np.intp], values: Array) -> Array:
        means: Array = np.cumsum(values[order]) / kept
        return means

    by_confidence, by_error = curve(np.argsort(-c), shared), curve(np.argsort(e), e)
    return float(np.mean(by_confidence - by_error) / np.mean(e))


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two arrays of the same size, equal values sharing their rank.

    NaN where one of them is constant. UserError for different sizes or no value.

    >>> rank_correlation([1, 2, 3], [10, 30, 90]), rank_correlation([1, 2, 3], [2, 1, 0])
    (1.0, -1.0)
    """
    from scipy.stats import rankdata  # an optional dependency, and slow to import

    x, y = (rankdata(values) for values in _pair(a, b))
    x, y = x - x.mean(), y - y.mean()
    spread = math.sqrt(float(np.sum(x * x)) * float(np.sum(y * y)))  # no BLAS: its threads wait
    return max(-1.0, min(1.0, float(np.sum(x * y)) / spread)) if spread > 0 else math.nan


def laplace_nll(
    distance: ArrayLike, confidence: ArrayLike, dimensions: int, *, alpha: float = ALPHA
) -> float:
    """Mean negative log-likelihood, in nats, of errors under the density that confidences state.

    distance: the Euclidean length r of each error, in the unit the model was trained in (align the
    scale first); confidence: c > 0 of each; dimensions: 1 for depth, 3 for points. The density is
    the isotropic Laplace density with scale b = alpha / (d c), the only one whose logarithm is
    VGGT's loss c r - alpha log c up to a factor and a constant: r / b + d log b + log V_d with
    V_1 = 2, V_3 = 8 pi (docs/conventions.md). UserError for other dimensions, sizes that differ.

    >>> laplace_nll([0.0], [0.2], 1) == math.log(2)  # Laplace with b = 1, at its peak
    True
    """
    if dimensions not in _VOLUME:
        raise UserError(f"dimensions is {dimensions}; wanted {' or '.join(map(str, _VOLUME))}")
    r, c = _pair(distance, confidence)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = alpha / (dimensions * c)
        nll = r / scale + dimensions * np.log(scale)
    return float(np.mean(nll)) + math.log(_VOLUME[dimensions])


def kept_share(confidence: ArrayLike, reference: ArrayLike, share: float) -> dict[str, float]:
    """What becomes of a threshold that keeps the most confident `share` of the reference's pixels.

    threshold_fp32 and threshold: the quantile 1 - share of the reference's and of this confidence,
    so that both keep the same share; share_at_fp32_threshold: what this one keeps at the
    reference's threshold; overlap: intersection over union of the two sets kept, each at its own.

    >>> kept_share([2, 4, 6, 8], [1, 2, 3, 4], 0.5)["share_at_fp32_threshold"]
    0.75
    """
    c, r = _pair(confidence, reference)
    own, other = float(np.quantile(c, 1 - share)), float(np.quantile(r, 1 - share))
    kept, wanted = c >= own, r >= other
    return {
        "threshold_fp32": other,
        "threshold": own,
        "share_at_fp32_threshold": float(np.mean(c >= other)),
        "overlap": float(np.sum(kept & wanted) / np.sum(kept | wanted)),
    }


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    x, y = (np.asarray(values, dtype=np.float64).ravel() for values in (a, b))
    if x.size != y.size or x.size == 0:
        raise UserError(f"wanted two arrays of the same size, got {x.size} and {y.size} values")
    return x, y
