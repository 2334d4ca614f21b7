# SPDX-License-Identifier: Apache-2.0
"""Runs every CUDA kernel on the CPU: csrc/cuda compiled as C++ against tests/cuda_shim.

Each program runs twice: under the address and undefined-behaviour sanitizers, and with every
access watched for races between threads. Its results must equal the scalar core's, bit for bit.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-g", "-ffp-contract=off", *WARNINGS, f"-I{SHIM}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# What instruments the sources, what else the programs need, and what the shim itself is told.
KINDS = {
    "sanitized": (SANITIZERS, SANITIZERS, ["-DVGQ_ADDRESS_SANITIZER"]),
    "watched": (["-fsanitize=thread"], [], []),
}


def shell(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"


class Workshop:
    """Compiles each file once a kind, two at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(2)

    def together(self, jobs: list[tuple[object, ...]]) -> None:
        list(self.pool.map(lambda job: shell(*job), jobs))

    def core(self) -> list[Path]:
        """The C core, whose scalar table is the reference; core.c sees to its own faults."""
        folder = self.folder / "core"
        if not folder.exists():
            folder.mkdir()
            flags = ["-std=c11", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas"]
            sources = [*(ROOT / "csrc").glob("*.c"), *(ROOT / "csrc" / "cpu").glob("*.c")]
            self.together(
                [
                    (C_COMPILER, *flags, "-c", path, "-o", folder / f"{path.stem}.o")
                    for path in sources
                ]
            )
        return sorted(folder.glob("*.o"))

    def objects(self, kind: str, sources: list[Path], faults: Path | None = None) -> list[Path]:
        """Of the CUDA sources (or their faulty twins), the shim and a program."""
        instrument, others, told = KINDS[kind]
        folder = self.folder / kind if faults is None else faults
        folder.mkdir(exist_ok=True)
        jobs: list[tuple[object, ...]] = []
        objects = []
        for path in sources:
            flags = instrument if path.suffix == ".cu" else others
            if path.name in ("shim.cpp", "race.cpp"):
                flags = told
            target = folder / f"{path.stem}{path.suffix[1]}.o"
            objects.append(target)
            if not target.exists():
                jobs.append((COMPILER, *FLAGS, *flags, "-c", path, "-o", target))
        self.together(jobs)
        return objects

    def program(self, kind: str, name: str, cuda: list[Path], faults: Path | None = None) -> Path:
        shared = [SHIM / "shim.cpp", SHIM / "race.cpp", SHIM / "harness.cpp", SHIM / f"{name}.cpp"]
        objects = self.objects(kind, shared) + self.objects(kind, cuda, faults)
        program = (faults or self.folder / kind) / name
        link = KINDS[kind][1]
        shell(COMPILER, *link, *objects, *self.core(), "-o", program, "-lm", "-ldl", "-lpthread")
        return program


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("cuda"))


def run(program: Path) -> tuple[int, str]:
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout[-2000:] + done.stderr[-4000:]


# A program and the sources that it calls.
PROGRAMS = {"test_quantize": ["quantize"], "test_metrics": ["metrics"]}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_equals_the_scalar_core(workshop: Workshop, kind: str, name: str) -> None:
    program = workshop.program(kind, name, [CUDA / f"{stem}.cu" for stem in PROGRAMS[name]])
    status, output = run(program)
    print(output.splitlines()[-1] if output else "")
    assert status == 0 and "checks: all passed" in output, output
    assert "WARNING" not in output, output
