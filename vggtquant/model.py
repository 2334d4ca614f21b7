# SPDX-License-Identifier: Apache-2.0
"""quantize_model: walk a model, choose its Linear layers, swap them in place, report each one."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from . import markup, ops, recognition
from .blocks import GRADIENTS
from .configs import QuantizationConfig, get_config
from .conv import Conv, weight_rows
from .dense import Swapped, convolutions_of, set_module, swap_convolutions
from .errors import UserError, check_type
from .linear import QuantizedLinear, settle
from .ops import float8
from .qtensor import QTensor, quantize
from .selection import (
    PLAIN_LINEAR,
    Choice,
    Patterns,
    Request,
    choose,
    linears_of,
    listed,
    make_plain,
    named,
    obstacles,
)
from .weights import architectures

Model = TypeVar("Model", bound=nn.Module)
Progress = Callable[[int, int, str], None]
"""Called with layers done, layers in all, and the name of the next one."""


@dataclass(frozen=True)
class LayerReport:
    """One layer of the model and what became of it."""

    name: str
    shape: tuple[int, int]
    """(out_features, in_features); of a convolution, those of the product that computes it."""
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
    kind: Literal["linear", "conv"] = "linear"


_HEADINGS = ("layer", "out x in", "bytes", "SQNR dB", "what")


@dataclass(frozen=True)
class ModelReport:
    """What quantize_model did: a row a layer, and sums over the quantized ones."""

    config: QuantizationConfig
    layers: list[LayerReport]
    notes: list[str]
    originals: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    """The modules that were swapped out, where keep_originals asked for them."""
    modules: list[recognition.ModuleReport] = field(default_factory=list)
    """Attentions and blocks, where the config asks for more than Linear layers."""
    swapped: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    """Those of them that were swapped out."""

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
            "modules": [asdict(module) for module in self.modules],
            "notes": list(self.notes),
        }

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """A row a layer, then a row a module, under _HEADINGS."""
        found = []
        for layer in self.layers:
            noise = "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"
            what = layer.scheme if layer.skipped is None else f"skipped: {layer.skipped}"
            shape = f"{layer.shape[0]} x {layer.shape[1]}"
            words = "; ".join(filter(None, (what, layer.note)))
            found.append((layer.name, shape, str(layer.bytes_after), noise, words))
        for module in self.modules:
            what = module.scheme if module.skipped is None else f"skipped: {module.skipped}"
            found.append((module.name, "", "", "", f"{module.kind}: {what}"))
        return found

    def _summary(self) -> str:
        return (
            f"{len(self.quantized)} of {len(self.layers)} layers quantized: "
            f"{self.bytes_before / 1e6:.2f} MB before, {self.bytes_after / 1e6:.2f} MB after"
        )

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines = [
            f"{name:{width}}  {shape:>13}  {size:>10}  {noise:>7}  {what}"
            for name, shape, size, noise, what in [_HEADINGS, *self._rows()]
        ]
        return "\n".join([*lines, self._summary(), *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        made = markup.table(_HEADINGS, self._rows(), self._summary())
        notes = "".join(f"<p>note: {html.escape(note)}</p>" for note in self.notes)
        return f"{made}{notes}"


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers as really held, each tensor once.

    >>> model_bytes(nn.Linear(3, 2))
    32
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    held = {id(t): t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]}
    return sum(held.values())


def quantize_model(
    model: Model,
    config: str | QuantizationConfig,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    filter_fn: Callable[[nn.Linear, str], bool] | None = None,
    configs: Mapping[str, str | QuantizationConfig | None] | None = None,
    keep_originals: bool = False,
    progress: Progress | None = None,
) -> tuple[Model, ModelReport]:
    """Swap a model's Linear layers for quantized ones, in place; with config.attention and
    config.fuse, attentions and blocks that hold some too (docs/performance.md).

    include, exclude: fnmatch patterns of layer names. filter_fn: called with a Linear and its name;
    False leaves it in float. configs: pattern to another config than `config`, or to None to leave
    those layers in float; the first that fits holds. keep_originals: keep the float layers in the
    report, for restore_model. Nothing is swapped unless every layer can be.

    Raises:
        UserError: no Linear in the model, a pattern that names none, NaN or infinite weights (the
            layer is named), an unknown scheme, a device that this build does not serve.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    >>> model, report = quantize_model(model, "INT8_Per_Channel_Symmetric")
    >>> [layer.name for layer in report.quantized]
    ['1']
    """
    architectures.check_module(model)
    config = get_config(config)
    linears, choice = select(model, config, include, exclude, filter_fn, configs)
    for name, chosen in choice.chosen.items():
        if chosen.activation_range != "dynamic":
            raise UserError(
                f"layer {name}: activation_range {chosen.activation_range!r} is found by "
                "calibration: vq.calibrate(model, …), or quantize --method"
            )
        if chosen.calibration != "rtn":
            raise UserError(
                f"layer {name}: calibration {chosen.calibration!r} wants vq.calibrate(model, …), "
                "or quantize --method"
            )
    layers: list[LayerReport] = []
    originals: dict[str, nn.Module] = {}
    wanted = len(choice.chosen)
    done = 0
    for name in list(linears):
        linear = linears.pop(name)  # the model's alone: once it is swapped, its floats are free
        if name in choice.skipped:
            layers.append(left_in_float(name, linear, choice.skipped[name]))
            continue
        if progress:
            progress(done, wanted, name)
        layers.append(_swap(model, name, linear, choice.chosen[name]))
        if keep_originals:
            originals[name] = linear
        done += 1
    rest = swap_rest(model, config, choice, include, exclude)
    layers += rest.convolutions
    if keep_originals:
        originals |= rest.originals
    settle(model)
    ops.trim()
    if progress:
        progress(done, wanted, "")
    notes = [*_notes(config), *rest.notes]
    return model, ModelReport(config, layers, notes, originals, rest.modules, rest.swapped)


@dataclass(frozen=True)
class Rest:
    """What was swapped beside Linear layers, and what is said of it."""

    convolutions: list[LayerReport]
    originals: dict[str, nn.Module]
    """Of the convolutions."""
    notes: list[str]
    modules: list[recognition.ModuleReport]
    swapped: dict[str, nn.Module]


def swap_rest(
    model: nn.Module,
    config: QuantizationConfig,
    choice: Choice,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Rest:
    """Swap convolutions, attentions and blocks as the configs ask, once the Linear layers are."""
    rows: list[LayerReport] = []
    originals: dict[str, nn.Module] = {}
    notes: list[str] = []
    if config.convolutions == "int8":
        rows, originals, notes = _swap_convolutions(model, include, exclude)
    modules, swapped = recognition.swap(model, dict.fromkeys(choice.chosen.values()))
    if config.kv_cache != "float" and not any(
        getattr(model.get_submodule(name), "codes_cache", False) for name in swapped
    ):
        nothing = "no swapped attention keeps keys and values between calls"
        notes = [*notes, f"kv_cache={config.kv_cache!r} had nothing to do: {nothing}"]
    if any(p.requires_grad for name in swapped for p in model.get_submodule(name).parameters()):
        notes = [*notes, GRADIENTS]
    return Rest(rows, originals, notes, modules, swapped)


def select(
    model: nn.Module,
    config: QuantizationConfig,
    include: Patterns = None,
    exclude: Patterns = None,
    filter_fn: Callable[[nn.Linear, str], bool] | None = None,
    configs: Mapping[str, str | QuantizationConfig | None] | None = None,
) -> tuple[dict[str, nn.Linear], Choice]:
    """The model's Linear layers by name, and each one's config or why it stays as it is.

    Moves the model to the config's device.

    Raises:
        UserError: as quantize_model does.
    """
    if config.device != "cpu":
        model.to(ops.check_served(config.device))
    linears = linears_of(model)
    if not linears:
        raise UserError(f"{type(model).__name__} has no nn.Linear layer to quantize")

    if filter_fn is not None and not callable(filter_fn):
        raise UserError(f"filter_fn is {filter_fn!r}; wanted a function of (layer, name)")

    def admits(name: str) -> bool:
        return filter_fn is None or filter_fn(linears[name], name)

    beside = convolutions_of(model) if config.convolutions == "int8" else ()
    request = Request(config, include, exclude, admits, configs or {}, beside)
    choice = choose(obstacles(model), request)
    make_plain(model)
    linears = linears_of(model)
    refuse_nonfinite({name: linears[name] for name in choice.chosen})
    for name, chosen in choice.chosen.items():
        if chosen.is_float8:
            float8.check(linears[name].weight.device)
    return linears, choice


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
    for name, module in reversed(report.swapped.items()):  # a block before the attention in it
        set_module(model, name, module)
    for name, module in report.originals.items():
        set_module(model, name, module)


def _swap(
    model: nn.Module, name: str, linear: nn.Linear, config: QuantizationConfig
) -> LayerReport:
    try:
        q = quantize(linear.weight.detach(), config.layer_spec(name))
    except UserError as error:
        raise UserError(f"layer {name}: {error}") from error
    layer, row = replacement(name, linear, q, linear.bias, config)
    set_module(model, name, layer)
    return row


def replacement(
    name: str,
    linear: nn.Linear,
    q: QTensor,
    bias: nn.Parameter | None,
    config: QuantizationConfig,
    inputs: ops.Inputs = ops.NO_INPUTS,
) -> tuple[QuantizedLinear, LayerReport]:
    """The layer that takes a Linear's place with the weight q and this bias, and its report."""
    layer = QuantizedLinear(q, bias, config, name, inputs)
    layer.train(linear.training)
    own = {key: value for key, value in vars(linear).items() if key not in PLAIN_LINEAR}
    vars(layer).update({key: value for key, value in own.items() if key not in vars(layer)})
    note = None
    if config.layer_spec(name).two_level and not q.spec.two_level:
        note = "float group scales: two-level ones would cost more than 5 % in squared error"
    sqnr_db, cosine = weight_quality(linear.weight.detach(), q)
    label = config.name
    if config.quant_type == "mixed_precision":
        label = f"{config.name}, {q.spec.label}"
    shape = (linear.out_features, linear.in_features)
    nbytes = _nbytes(linear), layer.nbytes
    return layer, LayerReport(name, shape, label, *nbytes, sqnr_db, cosine, note=note)


