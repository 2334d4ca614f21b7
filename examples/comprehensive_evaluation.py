# SPDX-License-Identifier: Apache-2.0
"""Evaluate every scheme on your own pictures, with the flags of the first VGGT evaluation script.

    python examples/comprehensive_evaluation.py --model_name facebook/VGGT-1B --image_folder photos

Without flags it takes the built-in model and rendered scenes. It is `vggtquant evaluate` under
other names, and writes the same three files: comprehensive_results.json, comprehensive_report.txt
and comprehensive_visualizations.png, beside which stands comprehensive_report.html.
"""

import argparse
import sys

from vggtquant.commands.cli import main


def evaluate(argv: list[str] | None = None) -> int:
    """Translates the flags and returns the exit code of `vggtquant evaluate`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model_name", default="builtin:tiny", help="as --model of vggtquant")
    parser.add_argument("--image_folder", help="pictures (default: rendered scenes)")
    parser.add_argument("--max_images", type=int, help="at most so many pictures")
    parser.add_argument("--output_dir", default="vggtquant_results", help="where the files go")
    parser.add_argument("--device", default="cpu", help="cpu, so far")
    args = parser.parse_args(argv)
    words = ["evaluate", "--model", args.model_name, "--output_dir", args.output_dir]
    words += ["--device", args.device]
    if args.image_folder is not None:
        words += ["--image_folder", args.image_folder]
    if args.max_images is not None:
        words += ["--max_images", str(args.max_images)]
    return main(words)


if __name__ == "__main__":
    sys.exit(evaluate())
