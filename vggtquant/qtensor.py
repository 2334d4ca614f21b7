# SPDX-License-Identifier: Apache-2.0
"""QTensor: an array as packed codes and their scales; quantize and dequantize."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from . import markup, ops
from .configs import QuantizationConfig, QuantizationSpec, get_config
from .errors import UserError
from .ops import float8

Function = TypeVar("Function", bound=Callable[..., Any])
TWO_LEVEL_LIMIT = 1.05
"""Two-level scales are taken while their squared error is at most this much of float scales'."""


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized array: really packed, two INT4 codes a byte.

    Axis 0 of the array is the channel and the rest is one row; an array of one axis is one row.
    """

    spec: QuantizationSpec
    shape: tuple[int, ...]
    dtype: str
    """Of what came in: float32, float16 or bfloat16."""
    is_torch: bool
    packed: ops.Buffer
    """Codes, uint8 (rows, bytes of a row); 4-bit ones with the even one in the low nibble. This and
    all that follows lie where the array lay: NumPy arrays, or tensors on its CUDA device."""
    stored_scale: ops.Buffer
    """float32: one a tensor, channel or group; with two-level scales one a channel."""
    factor: ops.Buffer | None
    """uint8, one a group, with two-level scales."""
    stored_zero: ops.Buffer | None
    """int8, beside each scale of an asymmetric spec."""

    @property
    def layout(self) -> ops.Shape:
        """The array as the core sees it."""
        return _layout(self.shape, self.spec)

    @property
    def codes(self) -> ops.Buffer:
        """The codes, int8, in the array's shape; of FP8, the numbers' bytes."""
        if self.spec.is_float8:
            signed = torch.int8 if ops.on_gpu(self.packed) else np.int8
            return self.packed.view(signed).reshape(self.shape)
        one_scale = self.layout._replace(group=max(1, self.layout.cols))
        ones = ops.filled(one_scale.groups, 1, "float32", self.packed)
        codes = ops.dequantize(self.spec.bits, one_scale, self.packed, ones, None)
        whole = ops.empty(codes.shape, "int8", codes)
        whole[...] = codes
        return whole.reshape(self.shape)

    @property
    def scale(self) -> ops.Buffer:
        """Effective scales, float32: () a tensor, (channels,) or (channels, groups)."""
        return _shaped(self._group_scale(), self.layout, self.spec)

    @property
    def zero_point(self) -> ops.Buffer:
        """Zero points, int8, in the shape of `scale`; all 0 for a symmetric spec."""
        zero = self.stored_zero
        if zero is None:
            zero = ops.filled(self.layout.groups, 0, "int8", self.packed)
        return _shaped(zero, self.layout, self.spec)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, factors and zero points."""
        parts = (self.packed, self.stored_scale, self.factor, self.stored_zero)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def bits_per_weight(self) -> float:
        """nbytes in bits over the number of values; NaN for an empty array."""
        count = math.prod(self.shape)
        return 8 * self.nbytes / count if count else math.nan

    def dequantize(self) -> Any:
        """The values that the codes stand for, in the type, dtype and shape that came in."""
        if self.spec.is_float8:
            return self._float8_values()
        x = ops.dequantize(
            self.spec.bits,
            self.layout,
            self.packed,
            self._group_scale(),
            self.stored_zero,
            self.dtype,
        ).reshape(self.shape)
        if self.is_torch:
            return ops.tensor_like(x, self.dtype)
        return x.view(_numpy_dtype(self.dtype))

    def _float8_values(self) -> Any:
        scale = ops.tensor_like(self.stored_scale, "")
        x = float8.values(self.packed, scale, getattr(torch, self.dtype)).reshape(self.shape)
        if self.is_torch:
            return x
        return ops.memory(x.view(torch.uint16) if self.dtype == "bfloat16" else x).view(
            _numpy_dtype(self.dtype)
        )

    def cpu(self) -> QTensor:
        """The same codes in NumPy arrays; itself, if they are."""
        if not isinstance(self.packed, torch.Tensor):
            return self
        names = ("packed", "stored_scale", "factor", "stored_zero")
        parts = {name: getattr(self, name) for name in names}
        home: dict[str, Any] = {
            name: None if part is None else part.cpu().numpy() for name, part in parts.items()
        }
        return replace(self, **home)

    def _group_scale(self) -> ops.Buffer:
        return _group_scale(self.layout, self.stored_scale, self.factor)

    def __repr__(self) -> str:
        return (
            f"QTensor(shape={self.shape}, {self.spec}, {self.nbytes} bytes, "
            f"{self.bits_per_weight:.3f} bits a weight)"
        )

    def _repr_html_(self) -> str:
        facts = {
            "shape": " x ".join(map(str, self.shape)) or "()",
            "coded as": self.spec,
            "scales": self.stored_scale.size if self.factor is None else self.factor.size,
            "bytes": f"{self.nbytes:,}",
            "bits a weight": f"{self.bits_per_weight:.3f}",
            "came in as": self.dtype,
        }
        return markup.table(["QTensor", ""], facts.items())


