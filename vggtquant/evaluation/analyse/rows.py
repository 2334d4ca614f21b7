# SPDX-License-Identifier: Apache-2.0
"""Makes a report's rows, and the verdict on each, from a journal's head and records.

Pure functions: a run that was continued, or put together from shards, gives the rows of one that
was not. Each key is explained in docs/report.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import vggtquant as vq

from ..measure import pictures, scores, sensitivity, task, variants
from ..measure.journal import Record, is_over
from ..measure.scores import Row
from ..measure.variants import Variant
from . import report

# What decides how long a scene's forward takes.
_SIZE = ("frames", "height_px", "width_px")
# What a report shows of a scene's record beside its times.
_SCENE_KEYS = ("scene", "metrics", "reasons", "task", "pose_errors", "calibration")


def document(head: Record, records: Sequence[Record], status: str) -> report.Document:
    """The whole result, as far as there are rows."""
    groups = _groups(head, records)
    found = rows(head, records)
    return report.document(
        status=status,
        environment=head["environment"],
        model=_model(head, groups[variants.BASELINE]),
        data=head["data"],
        settings=head["settings"],
        forecast=head["forecast"],
        rows=found,
        recheck=recheck(found),
        pictures=_pictures(head, groups, found),
        sensitivity=sensitivity.block(records),
    )


def _pictures(head: Record, groups: Mapping[str, _Group], found: Sequence[Row]) -> Row | None:
    """Those of the first scene, of all rows that can be believed."""
    scene = head["data"]["scenes"][0]["name"]
    names = [row["name"] for row in found if row["status"] == "ok"]
    records = {name: groups[name].by_scene[scene] or {} for name in names}
    return pictures.block(scene, {name: r.get("pictures") for name, r in records.items()})


def rows(head: Record, records: Sequence[Record]) -> list[Row]:
    """The rows of all variants that are over, FP32 first."""
    groups = _groups(head, records)
    return [
        _row(variant, groups[variant.name], groups[variants.BASELINE])
        for variant in variants.planned(head["settings"]["schemes"])
        if variant.name in groups and is_over(groups[variant.name].records)
    ]


def _groups(head: Record, records: Sequence[Record]) -> dict[str, _Group]:
    """The records of each variant by its name."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["scheme"], []).append(record)
    scenes = [scene["name"] for scene in head["data"]["scenes"]]
    sizes = {tuple(scene[k] for k in _SIZE) for scene in head["data"]["scenes"]}
    return {name: _Group(own, scenes, len(sizes) == 1) for name, own in found.items()}


def skipped_row(config: vq.QuantizationConfig, reason: str) -> Row:
    """The row of a scheme that was not run, with the reason."""
    return _empty(variants.of_config(config)) | {"status": "skipped", "reason": reason}


class _Group:
    """The records of one variant; `alike`: all scenes have as many pictures of the same size."""

    def __init__(self, records: Sequence[Record], scenes: Sequence[str], alike: bool) -> None:
        self.records, self.alike = records, alike
        first = {record["scene"]: record for record in reversed(self.all("scene"))}
        self.by_scene = {name: first.get(name) for name in scenes}
        self.scenes = [scene for scene in self.by_scene.values() if scene is not None]
        self.facts = next(iter(self.all("scheme")), None)

    def all(self, kind: str) -> list[Record]:
        return [record for record in self.records if record["kind"] == kind]

    def gap(self) -> str | None:
        """The first scene that gave nothing to be scored, in words; None when all did."""
        for name, scene in self.by_scene.items():
            if scene is None:
                return f"there are no results of scene {name}"
            for output, count in scene["nonfinite"].items():
                return f"{output} holds {count} NaN or Inf on {name}"
        return None

    def calls(self) -> dict[str, int]:
        """Executions of each watched layer in the passes that were scored, all scenes together."""
        counts = zip(*(scene["calls"] for scene in self.scenes), strict=True)
        return dict(zip(self.watched(), map(sum, counts), strict=False))

    def ran(self, scene: str) -> set[str]:
        """The watched layers that were executed in the pass that was scored on a scene."""
        calls = (self.by_scene.get(scene) or {}).get("calls", ())
        return {name for name, count in zip(self.watched(), calls, strict=False) if count}

    def watched(self) -> list[str]:
        """The names of the layers whose executions were counted."""
        return self.facts["watched"] if self.facts else []

    def milliseconds(self) -> list[list[float]]:
        """Of the passes of each scene."""
        return [[1e3 * s for s in scene["seconds"]] for scene in self.scenes]


def _empty(variant: Variant) -> Row:
    """A row with every key that a row has, so that all rows have the same."""
    return {
        "name": variant.name,
        "kind": variant.kind,
        "status": "ok",
        "reason": None,
        "config": variant.config.to_dict(),
        "error": None,
        "bytes": None,
        "time": None,
        "energy_joules": None,
        "isolated": None,
        "prepare_s": None,
        "process_peak_bytes": None,
        "outputs_repeat_bit_for_bit": None,
        "outputs_equal_baseline": None,
        "metrics": {},
        "reasons": {},
        "task": dict.fromkeys(("fp32", "truth", "consistency")),
        "calibration": {},
        "proof": None,
        "notes": [],
        "layers": [],
        "scenes": [],
    }


