# SPDX-License-Identifier: Apache-2.0
"""Builds tests/core.c with the C core, without Python, and runs it: sanitized, and optimized."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import coverage
import pytest
from everywhere import by_default
from once import in_any_order, once

import vggtquant as vq

ROOT = Path(__file__).parents[1]
CORE = [*sorted((ROOT / "csrc").glob("*.c")), *sorted((ROOT / "csrc" / "cpu").glob("*.c"))]
SOURCES = [*sorted((ROOT / "tests").glob("core*.c")), *CORE]
FUZZED = [*sorted((ROOT / "tests").glob("fuzz_*.c")), *CORE]
FUZZED += sorted((ROOT / "csrc" / "render").glob("*.c"))
COMPILER = shutil.which(os.environ.get("CC", "cc"))
FLAGS = ["-std=c11", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-g1"]
FLAGS += ["-Wno-missing-field-initializers"]  # a call's last fields are 0 where they are not named
SERIAL = [*FLAGS, "-Wno-unknown-pragmas"]
SHIPPED = [*FLAGS, "-O3", "-fopenmp"]
LIBRARIES = ["-lm", "-ldl", "-lpthread"]
SANITIZERS = [
    "-O1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"
]  # fmt: skip
MODELS_H = ROOT / "tests" / "models.h"
MODELS = f'-DVGQ_MODELS="{MODELS_H}"'

needs_sources = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="the C sources are not beside the tests"
)
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="no C compiler: neither cc nor what CC names"
)
pytestmark = [needs_sources, needs_compiler]
# A CPU that has all of x86-64's instructions runs them in test_optimized_with_threads.
ALL_HERE = {"avxvnni", "amx"} <= {*vq.isas()}
# Of the lengths that core.c tries, every 13th by default: coverage.py has every branch taken by it.
every_length = pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])


@pytest.fixture
def core_folder(shared: Path) -> Path:
    """What this module builds, in all processes."""
    folder = shared / "core"
    folder.mkdir(exist_ok=True)
    return folder


def shell(*command: object) -> str:
    words = [*map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def built(
    folder: Path, flags: list[str], sources: list[Path], *defines: str, compiler: object = COMPILER
) -> Path:
    """A program of the sources, each compiled once in `folder` by all processes.

    A definition is given to the sources that hold its name, or whose models.h does, so that others
    serve several programs.
    """

    linking = [flag for flag in flags if flag != "-fopenmp"]  # the core finds its runtime itself
    compiled = objects(folder, flags, sources, *defines, compiler=compiler)
    return made(folder, "program", compiler, *linking, *compiled, *LIBRARIES)


def made(folder: Path, what: str, *command: object) -> Path:
    """The file that the command writes with `-o`, made once in `folder` by all processes."""
    key = hashlib.sha256(repr(command).encode()).hexdigest()[:16]
    return once(folder / f"{what}-{key}", lambda part: shell(*command, "-o", part))


def objects(
    folder: Path, flags: list[str], sources: list[Path], *defines: str, compiler: object = COMPILER
) -> list[Path]:
    """Each source compiled, as `built` says."""

    def compiled(source: Path) -> Path:
        text = source.read_text()
        text += MODELS_H.read_text() if "VGQ_MODELS" in text else ""
        told = [d for d in defines if d.removeprefix("-D").partition("=")[0] in text]
        return made(folder, f"{source.stem}.o", compiler, *flags, *told, "-c", source)

    return in_any_order(compiled, sources)


def sanitized(folder: Path, sources: list[Path], *defines: str) -> Path:
    """With the address and undefined-behaviour sanitizers, one thread: their OpenMP would be
    unknown."""
    trial = [str(COMPILER), *SANITIZERS, "-xc", "-", "-o", str(folder / f"trial-{os.getpid()}")]
    if subprocess.run(trial, input=b"int main(void) { return 0; }", capture_output=True).returncode:
        pytest.skip(f"{COMPILER} has no sanitizers")
    return built(folder, [*SERIAL, *SANITIZERS], sources, *defines)


def run(program: Path, stride: int) -> str:
    """Its last line."""
    closing = shell(program, stride).splitlines()[-1]
    print(closing)
    assert closing.startswith("core: ") and closing.endswith(": all passed")
    assert int(closing.split()[1]) > 10_000
    return closing


@pytest.mark.parametrize(
    "stride",
    [
        # Of x86-64's tables the run with models tries the same, by the same sanitizers.
        pytest.param(13, marks=[pytest.mark.slow] if platform.machine() == "x86_64" else []),
        pytest.param(1, marks=pytest.mark.slow),
    ],
)
def test_sanitized(core_folder: Path, stride: int) -> None:
    run(sanitized(core_folder, SOURCES), stride)


def replays(program: Path) -> None:
    told = shell(program, ROOT / "tests" / "data" / "fuzz" / "core.bin")
    assert int(told.split()[1]) > 500 and told.endswith("all passed\n")


def test_the_fuzzer_s_corpus_replays(core_folder: Path) -> None:
    """What the fuzzer has found, and what it reached: all tables equal to scalar."""
    replays(built(core_folder, SHIPPED, FUZZED, "-DREPLAY"))


@pytest.mark.slow  # the sanitizers' objects take half a minute
def test_the_fuzzer_s_corpus_replays_sanitized(core_folder: Path) -> None:
    """No finding."""
    replays(sanitized(core_folder, FUZZED, "-DREPLAY"))


@every_length
def test_optimized_with_threads(core_folder: Path, stride: int) -> None:
    """As it ships: -O3, OpenMP regions compiled, no OpenMP library linked."""
    run(built(core_folder, SHIPPED, SOURCES), stride)


@pytest.mark.parametrize(
    "stride", [pytest.param(199, marks=[pytest.mark.slow] if ALL_HERE else [])]
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="models of x86-64's instructions")
def test_instructions_that_this_cpu_may_lack(core_folder: Path, stride: int) -> None:
    """AMX and AVX-VNNI kernels on models of those instructions in plain C."""
    with_models(run(built(core_folder, SHIPPED, SOURCES, MODELS), stride))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="models of x86-64's instructions")
@pytest.mark.parametrize("stride", [29, 1])
def test_models_of_instructions_sanitized(core_folder: Path, stride: int) -> None:
    with_models(run(sanitized(core_folder, SOURCES, MODELS), stride))


def with_models(told: str) -> None:
    assert re.search(r"\(scalar, (avx2, avxvnni, )?.*amx\)", told)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="models of x86-64's instructions")
def test_kernels_that_compute_wrongly_are_not_used(core_folder: Path) -> None:
    """Tables not confirmed on hardware try themselves; here their instructions are wrong."""
    program = built(core_folder, SHIPPED, SOURCES, MODELS, "-DVGQ_WRONG_MODELS")
    assert shell(program, 0).startswith("core: refused a")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a counting build for x86-64")
@pytest.mark.slow
def test_every_branch_of_the_core_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """But those of instruction sets that are not here, and of lines that say why nothing can."""
    if not (shutil.which("gcc") and shutil.which("gcov")):
        pytest.skip("gcc or its gcov is not installed")
    missing = coverage.main(["core", "models"])
    assert missing == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "cpu", by_default(["Nehalem", "max,-fma", "max,-f16c", "qemu64,level=6"], "Nehalem")
)
def test_a_cpu_without_avx2(core_folder: Path, cpu: str) -> None:
    """Each lacks something that AVX2's kernels need; the choice falls to scalar."""
    emulator = shutil.which("qemu-x86_64")
    if not emulator or platform.machine() != "x86_64":
        pytest.skip("no qemu-x86_64 to try another CPU with")
    told = shell(emulator, "-cpu", cpu, built(core_folder, SHIPPED, SOURCES), 0)
    assert "1 instruction sets (scalar)" in told


