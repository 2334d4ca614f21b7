# SPDX-License-Identifier: Apache-2.0
"""Blocks of one structure are recorded once, and each site gets its own parameters."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from vggtquant.deploy import repeated, trace


class Block(nn.Module):
    """A residual block that reads positions too."""

    def __init__(self, width: int, power: float = 2.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.randn(width))
        self.power = power
        self.sizes = (width,)

    def forward(self, x: torch.Tensor, pos: torch.Tensor | None = None) -> torch.Tensor:
        y = self.gamma * self.fc(self.norm(x))
        return x + (y if pos is None else y * pos.float().pow(self.power).cos())


class Model(nn.Module):
    """Six blocks of two structures, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(8) for _ in range(4)])
        self.others = nn.ModuleList([Block(8, 3.0), Block(8, 3.0)])

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = images.reshape(1, -1, 8)
        pos = torch.arange(x.shape[1])[None, :, None]
        for block in self.blocks:
            x = block(x, pos=pos)
        for block in self.others:
            x = block(block(x))
        return {"depth": x}


IMAGES = torch.rand(1, 1, 3, 28, 14, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def recorded():
    """The model's outputs, its graph, and how many graphs were recorded."""
    torch.manual_seed(0)
    model = Model().eval()
    with torch.inference_mode():
        wanted = model(IMAGES)["depth"].numpy()
    made = []
    as_onnx = trace.as_onnx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "is_block", lambda module: isinstance(module, Block))
        patch.setattr(trace, "as_onnx", lambda *x: made.append(x) or as_onnx(*x))
        graph = trace.graph_of(model, (28, 14), 1, False, 21)
    return wanted, graph, len(made)


def test_each_structure_is_recorded_once(recorded, tmp_path):
    wanted, graph, made = recorded
    assert made == 3  # the model, and two structures
    assert "BlockSite" not in {node.op_type for node in graph.graph}
    ir.save(graph, tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {"images": IMAGES.numpy()})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_names_are_those_of_the_model(recorded):
    graph = recorded[1].graph
    names = set(graph.initializers)
    assert {f"blocks.{i}.fc.weight" for i in range(4)} <= names
    assert len([name for name in names if name.startswith("others.1.")]) == 5
    nodes = [node.name for node in graph]
    assert len(nodes) == len(set(nodes))


def test_a_call_with_other_things_than_tensors_is_the_blocks():
    class Takes(nn.Module):
        def forward(self, x, words):
            return x + len(words)

    blocks = repeated.Blocks()
    x = torch.rand(1, 2, 8)
    site = repeated.BlockSite("takes", Takes(), blocks)
    assert torch.equal(site(x, words={"a": "b"}), x + 1) and blocks.calls == []


class Views(nn.Module):
    """Two views of one table, as VGGT has positions of the frames and of all of them together."""

    def forward(self, images):
        x = images[0, 0, 0]
        table = torch.cat([torch.zeros(2), torch.arange(4.0)])
        y = x * table.view(2, 3) + x.sin() * table.view(2, 3)
        return {"depth": y + x.mean() * table.sum()}


def test_views_of_a_folded_table_are_one_constant():
    """Else each block that reads one is recorded anew."""
    program, _ = trace.program_of(Views(), (2, 3), 1, False, {})
    tables = [n for n in program.graph.nodes if n.op == "placeholder" and "constant" in n.name]
    assert sorted(tuple(n.meta["val"].shape) for n in tables) == [(), (2, 3)]
    assert not [n for n in program.graph.nodes if "view" in n.name]
