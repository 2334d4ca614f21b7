# SPDX-License-Identifier: Apache-2.0
"""`vggtquant report`: an experiment report of results that are there."""

from __future__ import annotations

import argparse
import sys

from .evaluation import need_extra
from .options import FOLDER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant report`."""
    parser.epilog = (
        "Writes the report, figures/ (SVG, PDF, and PNG at 300 dpi) and tables/ (CSV). "
        "Nothing is measured again."
    )
    parser.add_argument(
        "results", metavar="RESULTS", help="a comprehensive_results.json, or the folder of one"
    )
    parser.add_argument(
        "--format",
        choices=("md", "latex", "html", "docx"),
        default="md",
        help="of the report (default md); docx needs the extra `report`",
    )
    parser.add_argument(
        "--lang", choices=("en", "zh"), default="en", help="English or Chinese (default en)"
    )
    parser.add_argument(
        *FOLDER,
        dest="output_dir",
        default="vggtquant_report",
        metavar="DIR",
        help="where the files go (default ./vggtquant_report)",
    )
    parser.add_argument("--core", action="store_true", help="the eight schemes alone")


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant report`."""
    need_extra()
    from ..evaluation import schema
    from ..evaluation.present import paper

    files = paper.write(
        schema.read(args.results),
        args.output_dir,
        form=args.format,
        language=args.lang,
        core=args.core,
        results=args.results,
        warn=lambda words: print(f"vggtquant: warning: {words}", file=sys.stderr),
    )
    for path in files:
        if path.parent.name not in ("figures", "tables"):
            print(f"wrote {path}")
    for name in ("figures", "tables"):
        there = [path for path in files if path.parent.name == name]
        print(f"wrote {len(there)} files into {there[0].parent}")
    return 0
