# SPDX-License-Identifier: Apache-2.0
"""`vggtquant info`."""

from __future__ import annotations

import argparse

from ..errors import UserError
from . import schemes

WORDS = "show version, CPU, kernels and schemes, or what a packed checkpoint holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vggtquant info`, which without a file is about this machine."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="a packed checkpoint")
    parser.add_argument("--layers", action="store_true", help="with FILE: a line for each layer")


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant info`."""
    if args.file is not None:
        from ..checkpoint import inspection

        for line in inspection.info(args.file, layers=args.layers):
            print(line)
        return 0
    if args.layers:
        raise UserError("--layers is for a packed file, which is not given")
    from .. import environment

    env = environment.describe(("vggtquant", *args.argv))
    cpu, memory = env["cpu"], env["memory_bytes"]
    print(f"vggtquant  {env['versions']['vggtquant']}")
    print(f"CPU        {cpu['model']}, {cpu['cores_usable']} cores ({' '.join(cpu['flags'])})")
    print(f"kernels    {cpu['isa_active']} (available: {', '.join(cpu['isa_available'])}; ", end="")
    print("VGGTQUANT_ISA= chooses a lower one)")
    print(f"threads    {env['threads']['torch']}")
    if memory:
        print(f"memory     {memory / 1e9:.1f} GB")
    print(f"torch      {env['versions']['torch']}, numpy {env['versions']['numpy']}")
    print()
    return schemes.main(args)
