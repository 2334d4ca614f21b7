# SPDX-License-Identifier: Apache-2.0
"""Which attentions, blocks and aggregators of a model are swapped, whether they agree, and what is
left alone.

A module is recognised by the path of its class and the arguments of its forward, then by its
structure; then it is computed both ways on random tokens. Every module that looks like an attention
or a block and stays as it is gets a reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from . import adapters, aggregator, engines, ops, rope
from .adapter import Swappable
from .aggregator import QuantizedAggregator
from .blocks import Mode, QuantizedAttention, QuantizedBlock, Swapped, drops_out
from .configs import QuantizationConfig
from .dense import set_module
from .devices import device_of
from .linear import QuantizedLinear
from .stand_in import is_of


@dataclass(frozen=True)
class ModuleReport:
    """An attention, a block or an aggregator of the model and what became of it."""

    name: str
    kind: str
    """attention, block or aggregator"""
    scheme: str
    """What computes it, or its class where it stays."""
    error: float | None = None
    """Relative L2 distance of what it adds to random tokens from what the original adds."""
    skipped: str | None = None
    """Why it stays as it was."""


BOUNDS: dict[str, float] = {"float": 0.01, "bf16": 0.02, "int8": 0.05}
"""Largest error with which a module is swapped, by how its attention multiplies."""


def _row_of(module: nn.Module, known: Iterable[Swappable]) -> Swappable | str:
    """What is known of a module's class and forward, or why nothing is."""
    rows = [row for row in known if is_of(module, row.path)]
    if not rows:
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        return adapters.left_alone(module) or f"its class {kind} is not known"
    seen = tuple(inspect.signature(type(module).forward).parameters)[1:]
    row = next((row for row in rows if row.arguments == seen), None)
    if row is None:
        return f"its forward takes ({', '.join(seen)}); ({', '.join(rows[-1].arguments)}) is known"
    on = next((name for name in row.off if getattr(module, name, None) not in (None, False)), None)
    return f"its {on} is on" if on else row


def is_block(module: nn.Module) -> bool:
    """Whether its class is that of a transformer block that is known, x + … of x's shape.

    >>> is_block(nn.Identity())
    False
    """
    return isinstance(_row_of(module, adapters.blocks()), Swappable)


def _kept_reason(module: nn.Module) -> str:
    """What of the module or of those in it a swap would lose."""
    for name, inner in module.named_modules():
        where = f"its {name}" if name else "it"
        if "forward" in vars(inner):
            return f"{where} has a forward of its own"
        hooks = (inner._forward_hooks, inner._forward_pre_hooks)
        if isinstance(inner, QuantizedLinear | nn.Linear) and name:
            continue  # they may have hooks of their own, for which the original is called
        if any(hooks) or inner._backward_hooks or inner._backward_pre_hooks:
            return f"{where} has hooks"
        if inner.training and drops_out(inner):
            return f"{where} drops out while training"
    if module._parameters or module._buffers:
        return "it has parameters of its own"
    return ""


def _is(module: nn.Module | None, *kinds: type) -> bool:
    """Of exactly one of these classes."""
    return type(module) in kinds


def _norm_fits(norm: nn.Module | None, width: int) -> bool:
    return (
        isinstance(norm, nn.LayerNorm)
        and _is(norm, nn.LayerNorm)
        and norm.normalized_shape == (width,)
        and norm.weight is not None
    )


def _linear_fits(layer: nn.Module | None, n: int, k: int) -> bool:
    return (
        isinstance(layer, nn.Linear | QuantizedLinear)
        and _is(layer, nn.Linear, QuantizedLinear)
        and (layer.out_features, layer.in_features) == (n, k)
    )


_ATTENTION_CHILDREN = {"qkv", "proj", "q_norm", "k_norm", "attn_drop", "proj_drop", "rope"}


