# SPDX-License-Identifier: Apache-2.0
"""The metrics of docs/conventions.md in NumPy: slow and obvious.

A function for each row of the metric table, under its name. Reference r and candidate c are arrays
of float64 that hold float32 values. Sums are exact (math.fsum): only the terms are rounded.
"""

import math

import numpy as np

Array = np.ndarray


def mean(x: Array) -> float:
    return math.fsum(np.ravel(x)) / x.size


def mae(r: Array, c: Array) -> float:
    return mean(np.abs(r - c))


def mse(r: Array, c: Array) -> float:
    return mean((r - c) ** 2)


def rmse(r: Array, c: Array) -> float:
    return math.sqrt(mse(r, c))


def data_range(r: Array) -> float:
    finite = r[np.isfinite(r)]
    return float(finite.max() - finite.min())


def psnr(r: Array, c: Array, peak: float | None = None) -> float:
    peak = data_range(r) if peak is None else peak
    return math.inf if np.array_equal(r, c) else 10 * math.log10(peak**2 / mse(r, c))


def log_softmax(x: Array) -> Array:
    x = x.astype(np.longdouble)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(r: Array, c: Array) -> float:
    p, log_q = np.exp(log_softmax(r)), log_softmax(c)
    return float(-(p * log_q).sum(-1).mean())


def kl_divergence(r: Array, c: Array) -> float:
    log_p, log_q = log_softmax(r), log_softmax(c)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def cosine_similarity(r: Array, c: Array) -> float:
    r, c = r.ravel(), c.ravel()
    return math.fsum(r * c) / math.sqrt(math.fsum(r * r) * math.fsum(c * c))


def relative_error(r: Array, c: Array) -> float:
    return mean(np.abs(r - c) / (np.abs(r) + 1e-8))


def relative_l2(r: Array, c: Array) -> float:
    return math.sqrt(math.fsum(np.ravel((r - c) ** 2)) / math.fsum(np.ravel(r * r)))


def blur(x: Array) -> Array:
    """The last two axes under the 11x11 Gaussian of sigma 1.5, where it fits."""
    taps = np.exp(-(np.arange(-5.0, 6.0) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    window = np.outer(taps, taps)
    patches = np.lib.stride_tricks.sliding_window_view(x, window.shape, axis=(-2, -1))
    return np.einsum("...ij,ij->...", patches, window)


def ssim(r: Array, c: Array, peak: float | None = None) -> float:
    """Of images (..., H, W): Wang et al. 2004, equation 13, averaged over all pixels."""
    peak = data_range(r) if peak is None else peak
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    centre = (r.max() + r.min()) / 2  # keeps variances from cancelling, and changes nothing else
    mu_r, mu_c = blur(r - centre), blur(c - centre)
    var_r, var_c = blur((r - centre) ** 2) - mu_r**2, blur((c - centre) ** 2) - mu_c**2
    cov = blur((r - centre) * (c - centre)) - mu_r * mu_c
    mu_r, mu_c = mu_r + centre, mu_c + centre
    top = (2 * mu_r * mu_c + c1) * (2 * cov + c2)
    return float((top / ((mu_r**2 + mu_c**2 + c1) * (var_r + var_c + c2))).mean())
