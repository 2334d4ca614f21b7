# SPDX-License-Identifier: Apache-2.0
"""What the CUDA Linear can take at best, on paper, beside BF16: the tables of docs/gpu.md.

    python tests/bench/roofline.py

Nothing is measured here. A kernel takes as long as its arithmetic at an assumed share of the peak,
or its bytes at the memory's bandwidth, whichever is longer; kernels of a call follow each other.
"""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """Published dense peaks; `share`: of the INT8 peak that mma.sync is assumed to reach."""

    name: str
    processors: int
    bf16: float
    """Tera operations a second; a multiply-add is two."""
    int8: float
    bandwidth: float
    """GB/s"""
    share: float


GPUS = (
    Gpu("H100 SXM", 132, 989, 1979, 3350, 0.60),
    Gpu("A100 SXM", 108, 312, 624, 2039, 0.70),
    Gpu("RTX 4090", 128, 165, 660, 1008, 0.70),
)
BF16_SHARE = 0.80
"""Of the BF16 peak that cuBLAS is assumed to reach, whatever the shape."""
LAUNCH = 2e-6
"""Seconds that each kernel of ours beyond the first adds."""
SHAPES = ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024))
"""(inputs, outputs) of the Linears of VGGT's aggregator."""
TOKENS = (1374, 2748, 5496, 11000)
FEW = 8
"""Tokens up to which float activations are multiplied with packed weights themselves."""


def blocks(n: int, size: int) -> int:
    return -(-n // size)


def fill(gpu: Gpu, m: int, n: int) -> float:
    """Share of the processors' time in which they have blocks; csrc/cuda/linear.cu, is_narrow."""
    wide, narrow = blocks(m, 128) * blocks(n, 128), blocks(m, 128) * blocks(n, 64)
    wide_turns, narrow_turns = blocks(wide, gpu.processors), blocks(narrow, gpu.processors)
    is_narrow = 20 * wide_turns > 11 * narrow_turns
    turns = 1.1 * narrow_turns / 2 if is_narrow else wide_turns
    return m * n / (128 * 128 * turns * gpu.processors)


def macs(m: int, k: int, n: int) -> int:
    return m * k * n


def gemm_bytes(m: int, k: int, n: int, weight: float) -> float:
    """Codes read once, weights read once, y written as bfloat16. Tiles come from the cache."""
    return m * k + weight * n * k + 2 * m * n


def bf16(gpu: Gpu, m: int, k: int, n: int) -> float:
    """Seconds of a BF16 product."""
    moved = 2 * (m * k + n * k + m * n)
    return max(2 * macs(m, k, n) / (gpu.bf16 * 1e12 * BF16_SHARE), moved / (gpu.bandwidth * 1e9))


def int8(gpu: Gpu, m: int, k: int, n: int, weight: float) -> float:
    """Seconds of coding the tokens and of the product; weight: bytes of one, 1 or 0.5625."""
    coding = 3 * m * k / (gpu.bandwidth * 1e9)
    compute = 2 * macs(m, k, n) / (gpu.int8 * 1e12 * gpu.share * fill(gpu, m, n))
    return coding + LAUNCH + max(compute, gemm_bytes(m, k, n, weight) / (gpu.bandwidth * 1e9))


W4 = 0.5 + 2 / 32
"""Bytes of an INT4 weight with the pairs of groups of 32."""


def weight_only(gpu: Gpu, m: int, k: int, n: int, weight: float) -> float:
    """Seconds with float activations: packed weights read once, or decoded and multiplied."""
    if m <= FEW:
        return (weight * n * k + 2 * m * (k + n)) / (gpu.bandwidth * 1e9)
    return (weight + 2) * n * k / (gpu.bandwidth * 1e9) + LAUNCH + bf16(gpu, m, k, n)


def cells(*values: object) -> str:
    return "| " + " | ".join(str(v) for v in values) + " |"


def head(*titles: str) -> list[str]:
    return [cells(*titles), "|" + "---|" * len(titles)]


def work_table() -> list[str]:
    lines = head("inputs x outputs", "tokens", "GMAC", "BF16 MB", "coding MB", "W8A8 MB", "W4A8 MB")
    for k, n in SHAPES:
        for m in TOKENS:
            moved = (
                2 * (m * k + n * k + m * n),
                3 * m * k,
                gemm_bytes(m, k, n, 1),
                gemm_bytes(m, k, n, W4),
            )
            mb = (f"{bytes_ / 1e6:.1f}" for bytes_ in moved)
            lines.append(cells(f"{k} x {n}", m, f"{macs(m, k, n) / 1e9:.1f}", *mb))
    return lines


def time_table(gpu: Gpu) -> list[str]:
    lines = head(
        "inputs x outputs", "tokens", "BF16 µs", "W8A8 µs", "ratio", "W4A8 µs", "weight-only W8 µs"
    )
    for k, n in SHAPES:
        for m in TOKENS:
            base, w8, w4 = bf16(gpu, m, k, n), int8(gpu, m, k, n, 1), int8(gpu, m, k, n, W4)
            only = weight_only(gpu, m, k, n, 1)
            us = [f"{1e6 * seconds:.1f}" for seconds in (base, w8, w4, only)]
            lines.append(cells(f"{k} x {n}", m, us[0], us[1], f"{base / w8:.2f}", us[2], us[3]))
    return lines


def few_table() -> list[str]:
    lines = head("GPU", "inputs x outputs", "tokens", "BF16 µs", "W8 µs", "W4 µs")
    for gpu in GPUS:
        for k, n in SHAPES[2:]:
            m = FEW
            times = (
                bf16(gpu, m, k, n),
                weight_only(gpu, m, k, n, 1),
                weight_only(gpu, m, k, n, W4),
            )
            us = (f"{1e6 * t:.2f}" for t in times)
            lines.append(cells(gpu.name, f"{k} x {n}", m, *us))
    return lines


def tables() -> str:
    """All of them, as docs/gpu.md has them."""
    parts = [["**Work of a call**", "", *work_table()]]
    parts += [[f"**{gpu.name}**, expected times", "", *time_table(gpu)] for gpu in GPUS]
    parts += [[f"**Up to {FEW} tokens**, weight-only", "", *few_table()]]
    return "\n\n".join("\n".join(part) for part in parts)


if __name__ == "__main__":
    print(tables())
