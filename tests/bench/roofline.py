# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels can take at best, on paper, beside BF16: the tables of docs/gpu.md.

    python tests/bench/roofline.py

Nothing is measured here. A kernel takes as long as the busiest of what it needs: tensor cores,
instructions, shared memory, L2, memory, double precision. Kernels of a call follow each other.
HOST alone was timed, on a CPU.
"""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """Published dense peaks, but for `share` and `l2`, which are assumptions."""

    name: str
    processors: int
    clock: float
    """GHz"""
    bf16: float
    """Tera operations a second; a multiply-add is two."""
    int8: float
    fp64: int
    """Additions or products a clock and processor."""
    bandwidth: float
    """GB/s"""
    l2: float
    """GB/s"""
    share: float
    """Of the INT8 peak that mma.sync can reach."""
    fp8: float
    """As int8, with float32 sums; 0: none."""

    @property
    def issued(self) -> float:
        """Instructions of warps a second: four a clock and processor."""
        return 4 * self.processors * self.clock * 1e9


GPUS = (
    Gpu("H100 SXM", 132, 1.83, 989, 1979, 64, 3350, 6500, 0.60, 1979),
    Gpu("A100 SXM", 108, 1.41, 312, 624, 32, 2039, 5000, 0.70, 0),
    Gpu("RTX 4090", 128, 2.52, 165, 660, 2, 1008, 5000, 0.70, 330),
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
W4 = 0.5 + 2 / 32
"""Bytes of an INT4 weight with the pairs of groups of 32."""

# Counted in the SASS of sm_90 (nvcc 13.0, nvdisasm): instructions of a warp.
GEMM = {(1, 256): 180, (1, 128): 183, (1, 64): 126, (W4, 128): 342, (W4, 64): 215}
"""Of a stage of 64 inputs, by bytes of a weight and outputs of a block. 64 of them, of the narrow
blocks 32, are products."""
FEW_ROWS = {(1, 1): 212, (W4, 1): 253, (1, 8): 323, (W4, 8): 346}
"""By bytes of a weight and tokens: of 8 outputs and 64 inputs, the tokens' way through shared
memory included."""
CODING, CODING_FP8 = 93, 110
"""Of four inputs of each lane, both passes, from bfloat16."""
EPILOGUE = 112
"""Of eight outputs of each lane, to bfloat16, where nothing follows the bias: sums from shared
memory, two scales, zero point, bias, rounding, one store of 16 bytes. Two blocks of a processor are
not taken to overlap."""
EPILOGUE_GELU, EPILOGUE_ADDED = 414, 192
"""The same with GELU, whose polynomial takes 35 for one output; with LayerScale and a residual."""
HOST, HOST_TORCH = 32e-6, 6e-6
"""Seconds of Python in a call of our Linear and of nn.Linear, timed on one core of an Intel Xeon
(Sapphire Rapids) with kernels that do nothing; a CUDA graph spares both."""


def blocks(n: int, size: int) -> int:
    return -(-n // size)


class Tiles(NamedTuple):
    """How a product is cut into blocks."""

    width: int
    count: int
    turns: float
    """Blocks that the busiest processor has, one after the other."""


def tiles(gpu: Gpu, m: int, n: int) -> Tiles:
    """By `fused`: is_narrow in csrc/cuda/linear.cu."""
    wide, narrow = blocks(m, 128) * blocks(n, 128), blocks(m, 128) * blocks(n, 64)
    wide_turns, narrow_turns = blocks(wide, gpu.processors), blocks(narrow, gpu.processors)
    if 20 * wide_turns > 11 * narrow_turns:
        return Tiles(64, narrow, 1.1 * narrow_turns)
    return Tiles(128, wide, wide_turns)


def tiles_256(gpu: Gpu, m: int, n: int) -> Tiles:
    """By blocks of 8 warps, of which a processor holds one; not built."""
    count = blocks(m, 128) * blocks(n, 256)
    return Tiles(256, count, blocks(count, gpu.processors))


def warps(width: int) -> int:
    """Of a block: 64 tokens each, by 32 outputs of a narrow one and 64 of the others."""
    return 8 if width == 256 else 4


def stage_clocks(gpu: Gpu, width: int, weight: float) -> dict[str, float]:
    """Of 128 tokens x `width` outputs x 64 inputs on a processor: each of what they need."""
    rate = gpu.int8 * 1e12 / 2 / gpu.processors / (gpu.clock * 1e9)
    outputs = 2 * width / warps(width)  # of a warp
    read = warps(width) * (64 * 64 + outputs * 64 * weight)
    return {
        "tensor cores": 128 * width * 64 / (rate * gpu.share),
        "instructions": warps(width) * GEMM[weight, width] / 4,
        "shared memory": (read + stage_bytes(width, weight)) / 128,
    }


def epilogue_clocks(width: int, end: int = EPILOGUE) -> float:
    """Of a block of 128 tokens x `width` outputs: its sums to shared memory, and `end`."""
    outputs = 128 * width / warps(width) / 32  # of a lane
    return warps(width) / 4 * (outputs + outputs / 8 * end)


def stage_bytes(width: int, weight: float) -> float:
    """What a block fetches of the L2 for that."""
    return 128 * 64 + width * 64 * weight


def macs(m: int, k: int, n: int) -> int:
    return m * k * n


def gemm_bytes(m: int, k: int, n: int, weight: float) -> float:
    """Codes read once, weights read once, y written as bfloat16. Tiles come from the L2."""
    return m * k + weight * n * k + 2 * m * n


def bf16(gpu: Gpu, m: int, k: int, n: int) -> float:
    """Seconds of a BF16 product."""
    moved = 2 * (m * k + n * k + m * n)
    return max(2 * macs(m, k, n) / (gpu.bf16 * 1e12 * BF16_SHARE), moved / (gpu.bandwidth * 1e9))


def coding(gpu: Gpu, m: int, k: int) -> float:
    """Seconds of coding m tokens from bfloat16."""
    return max(3 * m * k / (gpu.bandwidth * 1e9), CODING * m * k / 4 / 32 / gpu.issued)


def coding_fp8(gpu: Gpu, m: int, k: int) -> float:
    """The same to FP8."""
    return max(3 * m * k / (gpu.bandwidth * 1e9), CODING_FP8 * m * k / 4 / 32 / gpu.issued)


def product(
    gpu: Gpu,
    m: int,
    k: int,
    n: int,
    weight: float,
    cut: Tiles | None = None,
    end: int = EPILOGUE,
) -> float:
    """Seconds of the product of coded tokens; weight: bytes of one, 1 or W4."""
    cut, stages = cut or tiles(gpu, m, n), blocks(k, 64)
    clocks = max(stage_clocks(gpu, cut.width, weight).values())
    return max(
        cut.turns * (stages * clocks + epilogue_clocks(cut.width, end)) / (gpu.clock * 1e9),
        cut.count * stages * stage_bytes(cut.width, weight) / (gpu.l2 * 1e9),
        gemm_bytes(m, k, n, weight) / (gpu.bandwidth * 1e9),
    )


def int8(gpu: Gpu, m: int, k: int, n: int, weight: float, end: int = EPILOGUE) -> float:
    """Seconds of a Linear with INT8 activations: both kernels."""
    return coding(gpu, m, k) + LAUNCH + product(gpu, m, k, n, weight, None, end)


def int_mm(gpu: Gpu, m: int, k: int, n: int) -> float:
    """Seconds of the engine int_mm: coding, the weight's integers, cuBLASLt's product at BF16_SHARE
    of the INT8 peak with sums of 32 bits, and what follows the sums."""
    bandwidth = gpu.bandwidth * 1e9
    library = max(
        2 * macs(m, k, n) / (gpu.int8 * 1e12 * BF16_SHARE), (m * k + n * k + 4 * m * n) / bandwidth
    )
    rest = (2 * n * k + 6 * m * n) / bandwidth
    return coding(gpu, m, k) + 3 * LAUNCH + library + rest


def scaled_mm(gpu: Gpu, m: int, k: int, n: int) -> float | None:
    """Seconds of the engine scaled_mm to bfloat16: coding and the library's product."""
    if not gpu.fp8:
        return None
    bandwidth = gpu.bandwidth * 1e9
    library = max(
        2 * macs(m, k, n) / (gpu.fp8 * 1e12 * BF16_SHARE), (m * k + n * k + 2 * m * n) / bandwidth
    )
    return coding_fp8(gpu, m, k) + LAUNCH + library


