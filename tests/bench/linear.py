# SPDX-License-Identifier: Apache-2.0
"""Speed of one Linear at VGGT's shapes, ours beside every peer that installs, in one run.

    OMP_PROC_BIND=close OMP_PLACES={0},{1} python tests/bench/linear.py [--quick] [--avx2]

Candidates take turns within a round, every other round in reverse, so that a machine that slows
down slows all of them. A figure is GMAC/s (1e9 multiply-adds a second) of the whole call, coding
of the activations included: the median round, and half the distance between the quartiles. Ratios
are of medians. The share of the peak is that of what our kernel's instructions reach from registers
on the same threads (peak.c), which takes its turns too. --out writes Markdown, and a plot beside
it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from peers import CANDIDATES, Call, versions
from torch import nn

import vggtquant as vq
from vggtquant import ops

Shape = tuple[int, int, int]

# (inputs, outputs) of VGGT's Linear layers: aggregator, tracker, camera head
AGGREGATOR = [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]
TRACKER = [(384, 1536), (1536, 384)]
CAMERA = [(2048, 6144), (2048, 2048), (2048, 8192), (8192, 2048)]
ROWS = [930, 1374, 2748, 5496]
FEW_ROWS = [1, 4, 10, 16]
SHAPES = {
    "many": [(m, k, n) for m in ROWS for k, n in AGGREGATOR],
    "tracker": [(1374, k, n) for k, n in TRACKER],
    "few": [(m, k, n) for m in FEW_ROWS for k, n in CAMERA],
}
BURST = 0.03  # seconds of calls that are timed together, and of those before them
QUICK = [(1374, 1024, 4096), (1, 2048, 6144), (10, 2048, 6144)]

# All sides lowered to AVX2. ONNX Runtime has no such switch, so it is left out then.
LOWERED = {
    "VGGTQUANT_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "avx2",
}


class Speed(NamedTuple):
    """GMAC/s at the median round; half the distance between the quartiles, as a share of it."""

    median: float
    spread: float
    fastest: float


Row = dict[str, Speed]


def speed(macs: int, seconds: list[float]) -> Speed:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Speed(macs / middle / 1e9, (high - low) / 2 / middle, macs / min(seconds) / 1e9)


def timed(call: Call, burst: int) -> float:
    """Seconds of a call, over a few of them where they are short."""
    start = time.perf_counter()
    for _ in range(burst):
        call()
    return (time.perf_counter() - start) / burst


def settle() -> None:
    """Wait until the last one's threads have stopped spinning: ONNX Runtime's do for 0.1 s."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            return


