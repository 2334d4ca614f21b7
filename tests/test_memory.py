# SPDX-License-Identifier: Apache-2.0
"""How many pictures fit: the forecast, the refusal, the chunks; a long forward's bar and Ctrl-C."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_signals import default_handler, interrupted  # noqa: F401  (a fixture)
from torch import nn
from toy_dense import DPTHead

import vggtquant as vq
from vggtquant import dense, environment, memory, models, progress
from vggtquant.commands import cli
from vggtquant.errors import UserError
from vggtquant.evaluation.measure import forecast
from vggtquant.tiny.layers import Block

SIZE = (56, 70)


class Like(nn.Module):
    """Built as VGGT is: blocks and a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.aggregator = nn.Module()
        self.aggregator.patch_size = 4
        self.aggregator.frame_blocks = nn.ModuleList([Block(24, 2, qk_norm=True, init=0.1)])
        self.depth_head = DPTHead()


@pytest.fixture
def quantized() -> nn.Module:
    model = Like().eval()
    dense.swap_convolutions(model, lambda name: "")
    assert isinstance(model.depth_head, dense.QuantizedDPTHead)
    return model


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> int:
    """A process of 300 MB, whatever this one has."""
    monkeypatch.setattr(environment, "resident_bytes", lambda: 300_000_000)
    return 300_000_000


def test_a_forward_takes_more_for_more_pictures_and_larger_chunks(quantized: nn.Module) -> None:
    def takes(pictures: int, **more: Any) -> int:
        return memory.forecast(quantized, pictures, SIZE, **more)

    assert memory.OVERHEAD < takes(1) < takes(2) < takes(40)
    assert takes(8, chunk=1) <= takes(8, chunk=4) <= takes(8, chunk=8) == takes(8)
    assert memory.forecast(quantized, 2, (112, 140)) > takes(2)
    with torch.autocast("cpu", torch.bfloat16):
        half = takes(40)
    assert half <= takes(40)
    assert takes(2) < memory.forecast(Like(), 2, SIZE)  # torch's head has maps of the whole size


def test_the_largest_number_that_fits(quantized: nn.Module, resident: int) -> None:
    limit = resident + memory.forecast(quantized, 9, SIZE, chunk=1)
    found = vq.fit(quantized, limit, size=SIZE)
    assert found.pictures == 9 and found.nbytes <= limit
    assert memory.forecast(quantized, 10, SIZE, chunk=1) + resident > limit
    head: Any = quantized.depth_head
    patches = (SIZE[0] // head.patch_size, SIZE[1] // head.patch_size)
    assert head.budget // head.picture_nbytes(patches) == found.chunk
    roomy = vq.fit(quantized, "8 GB", pictures=9, size=SIZE)
    assert roomy.chunk == memory.AT_ONCE and roomy.pictures > 1000
    assert vq.fit(quantized, "8 GB", size=SIZE).pictures == roomy.pictures


def test_what_does_not_fit_is_refused_in_one_line(quantized: nn.Module, resident: int) -> None:
    limit = resident + memory.forecast(quantized, 3, SIZE, chunk=1)
    with pytest.raises(UserError) as caught:
        vq.fit(quantized, limit, pictures=500, size=SIZE)
    words = str(caught.value)
    assert "500 pictures of 56x70 would take 0." in words and "3 pictures would fit" in words
    with pytest.raises(UserError, match=r"1 picture .* not even one would fit"):
        vq.fit(quantized, "300 MB", size=SIZE)
    with pytest.raises(UserError, match="is no number of bytes"):
        vq.fit(quantized, "much")
    with pytest.raises(UserError, match="the memory of a Linear is not known"):
        vq.fit(nn.Linear(2, 2), "8 GB")


def test_run_refuses_before_its_forward(
    tmp_path: Path, resident: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "builtin:tiny", "builtin", "--out", str(tmp_path / "a"), "--max_images", "2"]
    assert cli.main([*command, "--max_memory", "301MB"]) == 2
    assert "not even one would fit" in capsys.readouterr().err
    assert cli.main([*command, "--max_memory", "?"]) == 2
    assert cli.main([*command, "--max_memory", "8GB"]) == 0
    assert "2 frames should take 0." in capsys.readouterr().err


def test_evaluate_refuses_before_its_forwards(
    tmp_path: Path, resident: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--out", str(tmp_path / "a"), "--schemes", "INT8_Fast", "--scenes", "1"]
    assert cli.main([*command, "--max_memory", "301MB"]) == 2
    assert "not even one would fit" in capsys.readouterr().err


# ---- long forwards -------------------------------------------------------------------------------


class Terminal(progress.Progress):
    """Bars wherever it runs."""

    def __init__(self) -> None:
        super().__init__(bars=False)
        self._bars = progress.Bars(console=self._console)


def test_a_slow_forward_has_a_bar_over_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load_model("builtin:tiny").model
    blocks = progress.steps(model)
    assert len(blocks) == 3 + sum(isinstance(m, Block) for m in model.aggregator.modules())
    monkeypatch.setattr(progress, "SLOW_SECONDS", -1.0)
    seen: list[float] = []
    with Terminal() as shown, torch.inference_mode():
        bars = shown._bars
        assert bars is not None
        model.depth_head.register_forward_hook(lambda *_: seen.append(bars.tasks[0].completed))
        images = torch.zeros(2, 3, 56, 56)
        shown.watching(lambda model, images: model(images[None]))(model, images)
        assert seen and 0 < seen[0] <= len(blocks) and not bars.tasks
    assert all(len(m._forward_hooks) == (m is model.depth_head) for m in blocks)


def test_a_quick_forward_has_none() -> None:
    model = models.load_model("builtin:tiny").model
    with Terminal() as shown, torch.inference_mode(), shown.forward(model):
        assert shown._bars is not None
        model(torch.zeros(1, 1, 3, 56, 56))
        assert not shown._bars.tasks
    runner = lambda model, images: 1  # noqa: E731
    assert progress.silent().watching(runner) is runner


def test_ctrl_c_ends_a_long_forward() -> None:
    model = models.load_model("builtin:tiny").model
    vq.quantize_model(model, "INT8_Fast")
    images = torch.zeros(1, 200, 3, 112, 112)
    seconds = []
    with torch.inference_mode():
        for _ in range(5):  # others may need this machine's cores
            seconds.append(interrupted(lambda: model(images)))
            if seconds[-1] < 0.2:
                break
    assert min(seconds) < 0.2, seconds


class Getter:
    """VGGT's is no module either."""

    def __init__(self) -> None:
        self.cache: dict[int, torch.Tensor] = {}


class Caching(nn.Module):
    """Keeps positions by size as VGGT does, and reads a value, which fake tensors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.positions: dict[int, torch.Tensor] = {}
        self.getter = Getter()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        n = images.shape[-1]
        if n not in self.positions:
            self.positions[n] = self.getter.cache[n] = torch.arange(n)
        return {"depth": self.layer(torch.ones(1, 2)) * int(self.positions[n].max())}


def test_a_count_on_fake_tensors_leaves_no_fake_positions() -> None:
    model = Caching()
    layers: dict[str, nn.Module] = {"layer": model.layer}
    with pytest.raises(forecast.Uncounted):
        forecast.count(model, layers, forecast.Shape(1, 4, 4), really=False)
    assert not model.positions and not model.getter.cache
    assert forecast.count(model, layers, forecast.Shape(1, 4, 4)).linear_macs == 4
    assert int(model(torch.zeros(1, 3, 4, 4))["depth"].isfinite().all())
