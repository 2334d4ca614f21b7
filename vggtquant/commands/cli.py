# SPDX-License-Identifier: Apache-2.0
"""The `vggtquant` command. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 a defect of ours, 2 bad input, 3 a scheme failed or an exported file differs,
4 two reports that cannot be compared; as shells have it, 130 interrupted, 141 nobody reads the
output, 143 ended.
Heavy modules are imported by the command that needs them, so that --help is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from ..about import VERSION
from ..errors import UserError
from . import (
    compare,
    dequantize,
    diff,
    evaluate,
    export,
    info,
    merge,
    quantize,
    report,
    run,
    scenes,
    schemes,
    sweep,
)

DESCRIPTION = "Quantize the VGGT multi-view transformer for real, and measure what it costs."


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vggtquant: error: {message} ({self.prog} --help says what there is)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vggtquant", description=DESCRIPTION)
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.WORDS, description=module.WORDS)
        command.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        module.add_arguments(command)
    return parser


COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(evaluate, sweep, compare, merge, report, run),
        *(quantize, export, info, dequantize, diff, schemes, scenes),
    )
}
"""A module a command, each with WORDS, add_arguments and main."""


# ---- errors and signals --------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    >>> main(["evaluate", "--schemes", "no such scheme"])
    2
    """
    words = [_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    parser = _parser()
    try:
        # A shell makes "" of an unset variable; as a path it would be the folder one stands in.
        for word, before in zip(words, ["", *words], strict=False):
            if not word or (word.startswith("--") and word.endswith("=")):
                parser.error(f"{word or before or 'the first argument'} has an empty value")
            if "\0" in word:  # from Python: no shell passes one on
                parser.error(f"{word!r} has a NUL character")
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
    return _guarded(COMMANDS[args.command].main, args)


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
        with _ending(ended), _warned():
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
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _complain(f"the name {str(error.filename)[:60]}… is too long for a file", args.verbose)
            return 2
        if (memory := _full(error)) is not None:
            advice = "fewer or smaller pictures take less"
            _complain(f"{memory} is full ({str(error) or 'MemoryError'}); {advice}", args.verbose)
            return 2
        _complain(f"{type(error).__name__}: {error} (a defect; -v shows where)", args.verbose)
        return 1


def _full(error: Exception) -> str | None:
    """Which memory an error says is full; torch has an error of its own for that of a GPU."""
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory"
    none_left = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return "memory" if none_left else None


@contextlib.contextmanager
def _warned() -> Iterator[None]:
    """What the package warns of is a line, without the place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
            if category is UserWarning:
                print(f"vggtquant: warning: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


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
