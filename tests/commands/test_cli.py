# SPDX-License-Identifier: Apache-2.0
"""The command line: help, version, exit codes, words that a shell leaves alone, other threads."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import vggtquant as vq
from vggtquant.commands import cli

# ---- what works ----------------------------------------------------------------------------------


def test_version_and_help(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vggtquant {vq.__version__}\n"
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cli.COMMANDS)
    assert cli.main(["evaluate", "--help"]) == 0
    assert "--max_images" in capsys.readouterr().out
    assert cli.main([]) == 2


# ---- bad input: exit code 2, one line, nothing written -------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory is full (MemoryError)"),
        (
            RuntimeError("alloc_cpu.cpp: DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "memory is full (alloc_cpu.cpp: DefaultCPUAllocator: can't allocate memory: 9 bytes)",
        ),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 80.00 GiB"),
            "the GPU's memory is full (CUDA out of memory. Tried to allocate 80.00 GiB)",
        ),
    ],
)
def test_memory_that_is_full_is_no_defect(capsys, monkeypatch, error, words) -> None:
    def fails(args: object) -> int:
        raise error

    monkeypatch.setattr(cli.COMMANDS["info"], "main", fails)
    assert cli.main(["info"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"vggtquant: error: {words}; fewer or smaller pictures take less"


def test_an_unknown_isa_is_refused() -> None:
    env = os.environ | {"VGGTQUANT_ISA": "sse9"}
    done = subprocess.run(
        [sys.executable, "-m", "vggtquant", "info"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "sse9" in done.stderr


# ---- failures and interruptions ------------------------------------------------------------------


def test_plain_ascii_and_a_reader_that_leaves() -> None:
    command = [sys.executable, "-m", "vggtquant", "schemes"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=env, capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    read, write = os.pipe()
    os.close(read)
    gone = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert gone.returncode == 141 and gone.stderr == b""


# ---- words that a shell leaves alone, other threads ----------------------------------------------


def test_home_in_an_option_is_the_home_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for words in (["--out=~/x.safetensors"], ["--out", "~/y.safetensors"]):
        (tmp_path / "home").mkdir(exist_ok=True)
        command = ["quantize", "builtin:tiny", "--include", "*.fc1", *words]
        assert cli.main(command) == 0, capsys.readouterr().err
    assert {p.name for p in (tmp_path / "home").iterdir()} == {"x.safetensors", "y.safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("option", ["--out", "--output_dir"])
@pytest.mark.parametrize(
    "words",
    [
        ["scenes", "--count", "1", "--frames", "2"],
        ["quantize", "builtin:tiny", "--include", "*.fc1"],
        ["run", "builtin:tiny", "builtin"],
    ],
)
def test_both_names_of_the_place_for_results(
    words: list[str], option: str, tmp_path: Path, capsys
) -> None:
    assert cli.main([*words, option, str(tmp_path / "results")]) == 0, capsys.readouterr().err
    assert list((tmp_path / "results").iterdir())


def test_a_command_in_another_thread(tmp_path: Path, capsys) -> None:
    codes = []
    words = ["quantize", "builtin:tiny", "--include", "*.fc1", "--out", str(tmp_path / "a")]
    thread = threading.Thread(target=lambda: codes.append(cli.main(words)))
    thread.start()
    thread.join()
    assert codes == [0], capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    """Heavy modules are imported by the command that needs them."""
    program = (
        "import sys\nfrom vggtquant.commands.cli import main\n"
        "assert main(['export', '--help']) == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'onnx')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
