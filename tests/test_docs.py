# SPDX-License-Identifier: Apache-2.0
"""What the documents show is run: the README's example, the notebooks' cells, the docstrings."""

import ast
import doctest
import importlib
import json
import pkgutil
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vggtquant
from vggtquant.data import scenes

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(vggtquant.__path__, "vggtquant.")
    if not module.name.rpartition(".")[2].startswith("_")
)


LONG = ("03_read_a_report.ipynb", "04_methods.ipynb")
"""Notebooks that evaluate and calibrate for more than five seconds."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=[pytest.mark.slow] if path.name in LONG else [])
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ],
)
def test_notebook_runs(name, capsys, tmp_path, monkeypatch):
    """Every cell, and what a notebook shows of the last expression of a cell."""
    monkeypatch.chdir(tmp_path)
    path = ROOT / "notebooks" / name
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells, "a notebook without code shows nothing"
    names: dict = {}
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None, "outputs are stripped"
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path.name, "exec"), names)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), path.name, "eval"), names)
            assert shown is None or getattr(shown, "_repr_html_", shown.__repr__)()
    assert capsys.readouterr().out.strip()


def test_the_example_for_a_persons_own_vggt_runs(tmp_path, capsys):
    scene = scenes.make_scene(scenes.HELD_OUT, frames=2)
    for i, pixels in enumerate(scene.images):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    script = runpy.run_path(str(ROOT / "examples" / "quantize_vggt.py"))
    script["main"]("builtin:tiny", str(tmp_path), str(tmp_path / "packed.safetensors"))
    assert "the loaded model gives the same depth: True" in capsys.readouterr().out


def test_readme_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        if "facebook/VGGT-1B" not in block:  # those need the user's weights
            exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    known = {"vq": vggtquant, "np": np, "torch": torch}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, extraglobs=known, optionflags=flags)
    assert result.failed == 0


def test_readme_names_every_config():
    text = (ROOT / "README.md").read_text()
    missing = [name for name in vggtquant.CONFIGS if name.removesuffix("_A8") not in text]
    assert not missing


def test_the_tables_of_expected_gpu_times_are_those_of_the_script() -> None:
    script = ROOT / "tests" / "bench" / "roofline.py"
    assert runpy.run_path(str(script))["tables"]() in (ROOT / "docs" / "gpu.md").read_text()


def rows_of(page: Path) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = [line for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readmes_figures_of_vggt_1b_are_those_of_performance() -> None:
    """A row of the same name has its memory and its time, whatever else it has."""
    text = (ROOT / "README.md").read_text("utf-8")
    rows = rows_of(ROOT / "README.md")
    head = next(i for i, row in enumerate(rows) if row[0] == "VGGT-1B")
    assert rows[head][1:3] == ["peak memory, GB", "one forward, s"] and "performance.md" in text
    measured = rows_of(ROOT / "docs" / "performance.md")
    shown = rows[head + 2 :]
    assert len(shown) == 4
    for name, memory, seconds, _ in shown:
        own = [row for row in measured if row[0].partition(" (")[0] == name]
        assert any({memory, seconds} <= set(row[1:]) for row in own), name
