# SPDX-License-Identifier: Apache-2.0
"""QuantizedLinear: nn.Linear on packed weights, which are the only copy kept."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from . import gpu_linear, ops
from .configs import QuantizationConfig, get_config
from .decoded import READ_ONLY, DecodedWeight
from .errors import UserError, check_type
from .qtensor import QTensor, quantize

# What a state_dict holds of a weight, row-major as in a checkpoint, and the dtype of each part.
_PARTS = {
    "weight_codes": torch.uint8,
    "weight_scale": torch.float32,
    "weight_factor": torch.uint8,
    "weight_zero_point": torch.int8,
}
INPUT_PARTS = ("input_weight", "input_bias", "input_scale")
"""What a state_dict holds of a calibrated layer's inputs (ops.Inputs), float32."""


_NO_TRANSFORM = (
    "QuantizedLinear has no functional or forward-mode derivative; "
    "its input's and bias's gradients are those of backward()"
)


class _Product(torch.autograd.Function):
    """The product with gradients of the input and the bias; the codes are constants.

    Rounding of activations passes the gradient on as it is (straight through).
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: QuantizedLinear
    ) -> torch.Tensor:
        ctx.packed, ctx.about, ctx.factor = layer.packed, layer._about, layer.input_weight
        ctx.dtypes = x.dtype, None if bias is None else bias.dtype
        return layer.product(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (x, bias) = grads, ctx.dtypes
        of_x, of_bias, _ = ctx.needs_input_grad
        return (
            _input_slope(ctx.packed, ctx.about, grad, ctx.factor).to(x) if of_x else None,
            grad.sum(0).to(bias) if of_bias else None,
            None,
        )


def _input_slope(
    packed: torch.Tensor, about: ops.Packed, grad: torch.Tensor, factor: torch.Tensor | None
) -> torch.Tensor:
    """Gradient of the input; factor: what the input is multiplied by before the product."""
    slope = ops.input_gradient(packed, about, grad)
    return slope if factor is None else slope * factor.to(slope)


Activations = ops.Activations


class QuantizedLinear(nn.Module):
    """An nn.Linear whose weight is packed INT8, INT4 or FP8 and computed with as it is.

    x (..., in_features) of float32, float16 or bfloat16 gives (..., out_features) of the same
    dtype; under CPU autocast, of autocast's. With quantize_activations each token is coded to INT8
    (to 16 bits with activation_bits=16) and sums are exact integers: the same bits on every
    instruction set and thread count. Without,
    weights are decoded panel by panel and multiplied in float32, or in bfloat16 with float32 sums
    where that is the output's dtype and the CPU can; in an order fixed per instruction set.

    A calibrated layer may code its input in its own way (`inputs`): smoothed a channel, or by one
    scale for all tokens.

    >>> layer = QuantizedLinear.from_linear(nn.Linear(64, 32), "INT4_Group_32_A8")
    >>> layer(torch.ones(2, 3, 64)).shape
    torch.Size([2, 3, 32])
    """

    bias: nn.Parameter | None
    packed: torch.Tensor
    input_weight: torch.Tensor | None
    input_bias: torch.Tensor | None

    def __init__(
        self,
        q: QTensor,
        bias: nn.Parameter | None,
        config: QuantizationConfig,
        name: str = "",
        inputs: ops.Inputs = ops.NO_INPUTS,
    ) -> None:
        super().__init__()
        if len(q.shape) != 2 or 0 in q.shape:
            raise UserError(
                f"a weight of shape {q.shape} is given; (out, in), not empty, is wanted"
            )
        self.out_features, self.in_features = q.shape
        self.config = config
        self.spec = q.spec
        self.name = name
        self.activation_bits = config.layer_activation_bits(name)
        self.register_parameter("bias", bias)
        self._about, packed = _pack(q)
        self.register_buffer("packed", packed, persistent=False)
        self._take_inputs(inputs)

    def _take_inputs(self, inputs: ops.Inputs) -> None:
        """Check how inputs are to be coded, and keep it."""
        says_something = inputs.weight is not None or inputs.bias is not None or inputs.scale != 0
        if says_something and self.spec.is_float8:
            raise UserError(f"{self.config.name} codes each token as it comes; inputs are given")
        if says_something and not self.config.quantize_activations:
            raise UserError(f"{self.config.name} has float activations; inputs are for coded ones")
        for part in (inputs.weight, inputs.bias):
            if part is not None and (
                part.shape != (self.in_features,) or not torch.isfinite(part).all()
            ):
                raise UserError(
                    f"an input weight or bias of shape {tuple(part.shape)} is given; "
                    f"({self.in_features},), finite, is wanted"
                )
        if inputs.bias is not None and inputs.weight is None:
            raise UserError("an input bias is given without an input weight")
        if inputs.scale and not 2.0**-112 <= inputs.scale < math.inf:
            raise UserError(f"the input scale is {inputs.scale}; 2^-112 and more, or 0, is wanted")
        self.input_scale = float(inputs.scale)
        self.register_buffer("input_weight", inputs.weight, persistent=False)
        self.register_buffer("input_bias", inputs.bias, persistent=False)

    @property
    def inputs(self) -> ops.Inputs:
        """How the input is coded before the product."""
        return ops.Inputs(self.input_weight, self.input_bias, self.input_scale)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, config: str | QuantizationConfig, *, name: str = ""
    ) -> QuantizedLinear:
        """Quantize an nn.Linear's weight; the bias is shared with it.

        name: what sensitive_layers of a mixed-precision config are compared with.

        Raises:
            UserError: NaN or infinite weights, an unknown scheme, a scheme that quantizes nothing.
        """
        check_type("linear", linear, nn.Linear, "a torch.nn.Linear")
        config = get_config(config)
        q = quantize(linear.weight.detach(), config.layer_spec(name))
        return cls(q, linear.bias, config, name)

    @property
    def weight(self) -> torch.Tensor:
        """What the codes stand for, float32 (out, in): decoded when it is read; read only."""
        like = torch.empty((self.out_features, self.in_features), device="meta")
        device = self.packed.device
        return DecodedWeight(like, device, lambda: self.qtensor().dequantize().to(device))

    @weight.setter
    def weight(self, value: object) -> None:
        raise RuntimeError(READ_ONLY)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            raise RuntimeError(READ_ONLY)
        super().register_parameter(name, param)

    @property
    def last_kernel(self) -> str | None:
        """The kernel of the last product, or None; an evaluation reads it and sets it to None.

        Kept on the packed tensor, because a compiled or traced graph does not call the layer.
        """
        return getattr(self.packed, "last_kernel", None)

    @last_kernel.setter
    def last_kernel(self, name: str | None) -> None:
        self.packed.last_kernel = name  # type: ignore[attr-defined]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, padding included, of the bias and of the input's factors."""
        rest = (self.bias, self.input_weight, self.input_bias)
        return self.packed.numel() + sum(x.nbytes for x in rest if x is not None)

    def qtensor(self) -> QTensor:
        """The weight as plain codes and scales: the inverse of packing."""
        q, scale, factor, zero = ops.unpack(self.packed, self._about)
        if self.spec.granularity == "per_tensor":  # packed with one value a row
            scale, zero = scale[:1].copy(), None if zero is None else zero[:1].copy()
            q = q.reshape(1, -1)
        shape = (self.out_features, self.in_features)
        return QTensor(self.spec, shape, "float32", True, q, scale, factor, zero)

    def _call(self, x: torch.Tensor) -> tuple[Activations, torch.dtype]:
        """What activations are while they are multiplied, and the dtype of the product."""
        device = x.device.type
        autocast = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        if self.spec.is_float8:
            return "float8", dtype
        if self.config.quantize_activations:
            return "int8" if self.activation_bits == 8 else "int16", dtype
        return "bf16" if dtype == torch.bfloat16 else "float", dtype

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """forward of x (rows, in_features) without autograd."""
        activations, dtype = self._call(x)
        return _product(
            self.packed, self._about, activations, x, bias, dtype, inputs=self._own_inputs
        )

    @property
    def _own_inputs(self) -> ops.Inputs | None:
        """None where nothing is said, so that a call does as little as it can."""
        if self.input_weight is None and not self.input_scale:
            return None
        return self.inputs

    def fused(
        self,
        x: torch.Tensor,
        *,
        norm: ops.Norm | None = None,
        gelu: bool = False,
        layer_scale: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """forward with what stands around a Linear in a transformer's block, without autograd:
        residual + layer_scale * gelu(forward(norm(x))), each where it is given.

        x (..., in_features); residual (..., out_features) decides the dtype of the result.
        """
        activations, dtype = self._call(x)
        dtype = dtype if residual is None else residual.dtype
        recorded = torch.compiler.is_compiling() or ops.is_recorded(x)
        call: Callable[..., torch.Tensor] = _linear_op if recorded else _linear
        about = (*self._about, activations, dtype)
        around = (*(norm or (None, None, 0.0)), *self.inputs, gelu, layer_scale, residual)
        y: torch.Tensor = call(x, self.packed, self.bias, *about, *around)
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) to (..., out_features)."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"a tensor is wanted, not {type(x).__name__}")
        if x.layout != torch.strided or x.is_nested or x.is_meta:
            raise ops.not_dense(x)
        compiling = torch.compiler.is_compiling()
        if compiling or ops.is_recorded(x):
            if not compiling and ops.is_differentiated():
                raise RuntimeError(_NO_TRANSFORM)
            activations, dtype = self._call(x)
            around = (None, None, 0.0, *self.inputs)
            return _linear_op(  # type: ignore[no-any-return]
                x, self.packed, self.bias, *self._about, activations, dtype, *around
            )
        _check_shape(x, self.in_features)
        rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), self.in_features)
        y: torch.Tensor
        if torch.is_grad_enabled():
            y = _Product.apply(rows, self.bias, self)  # type: ignore[no-untyped-call]
        else:
            y = self.product(rows, self.bias)
        # Reshaped out here: a view that _Product returned could not be changed in place (ReLU, +=).
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves, and lays the weight out for the device that it comes to."""
        before = self.packed
        target = fn(before[:0])
        if target.device.type == "meta" or before.device.type == "meta":
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.packed = ops.fitted(before, self._about, target)
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        except BaseException:
            self.packed = before
            raise

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.packed.device.type != "meta":  # torch.load may have brought it to another device
            self.packed = ops.fitted(self.packed, self._about, self.packed)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scheme={self.config.name}, "
            f"{8 * self.packed.numel() / (self.in_features * self.out_features):.2f} bits a weight"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        q = self.qtensor()
        parts = (q.packed, q.stored_scale, q.factor, q.stored_zero)
        for key, part in zip(_PARTS, parts, strict=True):
            if part is not None:
                destination[prefix + key] = torch.from_numpy(part)
        for key, part in self.input_tensors().items():
            destination[prefix + key] = part if keep_vars else part.detach()

    def input_tensors(self) -> dict[str, torch.Tensor]:
        """What a state_dict holds of `inputs`, by INPUT_PARTS."""
        scale = torch.tensor(self.input_scale, device="cpu") if self.input_scale else None
        parts = (self.input_weight, self.input_bias, scale)
        named = zip(INPUT_PARTS, parts, strict=True)
        return {key: part for key, part in named if part is not None}

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {key: state_dict.get(prefix + key) for key in _PARTS}
        if given["weight_codes"] is None and prefix + "weight" in state_dict:
            error_msgs.append(
                f"{prefix.rstrip('.') or 'QuantizedLinear'}: a float weight is given, but the "
                "layer is quantized; load float weights before quantizing"
            )
        elif not any(part is not None for part in given.values()):  # an error if strict
            missing_keys += [prefix + "weight_codes", prefix + "weight_scale"]
        else:
            try:
                self._take(given)
                weight, bias, scale = (state_dict.get(prefix + key) for key in INPUT_PARTS)
                weight, bias = (
                    None if x is None else x.to(self.packed.device, torch.float32, copy=True)
                    for x in (weight, bias)
                )
                self._take_inputs(ops.Inputs(weight, bias, 0.0 if scale is None else scale.item()))
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix.rstrip('.') or 'QuantizedLinear'}: {error}")
        # What is left is the bias; our own keys must not count as unexpected.
        ours = (*_PARTS, *INPUT_PARTS, "weight")
        rest = {k: v for k, v in state_dict.items() if k.removeprefix(prefix) not in ours}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take(self, given: dict[str, torch.Tensor | None]) -> None:
        """Pack what a state_dict holds. Its parts say whether scales have two levels."""
        shape = (self.out_features, self.in_features)
        arrays: list[Any] = []
        for (key, dtype), tensor in zip(_PARTS.items(), given.values(), strict=True):
            if tensor is not None and tensor.dtype != dtype:
                raise UserError(f"{key} is {tensor.dtype}; {dtype} is wanted")
            arrays.append(None if tensor is None else np.ascontiguousarray(tensor.cpu().numpy()))
        q, scale, factor, zero = arrays
        if q is None or scale is None:
            raise UserError("weight_codes and weight_scale are wanted")
        if (zero is None) != self.spec.symmetric:
            raise UserError(f"weight_zero_point does not fit {self.config.name}")
        if factor is not None and self.spec.bits != 4:
            raise UserError(f"weight_factor does not fit {self.config.name}")
        spec = replace(self.spec, two_level=factor is not None)
        about, packed = _pack(
            QTensor(spec, shape, "float32", True, q, scale, factor, zero), self.packed
        )
        self.spec, self._about, self.packed = spec, about, packed


def _pack(q: QTensor, like: torch.Tensor | None = None) -> tuple[ops.Packed, torch.Tensor]:
    """What packed bytes hold, and they, for the device of q or where `like` is."""
    n, k = q.shape
    scale, zero = q.stored_scale, q.stored_zero
    scales: Literal["per_row", "two_level", "per_group", "float8"]
    if q.spec.is_float8:
        scales = "float8"
    elif q.spec.bits == 8:
        scales = "per_row"
        if q.spec.granularity == "per_tensor":
            scale, zero = scale.repeat(n), None if zero is None else zero.repeat(n)
    else:
        scales = "two_level" if q.factor is not None else "per_group"
    group = min(q.spec.group_size, k) if q.spec.granularity == "per_group" else k
    about = ops.Packed(q.spec.bits, scales, n, k, group, zero is not None)
    like = q.packed if isinstance(q.packed, torch.Tensor) else like
    return about, ops.pack(about, q.packed, scale, q.factor, zero, like)


SETTLED = 64 << 20
"""Bytes of packed weights from which on it pays to lay them anew."""


def settle(model: nn.Module) -> None:
    """Lay the packed weights of a large model side by side, in huge pages where the system has
    them; a model of less than SETTLED bytes stays as it is.

    >>> settle(nn.Sequential(QuantizedLinear.from_linear(nn.Linear(64, 32), "INT4_Group_32_A8")))
    """
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    layers = [m for m in layers if type(m.packed) is torch.Tensor and m.packed.device.type == "cpu"]
    sizes = [m.packed.nbytes for m in layers]
    if sum(sizes) < SETTLED or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    for layer, room in zip(layers, ops.side_by_side(sizes), strict=True):
        room.copy_(layer.packed)
        layer.packed = room


def _check_shape(x: torch.Tensor, k: int) -> None:
    if x.ndim == 0 or x.shape[-1] != k:
        raise UserError(f"x has shape {tuple(x.shape)}; (..., {k}) is wanted")


def _product(
    packed: torch.Tensor,
    about: ops.Packed,
    activations: Activations,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    **around: Any,
) -> torch.Tensor:
    if x.device != packed.device:
        raise UserError(f"x is on {x.device}, the layer on {packed.device}; one device is wanted")
    if ops.on_gpu(x):
        y, kernel = _on_gpu(packed, about, activations, x, bias, dtype, **around)
    else:
        y = ops.linear(packed, about, activations, x, bias, dtype, **around)
        kernel = ops.kernel_name(activations, about.bits)
    packed.last_kernel = kernel  # type: ignore[attr-defined]
    return y


def _on_gpu(
    packed: torch.Tensor,
    about: ops.Packed,
    activations: Activations,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    norm: ops.Norm | None = None,
    inputs: ops.Inputs | None = None,
    gelu: bool = False,
    layer_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, str]:
    """The product on a GPU, and its kernel's name."""
    if inputs is not None:
        raise UserError(
            "static scales and smoothing of activations are served on the CPU; x is on a GPU"
        )
    if norm is not None:
        norm = ops.Norm(_float32(norm.weight), _float32(norm.bias), norm.eps)  # type: ignore[arg-type]
    call = gpu_linear.Call(
        packed,
        about,
        activations,
        ops.values(x),
        _float32(bias),
        dtype,
        gelu,
        norm,
        _float32(layer_scale),
        None if residual is None else ops.values(residual),
    )
    return gpu_linear.linear(call)