def _row(variant: Variant, group: _Group, baseline: _Group) -> Row:
    row = _empty(variant)
    if skipped := group.all("skip"):
        return row | {"status": "skipped", "reason": skipped[0]["reason"]}
    if group.facts is not None:
        row |= {key: group.facts[key] for key in ("prepare_s", "layers")}
        row["notes"] = list(group.facts["notes"])
        row["bytes"] = _bytes(group.facts, baseline.facts or group.facts)
    if broken := group.all("error"):
        return _fail(row, broken[0]["reason"])
    if variant.kind == "quantized":
        row["proof"] = _proof(group, baseline)
        row["layers"] = _layers(row["layers"], group)
    if gap := group.gap():
        return _fail(row, gap)
    _fill(row, group, baseline)
    doubt = _doubt(row, variant, group)
    return _fail(row, doubt) if doubt else row


def _fail(row: Row, reason: str) -> Row:
    return row | {"status": "failed", "reason": reason}


def _fill(row: Row, group: _Group, baseline: _Group) -> None:
    """Puts times and scores into a row: each scene's, and over all scenes."""
    scenes = group.scenes
    row["time"] = _time(group, baseline, alone=row["name"] in variants.NOISE_FLOOR)
    row["process_peak_bytes"] = max(scene["peak_bytes"] for scene in scenes)
    joules = [scene["joules"] for scene in scenes]
    row["energy_joules"] = None if None in joules else statistics.fmean(joules)
    for isolated in group.all("isolated"):
        row["isolated"] = row["isolated"] or isolated["found"]
        row["notes"] += [isolated["reason"]] if isolated["reason"] else []
    repeats = [scene["repeats"] for scene in scenes]
    row["outputs_repeat_bit_for_bit"] = None if None in repeats else all(repeats)
    row["outputs_equal_baseline"] = all(scene["equal"] for scene in scenes)
    row["metrics"] = scores.mean_scores([scene["metrics"] for scene in scenes])
    row["reasons"] = {k: v for scene in scenes for k, v in scene["reasons"].items()}
    row |= task.over_scenes(scenes)
    row["error"] = scores.error_score(row["metrics"]) if row["kind"] != "baseline" else 0.0
    row["scenes"] = [
        {key: scene[key] for key in _SCENE_KEYS}
        | {"forward_ms_runs": [1e3 * seconds for seconds in scene["seconds"]]}
        for scene in scenes
    ]


def _time(group: _Group, baseline: _Group, *, alone: bool) -> Row:
    """Milliseconds a forward, FP32's in the same minutes, and what that makes a speedup.

    alone: without any FP32 beside it, so that there is no speedup.
    """
    own = group.milliseconds()
    low, median, high = _typical(group)
    beside = {when: found for when in ("before", "after") if (found := _beside(group, when))}
    sides = {when: median * _quarters(found)[1] for when, found in beside.items()}
    nearby = statistics.fmean(sides.values()) if sides else _typical(baseline)[1]
    least = most = None
    if beside and low is not None and high is not None:
        least = median / high * min(_quarters(found)[0] for found in beside.values())
        most = median / low * max(_quarters(found)[2] for found in beside.values())
    return {
        "forward_ms_median": median,
        "forward_ms_iqr": None if low is None or high is None else high - low,
        "forward_ms_min": statistics.fmean(map(min, own)),
        "forward_ms_max": statistics.fmean(map(max, own)),
        "fp32_ms_before": sides.get("before"),
        "fp32_ms_after": sides.get("after"),
        "fp32_ms_nearby": None if group is baseline or alone else nearby,
        "speedup": 1.0 if group is baseline else None if alone else nearby / median,
        "speedup_low": least,
        "speedup_high": most,
    }


def _typical(group: _Group) -> tuple[float | None, float, float | None]:
    """Quartiles and median of a row's times: of all forwards where all scenes are of one size.

    Else of each scene, then the mean over scenes. No quartiles of a single forward.
    """
    own = group.milliseconds()
    if group.alike:
        own = [[ms for scene in own for ms in scene]]
    quarters = [_quarters(scene) for scene in own]
    low, median, high = (statistics.fmean(quarter[i] for quarter in quarters) for i in range(3))
    return (low, median, high) if min(map(len, own)) > 1 else (None, median, None)


def _beside(group: _Group, when: str) -> list[float]:
    """FP32's times before or after a row, each over the row's own on a scene of that size."""
    typical = _typical(group)[1] / 1e3
    own = {scene["scene"]: statistics.median(scene["seconds"]) for scene in group.scenes}
    return [
        seconds / (typical if group.alike else own[scene])
        for record in group.all("beside")
        if record["when"] == when
        for scene, seconds in record["seconds"]
    ]


