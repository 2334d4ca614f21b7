# SPDX-License-Identifier: Apache-2.0
"""Builds vggtquant._cpu and vggtquant._render from csrc/. Nothing of torch or CUDA is needed.

VGGTQUANT_DEBUG=1 builds with -O1 -g and the address and undefined-behaviour sanitizers.
"""

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from glob import glob

import numpy
from setuptools import Extension, setup

if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
    sys.exit(
        "vggtquant builds on Linux, x86-64 and aarch64; "
        f"this is {sys.platform}, {platform.machine()}"
    )

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
    *(["-Werror"] if os.environ.get("VGGTQUANT_WERROR") == "1" else []),
    *(["-O1", "-g", *SANITIZERS] if DEBUG else ["-O3"]),
]


def extension(name: str, sources: list[str], flags: list[str]) -> Extension:
    return Extension(
        f"vggtquant.{name}",
        sources,
        include_dirs=[numpy.get_include()],
        depends=glob("csrc/**/*.h", recursive=True) + glob("csrc/*.def"),
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=SANITIZERS,
    )


def openmp() -> list[str]:
    """Only compiles; the runtime is the process's own: csrc/threads.c, which serves what gcc calls.

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


setup(
    ext_modules=[
        extension(
            "_cpu",
            [
                *sorted(glob("csrc/*.c")),
                *sorted(glob("csrc/cpu/*.c")),
                "csrc/python/cpu.c",
                "csrc/python/metrics.c",
            ],
            openmp(),
        ),
        extension("_render", [*sorted(glob("csrc/render/*.c")), "csrc/python/render.c"], []),
    ]
)