def _float32(x: torch.Tensor | None) -> torch.Tensor | None:
    """On the GPU where it is, contiguous."""
    if x is None or (x.dtype == torch.float32 and x.is_contiguous()):
        return None if x is None else x.detach()
    wide: torch.Tensor = ops.values(x).float()
    return wide


# ---- the operator for graphs, tracers and transforms ---------------------------------------------


def _linear(
    x: Any,
    packed: Any,
    bias: Any,
    bits: int,
    scales: Any,
    n: int,
    k: int,
    group: int,
    asymmetric: bool,
    activations: Any,
    dtype: torch.dtype,
    norm_weight: Any = None,
    norm_bias: Any = None,
    norm_eps: float = 0.0,
    input_weight: Any = None,
    input_bias: Any = None,
    input_scale: float = 0.0,
    gelu: bool = False,
    layer_scale: Any = None,
    residual: Any = None,
) -> Any:
    """x (..., k) to (..., n), with what QuantizedLinear.fused takes."""
    _check_shape(x, k)
    about = ops.Packed(bits, scales, n, k, group, asymmetric)
    rows = x.reshape(math.prod(x.shape[:-1]), k)
    y = _product(
        packed,
        about,
        activations,
        rows,
        bias,
        dtype,
        norm=None if norm_weight is None else ops.Norm(norm_weight, norm_bias, norm_eps),
        inputs=None
        if input_weight is None and not input_scale
        else ops.Inputs(input_weight, input_bias, input_scale),
        gelu=gelu,
        layer_scale=layer_scale,
        residual=None if residual is None else residual.reshape(len(rows), n),
    )
    return y.reshape(*x.shape[:-1], n)


