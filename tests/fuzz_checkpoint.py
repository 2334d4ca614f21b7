# SPDX-License-Identifier: Apache-2.0
"""Feeds damaged checkpoints to everything that reads them: a UserError or a result, nothing else.

    python tests/fuzz_checkpoint.py --minutes 60 [--seed 0]

Bytes are flipped, cut and copied; JSON is changed and resealed, so that the checks behind the
checksums are met too; so are tensors. What breaks a reader is kept as tests/data/fuzz/crash-*,
which test_storage.py replays; a crash of the interpreter leaves fuzz-last.safetensors behind.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import checkpoints
import torch

from vggtquant import UserError
from vggtquant.checkpoint import inspection
from vggtquant.checkpoint.storage import load
from vggtquant.weights.tensors import open_weights

CORPUS = Path(__file__).with_name("data") / "fuzz"
NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 8, 15, 16, 64, 255, 65536, 65537, 2**31, 2**32, 2**63 - 1,
    2**63, 2**64, 10**30, 0.5, -0.0, 1e308, "", "x", "F32", "U8", "I8", "BF16", "per_tensor",
    "per_channel", "per_group", "int4_group", "mixed_precision", "fp32", "vggt", "builtin:tiny",
    "a" * 5000, "\ud800", "\0", [], {}, [[]], [0, 0], [2**62, 2**62], {"": ""}, ["x"],
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rng, seen, start = random.Random(seed), Counter[str](), time.monotonic()
    inputs = [path.read_bytes() for path in sorted(CORPUS.glob("*.safetensors"))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz-last.safetensors"
        while time.monotonic() - start < 60 * args.minutes:
            path.write_bytes(mutated(rng, rng.choice(inputs)))
            try:
                seen[feed(path)] += 1
            except BaseException as error:
                kept = CORPUS / f"crash-{type(error).__name__}-{seed}-{seen.total()}.safetensors"
                kept.write_bytes(path.read_bytes())
                traceback.print_exc()
                print(f"kept as {kept}")
                return 1
    print(f"{seen.total()} inputs: {dict(seen)}")
    return 0


def feed(path: Path) -> str:
    """What the readers make of a file; anything but a UserError comes through."""
    outcome = "refused"
    for reader in (inspection.info, open_weights):
        try:
            reader(path)
        except UserError as error:
            one_line(error)
    for model in (checkpoints.small, None):
        try:
            loaded = load(path, model=model)
        except UserError as error:
            one_line(error)
        else:
            with torch.inference_mode():
                if model is not None:
                    loaded(torch.ones(2, 16))
            outcome = "loaded"
    return outcome


def one_line(error: UserError) -> None:
    if "\n" in str(error) or not str(error):
        raise AssertionError(f"not one line: {error!r}")


# ---- damage --------------------------------------------------------------------------------------


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """The input with one to four kinds of damage."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.choice((some_bytes, some_bytes, some_json, some_json, some_json, some_tensor))
        raw = kind(rng, raw)
    return raw


def some_bytes(rng: random.Random, raw: bytes) -> bytes:
    if not raw:
        return b"\0" * rng.randrange(32)
    at, length = rng.randrange(len(raw)), rng.choice((1, 2, 8, 64, 512))
    return rng.choice(
        (
            raw[:at],
            raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :],
            raw[:at] + rng.randbytes(length) + raw[at + length :],
            raw[:at] + raw[at + length :],
            raw[:at] + raw[at : at + length] + raw[at:],
            rng.randbytes(8) + raw[8:],
            rng.randrange(2 * len(raw)).to_bytes(8, "little") + raw[8:],
        )
    )


def some_json(rng: random.Random, raw: bytes) -> bytes:
    """Another value somewhere in the header or in the document, resealed."""
    try:
        header, data = parse(raw)
        inner = checkpoints.document(header) if rng.random() < 0.7 else None
        change(rng, header if inner is None else inner)
        if inner is not None:
            header = checkpoints.with_document(header, inner)
        return seal(header, data)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return raw  # damaged before


def some_tensor(rng: random.Random, raw: bytes) -> bytes:
    """Other bytes in a tensor, and the checksum that fits them."""
    try:
        header, data = parse(raw)
        name = rng.choice([name for name in header if name != "__metadata__"])
        start, end = header[name]["data_offsets"]
        assert 0 <= start <= end <= len(data)
        new = bytes([rng.choice((0, 127, 128, 255))]) * (end - start)
        return seal(*checkpoints.with_bytes(header, data, name, new))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError):
        return raw


def parse(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def seal(header: dict[str, Any], data: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return checkpoints.write(Path(folder) / "x", header, data).read_bytes()


def change(rng: random.Random, root: Any) -> None:
    """Replace, remove or copy one node, chosen evenly among all."""
    places = list(nodes(root))
    holder, key = rng.choice(places)
    action = rng.randrange(4)
    if action == 0:
        del holder[key]
    elif action == 1:
        other, from_key = rng.choice(places)
        holder[key] = copy.deepcopy(other[from_key])
    elif action == 2 and isinstance(holder[key], int):
        holder[key] += rng.choice((-1, 1, 8, 64))
    elif action == 2 and isinstance(holder, dict):
        holder[rng.choice(("x", "", f"{key}.weight"))] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(rng.choice(NASTY))


def nodes(value: Any) -> Any:
    """(container, key) of everything within."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield value, key
        yield from nodes(value[key])


if __name__ == "__main__":
    sys.exit(main())
