# SPDX-License-Identifier: Apache-2.0
"""quantize_model: walk a model, choose its Linear layers, swap them in place, report each one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import nn

from . import ops, vggt
from .configs import QuantizationConfig, get_config
from .errors import UserError
from .linear import QuantizedLinear
from .qtensor import QTensor, quantize

Model = TypeVar("Model", bound=nn.Module)
Progress = Callable[[int, int, str], None]
"""Called with layers done, layers in all, and the name of the next one."""


@dataclass(frozen=True)
class LayerReport:
    """One Linear of the model and what became of it."""

    name: str
    shape: tuple[int, int]
    """(out_features, in_features)"""
    scheme: str
    bytes_before: int
    """Of weight and bias."""
    bytes_after: int
    sqnr_db: float | None = None
    """Of the weight w and what its codes stand for, w': 10 log10(sum w^2 / sum (w - w')^2); None
    where there is no noise."""
    cosine: float | None = None
    """Cosine of the weight and what its codes stand for."""
    skipped: str | None = None
    """Why it stays as it was."""
    note: str | None = None


@dataclass(frozen=True)
class ModelReport:
    """What quantize_model did: a row a layer, and sums over the quantized ones."""

    config: QuantizationConfig
    layers: list[LayerReport]
    notes: list[str]
    originals: dict[str, nn.Linear] = field(default_factory=dict, repr=False)
    """The layers that were swapped out, where keep_originals asked for them."""

    @property
    def quantized(self) -> list[LayerReport]:
        return [layer for layer in self.layers if layer.skipped is None]

    @property
    def skipped(self) -> list[LayerReport]:
        return [layer for layer in self.layers if layer.skipped is not None]

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.quantized)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.quantized)

    @property
    def bits_per_weight(self) -> float:
        """Of the quantized layers, biases included; NaN where there are none."""
        weights = sum(math.prod(layer.shape) for layer in self.quantized)
        return 8 * self.bytes_after / weights if weights else math.nan

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "config": self.config.to_dict(),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines = [f"{'layer':{width}}  {'out x in':>13}  {'bytes':>10}  {'SQNR dB':>7}  what"]
        for layer in self.layers:
            noise = "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"
            what = layer.scheme if layer.skipped is None else f"skipped: {layer.skipped}"
            shape = f"{layer.shape[0]} x {layer.shape[1]}"
            lines.append(
                f"{layer.name:{width}}  {shape:>13}  {layer.bytes_after:>10}  {noise:>7}  "
                + "; ".join(filter(None, (what, layer.note)))
            )
        lines.append(
            f"{len(self.quantized)} of {len(self.layers)} layers quantized: "
            f"{self.bytes_before / 1e6:.2f} MB before, {self.bytes_after / 1e6:.2f} MB after"
        )
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers as really held, each tensor once.

    >>> model_bytes(nn.Linear(3, 2))
    32
    """
    held = {id(t): t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]}
    return sum(held.values())


def quantize_model(
    model: Model,
    config: str | QuantizationConfig,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    keep_originals: bool = False,
    progress: Progress | None = None,
) -> tuple[Model, ModelReport]:
    """Swap a model's Linear layers for quantized ones, in place.

    include, exclude: fnmatch patterns of layer names. keep_originals: keep the float layers in the
    report, for restore_model. Nothing is swapped unless every layer can be.

    Raises:
        UserError: no Linear in the model, a pattern that names none, NaN or infinite weights (the
            layer is named), an unknown scheme, a device that this build does not serve.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    >>> model, report = quantize_model(model, "INT8_Per_Channel_Symmetric")
    >>> [layer.name for layer in report.quantized]
    ['1']
    """
    config = get_config(config)
    if config.device != "cpu":
        if not ops.serves(torch.device(config.device)):
            raise UserError(f"device {config.device!r} is not served here; 'cpu' is")
        model.to(config.device)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not linears:
        raise UserError(f"{type(model).__name__} has no nn.Linear layer to quantize")
    skipped = _reasons(model, linears, config, include, exclude)
    refuse_nonfinite({name: m for name, m in linears.items() if name not in skipped})

    layers, originals = [], {}
    wanted = len(linears) - len(skipped)
    done = 0
    for name in list(linears):
        linear = linears.pop(name)  # the model's alone: once it is swapped, its floats are free
        if name in skipped:
            layers.append(_row(name, linear, "float", skipped=skipped[name]))
            continue
        if progress:
            progress(done, wanted, name)
        layers.append(_swap(model, name, linear, config))
        if keep_originals:
            originals[name] = linear
        done += 1
    ops.trim()
    if progress:
        progress(done, wanted, "")
    return model, ModelReport(config, layers, _notes(config), originals)