_linear_op = torch.library.custom_op(
    "vggtquant::linear",
    _linear,
    mutates_args=(),
    schema="(Tensor x, Tensor packed, Tensor? bias, int bits, str scales, int n, int k, int group, "
    "bool asymmetric, str activations, ScalarType dtype, Tensor? norm_weight=None, "
    "Tensor? norm_bias=None, float norm_eps=0.0, Tensor? input_weight=None, "
    "Tensor? input_bias=None, float input_scale=0.0, bool gelu=False, Tensor? layer_scale=None, "
    "Tensor? residual=None) -> Tensor",
)


@_linear_op.register_fake
def _(x: Any, packed: Any, bias: Any, bits: Any, scales: Any, n: Any, k: Any, *rest: Any) -> Any:
    _check_shape(x, k)
    return x.new_empty((*x.shape[:-1], n), dtype=rest[3])


def _batched(info: Any, in_dims: Any, x: Any, packed: Any, bias: Any, *rest: Any) -> Any:
    """vmap over tokens; over layers it cannot be."""
    if any(dim is not None for dim in in_dims[1:]):
        raise NotImplementedError(
            "vmap over the weights or biases of QuantizedLinear layers is not supported; "
            "vmap over inputs is"
        )
    return _linear_op(x.movedim(in_dims[0], 0), packed, bias, *rest), 0


