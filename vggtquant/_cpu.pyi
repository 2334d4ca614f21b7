# SPDX-License-Identifier: Apache-2.0
# The C core on the CPU; csrc/vgq.h has the contracts. Arrays are C-contiguous; Values are float32,
# float16, or uint16 holding the bits of bfloat16. Outputs are written in place. Of qkv, which is
# (batch, tokens, 3, heads, dim), only the last axis has to be contiguous.
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Format: TypeAlias = Literal["i8", "i4"]
Scales: TypeAlias = Literal["per_row", "two_level", "per_group"]
Activations: TypeAlias = Literal["float", "bf16", "int8", "int16"]
Shape: TypeAlias = tuple[int, int, int]
Values: TypeAlias = NDArray[Any]
F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
U8: TypeAlias = NDArray[np.uint8]
I8: TypeAlias = NDArray[np.int8]
U64: TypeAlias = NDArray[np.uint64]
I32: TypeAlias = NDArray[np.int32]
Norm: TypeAlias = tuple[F32 | None, F32 | None, float]

def use(isa: str | None, /) -> None: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_threads(n: int, /) -> None: ...
def limit_threads(n: int, /) -> int: ...
def forked() -> None: ...
def isas_refused() -> list[str]: ...
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
def cuda_packed_nbytes(format: Format, scales: Scales, nkg: Shape, asymmetric: bool, /) -> int: ...
def cuda_pack(
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
def cuda_unpack(packed: U8, q: U8, scale: F32, factor: U8 | None, zero: I8 | None, /) -> None: ...
def linear_isa(activations: Activations, /) -> tuple[Activations, str]: ...
def linear(
    packed: U8,
    activations: Activations,
    x: Values,
    norm: Norm,
    inputs: Norm,
    bias: F32 | None,
    gelu: bool,
    layer_scale: F32 | None,
    residual: Values | None,
    y: Values,
    /,
) -> None: ...
def attention_isa(
    scores: Activations, values: Activations, /
) -> tuple[tuple[Activations, str], tuple[Activations, str]]: ...
def attention(
    scores: Activations,
    values: Activations,
    qkv: Values,
    q_norm: Norm,
    k_norm: Norm,
    rope: tuple[F32 | None, F32 | None, int],
    scale: float,
    y: Values,
    /,
) -> None: ...
def conv2d(
    packed: U8,
    x: Values,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    relu_x: bool,
    relu_y: bool,
    relu_sum: bool,
    folded: bool,
    x_largest: F32 | None,
    column_embedding: F32 | None,
    row_embedding: F32 | None,
    weight_sums: I32 | None,
    bias: F32 | None,
    residual: Values | None,
    last_weight: F32 | None,
    last_bias: F32 | None,
    y: Values,
    y_largest: F32,
    scratch: U8 | None,
    /,
) -> Any: ...
def resize(x: Values, added: Values | None, y: Values, scratch: U8 | None, /) -> Any: ...
def compare(reference: Values, candidate: Values, parts: F64, /) -> None: ...
def compare_parts(n: int, /) -> int: ...
def cross_entropy(reference: Values, candidate: Values, parts: F64, /) -> None: ...
def cross_entropy_parts(rows: int, /) -> int: ...
def ssim(
    reference: Values, candidate: Values, data_range: float, centre: float, parts: F64, /
) -> None: ...
def ssim_parts(images: int, height: int, width: int, channels: int, /) -> int: ...
def ssim_limits() -> tuple[int, int]: ...
def metric_values(
    moments: F64,
    data_range: float,
    cross_entropy: float,
    kl_divergence: float,
    ssim: float,
    values: F64,
    /,
) -> None: ...
def metric_rows() -> list[tuple[str, str, bool, bool]]: ...
def moment_names() -> list[str]: ...
def exp(x: F64, y: F64, /) -> None: ...
def log(x: F64, y: F64, /) -> None: ...