def _quarters(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile, interpolated linearly."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def _bytes(facts: Record, baseline: Record) -> Row:
    """Bytes of parameters and buffers as held by the model that ran, and the ratios from them."""
    before, after = facts["layers_before"], facts["layers_after"]
    return {
        "model_bytes": facts["model_bytes"],
        "compression_ratio_model": baseline["model_bytes"] / facts["model_bytes"],
        "quantized_layers_bytes_before": before,
        "quantized_layers_bytes_after": after,
        "compression_ratio_quantized_layers": before / after if after else None,
        "bits_per_weight": facts["bits_per_weight"],
    }


# ---- the proof that quantized layers made the outputs --------------------------------------------


def _proof(group: _Group, baseline: _Group) -> Row:
    """What shows that the quantized layers, and no float ones, made these outputs."""
    calls = group.calls()
    reached = {name for name, count in baseline.calls().items() if count}
    ran = [name for name, count in calls.items() if count]
    lost = set().union(*(baseline.ran(name) - group.ran(name) for name in group.by_scene))
    kernels = _kernels(group)
    layers = group.facts["layers"] if group.facts else []
    return {
        "layers_swapped": len(calls),
        "layers_executed": len(ran),
        "layer_calls": sum(calls.values()),
        "layers_not_executed": [n for n in calls if n in lost],
        "layers_not_exercised": [n for n in calls if n not in reached],
        "layers_with_float_weights": sorted(
            {name for scene in group.scenes for name in scene["float_weights"]}
        ),
        "layers_without_kernel": [n for n in ran if n not in kernels],
        "kernels": _table(kernels, calls),
        "packed_bytes_touched": sum(
            layer["bytes_after"] for layer in layers if layer["name"] in kernels
        ),
        "scenes_equal_baseline": [scene["scene"] for scene in group.scenes if scene["equal"]],
    }


def _kernels(group: _Group) -> dict[str, str]:
    """The kernel that each layer's product ran on, by the layer's name."""
    watched = group.watched()
    return {
        watched[number]: kernel
        for scene in group.scenes
        for kernel, numbers in scene["kernels"].items()
        for number in numbers
    }


def _table(kernels: Mapping[str, str], calls: Mapping[str, int]) -> list[Row]:
    """Layers and calls of each kernel."""
    found: dict[str, Row] = {}
    for name, kernel in kernels.items():
        entry = found.setdefault(kernel, {"kernel": kernel, "layers": 0, "calls": 0})
        entry["layers"] += 1
        entry["calls"] += calls[name]
    return [found[kernel] for kernel in sorted(found)]


def _layers(layers: Sequence[Row], group: _Group) -> list[Row]:
    """What became of each Linear, with its calls and its kernel."""
    calls, kernels = group.calls(), _kernels(group)
    return [
        layer | {"calls": calls.get(layer["name"]), "kernel": kernels.get(layer["name"])}
        for layer in layers
    ]


_DOUBTS = (
    ("layers_with_float_weights", "swapped layers hold float weights, or are not in the model"),
    ("layers_not_executed", "swapped layers did not run on a scene although the baseline's did"),
)


def _same(scenes: Sequence[str]) -> str:
    return f"outputs on {', '.join(scenes[:3])} equal the baseline's bit for bit"


def _doubt(row: Row, variant: Variant, group: _Group) -> str | None:
    """Why these results are not those of what the row names, or None when they are."""
    proof = row["proof"]
    if proof is None:
        what = variant.sure_to_differ
        same = [scene["scene"] for scene in group.scenes if scene["equal"]]
        return f"{_same(same)}, so {what} changed nothing" if what and same else None
    if not proof["layers_swapped"]:
        return "no layer was swapped, so this would be the baseline under another name"
    for key, words in _DOUBTS:
        if proof[key]:
            return f"{len(proof[key])} {words}: {', '.join(proof[key][:3])}"
    if same := proof["scenes_equal_baseline"]:
        return f"{_same(same)}, so the quantized layers made none of them"
    if missing := proof["layers_without_kernel"]:
        return f"{len(missing)} layers ran without a packed kernel: {', '.join(missing[:3])}"
    return None


# ---- the rest of the document --------------------------------------------------------------------


def _model(head: Record, baseline: _Group) -> Row:
    """The head's model with what FP32's forwards showed of it."""
    plain = set(head["linears"])
    model: Row = head["model"] | {
        "linear_layers_not_reached": [
            name for name, count in baseline.calls().items() if not count and name in plain
        ],
        "outputs": baseline.scenes[0]["shapes"] if baseline.scenes else {},
    }
    return model


def recheck(found: Sequence[Row]) -> Row | None:
    """FP32 once more after all schemes: the same bits, and how far its time drifted."""
    by_name = {row["name"]: row for row in found}
    again = by_name.get(variants.REPEAT)
    if again is None or again["status"] != "ok":
        return None
    first = by_name[variants.BASELINE]["time"]["forward_ms_median"]
    last = again["time"]["forward_ms_median"]
    return {
        "outputs_equal_first_run": again["outputs_equal_baseline"],
        "forward_ms": last,
        "time_drift_percent": 100 * (last / first - 1),
    }
