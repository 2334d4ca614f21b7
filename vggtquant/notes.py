# SPDX-License-Identifier: Apache-2.0
"""What a call warns of, as lines for a person."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def told(say: Callable[[str], None], function: Callable[..., T], *args: Any, **options: Any) -> T:
    """What the function returns; `say` is told what it warns of, each thing once.

    >>> told(print, lambda: warnings.warn("dark pictures", stacklevel=1))
    note: dark pictures
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        value = function(*args, **options)
    for words in dict.fromkeys(str(warning.message) for warning in caught):
        say(f"note: {words}")
    return value