def restore_model(model: nn.Module, report: ModelReport) -> None:
    """Set the float layers back that quantize_model(…, keep_originals=True) swapped out.

    Raises:
        UserError: the report holds no float layers, because keep_originals was False.
    """
    if report.quantized and not report.originals:
        raise UserError(
            f"the report holds none of the {len(report.quantized)} float layers; "
            "quantize_model(…, keep_originals=True) keeps them"
        )
    for name, linear in report.originals.items():
        _set(model, name, linear)


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _swap(
    model: nn.Module, name: str, linear: nn.Linear, config: QuantizationConfig
) -> LayerReport:
    scheme = config.layer_scheme(name)
    weight = linear.weight.detach()
    try:
        q = quantize(weight, scheme)
    except UserError as error:
        raise UserError(f"layer {name}: {error}") from error
    layer = QuantizedLinear(q, linear.bias, config, name)
    layer.train(linear.training)
    own = {key: value for key, value in vars(linear).items() if key not in _PLAIN}
    vars(layer).update({key: value for key, value in own.items() if key not in vars(layer)})
    note = None
    if scheme.two_level and not q.scheme.two_level:
        note = "float group scales: two-level ones would cost more than 5 % in squared error"
    sqnr_db, cosine = _weight_quality(weight, q)
    _set(model, name, layer)
    label = (
        config.name
        if config.quant_type != "mixed_precision"
        else f"{config.name}, INT{scheme.bits}"
    )
    return LayerReport(
        name,
        (linear.out_features, linear.in_features),
        label,
        _nbytes(linear),
        layer.nbytes,
        sqnr_db,
        cosine,
        note=note,
    )


def _weight_quality(weight: torch.Tensor, q: QTensor) -> tuple[float | None, float | None]:
    m = ops.moments(ops.values(weight), ops.values(q.dequantize()))
    # Near the largest float a code may stand for infinity, and sums are then none.
    ratio = m["rr"] / m["dd"] if m["dd"] else 0.0
    sqnr = 10 * math.log10(ratio) if 0 < ratio < math.inf else None
    norm = math.sqrt(m["rr"] * m["cc"])
    return sqnr, m["rc"] / norm if 0 < norm < math.inf else None


def _nbytes(linear: nn.Linear) -> int:
    tensors = [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
    return sum(t.numel() * t.element_size() for t in tensors)


def _row(name: str, linear: nn.Linear, scheme: str, skipped: str) -> LayerReport:
    shape, nbytes = (linear.out_features, linear.in_features), _nbytes(linear)
    return LayerReport(name, shape, scheme, nbytes, nbytes, skipped=skipped)


def _named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _checked(what: str, patterns: Iterable[str] | None, names: Iterable[str]) -> tuple[str, ...]:
    """The patterns, each of which names a layer."""
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns or ())
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{what} pattern {pattern!r} matches no Linear layer of the model")
    return patterns


_PLAIN = vars(nn.Linear(1, 1, device="meta"))
"""What an nn.Linear holds before anybody adds hooks, buffers or attributes."""


@dataclass(frozen=True)
class _Candidate:
    """A Linear of the model and what its surroundings say of it."""

    name: str
    linear: nn.Linear
    parent: nn.Module
    adapts: str
    """The layer that this one belongs to as an adapter (peft's LoRA and its kin)."""
    shared: list[str]
    """Other modules that hold the same weight."""
    named: Callable[[str], str]
    """Why the caller's patterns leave out a layer of a name, or ""."""

    @property
    def additions(self) -> str:
        """What somebody added to the layer that a swap would lose, in words."""
        for key, plain in _PLAIN.items():
            if isinstance(plain, dict) and not plain and vars(self.linear).get(key):
                return key.strip("_").replace("_", " ")
        return ", ".join(sorted(self.linear._parameters.keys() - {"weight", "bias"}))


