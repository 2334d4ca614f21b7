# SPDX-License-Identifier: Apache-2.0
"""A row of docs/family.md: what of a model of the family is swapped, its bytes, and how fast it is.

    PYTHONPATH=path/of/the/model python tests/bench/family.py --model module:function --size 252x336

The function returns the model; it is called without memory for parameters, and its weights are
drawn at random here, so that only shapes, times and the errors of rounding mean something. Torch's
eager FP32 is measured beside INT8_Fast; INT4_Group_128_A8 is run for its bytes and its error.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import os
import time
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

import vggtquant as vq
from vggtquant import adapters
from vggtquant.adapter import split_outputs
from vggtquant.meta import parameters_without_memory
from vggtquant.weights.names import call

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
HEAD = (
    *("model", "parameters, M", "Linears", "attentions", "blocks", "heads", "FP32, MB", "INT4, MB"),
    *("FP32, s", "fast, s", "speedup", "error of INT8, fast", "error of INT4", "left float, M"),
)


def built(address: str) -> nn.Module:
    """The model with random weights, the same each time; masks that are NaN are all ones."""
    with parameters_without_memory():
        model = call(address)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        x = torch.empty(parameter.shape)
        if isinstance(module, NORMS):
            x.fill_(float(leaf == "weight"))
        elif leaf == "gamma":  # of a LayerScale: so large that blocks change the stream
            x.normal_(std=0.2, generator=generator)
        elif x.ndim >= 2:
            x.uniform_(-1, 1, generator=generator).mul_((1.5 / max(1, x[0].numel())) ** 0.5)
        else:
            x.normal_(std=0.02, generator=generator)
        module._parameters[leaf] = nn.Parameter(x, requires_grad=False)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                filled = torch.ones(buffer.shape) if buffer.is_meta else buffer.nan_to_num(1.0)
                module._buffers[name] = filled
    return model.eval()


@contextlib.contextmanager
def undisturbed(lock: str | None) -> Iterator[None]:
    """Real-time priority for all threads, alone among the programs that lock the same file."""
    if lock is None:
        yield
        return
    with open(lock, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = {
            int(tid): os.sched_getscheduler(int(tid)) for tid in os.listdir("/proc/self/task")
        }
        for tid in before:
            os.sched_setscheduler(tid, os.SCHED_FIFO, os.sched_param(1))
        try:
            yield
        finally:
            for tid, policy in before.items():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(tid, policy, os.sched_param(0))


def run(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        found = split_outputs(adapters.run(model, images))
    for name, value in found.items():
        assert value.isfinite().all(), name
    return {name: value.float() for name, value in found.items()}


def timed(model: nn.Module, images: torch.Tensor, rounds: int, lock: str | None) -> float:
    """The best of some forwards, in seconds."""
    took = []
    with undisturbed(lock):
        for _ in range(rounds):
            start = time.perf_counter()
            run(model, images)
            took.append(time.perf_counter() - start)
    return min(took)


def error(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    """The mean over outputs of the relative L2 distance."""
    far = [float((got[k] - want[k]).norm() / want[k].norm()) for k in want if want[k].norm() > 0]
    return sum(far) / len(far)


def row(name: str, address: str, images: torch.Tensor, rounds: int, lock: str | None) -> str:
    model = built(address)
    parameters = sum(p.numel() for p in model.parameters())
    fp32 = vq.model_bytes(model)
    want = run(model, images)
    seconds = timed(model, images, rounds, lock)
    print(f"{name}: {parameters / 1e6:.1f} M, FP32 {seconds:.2f} s", flush=True)
    report = vq.quantize_model(model, "INT8_Fast")[1]
    fast = error(run(model, images), want)
    quick = timed(model, images, rounds, lock)
    print(f"  INT8_Fast {quick:.2f} s, error {100 * fast:.2f} %", flush=True)
    linears = [layer for layer in report.layers if layer.kind == "linear"]
    swapped = sum(layer.skipped is None for layer in linears)
    there = Counter(m.kind for m in report.modules)
    done = Counter(m.kind for m in report.modules if m.skipped is None)
    heads = sum(type(m).__name__ == "QuantizedDPTHead" for m in model.modules())
    packed = sum(layer.shape[0] * layer.shape[1] for layer in report.quantized)
    for module in report.modules:
        if module.skipped:
            print(f"  {module.kind} {module.name}: {module.skipped}")
    print(
        f"  swapped: {swapped} of {len(linears)} Linears, {dict(done)} of {dict(there)}", flush=True
    )
    del model
    gc.collect()
    model = built(address)
    vq.quantize_model(model, "INT4_Group_128_A8")
    int4 = vq.model_bytes(model)
    print(f"  INT4 {int4 / 1e6:.0f} MB", flush=True)
    four = error(run(model, images), want)
    cells = (
        name,
        f"{parameters / 1e6:.1f}",
        f"{swapped} of {len(linears)}",
        *(f"{done[kind]} of {there[kind]}" for kind in ("attention", "block")),
        str(heads),
        f"{fp32 / 1e6:.0f}",
        f"{int4 / 1e6:.0f}",
        f"{seconds:.2f}",
        f"{quick:.2f}",
        f"{seconds / quick:.2f}x",
        f"{100 * fast:.2f} %",
        f"{100 * four:.1f} %",
        f"{(parameters - packed) / 1e6:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="module:function that returns the model")
    parser.add_argument("--name", help="in the table (default: the adapter's)")
    parser.add_argument("--size", default="252x336", help="height x width of a picture")
    parser.add_argument("--frames", type=int, default=1, help="pictures")
    parser.add_argument("--rounds", type=int, default=2, help="forwards, of which the best counts")
    parser.add_argument("--lock", help="a file to lock, with real-time priority, while timing")
    given = parser.parse_args()
    height, width = map(int, given.size.split("x"))
    images = torch.rand(
        (given.frames, 3, height, width), generator=torch.Generator().manual_seed(1)
    )
    line = row(given.name or given.model, given.model, images, given.rounds, given.lock)
    print(f"isa {vq.isa()}, {torch.get_num_threads()} threads, {given.frames} of {given.size}")
    print(f"| {' | '.join(HEAD)} |")
    print("|" + "---|" * len(HEAD))
    print(line, flush=True)


if __name__ == "__main__":
    main()
