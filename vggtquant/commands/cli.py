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
from . import evaluation, packed, report, run
from .options import FOLDER

DESCRIPTION = "Quantize the VGGT multi-view transformer for real, and measure what it costs."


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
    evaluation.need_extra()
    from ..data import scenes

    for folder in scenes.write_dataset(args.out, args.count, args.frames, args.seed):
        print(folder)
    return 0


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
        evaluation.add_evaluate_arguments,
        evaluation.evaluate,
    ),
    "compare": (
        "show what changed between two reports of evaluate",
        evaluation.add_compare_arguments,
        evaluation.compare,
    ),
    "merge": (
        "put the shards of an evaluation together into one report",
        evaluation.add_merge_arguments,
        evaluation.merge,
    ),
    "report": (
        "write an experiment report with figures and tables of results of evaluate",
        report.add_arguments,
        report.main,
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
