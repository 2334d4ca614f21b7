# SPDX-License-Identifier: Apache-2.0
"""vggtquant: VGGT with packed INT8 and INT4 weights, executed, not simulated.

Names are imported from their modules when they are first used, so that the command line's --help
does not wait for torch.
"""

import os as _os
from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _NotFound
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration import calibrate
    from .checkpoint.storage import load, save
