# SPDX-License-Identifier: Apache-2.0
"""`vggtquant compare`."""

from __future__ import annotations

import argparse

from .options import need_extra

WORDS = "show what changed between two reports of evaluate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant compare`."""
    parser.epilog = (
        "Exits with 0 when the two could be compared, changed or not; with 4 when models, pictures "
        "or machines differ and --force was not given; with 2 for what is no report."
    )
    what = "a comprehensive_results.json, or the folder of one"
    parser.add_argument("a", metavar="A", help=what)
    parser.add_argument("b", metavar="B", help="another one, with which it is compared")
    parser.add_argument(
        "--force",
        action="store_true",
        help="show what cannot be compared, too: scores of other models or pictures, times of "
        "other machines; such figures are marked and get no ratio",
    )
    parser.add_argument("--json", action="store_true", help="all that changed, for programs")


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant compare`."""
    need_extra()
    import msgspec

    from ..evaluation import schema
    from ..evaluation.analyse import changes
    from ..evaluation.present import comparison

    a, b = schema.read(args.a), schema.read(args.b)
    found = changes.compare(a, b, force=args.force)
    if args.json:
        if found.refused:  # nobody reads past a flag
            found.schemes = {}
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        lines = comparison.refusal(found) if found.refused else comparison.in_words(found, a, b)
        print("\n".join(lines))
    return 4 if found.refused else 0
