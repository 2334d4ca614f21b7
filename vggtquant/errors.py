# SPDX-License-Identifier: Apache-2.0
"""The one exception that says "your input, not our code"."""


class UserError(ValueError):
    """Bad input, told in one line: the value seen and the value wanted.

    The command line prints it without a traceback and exits with code 2.
    """
