# SPDX-License-Identifier: Apache-2.0
"""The bound of a difference: right executions stay within it, wrong ones do not."""

import numpy as np
import pytest

from vggtquant.deploy import check

DRAWS = 400


def draws(size: int, times: float) -> list[check.Difference]:
    """Outputs with a rounding's noise, and others with `times` of it, independent."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        exact, mine, other = random.standard_normal((3, size)).astype(np.float32)
        ours, theirs = exact + 0.1 * mine, exact + 0.1 * times * other
        bound = {"depth": max(check.BOUND, check._noise(ours, exact))}
        found += check.differences({"depth": ours}, {"depth": theirs}, bound)
    return found


@pytest.mark.parametrize("size", [9, 18, 36, 1000, 5000])
def test_two_right_executions_pass(size: int) -> None:
    """With 1.5 times the noise every third draw was refused."""
    assert sum(not one.is_small for one in draws(size, 1.0)) <= DRAWS // 100


@pytest.mark.parametrize("size", [9, 5000])
def test_noise_that_is_ten_times_as_large_is_refused(size: int) -> None:
    assert sum(one.is_small for one in draws(size, 10.0)) <= DRAWS // 10
    assert not check.differences(
        {"depth": np.ones(3, np.float32)}, {"depth": np.ones(4, np.float32)}, {"depth": 1.0}
    )[0].is_small
