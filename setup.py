# SPDX-License-Identifier: Apache-2.0
"""Builds vggtquant._cpu and vggtquant._render from csrc/, and vggtquant._cuda where a GPU is.

Nothing of torch is needed.
VGGTQUANT_CUDA: 0 leaves _cuda out, 1 builds it for all architectures, auto (default) builds it for
the GPUs of this machine, as nvidia-smi names them; without one, or without nvcc, _cuda is left out.
nvcc: in CUDA_HOME, on the PATH, or in /usr/local/cuda. VGGTQUANT_CUDA_ARCH: builds it for these
architectures, as "80;90".
VGGTQUANT_DEBUG=1 builds with -O1 -g and the address and undefined-behaviour sanitizers.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
    sys.exit(
        "vggtquant builds on Linux, x86-64 and aarch64; "
        f"this is {sys.platform}, {platform.machine()}"
    )

CUDA_HEADERS = [*glob("csrc/*.h"), *glob("csrc/*.def"), *glob("csrc/cuda/*.cuh")]
HEADERS = [*glob("csrc/*/*.h"), *glob("csrc/python/*/*.h"), *CUDA_HEADERS]
# What the fronts of the CPU and of CUDA share.
SHARED = [f"csrc/{name}.c" for name in ("formats", "metrics_sizes", "status", "weight")]
CUDA_SOURCES = sorted(glob("csrc/cuda/*.cu"))
WERROR = os.environ.get("VGGTQUANT_WERROR") == "1"
DEBUG = os.environ.get("VGGTQUANT_DEBUG") == "1"
SANITIZERS = ["-fsanitize=address,undefined"] if DEBUG else []
FLAGS = [
    "-std=c11",
    "-ffp-contract=off",  # the same bits everywhere: docs/conventions.md
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wmissing-prototypes",
    *(["-Werror"] if WERROR else []),
    *(["-O1", "-g", *SANITIZERS] if DEBUG else ["-O3"]),
]
# Checked by tests/test_supply_chain.py. Sanitizers check more than _FORTIFY_SOURCE, and do not get
# on with it.
HARDENING = [
    "-fstack-protector-strong",
    *([] if DEBUG else ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]),
    *(["-fcf-protection=full"] if platform.machine() == "x86_64" else []),
]
LINKING = ["-Wl,-z,relro,-z,now,-z,noexecstack", *SANITIZERS]


def binding(module: str) -> list[str]:
    return sorted(glob(f"csrc/python/{module}/*.c"))


def extension(name: str, sources: list[str], flags: list[str]) -> Extension:
    return Extension(
        f"vggtquant.{name}",
        sources,
        include_dirs=[numpy.get_include()],
        depends=[*HEADERS, *CUDA_SOURCES],  # all of them, so that a source distribution has them
        extra_compile_args=[*FLAGS, *HARDENING, *flags],
        extra_link_args=LINKING,
    )


def openmp() -> list[str]:
    """Only compiles; the runtime is the process's own: csrc/openmp.c, which serves what gcc calls.

    clang calls a runtime of its own, so there the fronts run on one thread.
    """
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    version = subprocess.run(
        [*shlex.split(compiler), "--version"], capture_output=True, text=True, check=False
    ).stdout
    if "clang" not in version:
        return ["-fopenmp"]
    print("vggtquant: a clang build runs on one thread; gcc's use torch's OpenMP", file=sys.stderr)
    return ["-Wno-unknown-pragmas"]


# ---- CUDA ----------------------------------------------------------------------------------------

# T4 and RTX 20, A100, RTX 30, Orin, RTX 40, H100, B200; the newest as PTX too, for those to come.
ARCHITECTURES = ["75", "80", "86", "87", "89", "90", "100"]
OLDEST = 75  # INT8 tensor cores


def gpus() -> list[str]:
    """Architectures of the GPUs of this machine that the kernels serve, as nvidia-smi says."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    numbers = {line.strip().replace(".", "") for line in told.splitlines()}
    return sorted(n for n in numbers if n.isdigit() and int(n) >= OLDEST)


