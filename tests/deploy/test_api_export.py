# SPDX-License-Identifier: Apache-2.0
"""vq.export and `vggtquant export`: files, checks, bad input."""

import errno
import importlib.util
import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import toy
from torch import nn

import vggtquant as vq
from vggtquant import files
from vggtquant.commands.cli import main
from vggtquant.deploy import api, check, onnx_file, trace

SIZE = (28, 42)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A toy with dynamic INT8 activations for two pictures, not square."""
    model, _ = vq.quantize_model(toy.build(), "INT8_Per_Channel_Symmetric_A8")
    folder = tmp_path_factory.mktemp("exported")
    return model, vq.export(model, folder, size=SIZE, frames=2)


def test_outputs_have_vggts_names_and_ours_values(exported):
    model, result = exported
    session = ort.InferenceSession(str(result.path))
    images = torch.rand(1, 2, 3, *SIZE)
    found = dict(
        zip(
            [o.name for o in session.get_outputs()],
            session.run(None, {"images": images.numpy()}),
            strict=True,
        )
    )
    assert tuple(found) == trace.OUTPUTS
    with torch.inference_mode():
        ours = model(images)
    for name, value in found.items():
        np.testing.assert_allclose(value, ours[name].numpy(), rtol=0, atol=1e-3, err_msg=name)


def test_the_result_tells_what_was_written(exported):
    _, result = exported
    assert result.agrees and "onnxruntime" in result.differences
    assert result.forms == {"dynamic": 6} and result.nodes["MatMulInteger"] == 6
    assert result.runs["onnxruntime"].kernels["MatMulInteger"] == 6
    on_disk = sum(path.stat().st_size for path in result.path.parent.iterdir())
    assert result.nbytes == on_disk
    words = str(result)
    assert "products: 6 MatMulInteger" in words
    assert "an operator that TensorRT does not have: MatMulInteger" in words
    assert "depth: " in words and "bound" in words


def test_the_model_is_not_modified(exported):
    model, _ = exported
    kinds = [type(m).__name__ for m in model.modules()]
    assert kinds.count("QuantizedLinear") == 7 and "LinearSite" not in kinds  # one in the tracker
    with torch.inference_mode():
        assert model(torch.rand(1, 1, 3, *SIZE))["depth"].isfinite().all()


@pytest.mark.parametrize(("scheme", "bound"), [(None, check.FLOAT_BOUND), ("INT4_Group_32", 1e-4)])
def test_float_activations_are_computed_to_rounding(scheme, bound, tmp_path):
    model = toy.build()
    if scheme:
        vq.quantize_model(model, scheme)
    with torch.device("meta"):  # a default device does not reach into it
        result = vq.export(model, tmp_path, size="28x42")
    (found,) = [result.differences["onnxruntime"]]
    assert max(d.size for d in found) < bound
    onnx.checker.check_model(str(result.path), full_check=True)


def test_any_number_of_pictures(tmp_path):
    model = toy.build()
    result = vq.export(model, tmp_path, size=SIZE, dynamic_frames=True)
    session = ort.InferenceSession(str(result.path))
    for frames in (1, 3):
        images = torch.rand(1, frames, 3, *SIZE)
        depth = session.run(["depth"], {"images": images.numpy()})[0]
        with torch.inference_mode():
            np.testing.assert_allclose(depth, model(images)["depth"].numpy(), atol=1e-4)


class Chunked(nn.Module):
    """A dense head that takes eight pictures at a time, as VGGT's do, and a token that the first
    picture alone has."""

    def __init__(self) -> None:
        super().__init__()
        self.head = ChunkedHead()
        self.tokens = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, images):
        _, frames = images.shape[:2]
        others = self.tokens[1:].expand(frames - 1)
        shift = torch.cat([self.tokens[:1], others])[None, :, None, None]
        return {"depth": self.head(images) + shift}


class ChunkedHead(nn.Module):
    def forward(self, images, frames_chunk_size=8):
        frames = images.shape[1]
        if frames_chunk_size is None or frames_chunk_size >= frames:
            return images.mean(2)
        parts = images.split(frames_chunk_size, 1)
        return torch.cat([part.mean(2) for part in parts], 1)


def test_heads_that_take_pictures_in_chunks(tmp_path):
    model = Chunked().eval()
    result = vq.export(model, tmp_path, size=SIZE, dynamic_frames=True)
    session = ort.InferenceSession(str(result.path))
    for frames in (1, 2, 8, 9, 17):
        images = torch.rand(1, frames, 3, *SIZE)
        depth = session.run(["depth"], {"images": images.numpy()})[0]
        with torch.inference_mode():
            np.testing.assert_allclose(depth, model(images)["depth"].numpy(), atol=1e-6)
    assert "forward" not in vars(model.head)  # the model is not modified


def test_openvino_reads_it(exported):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model, result = exported
    assert max(d.size for d in result.differences["openvino"]) < 0.02
    again = vq.export(model, result.path.parent / "ir", size=SIZE, frames=2, format="openvino")
    assert again.path.name == "model.xml" and again.agrees


def test_another_module_wants_force(tmp_path):
    model = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 28 * 42, 4)).eval()
    with pytest.raises(vq.UserError, match=r"not VGGT's dictionary.*--force"):
        vq.export(model, tmp_path, size=SIZE)
    result = vq.export(model, tmp_path, size=SIZE, force=True)
    session = ort.InferenceSession(str(result.path))
    assert [o.name for o in session.get_outputs()] == ["output_0"]


WRONG = {
    "size is '28'; HEIGHTxWIDTH": {"size": "28"},
    "size is 28x30; two positive multiples of 14": {"size": "28x30"},
    "size is 0x28": {"size": (0, 28)},
    "frames is 0; 1 or more": {"frames": 0},
    "frames is True": {"frames": True},
    "frames is 1000000000000: pictures of 28x42 and their forward take": {"frames": 10**12},
    "opset is 17; 21 to 25": {"opset": 17},
    "opset is 99; 21 to 25": {"opset": 99},
    "unknown float_dtype 'half'; one of float32": {"float_dtype": "half"},
    "unknown format 'tflite'; one of onnx, openvino, executorch": {"format": "tflite"},
    "scheme is for a model's name": {"scheme": "INT4_Group_64"},
    "images have shape": {"images": torch.zeros(1, 1, 3, 14, 14)},
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_input_is_one_line(words, tmp_path):
    given = {"size": SIZE, **WRONG[words]}
    with pytest.raises(vq.UserError) as error:
        vq.export(toy.build(), tmp_path, **given)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "model.onnx").exists() or "images" in words


def test_what_stands_in_the_place_of_a_file(tmp_path):
    (tmp_path / "model.onnx.data").mkdir()
    with pytest.raises(vq.UserError, match=r"model\.onnx\.data is a directory"):
        vq.export(toy.build(), tmp_path, size=SIZE)
    (tmp_path / "file").touch()
    with pytest.raises(vq.UserError, match="a file stands in its place"):
        vq.export(toy.build(), tmp_path / "file", size=SIZE)


def test_a_full_disk_keeps_what_stood_there(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_text("older")
    (tmp_path / "model.onnx.data").write_text("older")

    def full(model, path, external_data):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_file.ir, "save", full)
    with pytest.raises(vq.UserError, match=r"no room for .*model\.onnx \(No space") as error:
        vq.export(toy.build(), tmp_path, size=SIZE)
    assert "\n" not in str(error.value)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "model.onnx": "older",
        "model.onnx.data": "older",
    }


def test_a_killed_run_leaves_no_graph_beside_other_weights(tmp_path, monkeypatch):
    """Killed between the two files: the older graph would read the new weights."""
    names = ("weights", "graph")
    for name in names:
        (tmp_path / name).write_text("older")
    moved: list[str] = []

    class Killed(BaseException):
        pass

    def move(source, target):
        moved.append(target.name)
        os.rename(source, target)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", move)
        with pytest.raises(Killed), files.staging(tmp_path, names) as made:
            for name in names:
                (made / name).write_text("new")
    assert moved == ["weights"] and not (tmp_path / "graph").exists()
    left = tmp_path / ".staging-of-a-killed-run"
    left.mkdir()
    with files.staging(tmp_path, names) as made:
        assert not left.exists()
        with pytest.raises(vq.UserError, match="another run is writing into"):
            with files.staging(tmp_path, names):
                raise AssertionError
        for name in names:
            (made / name).write_text("new")
    assert {p.name for p in tmp_path.iterdir()} == set(names)


@pytest.mark.parametrize("scheme", [None, "INT8_Per_Channel_Symmetric_A8"])
def test_a_model_in_bfloat16(scheme, tmp_path):
    model = toy.build()
    if scheme:
        vq.quantize_model(model, scheme)
    with pytest.raises(vq.UserError, match=r"bfloat16.*float32 is wanted.*float_dtype"):
        vq.export(model.bfloat16(), tmp_path, size=SIZE)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(vq.UserError, match=r"export needs onnxscript; .*vggtquant\[onnx\]"):
        vq.export(toy.build(), tmp_path, size=SIZE)


def test_a_model_that_cannot_be_recorded(tmp_path):
    class Asks(nn.Module):
        def forward(self, images):
            return {"depth": images * (2 if images.sum() > 0 else 3)}

    with pytest.raises(vq.UserError, match="torch cannot record this model") as error:
        vq.export(Asks(), tmp_path, size=SIZE)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


class Tables(nn.Module):
    """Adds a table that torch multiplies of two types."""

    def forward(self, images):
        rows, rates = torch.arange(28.0), torch.arange(42, dtype=torch.float64)
        table = torch.einsum("i,j->ij", rows, rates).sin().float()
        return {"depth": images + table}


def test_tables_are_computed_by_torch(tmp_path):
    """ONNX has no Einsum of two types."""
    result = vq.export(Tables(), tmp_path, size=SIZE)
    assert result.nodes["Einsum"] == 0 and result.agrees


def test_too_large_a_difference_ends_with_3(tmp_path, monkeypatch, capsys):
    command = ["export", "toy:build", "--out", str(tmp_path), "--size", "28x28"]
    assert main(command) == 0
    monkeypatch.setattr(check, "FLOAT_BOUND", -1.0)
    assert main(command) == 3
    assert "bound -1" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").exists()


def test_sizes():
    assert api.parse_size("350x518") == (350, 518) == api.parse_size((350, 518))


@pytest.mark.slow  # exports twice; test_narrow.py has each product
def test_products_in_half_precision(tmp_path):
    result = vq.export(toy.build(), tmp_path, size=SIZE, float_dtype="float16")
    whole = vq.export(toy.build(), tmp_path / "whole", size=SIZE, check=False)
    assert result.agrees and result.nbytes < 0.8 * whole.nbytes
    assert max(d.size for d in result.differences["onnxruntime"]) > 1e-5


@pytest.mark.slow
def test_the_embedded_model(tmp_path):
    """Attention, rotary tables, dense heads with INT8 convolutions; not square."""
    result = vq.export("builtin:tiny", tmp_path, scheme="INT8_Fast", size=(70, 98), frames=2)
    assert result.agrees
    assert result.forms == {"dynamic": 54, "weights": 14}  # transposed ones are Linears of pixels
    notes = " ".join(result.notes)
    assert "12 attentions" in notes and "12 INT8 convolutions" in notes
    assert "2 layers with 16-bit activations" in notes
