# SPDX-License-Identifier: Apache-2.0
"""A whole model's forward and memory: torch, OpenVINO with --peers openvino, and ours.

    OMP_PROC_BIND=close OMP_PLACES={0},{1} python tests/bench/model.py --peers openvino \\
        --model vggt.models.vggt:VGGT --frames 1 --size 350x518 --isa avx512bf16

The model may have random weights: speed and memory do not depend on them. Each variant runs in a
fresh process, and the variants take turns for --rounds rounds; the fastest forward counts, since
what else runs on the machine can only add. "Processors" is the processor time divided by the
threads, which other work on the machine does not add to; ratios are of it. --calls adds, for ours,
a table of the kernels' calls, timed in a forward of their own. RSS is held against a process that
has imported torch and nothing else: "at rest" after the swap, "peak" in the forwards after it.

--isa lowers torch, OpenVINO and our kernels to the same instruction set. OpenVINO's model is
converted once (14 GB, minutes) and quantized by NNCF (longer); both are kept in --cache, as are our
quantized models until the package changes. With --results a run that was cut off goes on where it
was. --realtime gives the timed forwards real-time priority (Linux, root), so that other work on the
machine waits until they end.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import calls
import machine
import openvino_model
import torch
from torch import nn

Forward = Callable[[torch.Tensor], Any]


class Variant(NamedTuple):
    """One row: what runs the model, what becomes of it first, and how the rest is computed."""

    engine: str
    change: str  # torch: "none" or "dynamic"; OpenVINO: the file; ours: the config
    bf16: bool


VARIANTS = {
    "torch FP32": Variant("torch", "none", False),
    "torch BF16 autocast": Variant("torch", "none", True),
    "torch dynamic INT8": Variant("torch", "dynamic", False),
    "OpenVINO FP32": Variant("openvino", "fp32", False),
    "OpenVINO BF16": Variant("openvino", "fp32", True),
    "OpenVINO INT8": Variant("openvino", "int8", False),
    "OpenVINO INT8 + BF16": Variant("openvino", "int8", True),
    "W8A8 Linears": Variant("ours", "INT8_Per_Channel_Symmetric_A8", False),
    "W8A8 Linears, BF16": Variant("ours", "INT8_Per_Channel_Symmetric_A8", True),
    "W4A8 Linears": Variant("ours", "INT4_Group_128_A8", False),
    "W4A8 Linears, BF16": Variant("ours", "INT4_Group_128_A8", True),
    "INT8_Fast": Variant("ours", "INT8_Fast", False),
    "INT8_Fast, BF16": Variant("ours", "INT8_Fast", True),
    "INT4_Fast": Variant("ours", "INT4_Fast", False),
    "INT4_Fast, BF16": Variant("ours", "INT4_Fast", True),
    "W4, float activations": Variant("ours", "INT4_Group_128", False),
}
REFERENCES = ("torch FP32", "OpenVINO INT8 + BF16", "OpenVINO INT8")


def rss(field: str = "VmRSS") -> float:
    """GB of this process."""
    with open("/proc/self/status") as lines:
        line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) / 1e6


def changed(model: nn.Module, variant: Variant) -> nn.Module:
    if variant.engine == "ours":
        import vggtquant as vq

        return vq.quantize_model(model, variant.change)[0]
    if variant.change == "dynamic":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    return model


def fresh(args: argparse.Namespace, variant: Variant) -> nn.Module:
    """The model, changed as the variant says."""
    from vggtquant import models

    model = models.load_model(args.model).model
    if hasattr(model, "track_head"):
        model.track_head = None  # the tracker: without points to follow it does not run
    model = changed(model, variant)
    gc.collect()
    return model


def kept(args: argparse.Namespace, variant: Variant) -> nn.Module:
    """A model of ours out of the cache, where this same package has put it there."""
    import vggtquant as vq
    from vggtquant import linear

    sources = sorted(Path(vq.__file__).parent.rglob("*.py"))
    key = hashlib.sha256(f"{args.model} {variant.change} {torch.__version__}".encode())
    for source in sources:
        key.update(source.read_bytes())
    file = args.cache / f"{variant.change}-{key.hexdigest()[:12]}.pt"
    if not file.exists():
        model = fresh(args, variant)
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob(f"{variant.change}-*.pt"):
            old.unlink()
        torch.save(model, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)
        del model
        gc.collect()
    model: nn.Module = torch.load(file, weights_only=False)
    linear.settle(model)
    return model


def prepared(args: argparse.Namespace) -> Forward:
    """The forward of args.variant."""
    variant = VARIANTS[args.variant]
    if variant.engine == "openvino":
        path = openvino_model.place(args.cache, args.model, args.frames, args.size)
        precision = "bf16" if variant.bf16 else "f32"
        file = path / f"{variant.change}.xml"
        return openvino_model.forward_of(file, precision, torch.get_num_threads())
    model = kept(args, variant) if variant.engine == "ours" else fresh(args, variant)

    def forward(images: torch.Tensor) -> Any:
        cast = torch.autocast("cpu", torch.bfloat16) if variant.bf16 else nullcontext()
        with torch.inference_mode(), cast:
            return model(images)

    return forward


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of args.variant, in this process."""
    empty = rss()
    forward = prepared(args)
    images = openvino_model.random_images(args.frames, args.size)
    rest = rss() - empty
    with open("/proc/self/clear_refs", "w") as refs:  # 5: forget the peak so far
        refs.write("5")
    seconds, processor = [], []
    if not args.cold:
        forward(images)
    for _ in range(args.runs):
        with machine.realtime(args.realtime):
            start, spent = time.perf_counter(), time.process_time()
            forward(images)
            seconds.append(time.perf_counter() - start)
            processor.append((time.process_time() - spent) / torch.get_num_threads())
    figures: dict[str, Any] = {"s": seconds, "processor": processor, "calls": None}
    figures |= {"rest": rest, "peak": rss("VmHWM") - empty}
    if args.calls and VARIANTS[args.variant].engine == "ours":
        with machine.realtime(args.realtime), calls.timed() as found:
            start = time.perf_counter()
            forward(images)
            figures["calls"] = calls.rows(found, time.perf_counter() - start)
    return figures


