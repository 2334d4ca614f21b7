# SPDX-License-Identifier: Apache-2.0
"""vggtquant: VGGT with packed INT8 and INT4 weights, executed, not simulated."""

import os as _os
from importlib.metadata import PackageNotFoundError as _NotFound
from importlib.metadata import version as _version

from .configs import CONFIGS, QuantizationConfig, Scheme, get_config
from .errors import UserError
from .linear import QuantizedLinear
from .model import LayerReport, ModelReport, model_bytes, quantize_model, restore_model
from .ops import isa, isas, use_isa
from .qtensor import QTensor, dequantize, quantize

try:
    __version__ = _version("vggtquant")
except _NotFound:  # run from a checkout that was never installed
    __version__ = "0+unknown"

if "VGGTQUANT_ISA" in _os.environ:
    use_isa(_os.environ["VGGTQUANT_ISA"])
