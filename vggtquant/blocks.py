# SPDX-License-Identifier: Apache-2.0
"""QuantizedAttention and QuantizedBlock: a transformer's attention and block in few passes.

Which modules of a model they replace, and how that is verified, is `recognition`'s.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.utils.flop_counter import register_flop_formula

from . import gpu_attention, kv_cache, ops, rope
from .adapter import Swappable
from .linear import QuantizedLinear
from .stand_in import StandIn

Mode = Literal["float", "bf16", "int8"]


class Rotation(NamedTuple):
    """2-D rotary embedding of one call: integer positions (batch, tokens, 2) and a base, or tables
    of cosines and sines as `ops.attention` takes them; halves: in those, channel i of a head turns
    with i + head_dim / 2."""

    pos: Tensor | None = None
    base: float = 0.0
    cos: Tensor | None = None
    sin: Tensor | None = None
    halves: bool = False


NO_ROTATION = Rotation()


class Swapped(StandIn):
    """A module whose forward runs in packed kernels, in the place of another one.

    The original takes the calls that the kernels do not serve: with other arguments than x and
    positions, with hooks on inner modules, with dropout in training, on another kind of device, and
    where a gradient is wanted (use torch.inference_mode).
    """

    def __init__(self, original: nn.Module, row: Swappable) -> None:
        super().__init__(original)
        self.row = row
        """What is known of the original's class."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As the original's forward."""
        rotation = self._served(x, args, kwargs)
        if rotation is None:
            self.original.training = self.training
            return self._unserved(x, args, kwargs)
        return self._fused(x, rotation)

    def _unserved(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that the original takes."""
        return self.original.forward(x, *args, **kwargs)

    @property
    def scheme_name(self) -> str:
        """What computes it, for a report."""
        raise NotImplementedError

    def _fused(self, x: Tensor, rotation: Rotation) -> Tensor:
        raise NotImplementedError

    def _attention(self) -> QuantizedAttention:
        raise NotImplementedError

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments after x, by name."""
        return dict(zip(self.row.arguments[1:], args, strict=False)) | kwargs

    def _served(self, x: Any, args: Any, kwargs: Any) -> Rotation | None:
        """The call's rotation; None: the original has to take it."""
        others = self.row.arguments[1:]
        if not isinstance(x, Tensor) or x.ndim != 3 or len(args) > len(others):
            return None
        given = self._named(args, kwargs)
        if not given.keys() <= set(others):
            return None
        where = given.pop(self.row.positions[0], None) if self.row.positions else None
        if any(value is not None and value is not False for value in given.values()):
            return None
        if x.device.type not in ("cpu", "cuda") or x.layout != torch.strided or x.is_nested:
            return None
        if self._differentiated(x):
            if not torch.compiler.is_compiling():
                _say_differentiated()
            return None
        if not torch.compiler.is_compiling() and self._observed(x):
            return None
        return self._attention().rotation(x, where)

    def _differentiated(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.parameters())
        )

    def _observed(self, x: Tensor) -> bool:
        """Whether somebody wants more of the inner modules than their result."""
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            return True
        if ops.is_recorded(x) and ops.is_differentiated():
            return True
        for module in _inner(self):
            if module._forward_hooks or module._forward_pre_hooks:
                return True
            if "forward" in vars(module) or (module.training and drops_out(module)):
                return True
        return self.training and bool(getattr(self.original, "sample_drop_ratio", 0))

    def extra_repr(self) -> str:
        return f"in the place of {type(self.original).__name__}"


GRADIENTS = (
    "blocks and attentions are computed by the modules that they replaced where a gradient is "
    "wanted; torch.inference_mode() or torch.no_grad() has them computed in packed kernels"
)


@functools.cache
def _say_differentiated() -> None:
    """Once in a process."""
    warnings.warn(GRADIENTS, stacklevel=2)


def drops_out(module: nn.Module) -> bool:
    """Whether it is a dropout that does something while training."""
    return isinstance(module, nn.Dropout) and module.p > 0