def _attention_structure(attn: nn.Module) -> str:
    parts = attn._modules
    extra = parts.keys() - _ATTENTION_CHILDREN
    if extra:
        return f"it has a module {sorted(extra)[0]} that is not known"
    qkv = parts.get("qkv")
    dim = getattr(qkv, "in_features", 0)
    heads = getattr(attn, "num_heads", 0)
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        return f"{dim} channels do not fit {heads} heads"
    width = dim // heads
    if not _linear_fits(qkv, 3 * dim, dim) or not _linear_fits(parts.get("proj"), dim, dim):
        return "its qkv and proj are no plain Linear layers of its width"
    if width % 8 or width > ops.WIDEST:
        return f"heads of {width} channels; a multiple of 8, up to {ops.WIDEST}, is wanted"
    for name in ("q_norm", "k_norm"):
        norm = parts.get(name)
        if norm is not None and not _is(norm, nn.Identity) and not _norm_fits(norm, width):
            return f"its {name} is a {type(norm).__name__}"
    for name in ("attn_drop", "proj_drop"):
        if not _is(parts.get(name), nn.Dropout, nn.Identity, type(None)):
            return f"its {name} is a {type(parts[name]).__name__}"
    turned = parts.get("rope")
    if turned is not None and (rope.base_of(turned) is None or width % 4):
        return f"its rope is a {type(turned).__name__}"
    return ""


_BLOCK_CHILDREN = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}


def _block_structure(block: nn.Module) -> str:
    parts = block._modules
    extra = parts.keys() - _BLOCK_CHILDREN
    if extra:
        return f"it has a module {sorted(extra)[0]} that is not known"
    attn, mlp = parts.get("attn"), parts.get("mlp")
    if not isinstance(attn, QuantizedAttention) or mlp is None:
        return "its attention was not swapped"
    dim = attn.qkv.in_features
    for name in ("norm1", "norm2"):
        if not _norm_fits(parts.get(name), dim):
            return f"its {name} is no LayerNorm of its width with a weight"
    for name in ("ls1", "ls2"):
        scale = parts.get(name)
        if scale is None or _is(scale, nn.Identity):
            continue
        gamma = scale._parameters.get("gamma")
        if type(scale).__name__ != "LayerScale" or gamma is None or gamma.shape != (dim,):
            return f"its {name} is a {type(scale).__name__}"
    for name in ("drop_path1", "drop_path2"):
        path = parts.get(name)
        if not _is(path, nn.Identity, type(None)) and type(path).__name__ != "DropPath":
            return f"its {name} is a {type(path).__name__}"
    inner = mlp._modules
    fc1 = inner.get("fc1")
    hidden = getattr(fc1, "out_features", 0)
    act = inner.get("act")
    if (
        inner.keys() - {"fc1", "act", "fc2", "drop", "drop1", "drop2"}
        or not _linear_fits(fc1, hidden, dim)
        or not _linear_fits(inner.get("fc2"), dim, hidden)
    ):
        return f"its mlp, a {type(mlp).__name__}, is no pair of Linear layers"
    if not isinstance(act, nn.GELU) or act.approximate != "none":
        return f"its mlp has a {type(act).__name__} that is not the exact GELU"
    return ""


def _place_reason(module: nn.Module) -> str:
    devices = {x.device for x in [*module.parameters(), *module.buffers()]}
    if len(devices) != 1 or next(iter(devices)).type not in ("cpu", "cuda"):
        names = ", ".join(sorted(map(str, devices)))
        return f"it is on {names}; the CPU or one GPU is served"
    return ""


# ---- verification --------------------------------------------------------------------------------


def _tokens(module: nn.Module, dim: int, normed: bool) -> Tensor:
    """Random tokens (2, 21, dim); where they are to be normed, small ones, for which eps counts."""
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn((2, 21, dim), generator=generator, device="cpu")
    if normed:
        x *= 0.03 * torch.tensor([1.0, 0.1, 3.0], device="cpu").repeat(7)[:, None]
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return x.to(dtype)


