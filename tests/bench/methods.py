# SPDX-License-Identifier: Apache-2.0
"""The errors of calibration methods against FP32, on rendered scenes that calibration does not see.

    python tests/bench/methods.py --models builtin:tiny builtin:tiny-outliers --scenes 64 --seeds 3

E is the geometric mean of the relative L2 errors of depth, points and pose (means over scenes),
in percent. The interval is the 95 % bootstrap interval over scenes of the mean over seeds; "seeds"
is the lowest and the highest E of one seed. "x RTN" divides by round to nearest with the same bits
on the same scenes, with a paired interval. "AUC@30" is what is lost against the true poses beside
FP32, in points, with its interval. Results go to --out line by line, and rows that stand there are
not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vggtquant as vq
from vggtquant import model as walk
from vggtquant import models
from vggtquant.calibration import METHODS, data, mixed
from vggtquant.data import scenes
from vggtquant.scoring import geometry

OUTPUTS = ("depth", "world_points", "pose_enc")
RESAMPLES = 2000

CAMERA = ("*camera_head*",)
W8A8 = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
W4A8 = vq.CONFIGS["INT4_Group_128_A8"]
ROWS = {  # name in the table: (config, method); what stands before the comma shares its "rtn" row
    "INT4 g128, rtn": ("INT4_Group_128", "rtn"),
    "INT4 g128, folds": ("INT4_Group_128", "folds"),
    "INT4 g128, clip": ("INT4_Group_128", "clip"),
    "INT4 g128, hqq": ("INT4_Group_128", "hqq"),
    "INT4 g128, hadamard": ("INT4_Group_128", "hadamard"),
    "INT4 g128, bias": ("INT4_Group_128", "bias"),
    "INT4 g128, awq": ("INT4_Group_128", "awq"),
    "INT4 g128, gptq": ("INT4_Group_128", "gptq"),
    "INT4 g128, best": ("INT4_Group_128", "best"),
    "INT8 per channel, rtn": ("INT8_Per_Channel_Symmetric", "rtn"),
    "INT8 per channel, gptq": ("INT8_Per_Channel_Symmetric", "gptq"),
    "W8A8, rtn": (W8A8, "rtn"),
    "W8A8, rtn + 16-bit camera head": (replace(W8A8, wide_layers=CAMERA), "rtn"),
    "W8A8, smoothquant": (W8A8, "smoothquant"),
    "W8A8, gptq": (W8A8, "gptq"),
    "W8A8, gptq + 16-bit camera head": (replace(W8A8, wide_layers=CAMERA), "gptq"),
    "W8A8, gptq, static": (replace(W8A8, activation_range="minmax"), "gptq"),
    "W8A8, gptq, static + 16-bit camera head": (
        replace(W8A8, wide_layers=CAMERA, activation_range="minmax"),
        "gptq",
    ),
    "W4A8 g128, rtn": (W4A8, "rtn"),
    "W4A8 g128, gptq": (W4A8, "gptq"),
    "W4A8 g128, gptq + 16-bit camera head": (replace(W4A8, wide_layers=CAMERA), "gptq"),
    "INT4_Fast, rtn": ("INT4_Fast", "rtn"),
    "INT4_Fast, gptq": ("INT4_Fast", "gptq"),
    "INT4 g128, gptq, mixed to 4.6 bits": ("INT4_Group_128", "gptq"),
}
MIXED = {"INT4 g128, gptq, mixed to 4.6 bits": 4.6}
"""Rows whose layers share so many bits a weight, biases included."""


def rendered(first: int, count: int) -> list[scenes.Scene]:
    """Scenes of 4 pictures of 112 x 112."""
    return [scenes.make_scene(seed, 4, 112) for seed in range(first, first + count)]


def pictures(found: list[scenes.Scene]) -> torch.Tensor:
    """Theirs, (count, 4, 3, 112, 112)."""
    images = torch.from_numpy(np.stack([scene.images for scene in found]))
    return images.permute(0, 1, 4, 2, 3).contiguous().float() / 255


def outputs(model: torch.nn.Module, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Of each scene, computed four at a time."""
    with torch.inference_mode():
        batches = [model(batch) for batch in images.split(4)]
    return [
        {name: batch[name][i] for name in OUTPUTS}
        for batch in batches
        for i in range(len(batch[OUTPUTS[0]]))
    ]


def errors(wanted: list[Any], got: list[Any]) -> list[list[float]]:
    """Relative L2 errors in percent, a row a scene, a column an output."""
    return [
        [100 * float((w[name] - g[name]).norm() / w[name].norm()) for name in OUTPUTS]
        for w, g in zip(wanted, got, strict=True)
    ]