def _inner(module: nn.Module) -> Iterator[nn.Module]:
    for child in module._modules.values():
        if child is not None:
            yield child
            yield from _inner(child)


class QuantizedAttention(Swapped):
    """Self-attention whose q, k and v come from one Linear, by `ops.attention`.

    x (batch, tokens, channels) to the same shape. mode: how q and k are multiplied, "float", "bf16"
    or "int8" with a scale for each row of q and of k; pv: the same for the softmax and v. LayerNorm
    of q and k and 2-D rotary embedding as the original has them.
    """

    last_kernel: str | None = None
    """What made the last result; an evaluation asks for it and sets it back to None."""

    def __init__(
        self, original: nn.Module, row: Swappable, mode: Mode, pv: Mode, codes_cache: bool = False
    ) -> None:
        super().__init__(original, row)
        self.mode: Mode = mode
        self.pv: Mode = pv
        self.codes_cache = codes_cache and set(kv_cache.ARGUMENTS) <= set(row.arguments)
        """Whether keys and values that a call returns for the next one are in INT8."""
        self.heads = int(original.num_heads)  # type: ignore[arg-type]

    @property
    def scheme_name(self) -> str:
        way = "float" if self.mode == "float" else f"{self.mode} scores, {self.pv} values"
        return f"{way}, int8 cache" if self.codes_cache else way

    def _attention(self) -> QuantizedAttention:
        return self

    def _unserved(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = self._named(args, kwargs)
        if self.codes_cache and given.get("use_cache"):
            return kv_cache.call(self.original.forward, x, given)
        return super()._unserved(x, args, kwargs)

    def rotation(self, x: Tensor, where: Any) -> Rotation | None:
        """What a call's positions mean; None where the original must say it."""
        if self.row.positions is None:
            return NO_ROTATION if where is None else None
        if self.row.positions[1] != "grid":
            tables = rope.given(self.row.positions[1], where, x.shape[1])
            return tables and Rotation(None, 0.0, *tables)
        base = rope.base_of(self._modules.get("rope"))
        if base is None:
            return NO_ROTATION
        fits = isinstance(where, Tensor) and where.shape == (*x.shape[:2], 2)
        return Rotation(where, base) if fits and not where.is_floating_point() else None

    def _fused(self, x: Tensor, rotation: Rotation) -> Tensor:
        y: Tensor = self.proj(self.attend(self.qkv(x), rotation))
        return y

    def attend(self, qkv: Tensor, rotation: Rotation) -> Tensor:
        """qkv (batch, tokens, 3 channels) to (batch, tokens, channels), in qkv's dtype."""
        parts = qkv.view(*qkv.shape[:2], 3, self.heads, -1)
        norms = [_norm(self._modules.get(name)) for name in ("q_norm", "k_norm")]
        if rotation.halves:  # the kernel turns channels that are a quarter of a head apart
            parts = torch.cat([rope.regrouped(parts[:, :, :2]), parts[:, :, 2:]], dim=2)
            norms = [_regrouped(norm) for norm in norms]
        if ops.on_gpu(qkv):
            q_norm, k_norm = (w if w is None else ops.Norm(w, b, eps) for w, b, eps in norms)
            self.__dict__["last_kernel"] = gpu_attention.NAME
            return gpu_attention.attention(parts, q_norm, k_norm, *rotation[:4])
        given: Any = (*norms[0], *norms[1], *rotation[:4], self.mode, self.pv)
        if torch.compiler.is_compiling() or ops.is_recorded(qkv):
            return _attention_op(parts, *given)  # type: ignore[no-any-return]
        y: Tensor = _attention(parts, *given)
        self.__dict__["last_kernel"] = ops.attention_kernel_name(self.mode, self.pv)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scheme_name}"


