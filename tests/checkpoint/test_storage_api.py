# SPDX-License-Identifier: Apache-2.0
"""vq.save, vq.load, vq.push_to_hub and vq.quantize_file in the hands of a user."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from checkpoints import Zoo
from torch import nn

import vggtquant as vq
from vggtquant import QuantizedLinear, UserError, models
from vggtquant.checkpoint.document import Checkpoint
from vggtquant.tiny.model import TinyVGGT
from vggtquant.weights import names

INT4 = "INT4_Group_32"


def quantized(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    vq.quantize_model(model, INT4)
    return model.eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- save and load -------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    model = quantized(Zoo())
    saved = vq.save(model, tmp_path / "a.safetensors")
    assert saved.path == tmp_path / "a.safetensors" and saved.narrowed is None
    assert same(vq.load(tmp_path / "a.safetensors", model=Zoo), model)
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors"}


def test_a_directory(tmp_path: Path) -> None:
    model = quantized(TinyVGGT())
    saved = vq.save(model, tmp_path / "packed")
    assert saved.path == tmp_path / "packed" / "model.safetensors"
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["architecture"] == "builtin:tiny" and config["settings"]["dim"] == 128
    assert config["quantization"] == [vq.get_config(INT4).to_dict()]
    for place in (tmp_path / "packed", str(saved.path)):
        assert same(vq.load(place), model)
    assert same(models.load_model(tmp_path / "packed").model, model)


def test_a_tiny_model_of_another_size(tmp_path: Path) -> None:
    model = quantized(TinyVGGT(dim=64, heads=2, depth=2))
    vq.save(model, tmp_path / "a.safetensors")
    images = torch.rand(2, 3, 28, 28)
    with torch.inference_mode():
        wanted = model(images)["depth"]
        assert torch.equal(vq.load(tmp_path / "a.safetensors")(images)["depth"], wanted)
    safetensors.torch.save_file(TinyVGGT(dim=64).state_dict(), tmp_path / "f.safetensors")
    (tmp_path / "config.json").write_text('{"dim": 64}')
    done = vq.quantize_file(tmp_path / "f.safetensors", INT4, tmp_path / "b.safetensors")
    assert done.document.architecture == "builtin:tiny"
    assert vq.load(tmp_path / "b.safetensors").settings["dim"] == 64


def test_device_and_dtype_of_the_floats(tmp_path: Path) -> None:
    vq.save(quantized(Zoo()), tmp_path / "a.safetensors")
    model = vq.load(tmp_path / "a.safetensors", model=Zoo, device="cpu", dtype=torch.bfloat16)
    assert model.norm.weight.dtype == model.wide.bias.dtype == torch.bfloat16
    assert isinstance(model.wide, QuantizedLinear) and model.wide.packed.dtype == torch.uint8
    assert model(torch.ones(2, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    model = quantized(TinyVGGT())
    vq.save(model, snapshot)
    assert same(vq.load("me/tiny"), model)
    assert models.load_model("me/tiny").name == "me/tiny"


def test_names_that_are_no_packed_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no packed checkpoint, which is one file"):
        vq.load("builtin:tiny")
    with pytest.raises(UserError, match="unknown model 'nothing'"):
        vq.load("nothing")


class Hub:
    """Stands in for huggingface_hub and keeps what it is given."""

    def __init__(self, folder: Path, *, refuses: bool = False) -> None:
        self.folder, self.refuses, self.token, self.private = folder, refuses, "", False

    def HfApi(self, token: str | None = None) -> "Hub":  # noqa: N802
        self.token = token or ""
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert name == "me/packed" and exist_ok
        self.private = private
        if self.refuses:
            raise RuntimeError("401 Unauthorized\nsecond line")

    def upload_folder(self, *, repo_id: str, folder_path: str) -> SimpleNamespace:
        assert repo_id == "me/packed"
        for path in Path(folder_path).iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())
        return SimpleNamespace(commit_url="https://huggingface.co/me/packed/commit/1")


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path)
    monkeypatch.setattr(names, "hub", lambda: hub)
    model = quantized(TinyVGGT())
    url = vq.push_to_hub(model, "me/packed", private=True, token="t", float_dtype="float32")
    assert url.startswith("https://huggingface.co/me/packed") and hub.private and hub.token == "t"
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    assert same(vq.load(tmp_path), model)
    monkeypatch.setattr(names, "hub", lambda: Hub(tmp_path, refuses=True))
    with pytest.raises(UserError, match="the hub refuses me/packed: 401 Unauthorized$"):
        vq.push_to_hub(model, "me/packed")
    with pytest.raises(UserError, match="no quantized layer"):
        vq.push_to_hub(Zoo(), "me/packed")


# ---- quantize_file -------------------------------------------------------------------------------


def test_a_file_to_a_directory(tmp_path: Path) -> None:
    torch.save(TinyVGGT().state_dict(), tmp_path / "w.pt")
    done = vq.quantize_file(tmp_path / "w.pt", INT4, tmp_path / "packed", float_dtype="float32")
    assert done.path == tmp_path / "packed" / "model.safetensors"
    assert type(vq.load(tmp_path / "packed")) is TinyVGGT


def test_one_pattern_need_not_be_a_list(tmp_path: Path) -> None:
    torch.save(TinyVGGT().state_dict(), tmp_path / "w.pt")
    done = vq.quantize_file(tmp_path / "w.pt", INT4, tmp_path / "a.safetensors", include="*.fc1")
    assert done.layers > 0 and all(x.name.endswith(".fc1") for x in done.document.layers)


def test_configs_of_single_layers(tmp_path: Path) -> None:
    eight = "INT8_Per_Channel_Symmetric"
    configs = {"qkv": eight, "blocks.*": None}
    torch.save(Zoo().state_dict(), tmp_path / "w.pt")
    done = vq.quantize_file(tmp_path / "w.pt", INT4, tmp_path / "a.safetensors", configs=configs)
    names_of = {row.name: done.document.configs[row.config].name for row in done.document.layers}
    assert names_of == {"qkv": eight, "wide": INT4, "narrow": INT4}
    assert done.document.skipped["blocks.0"] == "configs leave it in float"
    model, report = vq.quantize_model(Zoo(), INT4, configs=configs)
    assert {x.name: x.skipped for x in report.skipped if x.name.startswith("blocks")} == {
        "blocks.0": "configs leave it in float",
        "blocks.2": "configs leave it in float",
    }
    back = vq.load(tmp_path / "a.safetensors", model=Zoo)
    assert torch.equal(back.qkv.weight, model.qkv.weight)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"include": 3}, "3 is given; wanted a pattern of layer names, or several"),
        ({"exclude": [3]}, "[3] is given; wanted a pattern"),
        ({"configs": {3: None}}, "wanted a pattern of layer names"),
        ({"filter_fn": "x"}, "filter_fn is 'x'; wanted a function of (layer, name)"),
    ],
)
def test_what_quantize_model_refuses_is_one_line(given: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        vq.quantize_model(Zoo(), INT4, **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": 3}, "model is 3; wanted a module, or a function"),
        ({"dtype": torch.int8}, "dtype is torch.int8; wanted torch.float32"),
        ({"dtype": "x"}, "dtype is 'x'; wanted torch.float32"),
        ({"device": []}, "unknown device '[]'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "no device 'cuda:99' here"),
    ],
)
def test_what_load_refuses_is_one_line(given: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        vq.load("any.safetensors", **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    model, _ = vq.quantize_model(Zoo(), INT4)
    vq.save(model, tmp_path / "a.safetensors")
    for call in (
        lambda: vq.quantize_model(None, INT4),
        lambda: vq.save("model", tmp_path / "b.safetensors"),
        lambda: vq.load(tmp_path / "a.safetensors", model=lambda: None),
    ):
        with pytest.raises(UserError, match=r"^the model is \w+; wanted a torch.nn.Module$"):
            call()
    with pytest.raises(UserError, match="source is 'x'; wanted what models.load_model returns"):
        vq.save(model, tmp_path / "b.safetensors", source="x")
    assert not (tmp_path / "b.safetensors").exists()


def test_filter_fn() -> None:
    def wide(layer: nn.Linear, name: str) -> bool:
        return layer.out_features > 100

    _, report = vq.quantize_model(Zoo(), INT4, filter_fn=wide)
    assert [layer.name for layer in report.quantized] == ["wide"]
    assert {x.skipped for x in report.skipped} >= {"filter_fn does not admit it"}


def test_rows_that_are_too_long_stay_float(tmp_path: Path) -> None:
    """A reader refuses them, so a writer must not make them."""
    state = {"long.weight": torch.randn(2, 65_540), "long.bias": torch.zeros(2)}
    state |= {"short.weight": torch.randn(8, 64), "short.bias": torch.zeros(8)}
    torch.save(state, tmp_path / "w.pt")
    config = vq.QuantizationConfig("all", "int8_per_channel_sym", skip_first_last=False)
    done = vq.quantize_file(tmp_path / "w.pt", config, tmp_path / "a.safetensors")
    assert "its rows are longer than 65536" in done.document.skipped["long"]
    assert [layer.name for layer in Checkpoint(tmp_path / "a.safetensors").document.layers] == [
        "short"
    ]


def test_convolutions_are_packed_as_in_memory(tmp_path: Path) -> None:
    torch.save(TinyVGGT().state_dict(), tmp_path / "w.pt")
    out = tmp_path / "a.safetensors"
    done = vq.quantize_file(tmp_path / "w.pt", "INT8_Fast", out, float_dtype="float32")
    whole = TinyVGGT()
    whole.load_state_dict(torch.load(tmp_path / "w.pt"))
    vq.quantize_model(whole.eval(), "INT8_Fast")
    assert done.layers > 0 and done.document.source.name == "w.pt"
    assert same(vq.load(out), whole)
    with pytest.raises(UserError, match="INT8_Fast packs convolutions too"):
        vq.quantize_file(tmp_path / "w.pt", "INT8_Fast", out, max_bytes=10**9)
