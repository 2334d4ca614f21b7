# SPDX-License-Identifier: Apache-2.0
"""`vggtquant evaluate`."""

from __future__ import annotations

import argparse
import os
import sys

from ..errors import UserError
from .options import ADAPTER, ADAPTER_HELP, FOLDER, need_extra, show

WORDS = "compare every scheme with the FP32 model and write a report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant evaluate`."""
    parser.epilog = (
        "Writes comprehensive_report.html, comprehensive_report.txt, comprehensive_results.json "
        "and comprehensive_visualizations.png. Exits with 3 when a scheme failed, 2 for bad input."
    )
    what = parser.add_argument_group("what to evaluate")
    what.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, or one folder of them")
    what.add_argument(
        "--model",
        default="builtin:tiny",
        help="builtin:tiny (default), a hub id such as facebook/VGGT-1B, a directory, a .pt or "
        ".safetensors file, module:function that returns a model, or a packed file",
    )
    what.add_argument(
        "--source",
        metavar="MODEL",
        help="with a packed file: the float model that it is compared with (default: the one it "
        "was made from, where that is at hand)",
    )
    what.add_argument(*ADAPTER, metavar="NAME", help=ADAPTER_HELP)
    what.add_argument(
        "--image_folder", metavar="DIR", help="a folder of pictures (default: rendered scenes)"
    )
    what.add_argument(
        "--max_images",
        type=int,
        metavar="N",
        help="at most N pictures of a scene (default 32, fewer for a large model; 10 of each of "
        "several scenes, 4 of each rendered one)",
    )
    number = what.add_mutually_exclusive_group()
    number.add_argument(
        "--scenes",
        type=int,
        metavar="N",
        help="scenes to use (default 8 rendered ones, fewer for a large model; all of a folder)",
    )
    number.add_argument(
        "--full",
        dest="scenes",
        action="store_const",
        const=64,
        help="64 rendered scenes: enough to tell close schemes apart (minutes)",
    )
    what.add_argument(
        "--groups",
        type=int,
        metavar="N",
        help="cut one folder of pictures into N groups that overlap by half: several scenes, so "
        "that differences get intervals (5 or more)",
    )
    what.add_argument(
        "--layout",
        metavar="NAME",
        help="how a folder with ground truth is laid out: npz, eth3d, 7scenes, co3d or colmap; "
        "pictures takes its pictures alone (default: by what is in it)",
    )
    what.add_argument(
        "--mode",
        choices=("crop", "pad"),
        default="crop",
        help="how pictures are brought to the model's width, as in VGGT (default crop)",
    )
    what.add_argument(
        "--schemes",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="schemes to run (default: all; `vggtquant schemes` lists them); may be repeated",
    )
    what.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="a .toml or .json file of configs, evaluated beside --schemes (without these: alone)",
    )
    what.add_argument(
        "--sensitivity",
        nargs="?",
        const="INT4_Group_128",
        metavar="SCHEME",
        help="beside the rest, quantize one layer at a time to SCHEME (default %(const)s) on the "
        "first scene: a forward a layer, sensitivity.png, and sensitivity.json for quantize",
    )
    what.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="how the codes of each scheme are chosen, e.g. gptq or rtn,gptq; docs/methods.md has "
        "them (default: round to nearest). Calibration renders scenes that no evaluation shows",
    )
    what.add_argument(
        "--samples", type=int, metavar="N", help="with --method: pictures (default: the config's)"
    )
    what.add_argument(
        "--calibration_seeds",
        type=int,
        metavar="N",
        help="with --method: a row for each of N sets of pictures, which shows their spread",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        *FOLDER,
        dest="output_dir",
        default="vggtquant_results",
        metavar="DIR",
        help="where the files go (default ./vggtquant_results)",
    )
    how.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, … (default: that of the configs, which is cpu); docs/gpu.md",
    )
    how.add_argument(
        "--max_memory",
        metavar="SIZE",
        help="of the process, e.g. 8GB: fewer pictures, and none that have no room in it",
    )
    how.add_argument(
        "--runs", type=int, metavar="N", help="timed passes a scheme (default 3, fewer if slow)"
    )
    how.add_argument(
        "--warmup", type=int, metavar="N", help="forwards before them (default 1, none if slow)"
    )
    how.add_argument("--threads", type=int, metavar="N", help="threads (default: torch's choice)")
    how.add_argument("--seed", type=int, default=0, help="which rendered scenes (default 0)")
    which = parser.add_argument_group("which scheme to recommend")
    which.add_argument(
        "--max_drop",
        type=float,
        metavar="POINTS",
        help="lose at most so many percentage points of pose AUC@30 against FP32's poses (default "
        "1, with the depth within FP32's noise floor)",
    )
    which.add_argument("--max_bytes", metavar="SIZE", help="the whole model at most, as in 1.5GB")
    which.add_argument(
        "--min_speedup", type=float, metavar="X", help="at least X times as fast as FP32"
    )
    how.add_argument("--no-progress", action="store_true", help="a line a scheme instead of bars")
    how.add_argument(
        "--resume",
        action="store_true",
        help="go on with the evaluation that was cut short in --output_dir, if there is one",
    )
    how.add_argument(
        "--restart", action="store_true", help="drop an unfinished evaluation in --output_dir"
    )
    how.add_argument(
        "--isolate",
        action="store_true",
        help="also load each scheme in a process of its own: load time, peak memory, file size",
    )
    add_launcher(how)
    how.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="evaluate the I-th of N parts of the scenes; `vggtquant merge` puts them together",
    )


