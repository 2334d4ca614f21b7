# SPDX-License-Identifier: Apache-2.0
"""A frozen quantized model with trained adapters: gradients reach them through the codes."""

from typing import Any

import pytest
import torch
from everywhere import by_default
from torch import nn

import vggtquant as vq
from vggtquant import tiny


class Adapter(nn.Module):
    """LoRA (Hu et al., arXiv 2106.09685): y = base(x) + B A x, B starts at 0."""

    def __init__(self, base: nn.Module, rank: int = 4) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + x @ self.a.T @ self.b.T
        return out


def adapted(net: nn.Module) -> None:
    """Adapters on all layers of the first and the last aggregator block."""
    for name, module in list(net.named_modules()):
        if "frame_blocks.0" in name or "global_blocks.3" in name:
            if isinstance(module, vq.QuantizedLinear):
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, Adapter(module))


def with_peft(net: nn.Module) -> None:
    peft: Any = pytest.importorskip("peft")
    from peft.tuners.lora import Linear

    config = peft.LoraConfig(target_modules=r".*(frame_blocks\.0|global_blocks\.3).*(qkv|proj)")
    config._register_custom_module({vq.QuantizedLinear: Linear})
    peft.inject_adapter_in_model(config, net)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("adapt", [adapted, with_peft], ids=["stand-in", "peft"])
@pytest.mark.parametrize(
    "config", by_default(["INT4_Group_128", "INT8_Per_Channel_Symmetric_A8"], "INT4_Group_128")
)
def test_an_adapter_lowers_the_loss(adapt: Any, config: str) -> None:
    """Towards depths and points that are 20 % larger than the float model's."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 28, 42)
    teacher, student = tiny.build(), tiny.build()
    with torch.no_grad():
        wanted = {k: 1.2 * v for k, v in teacher(images).items() if k in ("depth", "world_points")}
    vq.quantize_model(student, config)
    student.requires_grad_(False)
    adapt(student)
    codes = {k: v.clone() for k, v in student.named_buffers() if k.endswith("packed")}
    trained = [p for p in student.parameters() if p.requires_grad]
    assert trained
    optimizer = torch.optim.Adam(trained, 1e-3)
    losses = []
    for _ in range(20):
        got = student(images)
        loss = sum((got[k] - wanted[k]).square().mean() for k in wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(v, codes[k]) for k, v in student.named_buffers() if k in codes)
