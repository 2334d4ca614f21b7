# SPDX-License-Identifier: Apache-2.0
"""vggtquant: VGGT with packed INT8 and INT4 weights, executed, not simulated."""

import os as _os
import sys as _sys
from importlib.metadata import PackageNotFoundError as _NotFound
from importlib.metadata import version as _version

from .configs import CONFIGS, QuantizationConfig, Scheme, get_config
from .errors import UserError
from .linear import QuantizedLinear
from .metrics import METRICS, Metric, compare, ssim
from .model import LayerReport, ModelReport, model_bytes, quantize_model, restore_model
from .ops import isa, isas, use_isa
from .qtensor import QTensor, dequantize, quantize

__all__ = [
    "CONFIGS",
    "METRICS",
    "LayerReport",
    "Metric",
    "ModelReport",
    "QTensor",
    "QuantizationConfig",
    "QuantizedLinear",
    "Scheme",
    "UserError",
    "compare",
    "dequantize",
    "get_config",
    "isa",
    "isas",
    "model_bytes",
    "quantize",
    "quantize_model",
    "restore_model",
    "ssim",
    "use_isa",
]

try:
    __version__ = _version("vggtquant")
except _NotFound:  # run from a checkout that was never installed
    __version__ = "0+unknown"

if "VGGTQUANT_ISA" in _os.environ:
    try:
        use_isa(_os.environ["VGGTQUANT_ISA"])
    except UserError as _error:
        # The command line's promise of one clear line holds before its main() can be imported.
        if _os.path.basename(_sys.argv[0]) not in ("vggtquant", "-m"):
            raise
        print(f"vggtquant: error: VGGTQUANT_ISA: {_error}", file=_sys.stderr)
        raise SystemExit(2) from None
