# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: it starts at the calibrated model and ends in packed codes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import vggtquant as vq
from vggtquant import QuantizedLinear, tiny
from vggtquant.calibration import qat

ROOT = Path(__file__).parents[2]
SCHEMES = ("INT4_Group_32_A8", "INT8_Per_Channel_Symmetric_A8", "INT4_Group_32")


def layer(scheme: str) -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear.from_linear(nn.Linear(96, 65), scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_starts_at_the_layer_and_comes_back_to_it(scheme: str) -> None:
    before = layer(scheme)
    trained = qat.TrainedLinear(before)
    x = torch.randn(7, 96)
    torch.testing.assert_close(trained(x), before(x), rtol=1e-4, atol=1e-4)
    after = trained.packed()
    assert torch.equal(after.packed, before.packed) and torch.equal(after(x), before(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_packed_computes_what_was_trained(scheme: str) -> None:
    trained = qat.TrainedLinear(layer(scheme))
    with torch.no_grad():
        trained.codes += torch.randn_like(trained.codes)
        trained.log_scale += 0.1 * torch.randn_like(trained.log_scale)
        assert trained.bias is not None
        trained.bias += 1
    x = torch.randn(7, 96)
    torch.testing.assert_close(trained.packed()(x), trained(x), rtol=1e-3, atol=1e-3)


def test_a_step_lowers_the_loss() -> None:
    net, teacher = tiny.build(), tiny.build()
    images = torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    config = replace(vq.CONFIGS["INT4_Group_32_A8"], name="few")
    vq.calibrate(net, images, config=config, method="rtn", include="*global_blocks*")
    assert len(qat.trainable(net)) == 16
    with torch.no_grad():
        wanted = teacher(images)["depth"]
    optimizer = torch.optim.Adam(qat.parameter_groups(net, 1e-2, 1e-3))
    losses = []
    for _ in range(8):
        loss = (net(images)["depth"] - wanted).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    qat.pack(net)
    with torch.no_grad():
        assert float((net(images)["depth"] - wanted).square().sum()) < losses[0]


def test_models_that_do_not_train_are_refused() -> None:
    with pytest.raises(vq.UserError, match="vq.calibrate first"):
        qat.trainable(tiny.build())
    with pytest.raises(vq.UserError, match="asymmetric"):
        qat.TrainedLinear(layer("INT8_Per_Channel_Asymmetric"))
    with pytest.raises(vq.UserError, match="whole weight"):
        qat.TrainedLinear(layer("INT8_Per_Tensor_Symmetric")).packed()


@pytest.mark.slow
def test_the_example_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The same file as a run that was not killed."""

    def start(name: str) -> subprocess.Popen[str]:
        words = ["builtin:tiny", "--pictures", "8", "--steps", "80", "--method", "rtn"]
        words += ["--work", name, "--out", f"{name}.safetensors"]
        script = str(ROOT / "examples" / "qat.py")
        return subprocess.Popen(
            [sys.executable, script, *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )

    assert start("whole").wait() == 0
    first = start("killed")
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("step 60"):
            first.kill()
    assert first.wait() != 0 and not (tmp_path / "killed.safetensors").exists()
    assert start("killed").wait() == 0
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
