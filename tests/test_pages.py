# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/: both languages agree, code runs, links lead somewhere, the site builds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
GUIDES = ("quickstart", "parameters", "faq")
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("zh/*.md")])


def headings(text: str) -> list[int]:
    """Levels of the headings outside code, in order."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", prose, re.M)]


def tables(text: str) -> list[list[int]]:
    """Cells of each row of each table."""
    found: list[list[int]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line.count("|"))
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def code(text: str) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", text, re.S)


def words_of_code(text: str) -> set[str]:
    """What stands in backquotes: flags, fields, commands."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)))


@pytest.mark.parametrize("page", GUIDES)
@pytest.mark.parametrize("part", [headings, tables, code, words_of_code], ids=lambda f: f.__name__)
def test_both_languages_agree(page, part):
    english = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    chinese = (DOCS / "zh" / f"{page}.md").read_text(encoding="utf-8")
    assert part(english) == part(chinese)


def test_questions_are_equal_in_number():
    counts = [
        len(re.findall(r"^\*\*", (DOCS / folder / "faq.md").read_text(encoding="utf-8"), re.M))
        for folder in (".", "zh")
    ]
    assert counts[0] == counts[1] >= 40


@pytest.mark.parametrize("page", ["quickstart", "guide", "parameters"])
def test_python_blocks_run(page, tmp_path):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = [
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.S)
        if "facebook/VGGT-1B" not in block  # the user's own weights
    ]
    script = "\n".join(blocks)
    if "tiny-int4.safetensors" in script:
        command = "quantize builtin:tiny --scheme INT4_Group_128_A8 --out tiny-int4.safetensors"
        run = [sys.executable, "-m", "vggtquant", *command.split()]
        subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.S))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["quickstart", "guide", "parameters", "faq"])
def test_flags_exist(page):
    """A flag that a page names is a flag of some command."""
    helped = subprocess.run(
        [sys.executable, "-m", "vggtquant", "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = re.findall(r"^ {4}(\w+)", helped, re.M)
    known = ""
    for command in set(commands) - {"COMMAND"}:
        run = [sys.executable, "-m", "vggtquant", command, "--help"]
        known += subprocess.run(run, capture_output=True, text=True, check=True).stdout
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if "pip install" not in line)
    lines = re.sub(r"python tests/bench.*", "", lines)
    assert {flag for flag in re.findall(r"--[a-z_]+", lines) if flag not in known} == set()


def test_site_builds_without_warnings(tmp_path):
    pytest.importorskip("myst_parser", reason="Sphinx and MyST are the extra `docs`")
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "zh" / "quickstart.html").exists()
