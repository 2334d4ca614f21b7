# SPDX-License-Identifier: Apache-2.0
"""Runs every CUDA kernel on the CPU: csrc/cuda compiled as C++ against tests/cuda_shim.

Each program runs twice: under the address and undefined-behaviour sanitizers, and with every
access watched for races between threads. Its results must equal the scalar core's, bit for bit.
"""

import contextlib
import copy
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import linears
import numpy as np
import pytest
import reference
import test_core
import torch
from once import in_any_order, once

import vggtquant as vq
from vggtquant import engines, gpu_linear, ops
from vggtquant.errors import UserError
from vggtquant.ops import float8

ROOT = Path(__file__).parents[1]
SHIM = ROOT / "tests" / "cuda_shim"
CUDA = ROOT / "csrc" / "cuda"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
C_COMPILER = shutil.which(os.environ.get("CC", "cc"))

pytestmark = [
    pytest.mark.skipif(not CUDA.is_dir(), reason="the sources are not beside the tests"),
    pytest.mark.skipif(COMPILER is None or C_COMPILER is None, reason="no C++ or no C compiler"),
]

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-unknown-pragmas"]
FLAGS = [
    "-x",
    "c++",
    "-std=c++17",
    "-O1",
    "-g1",  # lines for the sanitizers' words
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",  # as the GPU has it: vectors of words are read from bytes
    *WARNINGS,
    f"-I{SHIM}",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SM75 = "-DVGQ_ARCH=750"
# What instruments the sources, what else the programs need, and what the shim itself is told.
KINDS = {
    "sanitized": (SANITIZERS, SANITIZERS, ["-DVGQ_ADDRESS_SANITIZER"]),
    "watched": (["-fsanitize=thread"], [], []),
    # What kernels do on sm_75.
    "sanitized-75": ([*SANITIZERS, SM75], [*SANITIZERS, SM75], ["-DVGQ_ADDRESS_SANITIZER"]),
    "watched-75": (["-fsanitize=thread", SM75], [SM75], []),
    "plain": ([], [], []),
    "plain-75": ([SM75], [SM75], []),
    "module": (["-O2"], ["-O2"], []),
}


def shell(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"


class Workshop:
    """Compiles each file once a kind, for all processes of pytest-xdist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, target: Path, *command: object) -> Path:
        """target, from command and `-o target`."""
        return once(target, lambda part: shell(*command, "-o", part))

    def core(self) -> list[Path]:
        """The C core as it ships, whose scalar table is the reference; test_core.py has the same
        objects, and sees to its faults."""
        folder = self.folder.parent / "core"
        folder.mkdir(exist_ok=True)
        return test_core.objects(folder, test_core.SHIPPED, test_core.CORE)

    def objects(self, kind: str, sources: list[Path], faults: Path | None = None) -> list[Path]:
        """Of the CUDA sources (or their faulty twins), the shim and a program."""
        instrument, others, told = KINDS[kind]
        folder = self.folder / kind if faults is None else faults

        def compiled(path: Path) -> Path:
            flags = instrument if path.suffix == ".cu" else others
            if path.name in ("shim.cpp", "race.cpp"):
                flags = told
            target = folder / f"{path.stem}{path.suffix[1]}.o"
            return self.make(target, COMPILER, *FLAGS, *flags, "-c", path)

        return in_any_order(compiled, sources)

    def program(self, kind: str, name: str, cuda: list[Path], faults: Path | None = None) -> Path:
        shared = [SHIM / "shim.cpp", SHIM / "race.cpp", SHIM / "harness.cpp", SHIM / f"{name}.cpp"]
        objects = self.objects(kind, shared) + self.objects(kind, cuda, faults)
        program = (faults or self.folder / kind) / name
        libraries = ["-lm", "-ldl", "-lpthread"]
        return self.make(program, COMPILER, *KINDS[kind][1], *objects, *self.core(), *libraries)


@pytest.fixture
def workshop(shared: Path) -> Workshop:
    return Workshop(shared / "cuda")


def run(program: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout[-2000:] + done.stderr[-4000:]


# A program and the sources that it calls.
PROGRAMS = {
    "test_quantize": ["quantize", "two_level", "device"],
    "test_metrics": ["metrics"],
    "test_linear": ["linear"],
}


def sound(workshop: Workshop, kind: str, name: str, *arguments: str) -> tuple[int, str]:
    cuda = [CUDA / f"{stem}.cu" for stem in PROGRAMS[name]]
    return run(workshop.program(kind, name, cuda), *arguments)


# By default races are watched for, and the Linear runs on the pretended GPU (below).
LONG = [
    ("sanitized", "test_quantize"),
    ("sanitized", "test_metrics"),
    ("sanitized", "test_linear", "few"),
    ("watched", "test_linear", "few"),
    ("plain", "test_linear"),
    ("sanitized", "test_linear"),
    ("watched", "test_linear"),
    ("plain-75", "test_linear", "few"),
    ("plain-75", "test_linear"),
    ("sanitized-75", "test_linear", "few"),
    ("watched-75", "test_linear", "few"),
]
EVERY = [
    ("watched", "test_quantize"),
    ("watched", "test_metrics"),
    *(pytest.param(case, marks=pytest.mark.slow) for case in LONG),
]


@pytest.mark.parametrize("case", EVERY, ids=lambda case: "-".join(case))
def test_every_kernel_equals_the_scalar_core(workshop: Workshop, case: tuple[str, ...]) -> None:
    status, output = sound(workshop, *case)
    print(output.splitlines()[-1] if output else "")
    assert status == 0 and "checks: all passed" in output, output
    assert "WARNING" not in output, output


# ---- seeded faults -------------------------------------------------------------------------------

# A change of a source and what the shim says of it: (file, pattern, replacement, kind, words) and,
# where the file's name does not say it, the program.
FAULTS = {
    "a barrier is missing before the scales of a row's groups are read": (
        "two_level.cu",
        r"(scales\[side\] = widest;\n)    __syncthreads\(\);",
        r"\1",
        "watched",
        "of shared memory is read before",
    ),
    "a barrier is missing before errors are overwritten": (
        "two_level.cu",
        r"(total \+= errors\[threadIdx\.x\]\[i\];\n)        __syncthreads\(\);",
        r"\1",
        "watched",
        "race: ",
    ),
    "a barrier is missing after a row of pixels is staged": (
        "metrics.cu",
        r"(= d \* d;\n        \}\n)        __syncthreads\(\);",
        r"\1",
        "watched",
        "of shared memory",
    ),
    "a barrier that half the threads do not reach": (
        "metrics.cu",
        r"(sums\[t\] = a;\n        \}\n)        __syncthreads\(\);",
        r"\1        if (t < pairs) __syncthreads();",
        "watched",
        "a barrier that not all reach",
    ),
    "codes are written one element beyond a row": (
        "quantize.cu",
        r"vgq_min\(RUN, c\.shape\.cols - col\)",
        "vgq_min(RUN, c.shape.cols - col + 1)",
        "sanitized",
        "heap-buffer-overflow",
    ),
    "pixels are read one beyond the picture": (
        "metrics.cu",
        r"i < n \+ ABOVE \* s\.channels;",
        "i < n + ABOVE * s.channels + 1;",
        "sanitized",
        "heap-buffer-overflow",
    ),
    "two threads own the same byte": (
        "quantize.cu",
        r"col = run % c\.row_runs \* RUN",
        "col = (run % c.row_runs ? run % c.row_runs - 1 : 0) * RUN",
        "watched",
        "race: ",
    ),
    "lanes are added in another order": (
        "common.cuh",
        r"int step = VGQ_LANES / 2; step > 0; step /= 2\)\n        x = x \+",
        "int step = 1; step < VGQ_LANES; step *= 2)\n        x = x +",
        "sanitized",
        "same(",
    ),
    "a row that is not aligned is read by vectors": (
        "common.cuh",
        r"cols % by == 0 && \(uintptr_t\)rows",
        "cols % by == 0 && 0 * (uintptr_t)rows",
        "sanitized",
        "misaligned address",
        "test_quantize",
    ),
    "the halves of a B fragment are swapped": (
        "linear_gemm.cuh",
        r"b\[u\]\[0\], b\[u\]\[1\]\);",
        "b[u][1], b[u][0]);",
        "plain",
        "is wanted",
    ),
    "an INT4 unit is expanded with its neighbour's factor": (
        "linear.cuh",
        r"high \? 0x4442 : 0x4440",
        "0x4440",
        "plain",
        "is wanted",
    ),
    "INT4 codes are expanded with another zero point": (
        "linear.cuh",
        r"high \? 0x3333 : 0x1111",
        "high ? 0x3333 : 0x3333",
        "plain",
        "is wanted",
    ),
    "an input beyond the row's last is multiplied": (
        "linear.cuh",
        r"vgq_least\(4, end - i\)",
        "vgq_least(4, end - i + 1)",
        "plain",
        "is wanted",
    ),
    "an output beyond the row's last is written": (
        "linear_gemm.cuh",
        r"vgq_least\(8, args\.n - c\)",
        "vgq_least(8, args.n - c + 1)",
        "sanitized",
        "heap-buffer-overflow",
    ),
    "tokens are overwritten while others multiply them": (
        "linear_gemv.cuh",
        r"__syncthreads\(\);( /\* all are done with the chunk before)",
        r"\1",
        "watched",
        "race: ",
    ),
    "tokens are multiplied before others have fetched them": (
        "linear_gemv.cuh",
        r"(VGQ_CUDA_DEPTH, shared\);\n\s*)__syncthreads\(\);",
        r"\1",
        "watched",
        "shared memory",
    ),
    "the last stages of few tokens are left out": (
        "linear_gemv.cuh",
        r"tile < tiles \+ warp;",
        "tile < tiles;",
        "plain",
        "a barrier that not all reach",
    ),
    "rows of an A fragment are swapped": (
        "linear_gemm.cuh",
        r"lane % 16, step \* 2",
        "lane % 8 * 2 + lane / 8 % 2, step * 2",
        "plain",
        "is wanted",
    ),
    "quarters of a fragment are swapped on sm_75": (
        "mma.cuh",
        r"d\[1\], a\[2\], b1",
        "d[1], a[1], b1",
        "plain-75",
        "is wanted",
    ),
    "a stage is used before its copies have come": (
        "linear_gemm.cuh",
        r"copy_wait<shape::stages - 2>\(\);",
        "copy_wait<shape::stages - 1>();",
        "plain",
        "is wanted",
    ),
    "a stage is filled while others use it": (
        "linear_gemm.cuh",
        r"(copy_wait<shape::stages - 2>\(\);\n\s*)__syncthreads\(\);",
        r"\1",
        "watched",
        "shared memory",
    ),
    "sums go where others still read the last stage": (
        "linear_gemm.cuh",
        r"__syncthreads\(\);( /\* all are done with the last stage)",
        r"\1",
        "watched",
        "race: ",
    ),
    "a stage is used before others have put it there, on sm_75": (
        "linear_gemm.cuh",
        r"(loader\.put\(stages\);\n\s*)__syncthreads\(\);",
        r"\1",
        "watched-75",
        "shared memory",
    ),
    "the largest magnitude is read before all have found theirs": (
        "linear_tokens.cuh",
        r"(shared\[threadIdx\.x / VGQ_WARP\] = x;\n\s*)__syncthreads\(\);",
        r"\1",
        "watched",
        "shared memory",
    ),
    "a row beyond the last is written": (
        "linear_gemm.cuh",
        r"if \(m < args\.m\)",
        "if (m <= args.m)",
        "sanitized",
        "heap-buffer-overflow",
    ),
    "a part of the depth begins where the first one does": (
        "linear_gemm.cuh",
        r"first = \(int\)blockIdx\.z \* args\.split",
        "first = 0",
        "plain",
        "is wanted",
    ),
    "a norm's deviation is not that of the mean": (
        "linear_tokens.cuh",
        r"row\.one\(i\) - mean;",
        "row.one(i);",
        "plain",
        "is wanted",
    ),
    "ldmatrix meets banks twice": (
        "linear_gemm.cuh",
        r"piece \^ \(row >> 1 & 3\)",
        "piece",
        "plain",
        "met a bank twice",
    ),
}


def seeded(workshop: Workshop, fault: str) -> tuple[int, str]:
    name, pattern, replacement, kind, _, *program = FAULTS[fault]
    folder = workshop.folder / f"fault{list(FAULTS).index(fault)}"
    sources = folder / "csrc" / "cuda"
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    text = (sources / name).read_text()
    changed, count = re.subn(pattern, replacement, text)
    assert count >= 1, "the source has changed, and the fault must follow it"
    (sources / name).write_text(changed)
    subject = re.split(r"[_.]", name)[0]
    tested = {"quantize": "test_quantize", "two": "test_quantize"}
    tested |= {"linear": "test_linear", "mma": "test_linear"}
    (chosen,) = program or [tested.get(subject, "test_metrics")]
    cuda = [sources / f"{stem}.cu" for stem in PROGRAMS[chosen]]
    return run(workshop.program(kind, chosen, cuda, faults=folder), "few")


# One fault for each thing that the shim says is tried by default: the cheapest to compile.
TYPICAL = {
    "a barrier is missing before the scales of a row's groups are read",
    "two threads own the same byte",
    "a barrier that half the threads do not reach",
    "an INT4 unit is expanded with its neighbour's factor",
}
assert {FAULTS[fault][4] for fault in TYPICAL} >= {
    "race: ", "a barrier that not all reach", "is wanted",
}  # fmt: skip


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[] if fault in TYPICAL else [pytest.mark.slow]) for fault in FAULTS],
)
def test_a_seeded_fault_is_caught(workshop: Workshop, fault: str) -> None:
    status, output = seeded(workshop, fault)
    print(output[-300:])
    assert status != 0 and FAULTS[fault][4] in output, output


# ---- the Python layer, on a _cuda whose device is this CPU ---------------------------------------


@pytest.fixture
def module_on_shim(workshop: Workshop) -> Path:
    """_cuda, whose device is this CPU."""
    cuda = sorted(CUDA.glob("*.cu"))
    objects = workshop.objects("module", [SHIM / "shim.cpp", SHIM / "race.cpp", *cuda])
    python = ROOT / "csrc" / "python"
    binding = [*sorted((python / "cuda").glob("*.c")), python / "words.c"]
    include = f"-I{sysconfig.get_path('include')}"
    flags = ["-shared", "-fPIC", "-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", include]
    shared = ("formats", "metrics_sizes", "status", "weight")
    sources = [*binding, *(ROOT / "csrc" / f"{name}.c" for name in shared), *objects]
    target = workshop.folder / "module" / "_cuda.so"
    return workshop.make(target, C_COMPILER, *flags, *sources, "-lstdc++", "-lm")


def tensors_lie_on_a_gpu(patch: pytest.MonkeyPatch, answer: bool) -> None:
    """What `on_gpu` says of a tensor from now on."""
    for module in (ops, ops.native):
        patch.setattr(module, "on_gpu", lambda x: answer and isinstance(x, torch.Tensor))


@pytest.fixture
def pretended(module_on_shim: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch CPU tensors go the way of CUDA tensors, to a _cuda that runs on the shim."""
    loader = importlib.machinery.ExtensionFileLoader("vggtquant._cuda", str(module_on_shim))
    spec = importlib.util.spec_from_loader("vggtquant._cuda", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(ops.native, "cuda", module)
    tensors_lie_on_a_gpu(monkeypatch, True)
    monkeypatch.setattr(ops.native, "queue", lambda call, args, device: call(*args, 0))
    with engines.use("fused"):
        yield


PYTEST = ["-m", "pytest", "-q", "-n", "0", "-p", "pretended_gpu"]
# What runs there, and how many tests of it must pass.
PRETENDING = {
    "tests": ([*PYTEST, "test_cuda_gpu.py"], 80),
    "main": ([*PYTEST, "test_cuda_gpu_main.py"], 8),
    "bench": (["pretended_gpu.py"], 0),
}


@pytest.mark.parametrize("what", ["tests", "main", pytest.param("bench", marks=pytest.mark.slow)])
def test_what_is_for_a_gpu_runs_on_a_pretended_one(
    module_on_shim: Path, tmp_path: Path, what: str
) -> None:
    """Whoever has a GPU runs the same lines."""
    command, least = PRETENDING[what]
    pretended = {"VGGTQUANT_PRETENDED": str(module_on_shim), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT / "tests",
        env=os.environ | pretended,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert not least or (passed and int(passed[1]) >= least), done.stdout[-1000:]
    assert what != "bench" or done.stdout.count("|") > 100


def tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(3, 70), (2, 5, 7), (33,), (1, 256), (0, 4)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def as_numpy(buffer: ops.Buffer) -> np.ndarray:
    return buffer.numpy() if isinstance(buffer, torch.Tensor) else buffer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantize_is_the_same_on_both_devices(
    pretended: None, config: vq.QuantizationConfig, dtype: torch.dtype
) -> None:
    for x in tensors(dtype):
        got = vq.quantize(x, config)
        back = got.dequantize()
        with pytest.MonkeyPatch.context() as patch:
            tensors_lie_on_a_gpu(patch, False)
            want = vq.quantize(x, config)
            want_back = want.dequantize()
        assert isinstance(got.packed, torch.Tensor) and isinstance(want.packed, np.ndarray)
        assert got.spec == want.spec and got.nbytes == want.nbytes
        for name in ("packed", "stored_scale", "factor", "stored_zero"):
            a, b = getattr(got, name), getattr(want, name)
            assert (a is None) == (b is None)
            assert a is None or as_numpy(a).tobytes() == b.tobytes(), name
        for name in ("codes", "scale", "zero_point"):
            assert np.array_equal(as_numpy(getattr(got, name)), getattr(want, name)), name
        assert back.dtype == dtype and torch.equal(back, want_back)


def test_metrics_are_the_same_on_both_devices(pretended: None) -> None:
    generator = torch.Generator().manual_seed(4)
    for shape, axes in [((2, 3, 24, 17), (2, 3)), ((2, 24, 17, 3), (1, 2)), ((5, 4099), None)]:
        r = torch.randn(shape, generator=generator)
        c = (r + 0.01 * torch.randn(shape, generator=generator)).bfloat16()
        got = vq.compare(r, c, image_axes=axes)
        assert got == vq.compare(r.numpy(), c.float().numpy(), image_axes=axes)
    nan = torch.tensor([1.0, float("nan"), 2.0])
    assert vq.compare(nan, nan)["nonfinite_reference"] == 1


def test_given_scales_go_to_the_device(pretended: None) -> None:
    x = torch.linspace(-2, 2, 64).reshape(2, 32)
    q = vq.quantize(x, "INT8_Per_Channel_Asymmetric", scale=[0.02, 0.03], zero_point=[3, -4])
    want = vq.quantize(
        x.numpy(), "INT8_Per_Channel_Asymmetric", scale=[0.02, 0.03], zero_point=[3, -4]
    )
    assert np.array_equal(as_numpy(q.codes), want.codes)


def test_arrays_on_two_devices_are_refused(pretended: None) -> None:
    with pytest.raises(UserError, match="arrays on cpu and meta are given; one is wanted"):
        ops.native.run("compare", torch.zeros(3), torch.zeros(3, device="meta"), torch.zeros(11))


def test_wrong_arguments_are_told(pretended: None) -> None:
    run_ = ops.native.run
    with pytest.raises(TypeError, match="an array of float32 is wanted, not of int32"):
        run_("compare", torch.zeros(3, dtype=torch.int32), torch.zeros(3), torch.zeros(11))
    with pytest.raises(ValueError, match="do not fit the shape"):
        run_("compare", torch.zeros(3), torch.zeros(4), torch.zeros(11, dtype=torch.float64))
    x, codes, scale = torch.zeros(2, 8), torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 1)
    for wrong in (
        (torch.zeros(3, 8), codes, scale),
        (torch.zeros(16), codes, scale),
        (x, codes.view(-1), scale),
        (x, codes[:, :4].contiguous(), scale),
        (x, codes, torch.zeros(3)),
    ):
        with pytest.raises(ValueError, match="do not fit the shape"):
            ops.gpu_code_float8(wrong[0], None, *wrong[1:])
    for norm in (ops.Norm(torch.zeros(7)), ops.Norm(torch.zeros(8), torch.zeros(9))):
        with pytest.raises(ValueError, match="do not fit the shape"):
            ops.gpu_code_float8(x, norm, codes, scale)
    with pytest.raises(TypeError, match="an array is"):
        assert ops.native.cuda is not None
        ops.native.cuda.compare((0, 3, "float32"), (0, (3,), "float32"), (0, (11,), "float64"), 0)
    with pytest.raises(UserError, match="dense tensor on the CPU or a CUDA device"):
        vq.compare(torch.zeros(3).to_sparse(), torch.zeros(3))


def test_without_a_build_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.native, "cuda", None)
    with pytest.raises(UserError, match="no CUDA kernels; install the CUDA Toolkit .* VGGTQUANT_"):
        ops.native.run("compare", torch.zeros(3), torch.zeros(3), torch.zeros(11))
    assert "VGGTQUANT_CUDA=1" in str(ops.cuda_missing())


# ---- the Linear, likewise ------------------------------------------------------------------------


OnCpu = Callable[[], contextlib.AbstractContextManager[None]]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    """A context in which the CPU is the CPU, within `pretended`."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with monkeypatch.context() as patch:
            tensors_lie_on_a_gpu(patch, False)
            yield

    return context


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("name", linears.WEIGHTS)
def test_a_linear_moves_and_computes_alike(
    pretended: None, on_cpu: OnCpu, name: str, int8: bool
) -> None:
    torch.manual_seed(0)
    with on_cpu():
        q, bias, x = linears.case(name, 65, 130)
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (3, 12):
            given = x[:tokens].to(dtype)
            with on_cpu():
                layer = linears.layer_of(q, bias, int8)
                packed, want, state = layer.packed, layer(given), layer.state_dict()
            layer.float()  # any move or conversion lays the weight out for where it now is
            assert ops.lies_for_cuda(layer.packed)
            got = layer(given)
            assert got.dtype == dtype and ", cuda " in layer.last_kernel
            if int8:
                assert torch.equal(got, want)
            else:
                scale = want.float().abs().max()
                limit = (1e-5 if dtype == torch.float32 else 2e-2) * scale
                assert (got.float() - want.float()).abs().max() <= limit
            assert all(torch.equal(layer.state_dict()[key], state[key]) for key in state)
            assert torch.equal(copy.deepcopy(layer)(given), got)
            with on_cpu():
                layer.float()
                assert torch.equal(layer.packed, packed)


@pytest.mark.parametrize("engine", gpu_linear.NAMES)
@pytest.mark.parametrize("name", linears.WEIGHTS)
def test_every_engine_gives_the_cpu_s_result(
    pretended: None, on_cpu: OnCpu, name: str, engine: str
) -> None:
    """Integer sums bit for bit; floats within the rounding of tokens that others code."""
    torch.manual_seed(0)
    with on_cpu():
        q, bias, _ = linears.case(name, 72, 130)
    for tokens, gelu, dtype in ((19, False, torch.float32), (40, True, torch.bfloat16)):
        x = torch.randn(tokens, 130).to(dtype)
        with on_cpu():
            layer = linears.layer_of(q, bias, True)
            want = layer.fused(x, gelu=gelu)
        layer.float()
        with engines.use(engine):
            got = layer.fused(x, gelu=gelu)
        served = engine != "scaled_mm" and (
            engine != "int_mm" or layer._about.scales != "per_group"
        )
        assert not served or layer.last_kernel.endswith(f"cuda {engine}")
        if layer.last_kernel.endswith("decode"):
            assert (got - want).abs().max() <= 0.03 * want.abs().max()
        else:
            assert torch.equal(got, want)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, marks=pytest.mark.slow),
        pytest.param(torch.float16, marks=pytest.mark.slow),
        torch.bfloat16,
    ],
)
def test_fp8_codes_of_tokens_are_those_of_torch(pretended: None, dtype: torch.dtype) -> None:
    """Every code between two numbers of the format, ragged rows, rows that are not finite; behind a
    norm those of the norm's values."""
    steps = torch.linspace(-448, 448, 896 * 64 + 1).reshape(-1, 1)
    tiny = torch.linspace(-(2.0**-5), 2.0**-5, 4 * 64 + 1).reshape(-1, 1)
    ends = torch.cat([torch.cat([x, torch.full_like(x, 448.0)], 1) for x in (steps, tiny)])
    odd = torch.randn(9, 37)
    odd[1], odd[2], odd[3, 5], odd[4, 0], odd[5, 36] = 0, -0.0, torch.nan, torch.inf, -torch.inf
    odd[6], odd[7] = odd[6] * 1e-40, odd[7] * 6e4 / odd[7].abs().max()
    for x in (ends, odd, torch.randn(1, 1), torch.randn(3, 130), torch.randn(2, 64)):
        x = x.to(dtype)
        depth = -(-x.shape[1] // 16) * 16
        want, scale = float8.coded(x, None, depth)
        got, own = gpu_linear.code_float8(x, None, depth)
        not_a_number = want.float().isnan()
        assert torch.equal(got.float().isnan(), not_a_number)
        same = got.view(torch.uint8) == want.view(torch.uint8)
        assert (same | not_a_number).all() and torch.equal(own.isnan(), scale.isnan())
        assert torch.equal(own.nan_to_num(0), scale.nan_to_num(0))
    for k in (24, 70, 4100):
        x, weight, bias = torch.randn(5, k).to(dtype), torch.rand(k), torch.randn(k)
        for added in (bias, None):
            rows = reference.layer_norm(
                x.float().numpy(), weight.numpy(), None if added is None else bias.numpy(), 1e-5
            )
            depth = -(-k // 16) * 16
            want, scale = float8.coded(torch.from_numpy(rows), None, depth)
            got, own = gpu_linear.code_float8(x, ops.Norm(weight, added, 1e-5), depth)
            assert torch.equal(own, scale) and torch.equal(got.float(), want.float())


def test_the_fastest_engine_is_taken_and_a_failing_one_is_not(
    pretended: None, on_cpu: OnCpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with on_cpu():
        layer = linears.layer_of(*linears.case("INT8_Per_Channel_Symmetric", 72, 64)[:2], True)
    layer.float()
    x = torch.randn(20, 64)
    times = iter([3.0, 2.0, 4.0] * 100)
    clock = engines.Chooser(lambda device, call: next(times), tmp_path / "engines.json")
    monkeypatch.setattr(engines, "CHOOSER", clock)
    monkeypatch.setattr(engines, "TRIALS", 1)
    with engines.use(None), torch.no_grad():
        layer(x)
        assert layer.last_kernel == "int8 x int8, cuda int_mm"
        assert list(clock.taken.values()) == ["int_mm"]

        def is_short(*tensors: torch.Tensor) -> torch.Tensor:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(torch, "_int_mm", is_short)
            layer(x)
            assert layer.last_kernel == "int8 x int8, cuda fused"
            with engines.use("int_mm"), pytest.raises(torch.cuda.OutOfMemoryError):
                layer(x)
        layer(x)
        assert layer.last_kernel == "int8 x int8, cuda int_mm"  # for there is memory again

        def fails(*tensors: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not of this size")

        monkeypatch.setattr(torch, "_int_mm", fails)
        with pytest.warns(UserWarning, match="engine int_mm failed and is not used: not of this"):
            layer(x[:19])
        assert layer.last_kernel == "float32 x int8 decoded, cuda decode" and not clock.taken
    with engines.use("fast"), pytest.raises(UserError, match="decode, scaled_mm is wanted"):
        layer(x)


def test_a_linear_is_made_where_its_weight_is(pretended: None, on_cpu: OnCpu) -> None:
    linear, x = torch.nn.Linear(130, 65), torch.randn(5, 130)
    layer = vq.QuantizedLinear.from_linear(linear, "INT4_Group_32_A8")
    assert ops.lies_for_cuda(layer.packed)
    with torch.no_grad():
        got = layer(x)
        with on_cpu():
            other = vq.QuantizedLinear.from_linear(linear, "INT4_Group_32_A8")
            assert torch.equal(got, other(x))
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), got)


def test_packed_bytes_of_the_other_device_are_refused(pretended: None, on_cpu: OnCpu) -> None:
    with on_cpu():
        layer = linears.layer_of(*linears.case("INT4_Group_32", 65, 40)[:2], True)
    with pytest.raises(ValueError, match="packed weights"):
        layer(torch.zeros(2, 40))
    layer.float()
    with on_cpu(), pytest.raises(ValueError, match="packed weights"):
        layer(torch.zeros(2, 40))
