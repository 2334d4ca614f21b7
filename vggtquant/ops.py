# SPDX-License-Identifier: Apache-2.0
"""The one road from arrays and tensors to the C core: the only importer of _cpu and _cuda.

Everything here takes and gives buffers as the core wants them: NumPy arrays on the CPU, tensors on
a CUDA device. `values` makes them from what users have, without a copy where the memory allows it,
and `_run` takes each call to the module of its buffers' device.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import forward_ad

from . import float8
from .about import forked
from .errors import UserError

try:
    from . import _cpu
except ImportError:
    _HERE = Path(__file__).parent
    if any(_HERE.glob("_cpu*.so")):
        raise
    raise UserError(
        f"{_HERE} holds the sources of vggtquant and no compiled kernels. Start Python in another "
        "folder, where it finds the installed package, or build the kernels here: pip install -e ."
    ) from None

_cuda: ModuleType | None
try:
    from . import _cuda
except ImportError:
    _cuda = None

Array: TypeAlias = "NDArray[Any] | torch.Tensor"
Buffer: TypeAlias = Any
"""A NumPy array on the CPU, a tensor on a CUDA device."""

# The core's three dtypes; NumPy has no bfloat16, so its bits travel as uint16.
_TORCH_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
DTYPES = tuple(_TORCH_NAMES.values())
Own = Literal["float", "bf16", "int8", "int16"]
"""What a Linear's or an attention's operands are while our kernels multiply them."""
Activations = Own | Literal["float8"]
"""What a Linear's input is while it is multiplied."""
DEEPEST = 65536
"""Inputs of a Linear for which every integer sum fits 32 bits; VGQ_DEEPEST in csrc/vgq.h."""

isa = _cpu.isa
isas = _cpu.isas
threads = _cpu.threads
set_threads = _cpu.set_threads
limit_threads = _cpu.limit_threads
openmp = _cpu.openmp


def use_isa(name: str | None) -> None:
    """Use the named instruction set's kernels; None: the best that runs here.

    Raises:
        UserError: a name that is unknown or that this machine cannot run.
    """
    try:
        _cpu.use(name)
    except RuntimeError as error:
        raise UserError(
            f"instruction set {name!r} is unknown or does not run here; "
            f"these do: {', '.join(isas())}"
        ) from error


if _refused := _cpu.isas_refused():
    warnings.warn(
        f"the kernels for {', '.join(_refused)} gave other results than the scalar ones on this "
        f"machine and are not used; {isa()} is",
        stacklevel=2,
    )

if "VGGTQUANT_ISA" in os.environ:  # once, before anything is computed
    use_isa(os.environ["VGGTQUANT_ISA"])


if forked():
    _cpu.forked()


def dtype_name(x: Array) -> str:
    """float32, float16 or bfloat16.

    Raises:
        TypeError: for any other dtype, and for what is no array.
    """
    dtype = getattr(x, "dtype", type(x).__name__)
    if isinstance(x, torch.Tensor) and dtype in _TORCH_NAMES:
        return _TORCH_NAMES[dtype]
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")  # NumPy's, in any byte order
    if name not in DTYPES:
        raise TypeError(f"dtype {name} is given; one of {', '.join(DTYPES)} is wanted")
    return name


# ---- devices -------------------------------------------------------------------------------------


def cuda_missing() -> str | None:
    """Why CUDA tensors cannot be served here, and what mends it; None where they can be."""
    if _cuda is None:
        return (
            "this installation has no CUDA kernels; install the CUDA Toolkit (nvcc), then "
            "vggtquant again with VGGTQUANT_CUDA=1"
        )
    if torch.version.cuda is None:
        return "this torch is built for the CPU alone; install one that is built for CUDA"
    try:
        _cuda.devices()
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


def _queue(call: Any, args: tuple[Any, ...], device: torch.device) -> Any:
    """A call of _cuda on the device's current stream; the device is the current one meanwhile."""
    if torch.cuda.current_device() == device.index:
        return call(*args, _stream(device))
    with torch.cuda.device(device):
        return call(*args, _stream(device))


def on_gpu(x: object) -> bool:
    """Whether it is a tensor on a CUDA device."""
    return isinstance(x, torch.Tensor) and x.device.type == "cuda"


