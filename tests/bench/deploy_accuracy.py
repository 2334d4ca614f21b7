# SPDX-License-Identifier: Apache-2.0
"""AUC@30 and AbsRel of exported models in a runtime beside ours, on the same rendered scenes.

    python tests/bench/deploy_accuracy.py --schemes "INT8 dynamic" INT4 --runtimes onnxruntime

Each scene has four pictures of 112x112. A difference is the mean over scenes of the runtime's score
less ours, with its 95 % bootstrap interval over scenes; none is shown where that holds 0. Static
ranges come from eight other scenes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deploy import SCHEMES, config_of, with_ranges

import vggtquant as vq
from vggtquant import models
from vggtquant.data import scenes
from vggtquant.deploy import check, runtimes
from vggtquant.scoring import geometry, task_scores

FRAMES, SIDE = 4, 112
RESAMPLES = 10_000


def pictures(scene: scenes.Scene) -> torch.Tensor:
    """(1, FRAMES, 3, SIDE, SIDE)."""
    return torch.from_numpy(scene.images).permute(0, 3, 1, 2).contiguous()[None].float() / 255


def scores(outputs: Any, scene: scenes.Scene) -> tuple[float, float]:
    """AUC@30 in percent, AbsRel of depth in percent."""
    found = task_scores.scene_errors(outputs, scene, queries=64, aligned=False)
    assert found.pose is not None
    auc = geometry.pose_auc(found.pose.rotation, found.pose.translation, 30)
    return 100 * auc, 100 * found.scores["depth_abs_rel"]


def interval(differences: np.ndarray[Any, Any]) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.percentile(differences[draws].mean(-1), (2.5, 97.5))
    return float(low), float(high)


def rows(args: argparse.Namespace, case: str) -> None:
    """Prints a line a runtime and score."""
    model = models.load_model("builtin:tiny").model
    if config := config_of(case):
        model, _ = vq.quantize_model(model, config)
    if "static" in case:
        seen = [pictures(scenes.make_scene(seed, FRAMES, SIDE)) for seed in range(8)]
        with_ranges(model, torch.cat(seen))
    found = [scenes.make_scene(scenes.HELD_OUT + i, FRAMES, SIDE) for i in range(args.scenes)]
    with tempfile.TemporaryDirectory() as folder:
        options = {"size": (SIDE, SIDE), "frames": FRAMES, "check": False}
        path = vq.export(model, Path(folder), **options).path
        ours = np.array([scores(check.expected(model, pictures(x)), x) for x in found])
        for name in args.runtimes:
            run = runtimes.RUNTIMES[name].open(path)
            theirs = np.array([scores(run(pictures(x).numpy()), x) for x in found])
            for i, score in enumerate(("AUC@30, %", "AbsRel, %")):
                apart = theirs[:, i] - ours[:, i]
                low, high = interval(apart)
                print(
                    f"| {name} | {case} | {score} | {ours[:, i].mean():.2f} | "
                    f"{theirs[:, i].mean():.2f} | {apart.mean():+.3f} | "
                    f"{low:+.3f} to {high:+.3f} | {'no' if low <= 0 <= high else 'yes'} |",
                    flush=True,
                )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="scores of exported models beside ours")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES)[1:])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime"])
    parser.add_argument("--scenes", type=int, default=64)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    print("| runtime | scheme | score | ours | its | difference | 95 % interval | shown |")
    print("|---|---|---|---|---|---|---|---|")
    for case in args.schemes:
        rows(args, case)


if __name__ == "__main__":
    main()
