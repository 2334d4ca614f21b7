# SPDX-License-Identifier: Apache-2.0
"""A self-test for a person."""

from __future__ import annotations

from ..about import VERSION
from .compare import BOUND
from .findings import Findings, Product


def text(found: Findings) -> str:
    """The findings for a person."""
    env = found.environment
    gpu = env["gpu"]
    lines = [
        f"vggtquant {VERSION}, self-test on {found.device}, {env['utc']}, {found.seconds} s",
        f"processor: {env['cpu']['model']}, {env['cpu']['isa_active']}",
        *([f"GPU: {gpu['name']}, compute capability {gpu['capability']}, driver {gpu['driver']}, "
           f"CUDA {gpu['cuda']}"] if gpu else []),
        "versions: " + ", ".join(f"{k} {v}" for k, v in env["versions"].items() if v),
        "",
        f"{len(found.checks) - len(found.failed)} of {len(found.checks)} comparisons with the "
        "scalar kernels hold: integer activations bit for bit, float ones within "
        + ", ".join(f"{bound:g} ({dtype})" for dtype, bound in BOUND.items()),
    ]  # fmt: skip
    for check in found.failed:
        said = check.reason or f"error {check.error:g}, at most {check.bound:g}"
        lines.append(f"  FAILED {check.what} {check.scheme} {check.sizes} {check.dtype}: {said}")
    if found.speeds:
        head = f"{'tokens':>6} {'k x n':>11}  {'scheme':30} {'us':>9} {'BF16 us':>9} {'x':>5}"
        lines += ["", f"{head}  kernel"]
    for one in found.speeds:
        m, k, n = one.sizes
        lines.append(
            f"{m:6} {f'{k} x {n}':>11}  {one.scheme:30} {one.us:9.1f} {one.bf16_us:9.1f} "
            f"{one.speedup:5.2f}  {one.kernel}"
            + "".join(f"; {name} {us:.1f} us" for name, us in one.engines_us.items())
        )
    for held in found.memory:
        peak = "" if held.gpu_peak is None else f", peak of a forward {held.gpu_peak / 1e6:.1f} MB"
        lines.append(
            f"memory of {Product(*held.sizes).words}, {held.scheme}: {held.nbytes / 1e6:.2f} MB, "
            f"FP32 {held.fp32_nbytes / 1e6:.2f} MB{peak}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)]) + "\n"
