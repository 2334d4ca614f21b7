# SPDX-License-Identifier: Apache-2.0
"""QuantizedConv2d: a convolution on packed INT8 weights, channels last inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import ops
from .configs import CONFIGS, QuantizationConfig
from .errors import UserError
from .linear import QuantizedLinear
from .qtensor import quantize

Conv = nn.Conv2d | nn.ConvTranspose2d

_CONFIG = CONFIGS["INT8_Per_Channel_Symmetric_A8"]
"""Weights of a convolution are INT8 with a scale an output, its activations INT8."""

LEAST_CHANNELS = 8
"""Of a convolution's input, that INT8 pays for: a picture's three stay in float."""


@dataclass(frozen=True)
class Shape:
    """What a convolution is, apart from its numbers."""

    inputs: int
    outputs: int
    window: ops.Window
    transposed: bool

    @property
    def by_pixel(self) -> bool:
        """Whether it is a Linear of each pixel, so that each pixel has a scale of its own."""
        w = self.window
        return self.transposed or (w.kernel == w.stride == (1, 1) and w.padding == (0, 0))

    @property
    def activation_bits(self) -> int:
        """Of a code of the input."""
        return 16 if self.by_pixel and not self.transposed else 8

    @property
    def folded(self) -> bool:
        """Whether weights have two parts."""
        return not self.by_pixel and self.outputs <= FOLDED


FOLDED = 32
"""Outputs up to which a convolution's weights have two INT8 parts: the second one is what the first
one leaves, and takes the half of the kernels' 64 columns that would be padding."""


def reason_against(conv: nn.Module) -> str | None:
    """Why a convolution stays in float; None: QuantizedConv2d can take its place."""
    if type(conv) not in (nn.Conv2d, nn.ConvTranspose2d):
        return f"a {type(conv).__name__}"
    assert isinstance(conv, Conv)
    pad = conv.padding
    checks = (
        (conv.groups != 1, f"it has {conv.groups} groups"),
        (conv.dilation != (1, 1), f"its dilation is {conv.dilation}"),
        (conv.padding_mode != "zeros", f"its padding is {conv.padding_mode}"),
        (isinstance(pad, str), f"its padding is {pad!r}"),
        (conv.in_channels < LEAST_CHANNELS, f"it has {conv.in_channels} input channels"),
        (bool(conv._forward_hooks or conv._forward_pre_hooks), "it has forward hooks"),
        ("weight" not in conv._parameters, "its weight is computed anew for each call"),
        (conv.weight.device.type != "cpu", f"its weight is on {conv.weight.device}"),
        (not conv.weight.is_floating_point(), f"its weight is {conv.weight.dtype}"),
    )
    for holds, reason in checks:
        if holds:
            return reason
    if isinstance(conv, nn.ConvTranspose2d) and (
        conv.kernel_size != conv.stride or any(pad) or any(conv.output_padding)
    ):
        return "it is transposed, and its kernel is not its stride"
    if conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1] > ops.DEEPEST:
        return f"its rows are longer than {ops.DEEPEST}"
    return None


def _shape(conv: Conv) -> Shape:
    window = ops.Window(conv.kernel_size, conv.stride, conv.padding)  # type: ignore[arg-type]
    transposed = isinstance(conv, nn.ConvTranspose2d)
    return Shape(conv.in_channels, conv.out_channels, window, transposed)


def weight_rows(conv: Conv) -> torch.Tensor:
    """The weight as (outputs, inputs) of a product: channels are the innermost of the inputs."""
    shape, weight = _shape(conv), conv.weight.detach().float()
    if shape.transposed:  # (in, out, high, wide): each place of the kernel has outputs of its own
        return weight.permute(2, 3, 1, 0).reshape(-1, shape.inputs)
    if shape.by_pixel:
        return weight.reshape(shape.outputs, shape.inputs)
    padded = weight.new_zeros(shape.outputs, *shape.window.kernel, ops.conv_channels(shape.inputs))
    padded[..., : shape.inputs] = weight.permute(0, 2, 3, 1)
    rows = padded.reshape(shape.outputs, -1)
    if not shape.folded:
        return rows
    first = torch.as_tensor(quantize(rows, _CONFIG.spec(8)).dequantize(), device=rows.device)
    return torch.cat([rows, rows - first])


