# SPDX-License-Identifier: Apache-2.0
"""A small model, its samples, and shams in place of quantize_model."""

import pytest
import torch
from torch import nn
from toy import build

from vggtquant.evaluation.measure import variants
from vggtquant.evaluation.measure.bench import Sample
from vggtquant.model import quantize_model


@pytest.fixture
def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    return [Sample(f"s{i}", torch.rand(2, 3, 28, 28, generator=generator)) for i in range(2)]


@pytest.fixture
def model() -> nn.Module:
    return build()


@pytest.fixture
def sham(monkeypatch: pytest.MonkeyPatch):
    """Replaces what `quantize_model` did by what the test's function makes of it."""
    real = quantize_model

    def install(change) -> None:
        def quantized(model, config, **options):
            model, result = real(model, config, **options)
            change(model, result)
            return model, result

        monkeypatch.setattr(variants, "quantize_model", quantized)

    return install
