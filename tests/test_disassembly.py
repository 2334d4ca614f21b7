# SPDX-License-Identifier: Apache-2.0
"""The inner loops of the Linear tiles, disassembled: compilers that run out of registers keep sums
in memory, which has cost up to half of the speed and shows in no other test."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import test_core
from everywhere import by_default

CPU = Path(__file__).parents[1] / "csrc" / "cpu"
OBJDUMP = shutil.which("objdump")

# file: how many tiles have a loop at least, so that a test of nothing fails
TILES = {
    "attention_avx2.c": 6,
    "attention_avx512.c": 4,
    "attention_avx512vnni.c": 4,
    "attention_avxvnni.c": 3,
    "linear_avx2.c": 8,
    "linear_avx2_int4.c": 4,
    "linear_avx512.c": 1,
    "linear_avx512vnni.c": 11,
}
VECTOR = re.compile(r"%[xyz]mm\d")
STACK = re.compile(r"\(%r[sb]p[,)]")

pytestmark = [
    pytest.mark.skipif(not CPU.is_dir(), reason="the C sources are not beside the tests"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the tiles are of x86-64"),
    test_core.needs_compiler,
    pytest.mark.skipif(OBJDUMP is None, reason="no objdump to disassemble with"),
]


def functions(source: Path, folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Addresses and instructions of each function that the file compiles to as it ships; the
    object is that of test_core.py."""
    (made,) = test_core.objects(folder, test_core.SHIPPED, [source])
    text = subprocess.run(
        [str(OBJDUMP), "-d", "--no-show-raw-insn", str(made)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found: dict[str, list[tuple[int, str]]] = {}
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(\w+)[.\w]*>:", line):
            found[head[1]] = code = []
        elif instruction := re.match(r"\s+([0-9a-f]+):\s+(.*)", line):
            code.append((int(instruction[1], 16), instruction[2]))
    return found


def inner_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """The bodies of the loops that hold no other: what lies between a jump back and its target.

    The jump is conditional: others lead back from code that is not of the loop.
    """
    jumps = []
    for address, instruction in code:
        jump = re.match(r"j(?!mp)\w+\s+([0-9a-f]+)", instruction)
        if jump and int(jump[1], 16) <= address:
            jumps.append((int(jump[1], 16), address))
    return [
        [instruction for address, instruction in code if start <= address <= end]
        for start, end in jumps
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in jumps)
    ]


def test_a_spill_is_seen() -> None:
    loop = [(0, "vmovdqu (%rsi),%ymm0"), (4, "vmovdqa %ymm0,0x20(%rsp)"), (8, "jne    0 <f>")]
    (body,) = inner_loops(loop)
    assert any(VECTOR.search(line) and STACK.search(line) for line in body)


@pytest.mark.parametrize("name", by_default(TILES, "linear_avx512vnni.c", "attention_avx2.c"))
def test_no_sum_lives_in_memory(name: str, shared: Path) -> None:
    folder = shared / "core"
    folder.mkdir(exist_ok=True)
    tiles = {f: code for f, code in functions(CPU / name, folder).items() if "tile" in f}
    looping = 0
    for function, code in tiles.items():
        for body in inner_loops(code):
            spilled = [line for line in body if VECTOR.search(line) and STACK.search(line)]
            assert not spilled, f"{function} of {name}: {spilled[0]}"
        looping += any(VECTOR.search(line) for body in inner_loops(code) for line in body)
    assert looping >= TILES[name], sorted(tiles)
