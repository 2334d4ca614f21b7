# SPDX-License-Identifier: Apache-2.0
"""`vggtquant sweep`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from .evaluate import add_launcher, job_options, own_the_process
from .options import FOLDER, need_extra

if TYPE_CHECKING:
    from ..evaluation.evaluate import Result
    from ..evaluation.measure.plan import Settings

WORDS = "evaluate a grid of models, configs, calibration seeds and data, with one table of all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant sweep`."""
    parser.epilog = "Writes sweep.json, sweep.md and the report of each evaluation."
    parser.add_argument("grid", metavar="GRID", help="a TOML file: models, data, schemes, methods")
    parser.add_argument(
        *FOLDER, dest="output_dir", required=True, metavar="DIR", help="where the results go"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--resume", action="store_true", help="go on with what was cut short in --output_dir"
    )
    how.add_argument("--restart", action="store_true", help="drop what is there and begin anew")
    how.add_argument("--no-progress", action="store_true", help="a line a scheme instead of bars")
    add_launcher(how)


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant sweep`."""
    need_extra()
    own_the_process()
    from ..evaluation import evaluate as job
    from ..launch import shards, sweep
    from ..progress import Progress

    grid = sweep.read(args.grid)
    options = job_options(args.job_option)

    def evaluate(settings: Settings) -> Result:
        given = replace(settings, resume=args.resume, restart=args.restart)
        with Progress(bars=False if args.no_progress else None) as progress:
            progress.say(f"{given.model} on {' '.join(given.images) or 'rendered scenes'}")
            if args.launcher is None:
                return job.evaluate(given, progress)
            return shards.run(given, args.launcher, args.jobs, progress, options)

    lines, files = sweep.run(grid, args.output_dir, evaluate)
    print(sweep.table(lines), end="")
    for path in files:
        print(f"wrote {path}")
    return 3 if any(line.failed for line in lines) else 0
