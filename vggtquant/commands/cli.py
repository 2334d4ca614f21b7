# SPDX-License-Identifier: Apache-2.0
"""The `vggtquant` command. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 a defect of ours, 2 bad input, 3 a scheme failed, 4 two reports that cannot be
compared; as shells have it, 130 interrupted, 141 nobody reads the output, 143 ended.
Heavy modules are imported by the command that needs them, so that --help is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from ..about import VERSION
from ..errors import UserError
from . import packed, run
from .options import FOLDER

DESCRIPTION = "Quantize the VGGT multi-view transformer for real, and measure what it costs."
_EVAL_EXTRA = ("matplotlib", "rich", "PIL", "scipy")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vggtquant: error: {message} ({self.prog} --help says what there is)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vggtquant", description=DESCRIPTION)
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (words, add_arguments, _) in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        add_arguments(command)
    return parser


# ---- evaluate ------------------------------------------------------------------------------------


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
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
        ".safetensors file, or module:function that returns a model",
    )
    what.add_argument(
        "--image_folder", metavar="DIR", help="a folder of pictures (default: rendered scenes)"
    )
    what.add_argument(
        "--max_images",
        type=int,
        metavar="N",
        help="at most N pictures (default: what ten minutes allow), or N of each rendered scene "
        "(default 4)",
    )
    what.add_argument(
        "--scenes",
        type=int,
        metavar="N",
        help="rendered scenes to use, without pictures (default 8, fewer for a slow model)",
    )
    what.add_argument(
        "--full",
        dest="scenes",
        action="store_const",
        const=64,
        help="64 rendered scenes: enough to tell close schemes apart (minutes)",
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
        "--sensitivity",
        nargs="?",
        const="INT4_Group_128",
        metavar="SCHEME",
        help="beside the rest, quantize one layer at a time to SCHEME (default %(const)s) on the "
        "first scene: a forward a layer, and sensitivity.png",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--output_dir",
        default="vggtquant_results",
        metavar="DIR",
        help="where the files go (default ./vggtquant_results)",
    )
    how.add_argument("--device", default="cpu", help="cpu, the only one that this version serves")
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
        help="lose at most so many percentage points of pose AUC@30",
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
    how.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="evaluate the I-th of N parts of the scenes; `vggtquant merge` puts them together",
    )


def _shard(words: str) -> tuple[int, int]:
    part, _, parts = words.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"{words!r} is no part of a whole, as 1/3 is")
    return int(part), int(parts)


def _evaluate(args: argparse.Namespace) -> int:
    _need_extra()
    from ..checkpoint import budget
    from ..evaluation import evaluate
    from ..evaluation.measure import plan
    from ..progress import Progress

    if args.image_folder and args.images:
        raise UserError("--image_folder and pictures were both given; wanted one of them")
    settings = plan.Settings(
        model=args.model,
        images=(args.image_folder,) if args.image_folder else tuple(args.images),
        max_images=args.max_images,
        scenes=args.scenes,
        mode=args.mode,
        layout=args.layout,
        schemes=tuple(name.strip() for names in args.schemes for name in names.split(",")),
        output_dir=args.output_dir,
        device=args.device,
        runs=args.runs,
        warmup=args.warmup,
        threads=args.threads,
        seed=args.seed,
        sensitivity=args.sensitivity,
        resume=args.resume,
        restart=args.restart,
        shard=args.shard,
        max_drop=args.max_drop,
        max_bytes=None if args.max_bytes is None else budget.parse_bytes(args.max_bytes),
        min_speedup=args.min_speedup,
        isolate=args.isolate,
        argv=("vggtquant", *args.argv),
    )
    try:
        with Progress(bars=False if args.no_progress else None) as progress:
            result = evaluate.evaluate(settings, progress)
    except evaluate.Interrupted as stopped:
        if stopped.result is None:
            print("vggtquant: interrupted before the first result", file=sys.stderr)
        else:
            rows = stopped.result.document["schemes"]
            print(
                f"vggtquant: interrupted; {len(rows)} finished schemes are kept in "
                f"{args.output_dir}; --resume goes on",
                file=sys.stderr,
            )
        raise
    _show(result)
    return 3 if result.failed else 0


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARD_DIR", help="--output_dir of each shard")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where the report goes")


def _merge(args: argparse.Namespace) -> int:
    _need_extra()
    from ..evaluation import merge

    result = merge.merge(args.shards, args.output_dir)
    _show(result)
    return 3 if result.failed else 0


def _show(result: Any) -> None:
    """The table and what was written, to stdout."""
    from rich.console import Console

    from ..evaluation.present import text

    console = Console(highlight=False, markup=False)
    console.width = min(console.width, text.WIDTH) if console.is_terminal else text.WIDTH
    console.print()
    console.print(text.main_table(result.document))
    console.print()
    for line in (*text.legend(result.document), "", *text.headline(result.document)):
        console.print(line, soft_wrap=True)
    for words in text.timing_cautions(result.document):
        console.print(f"caution: {words}", soft_wrap=True)
    for path in result.files:
        console.print(f"wrote {path}", soft_wrap=True)


def _need_extra() -> None:
    """UserError when a package of the extra `eval` is missing."""
    import importlib.util

    missing = [name for name in _EVAL_EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"this command needs {', '.join(missing)}; install with: pip install 'vggtquant[eval]'"
        )


# ---- info, schemes, scenes, run ------------------------------------------------------------------


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _info(args: argparse.Namespace) -> int:
    if args.file is not None:
        return packed.info(args)
    from .. import environment

    env = environment.describe(("vggtquant", *args.argv))
    cpu, memory = env["cpu"], env["memory_bytes"]
    print(f"vggtquant  {env['versions']['vggtquant']}")
    print(f"CPU        {cpu['model']}, {cpu['cores_usable']} cores ({' '.join(cpu['flags'])})")
    print(f"kernels    {cpu['isa_active']} (available: {', '.join(cpu['isa_available'])}; ", end="")
    print("VGGTQUANT_ISA= chooses a lower one)")
    print(f"threads    {env['threads']['torch']}")
    if memory:
        print(f"memory     {memory / 1e9:.1f} GB")
    print(f"torch      {env['versions']['torch']}, numpy {env['versions']['numpy']}")
    print()
    return _schemes(args)


def _schemes(args: argparse.Namespace) -> int:
    import numpy as np

    from ..configs import CONFIGS
    from ..qtensor import quantize

    # A matrix as wide as VGGT's layers, since short rows pay more for their scales.
    sample = np.random.default_rng(0).standard_normal((256, 1024), dtype=np.float32)
    print(f"{'scheme':32} {'bits/weight':>11}  {'activations':12} weights")
    for name, config in CONFIGS.items():
        # Baseline_BF16 holds FP32 weights too: autocast makes its copies as it goes.
        bits = quantize(sample, config).bits_per_weight if config.quantizes else 32.0
        activations = "bfloat16" if config.quant_type == "bf16" else "float32"
        if config.quantize_activations:
            activations = "INT8 a token"
        print(f"{name:32} {bits:11.2f}  {activations:12} {_words(config)}")
    return 0


def _words(config: Any) -> str:
    """What a configuration does to the weights."""
    if config.quant_type == "fp32":
        return "as they are: the reference"
    if config.quant_type == "bf16":
        return "FP32 held, bfloat16 autocast: the float alternative"
    if config.quant_type == "int4_group":
        return f"INT4, a scale a row, a factor for every {config.group_size} of its weights"
    where = "a row" if config.per_channel else "the tensor"
    return f"INT8, a scale for {where}{'' if config.symmetric else ', with a zero point'}"


def _scenes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *FOLDER, dest="out", required=True, metavar="DIR", help="where the scenes go"
    )
    parser.add_argument("--count", type=int, default=8, help="number of scenes (default 8)")
    parser.add_argument("--frames", type=int, default=4, help="pictures of each (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="which scenes (default 0)")


def _scenes(args: argparse.Namespace) -> int:
    _need_extra()
    from ..data import scenes

    for folder in scenes.write_dataset(args.out, args.count, args.frames, args.seed):
        print(folder)
    return 0


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    from ..evaluation.analyse import changes

    changes.add_arguments(parser)


def _compare(args: argparse.Namespace) -> int:
    from ..evaluation.analyse import changes

    return changes.main(args)


COMMANDS: dict[
    str,
    tuple[
        str,
        Callable[[argparse.ArgumentParser], None],
        Callable[[argparse.Namespace], int],
    ],
] = {
    "evaluate": (
        "compare every scheme with the FP32 model and write a report",
        _evaluate_arguments,
        _evaluate,
    ),
    "compare": (
        "show what changed between two reports of evaluate",
        _compare_arguments,
        _compare,
    ),
    "merge": (
        "put the shards of an evaluation together into one report",
        _merge_arguments,
        _merge,
    ),
    "run": (
        "reconstruct a scene from pictures with a (quantized) model",
        run.add_arguments,
        run.main,
    ),
    "quantize": (
        "make a packed checkpoint of a float one, tensor by tensor",
        packed.add_quantize_arguments,
        packed.quantize,
    ),
    "info": (
        "show version, CPU, kernels and schemes, or what a packed checkpoint holds",
        packed.add_info_arguments,
        _info,
    ),
    "dequantize": (
        "write what a packed checkpoint stands for as a float one",
        packed.add_dequantize_arguments,
        packed.dequantize,
    ),
    "diff": (
        "compare two checkpoints, packed or float",
        packed.add_diff_arguments,
        packed.diff,
    ),
    "schemes": ("list the schemes", _no_arguments, _schemes),
    "scenes": ("render scenes with exact ground truth", _scenes_arguments, _scenes),
}


# ---- errors and signals --------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    >>> main(["evaluate", "--schemes", "no such scheme"])
    2
    """
    words = [_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    parser = _parser()
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:  # argparse: 0 after --help, 2 for a usage error
        return int(stop.code or 0)
    if args.version:
        print(f"vggtquant {VERSION}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    args.argv = words
    return _guarded(COMMANDS[args.command][2], args)


def _home(word: str) -> str:
    """A shell leaves the ~ of --option=~/folder alone; whoever writes it means the home folder."""
    option, equals, value = word.partition("=")
    if equals and option.startswith("--") and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(word) if word.startswith("~") else word


def _guarded(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command and turns what it raises into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no ± still gets a table
            stream.reconfigure(errors="replace")
    ended: list[int] = []
    try:
        with _ending(ended):
            code = command(args)
            sys.stdout.flush()
            return code
    except UserError as error:
        _complain(str(error), args.verbose)
        return 2
    except KeyboardInterrupt:
        return 143 if ended else 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        _complain(f"{type(error).__name__}: {error} (a defect; -v shows where)", args.verbose)
        return 1


@contextlib.contextmanager
def _ending(ended: list[int]) -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, and is noted; only the main thread may see to signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(words: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    print(f"vggtquant: error: {' '.join(words.split())}", file=sys.stderr)
