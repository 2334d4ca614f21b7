# SPDX-License-Identifier: Apache-2.0
# The C core on the CPU; csrc/vgq.h has the contracts. Arrays are C-contiguous; Values are float32,
# float16, or uint16 holding the bits of bfloat16. Outputs are written in place.
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Format: TypeAlias = Literal["i8", "i4"]
Scales: TypeAlias = Literal["per_row", "two_level", "per_group"]
Shape: TypeAlias = tuple[int, int, int]
Values: TypeAlias = NDArray[Any]
F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
U8: TypeAlias = NDArray[np.uint8]
I8: TypeAlias = NDArray[np.int8]
U64: TypeAlias = NDArray[np.uint64]

def use(isa: str | None, /) -> None: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_threads(n: int, /) -> None: ...
def threads() -> int: ...
def openmp() -> str: ...
def range(shape: Shape, x: Values, lo: F32, hi: F32, nonfinite: U64, /) -> None: ...
def parameters(format: Format, lo: F32, hi: F32, scale: F32, zero: I8 | None, /) -> None: ...
def quantize(
    format: Format, shape: Shape, x: Values, scale: F32, zero: I8 | None, q: U8, /
) -> None: ...
def dequantize(
    format: Format, shape: Shape, q: U8, scale: F32, zero: I8 | None, x: Values, /
) -> None: ...
def two_level(
    shape: Shape, x: Values, channel_scale: F32, factor: U8, zero: I8 | None, error: F64, /
) -> None: ...
def packed_nbytes(format: Format, scales: Scales, nkg: Shape, asymmetric: bool, /) -> int: ...
def pack(
    format: Format,
    scales: Scales,
    nkg: Shape,
    q: U8,
    scale: F32,
    factor: U8 | None,
    zero: I8 | None,
    packed: U8,
    /,
) -> None: ...
def packed_weight(packed: U8, /) -> tuple[int, Scales, Shape, bool]: ...
def unpack(packed: U8, q: U8, scale: F32, factor: U8 | None, zero: I8 | None, /) -> None: ...
def linear_nbytes(packed: U8, quantize_activations: bool, x: Values, y: Values, /) -> int: ...
def linear(
    packed: U8,
    quantize_activations: bool,
    x: Values,
    bias: F32 | None,
    y: Values,
    scratch: U8,
    /,
) -> None: ...
