# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/: languages agree, code and commands run, words are plain, the site builds."""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from everywhere import by_default

import vggtquant as vq
from vggtquant import ops
from vggtquant.commands import cli

DOCS = Path(__file__).parent.parent / "docs"
GUIDES = ("quickstart", "guide", "parameters", "faq")
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("zh/*.md")])
ENGLISH = [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
QUICK = "--schemes INT4_Group_128 --scenes 1 --max_images 2 --runs 1 --warmup 0 --no-progress"
"""What is added to `vggtquant evaluate`, so that a test is quick."""


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


def in_english(text: str) -> str:
    """A Chinese page shows how to get a Chinese report, and tells of English ones as the other."""
    swap = {"`en`": "`zh`", "`zh`": "`en`", "html --lang zh": "html --lang en"}
    return re.sub("|".join(swap), lambda found: swap[found.group()], text)


@pytest.mark.parametrize("page", GUIDES)
@pytest.mark.parametrize("part", [headings, tables, code, words_of_code], ids=lambda f: f.__name__)
def test_both_languages_agree(page, part):
    english = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    chinese = (DOCS / "zh" / f"{page}.md").read_text(encoding="utf-8")
    assert part(english) == part(in_english(chinese))


def test_questions_are_equal_in_number():
    counts = [
        len(re.findall(r"^\*\*", (DOCS / folder / "faq.md").read_text(encoding="utf-8"), re.M))
        for folder in (".", "zh")
    ]
    assert counts[0] == counts[1] >= 40


# ---- code and commands ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the pages name: the user's VGGT, and a packed file."""
    there = tmp_path_factory.mktemp("desk")
    package = there / "vggt" / "models"
    package.mkdir(parents=True)
    (package / "vggt.py").write_text(
        "from vggtquant import tiny\n\n\nclass VGGT:\n"
        "    from_pretrained = staticmethod(lambda name: tiny.build())\n"
    )
    run("quantize builtin:tiny --scheme INT4_Group_128_A8 --out tiny-int4.safetensors", there)
    return there


def run(words, folder):
    with contextlib.chdir(folder):
        assert cli.main(shlex.split(words)) == 0, words


@pytest.mark.parametrize("page", ENGLISH, ids=lambda path: path.stem)
def test_python_blocks_run(page, desk):
    """As one script, with a small model in the place of the user's VGGT; Chinese ones are equal."""
    script = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S))
    if not script:
        return
    script = script.replace('quantize_file("facebook/VGGT-1B"', 'quantize_file("builtin:tiny"')
    script = re.sub(r"vq\.push_to_hub\(.*", "", script)  # needs an account
    path = os.pathsep.join([str(desk), str(DOCS.parent)])
    subprocess.run(
        [sys.executable, "-c", f"import torch\nimport vggtquant as vq\n{script}"],
        cwd=desk,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def commands(page):
    """The `vggtquant` commands of a page: those in blocks, and all of them."""
    text = page.read_text("utf-8")
    fences = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    whole = re.findall(r"(?:^ {4}|^|&& )(vggtquant .*)", fences, re.M)
    whole += re.findall(r"^ {4}(vggtquant .*)", prose, re.M)
    inline = [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]
    named = [found for found in inline if found.startswith("vggtquant ")]
    return [one.partition(" #")[0] for one in whole], [*whole, *named]


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *PAGES], ids=lambda path: path.stem)
def test_commands_are_understood(page, capsys):
    """The command's own parser takes what a page names; a mention may lack what is required."""
    for command in commands(page)[1]:
        words = shlex.split(command.partition(" #")[0])[1:]
        if words == ["COMMAND", "--help"]:
            continue
        parser = cli._parser()
        try:
            parser.parse_args(words)
        except SystemExit:
            said = capsys.readouterr().err
            assert "required" in said or "expected" in said, (command, said)
            choices = next(one.choices for one in parser._actions if one.dest == "command")
            known = choices[words[0]]._option_string_actions
            assert {word for word in words if word.startswith("--")} <= set(known), command


@pytest.mark.parametrize("page", by_default(["README", "docs/quickstart"], "README"))
def test_commands_in_blocks_run(page, desk):
    """With fewer scenes and one figure; every other word is the page's."""
    whole, _ = commands(DOCS.parent / f"{page}.md")
    assert whole
    for command in whole:
        words = command.removeprefix("vggtquant ")
        more = {"evaluate": f"{QUICK} --restart", "report": "--figures size"}
        run(f"{words} {more.get(words.split()[0], '')}", desk)