def _not_for_models(function: Function) -> Function:
    """Other packages' quantize takes a model, with keywords of its own."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.nn.Module):
            raise UserError("quantize codes an array; quantize_model(model, config) is for models")
        return function(*args, **kwargs)

    return cast(Function, checked)


@_not_for_models
def quantize(
    x: ops.Array,
    config: str | QuantizationConfig | QuantizationSpec,
    *,
    scale: ArrayLike | None = None,
    zero_point: ArrayLike | None = None,
) -> QTensor:
    """Code an array.

    x: NumPy array or torch tensor (CPU or CUDA) of float32, float16 or bfloat16, any shape.
    config: a name of CONFIGS, a config, or a QuantizationSpec.
    scale, zero_point: take these instead of choosing (codes are then rint(x / scale) + zero_point,
    saturated, as ONNX QuantizeLinear has it; NaN codes as 0.0).
    Formulas: docs/conventions.md.

    Raises:
        UserError: NaN or infinite values, an unknown scheme, scales that do not fit.
        TypeError: another dtype.

    >>> q = quantize(np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128), "INT4_Group_64")
    >>> q.scale.shape, q.packed.nbytes
    ((2, 2), 128)
    """
    spec = config if isinstance(config, QuantizationSpec) else get_config(config).layer_spec()
    values = ops.values(x)
    shape = tuple(x.shape)
    layout = _layout(shape, spec)
    factor = None
    if scale is not None:
        spec = replace(spec, two_level=False)
        stored, zero = _given(spec, layout, scale, zero_point)
        stored = ops.moved(stored, values)
        zero = None if zero is None else ops.moved(zero, values)
    elif zero_point is not None:
        raise UserError("zero_point is given without scale; give both or neither")
    else:
        spec, stored, factor, zero = _chosen(spec, layout, values)
    if spec.is_float8:
        packed = _float8_codes(x, layout, stored)
    else:
        effective = _group_scale(layout, stored, factor)
        packed = ops.quantize(spec.bits, layout, values, effective, zero)
    is_torch = isinstance(x, torch.Tensor)
    return QTensor(spec, shape, ops.dtype_name(x), is_torch, packed, stored, factor, zero)


def _float8_codes(x: ops.Array, layout: ops.Shape, scale: ops.Buffer) -> ops.Buffer:
    """Bytes of FP8 numbers, uint8 (rows, cols), where the values are."""
    rows = ops.tensor_like(ops.values(x), ops.dtype_name(x)).reshape(layout.rows, layout.cols)
    codes = float8.encode(rows, ops.tensor_like(scale, "").reshape(-1, 1)).view(torch.uint8)
    return codes if isinstance(scale, torch.Tensor) else codes.numpy()


def dequantize(q: QTensor) -> Any:
    """The values that q's codes stand for, in the type, dtype and shape that came in.

    >>> x = np.float32([[0.5, -1.0]])
    >>> float(abs(dequantize(quantize(x, "INT8_Per_Channel_Symmetric")) - x).max()) < 0.005
    True

    Raises:
        TypeError: q is no QTensor.
    """
    if not isinstance(q, QTensor):
        raise TypeError(f"a QTensor is wanted, not {type(q).__name__}")
    return q.dequantize()


def grid(q: QTensor) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Each value's scale and zero point (rows, cols), float32, and the lowest and highest code.

    A weight's values can then stand at (code - zero point) * scale.
    """
    layout = q.layout
    zero = q.stored_zero
    zero = ops.filled(layout.groups, 0, "int8", q.packed) if zero is None else zero
    whole = []
    for part in (q._group_scale(), zero):
        row = ops.tensor_like(part, "").float().reshape(layout.rows, layout.row_groups)
        row = row.repeat_interleave(layout.group, 1)[:, : layout.cols]
        whole.append(row.reshape(q.shape))
    lowest, highest = (-128, 127) if q.spec.bits == 8 else (-8, 7)
    return whole[0], whole[1], lowest, highest


def recode(q: QTensor, x: torch.Tensor) -> QTensor:
    """Other values, float32 in q's shape, coded with q's scales and zero points.

    Raises:
        UserError: x of another shape.
    """
    if tuple(x.shape) != q.shape:
        raise UserError(f"values of shape {tuple(x.shape)} are given; {q.shape} is wanted")
    scale = q._group_scale()
    packed = ops.quantize(q.spec.bits, q.layout, ops.values(x), scale, q.stored_zero)
    return replace(q, packed=packed)


def group_scales(q: QTensor) -> torch.Tensor:
    """The effective scale of each group (of each row or the whole, without groups), float32."""
    return ops.tensor_like(q._group_scale(), "").float().clone()


def rescaled(q: QTensor, scale: torch.Tensor) -> QTensor:
    """q with other scales, one a group, on q's grid of scales; codes are not changed (`recode`).

    With two-level scales a group gets the nearest factor of its channel's scale.
    """
    layout = q.layout
    wanted = scale.detach().float().reshape(layout.groups).clamp_min(2.0**-126)
    if q.factor is None:
        return replace(q, stored_scale=np.ascontiguousarray(wanted.numpy()))
    channel = ops.tensor_like(q.stored_scale, "").float().reshape(-1, 1)
    most = 15 if q.spec.symmetric else 8
    factor = (wanted.reshape(layout.rows, -1) / channel).round().clamp(1, most).to(torch.uint8)
    return replace(q, factor=np.ascontiguousarray(factor.reshape(-1).numpy()))


