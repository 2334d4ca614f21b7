# SPDX-License-Identifier: Apache-2.0
"""calibrate: quantize a model with the help of pictures, segment by segment, layer by layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import model as walk
from .. import ops
from ..configs import QuantizationConfig, QuantizationSpec, get_config
from ..errors import UserError
from ..model import LayerReport, Model, ModelReport, Progress
from ..qtensor import QTensor, quantize
from ..selection import Patterns
from . import convolutions, folds, hadamard
from . import data as inputs
from .capture import Arguments, Replay, Segment, Store, segments
from .folds import Smoothing
from .methods import Method, corrected_bias, get_method
from .observers import HIGHEST, Observer, special_rows
from .statistics import Ranges, Statistics

_HELD_OUT = 0.2
"""Of the samples, at least, which show which of several ways to code a layer is best."""


def calibrate(
    model: Model,
    data: inputs.Data = None,
    *,
    config: str | QuantizationConfig = "INT4_Group_128",
    method: str = "gptq",
    samples: int | None = None,
    seed: int = 0,
    size: int = 112,
    include: Patterns = None,
    exclude: Patterns = None,
    configs: Mapping[str, str | QuantizationConfig | None] | None = None,
    keep_originals: bool = False,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    unseen: Iterable[torch.Tensor] = (),
) -> tuple[Model, ModelReport]:
    """Swap a model's Linear layers for quantized ones whose codes were chosen with pictures.

    data: pictures in [0, 1], a tensor (S, 3, H, W) or (B, S, 3, H, W), several of them, a folder,
    or None for rendered scenes of size x size, drawn by seed. method: a name of METHODS. samples:
    pictures to use, by default the config's calibration_samples. include, exclude, configs,
    keep_originals and progress as in quantize_model. folder: where activations are kept as
    memory-mapped files and finished segments stay, so that a killed calibration goes on there;
    None keeps activations in memory. unseen: pictures of an evaluation, which must not be among the
    data. Layers that no sample reaches are rounded to nearest, with
    dynamic activations. A config's attention, fuse and convolutions are served as quantize_model
    serves them, after all Linear layers.

    The result has the same files, kernels and speed as quantize_model's. Without keep_originals
    float layers are freed as they are swapped, and a model is half swapped after an error.

    Raises:
        UserError: whatever quantize_model refuses, an unknown method, no picture, NaN or infinite
            pictures or activations, a folder that belongs to another calibration, data that hold
            an unseen picture.

    >>> import vggtquant as vq
    >>> from vggtquant import tiny
    >>> model, report = vq.calibrate(tiny.build(), torch.rand(2, 3, 28, 28), method="gptq")
    """
    config = get_config(config)
    how = get_method(method)
    linears, choice = walk.select(model, config, include, exclude, configs=configs)
    if eight := [n for n, c in choice.chosen.items() if c.is_float8]:
        raise UserError(
            f"layer {eight[0]}: FP8 rounds to nearest, without calibration; quantize_model serves "
            "it"
        )
    order = list(linears)
    left = {n: walk.left_in_float(n, linears[n], why) for n, why in choice.skipped.items()}
    linears.clear()  # once they are swapped, their floats are free
    off = {p.device.type for p in model.parameters()} - {"cpu"}
    if off:
        raise UserError(f"the model is on {', '.join(sorted(off))}; calibrate on the CPU")
    pictures = config.calibration_samples if samples is None else samples
    static = any(c.activation_range != "dynamic" for c in choice.chosen.values())
    looks = how.looks or static
    shown = inputs.load(data, pictures, seed, size) if looks else inputs.NOTHING
    inputs.check_unseen(shown, unseen)
    training = model.training
    model.eval()
    edits = folds.Edits(model, keep_originals)
    try:
        job = _Job(model, config, how, edits, shown, choice.chosen)
        if folder is not None:
            job.keep_in(Path(folder), {"method": method, "seed": seed})
        rows = job.run(progress)
    except BaseException:
        edits.undo()
        raise
    finally:
        model.train(training)
    layers = [rows.get(name) or left[name] for name in order]
    seen = f" with {shown.pictures} pictures: {shown.source}" if looks else ""
    notes = [f"method {method} ({how.words}){seen}", *job.notes]
    originals = dict(edits.originals)
    rest = walk.swap_rest(model, config, choice, include, exclude)
    layers += rest.convolutions
    if rest.convolutions and config.activation_range != "dynamic":
        missed = convolutions.measure(model, shown.batches, config.activation_range)
        if missed:
            notes.append(f"no sample reaches these, whose range is dynamic: {', '.join(missed)}")
    if keep_originals:
        originals |= rest.originals
    ops.trim()
    notes += rest.notes
    return model, ModelReport(config, layers, notes, originals, rest.modules, rest.swapped)


@dataclass
class _Coded:
    """A layer's codes and bias, and what is said of them."""

    q: QTensor
    bias: torch.Tensor | None
    note: str | None
    inputs: ops.Inputs = ops.NO_INPUTS