NORM_BLOCKS = 9
"""Of code_tokens_kernel with a norm, on a processor: csrc/cuda/resources.toml."""
NORM_LATENCY = 1000
"""Clocks, assumed: a row's way to shared memory, barriers, sums of lanes."""


def norm(gpu: Gpu, m: int, k: int) -> float:
    """Seconds that LayerNorm adds to coding: two chains of k / 16 additions of four clocks."""
    turns = blocks(m, NORM_BLOCKS * gpu.processors)
    return turns * (2 * 4 * k / 16 + NORM_LATENCY) / (gpu.clock * 1e9)


WIDTH = 1024
"""Channels of VGGT's blocks, whose four Linears are SHAPES."""
ENDS = (EPILOGUE, EPILOGUE_ADDED, EPILOGUE_GELU, EPILOGUE_ADDED)
"""Of qkv, proj, fc1 and fc2."""


def block_bf16(gpu: Gpu, m: int) -> float:
    """Seconds of a block without its attention, as torch runs it kernel by kernel: two norms, two
    LayerScales and two sums of WIDTH, a GELU of four times that, and the products."""
    moved = 2 * m * WIDTH * (2 * 2 + 2 * 2 + 2 * 3 + 4 * 2)
    return sum(bf16(gpu, m, *s) for s in SHAPES) + moved / (gpu.bandwidth * 1e9) + 10 * LAUNCH


