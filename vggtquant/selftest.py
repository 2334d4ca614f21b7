# SPDX-License-Identifier: Apache-2.0
"""Self-test of a machine: `python -m vggtquant.selftest --device cuda`.

Compares every scheme with the scalar kernels of the CPU on ragged sizes, times Linear layers of
VGGT's sizes beside torch's BF16, and reads memory. Writes selftest.json and selftest.txt, to be
attached to a report. Sizes are fitted to free memory and the whole to a time limit.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from . import devices, engines, environment, gpu_linear, ops
from .about import VERSION
from .configs import CONFIGS, QuantizationConfig
from .errors import UserError
from .files import writable_folder, write_bytes
from .linear import QuantizedLinear
from .ops import float8
from .qtensor import quantize

JSON_NAME, TEXT_NAME = "selftest.json", "selftest.txt"
LIMIT_S = 150.0
"""Seconds after which no further speed is measured, unless --seconds says another limit."""
SHARE = 0.5
"""Of the free memory that a measurement may take."""


class Product(NamedTuple):
    """Tokens, inputs and outputs of a Linear layer."""

    m: int
    k: int
    n: int


RAGGED = (
    *(Product(1, 64, 64), Product(3, 130, 65), Product(9, 40, 200), Product(33, 136, 72)),
    *(Product(131, 328, 200), Product(1374, 256, 192)),
)
"""Sizes of the comparison: no multiples of a block, few tokens and many."""
LINEARS = ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024))
"""(inputs, outputs) of VGGT's aggregator."""
TOKENS = (1374, 5496, 11_000, 8)
"""Of one picture of 518 x 518, of four, of eight, and of a camera head."""
TIMED = (
    "INT8_Per_Channel_Symmetric_A8",
    "INT4_Group_128_A8",
    "INT8_Per_Channel_Symmetric",
    "FP8_Per_Channel",
)
RUNS = 15
LONG_S = 0.5
"""Seconds after which a call is not repeated."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BOUND = {"float32": 1e-4, "bfloat16": 4e-2}
"""Largest error of float activations, as a share of the output's largest magnitude. Integer
activations have none."""
UNCODED = 0.05
"""The same where an engine multiplies integer activations before they are coded."""
FLOAT8 = 0.01
"""The same of FP8 to float32, whose sums some tensor cores hold with fewer bits."""


@dataclass(frozen=True)
class Check:
    """One comparison with the scalar kernels."""

    what: str
    scheme: str
    sizes: list[int]
    dtype: str
    kernel: str | None
    error: float | None
    """Largest difference over the largest magnitude; None where the call failed."""
    bound: float
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is not None and self.error <= self.bound


@dataclass(frozen=True)
class Speed:
    """A Linear layer beside torch's BF16: medians, in microseconds of the device."""

    scheme: str
    sizes: list[int]
    kernel: str | None
    us: float
    bf16_us: float
    first_us: float
    """Of the first call, in which an engine is chosen."""
    engines_us: dict[str, float] = field(default_factory=dict)
    """On a GPU, of each engine that serves; `us` is that of the chosen one."""

    @property
    def speedup(self) -> float:
        return self.bf16_us / self.us


@dataclass(frozen=True)
class Held:
    """Bytes of a Linear layer of VGGT's size, bias included."""

    scheme: str
    sizes: list[int]
    nbytes: int
    fp32_nbytes: int
    gpu_peak: int | None
    """Highest memory of the GPU in a forward, weights, input and output included."""


@dataclass
class Findings:
    """All that a self-test found."""

    device: str
    environment: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    memory: list[Held] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> list[Check]:
        """The comparisons that do not hold."""
        return [check for check in self.checks if not check.ok]

    def to_json(self) -> str:
        """All of it, with a verdict for each comparison."""
        found = {"vggtquant": VERSION, "ok": not self.failed, **asdict(self)}
        found["checks"] = [{**asdict(check), "ok": check.ok} for check in self.checks]
        return json.dumps(found, indent=1) + "\n"


# ---- correctness ---------------------------------------------------------------------------------


@contextmanager
def _scalar() -> Iterator[None]:
    """The CPU's scalar kernels, the definition of right."""
    before = ops.isa()
    ops.use_isa("scalar")
    try:
        yield
    finally:
        ops.use_isa(before)


def _layer(config: QuantizationConfig, size: Product) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(size.k * 1000 + size.n)
    plain = nn.Linear(size.k, size.n)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(size.n, size.k, generator=generator) / size.k**0.5)
    return QuantizedLinear.from_linear(plain, config).requires_grad_(False)


