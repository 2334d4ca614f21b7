# SPDX-License-Identifier: Apache-2.0
"""What the package knows of itself and of its process. Importing it is cheap."""

import os
from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("vggtquant")
except PackageNotFoundError:  # run from a checkout that was never installed
    VERSION = "0+unknown"

_forked = False


def forked() -> bool:
    """Whether this process was forked after the package was imported.

    The C core sees forks by itself once it is loaded; until then the package does, because a child
    that starts threads of a pool which stayed behind with its parent would wait for them for ever.
    """
    return _forked


def _in_child() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_in_child)
