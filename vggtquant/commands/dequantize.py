# SPDX-License-Identifier: Apache-2.0
"""`vggtquant dequantize`."""

from __future__ import annotations

import argparse
from pathlib import Path

WORDS = "write what a packed checkpoint stands for as a float one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant dequantize`."""
    parser.add_argument("file", metavar="FILE", help="a packed checkpoint")
    parser.add_argument("--out", required=True, metavar="FILE", help="a float .safetensors file")


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant dequantize`."""
    from ..checkpoint import inspection

    nbytes = inspection.dequantize(args.file, args.out)
    print(f"wrote {Path(args.out)}: {nbytes / 1e6:.1f} MB")
    return 0