if hasattr(_linear_op, "register_vmap"):  # torch 2.5; before, vmap refuses the operator
    _linear_op.register_vmap(_batched)


@register_flop_formula(torch.ops.vggtquant.linear)
def _flops(x_shape: Any, *rest: Any, out_shape: Any, **kwargs: Any) -> int:
    """Two a multiply-add, as torch counts nn.Linear."""
    return int(2 * math.prod(x_shape) * out_shape[-1])


@torch.library.custom_op(
    "vggtquant::linear_input_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor packed, int bits, str scales, int n, int k, int group, "
    "bool asymmetric) -> Tensor",
)
def _input_gradient(
    grad: Any, packed: Any, bits: int, scales: Any, n: int, k: int, group: int, asymmetric: bool
) -> Any:
    """grad (..., n) to (..., k), float32."""
    about = ops.Packed(bits, scales, n, k, group, asymmetric)
    rows = grad.reshape(math.prod(grad.shape[:-1]), n)
    return ops.input_gradient(packed, about, rows).reshape(*grad.shape[:-1], k)


@_input_gradient.register_fake
def _(grad: Any, packed: Any, bits: Any, scales: Any, n: Any, k: Any, *rest: Any) -> Any:
    return grad.new_empty((*grad.shape[:-1], k), dtype=torch.float32)


def _backward(ctx: Any, grad: Any) -> Any:
    """Of a product alone: blocks that want gradients run unfused."""
    packed, factor = ctx.saved_tensors
    x = _input_gradient(grad, packed, *ctx.about)
    x = (x if factor is None else x * factor).to(ctx.dtypes[0])
    bias = None if ctx.dtypes[1] is None else grad.flatten(0, -2).sum(0).to(ctx.dtypes[1])
    return x, None, bias, *([None] * 17)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, packed, bias, *about = inputs[:9]
    ctx.save_for_backward(packed, inputs[14])
    ctx.about = about
    ctx.dtypes = x.dtype, None if bias is None else bias.dtype


_linear_op.register_autograd(_backward, setup_context=_setup_context)