def on_arm(folder: Path, flags: list[str], cpu: str, stride: int) -> str:
    """What core.c prints on an emulated Arm CPU."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip("no aarch64-linux-gnu-gcc, or no qemu-aarch64, to try Arm with")
    program = built(folder, [*SERIAL, *flags], SOURCES, compiler=compiler)
    return shell(emulator, "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu, program, stride)


@pytest.mark.slow
def test_arm_kernels_that_compute_wrongly_are_not_used(core_folder: Path) -> None:
    wrong = ["-O0", f"-I{ROOT / 'tests' / 'wrong_neon'}", "-DVGQ_WRONG_MODELS"]
    assert on_arm(core_folder, wrong, "max", 0).startswith("core: refused neondot")


@pytest.mark.parametrize(
    ("cpu", "best"), [("max", "neoni8mm"), ("neoverse-n1", "neondot"), ("cortex-a53", "neon")]
)
@pytest.mark.slow  # a minute each; every length would take an hour
def test_arm_under_emulation(core_folder: Path, cpu: str, best: str) -> None:
    """The Arm tables against the scalar one, on a machine that is none."""
    closing = on_arm(core_folder, ["-O2"], cpu, 13).splitlines()[-1]
    assert f"{best})" in closing and closing.endswith(": all passed")