def find_nvcc() -> str | None:
    """nvcc's path, or None where _cuda is not to be built; exits where it is wanted and missing."""
    wanted = os.environ.get("VGGTQUANT_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"VGGTQUANT_CUDA is {wanted!r}; 0, 1 or auto is wanted")
    if wanted == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    path = [f"{home}/bin" for home in homes if home]
    path += [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(path))
    if wanted == "auto" and not os.environ.get("VGGTQUANT_CUDA_ARCH"):
        if bool(found) != bool(GPUS):
            what = "nvcc but no GPU" if found else "a GPU but no nvcc"
            print(
                f"vggtquant: here is {what}, so the CUDA kernels are left out; VGGTQUANT_CUDA=1 "
                "builds them",
                file=sys.stderr,
            )
        return found if GPUS else None
    if found is None and wanted == "1":
        sys.exit(
            "VGGTQUANT_CUDA is 1, but nvcc is neither in CUDA_HOME nor on the PATH; "
            "install the CUDA Toolkit, or leave VGGTQUANT_CUDA out to build for the CPU alone"
        )
    return found


def architectures(nvcc: str) -> list[str]:
    """-gencode flags: what VGGTQUANT_CUDA_ARCH names; else, with auto, this machine's GPUs; else
    the default list. Of the last two, those that this nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    numbers = [line.removeprefix("compute_") for line in listed.stdout.split()]
    known = sorted({n for n in numbers if n.isdigit() and int(n) >= OLDEST}, key=int)
    asked = os.environ.get("VGGTQUANT_CUDA_ARCH", "").replace(".", "").replace(",", ";")
    wanted = {arch.strip() for arch in asked.split(";")} - {""}
    if unknown := sorted(wanted - set(known)):
        sys.exit(
            f'VGGTQUANT_CUDA_ARCH names {unknown[0]!r}; numbers such as "80;90" are wanted, '
            f"of those that the kernels and this nvcc serve: {', '.join(known)}"
        )
    here = set(GPUS) & set(known) if os.environ.get("VGGTQUANT_CUDA", "auto") == "auto" else set()
    wanted = sorted(wanted or here or set(ARCHITECTURES) & set(known), key=int)
    if not wanted:
        sys.exit(f"{nvcc} builds for none of {', '.join(ARCHITECTURES)}; a newer one is wanted")
    codes = [(arch, f"sm_{arch}") for arch in wanted] + [(wanted[-1], f"compute_{wanted[-1]}")]
    return [flag for a, c in codes for flag in ("-gencode", f"arch=compute_{a},code={c}")]


class BuildExt(build_ext):
    """Sends an extension's .cu sources through nvcc, two at once, and links their objects."""

    def build_extension(self, ext: Extension) -> None:
        cuda = [source for source in ext.sources if source.endswith(".cu")]
        if cuda and NVCC:
            ext.sources = [source for source in ext.sources if source not in cuda]
            with ThreadPoolExecutor(2) as pool:
                ext.extra_objects = list(pool.map(self.nvcc, cuda))
        super().build_extension(ext)

    def nvcc(self, source: str) -> str:
        target = Path(self.build_temp) / f"{source}.o"
        newest = max(os.path.getmtime(path) for path in (source, "setup.py", *CUDA_HEADERS))
        if not self.force and target.exists() and target.stat().st_mtime > newest:
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        host = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *HARDENING]
        host += ["-Werror"] if WERROR else []
        command = [NVCC, "-std=c++17", "-O3", "-fmad=false", *GENCODE, "-Xcompiler", ",".join(host)]
        command += ["-Werror", "all-warnings"] if WERROR else []
        done = subprocess.run([*command, "-c", source, "-o", target], check=False)
        if done.returncode:
            sys.exit(f"nvcc could not compile {source}")
        return str(target)


GPUS = [] if os.environ.get("VGGTQUANT_CUDA") in ("0", "1") else gpus()
NVCC = find_nvcc()
GENCODE = architectures(NVCC) if NVCC else []


def cuda_extension(nvcc: str) -> Extension:
    """The module, with the static runtime from where nvcc itself would take it."""
    plan = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False)
    folders = next((line for line in plan.stderr.splitlines() if "LIBRARIES=" in line), "=")
    ext = extension(
        "_cuda",
        [*binding("cuda"), "csrc/python/words.c", *SHARED, *CUDA_SOURCES],
        [],
    )
    ext.libraries = ["cudart_static", "stdc++", "rt", "pthread", "dl"]
    ext.extra_link_args = [
        *shlex.split(folders.partition("=")[2]),
        *LINKING,
        "-Wl,--exclude-libs,ALL",  # of the runtime, nothing is exported
    ]
    return ext


setup(
    ext_modules=[
        extension(
            "_cpu",
            [
                *sorted(glob("csrc/*.c")),
                *sorted(glob("csrc/cpu/*.c")),
                *binding("cpu"),
                "csrc/python/words.c",
            ],
            openmp(),
        ),
        extension("_render", [*sorted(glob("csrc/render/*.c")), *binding("render")], []),
        *([cuda_extension(NVCC)] if NVCC else []),
    ],
    cmdclass={"build_ext": BuildExt},
)