class _Job:
    """One calibration: its plan, its store, and what became of each layer."""

    def __init__(
        self,
        model: nn.Module,
        config: QuantizationConfig,
        how: Method,
        edits: folds.Edits,
        shown: inputs.Calibration,
        wanted: Mapping[str, QuantizationConfig],
    ) -> None:
        self.model, self.config, self.how, self.edits = model, config, how, edits
        self.shown, self.wanted = shown, wanted
        self.identity = _identity(model)
        groups = any(c.layer_spec(name).granularity == "per_group" for name, c in wanted.items())
        self.group = config.group_size if groups else None
        self.prefix = int(getattr(getattr(model, "aggregator", None), "patch_start_idx", 0))
        self.looks = bool(shown.batches)
        if not self.looks:
            for branch in list(folds.branches(model)):
                self._fold(branch)
        self.plan = segments(model, sorted(wanted), shown.batches[0]) if self.looks else []
        self.online: dict[str, Smoothing] = {}
        """Smoothing that no fold takes: the layer's kernel does it."""
        self.store = Store(None)
        self.notes: list[str] = []

    def keep_in(self, folder: Path, settings: dict[str, Any]) -> None:
        """Takes a folder for the store; UserError for another calibration's."""
        about = settings | {
            "config": self.config.to_dict(),
            "layers": {name: config.to_dict() for name, config in sorted(self.wanted.items())},
            "model": self.identity,
            "pictures": self.shown.sha256,
        }
        path = folder / "calibration.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                there = json.loads(path.read_text())
                differ = [key for key in about if there.get(key) != about[key]]
                if differ:
                    raise UserError(
                        f"{folder} belongs to a calibration with another {differ[0]}; "
                        "give another folder, or delete this one"
                    )
            path.write_text(json.dumps(about, indent=1))
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder} cannot be used for a calibration: {error}") from error
        self.store = Store(folder)

    def _fold(self, branch: folds.Branch) -> None:
        if self.how.folds:
            folds.fold_branch(self.edits, branch, self.group)
        if self.how.rotates:
            hadamard.rotate_values(self.edits, branch)

    def run(self, progress: Progress | None) -> dict[str, LayerReport]:
        """Codes all layers; the reports of those that were wanted, by name."""
        replay = Replay(self.model, self.plan, self.shown.batches, self.store)
        rows: dict[str, LayerReport] = {}
        reached = [name for segment in self.plan for name in segment.layers]

        def swap(name: str, coded: _Coded) -> None:
            if progress:
                progress(len(rows), len(self.wanted), name)
            rows[name] = self._swap(name, coded)

        for index, segment in enumerate(self.plan):
            key = f"segment{index:04d}.done"
            for branch in self._branches(segment):  # so only one segment's weights are folded
                self._fold(branch)
            if self.store.has(key):
                done = self.store.get(key)
                self._smooth(segment, {n: Smoothing(*f) for n, f in done["factors"].items()})
                for name, held in done["layers"].items():
                    swap(name, self._restored(name, held))
                continue
            done = self._segment(replay, index, segment, swap)
            self.store.put(key, done)
        missed = sorted(set(self.wanted) - set(reached))
        note = "round to nearest: no sample reaches it" if self.looks else None
        for name in missed:
            swap(name, _Coded(self._nearest(name), self._float(name).bias, note))
        if missed and self.looks:
            self.notes.append(f"no sample reaches these, rounded to nearest: {', '.join(missed)}")
        if progress:
            progress(len(rows), len(self.wanted), "")
        return rows

    def _segment(self, replay: Replay, index: int, segment: Segment, swap: Any) -> dict[str, Any]:
        """Codes the layers of a segment and stores its outputs in both models."""
        count = len(self.shown.batches)
        floats = replay.arguments(index, "float")
        factors = self._factors(replay, index, segment, floats)
        self._smooth(segment, factors)
        for sample, arguments in enumerate(floats):
            found, out = replay.inputs_and_outputs(index, arguments, segment.layers)
            self.store.put(f"inputs.{sample:05d}", found)
            self.store.put(replay.key(index, "float", sample), out)
        quantized = replay.arguments(index, "quantized")
        done: dict[str, Any] = {}
        for name in segment.layers:
            seen = self._observe(replay, index, quantized, name)
            coded = self._code(name, seen)
            swap(name, coded)
            done[name] = _held(coded)
        for sample in range(count):
            self.store.drop(f"inputs.{sample:05d}")
            out = replay.outputs(index, quantized[sample], sample)
            self.store.put(replay.key(index, "quantized", sample), out)
        replay.forget()
        return {"layers": done, "factors": {n: tuple(f) for n, f in factors.items()}}

    def _observe(self, replay: Replay, index: int, quantized: list[Arguments], name: str) -> _Seen:
        """The layer's inputs in both models, all samples."""
        k, count = self._float(name).in_features, len(quantized)
        seen = _Seen(Statistics(k), Statistics(k), Observer())
        apart = count - max(1, round(_HELD_OUT * count))  # the first sample of those held out
        for sample in range(count):
            x = replay.inputs(index, quantized[sample], [name], sample)[name]
            y = self.store.get(f"inputs.{sample:05d}")[name]
            special = special_rows(len(x), self.shown.batches[sample], self.prefix)
            if name in self.online:
                x, y = (_smoothed(rows, self.online[name]) for rows in (x, y))
            held_out = len(self.how.codes) > 1 and sample >= apart
            try:
                (seen.held_out if held_out else seen.fit).add(x, y)
            except UserError as error:
                raise UserError(f"layer {name}, sample {sample}: {error}") from error
            if self.wanted[name].activation_range != "dynamic":
                seen.range.add(x, special)
        return seen

    def _branches(self, segment: Segment) -> list[folds.Branch]:
        """The residual branches of the segment's blocks."""
        return [b for b in folds.branches(self.model) if {b.first, b.last} & set(segment.layers)]

    def _factors(
        self, replay: Replay, index: int, segment: Segment, floats: list[Arguments]
    ) -> dict[str, Smoothing]:
        """The method's factors of the layers that can be scaled, by what the float model shows."""
        scaling = self.how.scaling
        if scaling is None:
            return {}
        if scaling.coded_inputs:
            names = [n for n in segment.layers if self.wanted[n].quantize_activations]
        else:
            folded = ((b.first, b.last if b.attention else "") for b in self._branches(segment))
            names = [n for pair in folded for n in pair if n in segment.layers]
        if not names:
            return {}
        widths = {name: self._float(name).in_features for name in names}
        ranges = {name: Ranges(k) for name, k in widths.items()}
        moments = {name: Statistics(k if scaling.hessian else 0) for name, k in widths.items()}
        for arguments in floats:
            for name, x in replay.inputs(index, arguments, names).items():
                ranges[name].add(x)
                if scaling.hessian:
                    moments[name].add(x, x)
        return {
            name: scaling.factors(
                ranges[name], moments[name], self._float(name).weight, self._spec(name)
            )
            for name in names
        }

    def _smooth(self, segment: Segment, factors: dict[str, Smoothing]) -> None:
        """Through a fold where the layer has one; else its kernel does it as it reads its input."""
        folded = set()
        for branch in self._branches(segment):
            if branch.first in factors:
                folds.smooth_inputs(self.edits, branch, factors[branch.first])
                folded.add(branch.first)
            if branch.attention and branch.last in factors:
                folds.smooth_values(self.edits, branch, factors[branch.last])
                folded.add(branch.last)
        for name in factors.keys() - folded:
            by = factors[name]
            if self._float(name).bias is None:  # nothing takes the shift up
                by = by._replace(shift=torch.zeros_like(by.shift))
            self.online[name] = by

    def _float(self, name: str) -> nn.Linear:
        layer = self.model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        return layer

    def _spec(self, name: str) -> QuantizationSpec:
        return self.wanted[name].layer_spec(name)

    def _nearest(self, name: str) -> QTensor:
        return quantize(self._float(name).weight.detach(), self._spec(name))

    def _shown(self, name: str) -> tuple[nn.Linear, ops.Inputs]:
        """The float layer whose weight is coded, and how its input is changed before the product"""
        layer = self._float(name)
        if name not in self.online:
            return layer, ops.NO_INPUTS
        smoothed, shift = folds.smooth_linear(layer, self.online[name])
        scale = self.online[name].scale
        bias = (-shift / scale.double()).float() if bool(shift.any()) else None
        return smoothed, ops.Inputs(scale.reciprocal(), bias)

    def _code(self, name: str, seen: _Seen) -> _Coded:
        """The method's codes, or the nearest ones where these have the smaller error."""
        layer, how_read = self._shown(name)
        config, s = self.wanted[name], seen.fit
        weight, bias = layer.weight.detach().float(), layer.bias
        nearest = quantize(layer.weight.detach(), self._spec(name))
        centred = self.how.bias and bias is not None
        chosen, note = next(iter(self.how.codes)), None
        if len(self.how.codes) > 1 and seen.held_out.count and s.count:
            errors = {
                way: seen.held_out.error(
                    weight, code(weight, s, self._spec(name)).dequantize().float(), centred
                )
                for way, code in self.how.codes.items()
            }
            chosen = min(errors, key=errors.__getitem__)
        s.merge(seen.held_out)
        q = self.how.codes[chosen](weight, s, self._spec(name))
        values = q.dequantize().float()
        error, plain = (s.error(weight, v, centred) for v in (values, nearest.dequantize().float()))
        if len(self.how.codes) > 1:
            note = f"{chosen}: the least error on held-out pictures"
        if error > plain:
            q, note = nearest, "round to nearest: the method is no better"
            values = q.dequantize().float()
            self.notes.append(f"{name} is rounded to nearest: the method is no better")
        if self.how.bias and bias is not None:
            bias = nn.Parameter(
                corrected_bias(bias.detach(), weight, values, s), bias.requires_grad
            )
        if config.activation_range != "dynamic":
            highest = HIGHEST[config.layer_activation_bits(name)]
            how_read = how_read._replace(scale=seen.range.scale(config.activation_range, highest))
        return _Coded(q, bias, note, how_read)

    def _swap(self, name: str, coded: _Coded) -> LayerReport:
        before, _ = self._shown(name)
        bias = coded.bias
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, before.weight.requires_grad)
        layer, row = walk.replacement(name, before, coded.q, bias, self.wanted[name], coded.inputs)
        self.edits.set(name, layer)
        return replace(row, note="; ".join(filter(None, (row.note, coded.note))) or None)

    def _restored(self, name: str, held: dict[str, Any]) -> _Coded:
        spec = replace(self._spec(name), two_level=held["factor"] is not None)
        parts = [None if held[k] is None else held[k].numpy() for k in _PARTS]
        shape = tuple(self._float(name).weight.shape)
        q = QTensor(spec, shape, held["dtype"], True, *parts)
        return _Coded(q, held["bias"], held["note"], ops.Inputs(*held["inputs"]))


@dataclass
class _Seen:
    """What is known of one layer's inputs."""

    fit: Statistics
    held_out: Statistics
    """Of samples that do not choose codes, where a method has several ways to."""
    range: Observer


def _smoothed(x: torch.Tensor, by: Smoothing) -> torch.Tensor:
    return (x - by.shift) / by.scale


_PARTS = ("packed", "scale", "factor", "zero")


def _held(coded: _Coded) -> dict[str, Any]:
    """What a store keeps of a layer."""
    q = coded.q
    parts = (q.packed, q.stored_scale, q.factor, q.stored_zero)
    tensors = {
        name: None if part is None else torch.from_numpy(part)
        for name, part in zip(_PARTS, parts, strict=True)
    }
    bias = None if coded.bias is None else coded.bias.detach()
    return {
        **tensors,
        "dtype": q.dtype,
        "bias": bias,
        "note": coded.note,
        "inputs": tuple(coded.inputs),
    }


def _identity(model: nn.Module) -> str:
    """SHA-256 of names, shapes and a few values of every tensor; all would be the whole file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // 64)].contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