def aucs(found: list[scenes.Scene], got: list[Any]) -> list[float]:
    """Pose AUC@30 of each scene against the truth, in percent."""
    each = []
    for scene, out in zip(found, got, strict=True):
        poses, _ = geometry.decode_pose(out["pose_enc"].numpy(), scene.images.shape[1:3])
        wrong = geometry.relative_pose_errors(poses, scene.extrinsics)
        each.append(100 * geometry.pose_auc(wrong.rotation, wrong.translation, 30))
    return each


def shared(
    model: torch.nn.Module, args: argparse.Namespace, spec: str, row: str, seed: int
) -> dict[str, Any] | None:
    """How the layers of a mixed row are held; what each way costs is kept beside --out."""
    if row not in MIXED:
        return None
    config = vq.get_config(ROWS[row][0])
    layers, choice = walk.select(model, config, None, None)
    kept = args.out.with_name(f"ways.{spec.replace(':', '_')}.{seed}.json")
    if not kept.exists():
        shown, probe = (
            data.load(None, count, number, 112)
            for count, number in ((args.pictures, seed), (mixed.PROBE, seed ^ 512))
        )
        kept.write_text(
            json.dumps(mixed.measure(model, list(choice.chosen), config, shown, probe.batches))
        )
    ways = {
        name: {way: mixed.Way(*cost) for way, cost in each.items()}
        for name, each in json.loads(kept.read_text()).items()
    }
    weights = sum(layers[name].weight.numel() for name in choice.chosen)
    biases = sum(4 * layers[name].out_features for name in choice.chosen)
    return mixed.within(ways, int(MIXED[row] * weights / 8) - biases).configs(config)


def score(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """E of errors (..., scenes, outputs)."""
    return np.exp(np.log(rows.mean(-2)).mean(-1))


def interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record a model, row and seed."""
    there = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if args.out.exists()
        else []
    )
    known = {(r["model"], r["row"], r["seed"]): r for r in there}
    shown = rendered(scenes.HELD_OUT + args.first, args.scenes)
    images = pictures(shown)
    for spec in args.models:
        model = models.load_model(spec).model
        wanted = outputs(model, images)
        for row in args.rows:
            config, method = ROWS[row]
            for seed in range(args.seeds if METHODS[method].looks else 1):
                key = (spec, row, seed)
                if key not in known:
                    start = time.perf_counter()
                    _, report = vq.calibrate(
                        model,
                        config=config,
                        method=method,
                        configs=shared(model, args, spec, row, seed),
                        seed=seed,
                        samples=args.pictures,
                        keep_originals=True,
                    )
                    seconds = time.perf_counter() - start
                    got = outputs(model, images)
                    known[key] = {
                        "model": spec,
                        "row": row,
                        "seed": seed,
                        "seconds": seconds,
                        "bits": report.bits_per_weight,
                        "notes": report.notes,
                        "errors": errors(wanted, got),
                        "auc": aucs(shown, got),
                        "auc_fp32": aucs(shown, wanted),
                    }
                    vq.restore_model(model, report)
                    with args.out.open("a") as file:
                        file.write(json.dumps(known[key]) + "\n")
                yield known[key]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["builtin:tiny"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--first", type=int, default=0, help="first held-out scene")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds")
    parser.add_argument("--pictures", type=int, default=100, help="calibration pictures")
    parser.add_argument("--out", type=Path, default=Path("methods.jsonl"))
    args = parser.parse_args()

    draw = np.random.default_rng(0).integers(0, args.scenes, (RESAMPLES, args.scenes))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in measured(args):
        found.setdefault((record["model"], record["row"]), []).append(record)
    titles = ("model", "row", "bits", "E, %", "95 % interval", "seeds", "x RTN", "95 % interval")
    print(f"| {' | '.join(titles)} | AUC@30 | 95 % interval | seconds |")
    print("|---" * (len(titles) + 3) + "|")
    for (spec, row), records in found.items():
        rows = np.array([record["errors"] for record in records])  # (seeds, scenes, outputs)
        mean, per_seed = score(rows).mean(), score(rows)
        drawn = score(rows[:, draw]).mean(0)
        low, high = interval(drawn)
        beside = found.get((spec, row.partition(", ")[0] + ", rtn"))
        ratio = ""
        if beside and beside is not records:
            base = np.array(beside[0]["errors"])
            of = interval(drawn / score(base[draw]))
            ratio = f"{mean / score(base):.3f} | {of[0]:.3f} .. {of[1]:.3f}"
        lost = np.array([r["auc"] for r in records]).mean(0) - np.array(records[0]["auc_fp32"])
        auc = interval(lost[draw].mean(1))
        print(
            f"| {spec} | {row} | {records[0]['bits']:.2f} | {mean:.3f} | {low:.3f} .. {high:.3f} | "
            f"{per_seed.min():.3f} .. {per_seed.max():.3f} | {ratio or '1 |'} | "
            f"{lost.mean():+.2f} | {auc[0]:+.2f} .. {auc[1]:+.2f} | "
            f"{np.mean([record['seconds'] for record in records]):.0f} |"
        )


if __name__ == "__main__":
    main()
