# SPDX-License-Identifier: Apache-2.0
"""The effect of each field of QuantizationConfig on builtin:tiny, as in docs/parameters.md.

    python tests/bench/parameters.py --scenes 16 [--only attention ...]

One field is changed at a time. The error is the geometric mean over all outputs of the relative L2
error against FP32, averaged over held-out scenes. It needs no quiet machine: nothing is timed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import vggtquant as vq
from vggtquant import ops, tiny
from vggtquant.adapter import split_outputs
from vggtquant.data import scenes

INT8 = vq.CONFIGS["INT8_Per_Channel_Symmetric"]
A8 = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
INT4 = vq.CONFIGS["INT4_Group_128"]
BOTH = ("INT8_Fast", "INT8_Fast_BF16", "INT4_Fast", "INT4_Fast_BF16")
MIXED = vq.QuantizationConfig("mixed", "mixed_precision", bits=4)
TABLES = {
    "quant_type": [
        (config.quant_type, config)
        for name, config in vq.CONFIGS.items()
        if config.quantizes and not name.endswith("_A8") and config.group_size == 128
    ],
    "group_size": [
        (f"{size}", replace(INT4, name=f"g{size}", group_size=size))
        for size in (256, 128, 64, 32, 16)
    ],
    "symmetric (INT4 groups of 128)": [
        ("True", INT4),
        ("False", replace(INT4, name="asymmetric", symmetric=False)),
    ],
    "quantize_activations, activation_bits (INT8 per channel)": [
        ("False", INT8),
        ("True, 8", A8),
        (
            "True, 16",
            replace(INT8, name="A16", quantize_activations=True, activation_bits=16),
        ),
    ],
    "activation_range (INT8 per channel, A8)": [
        ("dynamic: quantize_model", A8),
        *(
            (value, replace(A8, name=value, activation_range=value))
            for value in ("dynamic", "minmax", "percentile", "mse")
        ),
    ],
    "skip_first_last (INT4 groups of 128)": [
        ("True", INT4),
        ("False", replace(INT4, name="whole", skip_first_last=False)),
    ],
    "sensitive_layers (8 bits, the rest 4)": [
        ("()", MIXED),
        ("camera_head.*", replace(MIXED, sensitive_layers=("camera_head.*",))),
        ("*attn*", replace(MIXED, sensitive_layers=("*attn*",))),
        ("*mlp.fc2", replace(MIXED, sensitive_layers=("*mlp.fc2",))),
    ],
    "attention (INT8 per channel, A8)": [
        ("float", A8),
        ("bf16", replace(A8, name="bf16", attention="bf16")),
        ("int8", replace(A8, name="int8", attention="int8")),
    ],
    "attention_values (attention in INT8)": [
        (value, replace(A8, name=value, attention="int8", attention_values=value))
        for value in ("bf16", "int8")
    ],
    "fuse (INT8 per channel, A8)": [
        ("False", A8),
        ("True", replace(A8, name="fused", fuse=True)),
    ],
    "convolutions (INT8 per channel, A8)": [
        ("float", A8),
        ("int8", replace(A8, name="conv", convolutions="int8")),
    ],
    "autocast": [(name, vq.CONFIGS[name]) for name in BOTH],
    "calibration_samples (INT4 groups of 128)": [
        ("none: quantize_model", INT4),
        *(
            (f"{count}", replace(INT4, name=f"{count}", calibration_samples=count))
            for count in (4, 16, 64, 100)
        ),
    ],
    "device (INT8 per channel)": [
        (device, replace(INT8, name=device, device=device))
        for device in ("cpu", "cuda")
        if ops.serves(torch.device(device))
    ],
}
CALIBRATED = ("calibration_samples", "activation_range")
"""The tables whose rows but the first are made by vq.calibrate(method="gptq")."""


def outputs_of(
    model: nn.Module, pictures: list[torch.Tensor], bf16: bool = False
) -> list[dict[str, torch.Tensor]]:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        device = next(model.parameters()).device
        found = [split_outputs(model(images.to(device))) for images in pictures]
        return [{name: value.cpu() for name, value in one.items()} for one in found]


def error_percent(
    reference: list[dict[str, torch.Tensor]], candidate: list[dict[str, torch.Tensor]]
) -> float:
    errors = [
        np.mean(
            [
                vq.compare(r[name], c[name])["relative_l2"]
                for r, c in zip(reference, candidate, strict=True)
            ]
        )
        for name in reference[0]
    ]
    return 100 * float(np.exp(np.mean(np.log(errors))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=16, help="held-out scenes (default 16)")
    parser.add_argument("--only", nargs="+", default=[], help="tables whose titles begin so")
    args = parser.parse_args()
    count = args.scenes
    rooms = [scenes.make_scene(scenes.HELD_OUT + i, frames=4) for i in range(count)]
    pictures = [
        torch.from_numpy(room.images).permute(0, 3, 1, 2).float().contiguous() / 255
        for room in rooms
    ]
    reference = outputs_of(tiny.build(), pictures)
    for title, rows in TABLES.items():
        if args.only and not title.startswith(tuple(args.only)):
            continue
        print(f"\n`{title}`:\n\n| value | bits a weight | whole model, MB | error, % |")
        print("|---|---|---|---|")
        for i, (label, config) in enumerate(rows):
            make = vq.calibrate if i and title.startswith(CALIBRATED) else vq.quantize_model
            model, report = make(tiny.build(), config=config)
            error = error_percent(reference, outputs_of(model, pictures, config.autocast))
            size = vq.model_bytes(model) / 1e6
            print(
                f"| `{label}` | {report.bits_per_weight:.2f} | {size:.2f} | {error:.3g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
