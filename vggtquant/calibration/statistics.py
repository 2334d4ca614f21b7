# SPDX-License-Identifier: Apache-2.0
"""Sums over the inputs of one Linear layer: all that the methods need to know of them.

Rows are tokens; `x` is what the layer sees in the model quantized so far, `y` what it saw at the
same token in the float model. Sums are float64, products of a sample float32.
"""

from __future__ import annotations

import torch

from ..errors import UserError


class Ranges:
    """Lowest, highest and mean magnitude of each of k channels."""

    def __init__(self, k: int) -> None:
        self.count = 0
        self.lowest = torch.full((k,), torch.inf, device="cpu")
        self.highest = torch.full((k,), -torch.inf, device="cpu")
        self._sum = torch.zeros(k, dtype=torch.float64, device="cpu")

    def add(self, x: torch.Tensor) -> None:
        """Adds the rows of a sample, (tokens, k)."""
        if not len(x):
            return
        self.count += len(x)
        self.lowest = torch.minimum(self.lowest, x.amin(0))
        self.highest = torch.maximum(self.highest, x.amax(0))
        self._sum += x.abs().sum(0, dtype=torch.float64)

    @property
    def mean_magnitude(self) -> torch.Tensor:
        return self._sum / max(1, self.count)


class Statistics:
    """Second moments and means of a layer's inputs (k of them).

    >>> s = Statistics(2)
    >>> s.add(torch.eye(2), torch.eye(2))
    >>> s.hessian.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, k: int) -> None:
        self.count = 0
        self.hessian = torch.zeros(k, k, dtype=torch.float64, device="cpu")
        """Sum of x x^T."""
        self.cross = torch.zeros(k, k, dtype=torch.float64, device="cpu")
        """Sum of y x^T."""
        self._sum_x = torch.zeros(k, dtype=torch.float64, device="cpu")
        self._sum_y = torch.zeros(k, dtype=torch.float64, device="cpu")

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds the rows of a sample, (tokens, k) both.

        Raises:
            UserError: rows that are not the same tokens, NaN or infinite inputs or squares.
        """
        if x.shape != y.shape:
            raise UserError(
                f"inputs of shape {tuple(x.shape)} and {tuple(y.shape)} of the quantized and the "
                "float model are not the same tokens"
            )
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise UserError("inputs are NaN or infinite; finite ones are wanted")
        if not len(x):
            return
        self.count += len(x)
        self.hessian += x.T @ x
        if not torch.isfinite(self.hessian.diagonal()).all():
            raise UserError("inputs are too large: their squares overflow")
        self.cross += y.T @ x
        self._sum_x += x.sum(0, dtype=torch.float64)
        self._sum_y += y.sum(0, dtype=torch.float64)

    def merge(self, other: Statistics) -> None:
        """Adds what another one has seen."""
        self.count += other.count
        self.hessian += other.hessian
        self.cross += other.cross
        self._sum_x += other._sum_x
        self._sum_y += other._sum_y

    @property
    def mean(self) -> torch.Tensor:
        """Of x."""
        return self._sum_x / max(1, self.count)

    @property
    def float_mean(self) -> torch.Tensor:
        """Of y."""
        return self._sum_y / max(1, self.count)

    def error(self, weight: torch.Tensor, coded: torch.Tensor, centred: bool) -> float:
        """Sum over tokens of |coded x - weight y|^2, less a constant that depends on y alone.

        centred: the bias is corrected for the difference of the means.
        """
        w, q = weight.double(), coded.double()
        sums = ((q @ self.hessian) * q).sum() - 2 * ((w @ self.cross) * q).sum()
        if centred:
            mean = q @ self.mean
            sums -= self.count * (mean * (mean - 2 * (w @ self.float_mean))).sum()
        return float(sums)
