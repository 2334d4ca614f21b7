# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of csrc/cuda, where it is: no spills, and the resources that are stated."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc" / "cuda"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

pytestmark = pytest.mark.skipif(not CUDA.is_dir(), reason="the sources are not beside the tests")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc here")

ARCHITECTURES = ["75", "80", "86", "87", "89", "90", "100"]
# Of one multiprocessor: bytes of shared memory and threads (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability"). All have 65,536 registers, given to warps by 256.
SHARED = {"75": 64, "80": 164, "86": 100, "87": 164, "89": 100, "90": 228, "100": 228}
THREADS = {"75": 1024, "80": 2048, "86": 1536, "87": 1536, "89": 1536, "90": 2048, "100": 2048}


Used = tuple[int, int, int]
"""Registers, static shared bytes, bytes of stack and spills."""


def resources(source: Path) -> dict[tuple[str, str], Used]:
    """The largest of each kernel on each architecture, as the build compiles it."""
    command = [NVCC, "-std=c++17", "-O3", "-fmad=false", "-fatbin", "-Xptxas", "-v"]
    command += ["-Werror", "all-warnings", source, "-o", os.devnull]
    for arch in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[tuple[str, str], Used] = {}
    for part in done.stderr.split("Compiling entry function")[1:]:
        name = re.search(r"_Z\w*?\d+([a-z]\w*?_kernel)\w*' for 'sm_(\d+)'", part)
        used = re.search(r"Used (\d+) registers", part)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", part)
        assert name and used and stack, part
        shared = re.search(r"(\d+) bytes smem", part)
        seen = (int(used[1]), int(shared[1]) if shared else 0, sum(map(int, stack.groups())))
        key = (name[1], name[2])
        found[key] = tuple(map(max, seen, found.get(key, (0, 0, 0))))  # type: ignore[assignment]
    has_kernels = "__global__" in source.read_text()
    assert {arch for _, arch in found} == (set(ARCHITECTURES) if has_kernels else set())
    return found


