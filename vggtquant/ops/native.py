# SPDX-License-Identifier: Apache-2.0
"""The compiled modules, and which of them takes a call: the only importer of _cpu and _cuda."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch

from ..about import forked
from ..errors import UserError

try:
    from .. import _cpu
except ImportError:
    _HERE = Path(__file__).parent.parent
    if any(_HERE.glob("_cpu*.so")):
        raise
    raise UserError(
        f"{_HERE} holds the sources of vggtquant and no compiled kernels. Start Python in another "
        "folder, where it finds the installed package, or build the kernels here: pip install -e ."
    ) from None

_cuda: ModuleType | None
try:
    from .. import _cuda
except ImportError:
    _cuda = None

cpu = _cpu
cuda = _cuda
"""None in a build without CUDA kernels."""

Own = Literal["float", "bf16", "int8", "int16"]
"""What a Linear's or an attention's operands are while our kernels multiply them."""
Activations = Own | Literal["float8"]
"""What a Linear's input is while it is multiplied."""
DEEPEST = 65536
"""Inputs of a Linear for which every integer sum fits 32 bits; VGQ_DEEPEST in csrc/vgq.h."""

isa = cpu.isa
isas = cpu.isas
threads = cpu.threads
set_threads = cpu.set_threads
limit_threads = cpu.limit_threads
openmp = cpu.openmp


def use_isa(name: str | None) -> None:
    """Use the named instruction set's kernels; None: the best that runs here.

    Raises:
        UserError: a name that is unknown or that this machine cannot run.
    """
    try:
        cpu.use(name)
    except RuntimeError as error:
        raise UserError(
            f"instruction set {name!r} is unknown or does not run here; "
            f"these do: {', '.join(isas())}"
        ) from error


if _refused := cpu.isas_refused():
    warnings.warn(
        f"the kernels for {', '.join(_refused)} gave other results than the scalar ones on this "
        f"machine and are not used; {isa()} is",
        stacklevel=2,
    )

if "VGGTQUANT_ISA" in os.environ:  # once, before anything is computed
    use_isa(os.environ["VGGTQUANT_ISA"])


if forked():
    cpu.forked()


# ---- devices -------------------------------------------------------------------------------------


def cuda_missing() -> str | None:
    """Why CUDA tensors cannot be served here, and what mends it; None where they can be."""
    if cuda is None:
        return (
            "this installation has no CUDA kernels; install the CUDA Toolkit (nvcc), then "
            "vggtquant again with VGGTQUANT_CUDA=1"
        )
    if torch.version.cuda is None:
        return "this torch is built for the CPU alone; install one that is built for CUDA"
    try:
        cuda.devices()
    except RuntimeError as error:
        return f"the CUDA runtime finds no GPU that it can use ({error}); see nvidia-smi"
    return None


def serves(device: torch.device) -> bool:
    """Whether tensors there can be computed with."""
    return device.type == "cpu" or (device.type == "cuda" and cuda_missing() is None)


def check_device(device: str | torch.device) -> torch.device:
    """The device itself; UserError for one that is unknown or not there.

    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {str(device)!r}: wanted cpu, cuda or cuda:0, cuda:1, …")
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if (found.index or 0) >= count:
        raise UserError(f"no device {str(device)!r} here: torch {torch.__version__} sees {count}")
    return found


def check_served(device: str | torch.device) -> torch.device:
    """The device itself; UserError for one that is unknown, not there, or that this build has no
    kernels for.

    >>> check_served("cpu")
    device(type='cpu')
    """
    is_cuda = str(device).partition(":")[0] == "cuda"
    if is_cuda and (missing := cuda_missing()) is not None:
        raise UserError(f"device {str(device)!r}: {missing}")
    return check_device(device)


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
"""Of a device's number: its current stream by address, a tenth of what torch.cuda's own takes. As
torch's compiler calls it."""


def _stream(device: torch.device) -> int:
    """The device's current stream, by address."""
    if _raw_stream is not None:
        return int(_raw_stream(device.index))
    return int(torch.cuda.current_stream(device).cuda_stream)


def queue(call: Any, args: tuple[Any, ...], device: torch.device) -> Any:
    """A call of _cuda on the device's current stream; the device is the current one meanwhile."""
    if torch.cuda.current_device() == device.index:
        return call(*args, _stream(device))
    with torch.cuda.device(device):
        return call(*args, _stream(device))


def on_gpu(x: object) -> bool:
    """Whether it is a tensor on a CUDA device."""
    return isinstance(x, torch.Tensor) and x.device.type == "cuda"


def described(x: Any) -> Any:
    """A tensor as _cuda wants it; anything else as it is."""
    if x is None or not isinstance(x, torch.Tensor):
        return x
    return x.data_ptr(), tuple(x.shape), _dtype_word(x.dtype)


@functools.cache
def _dtype_word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(name: str, *args: Any) -> Any:
    """Call the core where the buffers are; _cuda takes the same arguments and a stream."""
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    if not tensors:
        return getattr(cpu, name)(*args)
    device = tensors[0].device
    if any(
        x.device != device if isinstance(x, torch.Tensor) else isinstance(x, np.ndarray)
        for x in args
    ):
        there = {str(x.device) for x in tensors}
        there |= {"cpu" for x in args if isinstance(x, np.ndarray)}
        raise UserError(f"arrays on {' and '.join(sorted(there))} are given; one is wanted")
    if cuda is None:
        raise UserError(f"tensors on {device} are given, but {cuda_missing()}")
    return queue(getattr(cuda, name), tuple(map(described, args)), device)
