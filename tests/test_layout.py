# SPDX-License-Identifier: Apache-2.0
"""The few rules that keep the layers apart; who needs an exception edits this and says why."""

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import vggtquant as vq
from vggtquant import _cpu, _render, ops

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "vggtquant"

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not beside the tests")


def sources(*patterns: str) -> list[Path]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path for path in found if "build" not in path.relative_to(ROOT).parts)


C_FILES = sources("csrc/**/*.c", "csrc/**/*.h", "csrc/**/*.def", "csrc/cuda/*.cu*")
PYTHON_FILES = sources(
    "vggtquant/**/*.py*", "examples/*.py", "tools/*.py", "tests/*.py", "tests/bench/*.py"
)
PYTHON_FILES = [path for path in PYTHON_FILES if path.suffix in (".py", ".pyi")]


def holding(pattern: str, files: Iterable[Path]) -> set[str]:
    """Those of the files with a line that matches, relative to the root."""
    return {str(f.relative_to(ROOT)) for f in files if re.search(pattern, f.read_text(), re.M)}


def code_of(path: Path) -> str:
    """C without comments and strings."""
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"', " ", path.read_text(), flags=re.S)


# ---- C -------------------------------------------------------------------------------------------


def test_python_stands_in_the_binding_only() -> None:
    found = holding(r"^\s*#\s*include\s*<(Python|numpy/.*)\.h>", C_FILES)
    assert found and all(name.startswith("csrc/python/") for name in found)


def test_intrinsics_stand_in_kernels_only() -> None:
    found = holding(r"^\s*#\s*include\s*<(\w*mmintrin|x86intrin|arm_\w+)\.h>", C_FILES)
    assert all(re.fullmatch(r"csrc/cpu/\w+\.[ch]", name) for name in found)
    if platform.machine() == "x86_64":
        assert found


def test_threads_stand_in_fronts_only() -> None:
    found = {str(f.relative_to(ROOT)) for f in C_FILES if "#pragma omp" in code_of(f)}
    assert found and all(re.fullmatch(r"csrc/\w+\.c", name) for name in found)


def test_the_core_owns_nothing() -> None:
    """No allocation, no output, no exit: sizes are told, buffers are the caller's."""
    core = [*CSRC.glob("*.[ch]"), *(CSRC / "cpu").glob("*.[ch]"), *(CSRC / "render").glob("*.[ch]")]
    core += (CSRC / "cuda").glob("*.cu*")
    word = re.compile(r"\b(malloc|calloc|realloc|free|alloca|v?f?printf|puts|exit|abort|FILE)\s*\(")
    assert not [f"{f.name}: {found[0]}" for f in core if (found := word.search(code_of(f)))]


def test_kernels_stand_below_the_binding() -> None:
    assert not holding(
        r'#include "(\.\./)?python/', [f for f in C_FILES if "python" not in f.parts]
    )


def functions(header: Path) -> list[tuple[str, str]]:
    """Each function that a header declares, and what stands directly above its paragraph."""
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", header.read_text(), flags=re.S)
    text = re.sub(r"^//(.*)$", r"/*\1 */", text, flags=re.M)
    found, above = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        for part in re.split(r"(/\*.*?\*/)", paragraph, flags=re.S):
            if part.startswith("/*"):
                above = part
            for name in re.findall(r"^[a-z][\w \*]*?\b(\w+)\([^;{]*\);", part, re.M):
                found.append((name, above))
        above = ""
    return found


@pytest.mark.parametrize("header", ["vgq.h", "render/render.h"])
def test_every_public_function_has_its_contract_above(header: str) -> None:
    found = functions(CSRC / header)
    assert len(found) > 2
    assert [name for name, comment in found if not comment or comment.startswith("/* ----")] == []
    assert [name for name, _ in found if not name.startswith("vgq_")] == []


def test_only_the_module_is_exported() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    for module in filter(None, (_cpu, ops.native.cuda, _render)):
        shown = subprocess.run(
            [nm, "-D", "--defined-only", str(module.__file__)], capture_output=True
        )
        symbols = {line.split()[-1] for line in shown.stdout.decode().splitlines()}
        assert symbols == {f"PyInit_{module.__name__.rpartition('.')[2]}"}


# ---- Python --------------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """The last words of all names that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name.rpartition(".")[2] for alias in node.names}
            names.add((getattr(node, "module", None) or "").rpartition(".")[2])
    return names


@pytest.mark.parametrize(
    "module, user", [("_cpu", "native.py"), ("_cuda", "native.py"), ("_render", "scenes.py")]
)
def test_each_c_module_has_one_user(module: str, user: str) -> None:
    users = [path.name for path in PACKAGE.rglob("*.py") if module in imported(path)]
    assert users == [user]


def test_the_constants_that_two_languages_know_are_equal() -> None:
    header = (CSRC / "vgq.h").read_text()
    assert int(re.search(r"#define VGQ_DEEPEST (\d+)", header)[1]) == ops.DEEPEST  # type: ignore[index]


# ---- documents -----------------------------------------------------------------------------------


def test_every_source_file_names_its_licence() -> None:
    first = {path: path.read_text().splitlines()[:1] for path in [*C_FILES, *PYTHON_FILES]}
    missing = [
        str(path.relative_to(ROOT))
        for path, line in first.items()
        if path.suffix != ".def" and "SPDX-License-Identifier: Apache-2.0" not in "".join(line)
    ]
    assert missing == []


def test_every_config_stands_in_the_readme() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        return
    text = readme.read_text()
    assert [c for c in vq.CONFIGS if f"`{c.removesuffix('_A8')}`" not in text] == []
    assert "_A8`" in text


