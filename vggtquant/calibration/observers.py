# SPDX-License-Identifier: Apache-2.0
"""One range for all tokens of a layer's input ("static"), from what calibration pictures show.

minmax: the largest magnitude, with some headroom for pictures to come. percentile: what 99.99 % of
the values do not exceed. mse: the range whose codes have the least squared error (Jacob et al.,
CVPR 2018, arXiv 1712.05877, and Nagel et al., A White Paper on Neural Network Quantization, arXiv
2106.08295, section 3.1). Magnitudes of special tokens (camera and register tokens, a few with most
of the range, which carry the poses) are never clipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

HIGHEST = {8: 127, 16: 32512}
"""The largest code of an activation, by its bits; docs/conventions.md, "Activations"."""

PERCENTILE = 0.9999
HEADROOM = 1.2
"""Of minmax: other pictures have larger values, of the few tokens of the camera head above all."""
_SHIFT = 17  # of a float's bits: 6 of the mantissa stay, 64 bins an octave
_BINS = 2**31 >> _SHIFT


class Observer:
    """A histogram of the magnitudes of one layer's inputs.

    >>> observer = Observer()
    >>> observer.add(torch.tensor([[1.0, -127.0]]))
    >>> round(observer.scale("minmax", 127), 6) == HEADROOM
    True
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64, device="cpu")
        self.absmax = 0.0
        self.floor = 0.0
        """Largest magnitude of a special token."""

    def add(self, x: torch.Tensor, special: torch.Tensor | None = None) -> None:
        """Adds rows (tokens, k); special: which of them are special tokens, all where None."""
        if not x.numel():
            return
        magnitudes = x.detach().float().abs()
        self.absmax = max(self.absmax, float(magnitudes.max()))
        apart = magnitudes if special is None else magnitudes[special]
        if apart.numel():
            self.floor = max(self.floor, float(apart.max()))
        bins = magnitudes.contiguous().view(torch.int32).reshape(-1) >> _SHIFT
        self.counts += torch.bincount(bins, minlength=_BINS)

    def scale(self, kind: str, highest: int) -> float:
        """The scale whose largest code, `highest`, is the end of the range; 0 if nothing was seen.

        kind: a name of OBSERVERS.
        """
        if not 0 < self.absmax < torch.inf:
            return 0.0
        limit = max(OBSERVERS[kind](self, highest), self.floor)
        return max(
            float(torch.tensor(limit / highest, dtype=torch.float32, device="cpu")), 2.0**-112
        )

    def _edges(self) -> torch.Tensor:
        """The upper end of each bin, float64."""
        ends = torch.arange(1, _BINS + 1, dtype=torch.int64, device="cpu") << _SHIFT
        ends = ends.clamp_max(0x7F7FFFFF).to(torch.int32)
        return ends.view(torch.float32).double()

    def minmax(self, _: int) -> float:
        return HEADROOM * self.absmax

    def percentile(self, _: int) -> float:
        """The end of the bin below which that share of all values lies."""
        total = self.counts.cumsum(0)
        at = int(torch.searchsorted(total, int(PERCENTILE * int(total[-1]))))
        return min(self.absmax, float(self._edges()[at]))

    def mse(self, highest: int) -> float:
        """The limit c with the least sum of (c / highest)^2 / 12 of each value below it, which is
        rounding, and (|x| - c)^2 of each above, which is clipping."""
        used = self.counts > 0
        ends = self._edges()
        x, n = ends[used].clamp_max(self.absmax), self.counts[used].double()
        least = max(self.absmax / 64, self.floor)
        candidates = ends[(ends >= least) & (ends <= self.absmax)]
        candidates = torch.cat([candidates, ends.new_tensor([self.absmax])])
        clipped = (x - candidates[:, None]).clamp_min(0).square()
        below = (x <= candidates[:, None]).double()
        cost = (n * (clipped + below * (candidates[:, None] / highest).square() / 12)).sum(1)
        return float(candidates[int(cost.argmin())])


OBSERVERS: dict[str, Callable[[Observer, int], float]] = {
    "minmax": Observer.minmax,
    "percentile": Observer.percentile,
    "mse": Observer.mse,
}


def special_rows(rows: int, pictures: torch.Tensor, prefix: int) -> torch.Tensor | None:
    """Which of a layer's input rows are special tokens: the first `prefix` of each picture.

    pictures (…, 3, H, W) of patches of 14. None where the rows are not those of whole pictures, as
    in the camera head: then all are special.
    """
    height, width = pictures.shape[-2:]
    count = pictures.numel() // max(1, 3 * height * width)
    tokens = prefix + -(-height // 14) * -(-width // 14)
    if not prefix or rows != count * tokens:
        return None
    return torch.arange(rows, device="cpu") % tokens < prefix
