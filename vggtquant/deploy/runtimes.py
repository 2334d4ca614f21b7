# SPDX-License-Identifier: Apache-2.0
"""Other programs that run the graph: RUNTIMES says how each of them is asked.

Each loads a file, runs it once on the CPU in float32 where nothing is quantized, and tells which
kernels it took. Activations that we leave in float stay so: both would code them on their own.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ran:
    """One pass of a runtime."""

    outputs: dict[str, NDArray[Any]]
    seconds: float
    """Of the pass alone, after one that warms up."""
    processor_seconds: float
    """Of all threads in that pass."""
    load_seconds: float
    kernels: Counter[str]
    """How many products of each kind and precision it computed, e.g. "MatMulInteger"."""
    version: str


@dataclass(frozen=True)
class Runtime:
    """A program that runs ONNX files."""

    package: str
    run: Callable[[Path, NDArray[np.float32]], Ran]

    @property
    def is_installed(self) -> bool:
        """Whether its package can be imported."""
        return importlib.util.find_spec(self.package) is not None


def _timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Its result, seconds on the clock and of the processor."""
    start, spent = time.perf_counter(), time.process_time()
    found = run()
    return found, time.perf_counter() - start, time.process_time() - spent


_ORT_PRODUCTS = (
    *("MatMul", "FusedMatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"),
    *("DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "Attention", "MultiHeadAttention"),
    *("Conv", "FusedConv", "ConvTranspose", "ConvInteger", "QLinearConv"),
)


def _onnxruntime(path: Path, images: NDArray[np.float32]) -> Ran:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        start = time.perf_counter()
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        load = time.perf_counter() - start
        names = [output.name for output in session.get_outputs()]
        session.run(names, {"images": images})
        found, seconds, spent = _timed(lambda: session.run(names, {"images": images}))
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"]["op_name"] for e in events if e.get("name", "").endswith("_kernel_time")]
    kernels = Counter(name for name in ran if name in _ORT_PRODUCTS)
    each = Counter({name: count // 2 for name, count in kernels.items()})  # of two passes
    outputs = dict(zip(names, found, strict=True))
    return Ran(outputs, seconds, spent, load, each, ort.__version__)


_OV_PRODUCTS = (
    *("FullyConnected", "MatMul", "ScaledDotProductAttention", "Convolution", "Deconvolution"),
)


def _openvino(path: Path, images: NDArray[np.float32]) -> Ran:
    import openvino as ov

    start = time.perf_counter()
    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    load = time.perf_counter() - start
    compiled({"images": images})
    found, seconds, spent = _timed(lambda: compiled({"images": images}))
    outputs = {output.get_any_name(): np.asarray(found[output]) for output in compiled.outputs}
    kernels: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str) if "layerType" in facts else ""
        if kind in _OV_PRODUCTS:
            kernels[f"{kind} {facts['runtimePrecision'].astype(str)}"] += 1
    return Ran(outputs, seconds, spent, load, kernels, ov.__version__)


RUNTIMES = {
    "onnxruntime": Runtime("onnxruntime", _onnxruntime),
    "openvino": Runtime("openvino", _openvino),
}
"""By name; a file of any format is given to those that read it."""
