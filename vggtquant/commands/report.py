# SPDX-License-Identifier: Apache-2.0
"""`vggtquant report`: an experiment report of results that are there."""

from __future__ import annotations

import argparse
import sys

from .options import FOLDER, need_extra

WORDS = "write an experiment report with figures and tables of results of evaluate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant report`."""
    parser.epilog = (
        "Writes the report, figures/ (SVG, PDF, and PNG at 300 dpi) and tables/ (CSV). "
        "Nothing is measured again. --layer and --pictures load the evaluated model."
    )
    parser.add_argument(
        "results", metavar="RESULTS", help="a comprehensive_results.json, or the folder of one"
    )
    parser.add_argument(
        "--format",
        default="md",
        metavar="FORMAT[,FORMAT]",
        help="of the report: md (default), latex, html, docx, or several, which share the figures; "
        "docx needs the extra `report`",
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
    parser.add_argument(
        "--figures",
        nargs="+",
        metavar="NAME",
        help="only these figures; * is allowed, as in 'metric_depth_*', one figure a metric",
    )
    parser.add_argument(
        "--layer", help="also draw the weights and the scales of this Linear layer, by its name"
    )
    parser.add_argument(
        "--pictures",
        nargs="+",
        default=(),
        metavar="SCENE[:PICTURE]",
        help="also draw depth, its error and the points of these pictures for each scheme; numbers "
        "from 1",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant report`."""
    need_extra()
    from ..evaluation import model_figures, schema
    from ..evaluation.present import paper

    wish = model_figures.Wish(args.layer, args.pictures)
    files = paper.write(
        schema.read(args.results),
        args.output_dir,
        form=args.format,
        language=args.lang,
        core=args.core,
        chosen=args.figures,
        extra=lambda shown: wish.drawings(shown, lambda words: print(words, file=sys.stderr)),
        flags=wish.flags(),
        results=args.results,
        warn=lambda words: print(f"vggtquant: warning: {words}", file=sys.stderr),
    )
    for path in files:
        if path.parent.name not in ("figures", "tables"):
            print(f"wrote {path}")
    for name in ("figures", "tables"):
        there = [path for path in files if path.parent.name == name]
        if there:
            print(f"wrote {len(there)} files into {there[0].parent}")
    return 0
