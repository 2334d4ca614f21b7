# SPDX-License-Identifier: Apache-2.0
"""Makes a report's rows, and the verdict on each, from a journal's head and records.

The type of a row is schema.Row. Pure functions: a run that was continued, or put together from
shards, gives the rows of one that was not. Each key is explained in docs/report.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from ..measure import scores, task
from ..measure.journal import is_over, kind
from ..measure.variants import Variant
from ..records import Alone, Broke, Facts, Pairing, Record, Scene, Skip
from ..schema import (
    Bytes,
    GpuMemory,
    KernelUse,
    Kind,
    Layer,
    Proof,
    Row,
    SceneInput,
    SceneScores,
    Status,
    Why,
)
from . import times


@dataclass(frozen=True)
class Doubt:
    """Why a row is not to be believed."""

    why: Why
    words: str


class Group:
    """The records of one variant, on these scenes."""

    def __init__(self, records: Sequence[Record], scenes: Sequence[SceneInput]) -> None:
        self.records = list(records)
        first = {record.scene: record for record in reversed(kind(records, Scene))}
        self.by_scene = {scene.name: first.get(scene.name) for scene in scenes}
        self.scenes = [scene for scene in self.by_scene.values() if scene is not None]
        self.facts = next(iter(kind(records, Facts)), None)
        # What decides how long a scene's forward takes.
        self.alike = len({(s.frames, s.height_px, s.width_px) for s in scenes}) == 1

    def watched(self) -> list[str]:
        """The names of the layers whose executions were counted."""
        return self.facts.watched if self.facts else []

    def layers(self) -> list[Layer]:
        """What became of each Linear."""
        return self.facts.layers if self.facts else []

    def gap(self) -> Doubt | None:
        """The first scene that gave nothing to be scored; None when all did."""
        for name, scene in self.by_scene.items():
            if scene is None:
                return Doubt(Why.NO_RESULTS, Why.NO_RESULTS.text(scene=name))
            for output, count in scene.nonfinite.items():
                words = Why.NONFINITE.text(output=output, count=count, scene=name)
                return Doubt(Why.NONFINITE, words)
        return None

    def calls(self) -> dict[str, int]:
        """Executions of each watched layer in the passes that were scored, all scenes together."""
        counts = zip(*(scene.calls for scene in self.scenes), strict=True)
        return dict(zip(self.watched(), map(sum, counts), strict=False))

    def ran(self, scene: str) -> set[str]:
        """The watched layers that were executed in the pass that was scored on a scene."""
        record = self.by_scene.get(scene)
        calls = record.calls if record else []
        return {name for name, count in zip(self.watched(), calls, strict=False) if count}

    def kernels(self) -> dict[str, str]:
        """The kernel that each layer's product ran on, by the layer's name."""
        watched = self.watched()
        return {
            watched[number]: kernel
            for scene in self.scenes
            for kernel, numbers in scene.kernels.items()
            for number in numbers
        }

    def milliseconds(self) -> list[list[float]]:
        """Of the passes of each scene."""
        return [[1e3 * s for s in scene.seconds] for scene in self.scenes]

    def usual(self) -> dict[str, float]:
        """The median milliseconds on each scene."""
        return {scene.scene: 1e3 * statistics.median(scene.seconds) for scene in self.scenes}


def groups(
    variants: Sequence[Variant], records: Sequence[Record], scenes: Sequence[SceneInput]
) -> dict[str, Group]:
    """The records of each variant by its name."""
    found: dict[str, list[Record]] = {variant.name: [] for variant in variants}
    for record in records:
        found.setdefault(record.scheme, []).append(record)
    return {name: Group(own, scenes) for name, own in found.items()}


def rows(
    variants: Sequence[Variant], records: Sequence[Record], scenes: Sequence[SceneInput]
) -> list[Row]:
    """The rows of all variants that are over, FP32 first."""
    found = groups(variants, records, scenes)
    baseline = found[variants[0].name]
    return [
        _row(variant, found[variant.name], baseline)
        for variant in variants
        if is_over(found[variant.name].records)
    ]


def empty(variant: Variant) -> Row:
    """A row without anything measured."""
    return Row(name=variant.name, kind=variant.kind, config=variant.config)


def _row(variant: Variant, group: Group, baseline: Group) -> Row:
    row = empty(variant)
    for skipped in kind(group.records, Skip):
        return structs.replace(row, status=Status.SKIPPED, why=skipped.why, reason=skipped.reason)
    if group.facts is not None:
        row.prepare_s, row.layers = group.facts.prepare_s, group.layers()
        row.notes = list(group.facts.notes)
        row.bytes = _bytes(group.facts, baseline.facts or group.facts)
    for broken in kind(group.records, Broke):
        return _failed(row, Doubt(Why.RAISED, broken.reason))
    if variant.packed:
        row.proof = _proof(group, baseline)
        row.layers = _layers(group)
    if gap := group.gap():
        return _failed(row, gap)
    _fill(row, variant, group, baseline)
    doubt = _doubt(row, variant, group)
    return _failed(row, doubt) if doubt else row


def _failed(row: Row, doubt: Doubt) -> Row:
    return structs.replace(row, status=Status.FAILED, why=doubt.why, reason=doubt.words)


def _fill(row: Row, variant: Variant, group: Group, baseline: Group) -> None:
    """Puts times and scores into a row: each scene's, and over all scenes."""
    scenes = group.scenes
    pairings = kind(group.records, Pairing)
    row.time = times.of_row(
        group.milliseconds(),
        baseline.usual(),
        # Of shards, each has its own; a run that was killed after them has them twice.
        [pair for pairing in pairings for pair in pairing.pairs],
        alike=group.alike,
        kind=row.kind,
        once=variant.once,
    )
    row.process_peak_bytes = max(scene.peak_bytes for scene in scenes)
    peaks = [scene.gpu_peak for scene in scenes if scene.gpu_peak is not None]
    if peaks:
        row.gpu_peak = GpuMemory(
            max(peak.allocated_bytes for peak in peaks), max(peak.reserved_bytes for peak in peaks)
        )
    for alone in kind(group.records, Alone):
        row.isolated = row.isolated or alone.found
        row.notes += [alone.reason] if alone.reason else []
    repeats = [scene.repeats for scene in scenes]
    row.outputs_repeat_bit_for_bit = None if None in repeats else all(repeats)
    row.outputs_equal_baseline = all(scene.equal for scene in scenes)
    row.metrics = scores.mean([scene.metrics for scene in scenes])
    row.reasons = {k: v for scene in scenes for k, v in scene.reasons.items()}
    row.task, row.calibration = task.over_scenes(scenes)
    row.error = scores.error_score(row.metrics) if row.kind is not Kind.BASELINE else 0.0
    row.scenes = [
        SceneScores(
            scene=scene.scene,
            metrics=scene.metrics,
            reasons=scene.reasons,
            task=scene.task,
            pose_errors=scene.pose_errors,
            calibration=scene.calibration,
            forward_ms_runs=[1e3 * seconds for seconds in scene.seconds],
        )
        for scene in scenes
    ]


