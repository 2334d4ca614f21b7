# SPDX-License-Identifier: Apache-2.0
"""Self-test of a machine: every scheme beside the scalar kernels, times and memory."""

from .findings import Check, Findings, Held, Product, Speed
from .text import text
from .whole import selftest

__all__ = ["Check", "Findings", "Held", "Product", "Speed", "selftest", "text"]
