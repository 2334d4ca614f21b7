# SPDX-License-Identifier: Apache-2.0
"""C core of vggtquant on CUDA devices; contracts in csrc/vgq.h. Only vggtquant.ops imports this.

An array is (address, shape, dtype's name), contiguous, on the current device; `stream` is the
address of a cudaStream_t. Calls queue their work and return.
"""

from typing import Literal

_Array = tuple[int, tuple[int, ...], str]
_Shape = tuple[int, int, int]
_Format = Literal["i8", "i4"]
_Scales = Literal["per_row", "two_level", "per_group"]
_Activations = Literal["float", "bf16", "int8", "int16"]
_Weight = tuple[_Format, _Scales, _Shape, bool]
"""Format, scales, (n, k, group), and whether there are zero points."""
_Norm = tuple[_Array | None, _Array | None, float]
"""Weight, bias, eps; without a weight, none."""
_Product = tuple[
    _Weight, _Array, _Array, _Norm, _Array | None, bool, _Array | None, _Array | None, _Array
]
"""Weight, packed, x, norm, bias, gelu, layer_scale, residual, y."""

def devices() -> int: ...
def range(
    shape: _Shape, x: _Array, lo: _Array, hi: _Array, nonfinite: _Array, stream: int, /
) -> None: ...
def parameters(
    format: _Format, lo: _Array, hi: _Array, scale: _Array, zero: _Array | None, stream: int, /
) -> None: ...
def quantize(
    format: _Format,
    shape: _Shape,
    x: _Array,
    scale: _Array,
    zero: _Array | None,
    q: _Array,
    stream: int,
    /,
) -> None: ...
def dequantize(
    format: _Format,
    shape: _Shape,
    q: _Array,
    scale: _Array,
    zero: _Array | None,
    x: _Array,
    stream: int,
    /,
) -> None: ...
def two_level(
    shape: _Shape,
    x: _Array,
    channel_scale: _Array,
    factor: _Array,
    zero: _Array | None,
    error: _Array,
    stream: int,
    /,
) -> None: ...
def compare(r: _Array, c: _Array, parts: _Array, stream: int, /) -> None: ...
def cross_entropy_parts(rows: int, /) -> int: ...
def cross_entropy(r: _Array, c: _Array, parts: _Array, stream: int, /) -> None: ...
def ssim(
    r: _Array, c: _Array, data_range: float, centre: float, parts: _Array, stream: int, /
) -> None: ...
def linear_nbytes(weight: _Weight, activations: _Activations, m: int, /) -> int: ...
def linear(
    product: _Product, activations: _Activations, scratch: _Array, stream: int, /
) -> None: ...
def depth(weight: _Weight, /) -> int: ...
def code_tokens(product: _Product, scratch: _Array, stream: int, /) -> None: ...
def code_float8(x: _Array, norm: _Norm, codes: _Array, scale: _Array, stream: int, /) -> None: ...
def integers(weight: _Weight, packed: _Array, integers: _Array, stream: int, /) -> None: ...
def finish(product: _Product, sums: _Array, scratch: _Array, stream: int, /) -> None: ...
def decode(weight: _Weight, packed: _Array, values: _Array, stream: int, /) -> None: ...
