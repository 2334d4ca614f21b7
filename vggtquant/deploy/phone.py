# SPDX-License-Identifier: Apache-2.0
"""A program for phones: ExecuTorch's .pte, whose XNNPACK backend multiplies INT8 and INT4 codes.

A Linear with INT8 or INT4 weights and INT8 activations keeps our weight codes and scales; XNNPACK
rounds the scales of groups to bfloat16. It codes each token itself: asymmetric, from the token's
smallest and largest value, where ours are symmetric. Weights of other quantized layers are decoded
to float, which is exact.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conv import QuantizedConv2d
from ..errors import UserError
from ..files import write_bytes
from ..linear import QuantizedLinear
from . import FILES, check, lowering

NAMES_METHOD = "output_names"
"""A method of the program that returns the names of forward's outputs, with spaces between."""


BLOCK = 32
"""XNNPACK's groups of INT4 weights have a multiple of so many inputs."""


class TokenLinear(nn.Module):
    """The operations that XNNPACK takes for a product of codes with a scale a token, and with one
    an output or a group of its inputs."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        q = layer.qtensor()
        self.group = min(q.spec.group_size, q.shape[1]) if q.spec.bits == 4 else 0
        shape = (q.shape[0], q.shape[1] // self.group) if self.group else (q.shape[0],)
        scales = np.broadcast_to(q.scale, shape).astype(np.float32)
        self.register_buffer("codes", torch.from_numpy(np.array(q.codes)))
        self.register_buffer("scales", torch.from_numpy(scales))
        self.register_buffer("zeros", torch.zeros(shape, dtype=torch.int64, device="cpu"))
        self.bias, self.factors = layer.bias, (layer.input_weight, layer.input_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) to (..., out_features)."""
        import torch.ao.quantization.fx._decomposed  # noqa: F401  # registers the operators

        ops = torch.ops.quantized_decomposed
        weight, bias = self.factors
        x = x if weight is None else x * weight
        x = x if bias is None else x + bias
        scale, zero = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
        span = (-128, 127, torch.int8)
        codes = ops.quantize_per_token(x, scale, zero, *span)
        x = ops.dequantize_per_token(codes, scale, zero, *span, torch.float32)
        about = self.codes, self.scales, self.zeros
        if self.group:
            rows = ops.dequantize_per_channel_group(
                *about, -8, 7, torch.int8, self.group, torch.float32
            )
        else:
            rows = ops.dequantize_per_channel(*about, 0, -127, 127, torch.int8)
        return F.linear(x, rows, self.bias)


class Stored(check.Decoded):
    """A quantized layer whose weight is decoded once and stored as float32."""

    stored: Tensor

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.register_buffer("stored", super().rows().clone())

    def rows(self) -> Tensor:
        """The decoded weight."""
        return self.stored


class Read(check.Decoded):
    """A quantized layer with float activations and the weight that XNNPACK reads: it rounds the
    scales of groups to bfloat16."""

    def rows(self) -> Tensor:
        """The decoded weight."""
        if form_of(self.layer) == "weights" or self.layer.spec.bits != 4:
            return super().rows()
        coded = TokenLinear(self.layer)
        scales = coded.scales.bfloat16().float().repeat_interleave(coded.group, 1)
        return coded.codes * scales


def stand_in(name: str, layer: QuantizedLinear) -> nn.Module:
    """What computes a quantized layer in the program.

    Raises:
        UserError: INT8 weights whose zero point is not 0, with INT8 activations.
    """
    if form_of(layer) == "weights":
        return Stored(layer)
    if layer.qtensor().stored_zero is not None:
        raise UserError(
            f"{name} has INT8 weights with a zero point; XNNPACK multiplies symmetric ones, such "
            "as those of INT8_Per_Channel_Symmetric_A8"
        )
    return TokenLinear(layer)


def form_of(layer: QuantizedLinear) -> lowering.Form:
    """As in ONNX, but a static range is not used: XNNPACK takes each token's own. INT4 weights are
    multiplied by INT8 activations where XNNPACK's groups hold them."""
    if isinstance(layer, QuantizedConv2d):
        return "weights"
    form = lowering.form_of(layer)
    coded = layer.config.quantize_activations and layer.activation_bits == 8
    if layer.spec.bits == 4 and coded and _in_groups(layer):
        return "dynamic"
    return "dynamic" if form == "static" else form


def _in_groups(layer: QuantizedLinear) -> bool:
    """Whether symmetric codes of whole groups are as XNNPACK has them."""
    group = min(layer.spec.group_size, layer.in_features)
    return layer.spec.symmetric and group % BLOCK == 0 and layer.in_features % group == 0


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as two batched products and a softmax, which XNNPACK has."""
    if mask is not None or is_causal or enable_gqa:
        raise UserError("attention with a mask is not written for ExecuTorch")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    shape = q.shape[:-1]
    q, k, v = (x.flatten(0, -3) for x in (q, k, v))
    weights = torch.bmm(q * scale, k.transpose(1, 2)).softmax(-1)
    return torch.bmm(weights, v).reshape(*shape, -1)


TABLE: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
}
"""What is written in other operators than torch would choose."""


def write(
    program: torch.export.ExportedProgram, names: list[str], folder: Path
) -> tuple[Path, int, Counter[str]]:
    """The file's path, its bytes, and its operators: those that XNNPACK computes begin so.

    Raises:
        UserError: a model that ExecuTorch refuses, with its words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ExecuTorch's own making
        edge, data = _lowered(program, names)
    path = folder / FILES["executorch"][0]
    write_bytes(path, data)
    return path, len(data), _operators(edge.exported_program().graph_module)


def _lowered(program: torch.export.ExportedProgram, names: list[str]) -> tuple[Any, bytes]:
    """ExecuTorch's graph and the file's bytes."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:
        edge = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={NAMES_METHOD: " ".join(names)},
        )
        return edge, edge.to_executorch().buffer
    except Exception as error:  # of many kinds
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"ExecuTorch refuses the program: {words}") from error


def _operators(module: Any, owner: str = "") -> Counter[str]:
    found: Counter[str] = Counter()
    for node in module.graph.nodes:
        if node.op == "get_attr" and hasattr(getattr(module, node.target), "original_module"):
            inner = getattr(module, node.target).original_module.graph_module
            found += _operators(inner, "XNNPACK ")
        elif node.op == "call_function" and hasattr(node.target, "_schema"):
            found[owner + _name(node)] += 1
    return found


def _name(node: Any) -> str:
    """As torch has it; "INT8 linear" or "INT4 linear" for a product with codes of tokens, by the
    weight's."""
    word = str(node.target._schema.name).split("::")[-1]
    if word != "linear" or "dequantize_per_token" not in str(node.args[0].target):
        return word
    return "INT4 linear" if "per_channel_group" in str(node.args[1].target) else "INT8 linear"
