# SPDX-License-Identifier: Apache-2.0
"""What training after GPTQ gains (examples/qat.py), at W4A8 and at 3 bits, on held-out scenes.

    python tests/bench/qat.py --rows W4A8 W3 --steps 400 --work qat_runs

E and its interval are those of tests/bench/methods.py. No packed format has 3 bits: W3 holds the
codes -4 to 3 in 4 bits each, with a float scale a group of 128, to see what 3 bits would lose. A
killed run goes on from --work.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import methods as bench
import numpy as np
import torch

import vggtquant as vq
from vggtquant import models
from vggtquant.calibration import data, gptq, methods, qat, sequential
from vggtquant.configs import QuantizationSpec
from vggtquant.data import scenes
from vggtquant.qtensor import QTensor, grid, quantize

ROWS = {"W4A8": "INT4_Group_128_A8", "W3": "INT4_Group_128"}


def example() -> ModuleType:
    """examples/qat.py."""
    path = Path(__file__).resolve().parents[2] / "examples" / "qat.py"
    spec = importlib.util.spec_from_file_location("qat_example", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def three(weight: torch.Tensor, spec: QuantizationSpec) -> QTensor:
    """The codes -4 to 3 of a weight (rows, columns), a scale a group."""
    rows, size = len(weight), spec.group_size
    groups = torch.nn.functional.pad(weight.float(), (0, -weight.shape[1] % size))
    scale = groups.reshape(rows, -1, size).abs().amax(-1).clamp_min(1e-20) / 4
    each = scale.repeat_interleave(size, 1)[:, : weight.shape[1]]
    float_scales = QuantizationSpec(4, True, "per_group", size)
    return quantize((weight / each).clamp(-4, 3) * each, float_scales, scale=scale.numpy())


def narrow(q: QTensor) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """As qtensor.grid, with 3 bits."""
    return (*grid(q)[:2], -4, 3)


@contextlib.contextmanager
def bits_of(row: str) -> Any:
    """Calibration and training with the row's codes."""
    with contextlib.ExitStack() as stack:
        if row == "W3":
            for module in (gptq, methods, sequential):
                stack.enter_context(patch.object(module, "quantize", three))
            for module in (gptq, qat):
                stack.enter_context(patch.object(module, "grid", narrow))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=400, help="shown while training")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--codes", type=float, default=1e-3, help="as in examples/qat.py")
    parser.add_argument("--rest", type=float, default=1e-4)
    parser.add_argument("--taps", type=float, default=0.1)
    parser.add_argument("--work", type=Path, default=Path("qat_runs"))
    args = parser.parse_args()
    args.device, runs = "cpu", args.work
    train = example().train

    images = bench.pictures(bench.rendered(scenes.HELD_OUT, args.scenes))
    shown = data.load(None, args.pictures, 400, 112)
    draw = np.random.default_rng(0).integers(0, args.scenes, (bench.RESAMPLES, args.scenes))
    teacher = models.load_model(args.model).model
    wanted = bench.outputs(teacher, images)

    def errors(model: torch.nn.Module) -> Any:
        return np.array(bench.errors(wanted, bench.outputs(model, images)))

    for row in args.rows:
        args.work = runs / row
        args.work.mkdir(parents=True, exist_ok=True)
        with bits_of(row):
            found = {}
            for method in ("rtn", "gptq"):
                student = models.load_model(args.model).model
                vq.calibrate(student, config=ROWS[row], method=method, samples=100, seed=0)
                found[method] = errors(student)
            start = time.process_time()
            train(teacher, student, [s for batch in shown.batches for s in batch.split(1)], args)
            seconds = time.process_time() - start
            found["gptq, trained"] = errors(student)
        for name, each in found.items():
            base = found["gptq"]
            error, ratio = bench.score(each), bench.score(each) / bench.score(base)
            low, high = bench.interval(bench.score(each[draw]) / bench.score(base[draw]))
            cells = f"{row}, {name}", f"{error:.3f}", f"{ratio:.3f}", f"{low:.3f} .. {high:.3f}"
            print(f"| {' | '.join(cells)} |", flush=True)
        print(f"{row}: {args.steps} steps, {seconds:.0f} processor seconds", flush=True)
        record = {"row": row, **vars(args), "seconds": seconds}
        record |= {"errors": {name: each.tolist() for name, each in found.items()}}
        with (runs / "qat.jsonl").open("a") as file:
            file.write(json.dumps(record, default=str) + "\n")


if __name__ == "__main__":
    main()