FORMS = {
    r"merge DIR DIR DIR --output_dir OUT": "merge shard1 shard2 shard3 --output_dir whole",
    r"(--out|--output_dir) (DIR|OUT)\b": r"\1 made",
    r"--out FILE": "--out made.safetensors",
    r"--out FLOAT(\.safetensors)?": "--out float.safetensors",
    r"--image_folder (DIR|photos/)": "--image_folder photos",
    r"\b(MODEL|SOURCE)\b": "builtin:tiny",
    r"\bIMAGES\b": "builtin",
    r"\bRESULTS\b": "vggtquant_results",
    r"\bJSON\b": "vggtquant_results/sensitivity.json",
    r"diff A B": "diff tiny-int4.safetensors tiny-int4.safetensors",
    r"compare A B": "compare vggtquant_results vggtquant_results",
    r"--groups 8": "--groups 2",
    r"\bFILE\b": "tiny-int4.safetensors",
    r"\bLAYER\b": "aggregator.frame_blocks.0.attn.qkv",
    r"\bNAME\b": "INT4_Group_64",
    r"--size 350x518": "--size 84x112",
    r"--max_bytes 800M": "--max_bytes 4M",
    r"--method gptq": "--method gptq --samples 2",
    r"--method smoothquant": "--method smoothquant --samples 2",
}
"""What a page's word stands for, and smaller numbers, so that a command ends in seconds."""
NOT_RUN = {
    "facebook/VGGT-1B": "needs the weights of VGGT",
    "--launcher": "jobs are started in tests/launch",
    "grid.toml": "a sweep is in tests/launch",
    "pi3.safetensors": "needs the weights of Pi3",
    "stream.pt": "needs the weights of StreamVGGT",
    "my_models:depth_anything_3": "needs a model of the reader's",
    "executorch": "writing for phones takes minutes; a smaller model is in tests/deploy",
    "--full": "64 scenes take minutes; fewer, and --resume, are in tests/commands",
}
"""Words of commands that no test runs, and why."""


def every_command():
    """Each complete command of the English pages, once, and a mark where it is not run."""
    named = {one for page in ENGLISH for one in commands(page)[1]}
    found = []
    for command in sorted(named - {"vggtquant COMMAND --help"}):
        words = shlex.split(command)[1:]
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            cli._parser().parse_args(words)  # a mention lacks what is required
            marks = [pytest.mark.skip(reason=NOT_RUN[word]) for word in words if word in NOT_RUN]
            found.append(pytest.param(command, marks=marks, id=" ".join(words)))
    return found


def made_quick(words: str) -> str:
    """The words after `vggtquant` as a test can run them."""
    for form, instead in FORMS.items():
        words = re.sub(form, instead, words)
    name = words.split()[0]
    if name == "report" and "--figures" not in words:
        return f"{words} --figures size"
    if name != "evaluate":
        return words
    words += " --restart --runs 1 --warmup 0 --no-progress"
    words += "" if "--groups" in words else " --max_images 2"
    if not re.search("--(schemes|config|sensitivity)", words):
        words += " --schemes INT4_Group_128"
    if "--shard" in words:
        return f"{words} --scenes 3 --output_dir shard"
    return words if re.search("--(image_folder|scenes)", words) else f"{words} --scenes 1"


@pytest.fixture(scope="module")
def furnished(desk):
    """The desk with all that the commands of the pages read."""
    model = "evaluate --model builtin:tiny"
    run(made_quick(f"{model} --sensitivity INT4_Group_128 --schemes INT4_Group_128"), desk)
    for part in "123":
        run(f"{made_quick(f'{model} --shard {part}/3')}{part}", desk)
    run("run builtin:tiny builtin --output_dir scene", desk)
    shutil.copytree(desk / "scene" / "images", desk / "photos")
    shutil.copy(desk / "tiny-int4.safetensors", desk / "packed.safetensors")
    (desk / "mine.toml").write_text('name = "mine"\nquant_type = "int4_group"\ngroup_size = 64\n')
    return desk


@pytest.mark.slow  # two minutes
@pytest.mark.parametrize("command", every_command())
def test_every_command_runs(command, furnished):
    if " export " in command:
        pytest.importorskip("onnxscript", reason="exports need the extra `onnx`")
    if "docx" in command:
        pytest.importorskip("docx", reason="docx needs the extra `report`")
    if "--device cuda" in command and (missing := ops.cuda_missing()):
        pytest.skip(f"no GPU to run it on: {missing}")
    run(made_quick(command.removeprefix("vggtquant ")), furnished)