def blocks_that_fit(arch: str, threads: int, registers: int, shared: int) -> int:
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // (of_warp * (threads // 32))
    by_shared = SHARED[arch] * 1024 // (shared + 1024) if shared else 99
    return min(by_registers, by_shared, THREADS[arch] // threads)


@needs_nvcc
@pytest.mark.slow
def test_no_spills_and_the_stated_resources() -> None:
    limits = tomllib.loads((CUDA / "resources.toml").read_text())
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(resources, sorted(CUDA.glob("*.cu"))))
    wrong = []
    print(f"{'kernel':24} sm_  registers  shared  blocks on a multiprocessor")
    for (name, arch), (registers, shared, spilled) in sorted(
        (item for found in results for item in found.items()), key=lambda item: item[0]
    ):
        limit = limits.get(name)
        if limit is None:
            wrong.append(f"{name} has no row in resources.toml")
            continue
        whole = shared + limit.get("dynamic", 0)
        fit = blocks_that_fit(arch, limit["threads"], registers, whole)
        print(f"{name:24} {arch:>3}  {registers:9}  {whole:6}  {fit:3}")
        wanted = limit["blocks_75"] if arch == "75" and "blocks_75" in limit else limit["blocks"]
        if spilled or registers > limit["registers"] or shared > limit["shared"]:
            wrong.append(f"{name}, sm_{arch}: {registers} registers, {shared} B, {spilled} B spilt")
        if fit < min(wanted, THREADS[arch] // limit["threads"]):
            wrong.append(f"{name}, sm_{arch}: {fit} blocks, {wanted} are stated")
    kernels = {name for found in results for name, _ in found}
    wrong += [f"{name} is in resources.toml and nowhere else" for name in set(limits) - kernels]
    assert kernels and wrong == []


# What the sources may call of the runtime: nothing that allocates or waits, so that a CUDA graph
# can capture every call.
RUNTIME = set(
    "LaunchKernel FuncSetAttribute MemsetAsync GetDevice DeviceGetAttribute GetDeviceCount "
    "GetLastError GetErrorString".split()
)


def test_nothing_allocates_or_waits() -> None:
    text = "".join(path.read_text() for path in CUDA.iterdir() if path.suffix != ".toml")
    assert set(re.findall(r"\bcuda([A-Z]\w+)\(", text)) == RUNTIME


def setup_says(hide: str = "", **environment: str) -> str:
    """The last line of a build that must not start."""
    code = (
        f"{hide}import runpy, sys; sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_cuda_that_is_wanted_and_missing_stops_the_build() -> None:
    hide = "import shutil; shutil.which = lambda *a, **k: None; "
    words = setup_says(hide, VGGTQUANT_CUDA="1")
    assert "nvcc is neither in CUDA_HOME nor on the PATH" in words
    assert "0, 1 or auto is wanted" in setup_says(VGGTQUANT_CUDA="yes")


@needs_nvcc
@pytest.mark.parametrize(
    ("asked", "named"),
    [("80;12", "12"), ("sm_80", "sm_80"), ("70", "70"), ("90a", "90a"), ("80 90", "80 90")],
)
def test_an_architecture_that_is_not_served_stops_the_build(asked: str, named: str) -> None:
    words = setup_says(VGGTQUANT_CUDA="1", VGGTQUANT_CUDA_ARCH=asked)
    assert f"VGGTQUANT_CUDA_ARCH names '{named}'; numbers such as \"80;90\" are wanted" in words


@needs_nvcc
def test_architectures_are_taken_as_people_write_them() -> None:
    code = (
        "import runpy, sys; sys.argv = ['', '--version']; "
        "print(runpy.run_path('setup.py')['GENCODE'])"
    )
    for asked in ("8.0, 9.0", " 90 ; 80;", "90,80"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "VGGTQUANT_CUDA": "1", "VGGTQUANT_CUDA_ARCH": asked},
            capture_output=True,
            text=True,
            check=True,
        )
        codes = re.findall(r"code=(\w+)", done.stdout)
        assert codes == ["sm_80", "sm_90", "compute_90"]


SAYS = (
    "import runpy, sys; sys.argv = ['', '--version']; names = runpy.run_path('setup.py'); "
    "print('built', bool(names['NVCC']), *names['GENCODE'])"
)


@needs_nvcc
@pytest.mark.parametrize(
    ("capabilities", "environment", "built", "words"),
    [
        ("9.0\n9.0\n", {}, ["sm_90", "compute_90"], ""),
        ("8.6\n7.5\n", {}, ["sm_75", "sm_86", "compute_86"], ""),
        ("6.1\n", {}, [], "here is nvcc but no GPU, so the CUDA kernels are left out"),
        ("", {}, [], "VGGTQUANT_CUDA=1 builds them"),
        ("", {"VGGTQUANT_CUDA_ARCH": "80"}, ["sm_80", "compute_80"], ""),
        ("9.0\n", {"VGGTQUANT_CUDA": "0"}, [], ""),
        ("9.0\n", {"VGGTQUANT_CUDA": "1", "VGGTQUANT_CUDA_ARCH": "75;80"}, ["sm_75", "sm_80"], ""),
    ],
)
def test_the_build_is_for_the_gpus_that_are_here(
    tmp_path: Path, capabilities: str, environment: dict[str, str], built: list[str], words: str
) -> None:
    """nvidia-smi is a script here."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nprintf '{capabilities}'\n")
    smi.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VGGTQUANT_CUDA")}
    done = subprocess.run(
        [sys.executable, "-c", SAYS],
        cwd=ROOT,
        env=clean | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said = next(line for line in done.stdout.splitlines() if line.startswith("built"))
    assert said.startswith(f"built {bool(built)}")
    codes = re.findall(r"code=(\w+)", said)
    assert codes[: len(built)] == built and (built or not codes)
    assert words in done.stderr and len(done.stderr.splitlines()) == (1 if words else 0)


def test_a_gpu_without_nvcc_is_told(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 9.0\n")
    smi.chmod(0o755)
    hide = "import shutil; shutil.which = lambda *a, **k: None; "
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VGGTQUANT_CUDA")}
    done = subprocess.run(
        [sys.executable, "-c", hide + SAYS],
        cwd=ROOT,
        env=clean | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "built False" in done.stdout and "here is a GPU but no nvcc" in done.stderr


@needs_nvcc
def test_the_module_imports_without_a_gpu_and_names_what_is_missing() -> None:
    pytest.importorskip("vggtquant._cuda", reason="built with VGGTQUANT_CUDA=0")
    code = (
        "from vggtquant import ops; import torch; "
        "print(ops.native.cuda is not None, ops.cuda_missing(), torch.cuda.is_available())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    built, *missing, available = done.stdout.split()
    assert built == "True"
    if available == "False":
        assert " ".join(missing).startswith(("this torch is built for the CPU", "the CUDA runtime"))