def keep_memory() -> None:
    """Have malloc keep what is freed, as it does after some forwards of a model: else the pages of
    a large output may be new in each call, and a page costs 3 microseconds on a virtual machine."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        m_trim_threshold, m_mmap_threshold = -1, -3
        for option in (m_trim_threshold, m_mmap_threshold):
            library.mallopt(option, 1 << 30)


class Peaks:
    """What the instruction sequences of peak.c reach from registers, a call each."""

    def __init__(self) -> None:
        """Build the library; without a compiler, or on another CPU, no sequence is known."""
        self.library: ctypes.CDLL | None = None
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None or platform.machine() != "x86_64":
            return
        source = Path(__file__).with_name("peak.c")
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / "peak.so"
            options = ["-O2", "-pthread", "-shared", "-fPIC"]
            subprocess.run([compiler, *options, source, "-o", built], check=True)
            self.library = ctypes.CDLL(str(built))
        self.library.vgq_peak.restype = ctypes.c_double

    def seconds(self, sequence: str) -> float | None:
        """Seconds that 1e9 multiply-adds of a sequence, "W8A8" say, take now; None: not known."""
        if self.library is None:
            return None
        table = "avx2" if vq.isa() == "avx2" else "avx512"
        name = f"{table} {sequence}".encode()
        found = self.library.vgq_peak(name, torch.get_num_threads())
        return 1e9 / found if found > 0 else None


def measure(
    shape: Shape, names: list[str], rounds: int, missing: dict[str, str], peaks: Peaks
) -> tuple[Row, Row]:
    """Speeds of the candidates, and of the instruction sequences that they are held against."""
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(k, n)
    nn.init.normal_(linear.weight, std=k**-0.5, generator=generator)
    x = torch.randn(m, k, generator=generator)
    calls: dict[str, Call] = {}
    bursts: dict[str, int] = {}
    for name in names:
        if name in missing:
            continue
        try:
            calls[name] = CANDIDATES[name].make(linear, x)
            calls[name]()
            bursts[name] = max(1, min(200, int(BURST / timed(calls[name], 2))))
        except Exception as error:  # a peer that is not there or fails is a note, not the end
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            calls.pop(name, None)
    times: dict[str, list[float]] = {name: [] for name in calls}
    reached: dict[str, list[float]] = {}
    for turn in range(rounds):
        for name in list(calls) if turn % 2 == 0 else reversed(calls):
            settle()
            timed(calls[name], bursts[name])  # wakes threads and CPUs, as in the midst of a model
            times[name].append(timed(calls[name], bursts[name]))
        for sequence in dict.fromkeys(filter(None, (CANDIDATES[name].peak for name in calls))):
            settle()
            if (now := peaks.seconds(sequence)) is not None:
                reached.setdefault(sequence, []).append(now)
    return (
        {name: speed(m * k * n, seconds) for name, seconds in times.items()},
        {sequence: speed(10**9, seconds) for sequence, seconds in reached.items()},
    )


def ratio_lines(rows: dict[Shape, Row], names: list[str]) -> list[str]:
    """A table of median ratios of ours to each peer, for many rows and for few."""
    lines = []
    peers = [name for name in names if not name.startswith("ours")]
    for title, chosen in (
        ("M >= 930", [row for (m, k, _), row in rows.items() if m >= 930 and k >= 1024]),
        ("M <= 16", [row for (m, _, _), row in rows.items() if m <= 16]),
    ):
        if not chosen or not peers:
            continue
        lines += ["", f"Median ratio, {title}:", "", "| | " + " | ".join(peers) + " |"]
        lines.append("|---" * (len(peers) + 1) + "|")
        for mine in (name for name in names if name.startswith("ours")):
            cells = " | ".join(
                f"{statistics.median(row[mine].median / row[peer].median for row in chosen):.2f}x"
                for peer in peers
            )
            lines.append(f"| {mine} | {cells} |")
    return lines


def peak_lines(rows: dict[Shape, Row], names: list[str], peaks: dict[Shape, Row]) -> list[str]:
    """Shares of the peak: at the median round, and of the fastest that each had, which leaves out
    what a busy host does to two threads that have to end together."""
    lines = []
    large = [shape for shape in rows if shape[0] >= 930 and shape[1] >= 1024]
    for name in names:
        sequence = CANDIDATES[name].peak
        pairs = [(rows[s][name], peaks[s][sequence]) for s in large if sequence in peaks[s]]
        if pairs:
            shares = [mine.median / peak.median for mine, peak in pairs]
            fastest = [mine.fastest / peak.fastest for mine, peak in pairs]
            of = statistics.median(peak.median for _, peak in pairs)
            lines.append(
                f"{name}: {statistics.median(shares):.0%} of the {of:.0f} GMAC/s that its "
                f"instructions reach from registers beside it, {min(shares):.0%} to "
                f"{max(shares):.0%}; fastest rounds {statistics.median(fastest):.0%}."
            )
    return ["", *lines] if lines else []


def plot(path: Path, rows: dict[Shape, Row], names: list[str], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = {
        "M >= 930": [row for (m, _, _), row in rows.items() if m >= 930],
        "M <= 16": [row for (m, _, _), row in rows.items() if m <= 16],
    }
    groups = {name: chosen for name, chosen in groups.items() if chosen}
    figure, axes = plt.subplots(
        1, len(groups), figsize=(6 * len(groups), 0.35 * len(names) + 1.5), squeeze=False
    )
    for axis, (group, chosen) in zip(axes[0], groups.items(), strict=True):
        values = [statistics.median(row[name].median for row in chosen) for name in names]
        colours = ["tab:orange" if name.startswith("ours") else "tab:blue" for name in names]
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=2)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_xlabel("GMAC/s, median over shapes")
        axis.set_title(group)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape of each kind, few rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", help="a candidate; may be repeated")
    parser.add_argument("--shapes", action="append", choices=SHAPES, help="may be repeated")
    parser.add_argument("--rows", type=int, action="append", help="only these M; may be repeated")
    parser.add_argument("--avx2", action="store_true", help="every side lowered to AVX2")
    parser.add_argument("--out", type=Path, help="Markdown; a plot goes beside it")
    args = parser.parse_args()
    if args.avx2 and os.environ.get("VGGTQUANT_ISA") != "avx2":  # read when libraries are loaded
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **LOWERED})

    shapes = QUICK if args.quick else [s for kind in args.shapes or SHAPES for s in SHAPES[kind]]
    shapes = [shape for shape in shapes if not args.rows or shape[0] in args.rows]
    names = args.only or [name for name in CANDIDATES if not (args.avx2 and name[:3] == "ORT")]
    missing: dict[str, str] = {}
    if args.avx2:
        missing |= dict.fromkeys(
            [name for name in CANDIDATES if name.startswith("ORT")], "cannot be lowered to AVX2"
        )
    keep_memory()
    peaks = Peaks()
    rows: dict[Shape, Row] = {}
    reached: dict[Shape, Row] = {}
    with torch.inference_mode():
        for shape in shapes:
            rounds = 5 if args.quick else args.rounds
            rows[shape], reached[shape] = measure(shape, names, rounds, missing, peaks)
            shown = {name: round(s.median, 1) for name, s in rows[shape].items()}
            print(shape, shown, file=sys.stderr)

    names = [name for name in names if name not in missing]
    with open("/proc/cpuinfo") as info:
        cpu = next((line.split(":")[1].strip() for line in info if "model name" in line), "?")
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    about = (
        f"{cpu}, {platform.machine()}, kernels {vq.isa()}, {torch.get_num_threads()} threads, "
        f"OpenMP {ops.openmp()}, {libraries}"
    )
    lines = [f"{about}. GMAC/s, median of rounds ± half the distance between quartiles.", ""]
    lines += ["| M,K,N | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for (m, k, n), row in rows.items():
        cells = " | ".join(f"{row[name].median:.3g} ±{row[name].spread:.0%}" for name in names)
        lines.append(f"| {m},{k},{n} | {cells} |")
    lines += ratio_lines(rows, names) + peak_lines(rows, names, reached)
    lines += [f"\nNot measured: {name} ({why})" for name, why in missing.items()]
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
        plot(args.out.with_suffix(".png"), rows, names, about)


if __name__ == "__main__":
    main()