def _tokens(size: Product, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size.m)
    return torch.randn(size.m, size.k, generator=generator).to(dtype)


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    if torch.equal(got, want):
        return 0.0
    largest = want.float().abs().max().clamp_min(1e-30)
    found = float((got.float() - want.float()).abs().max() / largest)
    return found if found == found else sys.float_info.max  # a NaN is as far as can be


def compare_product(
    config: QuantizationConfig,
    size: Product,
    dtype: str,
    device: torch.device,
    engine: str | None = None,
) -> Check:
    """A layer's output on the device beside the scalar one; engine: of a GPU."""
    bound = 0.0 if config.quantize_activations else BOUND[dtype]
    if config.is_float8:
        bound = max(BOUND[dtype], FLOAT8)
    elif config.quantize_activations and engine == "decode":
        bound = UNCODED
    about = ("product", config.name, list(size), dtype)
    try:
        layer, x = _layer(config, size), _tokens(size, DTYPES[dtype])
        with torch.inference_mode(), engines.use(engine):
            with _scalar():
                want = layer(x)
            layer.to(device)
            got = layer(x.to(device)).cpu()
    except (RuntimeError, UserError) as error:
        return Check(*about, None, None, bound, _line(error))
    return Check(*about, layer.last_kernel, _difference(got, want), bound)


def compare_codes(config: QuantizationConfig, size: Product, device: torch.device) -> Check:
    """A weight's codes and scales on the device beside the scalar ones."""
    about = ("codes", config.name, [size.n, size.k], "float32", None)
    generator = torch.Generator().manual_seed(size.n)
    weight = torch.randn(size.n, size.k, generator=generator)
    try:
        with _scalar():
            want = quantize(weight, config)
        got = quantize(weight.to(device), config).cpu()
    except (RuntimeError, UserError) as error:
        return Check(*about, None, 0.0, _line(error))
    same = got.spec == want.spec and all(
        (a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes())
        for a, b in (
            (getattr(got, name), getattr(want, name))
            for name in ("packed", "stored_scale", "factor", "stored_zero")
        )
    )
    return Check(*about, *((0.0, 0.0) if same else (None, 0.0, "codes or scales differ")))


def checks(device: torch.device, sizes: Sequence[Product], names: Sequence[str]) -> Iterator[Check]:
    """Every scheme at every size: codes, then products in both dtypes by every engine."""
    for name in names:
        config = CONFIGS[name]
        one_way = device == devices.CPU or config.is_float8
        ways: tuple[str | None, ...] = (None,) if one_way else gpu_linear.NAMES
        for size in sizes:
            if not config.quantize_activations or config.is_float8:
                yield compare_codes(config, size, device)
            for dtype, engine in product(DTYPES, ways):
                yield compare_product(config, size, dtype, device, engine)


def _served(name: str, device: torch.device) -> bool:
    return not CONFIGS[name].is_float8 or float8.missing(device) is None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ---- speed and memory ----------------------------------------------------------------------------


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return (environment.memory_bytes() or 8 << 30) - environment.resident_bytes()


def wanted_bytes(size: Product) -> int:
    """That a measurement takes at most: weights in float32 and twice in bfloat16, tokens, codes,
    outputs of 32 bits and of 16."""
    return 8 * size.k * size.n + size.m * (3 * size.k + 8 * size.n)


def _median(device: torch.device, call: Callable[[], object], runs: int) -> float:
    """Microseconds: of `runs` calls after two, or of fewer where they take more than LONG_S."""
    spent = sum(devices.timed(device, call)[1] for _ in range(2 if runs > 1 else 1))
    took: list[float] = []
    while len(took) < runs and (not took or spent + sum(took) < LONG_S):
        took.append(devices.timed(device, call)[1])
    return 1e6 * statistics.median(took)


def speeds(
    device: torch.device, sizes: Sequence[Product], runs: int, over: Callable[[], bool]
) -> Iterator[Speed | str]:
    """Times of each scheme at each size; or a note on a size that is left out."""
    for size in sizes:
        if over():
            yield f"{_words(size)} and what follows: not timed, the time limit is reached"
            return
        if (wanted := wanted_bytes(size)) > SHARE * _free(device):
            yield f"{_words(size)}: not timed, {wanted} bytes do not fit into the free memory"
            continue
        x = _tokens(size, torch.bfloat16).to(device)
        half = nn.Linear(size.k, size.n).requires_grad_(False).to(device, torch.bfloat16)
        with torch.inference_mode():
            bf16 = _median(device, lambda half=half, x=x: half(x), runs)  # type: ignore[misc]
            for name in (name for name in TIMED if _served(name, device)):
                layer = _layer(CONFIGS[name], size).to(device)
                call = functools.partial(layer, x)
                first = 1e6 * devices.timed(device, call)[1]
                us, kernel = _median(device, call, runs), layer.last_kernel
                each = {} if device == devices.CPU else _each(device, layer, call, runs)
                yield Speed(name, list(size), kernel, us, bf16, first, each)
        del x, half