def _described(x: Any) -> Any:
    """A tensor as _cuda wants it; anything else as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    return x.data_ptr(), tuple(x.shape), _dtype_word(x.dtype)


@functools.cache
def _dtype_word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _run(name: str, *args: Any) -> Any:
    """Call the core where the buffers are; _cuda takes the same arguments and a stream."""
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    if not tensors:
        return getattr(_cpu, name)(*args)
    device = tensors[0].device
    if any(
        x.device != device if isinstance(x, torch.Tensor) else isinstance(x, np.ndarray)
        for x in args
    ):
        there = {str(x.device) for x in tensors}
        there |= {"cpu" for x in args if isinstance(x, np.ndarray)}
        raise UserError(f"arrays on {' and '.join(sorted(there))} are given; one is wanted")
    if _cuda is None:
        raise UserError(f"tensors on {device} are given, but {cuda_missing()}")
    return _queue(getattr(_cuda, name), tuple(map(_described, args)), device)


def empty(shape: int | tuple[int, ...], dtype: str, like: Buffer) -> Buffer:
    """Uninitialized memory where `like` is; bfloat16 lies in NumPy arrays as uint16."""
    if isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    return np.empty(shape, np.uint16 if dtype == "bfloat16" else np.dtype(dtype))


_HUGE = 1 << 21
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_libc = ctypes.CDLL(None)


def _room(shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Uninitialized CPU memory; asks for huge pages where it is large.

    The system clears a new page when it is first written: an output of 45 MB, which malloc takes
    from the system in every call, lost a third of the product's time to that, in 4 KB each.
    """
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    start = -(-tensor.data_ptr() // _HUGE) * _HUGE
    nbytes = (tensor.data_ptr() + tensor.nbytes) // _HUGE * _HUGE - start
    if nbytes > 0 and _ADVICE is not None:  # what the system says to it does not matter
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(nbytes), _ADVICE)
    return tensor


_CHUNK = 64 << 20
"""Bytes that are taken from the system at a time for buffers side by side."""


