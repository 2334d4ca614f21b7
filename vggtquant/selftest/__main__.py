# SPDX-License-Identifier: Apache-2.0
"""Self-test of a machine: `python -m vggtquant.selftest --device cuda`.

Compares every scheme with the scalar kernels of the CPU on ragged sizes, times Linear layers of
VGGT's sizes beside torch's BF16, and reads memory. Writes selftest.json and selftest.txt, to be
attached to a report. Sizes are fitted to free memory and the whole to a time limit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import ops
from ..errors import UserError
from ..files import writable_folder, write_bytes
from . import selftest, text
from .whole import LIMIT_S

JSON_NAME, TEXT_NAME = "selftest.json", "selftest.txt"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the self-test and writes its files; 0: all comparisons hold, 3: some do not, 2: bad
    input."""
    parser = argparse.ArgumentParser(prog="python -m vggtquant.selftest", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    parser.add_argument("--out", default="vggtquant_selftest", metavar="DIR", help="for the files")
    parser.add_argument(
        "--seconds", type=float, default=LIMIT_S, help="time limit (default %(default)g)"
    )
    args = parser.parse_args(argv)
    try:
        ops.check_served(args.device)
        folder = writable_folder(args.out)
        found = selftest(
            args.device,
            seconds=args.seconds,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        write_bytes(folder / JSON_NAME, found.to_json().encode())
        write_bytes(folder / TEXT_NAME, text(found).encode())
    except UserError as error:
        print(f"vggtquant: error: {error}", file=sys.stderr)
        return 2
    print(text(found), end="")
    print(f"wrote {folder / JSON_NAME} and {folder / TEXT_NAME}")
    return 3 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