def scripts() -> list[str]:
    """Each command of a page that starts a script of the repository, once."""
    found = set()
    for page in [*ENGLISH, DOCS.parent / "csrc" / "README.md", *DOCS.glob("zh/*.md")]:
        text = re.sub(r"^```\w*$", "`", page.read_text("utf-8"), flags=re.M)
        for quoted in re.findall(r"`([^`]*)`", text):
            found |= set(re.findall(r"python ((?:tests|tools|examples)/\S+?\.py[^`#|&]*)", quoted))
    return sorted({" ".join(command.split()) for command in found})


class Parsed(Exception):
    """The script's own parser took the words; it goes no further."""


@pytest.mark.parametrize("command", scripts())
def test_scripts_take_what_pages_write(command, monkeypatch, capsys):
    """The script is run as far as its parser; one without a parser exists."""
    name, *words = shlex.split(command)
    script = DOCS.parent / name
    source = script.read_text("utf-8")
    if "parse_args" not in source:
        assert not words or "sys.argv" in source
        return

    def parse(parser, args=None, namespace=None):
        parser.parse_known_args(args, namespace)
        raise Parsed

    parse_known = argparse.ArgumentParser.parse_known_args

    def strictly(parser, args=None, namespace=None):
        found, left = parse_known(parser, args, namespace)
        assert left == [], left
        return found, left

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", strictly)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.syspath_prepend(script.parent)
    try:
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit:
        pytest.fail(f"{command}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", GUIDES)
def test_flags_exist(page):
    """A flag that a page names is a flag of some command."""
    parser = cli._parser()
    choices = next(one.choices for one in parser._actions if one.dest == "command")
    known = {flag for one in choices.values() for flag in one._option_string_actions}
    text = (DOCS / f"{page}.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if "pip install" not in line]
    lines = re.sub(r"python tests/bench.*", "", "\n".join(lines))
    assert {flag for flag in re.findall(r"--[a-z][a-z_-]*", lines) if flag not in known} == set()


@pytest.mark.parametrize("command", ["evaluate", "sweep", "quantize", "run"])
def test_every_flag_is_explained(command):
    text = (DOCS / "parameters.md").read_text("utf-8")
    part = text.partition(f"## Flags of `vggtquant {command}`")[2].partition("\n## ")[0]
    parser = cli._parser()
    choices = next(one.choices for one in parser._actions if one.dest == "command")
    flags = set(choices[command]._option_string_actions) - {"-h", "--help"}
    assert flags == set(re.findall(r"`(--?[a-z_-]+)`", re.sub(r"(\|[^|]*\|).*", r"\1", part)))


@pytest.mark.parametrize("field", dataclasses.fields(vq.QuantizationConfig), ids=lambda f: f.name)
def test_every_field_is_explained(field):
    headings = re.findall(r"^### (.*)", (DOCS / "parameters.md").read_text("utf-8"), re.M)
    assert any(f"`{field.name}`" in heading for heading in headings)


# ---- words ---------------------------------------------------------------------------------------

RIDDLES = {
    r"\blest\b": "so that ... not",
    r"\bwhence\b|\bthereof\b|\balbeit\b|\bwhilst\b|\bhitherto\b": "a common word",
    r"\butili[sz]e": "use",
    r"\bleverage[sd]?\b": "use",
    r"\baforementioned\b": "the name",
    r"\bof no use\b|\ba defect of ours\b|\bnobody reads\b": "what is wrong and what to do",
    r"\bmust not need\b|\bis yours to\b|\bare yours to\b": "you ...",
    r"\bmakes? no difference to\b|\bcannot be told from\b": "no difference is shown",
    r"\blayers of no cost\b": "if Linear layers were free (Amdahl limit)",
    r"\bheld to\b|\bheld against\b|\bset beside\b": "compared with",
    r"\bin question\b|\bas the case may be\b|\bso to speak\b": "leave it out",
}
"""Patterns that plain technical English does without, and what to write."""


@pytest.mark.parametrize("page", ENGLISH, ids=lambda path: path.stem)
def test_plain_words(page):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.S)
    prose = " ".join(prose.split())
    found = [
        f"{seen.group()}: write {better}"
        for pattern, better in RIDDLES.items()
        for seen in re.finditer(pattern, prose, re.I)
    ]
    assert found == []


@pytest.mark.parametrize("page", [*ENGLISH, *sorted(DOCS.glob("zh/*.md"))], ids=lambda p: p.stem)
def test_lines_end_at_120_characters(page):
    """Rows of tables cannot be broken."""
    lines = page.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


# ---- links and the site --------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.S))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.slow  # Sphinx, ten seconds
def test_site_builds_without_warnings(tmp_path):
    pytest.importorskip("myst_parser", reason="Sphinx and MyST are the extra `docs`")
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "zh" / "quickstart.html").exists()
