# SPDX-License-Identifier: Apache-2.0
"""What INT8 keys and values cost: kv_cache="int8" of StreamVGGT, tried on builtin:tiny.

    python tests/bench/kv_cache.py --scenes 64

No trained StreamVGGT comes with a package, and keys and values are the same to attention wherever
they are kept. So those of builtin:tiny's global attentions are coded as the cache codes them, while
everything else stays FP32. E and intervals are those of tests/bench/methods.py.
"""

from __future__ import annotations

import argparse
from typing import Any

import methods as bench
import numpy as np
import torch
from torch import nn

from vggtquant import models
from vggtquant.data import scenes
from vggtquant.kv_cache import CodedTensor


def coded(attn: Any) -> Any:
    """A hook of its qkv that codes keys and values."""

    def hook(_: nn.Module, __: Any, y: torch.Tensor) -> torch.Tensor:
        q, k, v = y.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = (CodedTensor().extended(x[:, :, None]).decoded()[:, :, 0] for x in (k, v))
        return torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).reshape(y.shape)

    return hook


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=64)
    args = parser.parse_args()

    draw = np.random.default_rng(0).integers(0, args.scenes, (bench.RESAMPLES, args.scenes))
    found = bench.rendered(scenes.HELD_OUT, args.scenes)
    images = bench.pictures(found)
    model = models.load_model("builtin:tiny").model
    wanted = bench.outputs(model, images)
    for name, module in model.named_modules():
        if name.endswith("attn") and "global_blocks" in name:
            module.qkv.register_forward_hook(coded(module))  # type: ignore[union-attr]
    got = bench.outputs(model, images)
    errors = np.array(bench.errors(wanted, got))
    low, high = bench.interval(bench.score(errors[draw]))
    lost = np.array(bench.aucs(found, got)) - np.array(bench.aucs(found, wanted))
    auc = bench.interval(lost[draw].mean(1))
    print(f"E {bench.score(errors):.3f} % ({low:.3f} .. {high:.3f})")
    print(f"AUC@30 {lost.mean():+.2f} points ({auc[0]:+.2f} .. {auc[1]:+.2f})")


if __name__ == "__main__":
    main()