def kernels(rows: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Rows of a product as torch has a convolution's weight: undoes weight_rows, each part alone.

    rows (n, inputs of the product) gives (n, in, high, wide); of a transposed convolution, all rows
    give (in, out, high, wide).
    """
    up, across = shape.window.kernel
    if shape.transposed:
        return rows.reshape(up, across, shape.outputs, shape.inputs).permute(3, 2, 0, 1)
    padded = rows.reshape(len(rows), up, across, -1)
    return padded[..., : shape.inputs].permute(0, 3, 1, 2)


def product_shape(layer: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of the product that computes a Linear or a convolution; None: neither."""
    if isinstance(layer, (nn.Linear, QuantizedLinear)):
        return layer.out_features, layer.in_features
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return None
    shape = _shape(layer)
    up, across = shape.window.kernel
    if shape.transposed:
        return up * across * shape.outputs, shape.inputs
    inputs = shape.inputs if shape.by_pixel else ops.conv_channels(shape.inputs)
    return shape.outputs * (2 if shape.folded else 1), up * across * inputs


def packed_nbytes(conv: Conv) -> int:
    """Bytes of a convolution's packed INT8 weight."""
    shape = product_shape(conv)
    assert shape is not None
    return ops.packed_nbytes(ops.Packed(8, "per_row", *shape, shape[1], False))


class QuantizedConv2d(QuantizedLinear):
    """A convolution whose INT8 weights are packed and multiplied as they are.

    x (n, in_channels, height, width) of float32, float16 or bfloat16 gives (n, out_channels, …) of
    the same dtype; under CPU autocast, of autocast's. Memory is channels last. A picture's
    activations are coded with one scale, and without a sign where none is negative; those of a
    transposed convolution with one a pixel, those of a 1x1 too, to 16 bits. With a static range
    (`input_scale`) all pictures have that scale, and codes have a sign. Up to 32 outputs have
    weights of two INT8 parts. Sums are exact integers: the same bits on every instruction set and
    thread count.

    >>> layer = QuantizedConv2d.from_conv(nn.Conv2d(16, 4, 3, padding=1))
    >>> layer(torch.ones(2, 16, 5, 7)).shape
    torch.Size([2, 4, 5, 7])
    """

    def __init__(
        self,
        q: Any,
        bias: Any,
        config: QuantizationConfig,
        name: str,
        shape: Shape,
        inputs: ops.Inputs = ops.NO_INPUTS,
    ) -> None:
        super().__init__(q, bias, config, name, inputs)
        self.shape = shape
        self.activation_bits = shape.activation_bits

    @classmethod
    def from_conv(cls, conv: Conv, *, name: str = "") -> QuantizedConv2d:
        """Quantize a convolution's weight; the bias is shared with it.

        Raises:
            UserError: a convolution that reason_against refuses, NaN or infinite weights.
        """
        if reason := reason_against(conv):
            raise UserError(f"the convolution {name or 'given'} cannot be quantized: {reason}")
        shape = _shape(conv)
        q = quantize(weight_rows(conv), _CONFIG.spec(8))
        return cls(q, conv.bias, _CONFIG, name, shape)

    @classmethod
    def from_product(cls, layer: QuantizedLinear, conv: Conv) -> QuantizedConv2d:
        """The convolution of conv's shape whose product is `layer`, as a file holds it."""
        inputs = ops.Inputs(None, None, layer.input_scale)
        return cls(layer.qtensor(), conv.bias, layer.config, layer.name, _shape(conv), inputs)

    def sums(self) -> torch.Tensor:
        """The sum of each output's codes, int32: what unsigned activations want. Made once."""
        known = self.__dict__.get("_sums")
        if known is None or known[0] is not self.packed:
            codes = torch.from_numpy(self.qtensor().codes).to(torch.int32)
            known = (self.packed, codes.sum(1, dtype=torch.int32))
            self.__dict__["_sums"] = known
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_sums"}

    def by_pixel(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """x (n, height, width, in) as a Linear of each pixel; (n, height, width, out)."""
        return self._told(x, self._by_pixel(x, dtype))

    def pictures(
        self, x: torch.Tensor, dtype: torch.dtype, **rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (n, height, width, in) with a scale a picture, or the static one.

        y and its largest magnitudes; `rest` goes to ops.conv2d. relu_x=True: of relu(x), which a
        static scale takes for x itself: x has no negative values then.
        """
        y, largest = self._pictures(x, dtype, **rest)
        return self._told(x, y), largest

    def _told(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """A dense head calls past nn.Module.__call__; forward hooks see its calls all the same."""
        for hook in self._forward_hooks.values():
            hook(self, (x.permute(0, 3, 1, 2),), y.permute(0, 3, 1, 2))
        return y

    def _by_pixel(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        n, high, wide, _ = x.shape
        up, across = self.shape.window.kernel
        bias = None if self.bias is None else self.bias.detach()
        if bias is not None and self.shape.transposed:
            bias = bias.repeat(up * across)
        rows = x.reshape(-1, self.shape.inputs)
        kind: Any = f"int{self.activation_bits}"
        inputs = ops.Inputs(None, None, self.input_scale) if self.input_scale else None
        y = ops.linear(self.packed, self._about, kind, rows, bias, dtype, inputs=inputs)
        self.last_kernel = ops.kernel_name(kind, 8)
        if not self.shape.transposed:
            return y.reshape(n, high, wide, self.shape.outputs)
        y = y.reshape(n, high, wide, up, across, self.shape.outputs)
        return y.permute(0, 1, 3, 2, 4, 5).reshape(n, high * up, wide * across, self.shape.outputs)

    def _pictures(
        self, x: torch.Tensor, dtype: torch.dtype, *, relu_x: bool = False, **rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.input_scale:
            relu_x, x, rest = False, *self._in_range(x, **rest)
        bias = None if self.bias is None else self.bias.detach().float()
        if bias is not None and self.shape.folded:
            bias = torch.cat([bias, torch.zeros_like(bias)])
        found = ops.conv2d(
            self.packed,
            self._about,
            self.shape.window,
            x,
            bias,
            dtype,
            relu_sums=self.sums() if relu_x else None,
            folded=self.shape.folded,
            **rest,
        )
        self.last_kernel = ops.kernel_name("int8", 8)
        return found

    def _in_range(
        self,
        x: torch.Tensor,
        *,
        size: tuple[int, int] | None = None,
        embedding: ops.Tables | None = None,
        largest: torch.Tensor | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """x and the arguments of ops.conv2d for codes of the static range.

        The kernel would widen it by a position embedding, so that is added here.
        """
        if embedding is not None:
            x = ops.resize(x.float(), size or (x.shape[1], x.shape[2]))
            half = x.shape[3] // 2
            x[..., :half] += embedding.columns
            x[..., half:] += embedding.rows[:, None]
            size = None
        most = torch.full((len(x), 2), 127 * self.input_scale, device="cpu")
        return x, {**rest, "size": size, "largest": most}

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """forward of x (n, in, height, width) without autograd."""
        dtype = self._call(x)[1]
        inside = x.permute(0, 2, 3, 1)
        if self.shape.by_pixel:
            return self._by_pixel(inside, dtype).permute(0, 3, 1, 2)
        if self.input_scale:
            return self._pictures(inside, dtype)[0].permute(0, 3, 1, 2)
        # A picture without negative values, as a ReLU leaves it, has the finer unsigned codes.
        signs = (inside.amin((1, 2, 3)) >= 0).tolist()
        runs = (
            [(0, len(signs))] if len(set(signs)) == 1 else [(i, i + 1) for i in range(len(signs))]
        )
        parts = [self._pictures(inside[a:b], dtype, relu_x=signs[a])[0] for a, b in runs]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, in, height, width) to (n, out, …)."""
        if x.ndim != 4 or x.shape[1] != self.shape.inputs or 0 in x.shape:
            raise UserError(
                f"x has shape {tuple(x.shape)}; (n, {self.shape.inputs}, height, width) is wanted"
            )
        return self.product(x, self.bias)

    def extra_repr(self) -> str:
        kernel, stride, padding = self.shape.window
        kind = "transposed, " if self.shape.transposed else ""
        return (
            f"{self.shape.inputs}, {self.shape.outputs}, {kind}kernel_size={kernel}, "
            f"stride={stride}, padding={padding}, bias={self.bias is not None}, INT8"
        )
