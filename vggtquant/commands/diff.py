# SPDX-License-Identifier: Apache-2.0
"""`vggtquant diff`."""

from __future__ import annotations

import argparse

WORDS = "compare two checkpoints, packed or float"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant diff`."""
    parser.epilog = "Exits with 0 whether they differ or not; the last line says it."
    parser.add_argument("a", metavar="A", help="a checkpoint, packed or float")
    parser.add_argument("b", metavar="B", help="another one")


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant diff`."""
    from ..checkpoint import inspection

    print(inspection.diff(args.a, args.b))
    return 0