class QuantizedBlock(Swapped):
    """A pre-norm transformer block: x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    LayerNorm is part of the coding of a Linear's input, GELU, LayerScale and residual of its
    output. The residual stream keeps x's dtype; under autocast, what lies between has autocast's.
    """

    @property
    def scheme_name(self) -> str:
        return "fused"

    def _attention(self) -> QuantizedAttention:
        attn: QuantizedAttention = self.attn
        return attn

    def _fused(self, x: Tensor, rotation: Rotation) -> Tensor:
        attn, mlp = self._attention(), self._modules["mlp"]
        assert mlp is not None
        y = attn.attend(product(attn.qkv, x, norm=self._modules["norm1"]), rotation)
        x = product(attn.proj, y, scale=self._modules.get("ls1"), residual=x)
        y = product(mlp.fc1, x, norm=self._modules["norm2"], gelu=True)
        return product(mlp.fc2, y, scale=self._modules.get("ls2"), residual=x)


def product(
    layer: Any,
    x: Tensor,
    *,
    norm: nn.Module | None = None,
    gelu: bool = False,
    scale: nn.Module | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """residual + scale * gelu(layer(norm(x))), each where it is given, for a Linear of either kind;
    in residual's dtype."""
    gamma = None if scale is None else scale._parameters.get("gamma")
    if isinstance(layer, QuantizedLinear):
        weight, bias, eps = _norm(norm)
        return layer.fused(
            x,
            norm=None if weight is None else ops.Norm(weight, bias, eps),
            gelu=gelu,
            layer_scale=gamma,
            residual=residual,
        )
    y: Tensor = layer(x if norm is None else norm(x))
    if gelu:
        y = F.gelu(y)
    if gamma is not None:
        y = y * gamma
    return y if residual is None else residual + y.to(residual.dtype)


_Norm = tuple[Tensor | None, Tensor | None, float]


def _norm(norm: nn.Module | None) -> _Norm:
    if not isinstance(norm, nn.LayerNorm):
        return None, None, 0.0
    return norm.weight, norm.bias, norm.eps


def _regrouped(norm: _Norm) -> _Norm:
    weight, bias = (x if x is None else rope.regrouped(x) for x in norm[:2])
    return weight, bias, norm[2]


def _attention(
    qkv: Any,
    q_weight: Any,
    q_bias: Any,
    q_eps: float,
    k_weight: Any,
    k_bias: Any,
    k_eps: float,
    pos: Any,
    base: float,
    cos: Any,
    sin: Any,
    mode: Any,
    pv: Any,
) -> Any:
    """(batch, tokens, 3, heads, dim) to (batch, tokens, heads * dim)."""
    q_norm = None if q_weight is None else ops.Norm(q_weight, q_bias, q_eps)
    k_norm = None if k_weight is None else ops.Norm(k_weight, k_bias, k_eps)
    if pos is not None:
        tables = rope.tables(pos, qkv.shape[-1], base)
        if tables is None:  # positions of their own for each of the batch
            norms = (q_weight, q_bias, q_eps, k_weight, k_bias, k_eps)
            each = zip(qkv.split(1), pos.split(1), strict=True)
            return torch.cat(
                [_attention(x, *norms, p, base, None, None, mode, pv) for x, p in each]
            )
        cos, sin = tables
    return ops.attention(qkv, q_norm=q_norm, k_norm=k_norm, cos=cos, sin=sin, mode=mode, pv=pv)


_attention_op = torch.library.custom_op(
    "vggtquant::attention",
    _attention,
    mutates_args=(),
    schema="(Tensor qkv, Tensor? q_weight, Tensor? q_bias, float q_eps, Tensor? k_weight, "
    "Tensor? k_bias, float k_eps, Tensor? pos, float base, Tensor? cos, Tensor? sin, str mode, "
    "str pv) -> Tensor",
)


@register_flop_formula(torch.ops.vggtquant.attention)
def _flops(qkv_shape: Any, *rest: Any, out_shape: Any, **kwargs: Any) -> int:
    """Two a multiply-add, of both products, as torch counts scaled_dot_product_attention."""
    batch, tokens, _, heads, dim = qkv_shape
    return int(4 * batch * heads * tokens * tokens * dim)


@_attention_op.register_fake
def _(qkv: Any, *rest: Any) -> Any:
    batch, tokens, _, heads, dim = qkv.shape
    return qkv.new_empty((batch, tokens, heads * dim))