def add_launcher(group: argparse._ArgumentGroup) -> None:
    """The flags of where shards run."""
    group.add_argument(
        "--launcher",
        choices=("local", "slurm", "ray"),
        help="run the scenes in shards and merge them: processes here, Slurm jobs or Ray tasks",
    )
    group.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="with --launcher: shards (default 2)"
    )
    group.add_argument(
        "--job_option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --launcher: of the scheduler, e.g. partition=cpu, mem_gb=16, timeout_min=600",
    )


def job_options(given: list[str]) -> dict[str, str]:
    """The scheduler's options by name; UserError for words that are none."""
    found = {}
    for words in given:
        key, equals, value = words.partition("=")
        if not (key and equals):
            raise UserError(f"--job_option is {words!r}; wanted KEY=VALUE, as partition=cpu")
        found[key] = value
    return found


_ALIKE = (
    *("model", "source", "max_images", "scenes", "groups", "mode", "layout", "output_dir"),
    *("device", "runs", "warmup", "threads", "seed", "sensitivity", "resume", "restart"),
    *("shard", "max_drop", "min_speedup", "isolate", "adapter"),
)
"""Flags that are fields of plan.Settings as they are."""


def _shard(words: str) -> tuple[int, int]:
    part, _, parts = words.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"{words!r} is no part of a whole, as 1/3 is")
    return int(part), int(parts)


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant evaluate`."""
    need_extra()
    own_the_process()
    from ..checkpoint import budget
    from ..configs import DEFAULTS, read_configs
    from ..evaluation import evaluate as job
    from ..evaluation.measure import plan
    from ..progress import Progress

    if args.image_folder and args.images:
        raise UserError("--image_folder and pictures were both given; wanted one of them")
    names = [name.strip() for names in args.schemes for name in names.split(",")]
    files = [config for path in args.config for config in read_configs(path)]
    configs = plan.configs_of([*names, *files]) if names or files else None
    methods = [name.strip() for names in args.method for name in names.split(",")]
    if methods:
        seeds = 1 if args.calibration_seeds is None else args.calibration_seeds
        wanted = DEFAULTS if configs is None else configs
        configs = plan.calibrated(wanted, methods, args.samples, seeds)
    elif args.samples is not None or args.calibration_seeds is not None:
        flag = "samples" if args.samples is not None else "calibration_seeds"
        raise UserError(f"--{flag} is for --method, which is not given; e.g. --method gptq")
    settings = plan.Settings(
        **{name: getattr(args, name) for name in _ALIKE},
        images=(args.image_folder,) if args.image_folder else tuple(args.images),
        configs=configs,
        max_memory=None if args.max_memory is None else budget.parse_bytes(args.max_memory),
        max_bytes=None if args.max_bytes is None else budget.parse_bytes(args.max_bytes),
        argv=("vggtquant", *args.argv),
    )
    try:
        with Progress(bars=False if args.no_progress else None) as progress:
            if args.launcher is None:
                result = job.evaluate(settings, progress)
            else:
                from ..launch import shards

                options = job_options(args.job_option)
                result = shards.run(settings, args.launcher, args.jobs, progress, options)
    except job.Interrupted as stopped:
        if stopped.result is None:
            print("vggtquant: interrupted before the first result", file=sys.stderr)
        else:
            rows = stopped.result.document.schemes
            print(
                f"vggtquant: interrupted; {len(rows)} finished schemes are kept in "
                f"{settings.output_dir}; --resume goes on",
                file=sys.stderr,
            )
        raise
    show(result)
    return 3 if result.failed else 0


def own_the_process() -> None:
    """Has OpenMP's threads sleep soon when they wait, unless the user chose; before torch is there.

    A thread that spins while another program has the other's core makes a forward take a hundred
    times as long. libgomp (torch's) counts turns, Intel's and LLVM's milliseconds.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ.update(_WAITING)


_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}
