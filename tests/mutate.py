# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of the C core: small wrong changes that tests/core.c must notice.

    python tests/mutate.py [--share 1/20] [--seed 0] [--journal FILE]

One token of the scalar kernels, of the headers that say what a value is, or of the Linear's fronts
changes at a time; what includes it is built with the change, linked to the unchanged rest, and
tests/core.c runs: with every 13th length first, and with every length where that notices nothing. A
mutant that passes has survived: it is printed and ends the run with an error, unless mutants.toml
says why no test can tell it from the original. A journal keeps the fates: a run that was ended goes
on, and tries again only what has survived.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
MUTATED = [
    "formats.h",
    "scales.h",
    "exp_log.h",
    "metrics_lanes.h",
    "gelu.h",
    "cpu/quantize_scalar.c",
    "cpu/metrics_scalar.c",
    "cpu/linear_scalar.c",
    "kernels_attention.h",
    "cpu/attention_rows.h",
    "cpu/attention_scalar.c",
    "tasks.h",
    "tasks.c",
    "tokens.c",
    "weight.c",
    "pack.c",
    "linear.c",
    "linear_plan.c",
    "linear_float.c",
    "epilogue.h",
    "epilogue.c",
]
# What is built from a mutated tree. Vector tables stay as they are, tails included, and disagree.
REBUILT = [*(name for name in MUTATED if name.endswith(".c")), "metrics.c"]
REBUILT += ["quantize.c", "attention.c", "conv.c", "conv_plan.c", "resize.c"]
COMPILER = os.environ.get("CC", "cc")
FLAGS = ["-std=c11", "-ffp-contract=off", "-O1", "-w", "-fopenmp"]
FLAGS += ["-fsanitize=bounds", "-fsanitize-undefined-trap-on-error"]  # what runs out of an array
LIBRARIES = ["-lm", "-ldl", "-lpthread"]
STRIDES = {13: 60, 1: 900}
"""Of the lengths that core.c tries: the processor seconds after which a mutant hangs, some times
what the original needs."""

TOKEN = re.compile(
    r"(?P<string>\"[^\"]*\")"
    r"|(?P<number>\b0x[0-9a-fA-F.]+(?:p[+-]?\d+)?[uf]?\b|\b\d+\.?\d*(?:e-?\d+)?[uf]?\b)"
    r"|(?P<op><<|>>|<=|>=|==|!=|&&|\|\||\+\+|--|->|[-+*/%&|^<>]=|[-+*/%&|^<>])"
    r"|(?P<word>\b\w+\b)"
)
OPERATORS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&",
    "+": "-", "-": "+", "*": "+", "/": "*", "%": "/", "&": "|", "|": "&", "^": "|", "<<": ">>",
    ">>": "<<", "+=": "-=", "-=": "+=", "*=": "+=",
}  # fmt: skip
WORDS = {"rintf": "floorf", "rint": "floor", "fminf": "fmaxf", "fmaxf": "fminf", "fabs": "",
         "fmin": "fmax", "fmax": "fmin"}  # fmt: skip

# (file, line as it is, line as it becomes): why nothing can tell.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (row["file"], old, new): row["why"]
    for row in tomllib.loads(ROOT.joinpath("tests", "mutants.toml").read_text())["equivalent"]
    for old, new in row["changes"]
}


class Mutant(NamedTuple):
    file: str
    line: int
    start: int
    end: int
    new: str

    def lines(self) -> tuple[str, str]:
        """The line as it is and as it becomes."""
        old = (CSRC / self.file).read_text().splitlines()[self.line]
        return old.strip(), (old[: self.start] + self.new + old[self.end :]).strip()

    def name(self) -> str:
        """The same in every run, wherever the line moves."""
        text = (CSRC / self.file).read_text().splitlines()
        nth = sum(line == text[self.line] for line in text[: self.line])
        return json.dumps([self.file, *self.lines(), nth])

    def text(self) -> str:
        """The file with the change."""
        lines = (CSRC / self.file).read_text().splitlines(keepends=True)
        old = lines[self.line]
        lines[self.line] = old[: self.start] + self.new + old[self.end :]
        return "".join(lines)


def mutants(file: str) -> list[Mutant]:
    """Every change of one token; declarations and preprocessor lines are left alone."""
    text = (CSRC / file).read_text()
    text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)
    found = []
    for number, line in enumerate(text.splitlines()):
        constants = re.match(r"\s*#define (LN2|VGQ_ROUNDER|EXP_\w+ )|\s*TERM\(1", line)
        declares = re.match(r"(static|VGQ_INLINE|extern|const vgq_|typedef|[a-z]).*[({,]$", line)
        if declares or (line.lstrip().startswith("#") and not constants):
            continue
        for match in TOKEN.finditer(line):
            start, end = match.span()
            new = change(match, line[:start].rstrip())
            if new is not None:
                found.append(Mutant(file, number, start, end, new))
    return found


