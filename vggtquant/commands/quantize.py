# SPDX-License-Identifier: Apache-2.0
"""`vggtquant quantize`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from ..errors import UserError
from .options import FOLDER, Bar, config_of

if TYPE_CHECKING:
    from ..calibration import mixed
    from ..checkpoint import budget
    from ..configs import QuantizationConfig
    from ..models import LoadedModel
    from ..weights.tensors import Weights

WORDS = "make a packed checkpoint of a float one, tensor by tensor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant quantize`."""
    parser.epilog = (
        "Reads tensor by tensor and never holds the model. What stands at --out is replaced only "
        "when the new file is whole. Load it with vggtquant.load(FILE)."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .safetensors, .pt or .bin file, a directory with one or with shards, a hub id "
        "such as facebook/VGGT-1B (through the local cache), builtin:tiny, or module:function",
    )
    parser.add_argument(
        *FOLDER,
        dest="out",
        required=True,
        metavar="FILE",
        help="the packed checkpoint; a name without a suffix is a directory, which gets "
        "model.safetensors and config.json",
    )
    parser.add_argument(
        "--scheme",
        default="INT4_Group_128",
        metavar="NAME",
        help="default %(default)s; `vggtquant schemes` lists them; a .toml or .json file with a "
        "config of your own",
    )
    parser.add_argument(
        "--float_dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="what is not quantized: as bfloat16 (default), or float32: as it was",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="where weights are coded: cpu (default), cuda, cuda:1, …; the file is the same",
    )
    parser.add_argument(
        "--include", action="append", metavar="PATTERN", help="quantize these layers only"
    )
    parser.add_argument(
        "--exclude", action="append", metavar="PATTERN", help="leave these layers in float"
    )
    parser.add_argument(
        "--all_layers", action="store_true", help="quantize the first and the last Linear too"
    )
    mixed = parser.add_argument_group("mixed precision (with an INT4_Group scheme)")
    mixed.add_argument(
        "--max_bytes",
        metavar="SIZE",
        help="the largest file wanted, e.g. 800M: layers get 8 bits, then the one with the least "
        "squared error for each byte saved goes to 4, until it fits; with --method, groups of 128, "
        "64 and 32, 8 bits and float, by what each layer does to the outputs once it is calibrated",
    )
    mixed.add_argument(
        "--sensitivity",
        metavar="JSON",
        help="with --max_bytes: the comprehensive_results.json of `evaluate --sensitivity`, or "
        '{"layer": harm of 4 bits, ...}, instead of the squared error of the weights',
    )
    mixed.add_argument(
        "--bits", metavar="JSON", help='{"layer or pattern": 4, 8 or "float", ...}; others get 4'
    )
    mixed.add_argument(
        "--config_out",
        metavar="FILE",
        help="also write the config that was used, which evaluate takes, as .json",
    )

    calibration = parser.add_argument_group("calibration (loads the whole model)")
    calibration.add_argument(
        "--method",
        metavar="NAME",
        help="how codes are chosen, e.g. gptq; docs/methods.md compares the methods (default: "
        "round to nearest, tensor by tensor)",
    )
    calibration.add_argument(
        "--calibrate",
        metavar="DIR",
        help="with --method: a folder of pictures, no ground truth needed (default: rendered "
        "scenes)",
    )
    calibration.add_argument(
        "--samples", type=int, metavar="N", help="pictures to use (default: the config's)"
    )
    calibration.add_argument(
        "--seed", type=int, default=0, help="of the rendered scenes (default %(default)s)"
    )
    calibration.add_argument(
        "--work",
        metavar="DIR",
        help="keeps activations there instead of in memory; a killed calibration goes on there",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant quantize`; the result goes to stdout, progress to stderr."""
    from dataclasses import replace

    from .. import ops
    from ..checkpoint import budget, streaming
    from ..configs import write_config
    from ..weights.tensors import open_weights

    start = time.perf_counter()
    config = streaming.checked_config(config_of(args.scheme))
    device = ops.check_served(args.device)
    if device.type != "cpu" and args.method:
        raise UserError(f"--device is {args.device}, but --method runs on the CPU; wanted cpu")
    if args.all_layers:
        config = replace(config, skip_first_last=False)
    if args.sensitivity and not args.max_bytes:
        raise UserError("--sensitivity is for --max_bytes, which is not given")
    given = [f"--{name}" for name in ("calibrate", "samples", "work") if getattr(args, name)]
    if given and not args.method:
        raise UserError(f"{given[0]} is for --method, which is not given; e.g. --method gptq")
    if args.bits and args.max_bytes:
        raise UserError("--bits and --max_bytes were both given; wanted one of them")
    most = budget.parse_bytes(args.max_bytes) if args.max_bytes else None
    found = open_weights(args.source)
    streaming.check_output(found, args.out)
    notes, exclude = [], list(args.exclude or ())
    measured = bool(args.method and most and not args.sensitivity)
    plan = None if measured else _plan(args, found, config, most)
    if plan is not None:
        config, exclude = plan.config, [*exclude, *plan.exclude]
        notes.append(str(plan))
    if args.config_out and measured:
        raise UserError("--config_out writes one config; --max_bytes with --method takes several")
    if args.config_out:
        write_config(args.config_out, config)
        notes.append(f"wrote {args.config_out}: the config, for evaluate --config")
    if args.method:
        return _calibrated(args, found, config, exclude, notes, most if measured else None)
    with Bar(lambda done, total: f"{done / 1e9:.2f} of {total / 1e9:.2f} GB") as bar:
        done = streaming.quantize_file(
            found,
            config,
            args.out,
            include=args.include,
            exclude=exclude,
            float_dtype=args.float_dtype,
            max_bytes=most,
            device=device,
            progress=bar,
        )
    print(f"wrote {done}")
    for note in (*notes, *done.notes):
        print(note)
    print(f"{done.bits_per_weight:.2f} bits a weight in the quantized layers")
    print(
        f"{done.nbytes_before / 1e6:.1f} MB before, {done.nbytes / 1e6:.1f} MB now "
        f"({done.nbytes_before / done.nbytes:.2f}x smaller)"
    )
    print(f"{time.perf_counter() - start:.1f} s")
    return 0


def _calibrated(
    args: argparse.Namespace,
    found: Weights,
    config: QuantizationConfig,
    exclude: list[str],
    notes: list[str],
    most: int | None,
) -> int:
    """Quantizes with pictures and writes the file; most: its bytes, where layers are to share
    them."""
    from ..calibration import calibrate
    from ..checkpoint import storage
    from ..models import load_model

    start = time.perf_counter()
    loaded = load_model(args.source)
    configs = None
    if most is not None:
        plan = _shared_bytes(args, found, loaded, config, exclude, most)
        configs = plan.configs(config)
        notes.append(str(plan))
    with Bar(lambda done, total: f"{done} of {total} layers") as bar:
        model, report = calibrate(
            loaded.model,
            args.calibrate,
            config=config,
            method=args.method,
            samples=args.samples,
            seed=args.seed,
            size=loaded.image_size,
            include=args.include,
            exclude=exclude,
            configs=configs,
            folder=args.work,
            progress=bar,
        )
    saved = storage.save(model, args.out, float_dtype=args.float_dtype, source=loaded)
    print(f"wrote {saved}")
    if most is not None and saved.nbytes > most:
        notes.append(f"note: {saved.nbytes - most} bytes more than --max_bytes {most}")
    for note in (*notes, *report.notes):
        print(note)
    print(f"{report.bits_per_weight:.2f} bits a weight in the quantized layers")
    print(f"{time.perf_counter() - start:.1f} s")
    return 0


def _shared_bytes(
    args: argparse.Namespace,
    found: Weights,
    loaded: LoadedModel,
    config: QuantizationConfig,
    exclude: list[str],
    most: int,
) -> mixed.Plan:
    """How each layer is held, by what it does to the outputs of the calibrated model."""
    from itertools import cycle

    from ..calibration import data, mixed
    from ..checkpoint.streaming import fixed_nbytes
    from ..selection import Choice, Request
    from ..weights import linears

    pictures = config.calibration_samples if args.samples is None else args.samples
    size = loaded.image_size
    shown = data.load(args.calibrate, pictures, args.seed, size)
    # Rendered scenes of another seed; of a folder, the same pictures.
    probe = data.load(args.calibrate, min(pictures, mixed.PROBE), args.seed ^ 512, size)
    choice = linears.choose(found, Request(config, args.include, exclude))
    ways = [way for way in mixed.options(config).values() if way is not None]
    spread = dict(zip(choice.chosen, cycle(ways), strict=False))  # a header with all of them
    fixed = fixed_nbytes(found, Choice(spread, choice.skipped), config, args.float_dtype)
    with Bar(lambda done, total: f"{done} of {total} layers coded in every way") as bar:
        costs = mixed.measure(
            loaded.model,
            list(choice.chosen),
            config,
            shown,
            probe.batches,
            float_nbytes=2 if args.float_dtype == "bfloat16" else 4,
            progress=bar,
        )
    if most <= fixed:
        raise UserError(f"--max_bytes {most}: what stays float needs {fixed}")
    plan = mixed.within(costs, most - fixed)
    if set(plan.chosen.values()) <= {mixed.FLOAT}:
        raise UserError(
            f"--max_bytes {most}: every layer fits in float, so none would be quantized; "
            f"wanted less than {fixed + plan.nbytes}"
        )
    return plan


def _plan(
    args: argparse.Namespace, found: Weights, config: QuantizationConfig, most: int | None
) -> budget.Plan | None:
    """Which layers get how many bits, where that was asked for."""
    from ..checkpoint import budget

    patterns = {"include": args.include, "exclude": args.exclude}
    if args.bits:
        return budget.from_bits(found, config, budget.read_json(args.bits, "bits"), **patterns)
    if most is None:
        return None
    sensitivity = budget.read_sensitivity(args.sensitivity) if args.sensitivity else None
    with Bar(lambda done, total: f"{done} of {total} layers at 4 and 8 bits") as bar:
        return budget.from_bytes(
            found,
            config,
            most,
            float_dtype=args.float_dtype,
            sensitivity=sensitivity,
            progress=bar,
            **patterns,
        )