def _layout(shape: tuple[int, ...], spec: QuantizationSpec) -> ops.Shape:
    rows = shape[0] if len(shape) > 1 else 1
    cols = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    if spec.granularity == "per_tensor":
        rows, cols = 1, rows * cols
    group = spec.group_size if spec.granularity == "per_group" else cols
    return ops.Shape(rows, cols, max(1, min(group, cols)))


def _group_scale(layout: ops.Shape, stored: ops.Buffer, factor: ops.Buffer | None) -> ops.Buffer:
    """Each group's scale; a channel's times a factor is exact (docs/conventions.md)."""
    if factor is None:
        return stored
    return (stored.reshape(-1, 1) * factor.reshape(layout.rows, layout.row_groups)).reshape(-1)


def _shaped(a: ops.Buffer, layout: ops.Shape, spec: QuantizationSpec) -> ops.Buffer:
    if spec.granularity == "per_tensor":
        name = str(a.dtype).removeprefix("torch.")
        return a.reshape(()) if len(a) else ops.filled((), 0, name, a)
    return a if spec.granularity == "per_channel" else a.reshape(layout.rows, layout.row_groups)


def _chosen(
    spec: QuantizationSpec, layout: ops.Shape, values: ops.Buffer
) -> tuple[QuantizationSpec, ops.Buffer, ops.Buffer | None, ops.Buffer | None]:
    """QuantizationSpec, stored scales, factors and zero points for these values."""
    # Ranges of a whole tensor are found row by row, which threads can share, and are then joined.
    by_row = layout
    count = math.prod(values.shape)
    if spec.granularity == "per_tensor" and values.ndim > 1 and count:
        cols = count // values.shape[0]
        by_row = ops.Shape(values.shape[0], cols, cols)
    lo, hi, nonfinite = ops.ranges(by_row, values)
    if nonfinite:
        raise UserError(f"{nonfinite} values are NaN or infinite; finite ones are wanted")
    if by_row is not layout:
        # By the core, since NumPy would follow a caller who flushes denormals.
        both = ops.joined([lo, hi])
        lo, hi, _ = ops.ranges(ops.Shape(1, len(both), len(both)), both)
    if spec.two_level and count:
        channel_scale, factor, zero, error = ops.two_level(layout, values, spec.zero_points)
        two_level_error, float_error = (math.fsum(column) for column in error.T.tolist())
        if two_level_error <= TWO_LEVEL_LIMIT * float_error:
            return spec, channel_scale, factor, zero
        spec = replace(spec, two_level=False)
    if spec.is_float8:
        ends = [ops.tensor_like(end, "").abs() for end in (lo, hi)]
        largest = float8.row_scales(torch.maximum(*ends))
        return spec, largest if isinstance(lo, torch.Tensor) else largest.numpy(), None, None
    scale, zero = ops.parameters(spec.bits, lo, hi, spec.zero_points)
    return spec, scale, None, zero


def _given(
    spec: QuantizationSpec, layout: ops.Shape, scale: ArrayLike, zero_point: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The caller's parameters, checked, on the CPU."""
    scale, zero_point = _on_cpu(scale), _on_cpu(zero_point)
    wanted = _shaped(np.empty(layout.groups), layout, spec).shape
    stored = _fitted("scale", np.asarray(_plain(scale), np.float32), wanted)[: layout.groups]
    if stored.size and not (np.isfinite(stored).all() and (stored > 0).all()):
        raise UserError("scale must be positive and finite everywhere")
    if zero_point is None:
        return stored, None
    zero = _fitted("zero_point", np.asarray(_plain(zero_point)), wanted)[: layout.groups]
    lowest, highest = (-128, 127) if spec.bits == 8 else (-8, 7)
    if not np.array_equal(zero, np.rint(zero)):
        raise UserError("zero_point must be whole numbers")
    if zero.size and (zero.min() < lowest or zero.max() > highest):
        raise UserError(
            f"zero_point ranges from {zero.min()} to {zero.max()}; {lowest} to {highest} is wanted"
        )
    return stored, np.ascontiguousarray(zero, np.int8)


def _on_cpu(x: Any) -> Any:
    return x.cpu() if isinstance(x, torch.Tensor) else x


def _plain(a: ArrayLike) -> ArrayLike:
    """A tensor's values, whether or not it has a gradient."""
    return ops.memory(a.detach()) if isinstance(a, torch.Tensor) else a


def _fitted(name: str, a: NDArray[Any], wanted: tuple[int, ...]) -> NDArray[Any]:
    if a.size != math.prod(wanted):
        raise UserError(f"{name} has shape {a.shape}; {wanted} is wanted")
    return np.ascontiguousarray(a).reshape(-1)


def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # only who passes such an array has it

    return np.dtype(ml_dtypes.bfloat16)