def _positions(row: Swappable, attn: QuantizedAttention) -> dict[str, object]:
    """Positions of those tokens in the form that forward takes."""
    if row.positions is None:
        return {}
    name, form = row.positions
    y, x = torch.arange(21, device="cpu") % 4, torch.arange(21, device="cpu") // 4
    pos = torch.stack([y, x], dim=-1)
    if form != "grid":
        return {name: rope.example(form, pos, attn.qkv.in_features // attn.heads)}
    turned = attn._modules.get("rope") is not None
    return {name: pos.expand(2, 21, 2).clone()} if turned else {}


@torch.no_grad()
def error_of(swapped: Swapped, residual: bool) -> float:
    """Relative L2 distance of what the module adds to random tokens from what the original adds."""
    attn = swapped._attention()
    device = device_of(swapped)
    x = _tokens(swapped, attn.qkv.in_features, normed=residual).to(device)
    given = tree_map_only(Tensor, lambda p: p.to(device), _positions(swapped.row, attn))
    # An engine of a GPU that is chosen by its time might be another one each way.
    with torch.autocast(device.type, enabled=False), engines.use("fused"):
        want = swapped.original.forward(x, **given).double()
        got = swapped(x, **given).double()
    if residual:
        want, got = want - x.double(), got - x.double()
    norm = want.norm().item()
    return float((got - want).norm().item() / norm) if norm else float((got - want).norm().item())


# ---- the swap ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What an attention or a block has to be."""

    name: str
    children: frozenset[str]
    """Names of modules by which it is told from others."""
    rows: Callable[[], Iterable[Swappable]]
    """The classes that are known."""
    structure: Callable[[nn.Module], str]

    def is_like(self, module: nn.Module) -> bool:
        """Whether it looks like one, and is not swapped."""
        return self.children <= module._modules.keys() and not isinstance(module, Swapped)


_ATTENTION = _Kind(
    "attention", frozenset({"qkv", "proj"}), adapters.attentions, _attention_structure
)
_BLOCK = _Kind(
    "block", frozenset({"norm1", "attn", "norm2", "mlp"}), adapters.blocks, _block_structure
)


class _Swap:
    """One run over a model."""

    def __init__(self, model: nn.Module, configs: Iterable[QuantizationConfig], each: bool) -> None:
        self.model = model
        self.configs = list(configs)
        self.each = each
        self.errors: dict[object, float] = {}
        """Of the modules that were computed both ways, by what they are built of."""
        self.rows: list[ModuleReport] = []
        self.originals: dict[str, nn.Module] = {}

    def config_of(self, module: nn.Module) -> QuantizationConfig | None:
        """The config of the first layer in it that was quantized."""
        layers = (m for m in module.modules() if isinstance(m, QuantizedLinear))
        return next((layer.config for layer in layers if layer.config in self.configs), None)

    def take(
        self, name: str, module: nn.Module, kind: _Kind, make: Callable[[Swappable], Swapped]
    ) -> bool:
        """Swap the module, or say why not."""
        row = _row_of(module, kind.rows())
        reason = (
            ("it is the model itself" if not name else "")
            or _place_reason(module)
            or (row if isinstance(row, str) else "")
            or _kept_reason(module)
            or kind.structure(module)
        )
        error, scheme = None, type(module).__name__
        if not reason and isinstance(row, Swappable):
            swapped = make(row)
            mode = swapped.mode if isinstance(swapped, QuantizedAttention) else "float"
            error = self.error_of(swapped, residual=kind is _BLOCK)
            if not error <= BOUNDS[mode]:
                reason = f"it differs by {error:.3g} on random tokens; {BOUNDS[mode]} is accepted"
        if not reason:
            scheme = swapped.scheme_name
            set_module(self.model, name, swapped)
            self.originals[name] = module
        self.rows.append(ModuleReport(name, kind.name, scheme, error, reason or None))
        return not reason

    def error_of(self, swapped: Swapped, residual: bool) -> float:
        """error_of, or that of the first module that is built of the same parts."""
        if self.each:
            return error_of(swapped, residual)
        attn = swapped._attention()
        base = rope.base_of(attn._modules.get("rope"))
        parts = type(swapped.original), repr(swapped), attn.heads, base
        if parts not in self.errors:
            self.errors[parts] = error_of(swapped, residual)
        return self.errors[parts]

    def attention(self, name: str, attn: nn.Module, fused: bool) -> None:
        """An attention, if its config wants it or the block around it is to be fused."""
        config = self.config_of(attn)
        if config is None:
            self.leave(name, attn, _ATTENTION)
        elif fused or config.attention != "float":
            mode: Mode = config.attention
            pv: Mode = config.attention_values if mode == "int8" else mode
            coded = config.kv_cache == "int8"
            self.take(
                name, attn, _ATTENTION, lambda row: QuantizedAttention(attn, row, mode, pv, coded)
            )

    def block(self, name: str, block: nn.Module) -> None:
        """A block whose attention has been looked at."""
        done = self.take(name, block, _BLOCK, lambda row: QuantizedBlock(block, row))
        attn = f"{name}.attn" if name else "attn"
        swapped = self.originals.get(attn) and self.model.get_submodule(attn)
        if not done and isinstance(swapped, QuantizedAttention) and swapped.mode == "float":
            set_module(self.model, attn, self.originals.pop(attn))  # nobody asked for it alone
            self.rows[:] = [row for row in self.rows if row.name != attn]

    def aggregator(self, name: str, module: nn.Module) -> None:
        """What runs the blocks."""
        owner = self.model.get_submodule(name.rpartition(".")[0])
        reason = "it is the model itself" if not name else aggregator.reason_against(owner, module)
        kept = frozenset() if reason else aggregator.layers_read(owner, module)
        if not reason and not aggregator.agrees(module, kept):
            reason = "it gives other tokens for blocks of a test"
        scheme, error = type(module).__name__, None
        if not reason:
            scheme, error = f"keeps {len(kept)} outputs", 0.0
            set_module(self.model, name, QuantizedAggregator(module, kept))
            self.originals[name] = module
        self.rows.append(ModuleReport(name, "aggregator", scheme, error, reason or None))

    def leave(self, name: str, module: nn.Module, kind: _Kind) -> None:
        """A row for a module that holds nothing of ours."""
        reason = "it holds no layer that was quantized"
        self.rows.append(ModuleReport(name, kind.name, type(module).__name__, None, reason))

    def run(self) -> None:
        found = list(self.model.named_modules())
        blocks = {name: module for name, module in found if _BLOCK.is_like(module)}
        configs = {name: self.config_of(block) for name, block in blocks.items()}
        fused = {name for name, config in configs.items() if config is not None and config.fuse}
        for name, module in found:
            if _ATTENTION.is_like(module):
                self.attention(name, module, name.rpartition(".")[0] in fused)
        for name, block in blocks.items():
            if name in fused:
                self.block(name, block)
            elif configs[name] is None and any(config.fuse for config in self.configs):
                self.leave(name, block, _BLOCK)
        for name, module in found:
            inside = f"{name}." if name else ""
            if aggregator.is_like(module) and any(block.startswith(inside) for block in fused):
                self.aggregator(name, module)


def swap(
    model: nn.Module, configs: Iterable[QuantizationConfig], *, each: bool = True
) -> tuple[list[ModuleReport], dict[str, nn.Module]]:
    """Replace the model's attentions, blocks and aggregator as the configs of their layers say, in
    place.

    each: compute each module both ways; False: the first of those that are built of the same parts,
    for a file whose weights were verified when it was made.

    Returns a row for each module that looks like one, and those that were replaced, by name.
    """
    wanted = [config for config in configs if config.attention != "float" or config.fuse]
    run = _Swap(model, wanted, each)
    if wanted:
        run.run()
    return run.rows, run.originals