def change(match: re.Match[str], before: str) -> str | None:
    token = match[0]
    if match["number"]:
        return larger(token)
    if match["word"]:
        return WORDS.get(token)
    if match["op"] and token in OPERATORS:
        value_before = re.search(r"[\w)\]]$", before) and not before.endswith("return")
        type_before = re.search(r"\b(float|double|int|char|void|const|\w+_t|vgq_\w+)$", before)
        if token in "*&" and (not value_before or type_before):
            return None  # a pointer's
        if token == "-" and not value_before:
            return ""
        return OPERATORS[token]
    return None


def larger(number: str) -> str:
    """The next integer; a float constant a little larger."""
    if re.fullmatch(r"\d+u?", number):
        return f"{int(number.rstrip('u')) + 1}{'u' * number.endswith('u')}"
    if re.fullmatch(r"0x[0-9a-fA-F]+u?", number):
        return f"{int(number.rstrip('u'), 16) + 1:#x}u"
    return f"({number} * {'1.00001f' if number.endswith('f') else '(1 + 0x1p-45)'})"


def compiled(source: Path, target: Path) -> bool:
    command = [COMPILER, *FLAGS, "-c", source, "-o", target]
    return not subprocess.run([*map(str, command)], capture_output=True).returncode


@cache
def reads(source: str) -> set[str]:
    """What a source is built from, itself among it."""
    command = [COMPILER, "-MM", CSRC / source]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    paths = [
        Path(word) for word in done.stdout.split() if word not in ("\\", f"{Path(source).stem}.o:")
    ]
    return {str(path.resolve().relative_to(CSRC.resolve())) for path in paths}


def fate(mutant: Mutant, objects: Path) -> str:
    """killed, survived, or "not C" where the compiler refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder, "csrc"), Path(folder)
        shutil.copytree(CSRC, tree, ignore=shutil.ignore_patterns("python", "render", "cuda"))
        (tree / mutant.file).write_text(mutant.text())
        made = {}
        for name in REBUILT:
            if mutant.file not in reads(name):
                continue
            made[Path(name).stem] = out / (Path(name).stem + ".o")
            if not compiled(tree / name, made[Path(name).stem]):
                return "not C"
        rest = [path for path in objects.glob("*.o") if path.stem not in made]
        link(out / "core", [*made.values(), *rest])
        return "survived" if passes(out / "core") else "killed"


def link(program: Path, objects: Iterable[Path]) -> None:
    command = [COMPILER, *objects, "-o", program, *LIBRARIES]
    subprocess.run([*map(str, command)], check=True, capture_output=True)


def passes(program: Path, strides: Iterable[int] = STRIDES) -> bool:
    """Whether no length notices. Time is the processor's, so that a busy machine kills nothing."""
    for stride in strides:
        seconds = STRIDES[stride]
        limit = partial(resource.setrlimit, resource.RLIMIT_CPU, (seconds, seconds))
        # One thread, where a test does not set more: they would only wait for each other here.
        done = subprocess.run(
            [str(program), str(stride)],
            capture_output=True,
            preexec_fn=limit,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )
        if done.returncode:
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", default="1/1", help="1/n: every n-th mutant only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--files", nargs="*", default=MUTATED)
    parser.add_argument("--journal", type=Path, help="fates, a line each: read, and added to")
    args = parser.parse_args()
    every = [mutant for file in args.files for mutant in mutants(file)]
    random.Random(args.seed).shuffle(every)
    chosen = every[: -(-len(every) // int(args.share.removeprefix("1/")))]
    table: dict[str, Counter[str]] = {file: Counter() for file in args.files}
    known: dict[str, str] = {}
    if args.journal and args.journal.exists():
        known = dict(json.loads(line) for line in args.journal.read_text().splitlines())
        chosen.sort(key=lambda mutant: mutant.name() in known)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        objects = Path(folder)
        for source in (*ROOT.glob("tests/core*.c"), *CSRC.glob("*.c"), *CSRC.glob("cpu/*.c")):
            assert compiled(source, objects / (source.stem + ".o")), source
        link(objects / "core", objects.glob("*.o"))
        assert passes(objects / "core", [13]), "the original fails"

        def fate_of(mutant: Mutant) -> str:
            before = known.get(mutant.name(), "survived")
            return fate(mutant, objects) if before == "survived" else before

        for mutant, result in zip(chosen, pool.map(fate_of, chosen), strict=True):
            if args.journal and known.get(mutant.name()) != result:
                with args.journal.open("a") as journal:
                    journal.write(json.dumps([mutant.name(), result]) + "\n")
            old, new = mutant.lines()
            if result == "survived" and (mutant.file, old, new) in EQUIVALENT:
                result = "equivalent"
            table[mutant.file][result] += 1
            if result == "survived":
                print(f"survived: {mutant.file}:{mutant.line + 1}\n  {old}\n  {new}", flush=True)
    columns = ("killed", "equivalent", "survived", "not C")
    print(f"{'file':24}" + "".join(f"{name:>12}" for name in columns))
    total = sum(table.values(), Counter[str]())
    for file, row in [*table.items(), ("all", total)]:
        print(f"{file:24}" + "".join(f"{row[name]:12}" for name in columns))
    return total["survived"] > 0


if __name__ == "__main__":
    sys.exit(main())
