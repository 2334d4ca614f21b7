# SPDX-License-Identifier: Apache-2.0
"""The exception that says "your input, not our code", and the check of an argument's type."""

import os

PATH = (str, os.PathLike)
"""Types of a path or name."""


class UserError(ValueError):
    """Bad input, told in one line: the value seen and the value wanted.

    The command line prints it without a traceback and exits with code 2.
    """


class WrongType(UserError, TypeError):
    """An argument of a type that is not accepted."""


def check_type(name: str, value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """WrongType unless the argument `name` is of one of the types, which `wanted` says in words.

    >>> check_type("model", 3, str, "a name")
    Traceback (most recent call last):
    vggtquant.errors.WrongType: model is int; wanted a name
    """
    if not isinstance(value, kinds):
        raise WrongType(f"{name} is {type(value).__name__}; wanted {wanted}")
