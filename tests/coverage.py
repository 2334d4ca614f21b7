# SPDX-License-Identifier: Apache-2.0
"""Lines and branches of csrc/ that the tests reach, by gcov.

    python tests/coverage.py [core] [models] [arm] [binding] [--stride N]

Without a word all of them, which takes minutes. core: tests/core*.c with the OpenMP regions, and
runtimes that come late, lack a function or are none. models: AMX and AVX-VNNI in plain C, right
and wrong. arm: the NEON tables under qemu-aarch64. binding: the pytest files that call the modules.
What is not installed is named and passed over.

A branch that nothing can take has the reason in a comment above its statement, or on its line:
"uncovered: ...". Any other branch that was not taken is printed and ends the run with an error; so
is a line that did not run, unless its whole file belongs to an instruction set that is not here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
TESTS = sorted((ROOT / "tests").glob("core*.c"))
CORE = [*sorted(CSRC.glob("*.c")), *sorted((CSRC / "cpu").glob("*.c"))]
FLAGS = ["-std=c11", "-ffp-contract=off", "-g", "-w"]
COUNTING = ["-O0", "--coverage", "-fprofile-update=atomic"]
LIBRARIES = ["-lm", "-ldl", "-lpthread"]
ARMS = ["max", "neoverse-n1", "cortex-a53"]
BINDING = ["binding", "hostile", "threads", "signals", "scenes", "metrics"]

Branches = tuple[int, ...]


def run(*command: object, **environment: str) -> None:
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def build(out: Path, compiler: str, *flags: str, base: Path | None = None) -> Path:
    """core*.c with the core counting. base: another build, whose objects serve where a source names
    no models."""
    out.mkdir()

    def compiled(source: Path) -> Path:
        if base and "_MODELS" not in source.read_text():
            return base / f"{source.stem}.o"
        counting = COUNTING if CSRC in source.parents else ["-O1"]
        to = out / f"{source.stem}.o"
        run(compiler, *FLAGS, *flags, *counting, "-c", source, "-o", to)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, (*TESTS, *CORE)))
    run(compiler, "--coverage", *objects, "-o", out / "core", *LIBRARIES)
    return out / "core"


# ---- what runs -----------------------------------------------------------------------------------


def core(out: Path, stride: int) -> None:
    """gcov leaves out the bodies of OpenMP regions: those, the serial builds count."""
    program = build(out, "gcc", "-fopenmp")
    run(program, stride, OMP_NUM_THREADS="4")  # teams, whatever the caller's own limit is
    runtimes = []
    for name in ("libiomp5.so", "libomp.so", "torch/libgomp-1.so", "torch/libgomp-empty.so"):
        path = out / name
        path.parent.mkdir(exist_ok=True)
        source = "/dev/null" if "empty" in name else ROOT / "tests" / "tsan_team.c"
        run("gcc", "-w", "-fPIC", "-shared", "-x", "c", source, "-o", path)
        runtimes.append(path)
    run(program, 0, *runtimes[:3])
    run(program, 0, runtimes[3])
    for folder, content in (("none", b"no library"), ("empty", runtimes[3].read_bytes())):
        (out / folder).mkdir()
        (out / folder / "libgomp.so.1").write_bytes(content)
        run(program, 0, LD_LIBRARY_PATH=str(out / folder))


def models(out: Path, stride: int) -> None:
    """Such tables try themselves first; so once more with instructions that compute wrongly."""
    models = f'-DVGQ_MODELS="{ROOT / "tests" / "models.h"}"'
    run(build(out, "gcc", models), stride)
    run(build(out / "wrong", "gcc", models, "-DVGQ_WRONG_MODELS", base=out), 0)


def arm(out: Path, stride: int) -> None:
    program = build(out, "aarch64-linux-gnu-gcc")
    for cpu in ARMS:
        run("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu, program, stride)


def binding(out: Path, stride: int) -> None:
    """The modules with what is neither kernel nor front counting."""
    package = out / "lib" / "vggtquant"
    shutil.copytree(ROOT / "vggtquant", package, ignore=shutil.ignore_patterns("*.so"))
    python, render = CSRC / "python", sorted((CSRC / "render").glob("*.c"))
    modules = {
        "_cpu": [*CORE, *(python / f"{name}.c" for name in ("cpu", "metrics", "words"))],
        "_render": [*render, python / "render.c"],
    }
    includes = [f"-I{sysconfig.get_paths()['include']}", f"-I{numpy.get_include()}"]
    for name, sources in modules.items():
        objects = []
        for source in sources:
            counting = ["-O2"] if source in CORE else COUNTING
            objects.append(out / f"{name}-{source.parent.name}-{source.stem}.o")
            flags = [*FLAGS, *counting, "-fPIC", "-fvisibility=hidden", "-fopenmp", *includes]
            run("gcc", *flags, "-c", source, "-o", objects[-1])
        target = package / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        run("gcc", "-shared", "--coverage", *objects, "-o", target, *LIBRARIES)
    files = [ROOT / "tests" / f"test_{name}.py" for name in BINDING]
    os.chdir(ROOT)
    pytest = [sys.executable, "-Pm", "pytest", "-q", "-p", "no:cacheprovider"]
    slow = "tests/test_signals.py::test_ctrl_c_ends_a_long_call[render]"  # without optimization
    # safe path: the programs that the tests start import these modules too, not the folder's
    run(*pytest, "--deselect", slow, *files, PYTHONPATH=str(out / "lib"), PYTHONSAFEPATH="1")


NEEDS = {"arm": ["aarch64-linux-gnu-gcc", "qemu-aarch64"]}
PARTS = {f.__name__: f for f in (core, models, arm, binding)}


# ---- what was counted ----------------------------------------------------------------------------


class Counts:
    """Of every line and function, how often it ran and each of its branches was taken."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[tuple[int, str], int]] = defaultdict(lambda: defaultdict(int))
        self.branches: dict[str, dict[tuple[int, str], dict[int, Branches]]] = defaultdict(
            lambda: defaultdict(dict)
        )

    def add(self, folder: Path, neon: bool) -> None:
        """Of the Arm build its own tables only: a shared line's branches may come in another order
        there."""
        for data in folder.rglob("*.gcda"):
            told = subprocess.run(
                ["gcov", "--json-format", "--branch-probabilities", "--stdout", data],
                cwd=data.parent, capture_output=True, check=True,
            ).stdout  # fmt: skip
            for file in json.loads(told)["files"]:
                path = (
                    Path(json.loads(told)["current_working_directory"]) / file["file"]
                ).resolve()
                if CSRC in path.parents and ("neon" in path.name) == neon:
                    self.add_file(str(path.relative_to(CSRC)), file["lines"])

    def add_file(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            at = line["line_number"], line.get("function_name", "")
            self.lines[name][at] += line["count"]
            taken = tuple(branch["count"] for branch in line["branches"])
            before = self.branches[name][at].get(len(taken), (0,) * len(taken))
            self.branches[name][at][len(taken)] = tuple(map(sum, zip(before, taken, strict=True)))


def excused(text: str) -> set[int]:
    """Numbers of the lines whose branches a comment says cannot be taken."""
    lines, found, i = text.splitlines(), set(), 0
    while i < len(lines):
        start, i = i, i + 1
        if "uncovered:" not in lines[start]:
            continue
        if not lines[start].lstrip().startswith("/*"):
            found.add(start + 1)
            continue
        while "*/" not in lines[i - 1]:
            i += 1
        while True:  # the statement after the comment
            found.add(i + 1)
            i += 1
            if re.search(r"[;{}:]\s*(/\*.*\*/)?$", lines[i - 1]):
                break
    return found


def report(counts: Counts) -> int:
    print(f"{'file':28}{'lines':>7}{'run':>7}{'branches':>10}{'taken':>7}{'unreachable':>13}")
    total, missing = [0] * 5, []
    for name in sorted(counts.lines):
        text = (CSRC / name).read_text()
        marked, source = excused(text), text.splitlines()
        lines: dict[int, int] = defaultdict(int)
        for (number, _), count in counts.lines[name].items():
            lines[number] += count
        row = [len(lines), sum(count > 0 for count in lines.values()), 0, 0, 0]
        if row[1] == 0:
            print(f"{name:28}{row[0]:7}   not run here")
            continue
        wrong = {n for n, count in lines.items() if count == 0 and n not in marked}
        for (number, _), kinds in counts.branches[name].items():
            for taken in kinds.values():
                row[2] += len(taken)
                row[3] += sum(count > 0 for count in taken)
                if 0 in taken and number in marked:
                    row[4] += taken.count(0)
                elif 0 in taken:
                    wrong.add(number)
        print(f"{name:28}{row[0]:7}{row[1]:7}{row[2]:10}{row[3]:7}{row[4]:13}")
        total = [a + b for a, b in zip(total, row, strict=True)]
        missing += [f"csrc/{name}:{n}: {source[n - 1].strip()}" for n in sorted(wrong)]
    print(f"{'all':28}{total[0]:7}{total[1]:7}{total[2]:10}{total[3]:7}{total[4]:13}")
    print("\n".join(missing))
    return len(missing)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--stride", type=int, default=13, help="every n-th length")
    args = parser.parse_args(arguments)
    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts or PARTS:
            lacking = [tool for tool in NEEDS.get(part, []) if not shutil.which(tool)]
            if lacking:
                print(f"{part}: {lacking[0]} is not installed: left out")
                continue
            PARTS[part](Path(folder) / part, args.stride)
            counts.add(Path(folder) / part, part == "arm")
    return report(counts)


if __name__ == "__main__":
    sys.exit(main() > 0)
