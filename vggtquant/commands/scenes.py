# SPDX-License-Identifier: Apache-2.0
"""`vggtquant scenes`."""

from __future__ import annotations

import argparse

from .options import FOLDER, need_extra

WORDS = "render scenes with exact ground truth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant scenes`."""
    parser.add_argument(
        *FOLDER, dest="out", required=True, metavar="DIR", help="where the scenes go"
    )
    parser.add_argument("--count", type=int, default=8, help="number of scenes (default 8)")
    parser.add_argument("--frames", type=int, default=4, help="pictures of each (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="which scenes (default 0)")


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant scenes`."""
    need_extra()
    from ..data import scenes

    for folder in scenes.write_dataset(args.out, args.count, args.frames, args.seed):
        print(folder)
    return 0
