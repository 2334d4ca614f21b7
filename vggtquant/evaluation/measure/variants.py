# SPDX-License-Identifier: Apache-2.0
"""The rows of an evaluation: FP32, the references that show its own uncertainty, the schemes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ... import devices
from ...calibration import calibrate
from ...configs import QuantizationConfig
from ...errors import UserError
from ...model import ModelReport, quantize_model
from ..schema import Kind

BASELINE = "Baseline_FP32"
REPEAT = "Baseline_FP32_Repeat"
OTHER_THREADS = "Baseline_FP32_Other_Threads"
NOISY_INPUT = "Baseline_FP32_Noisy_Input"

# What a scheme's error stands beside. Repeat is run last, so that it also shows whether the model
# is what it was before the first scheme.
NOISE_FLOOR = {
    REPEAT: "FP32 run once more after all schemes, on the same pictures",
    OTHER_THREADS: "FP32 with another number of threads",
    NOISY_INPUT: "FP32 on pictures whose every value is one 8-bit step up or down, at random",
}
_ON_CPU_ALONE = (OTHER_THREADS,)
_KINDS = {"fp32": Kind.BASELINE, "bf16": Kind.REFERENCE}


@dataclass(frozen=True)
class Variant:
    """One row: a way to run the model."""

    name: str
    kind: Kind
    config: QuantizationConfig
    file: Path | None = None  # packed: it is loaded from there

    @property
    def packed(self) -> bool:
        """Whether packed layers have to be proven to have run."""
        return self.kind is Kind.QUANTIZED or self.file is not None

    @property
    def once(self) -> bool:
        """Whether one pass is enough: its outputs are wanted, not its time."""
        return self.name in NOISE_FLOOR

    @property
    def autocast(self) -> bool:
        """Whether the model runs under bfloat16 autocast."""
        return self.config.is_bfloat16

    @property
    def sure_to_differ(self) -> str | None:
        """What would have changed nothing, were the outputs FP32's bit for bit."""
        if self.kind is Kind.QUANTIZED:
            return None  # the proof looks at that
        return "autocast" if self.autocast else {NOISY_INPUT: "the noise"}.get(self.name)


def noise_floor(device: str = "cpu") -> dict[str, str]:
    """Those of NOISE_FLOOR that say something on the device: a GPU computes with its own threads.

    >>> OTHER_THREADS in noise_floor("cuda:0")
    False
    """
    on_cpu = device.partition(":")[0] == "cpu"
    return {k: words for k, words in NOISE_FLOOR.items() if on_cpu or k not in _ON_CPU_ALONE}


def planned(configs: Sequence[QuantizationConfig], device: str = "cpu") -> list[Variant]:
    """The rows of these configs, the first of which is FP32's, in the order of the report.

    Raises UserError for two rows of one name.

    >>> from vggtquant import CONFIGS
    >>> [v.kind.value for v in planned([CONFIGS["Baseline_FP32"], CONFIGS["INT4_Group_64"]])]
    ['baseline', 'reference', 'reference', 'reference', 'quantized']
    """
    first, *rest = (
        Variant(config.name, _KINDS.get(config.quant_type, Kind.QUANTIZED), config)
        for config in configs
    )
    floor = [Variant(name, Kind.REFERENCE, first.config) for name in noise_floor(device)]
    found = [first, *floor, *rest]
    names = [variant.name for variant in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two schemes are named {twice}; wanted a name for each")
    return found


def swap(
    model: nn.Module, config: QuantizationConfig, images: Sequence[torch.Tensor]
) -> ModelReport:
    """Quantizes a model as the config says; its originals are kept.

    images: what the evaluation shows, (S, 3, H, W) each. A calibration renders other pictures, of
    their width; it runs on the CPU, from where the model comes back. config.device is where the
    evaluation as a whole takes place, so that the model is there already.
    """
    config = replace(config, device="cpu")
    if not config.looks:
        return quantize_model(model, config, keep_originals=True)[1]
    device = devices.device_of(model)
    model.to(devices.CPU)
    _, report = calibrate(
        model,
        config=config,
        method=config.calibration,
        seed=config.calibration_seed,
        size=images[0].shape[-1],
        keep_originals=True,
        unseen=images,
    )
    model.to(device)
    return report


def run_order(variants: Sequence[Variant]) -> list[Variant]:
    """The same rows as they are run."""
    return sorted(variants, key=lambda variant: variant.name == REPEAT)


def other_threads(threads: int) -> int:
    """Another number of threads, none too many for the machine nor too few to finish."""
    return threads // 2 if threads > 1 else 2


def with_noise(images: torch.Tensor, scene: str) -> torch.Tensor:
    """Pictures in [0, 1] with 1/255 added to or taken from each value; the same for a scene's name.

    >>> images = torch.full((1, 3, 2, 2), 0.5)
    >>> torch.unique((with_noise(images, "a") - images) * 255).round().tolist()
    [-1.0, 1.0]
    """
    generator = torch.Generator().manual_seed(zlib.crc32(scene.encode()))
    signs = torch.randint(0, 2, images.shape, generator=generator, device="cpu") * 2 - 1
    return (images + signs / 255).clamp(0, 1)
