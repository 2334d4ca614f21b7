# SPDX-License-Identifier: Apache-2.0
"""`vggtquant merge`."""

from __future__ import annotations

import argparse

from .options import FOLDER, need_extra, show

WORDS = "put the shards of an evaluation together into one report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant merge`."""
    parser.add_argument("shards", nargs="+", metavar="SHARD_DIR", help="--output_dir of each shard")
    parser.add_argument(
        *FOLDER, dest="output_dir", required=True, metavar="DIR", help="where the report goes"
    )


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant merge`."""
    need_extra()
    from ..evaluation import merge as job

    result = job.merge(args.shards, args.output_dir)
    show(result)
    return 3 if result.failed else 0
