# SPDX-License-Identifier: Apache-2.0
"""`vggtquant export`."""

from __future__ import annotations

import argparse

from ..deploy import FLOAT_TYPES, FORMATS, OPSET
from .options import FOLDER, config_of

WORDS = "write a (quantized) model for ONNX Runtime, OpenVINO, TensorRT or phones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant export`."""
    parser.epilog = (
        "Writes model.onnx and model.onnx.data, then runs the file in each runtime that is "
        "installed and compares all outputs with ours. Exit code 3: they differ by more than the "
        "bound that is printed; the file stays."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="builtin:tiny, a packed file, a hub id such as facebook/VGGT-1B, a directory, a .pt "
        "or .safetensors file, or module:function that returns a model",
    )
    parser.add_argument(
        *FOLDER, dest="out", required=True, metavar="DIR", help="where the file goes"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="onnx (default), openvino for its own model.xml and model.bin, or executorch for "
        "phones: model.pte",
    )
    parser.add_argument(
        "--scheme",
        metavar="NAME",
        help="quantize first, e.g. INT8_Per_Channel_Symmetric_A8, or a .toml or .json file with a "
        "config; a packed file is written as it is",
    )
    parser.add_argument(
        "--size", default="350x518", metavar="HxW", help="of the pictures (default %(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=1, metavar="N", help="pictures a pass (default %(default)s)"
    )
    parser.add_argument(
        "--dynamic_frames", action="store_true", help="any number of pictures a pass"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=OPSET,
        metavar="N",
        help="of ONNX, 21 to 25 (default %(default)s)",
    )
    parser.add_argument(
        "--float_dtype",
        choices=FLOAT_TYPES,
        default="float32",
        help="of products that are not integer ones (default %(default)s)",
    )
    parser.add_argument(
        "--no_check", action="store_true", help="do not run the file in the installed runtimes"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="write a model that does not return VGGT's dictionary, without a check",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant export`."""
    from ..deploy.api import export

    found = export(
        args.model,
        args.out,
        scheme=config_of(args.scheme) if args.scheme else None,
        format=args.format,
        size=args.size,
        frames=args.frames,
        dynamic_frames=args.dynamic_frames,
        opset=args.opset,
        float_dtype=args.float_dtype,
        check=not args.no_check,
        force=args.force,
    )
    print(found)
    return 0 if found.agrees else 3
