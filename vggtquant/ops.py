# SPDX-License-Identifier: Apache-2.0
"""The one road from arrays and tensors to the C core: the only module that imports _cpu.

Everything here takes and gives NumPy arrays as the core wants them; `values` makes them from what
users have, without a copy where the memory allows it.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

import vggtquant

from . import _cpu
from .errors import UserError

Array: TypeAlias = "NDArray[Any] | torch.Tensor"

# The core's three dtypes, as NumPy holds them; NumPy has no bfloat16, so its bits travel as uint16.
_TORCH_DTYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}
DTYPES = ("float32", "float16", "bfloat16")
DEEPEST = 65536
"""Inputs of a Linear for which every integer sum fits 32 bits; VGQ_DEEPEST in csrc/vgq.h."""

isa = _cpu.isa
isas = _cpu.isas
threads = _cpu.threads
set_threads = _cpu.set_threads
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


if "VGGTQUANT_ISA" in os.environ:  # once, before anything is computed
    use_isa(os.environ["VGGTQUANT_ISA"])


if vggtquant._forked:
    _cpu.set_threads(1)


def dtype_name(x: Array) -> str:
    """float32, float16 or bfloat16.

    Raises:
        TypeError: for any other dtype, and for what is no array.
    """
    dtype = getattr(x, "dtype", type(x).__name__)
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")  # NumPy's, in any byte order
    if name not in DTYPES:
        raise TypeError(f"dtype {name} is given; one of {', '.join(DTYPES)} is wanted")
    return name


def values(x: Array) -> NDArray[Any]:
    """x as a C-contiguous NumPy array that the core reads; bfloat16 as its bits in uint16."""
    torch.get_num_threads()  # in a new thread torch passes its count to OpenMP when first asked
    name = dtype_name(x)
    if not isinstance(x, torch.Tensor):
        if name == "bfloat16":
            x = x.view(np.uint16)
        return np.require(np.asarray(x), x.dtype.newbyteorder("="), ["C", "ALIGNED"])
    if x.layout != torch.strided or x.device.type != "cpu":
        raise UserError(f"a dense CPU tensor is wanted, not one of {x.layout} on {x.device}")
    x = x.detach().contiguous()
    return (x.view(torch.uint16) if name == "bfloat16" else x).numpy()


def tensor_like(array: NDArray[Any], name: str) -> torch.Tensor:
    """The tensor of that dtype on the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def empty_values(shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Uninitialized memory for that dtype."""
    return np.empty(shape, np.uint16 if name == "bfloat16" else np.dtype(name))


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


def ranges(shape: Shape, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Lowest and highest value of each group, widened to hold 0, and how many are not finite."""
    lo, hi = np.empty(shape.groups, np.float32), np.empty(shape.groups, np.float32)
    nonfinite = np.zeros(shape.rows, np.uint64)
    _cpu.range(shape, x, lo, hi, nonfinite)
    return lo, hi, int(nonfinite.sum())


def parameters(
    bits: int, lo: NDArray[Any], hi: NDArray[Any], zero_points: bool
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Scale of each range and, if asked for, its zero point."""
    scale = np.empty(lo.shape, np.float32)
    zero = np.empty(lo.shape, np.int8) if zero_points else None
    _cpu.parameters(_format(bits), lo, hi, scale, zero)
    return scale, zero


def two_level(
    shape: Shape, x: NDArray[Any], zero_points: bool
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any]]:
    """Channel scales, factors, zero points; squared errors (rows, 2): two-level, float scales."""
    channel_scale = np.empty(shape.rows, np.float32)
    factor = np.empty(shape.groups, np.uint8)
    zero = np.empty(shape.groups, np.int8) if zero_points else None
    error = np.empty((shape.rows, 2), np.float64)
    _cpu.two_level(shape, x, channel_scale, factor, zero, error)
    return channel_scale, factor, zero, error


def quantize(
    bits: int, shape: Shape, x: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None
) -> NDArray[Any]:
    """Codes as bytes, (rows, row_nbytes)."""
    q = np.empty((shape.rows, row_nbytes(bits, shape.cols)), np.uint8)
    _cpu.quantize(_format(bits), shape, x, scale, zero, q)
    return q


def dequantize(
    bits: int,
    shape: Shape,
    q: NDArray[Any],
    scale: NDArray[Any],
    zero: NDArray[Any] | None,
    name: str = "float32",
) -> NDArray[Any]:
    """The values that codes stand for, (rows, cols), rounded once to that dtype."""
    x = empty_values((shape.rows, shape.cols), name)
    _cpu.dequantize(_format(bits), shape, q, scale, zero, x)
    return x


# ---- linear --------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """What packed bytes hold; see vgq_weight in csrc/vgq.h."""

    bits: int
    scales: _cpu.Scales
    n: int
    k: int
    group: int
    asymmetric: bool

    @property
    def row_groups(self) -> int:
        """Groups of a row."""
        return -(-self.k // self.group)


def pack(
    about: Packed,
    q: NDArray[Any],
    scale: NDArray[Any],
    factor: NDArray[Any] | None,
    zero: NDArray[Any] | None,
) -> torch.Tensor:
    """The kernels' layout of a weight, as one uint8 tensor."""
    if about.k > DEEPEST:
        raise UserError(f"a weight of rows of {about.k} is given; {DEEPEST} inputs are the most")
    nkg, scales, fmt = (about.n, about.k, about.group), about.scales, _format(about.bits)
    nbytes = _cpu.packed_nbytes(fmt, scales, nkg, about.asymmetric)
    packed = torch.empty(max(nbytes, 1), dtype=torch.uint8)
    _cpu.pack(fmt, scales, nkg, q, scale, factor, zero, packed.numpy())
    return packed


def packed_weight(packed: torch.Tensor) -> Packed:
    """What the packed bytes say of themselves."""
    bits, scales, nkg, asymmetric = _cpu.packed_weight(packed.numpy())
    return Packed(bits, scales, *nkg, asymmetric)


def unpack(
    packed: torch.Tensor,
) -> tuple[Packed, NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Plain row-major codes, scales, factors and zero points: the inverse of pack."""
    about = packed_weight(packed)
    groups = 1 if about.scales == "per_row" else about.row_groups
    q = np.empty((about.n, row_nbytes(about.bits, about.k)), np.uint8)
    scale = np.empty(about.n * (groups if about.scales == "per_group" else 1), np.float32)
    factor = np.empty(about.n * groups, np.uint8) if about.scales == "two_level" else None
    zero = np.empty(about.n * groups, np.int8) if about.asymmetric else None
    _cpu.unpack(packed.numpy(), q, scale, factor, zero)
    return about, q, scale, factor, zero


def linear(
    packed: torch.Tensor,
    activations: _cpu.Activations,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    n: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """y = x w^T + bias for x of shape (m, k) in one of the core's dtypes; y (m, n) of `dtype`."""
    y = torch.empty((x.shape[0], n), dtype=dtype)
    weight, source, into = packed.numpy(), values(x), values(y)
    nbytes = _cpu.linear_nbytes(weight, activations, source, into)
    scratch = torch.empty(nbytes, dtype=torch.uint8)
    added = None if bias is None else bias.detach().float().contiguous().numpy()
    _cpu.linear(weight, activations, source, added, into, scratch.numpy())
    return y


def kernel_name(activations: _cpu.Activations, bits: int) -> str:
    """What `linear` multiplies, and with which instructions."""
    return f"{activations} x int{bits}, {isa()}"


# ---- metrics -------------------------------------------------------------------------------------


def moments(reference: NDArray[Any], candidate: NDArray[Any]) -> dict[str, float]:
    """Counts, range and sums of two arrays of one shape, from one pass over both (metrics.def)."""
    names = _cpu.moment_names()
    r, c = reference.reshape(-1), candidate.reshape(-1)
    parts = np.empty((_cpu.compare_parts(r.size), len(names)))
    _cpu.compare(r, c, parts)
    return dict(zip(names, parts[0].tolist(), strict=True))


def cross_entropy(reference: NDArray[Any], candidate: NDArray[Any]) -> tuple[float, float]:
    """Cross entropy and KL divergence in nats: means over the rows along the last axis."""
    cols = reference.shape[-1]
    r, c = reference.reshape(-1, cols), candidate.reshape(-1, cols)
    parts = np.empty((_cpu.cross_entropy_parts(len(r)), 2))
    _cpu.cross_entropy(r, c, parts)
    return float(parts[0, 0]), float(parts[0, 1])


SSIM_SIDE, SSIM_CHANNELS = _cpu.ssim_limits()


def _as_images(x: NDArray[Any], h: int, w: int) -> NDArray[Any]:
    """(images, height, width, channels); copied only where the memory does not lie that way."""
    channels = int(np.prod(x.shape[w + 1 :]))
    if w != h + 1 or channels > SSIM_CHANNELS:
        x = np.ascontiguousarray(np.moveaxis(x, (h, w), (-2, -1)))
        h, w, channels = x.ndim - 2, x.ndim - 1, 1
    return x.reshape(-1, x.shape[h], x.shape[w], channels)


def ssim(
    reference: NDArray[Any],
    candidate: NDArray[Any],
    axes: tuple[int, int],
    data_range: float,
    centre: float,
) -> float:
    """Mean structural similarity; centre: any value near the data (csrc/vgq.h)."""
    r, c = _as_images(reference, *axes), _as_images(candidate, *axes)
    parts = np.empty(_cpu.ssim_parts(*r.shape))
    _cpu.ssim(r, c, data_range, centre, parts)
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
