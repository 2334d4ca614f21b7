# SPDX-License-Identifier: Apache-2.0
"""`vggtquant schemes`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..configs import QuantizationConfig

WORDS = "list the schemes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vggtquant schemes` has none."""


def main(args: argparse.Namespace) -> int:
    """Runs `vggtquant schemes`."""
    import numpy as np

    from ..configs import CONFIGS
    from ..qtensor import quantize

    # A matrix as wide as VGGT's layers, since short rows pay more for their scales.
    sample = np.random.default_rng(0).standard_normal((256, 1024), dtype=np.float32)
    print(f"{'scheme':32} {'bits/weight':>11}  {'activations':12} weights")
    for name, config in CONFIGS.items():
        # Baseline_BF16 holds FP32 weights too: autocast makes its copies as it goes.
        bits = quantize(sample, config).bits_per_weight if config.quantizes else 32.0
        activations = "bfloat16" if config.quant_type == "bf16" else "float32"
        if config.quantize_activations:
            number = "FP8" if config.is_float8 else "INT8"
            activations = f"{number} a token"
        print(f"{name:32} {bits:11.2f}  {activations:12} {_words(config)}")
    return 0


def _words(config: QuantizationConfig) -> str:
    """What a configuration does."""
    words = [_weights(config)]
    if config.convolutions == "int8":
        words.append("attention and convolutions in integers")
    if config.autocast:
        words.append("the rest in bfloat16")
    return "; ".join(words)


def _weights(config: QuantizationConfig) -> str:
    """What it does to the weights."""
    if config.quant_type == "fp32":
        return "as they are: the reference"
    if config.quant_type == "bf16":
        return "FP32 held, bfloat16 autocast: the float alternative"
    if config.quant_type == "int4_group":
        return f"INT4, a scale a row, a factor for every {config.group_size} of its weights"
    if config.is_float8:
        return "FP8 (e4m3), a scale for a row; torch multiplies: a GPU from compute capability 8.9"
    where = "a row" if config.per_channel else "the tensor"
    return f"INT8, a scale for {where}{'' if config.symmetric else ', with a zero point'}"
