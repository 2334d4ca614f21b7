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
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from . import Format

Outputs = dict[str, NDArray[Any]]
Pass = Callable[[NDArray[np.float32]], Outputs]
"""From images (1, frames, 3, height, width) to outputs by name."""


@dataclass(frozen=True)
class Ran:
    """One pass of a runtime."""

    outputs: Outputs
    seconds: float
    """Of the pass alone, after one that warms up."""
    processor_seconds: float
    """Of all threads in that pass."""
    load_seconds: float
    kernels: Counter[str]
    """How many products of each kind and precision it computed, e.g. "MatMulInteger"; {} where it
    does not tell."""
    version: str


@dataclass(frozen=True)
class Runtime:
    """A program that runs ONNX files."""

    package: str
    reads: tuple[Format, ...]
    open: Callable[[Path], Pass]
    """Loads a file."""
    run: Callable[[Path, NDArray[np.float32]], Ran]
    """Loads a file, runs it twice and tells what it did."""
    lacks: tuple[str, ...] = ()
    """Float types that its CPU kernels do not multiply."""

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


def _ort_session(path: Path, profile: str = "") -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_profiling = bool(profile)
    options.profile_file_prefix = profile
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _ort_pass(session: Any) -> Pass:
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def _onnxruntime(path: Path, images: NDArray[np.float32]) -> Ran:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        session = _ort_session(path, str(Path(folder) / "profile"))
        load = time.perf_counter() - start
        forward = _ort_pass(session)
        forward(images)
        found, seconds, spent = _timed(lambda: forward(images))
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"]["op_name"] for e in events if e.get("name", "").endswith("_kernel_time")]
    kernels = Counter(name for name in ran if name in _ORT_PRODUCTS)
    each = Counter({name: count // 2 for name, count in kernels.items()})  # of two passes
    return Ran(found, seconds, spent, load, each, ort.__version__)


_OV_PRODUCTS = (
    *("FullyConnected", "MatMul", "ScaledDotProductAttention", "Convolution", "Deconvolution"),
)


def _ov_compiled(path: Path) -> Any:
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return core.compile_model(core.read_model(path), "CPU", settings)


def _ov_pass(compiled: Any) -> Pass:
    def forward(images: NDArray[np.float32]) -> Outputs:
        found = compiled({"images": images})
        return {output.get_any_name(): np.array(found[output]) for output in compiled.outputs}

    return forward


def _openvino(path: Path, images: NDArray[np.float32]) -> Ran:
    import openvino as ov

    start = time.perf_counter()
    compiled = _ov_compiled(path)
    load = time.perf_counter() - start
    forward = _ov_pass(compiled)
    forward(images)
    found, seconds, spent = _timed(lambda: forward(images))
    kernels: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str) if "layerType" in facts else ""
        if kind in _OV_PRODUCTS:
            kernels[f"{kind} {facts['runtimePrecision'].astype(str)}"] += 1
    return Ran(found, seconds, spent, load, kernels, ov.__version__)


def _et_pass(path: Path) -> Pass:
    import torch

    from .phone import NAMES_METHOD

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.runtime import Runtime as Executor

    program = Executor.get().load_program(path)
    (names,) = program.load_method(NAMES_METHOD).execute([])
    try:
        method = program.load_method("forward")
    except RuntimeError as error:
        words = str(error).splitlines()[0]
        raise UserError(
            f"ExecuTorch does not load {path}: {words} (XNNPACK has no tensors of over six axes)"
        ) from error

    def forward(images: NDArray[np.float32]) -> Outputs:
        found = method.execute([torch.from_numpy(images)])
        return {name: x.numpy().copy() for name, x in zip(names.split(), found, strict=True)}

    return forward


def _executorch(path: Path, images: NDArray[np.float32]) -> Ran:
    start = time.perf_counter()
    forward = _et_pass(path)
    load = time.perf_counter() - start
    forward(images)
    found, seconds, spent = _timed(lambda: forward(images))
    return Ran(found, seconds, spent, load, Counter(), version("executorch"))


RUNTIMES = {
    "onnxruntime": Runtime(
        "onnxruntime",
        ("onnx",),
        lambda path: _ort_pass(_ort_session(path)),
        _onnxruntime,
        lacks=("bfloat16",),
    ),
    "openvino": Runtime(
        "openvino", ("onnx", "openvino"), lambda path: _ov_pass(_ov_compiled(path)), _openvino
    ),
    "executorch": Runtime("executorch", ("executorch",), _et_pass, _executorch),
}
"""By name; a file is given to those that read its format."""