def block_int8(gpu: Gpu, m: int, weight: float) -> float:
    """The same of a fused block: norms in the coding, all else in the products' ends."""
    added = 2 * 2 * m * WIDTH / (gpu.bandwidth * 1e9)  # the residuals are read
    products = sum(int8(gpu, m, *s, weight, end) for s, end in zip(SHAPES, ENDS, strict=True))
    return products + 2 * norm(gpu, m, WIDTH) + added + 3 * LAUNCH


def block_fp8(gpu: Gpu, m: int) -> float | None:
    """The same in FP8: norms in the coding, GELU and twice LayerScale with a sum by torch."""
    if not gpu.fp8:
        return None
    products = sum(scaled_mm(gpu, m, *s) or 0.0 for s in SHAPES)
    moved = 2 * m * WIDTH * (4 * 2 + 2 * 3)
    return products + 2 * norm(gpu, m, WIDTH) + moved / (gpu.bandwidth * 1e9) + 6 * LAUNCH


def parts(gpu: Gpu, m: int, k: int, n: int) -> int:
    """In how many parts of its depth csrc/cuda/linear.cu cuts a product."""
    narrow, stages = min(blocks(m, 128) * blocks(n, 64), 128), blocks(k, 64)
    found = max(1, min(gpu.processors // narrow, 16, stages // 4))
    return found if stages - blocks(stages, found) >= 32 else 1


def product_in_parts(gpu: Gpu, m: int, k: int, n: int, weight: float) -> float:
    """Seconds of a small product in parts, their sums and what follows: three kernels."""
    count, cut = blocks(m, 128) * blocks(n, 64), parts(gpu, m, k, n)
    stages = blocks(blocks(k, 64), cut)
    clocks = stages * max(stage_clocks(gpu, 64, weight).values()) + 4 * 64
    turns = blocks(count * cut, gpu.processors)
    seconds = max(
        turns * clocks / (gpu.clock * 1e9),
        count * cut * stages * stage_bytes(64, weight) / (gpu.l2 * 1e9),
        gemm_bytes(m, k, n, weight) / (gpu.bandwidth * 1e9),
    )
    return seconds + (4 * m * n * (2 + cut)) / (gpu.l2 * 1e9) + 2 * LAUNCH


def from_python(seconds: float, host: float) -> float:
    """Seconds of a call that is one of many: the GPU's or the host's, whichever takes longer."""
    return max(seconds, host)


def weight_only(gpu: Gpu, m: int, k: int, n: int, weight: float) -> float:
    """Seconds with float activations: packed weights read once, or decoded and multiplied."""
    if m <= FEW:
        moved = (weight * n * k + 2 * m * (k + n)) / (gpu.bandwidth * 1e9)
        return max(moved, blocks(n, 8) * blocks(k, 64) * FEW_ROWS[weight, m] / gpu.issued)
    return (weight + 2) * n * k / (gpu.bandwidth * 1e9) + LAUNCH + bf16(gpu, m, k, n)


# Elements, bytes moved and operations in double precision of each.
WEIGHT, IMAGE = 4096 * 1024, 3 * 518 * 518
OTHERS = (
    ("range of a weight 4096 x 1024, float32", WEIGHT, 4, 0),
    ("quantize it to INT8", WEIGHT, 5, 0),
    ("quantize it to INT4", WEIGHT, 4.5, 0),
    ("two-level scales of it, groups of 32", WEIGHT, 4, 32),
    ("dequantize INT8 to bfloat16", WEIGHT, 3, 0),
    ("decode packed INT8 to bfloat16", WEIGHT, 3, 0),
    ("decode packed INT4 to bfloat16", WEIGHT, 2 + W4, 0),
    ("moments of images 3 x 518 x 518, float32", IMAGE, 8, 25),
    ("cross entropies of them", IMAGE, 8, 90),
    ("SSIM of them", IMAGE, 8, 280),
)


def cells(*values: object) -> str:
    return "| " + " | ".join(str(v) for v in values) + " |"


def head(*titles: str) -> list[str]:
    return [cells(*titles), "|" + "---|" * len(titles)]


def us(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


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


def loop_table() -> list[str]:
    """What a block of 128 x 128 needs of a processor, stage by stage, and of the L2."""
    lines = head(
        "GPU",
        "weights",
        "tensor cores, clocks",
        "instructions, clocks",
        "shared memory, clocks",
        "L2 at that speed, TB/s",
        "end of a block, clocks",
    )
    for gpu in GPUS:
        for name, weight in (("W8A8", 1), ("W4A8", W4)):
            clocks = stage_clocks(gpu, 128, weight)
            seconds = max(clocks.values()) / (gpu.clock * 1e9) / gpu.processors
            drawn = stage_bytes(128, weight) / seconds / 1e12
            lines.append(
                cells(
                    gpu.name,
                    name,
                    *(f"{c:.0f}" for c in clocks.values()),
                    f"{drawn:.1f}",
                    f"{epilogue_clocks(128):.0f}",
                )
            )
    return lines


def time_table(gpu: Gpu) -> list[str]:
    lines = head(
        "inputs x outputs",
        "tokens",
        "BF16 µs",
        "coding µs",
        "W8A8 µs",
        "ratio",
        "int_mm µs",
        "FP8 µs",
        "W4A8 µs",
        "ratio",
        "ratio from Python",
        "weight-only W8 µs",
    )
    for k, n in SHAPES:
        for m in TOKENS:
            base, w8, w4 = bf16(gpu, m, k, n), int8(gpu, m, k, n, 1), int8(gpu, m, k, n, W4)
            fp8 = scaled_mm(gpu, m, k, n)
            eager = from_python(base, HOST_TORCH) / from_python(min(w8, w4), HOST)
            lines.append(
                cells(
                    f"{k} x {n}",
                    m,
                    us(base),
                    us(coding(gpu, m, k)),
                    us(w8),
                    f"{base / w8:.2f}",
                    us(int_mm(gpu, m, k, n)),
                    "-" if fp8 is None else us(fp8),
                    us(w4),
                    f"{base / w4:.2f}",
                    f"{eager:.2f}",
                    us(weight_only(gpu, m, k, n, 1)),
                )
            )
    return lines


def wider_table() -> list[str]:
    """How many times faster W8A8 would be with blocks of 256 outputs."""
    lines = head("GPU", "inputs x outputs", *(f"{m} tokens" for m in TOKENS))
    for gpu in GPUS:
        for k, n in SHAPES:
            times = []
            for m in TOKENS:
                before = coding(gpu, m, k) + LAUNCH
                wider = before + product(gpu, m, k, n, 1, tiles_256(gpu, m, n))
                times.append(f"{int8(gpu, m, k, n, 1) / wider:.2f}")
            lines.append(cells(gpu.name, f"{k} x {n}", *times))
    return lines


def few_table() -> list[str]:
    lines = head("GPU", "inputs x outputs", "tokens", "BF16 µs", "W8 µs", "W4 µs")
    for gpu in GPUS:
        for k, n in SHAPES[2:]:
            for m in (1, FEW):
                times = [bf16(gpu, m, k, n)]
                times += [weight_only(gpu, m, k, n, weight) for weight in (1, W4)]
                lines.append(cells(gpu.name, f"{k} x {n}", m, *(f"{1e6 * t:.2f}" for t in times)))
    return lines


def block_table() -> list[str]:
    titles = ("W8A8 µs", "ratio", "W4A8 µs", "ratio", "FP8 µs", "ratio")
    lines = head("GPU", "tokens", "BF16 µs", *titles)
    for gpu in GPUS:
        for m in TOKENS:
            base, w8, w4 = block_bf16(gpu, m), block_int8(gpu, m, 1), block_int8(gpu, m, W4)
            times = (w8, w4, block_fp8(gpu, m))
            ratios = [w for t in times for w in ((us(t), f"{base / t:.2f}") if t else ("-", "-"))]
            lines.append(cells(gpu.name, m, us(base), *ratios))
    return lines


def parts_table() -> list[str]:
    lines = head("GPU", "inputs x outputs", "tokens", "whole depth µs", "parts", "in parts µs")
    for gpu in GPUS:
        for k, n in SHAPES[2:]:
            for m in (1, 64, 256):
                cut = parts(gpu, m, k, n)
                whole = us(product(gpu, m, k, n, 1))
                small = us(product_in_parts(gpu, m, k, n, 1)) if cut > 1 else "-"
                lines.append(cells(gpu.name, f"{k} x {n}", m, whole, cut, small))
    return lines


def others_table() -> list[str]:
    lines = head("kernel", "MB", *(f"{gpu.name} µs" for gpu in GPUS))
    for name, n, bytes_, doubles in OTHERS:
        times = []
        for gpu in GPUS:
            arithmetic = n * doubles / (gpu.fp64 * gpu.processors * gpu.clock * 1e9)
            times.append(us(max(n * bytes_ / (gpu.bandwidth * 1e9), arithmetic)))
        lines.append(cells(name, f"{n * bytes_ / 1e6:.1f}", *times))
    return lines


def tables() -> str:
    """All of them, as docs/gpu.md has them."""
    found = [["**Work of a call**", "", *work_table()]]
    found += [["**A stage of the product**, 128 x 128 x 64", "", *loop_table()]]
    found += [[f"**{gpu.name}**, expected times", "", *time_table(gpu)] for gpu in GPUS]
    found += [["**A block of VGGT without its attention**, expected times", "", *block_table()]]
    found += [["**Few coded tokens**, W8A8, the product alone", "", *parts_table()]]
    found += [
        ["**Blocks of 128 x 256**, W8A8: the time with those that are built, divided by theirs"]
    ]
    found[-1] += ["", *wider_table()]
    found += [[f"**Up to {FEW} tokens**, weight-only", "", *few_table()]]
    found += [["**The other kernels**, expected times", "", *others_table()]]
    return "\n\n".join("\n".join(part) for part in found)


if __name__ == "__main__":
    print(tables())
