# SPDX-License-Identifier: Apache-2.0
"""`vggtquant run`."""

from __future__ import annotations

import argparse
import sys

from .. import run as reconstruct
from .options import ADAPTER, ADAPTER_HELP, FOLDER, config_of

WORDS = "reconstruct a scene from pictures with a (quantized) model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant run`."""
    parser.epilog = (
        "Writes reconstruction.ply (coloured points), sparse/ (COLMAP's text model of the pictures "
        "in images/), depth/ (each picture beside its depth), and predictions.npz (all outputs)."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="builtin:tiny, a hub id such as facebook/VGGT-1B, a directory, a .pt or .safetensors "
        "file, or module:function that returns a model",
    )
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="a folder of pictures; builtin, builtin:1, builtin:2, … are rendered scenes",
    )
    parser.add_argument(
        *FOLDER, dest="out", required=True, metavar="DIR", help="where the results go"
    )
    parser.add_argument(
        "--scheme",
        metavar="NAME",
        help="quantize first, e.g. INT4_Group_128, or a .toml or .json file with a config",
    )
    parser.add_argument("--max_images", type=int, metavar="N", help="the first N (default: all)")
    parser.add_argument(
        "--mode",
        default="crop",
        choices=("crop", "pad"),
        help="how pictures are brought to the model's width, as in VGGT (default crop)",
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="that width, a multiple of 14 (default: the model's)"
    )
    parser.add_argument(
        "--points",
        default="depth",
        choices=tuple(reconstruct.POINT_SOURCES),
        help="points from depth and cameras, which is the more accurate on most scenes, or from "
        "the point head's map (default depth)",
    )
    parser.add_argument(
        "--conf_percentile",
        type=float,
        default=reconstruct.CONF_PERCENTILE,
        metavar="P",
        help="drop the P percent of points with the least confidence (default %(default)g)",
    )
    parser.add_argument(
        "--max_memory",
        metavar="BYTES",
        help="of the process, e.g. 8GB: refuse more pictures than that has room for",
    )
    parser.add_argument(
        "--autocast",
        action="store_true",
        help="what is not quantized in bfloat16: faster on CPUs with AVX512_BF16 or AMX",
    )
    parser.add_argument(*ADAPTER, metavar="NAME", help=ADAPTER_HELP)
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda where there is one")


def main(args: argparse.Namespace) -> int:
    """Runs the command; what was written goes to stdout, progress to stderr."""
    done = reconstruct.run(
        args.model,
        args.images,
        args.out,
        scheme=None if args.scheme is None else config_of(args.scheme),
        mode=args.mode,
        size=args.size,
        max_images=args.max_images,
        points=args.points,
        conf_percentile=args.conf_percentile,
        device=args.device,
        adapter=args.adapter,
        max_memory=args.max_memory,
        autocast=args.autocast,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for line in summary(done):
        print(line)
    return 0


def summary(done: reconstruct.Reconstruction) -> list[str]:
    """The result in lines for a person."""
    lines = [f"{reconstruct.count(done.frames)} in {done.seconds:.1f} s, {done.points:,} points"]
    if done.report is not None:
        lines.append(
            f"{len(done.report.quantized)} Linear layers quantized to "
            f"{done.report.bits_per_weight:.2f} bits a weight"
        )
    shown = {
        "depth_abs_rel_median": "depth AbsRel {:.3f}",
        "rotation_median_deg": "rotation {:.1f} deg",
        "direction_median_deg": "translation direction {:.1f} deg",
        "points_chamfer_umeyama": "chamfer {:.3f}",
    }
    words = [text.format(done.scores[key]) for key, text in shown.items() if key in done.scores]
    if words:
        lines.append(f"against the truth: {', '.join(words)}")
    return lines + [f"wrote {path}" for path in done.files]