def _each(
    device: torch.device, layer: QuantizedLinear, call: Callable[[], object], runs: int
) -> dict[str, float]:
    """Microseconds of each engine that serves the call."""
    found = {}
    for name in gpu_linear.NAMES:
        with engines.use(name):
            us = _median(device, call, runs)
        if str(layer.last_kernel).endswith(name):
            found[name] = us
    return found


def _words(size: Product) -> str:
    return f"{size.m} tokens, {size.k} x {size.n}"


def memory(device: torch.device, size: Product) -> Iterator[Held]:
    """Bytes of a layer under each timed scheme, and of a forward on a GPU."""
    plain = 4 * (size.k + 1) * size.n
    for name in (name for name in TIMED if _served(name, device)):
        layer = _layer(CONFIGS[name], size).to(device)
        x = _tokens(size, torch.bfloat16).to(device)
        devices.reset_peak(device)
        with torch.inference_mode():
            layer(x)
        peak = devices.peak(device)
        yield Held(name, list(size), layer.nbytes, plain, peak and peak.allocated)
        del layer, x


# ---- the whole -----------------------------------------------------------------------------------


def selftest(
    device: str | torch.device = "cpu",
    *,
    seconds: float = LIMIT_S,
    sizes: Sequence[Product] = RAGGED,
    linears: Sequence[tuple[int, int]] = LINEARS,
    tokens: Sequence[int] = TOKENS,
    runs: int = RUNS,
    say: Callable[[str], None] = lambda line: None,
) -> Findings:
    """Compare, time and read memory on a device.

    seconds: after so many, no further size is compared or timed. sizes: of the comparison. linears,
    tokens: of the times. runs: calls behind a median.

    Raises:
        UserError: a device that is not there or not served.

    >>> small = Product(3, 40, 24)
    >>> selftest(sizes=[small], linears=[(40, 24)], tokens=[3], runs=1).failed
    []
    """
    target = ops.check_served(device)
    start = time.monotonic()
    found = Findings(str(target), environment.describe(sys.argv, target))

    def over() -> bool:
        return time.monotonic() - start > seconds

    names = [name for name, config in CONFIGS.items() if config.quantizes and not config.fuse]
    if (missing := float8.missing(target)) is not None:
        names = [name for name in names if _served(name, target)]
        found.notes.append(f"FP8 is left out: {missing}")
    for i, size in enumerate(sizes):
        if i and over():
            found.notes.append(
                f"{_words(size)} and larger: not compared, the time limit is reached"
            )
            break
        say(f"comparing {len(names)} schemes: {_words(size)}")
        found.checks += checks(target, [size], names)
    say("timing")
    timed = [Product(m, k, n) for m in tokens for k, n in linears]
    for one in speeds(target, timed, runs, over):
        if isinstance(one, str):
            found.notes.append(one)
        else:
            found.speeds.append(one)
            say(f"{_words(Product(*one.sizes))}, {one.scheme}: {one.speedup:.2f} x BF16")
    largest = max(timed, key=wanted_bytes)
    if wanted_bytes(largest) <= SHARE * _free(target):
        found.memory += memory(target, largest)
    gc.collect()
    found.seconds = round(time.monotonic() - start, 1)
    return found


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
            f"memory of {_words(Product(*held.sizes))}, {held.scheme}: {held.nbytes / 1e6:.2f} MB, "
            f"FP32 {held.fp32_nbytes / 1e6:.2f} MB{peak}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the self-test and writes its files; 0: all comparisons hold, 3: some do not, 2: bad
    input."""
    parser = argparse.ArgumentParser(prog="python -m vggtquant.selftest", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    parser.add_argument("--out", default="vggtquant_selftest", metavar="DIR", help="for the files")
    parser.add_argument(
        "--seconds", type=float, default=LIMIT_S, help="time limit (default %(default)g)"
    )
    args = parser.parse_args(argv)
    try:
        ops.check_served(args.device)
        folder = writable_folder(args.out)
        found = selftest(
            args.device,
            seconds=args.seconds,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        write_bytes(folder / JSON_NAME, found.to_json().encode())
        write_bytes(folder / TEXT_NAME, text(found).encode())
    except UserError as error:
        print(f"vggtquant: error: {error}", file=sys.stderr)
        return 2
    print(text(found), end="")
    print(f"wrote {folder / JSON_NAME} and {folder / TEXT_NAME}")
    return 3 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