def _swap_convolutions(
    model: nn.Module, include: Patterns, exclude: Patterns
) -> tuple[list[LayerReport], dict[str, nn.Module], list[str]]:
    """Rows of the convolutions, what was swapped out, and notes on heads that stay in parts."""
    included, excluded = listed(include), listed(exclude)

    def left_out(name: str) -> str:
        if include is not None and not named(name, included):
            return "not included"
        return "excluded" if named(name, excluded) else ""

    swapped, originals = swap_convolutions(model, left_out)
    rows = [_convolution_row(row) for row in swapped]
    return rows, originals, sorted({row.note for row in swapped if row.note})


def _convolution_row(row: Swapped) -> LayerReport:
    name, conv, layer, before = row.name, row.conv, row.layer, _nbytes(row.conv)
    if layer is None:
        shape = conv.out_channels, conv.weight[0].numel()
        return LayerReport(name, shape, "float", before, before, skipped=row.skipped, kind="conv")
    quality = weight_quality(weight_rows(conv), layer.qtensor())
    shape, label = (layer.out_features, layer.in_features), "INT8, activations INT8"
    return LayerReport(
        name, shape, label, before, layer.nbytes, *quality, note=row.note, kind="conv"
    )


def weight_quality(weight: torch.Tensor, q: QTensor) -> tuple[float | None, float | None]:
    """SQNR in dB and cosine of a weight and what its codes stand for; None where there is none."""
    m = ops.moments(ops.values(weight), ops.values(q.dequantize()))
    # Near the largest float a code may stand for infinity, and sums are then none.
    ratio = m["rr"] / m["dd"] if m["dd"] else 0.0
    sqnr = 10 * math.log10(ratio) if 0 < ratio < math.inf else None
    norm = math.sqrt(m["rr"] * m["cc"])
    return sqnr, m["rc"] / norm if 0 < norm < math.inf else None


def _nbytes(linear: nn.Linear | Conv) -> int:
    tensors = [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
    return sum(t.numel() * t.element_size() for t in tensors)


def left_in_float(name: str, linear: nn.Linear, reason: str) -> LayerReport:
    """The row of a layer that stays as it is."""
    shape, nbytes = (linear.out_features, linear.in_features), _nbytes(linear)
    return LayerReport(name, shape, "float", nbytes, nbytes, skipped=reason)


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