def test_every_metric_stands_in_the_conventions() -> None:
    rows = re.findall(r"^(?:METRIC|COMPANION)\((\w+)", (CSRC / "metrics.def").read_text(), re.M)
    page = (ROOT / "docs" / "conventions.md").read_text()
    assert len(rows) > 8 and [name for name in rows if not re.search(rf"\b{name}\b", page)] == []


def test_no_paths_of_somebody_s_machine() -> None:
    suffixes = (".py", ".pyi", ".c", ".h", ".def", ".md", ".toml", ".txt", ".ipynb", ".json", "")
    folders = ("csrc", "vggtquant", "docs", "examples", "notebooks", "tests", "tools", ".ci")
    paths = [*ROOT.glob("*"), *(path for name in folders for path in (ROOT / name).rglob("*"))]
    # A worktree's .git is a file that names its place.
    skipped = (Path(__file__), ROOT / ".git")
    files = [p for p in paths if p.is_file() and p.suffix in suffixes and p not in skipped]
    assert len(files) > 50
    assert holding(r"(?<![\w.~}])/(tmp|work|home|root|Users)/\w", files) == set()


def test_every_public_name_is_there() -> None:
    assert [name for name in vq.__all__ if getattr(vq, name, None) is None] == []


# ---- imports of the package ----------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """The package's modules by dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        words = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return found


def package_imports(name: str, path: Path) -> list[tuple[str, str, str]]:
    """What a module imports from the package when it runs: (module, name there, name here)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(a.name, "", "") for a in node.names if a.name.split(".")[0] == "vggtquant"]
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            start = ".".join(parts) if node.level else ""
            source = ".".join(filter(None, (start, node.module)))
            if source.split(".")[0] == "vggtquant":
                found += [(source, a.name, a.asname or a.name) for a in node.names]
    return found


def part_of(module: str) -> str:
    """A package's folder, one of evaluation's folders, or a module beside them."""
    words = module.split(".")[1:]
    return ".".join(words[: 2 if words[:1] == ["evaluation"] else 1])


def circle(graph: dict[str, set[str]]) -> list[str]:
    """What still imports each other when everything that imports nothing is taken away."""
    graph = {name: set(others) for name, others in graph.items()}
    while free := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in free:
            del graph[name]
    return sorted(graph)


def test_imports_run_one_way() -> None:
    known = modules()
    between: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = {}
    for name, path in known.items():
        between[name], part = set(), parts.setdefault(part_of(name), set())
        for source, imported, _ in package_imports(name, path):
            target = f"{source}.{imported}" if f"{source}.{imported}" in known else source
            between[name] |= {target} - {name}
            part |= {part_of(target)} - {part_of(name), ""}
    assert circle(between) == []
    assert circle(parts) == []


def test_nothing_inside_imports_the_facade() -> None:
    found = [
        name
        for name, path in modules().items()
        for source, imported, _ in package_imports(name, path)
        if source == "vggtquant" and not imported
    ]
    assert found == []


TOPICS = {
    "binding", "cuda_build", "cuda_gpu", "cuda_shim", "core", "disassembly", "fuzz", "threads",
    "signals", "hostile",  # the C core and its binding
    "attention", "conformance", "onnx", "original", "properties",  # several modules at once
    "docs", "layout", "pages", "supply_chain",  # the repository
    "loop",  # evaluation/: sensitivity, budget, a packed file, its evaluation
}  # fmt: skip
"""Tests that are of no one module of the package."""


def test_tests_mirror_the_package() -> None:
    """tests/a/test_b.py or test_b_topic.py is about vggtquant/a/b.py."""
    tests = ROOT / "tests"
    strays = []
    for path in tests.rglob("test_*.py"):
        home = PACKAGE / path.parent.relative_to(tests)
        subject = path.stem.removeprefix("test_")
        names = {p.stem for p in home.iterdir() if p.suffix == ".py" or p.is_dir()} | TOPICS
        if not any(subject == name or subject.startswith(f"{name}_") for name in names):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == []


def test_private_names_stay_in_their_module() -> None:
    known, found = modules(), list[tuple[str, str]]()
    private = re.compile(r"_(?!cpu|cuda|render)[a-z]")
    for name, path in known.items():
        imported = package_imports(name, path)
        here = {own for source, what, own in imported if f"{source}.{what}" in known}
        found += [
            (name, what) for _, what, _ in imported if re.match(r"_(?!cpu|cuda|render)", what)
        ]
        found += [
            (name, ast.unparse(node))
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
            and private.match(node.attr)
            and isinstance(node.value, ast.Name)
            and node.value.id in here
        ]
    assert [(name, what) for name, what in found if name != "vggtquant"] == []


@pytest.mark.parametrize("word", ["track_head", "camera_head", "VGGT-1B", "vggt.models"])
def test_what_is_special_to_a_model_stands_in_its_adapter(word: str) -> None:
    """But for the tiny model, which has VGGT's names, docstrings and help."""
    found = set()
    for name, path in modules().items():
        strings = (
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        if any(word in text and len(text) < 60 and "\n" not in text for text in strings):
            found.add(name)
    others = found - {"vggtquant.tiny.model"}
    assert [name for name in others if not name.startswith("vggtquant.adapters.")] == []


def test_the_sources_without_kernels_say_so(tmp_path: Path) -> None:
    """As in the folder of the sources, beside an installed package."""
    for path in (ROOT / "vggtquant").rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    alone = "sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in str(f)]"
    program = (
        f"import sys; {alone}; from vggtquant.commands import cli; sys.exit(cli.main(['info']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "no compiled kernels. Start Python in another folder" in done.stderr
