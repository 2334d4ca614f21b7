# SPDX-License-Identifier: Apache-2.0
"""Arrays and tensors as the core wants them: NumPy arrays on the CPU, tensors on a CUDA device."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import forward_ad

from ..errors import UserError
from . import native

Array: TypeAlias = "NDArray[Any] | torch.Tensor"
Buffer: TypeAlias = Any
"""A NumPy array on the CPU, a tensor on a CUDA device."""

# The core's three dtypes; NumPy has no bfloat16, so its bits travel as uint16.
_TORCH_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
DTYPES = tuple(_TORCH_NAMES.values())


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


def empty(shape: int | tuple[int, ...], dtype: str, like: Buffer) -> Buffer:
    """Uninitialized memory where `like` is; bfloat16 lies in NumPy arrays as uint16."""
    if isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    return np.empty(shape, np.uint16 if dtype == "bfloat16" else np.dtype(dtype))


_HUGE = 1 << 21
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_libc = ctypes.CDLL(None)


def room(shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
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
    if isinstance(x, torch.Tensor) and native.on_gpu(x):
        check_dense(x)
        return x.detach().resolve_neg().contiguous()
    torch.get_num_threads()  # in a new thread torch passes its count to OpenMP when first asked
    if not isinstance(x, torch.Tensor):
        _check_plain(x)
        if name == "bfloat16":
            x = x.view(np.uint16)
        return np.require(np.asarray(x), x.dtype.newbyteorder("="), ["C", "ALIGNED"])
    check_dense(x)
    x = x.detach().resolve_neg().contiguous()
    return array_of(x.view(torch.uint16) if name == "bfloat16" else x)


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


def check_dense(x: torch.Tensor) -> None:
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
    check_dense(x)
    return array_of(x.resolve_neg())


def array_of(x: torch.Tensor) -> NDArray[Any]:
    try:
        return x.numpy()
    except (RuntimeError, TypeError) as error:  # fake, traced or batched, or on another device
        raise UserError(f"a CPU tensor with memory of its own is wanted: {error}") from error


def floats(x: torch.Tensor | None) -> NDArray[Any] | None:
    """As contiguous float32 on the CPU."""
    if x is None:
        return None
    check_dense(x)
    return array_of(x.detach().float().contiguous())


def bits_of(y: torch.Tensor) -> NDArray[Any]:
    """The memory of a new CPU tensor; bfloat16 as its bits."""
    return array_of(y.view(torch.uint16) if y.dtype == torch.bfloat16 else y)


def into(tensor: torch.Tensor | None) -> NDArray[Any] | None:
    """The memory of a tensor of one of the core's dtypes."""
    if tensor is None:
        return None
    check_dense(tensor)
    return bits_of(tensor)


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
