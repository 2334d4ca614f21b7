# SPDX-License-Identifier: Apache-2.0
"""vggtquant: VGGT with packed INT8 and INT4 weights, executed, not simulated.

Names are imported from their modules when they are first used, so that the command line's --help
does not wait for torch.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from .about import VERSION as _VERSION

if TYPE_CHECKING:
    from .calibration import calibrate
    from .checkpoint.storage import load, push_to_hub, save
    from .checkpoint.streaming import quantize_file
    from .configs import CONFIGS, QuantizationConfig, QuantizationSpec, get_config
    from .deploy.api import Export, export
    from .errors import UserError
    from .evaluation.api import Report, evaluate
    from .linear import QuantizedLinear
    from .memory import Fit, fit
    from .metrics import METRICS, Metric, compare, ssim
    from .model import LayerReport, ModelReport, model_bytes, quantize_model, restore_model
    from .ops import isa, isas, use_isa
    from .qtensor import QTensor, dequantize, quantize

_HOME = {
    "calibration": ("calibrate",),
    "configs": ("CONFIGS", "QuantizationConfig", "QuantizationSpec", "get_config"),
    "deploy.api": ("Export", "export"),
    "errors": ("UserError",),
    "evaluation.api": ("Report", "evaluate"),
    "linear": ("QuantizedLinear",),
    "memory": ("Fit", "fit"),
    "metrics": ("METRICS", "Metric", "compare", "ssim"),
    "model": ("LayerReport", "ModelReport", "model_bytes", "quantize_model", "restore_model"),
    "ops": ("isa", "isas", "use_isa"),
    "qtensor": ("QTensor", "dequantize", "quantize"),
    "checkpoint.storage": ("load", "push_to_hub", "save"),
    "checkpoint.streaming": ("quantize_file",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CONFIGS",
    "Export",
    "METRICS",
    "Fit",
    "LayerReport",
    "Metric",
    "ModelReport",
    "QTensor",
    "QuantizationConfig",
    "QuantizedLinear",
    "Report",
    "QuantizationSpec",
    "UserError",
    "calibrate",
    "compare",
    "dequantize",
    "evaluate",
    "export",
    "fit",
    "get_config",
    "isa",
    "isas",
    "load",
    "model_bytes",
    "push_to_hub",
    "quantize",
    "quantize_file",
    "quantize_model",
    "restore_model",
    "save",
    "ssim",
    "use_isa",
]

__version__ = _VERSION


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vggtquant' has no attribute {name!r}")
    value = getattr(_import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