# Why a layer stays as it is, most general first: each gives words, or "" where it does not apply.
_REASONS: tuple[Callable[[_Candidate], str], ...] = (
    lambda c: (
        "nn.MultiheadAttention uses its weight without calling it"
        if isinstance(c.parent, nn.MultiheadAttention)
        else ""
    ),
    lambda c: f"an adapter of {c.adapts}, which stays in float" if c.adapts else "",
    lambda c: (
        f"a subclass of nn.Linear ({type(c.linear).__name__})"
        if type(c.linear) is not nn.Linear
        else ""
    ),
    lambda c: "its forward was replaced" if "forward" in vars(c.linear) else "",
    lambda c: (
        "its weight is computed anew for each call" if "weight" not in c.linear._parameters else ""
    ),
    lambda c: (
        f"its weight is a {type(c.linear.weight).__name__}, not a plain parameter"
        if type(c.linear.weight) is not nn.Parameter
        else ""
    ),
    lambda c: f"it has {c.additions}, which would be lost" if c.additions else "",
    lambda c: f"its weight is shared with {c.shared[0] or 'the model itself'}" if c.shared else "",
    lambda c: (
        f"its weight is on {c.linear.weight.device}, which is not served here"
        if not ops.serves(c.linear.weight.device)
        else ""
    ),
    lambda c: "its weight is empty" if not c.linear.weight.numel() else "",
    lambda c: (
        f"its weight is {c.linear.weight.dtype}"
        if str(c.linear.weight.dtype).removeprefix("torch.") not in ops.DTYPES
        else ""
    ),
    lambda c: (
        f"its rows are longer than {ops.DEEPEST}" if c.linear.in_features > ops.DEEPEST else ""
    ),
    lambda c: "it is the model itself; use QuantizedLinear.from_linear" if not c.name else "",
    lambda c: c.named(c.name),
)


def _reasons(
    model: nn.Module,
    linears: dict[str, nn.Linear],
    config: QuantizationConfig,
    include: Iterable[str] | None,
    exclude: Iterable[str] | None,
) -> dict[str, str]:
    """Why layers are not swapped, by name; the first reason that holds."""
    excluded = _checked("exclude", exclude, linears)
    included = _checked("include", include, linears) if include is not None else ("*",)
    _checked("sensitive_layers", config.sensitive_layers, linears)
    if not config.quantizes:
        return dict.fromkeys(linears, f"{config.name} quantizes nothing")

    def named(name: str) -> str:
        if not _named(name, included):
            return "not included"
        return "excluded" if _named(name, excluded) else ""

    owners: dict[int, list[str]] = {}
    for owner, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(owner)

    reasons: dict[str, str] = {}
    candidates: dict[str, _Candidate] = {}
    for name, linear in linears.items():
        weight = linear._parameters.get("weight")
        shared = [owner for owner in owners.get(id(weight), ()) if owner != name]
        parent = model.get_submodule(name.rpartition(".")[0])
        candidate = _Candidate(name, linear, parent, _adapted(model, name), shared, named)
        candidates[name] = candidate
        reason = next(filter(None, (reason(candidate) for reason in _REASONS)), "")
        if reason:
            reasons[name] = reason
    if config.skip_first_last:
        plain = [
            name
            for name, c in candidates.items()
            if type(c.linear) is nn.Linear
            and not isinstance(c.parent, nn.MultiheadAttention)
            and not c.adapts
        ]
        edges = vggt.first_and_last(plain) or (plain[:1] + plain[-1:])
        for name, which in zip(edges, ("first", "last"), strict=False):
            reasons.setdefault(name, f"the {which} Linear (skip_first_last)")
    return reasons


def _adapted(model: nn.Module, name: str) -> str:
    """The layer that a Linear adapts, or "": peft keeps what it adapts as `base_layer` and its own
    layers beside it, in modules of modules."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        above = model.get_submodule(".".join(parts[:depth]))
        if isinstance(getattr(above, "base_layer", None), nn.Module):
            return "" if parts[depth] == "base_layer" else ".".join(parts[:depth])
    return ""


def refuse_nonfinite(linears: Mapping[str, nn.Linear]) -> None:
    """UserError that names the first of the layers with NaN or Inf in its weight."""
    for name, linear in linears.items():
        weight = ops.values(linear.weight)
        rows, cols = weight.shape
        nonfinite = ops.ranges(ops.Shape(rows, cols, cols), weight)[2]
        if nonfinite:
            raise UserError(
                f"layer {name}: {nonfinite} weights are NaN or infinite; finite ones are wanted"
            )


def _notes(config: QuantizationConfig) -> list[str]:
    """Fields that had nothing to do."""
    if not config.quantizes:
        return [f"{config.name}: no layer is quantized"]
    uses_groups = config.bits == 4 or config.quant_type == "mixed_precision"
    if not uses_groups and config.group_size != 128:
        return [f"group_size={config.group_size} had nothing to do: INT8 has no groups"]
    return []
