# SPDX-License-Identifier: Apache-2.0
"""Self-test of a machine: `python -m vggtquant.selftest --device cuda`.

Compares every scheme with the scalar kernels of the CPU on ragged sizes, times Linear layers of
VGGT's sizes beside torch's BF16, and reads memory. Writes selftest.json and selftest.txt, to be
attached to a report. Sizes are fitted to free memory and the whole to a time limit.
"""

from .findings import Check, Findings, Held, Product, Speed
from .text import text
from .whole import selftest

__all__ = ["Check", "Findings", "Held", "Product", "Speed", "selftest", "text"]
