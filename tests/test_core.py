# SPDX-License-Identifier: Apache-2.0
"""Builds tests/core.c with the C core, without Python, and runs it: sanitized, and optimized."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).parents[1]
CORE = [*sorted((ROOT / "csrc").glob("*.c")), *sorted((ROOT / "csrc" / "cpu").glob("*.c"))]
SOURCES = [*sorted((ROOT / "tests").glob("core*.c")), *CORE]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
FLAGS = ["-std=c11", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-g"]
FLAGS += ["-Wno-missing-field-initializers"]  # a call's last fields are 0 where they are not named
LIBRARIES = ["-lm", "-ldl", "-lpthread"]
SANITIZERS = [
    "-O1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"
]  # fmt: skip

needs_sources = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="the C sources are not beside the tests"
)
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="no C compiler: neither cc nor what CC names"
)
pytestmark = [needs_sources, needs_compiler]


def shell(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def run(program: Path) -> str:
    """Its last line."""
    closing = shell(program, cwd=program.parent).splitlines()[-1]
    print(closing)
    assert closing.startswith("core: ") and closing.endswith(": all passed")
    assert int(closing.split()[1]) > 10_000
    return closing


def sanitized(program: Path, *sources: Path, define: str = "PLAIN") -> Path:
    """The core and a test of it with the address and undefined-behaviour sanitizers, one thread
    (their OpenMP would be unknown)."""
    folder = program.parent
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    trial = [COMPILER, *SANITIZERS, "empty.c", "-o", "empty"]
    if subprocess.run([*map(str, trial)], cwd=folder, capture_output=True).returncode:
        pytest.skip(f"{COMPILER} has no sanitizers")
    flags = [*FLAGS, *SANITIZERS, "-Wno-unknown-pragmas", f"-D{define}"]
    shell(COMPILER, *flags, *sources, "-o", program, *LIBRARIES, cwd=folder)
    return program


def test_sanitized(tmp_path: Path) -> None:
    run(sanitized(tmp_path / "core", *SOURCES))


def test_the_fuzzer_s_corpus_replays(tmp_path: Path) -> None:
    """What the fuzzer has found, and what it reached: no finding, all tables equal to scalar."""
    tests = [ROOT / "tests" / name for name in ("fuzz_core.c", "fuzz_render.c")]
    render = sorted((ROOT / "csrc" / "render").glob("*.c"))
    program = sanitized(tmp_path / "replay", *tests, *CORE, *render, define="REPLAY")
    told = shell(program, ROOT / "tests" / "data" / "fuzz" / "core.bin", cwd=tmp_path)
    assert int(told.split()[1]) > 500 and told.endswith("all passed\n")


def test_optimized_with_threads(tmp_path: Path) -> None:
    """As it ships: -O3, OpenMP regions compiled, no OpenMP library linked."""
    for source in SOURCES:
        shell(COMPILER, *FLAGS, "-O3", "-fopenmp", "-c", source, cwd=tmp_path)
    program = tmp_path / "core"
    shell(COMPILER, *sorted(tmp_path.glob("*.o")), "-o", program, *LIBRARIES, cwd=tmp_path)
    run(program)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="models of x86-64's instructions")
def test_instructions_that_this_cpu_may_lack(tmp_path: Path) -> None:
    """AMX and AVX-VNNI kernels on models of those instructions in plain C, sanitized."""
    models = f'VGQ_MODELS="{ROOT / "tests" / "models.h"}"'
    program = sanitized(tmp_path / "core", *SOURCES, define=models)
    assert re.search(r"\(scalar, (avx2, avxvnni, )?.*amx\)", run(program))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a counting build for x86-64")
def test_every_branch_of_the_core_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """But those of instruction sets that are not here, and of lines that say why nothing can."""
    if not (shutil.which("gcc") and shutil.which("gcov")):
        pytest.skip("gcc or its gcov is not installed")
    missing = coverage.main(["core", "models"])
    assert missing == 0, capsys.readouterr().out


@pytest.mark.parametrize("cpu", ["Nehalem", "max,-fma", "max,-f16c", "qemu64,level=6"])
def test_a_cpu_without_avx2(tmp_path: Path, cpu: str) -> None:
    """Each lacks something that AVX2's kernels need; the choice falls to scalar."""
    emulator = shutil.which("qemu-x86_64")
    if not emulator or platform.machine() != "x86_64":
        pytest.skip("no qemu-x86_64 to try another CPU with")
    program = tmp_path / "core"
    flags = [*FLAGS, "-O1", "-Wno-unknown-pragmas"]
    shell(COMPILER, *flags, *SOURCES, "-o", program, *LIBRARIES, cwd=tmp_path)
    told = shell(emulator, "-cpu", cpu, program, "0", cwd=tmp_path)
    assert "1 instruction sets (scalar)" in told


@pytest.mark.parametrize(
    ("cpu", "best"), [("max", "neoni8mm"), ("neoverse-n1", "neondot"), ("cortex-a53", "neon")]
)
def test_arm_under_emulation(tmp_path: Path, cpu: str, best: str) -> None:
    """The Arm tables against the scalar one, on a machine that is none."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip("no aarch64-linux-gnu-gcc, or no qemu-aarch64, to try Arm with")
    program = tmp_path / "core"
    flags = [*FLAGS, "-O2", "-Wno-unknown-pragmas"]
    shell(compiler, *flags, *SOURCES, "-o", program, *LIBRARIES, cwd=tmp_path)
    root = "/usr/aarch64-linux-gnu"
    closing = shell(emulator, "-L", root, "-cpu", cpu, program, cwd=tmp_path).splitlines()[-1]
    assert f"{best})" in closing and closing.endswith(": all passed")