def side_by_side(sizes: Sequence[int]) -> Iterator[torch.Tensor]:
    """Uninitialized CPU buffers of so many bytes, neighbours in memory of huge pages.

    A forward reads each weight once; in pages of 4 KB VGGT-1B took 6 % longer. A chunk of 64 MB is
    given back to the system with the last of its buffers.
    """
    at = end = 0
    for i, size in enumerate(sizes):
        if end - at < size:
            left = sum(-(-n // 64) * 64 for n in sizes[i:])
            end = -(-max(size, min(left, _CHUNK)) // _HUGE) * _HUGE
            chunk = mmap.mmap(-1, end, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            chunk.madvise(mmap.MADV_HUGEPAGE)
            at = 0
            trim()  # what was freed while the chunk before was filled
        yield torch.frombuffer(chunk, dtype=torch.uint8, count=size, offset=at)
        at += -(-size // 64) * 64


def trim() -> None:
    """Give freed memory back to the system, where the C library is one that keeps it (glibc).

    After a swap of VGGT-1B's layers that was 0.26 GB.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))


def filled(shape: int | tuple[int, ...], value: float, dtype: str, like: Buffer) -> Buffer:
    """One value everywhere, where `like` is."""
    buffer = empty(shape, dtype, like)
    buffer[...] = value
    return buffer


def joined(buffers: list[Buffer]) -> Buffer:
    """Buffers of one axis, one after the other."""
    if isinstance(buffers[0], torch.Tensor):
        return torch.cat(buffers)
    return np.concatenate(buffers)


def moved(buffer: Buffer, like: Buffer) -> Buffer:
    """The buffer where `like` is, and of its kind; itself if it is there."""
    if isinstance(like, torch.Tensor):
        return torch.as_tensor(buffer, device=like.device)
    return buffer.cpu().numpy() if isinstance(buffer, torch.Tensor) else buffer


def values(x: Array) -> Buffer:
    """x as a contiguous buffer that the core reads; bfloat16 in NumPy as its bits in uint16."""
    name = dtype_name(x)
    if isinstance(x, torch.Tensor) and on_gpu(x):
        _check_dense(x)
        return x.detach().resolve_neg().contiguous()
    torch.get_num_threads()  # in a new thread torch passes its count to OpenMP when first asked
    if not isinstance(x, torch.Tensor):
        _check_plain(x)
        if name == "bfloat16":
            x = x.view(np.uint16)
        return np.require(np.asarray(x), x.dtype.newbyteorder("="), ["C", "ALIGNED"])
    _check_dense(x)
    x = x.detach().resolve_neg().contiguous()
    return _array(x.view(torch.uint16) if name == "bfloat16" else x)


def _check_plain(x: Any) -> None:
    """TypeError for an array whose meaning is more than its values: masked, or with units."""
    if isinstance(x, np.ma.MaskedArray):
        if masked := int(np.ma.getmaskarray(x).sum()):
            raise TypeError(
                f"{masked} of {x.size} values are masked; an array without masked values is "
                "wanted: x.filled(value) or x.compressed()"
            )
    elif isinstance(x, np.ndarray) and type(x).__array_ufunc__ is not np.ndarray.__array_ufunc__:
        raise TypeError(
            f"a {type(x).__name__} is given, which computes in its own way; a plain array is "
            "wanted: np.asarray(x)"
        )


def not_dense(x: torch.Tensor) -> UserError:
    """What to raise for a tensor without memory that we can read."""
    return UserError(
        f"a dense tensor on the CPU or a CUDA device is wanted, not one of {x.layout} on {x.device}"
    )


def _check_dense(x: torch.Tensor) -> None:
    """With memory, on a device that we serve. A storage that was freed or cut short, as sharding
    does, leaves tensors that tell their old shape and point at what is now somebody else's."""
    if x.layout != torch.strided or x.is_nested or x.device.type not in ("cpu", "cuda"):
        raise not_dense(x)
    if x.is_contiguous():
        last = x.numel() - 1
    else:
        last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    wanted = (x.storage_offset() + last + 1) * x.element_size()
    if x.numel() and x.untyped_storage().nbytes() < wanted:
        raise UserError(
            f"a tensor of shape {tuple(x.shape)} is given whose storage has been freed: "
            f"{x.untyped_storage().nbytes()} bytes are left of {wanted}"
        )


def memory(x: torch.Tensor) -> NDArray[Any]:
    """The memory of a CPU tensor."""
    _check_dense(x)
    return _array(x.resolve_neg())


def _array(x: torch.Tensor) -> NDArray[Any]:
    try:
        return x.numpy()
    except (RuntimeError, TypeError) as error:  # fake, traced or batched, or on another device
        raise UserError(f"a CPU tensor with memory of its own is wanted: {error}") from error


def tensor_like(array: Buffer, name: str) -> torch.Tensor:
    """The tensor of that dtype on the buffer's memory."""
    if isinstance(array, torch.Tensor):
        return array
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def is_recorded(x: torch.Tensor) -> bool:
    """Whether a tracer, a dispatch mode, a functional transform or a tensor's subclass must see an
    operator instead of a call that reads x's memory. A subclass that has no memory of its own is
    refused where the memory is read."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or (
            type(x) is not torch.Tensor
            and type(x) is not torch.nn.Parameter
            and type(x).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        )
    )


def is_differentiated() -> bool:
    """Whether a functional transform or forward mode wants derivatives of what is called."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    kinds = {transform.key() for transform in transforms}
    wanted = {torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp}
    return bool(kinds & wanted) or forward_ad._current_level >= 0


# ---- quantize ------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """rows x cols values, of which `group` neighbours in a row share a scale."""

    rows: int
    cols: int
    group: int

    @property
    def row_groups(self) -> int:
        """Groups of a row, the last of which may be shorter."""
        return -(-self.cols // self.group) if self.cols else 0

    @property
    def groups(self) -> int:
        """Groups of the matrix."""
        return self.rows * self.row_groups


def _format(bits: int) -> Any:
    return f"i{bits}"


def row_nbytes(bits: int, cols: int) -> int:
    """Bytes of a row of codes; two 4-bit codes share a byte, and a row starts at a new one."""
    return -(-cols * bits // 8)


def ranges(shape: Shape, x: Buffer) -> tuple[Buffer, Buffer, int]:
    """Lowest and highest value of each group, widened to hold 0, and how many are not finite."""
    lo, hi = empty(shape.groups, "float32", x), empty(shape.groups, "float32", x)
    nonfinite = filled(shape.rows, 0, "int64" if isinstance(x, torch.Tensor) else "uint64", x)
    _run("range", shape, x, lo, hi, nonfinite)
    return lo, hi, int(nonfinite.sum())


def parameters(
    bits: int, lo: Buffer, hi: Buffer, zero_points: bool
) -> tuple[Buffer, Buffer | None]:
    """Scale of each range and, if asked for, its zero point."""
    scale = empty(lo.shape, "float32", lo)
    zero = empty(lo.shape, "int8", lo) if zero_points else None
    _run("parameters", _format(bits), lo, hi, scale, zero)
    return scale, zero


def two_level(
    shape: Shape, x: Buffer, zero_points: bool
) -> tuple[Buffer, Buffer, Buffer | None, Buffer]:
    """Channel scales, factors, zero points; squared errors (rows, 2): two-level, float scales."""
    channel_scale = empty(shape.rows, "float32", x)
    factor = empty(shape.groups, "uint8", x)
    zero = empty(shape.groups, "int8", x) if zero_points else None
    error = empty((shape.rows, 2), "float64", x)
    _run("two_level", shape, x, channel_scale, factor, zero, error)
    return channel_scale, factor, zero, error


def quantize(bits: int, shape: Shape, x: Buffer, scale: Buffer, zero: Buffer | None) -> Buffer:
    """Codes as bytes, (rows, row_nbytes)."""
    q = empty((shape.rows, row_nbytes(bits, shape.cols)), "uint8", x)
    _run("quantize", _format(bits), shape, x, scale, zero, q)
    return q


def dequantize(
    bits: int,
    shape: Shape,
    q: Buffer,
    scale: Buffer,
    zero: Buffer | None,
    name: str = "float32",
) -> Buffer:
    """The values that codes stand for, (rows, cols), rounded once to that dtype."""
    x = empty((shape.rows, shape.cols), name, q)
    _run("dequantize", _format(bits), shape, q, scale, zero, x)
    return x


# ---- linear --------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """What packed bytes hold; see vgq_weight in csrc/vgq.h."""

    bits: int
    scales: _cpu.Scales | Literal["float8"]
    """float8: codes are FP8 numbers, with a scale a row; float8.pack lays them out, on any device
    the same."""
    n: int
    k: int
    group: int
    asymmetric: bool

    @property
    def row_groups(self) -> int:
        """Groups of a row."""
        return -(-self.k // self.group)

    @property
    def is_float8(self) -> bool:
        """Whether codes are FP8 numbers."""
        return self.scales == "float8"

    @property
    def number(self) -> str:
        """What a code is, for a report."""
        return "float8" if self.is_float8 else f"int{self.bits}"


def pack(
    about: Packed,
    q: Buffer,
    scale: Buffer,
    factor: Buffer | None,
    zero: Buffer | None,
    like: torch.Tensor | None = None,
) -> torch.Tensor:
    """The kernels' layout of a weight, as one uint8 tensor where `like` is (None: the CPU)."""
    if about.k > DEEPEST:
        raise UserError(f"a weight of rows of {about.k} is given; {DEEPEST} inputs are the most")
    if about.is_float8:
        return float8.pack(about, moved(q, None), moved(scale, None), like)
    cuda = "cuda_" if on_gpu(like) else ""
    nkg, scales, fmt = (about.n, about.k, about.group), about.scales, _format(about.bits)
    nbytes = getattr(_cpu, f"{cuda}packed_nbytes")(fmt, scales, nkg, about.asymmetric)
    packed = _room(max(nbytes, 1), torch.uint8)
    parts = (None if part is None else moved(part, None) for part in (q, scale, factor, zero))
    getattr(_cpu, f"{cuda}pack")(fmt, scales, nkg, *parts, packed.numpy())
    return packed if like is None else packed.to(like.device)


def packed_weight(packed: torch.Tensor) -> Packed:
    """What the packed bytes say of themselves."""
    bits, scales, nkg, asymmetric = _cpu.packed_weight(memory(packed))
    return Packed(bits, scales, *nkg, asymmetric)


def lies_for_cuda(packed: torch.Tensor) -> bool:
    """Whether packed bytes, on any device, are those of the CUDA kernels."""
    return bytes(packed[:8].cpu().numpy()) == b"vgqcuda2"


def unpack(
    packed: torch.Tensor, about: Packed
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Plain row-major codes, scales, factors and zero points: the inverse of pack."""
    if about.is_float8:
        return *float8.unpack(packed, about), None, None
    groups = 1 if about.scales == "per_row" else about.row_groups
    q = np.empty((about.n, row_nbytes(about.bits, about.k)), np.uint8)
    scale = np.empty(about.n * (groups if about.scales == "per_group" else 1), np.float32)
    factor = np.empty(about.n * groups, np.uint8) if about.scales == "two_level" else None
    zero = np.empty(about.n * groups, np.int8) if about.asymmetric else None
    of_core = _cpu.cuda_unpack if lies_for_cuda(packed) else _cpu.unpack
    of_core(packed.cpu().numpy(), q, scale, factor, zero)
    return q, scale, factor, zero


def fitted(packed: torch.Tensor, about: Packed, like: torch.Tensor) -> torch.Tensor:
    """Packed bytes as the kernels where `like` is want them; there, if laid out anew."""
    if about.is_float8 or lies_for_cuda(packed) == on_gpu(like):
        return packed
    return pack(about, *unpack(packed, about), like)


class Norm(NamedTuple):
    """LayerNorm over the last axis; weight and bias of its length."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    eps: float = 1e-5


class Inputs(NamedTuple):
    """How a Linear's input is coded: x * weight + bias, a value a channel, then by one scale."""

    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    scale: float = 0.0
    """0: a scale a token, as it comes."""


NO_INPUTS = Inputs()


def linear(
    packed: torch.Tensor,
    about: Packed,
    activations: Activations,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    norm: Norm | None = None,
    inputs: Inputs | None = None,
    gelu: bool = False,
    layer_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = norm(x) w^T + bias, then GELU, a scale for each output and a residual, where given.

    x: (m, k) of one of the core's dtypes. norm: over k. inputs: for coded activations. bias,
    layer_scale: (n,). residual: (m, n) of `dtype`. Returns (m, n) of `dtype`, rounded once.
    docs/conventions.md: "Linear".

    Raises:
        UserError: tensors that are not on the CPU; gpu_linear is for a GPU's.
    """
    if activations == "float8":
        around = {"norm": norm, "gelu": gelu, "layer_scale": layer_scale, "residual": residual}
        return float8.linear(packed, about, x, bias, dtype, **around)  # type: ignore[arg-type]
    y = _room((x.shape[0], about.n), dtype)
    before = None if residual is None else values(residual)
    _cpu.linear(
        memory(packed),
        activations,
        values(x),
        _norm(norm),
        (None, None, 0.0)
        if inputs is None
        else (_floats(inputs.weight), _floats(inputs.bias), inputs.scale),
        _floats(bias),
        gelu,
        _floats(layer_scale),
        before,
        _bits_of(y),
    )
    return y


def _bits_of(y: torch.Tensor) -> NDArray[Any]:
    """The memory of a new CPU tensor; bfloat16 as its bits."""
    return _array(y.view(torch.uint16) if y.dtype == torch.bfloat16 else y)


PANEL = 256
"""Rows of a weight that are decoded at a time for a gradient."""


def input_gradient(packed: torch.Tensor, about: Packed, grad: torch.Tensor) -> torch.Tensor:
    """grad w, float32 (m, k), for the gradient (m, n) of y = x w^T: w is never whole in float."""
    q, scale, factor, zero = unpack(packed, about)
    groups = about.row_groups if about.scales in ("two_level", "per_group") else 1
    group = about.k if groups == 1 else about.group
    scales = scale.reshape(about.n, -1)
    if factor is not None:
        scales = scales * factor.reshape(about.n, groups)
    zeros = None if zero is None else zero.reshape(about.n, groups)
    x = torch.zeros((len(grad), about.k), device=grad.device)
    for start in range(0, about.n, PANEL):
        rows = slice(start, min(start + PANEL, about.n))
        shape = Shape(rows.stop - start, about.k, group)
        z = None if zeros is None else np.ascontiguousarray(zeros[rows]).reshape(-1)
        s = np.ascontiguousarray(scales[rows]).reshape(-1)
        if about.is_float8:
            panel = float8.values(q[rows], torch.from_numpy(s))
        else:
            panel = torch.from_numpy(dequantize(about.bits, shape, q[rows], s, z))
        x += grad[:, rows].float() @ panel.to(grad.device)
    return x


# The parts of a Linear on a GPU, for gpu_linear's engines.


def check_gpu_call(activations: Activations, x: torch.Tensor, *others: torch.Tensor | None) -> None:
    """UserError for 16-bit activations, tensors on several devices, a build without kernels."""
    if activations == "int16":
        raise UserError("activation_bits=16 is not served on a GPU; 8 is")
    device = x.device
    for other in others:
        if other is not None and other.device != device:
            both = " and ".join(sorted((str(other.device), str(device))))
            raise UserError(f"arrays on {both} are given; one is wanted")
    if _cuda is None:
        raise UserError(f"tensors on {device} are given, but {cuda_missing()}")


def _weight(about: Packed) -> tuple[Any, ...]:
    nkg = (about.n, about.k, about.group)
    return (_format(about.bits), about.scales, nkg, about.asymmetric)


@functools.lru_cache(1024)
def gpu_linear_nbytes(about: Packed, activations: Activations, m: int) -> int:
    """Bytes of scratch that gpu_linear and its parts want for m tokens."""
    return int(_module().linear_nbytes(_weight(about), activations, m))


@functools.lru_cache(1024)
def gpu_depth(about: Packed) -> int:
    """Inputs of a packed row, padding included."""
    return int(_module().depth(_weight(about)))


class GpuProduct(NamedTuple):
    """Operands of a product on a GPU, contiguous, as `linear` has them; y is written."""

    about: Packed
    packed: torch.Tensor
    x: torch.Tensor
    norm: Norm | None
    bias: torch.Tensor | None
    gelu: bool
    layer_scale: torch.Tensor | None
    residual: torch.Tensor | None
    y: torch.Tensor

    def described(self) -> tuple[Any, ...]:
        """As _cuda wants it."""
        weight, bias, eps = self.norm or (None, None, 0.0)
        return (
            _weight(self.about),
            _described(self.packed),
            _described(self.x),
            (_described(weight), _described(bias), eps),
            _described(self.bias),
            self.gelu,
            _described(self.layer_scale),
            _described(self.residual),
            _described(self.y),
        )


def gpu_linear(product: GpuProduct, activations: Activations, scratch: torch.Tensor) -> None:
    """All parts at once; contracts in csrc/vgq_cuda.h, of the rest too."""
    _run("linear", product.described(), activations, scratch)


def gpu_code_tokens(product: GpuProduct, scratch: torch.Tensor) -> None:
    """Codes, scales and sums of the tokens, normalized where the product says so, to scratch."""
    _run("code_tokens", product.described(), scratch)


def gpu_finish(product: GpuProduct, sums: torch.Tensor, scratch: torch.Tensor) -> None:
    """y from the sums of integers, int32 (m, n), and the tokens' scales."""
    _run("finish", product.described(), sums, scratch)


def gpu_integers(about: Packed, packed: torch.Tensor, integers: torch.Tensor) -> None:
    """The weight's integers, int8 (n, gpu_depth)."""
    _run("integers", _weight(about), packed, integers)


def gpu_decode(about: Packed, packed: torch.Tensor, weight: torch.Tensor) -> None:
    """The weight's values (n, k), rounded once."""
    _run("decode", _weight(about), packed, weight)


def _module() -> ModuleType:
    assert _cuda is not None  # check_gpu_call
    return _cuda


def kernel_name(activations: Activations, bits: int) -> str:
    """What `linear` multiplies, and with which instructions.

    >>> kernel_name("int8", 4).startswith("int8 x int4, ")
    True
    """
    if activations == "float8":
        return "float8 x float8, torch"
    kind, isa = _cpu.linear_isa(activations)
    return f"{kind} x int{bits}, {isa}"


# ---- attention -----------------------------------------------------------------------------------


def _norm(norm: Norm | None) -> tuple[NDArray[Any] | None, NDArray[Any] | None, float]:
    if norm is None:
        return None, None, 0.0
    return _floats(norm.weight), _floats(norm.bias), norm.eps


def _floats(x: torch.Tensor | None) -> NDArray[Any] | None:
    """As contiguous float32 on the CPU."""
    if x is None:
        return None
    _check_dense(x)
    return _array(x.detach().float().contiguous())


def attention(
    qkv: torch.Tensor,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    rope_width: int | None = None,
    scale: float | None = None,
    mode: Own = "float",
    pv: Own | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """softmax(scale q k^T) v for every head, with q and k normalized and rotated first.

    Args:
        qkv: (batch, tokens, 3, heads, dim) on the CPU, float32, float16 or bfloat16, with any
            strides but 1 for the last axis. dim: a multiple of 8, at most 128.
        q_norm: LayerNorm of each head's q; None: none. k_norm: likewise.
        cos: (rows, dim): what channels are multiplied by, of token i in row i % rows; with sin, of
            the same shape, what the channels they turn with are. None: no rotation.
        rope_width: channels that turn together, the first half with the second: `dim`, or by
            default `dim // 2`, for positions in a plane.
        scale: of the scores, not negative; None: dim ** -0.5.
        mode: how q and k are multiplied: "float", "bf16" (as "float" where the CPU has no
            instruction for it) or "int8", with a scale for each row of q and of k.
        pv: how the softmax and v are multiplied; None: as `mode`.
        dtype: of the result; None: that of qkv.

    Returns:
        (batch, tokens, heads * dim). A row of q that is not finite gives a row of NaN; such a row
        of k or v, NaN for all rows of its head.

    Raises:
        UserError: shapes, devices or a scale that do not fit.

    >>> attention(torch.ones(1, 5, 3, 2, 32), mode="int8").shape
    torch.Size([1, 5, 64])
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise UserError(
            f"qkv of shape {tuple(qkv.shape)} is given; (batch, tokens, 3, heads, dim) is wanted"
        )
    batch, tokens, _, heads, dim = qkv.shape
    if dim % 8 or not 0 < dim <= WIDEST:
        raise UserError(
            f"heads of {dim} channels are given; a multiple of 8, up to {WIDEST}, is wanted"
        )
    if on_gpu(qkv):
        raise UserError(f"qkv on {qkv.device} is given; attention is served on the CPU")
    dtype_name(qkv)
    _check_dense(qkv)
    if qkv.stride(-1) != 1 and dim > 1:
        qkv = qkv.contiguous()
    width = dim // 2 if rope_width is None else rope_width
    if cos is not None and (width < 2 or width % 2 or dim % width):
        raise UserError(f"rope_width {width} is given; an even divisor of {dim} is wanted")
    factor = dim**-0.5 if scale is None else float(scale)
    if not 0 <= factor < math.inf:
        raise UserError(f"scale {scale} is given; a finite one that is not negative is wanted")
    source = qkv.detach().resolve_neg()
    y = _room((batch, tokens, heads * dim), dtype or qkv.dtype)
    if not y.numel():
        return y
    x = _array(source.view(torch.uint16) if source.dtype == torch.bfloat16 else source)
    values = mode if pv is None else pv
    _cpu.attention(
        mode,
        values,
        x,
        _norm(q_norm),
        _norm(k_norm),
        (_floats(cos), _floats(sin), width),
        factor,
        _bits_of(y),
    )
    return y


def attention_kernel_name(mode: Own, pv: Own) -> str:
    """What `attention` multiplies, and with which instructions: q k, then the softmax and v.

    >>> attention_kernel_name("int8", "int8").startswith("attention, int8 (")
    True
    """
    (scores, first), (values, second) = _cpu.attention_isa(mode, pv)
    return f"attention, {scores} ({first}) and {values} ({second})"


WIDEST = 128
"""Channels of a head; VGQ_WIDEST in csrc/vgq.h."""


# ---- convolution ---------------------------------------------------------------------------------


class Window(NamedTuple):
    """A convolution's kernel, strides and padding, each (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what comes of pictures of that height and width."""
        high, wide = (
            (side + 2 * padding - kernel) // stride + 1
            for side, kernel, stride, padding in zip(
                size, self.kernel, self.stride, self.padding, strict=True
            )
        )
        return high, wide


class Tables(NamedTuple):
    """A position embedding: (width, channels / 2) and (height, channels / 2) of float32."""

    columns: torch.Tensor
    rows: torch.Tensor


class Projection(NamedTuple):
    """A float product after the convolution: weight (outputs, 64), bias (outputs)."""

    weight: torch.Tensor
    bias: torch.Tensor


def conv_channels(channels: int) -> int:
    """Inputs that a pixel has in a packed weight: whole steps of eight."""
    return -(-channels // 8) * 8


def _into(tensor: torch.Tensor | None) -> Any:
    """The memory of a tensor of one of the core's dtypes."""
    if tensor is None:
        return None
    _check_dense(tensor)
    return _array(tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor)


def conv2d(
    packed: torch.Tensor,
    about: Packed,
    window: Window,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    size: tuple[int, int] | None = None,
    out_size: tuple[int, int] | None = None,
    relu_sums: torch.Tensor | None = None,
    relu: bool = False,
    relu_sum: bool = False,
    folded: bool = False,
    largest: torch.Tensor | None = None,
    embedding: Tables | None = None,
    residual: torch.Tensor | None = None,
    projection: Projection | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution of pictures x (n, height, width, channels) with a packed INT8 weight.

    y (n, height, width, outputs) of `dtype`, and its largest magnitudes (n, 2) as vgq_conv_call
    in csrc/vgq.h has them. size: x is resized to it first. relu_sums: x counts as relu(x); the sums
    of each output's weights. relu, relu_sum: before and after the residual is added. largest: those
    of x, where they are known. folded: the second half of the outputs is added to the first.
    """
    size = size or (x.shape[1], x.shape[2])
    high, wide = out_size or window.outputs(size)
    last = projection or Projection(None, None)  # type: ignore[arg-type]
    own = about.n // 2 if folded else about.n
    outputs = own if projection is None else len(projection.bias)
    y = _room((x.shape[0], high, wide, outputs), dtype)
    found = torch.empty((x.shape[0], 2), dtype=torch.float32, device="cpu")
    columns, rows = embedding or (None, None)
    args: list[Any] = [
        memory(packed),
        values(x),
        size,
        *window,
        relu_sums is not None,
        relu,
        relu_sum,
        folded,
        *map(_into, (largest, columns, rows, relu_sums, bias, residual, *last, y, found)),
    ]
    scratch = _room(_cpu.conv2d(*[*args, None]), torch.uint8).numpy()
    _cpu.conv2d(*[*args, scratch])
    return y, found


def resize(
    x: torch.Tensor, size: tuple[int, int], added: torch.Tensor | None = None
) -> torch.Tensor:
    """x (n, height, width, channels) made `size` by bilinear interpolation, corners aligned; plus
    `added`, whose dtype y then has."""
    y = _room((x.shape[0], *size, x.shape[3]), x.dtype if added is None else added.dtype)
    args = values(x), _into(added), _into(y)
    scratch = _room(_cpu.resize(*args, None), torch.uint8).numpy()
    _cpu.resize(*args, scratch)
    return y


# ---- metrics -------------------------------------------------------------------------------------


def moments(reference: Buffer, candidate: Buffer) -> dict[str, float]:
    """Counts, range and sums of two arrays of one shape, from one pass over both (metrics.def)."""
    names = _cpu.moment_names()
    r, c = reference.reshape(-1), candidate.reshape(-1)
    parts = empty((_cpu.compare_parts(r.shape[0]), len(names)), "float64", r)
    _run("compare", r, c, parts)
    return dict(zip(names, parts[0].tolist(), strict=True))


def cross_entropy(reference: Buffer, candidate: Buffer) -> tuple[float, float]:
    """Cross entropy and KL divergence in nats: means over the rows along the last axis."""
    cols = reference.shape[-1]
    r, c = reference.reshape(-1, cols), candidate.reshape(-1, cols)
    module = _cuda if _cuda is not None and isinstance(r, torch.Tensor) else _cpu
    parts = empty((module.cross_entropy_parts(len(r)), 2), "float64", r)
    _run("cross_entropy", r, c, parts)
    return float(parts[0, 0]), float(parts[0, 1])


SSIM_SIDE, SSIM_CHANNELS = _cpu.ssim_limits()


def _as_images(x: Buffer, h: int, w: int) -> Buffer:
    """(images, height, width, channels); copied only where the memory does not lie that way."""
    channels = math.prod(x.shape[w + 1 :])
    if w != h + 1 or channels > SSIM_CHANNELS:
        if isinstance(x, torch.Tensor):
            x = x.movedim((h, w), (-2, -1)).contiguous()
        else:
            x = np.ascontiguousarray(np.moveaxis(x, (h, w), (-2, -1)))
        h, w, channels = x.ndim - 2, x.ndim - 1, 1
    return x.reshape(-1, x.shape[h], x.shape[w], channels)


def ssim(
    reference: Buffer,
    candidate: Buffer,
    axes: tuple[int, int],
    data_range: float,
    centre: float,
) -> float:
    """Mean structural similarity; centre: any value near the data (csrc/vgq.h)."""
    r, c = _as_images(reference, *axes), _as_images(candidate, *axes)
    parts = empty(_cpu.ssim_parts(*r.shape), "float64", r)
    _run("ssim", r, c, data_range, centre, parts)
    return float(parts[0])


def metric_rows(companions: bool) -> list[tuple[str, str, bool]]:
    """Name, unit and "larger is better" of the metrics, or of the values that stand beside them."""
    return [row[:3] for row in _cpu.metric_rows() if row[3] == companions]


def metric_values(
    moments: dict[str, float],
    data_range: float,
    cross_entropy: float,
    kl_divergence: float,
    ssim: float,
) -> list[float]:
    """A value for each row, metrics first; NaN where it is undefined. NaN: a part not computed."""
    values = np.empty(len(_cpu.metric_rows()))
    sums = np.array([moments[name] for name in _cpu.moment_names()])
    _cpu.metric_values(sums, data_range, cross_entropy, kl_divergence, ssim, values)
    return values.tolist()


def exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x as the entropies compute it."""
    y = np.empty_like(x)
    _cpu.exp(x, y)
    return y


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln x as the entropies compute it."""
    y = np.empty_like(x)
    _cpu.log(x, y)
    return y