def _bytes(facts: Facts, baseline: Facts) -> Bytes:
    """Bytes of parameters and buffers as held by the model that ran, and the ratios from them."""
    before, after = facts.layers_before, facts.layers_after
    return Bytes(
        model_bytes=facts.model_bytes,
        compression_ratio_model=baseline.model_bytes / facts.model_bytes,
        quantized_layers_bytes_before=before,
        quantized_layers_bytes_after=after,
        compression_ratio_quantized_layers=before / after if before and after else None,
        bits_per_weight=facts.bits_per_weight,
    )


# ---- the proof that quantized layers made the outputs --------------------------------------------


def _proof(group: Group, baseline: Group) -> Proof:
    """What shows that the quantized layers, and no float ones, made these outputs."""
    calls = group.calls()
    reached = {name for name, count in baseline.calls().items() if count}
    ran = [name for name, count in calls.items() if count]
    lost = set().union(*(baseline.ran(name) - group.ran(name) for name in group.by_scene))
    kernels = group.kernels()
    return Proof(
        layers_swapped=len(calls),
        layers_executed=len(ran),
        layer_calls=sum(calls.values()),
        layers_not_executed=[n for n in calls if n in lost],
        layers_not_exercised=[n for n in calls if n not in reached],
        layers_with_float_weights=sorted(
            {name for scene in group.scenes for name in scene.float_weights}
        ),
        layers_without_kernel=[n for n in ran if n not in kernels],
        kernels=_table(kernels, calls),
        packed_bytes_touched=sum(
            layer.bytes_after for layer in group.layers() if layer.name in kernels
        ),
        scenes_equal_baseline=[scene.scene for scene in group.scenes if scene.equal],
    )


def _table(kernels: Mapping[str, str], calls: Mapping[str, int]) -> list[KernelUse]:
    """Layers and calls of each kernel."""
    found: dict[str, KernelUse] = {}
    for name, kernel in kernels.items():
        entry = found.setdefault(kernel, KernelUse(kernel=kernel, layers=0, calls=0))
        entry.layers += 1
        entry.calls += calls[name]
    return [found[kernel] for kernel in sorted(found)]


def _layers(group: Group) -> list[Layer]:
    """What became of each Linear, with its calls and its kernel."""
    calls, kernels = group.calls(), group.kernels()
    return [
        structs.replace(layer, calls=calls.get(layer.name), kernel=kernels.get(layer.name))
        for layer in group.layers()
    ]


def _doubt(row: Row, variant: Variant, group: Group) -> Doubt | None:
    """Why these results are not those of what the row names, or None when they are."""
    same = [scene.scene for scene in group.scenes if scene.equal]
    proof = row.proof
    if proof is None:
        what = variant.sure_to_differ
        if not what or not same:
            return None
        words = Why.CHANGED_NOTHING.text(scenes=", ".join(same[:3]), what=what)
        return Doubt(Why.CHANGED_NOTHING, words)
    if not proof.layers_swapped:
        return Doubt(Why.NOT_SWAPPED, Why.NOT_SWAPPED.text())
    found = (
        (Why.FLOAT_WEIGHTS, proof.layers_with_float_weights),
        (Why.NOT_EXECUTED, proof.layers_not_executed),
        (Why.SAME_BITS, same if row.kind is not Kind.BASELINE else []),
        (Why.NO_KERNEL, proof.layers_without_kernel),
    )
    for why, names in found:
        if names:
            first = ", ".join(names[:3])
            words = why.text(count=len(names), names=first, scenes=first)
            return Doubt(why, words)
    return None