def environment(isa: str | None, engine: str) -> dict[str, str]:
    """Of a variant's process. OpenVINO takes as many cores as the thread that loads torch's OpenMP
    may run on, and a pinned one has a single core."""
    pins = ("OMP_PROC_BIND", "OMP_PLACES") if engine == "openvino" else ()
    kept = {name: value for name, value in os.environ.items() if name not in pins}
    return kept | machine.lowered(isa)


def command(args: argparse.Namespace, *more: str) -> list[str]:
    flags = ("model", "frames", "size", "runs", "cache")
    pairs = [(f"--{flag}", str(getattr(args, flag))) for flag in flags]
    flags = ("cold", "calls", "realtime")
    switches = [f"--{flag}" for flag in flags if getattr(args, flag)]
    return [sys.executable, __file__, *sum(pairs, ()), *switches, *more]


class Results:
    """What variants' processes have given, and where --results says, a file of it."""

    def __init__(self, path: Path | None, args: argparse.Namespace) -> None:
        self.path = path
        self.what = [args.model, args.frames, args.size, args.isa]
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [row["figures"] for row in self.rows if row["of"] == [*self.what, name]]

    def add(self, name: str, figures: dict[str, Any]) -> None:
        self.rows.append({"of": [*self.what, name], "figures": figures})
        if self.path is not None:
            with self.path.open("a") as file:
                print(json.dumps(self.rows[-1]), file=file)


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    results = Results(args.results, args)
    for turn in range(args.rounds):
        for name in args.only:
            if len(results.of(name)) > turn:
                continue
            # OpenMP pins the thread that loads it; a child would inherit that one core.
            done = subprocess.run(
                command(args, "--variant", name),
                env=environment(args.isa, VARIANTS[name].engine),
                capture_output=True,
                text=True,
                check=False,
                preexec_fn=machine.use_every_core,
            )
            if done.returncode:
                say(f"{name}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
                continue
            results.add(name, json.loads(done.stdout.splitlines()[-1]))
            say(f"round {turn + 1}, {name}: {results.of(name)[-1]}")
    return {name: summary(results.of(name)) for name in args.only if results.of(name)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The best times and the largest memory of one variant's processes."""
    return {
        "s": min(s for one in runs for s in one["s"]),
        "processor": min(s for one in runs for s in one["processor"]),
        "calls": runs[-1]["calls"],
        "rest": max(one["rest"] for one in runs),
        "peak": max(one["peak"] for one in runs),
    }


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """The rows in Markdown."""
    references = [name for name in REFERENCES if name in found]
    head = ["variant", "seconds", "processors"]
    head += [f"against {name}" for name in references] + ["RSS at rest, GB", "RSS at peak, GB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in found.items():
        cells = [name, f"{row['s']:.3g}", f"{row['processor']:.3g}"]
        cells += [
            f"{found[reference]['processor'] / row['processor']:.2f}x" for reference in references
        ]
        cells += [f"{row['rest']:.2f}", f"{row['peak']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def heading(args: argparse.Namespace) -> str:
    """What was measured where, with what."""
    import vggtquant as vq

    with open("/proc/cpuinfo") as info:
        cpu = next((line.split(":")[1].strip() for line in info if "model name" in line), "?")
    versions = f"torch {torch.__version__}, vggtquant {vq.__version__}"
    if any(VARIANTS[name].engine == "openvino" for name in args.only):
        import nncf
        import openvino

        versions += f", OpenVINO {openvino.__version__.split('-')[0]}, NNCF {nncf.__version__}"
    return (
        f"{args.model}, {args.frames} pictures of {args.size}; {cpu}, {platform.machine()}, "
        f"at most {args.isa or vq.isa()}, {torch.get_num_threads()} threads; {versions}"
    )


def cache_folder() -> Path:
    """Where conversions are kept: the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vggtquant" / "openvino"


def parser() -> argparse.ArgumentParser:
    said = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    said.add_argument("--model", default="builtin:tiny", help="as vggtquant evaluate takes it")
    said.add_argument("--frames", type=int, default=1, help="pictures")
    said.add_argument("--size", default="112x112", metavar="HxW")
    said.add_argument("--runs", type=int, default=2, help="timed forwards a process")
    said.add_argument("--cold", action="store_true", help="no forward before the timed ones")
    said.add_argument("--rounds", type=int, default=1)
    said.add_argument("--isa", choices=machine.ISAS, help="no engine goes higher than this")
    said.add_argument("--peers", action="append", choices=["openvino"], default=[])
    said.add_argument("--cache", type=Path, default=cache_folder(), help="of OpenVINO's models")
    said.add_argument("--only", action="append", choices=VARIANTS, help="may be repeated")
    said.add_argument("--results", type=Path, help="a file that keeps what was measured")
    said.add_argument("--calls", action="store_true", help="time our calls, in one forward more")
    said.add_argument("--realtime", action="store_true", help="real-time priority while timed")
    said.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)

    return said


def main() -> None:
    args = parser().parse_args()
    if args.variant:
        print(json.dumps(measured(args)))
        return
    if not args.only:
        args.only = [
            name
            for name, variant in VARIANTS.items()
            if variant.engine != "openvino" or "openvino" in args.peers
        ]
    changes = {VARIANTS[n].change for n in args.only if VARIANTS[n].engine == "openvino"}
    if changes:  # in a process of its own, for it takes 14 GB
        subprocess.run(
            [
                *(sys.executable, openvino_model.__file__, args.cache, args.model),
                *(str(args.frames), args.size, str(int("int8" in changes))),
            ],
            check=True,
            preexec_fn=machine.use_every_core,
        )
    found = measure(args, lambda line: print(line, file=sys.stderr))
    print(f"{heading(args)}\n")
    print("\n".join(table(found)))
    for name, row in found.items():
        if row["calls"]:
            print(f"\n{name}, by call:\n")
            print("\n".join(calls.table(row["calls"])))


if __name__ == "__main__":
    main()
