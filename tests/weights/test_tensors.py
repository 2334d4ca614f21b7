# SPDX-License-Identifier: Apache-2.0
"""Float weights under every name that they have in the field."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints import Zoo
from torch import Tensor, nn

import vggtquant as vq
from vggtquant import UserError, models, tiny
from vggtquant.checkpoint.document import Checkpoint
from vggtquant.commands import cli
from vggtquant.tiny.model import TinyVGGT
from vggtquant.weights import tensors
from vggtquant.weights.container import Container
from vggtquant.weights.tensors import open_weights

INT4 = "INT4_Group_32"
ALL = replace(vq.get_config(INT4), skip_first_last=False)


def sharded(state: dict[str, Tensor], folder: Path, *, suffix: str) -> Path:
    """Two shards and their index, as transformers writes them."""
    folder.mkdir()
    keys = list(state)
    write = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    where = {}
    for number, held in enumerate((keys[::2], keys[1::2]), 1):
        shard = f"model-{number:05}-of-00002{suffix}"
        write({key: state[key] for key in held}, folder / shard)
        where |= dict.fromkeys(held, shard)
    index = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}[suffix]
    path = folder / f"{index}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read_wherever_weights_are(suffix: str, tmp_path: Path) -> None:
    model = tiny.build()
    index = sharded(model.state_dict(), tmp_path / "sharded", suffix=suffix)
    for name in (index, index.parent):
        found = open_weights(name)
        assert found.shapes == {k: tuple(x.shape) for k, x in model.state_dict().items()}
        assert torch.equal(found.tensor("aggregator.camera_token"), model.aggregator.camera_token)
        vq.quantize_file(name, INT4, tmp_path / "a.safetensors")
        assert type(vq.load(tmp_path / "a.safetensors")) is TinyVGGT
        loaded = models.load_model(name)
        assert type(loaded.model) is TinyVGGT and loaded.image_size == 112
        state = loaded.model.state_dict()
        assert all(torch.equal(x, state[k]) for k, x in model.state_dict().items())
    assert loaded.sha256 == Checkpoint(tmp_path / "a.safetensors").document.source.sha256
    (index.parent / index.name.replace("index.json", "more")).write_bytes(b"")
    with pytest.raises(UserError, match="No such file"):
        next(index.parent.glob(f"*-00001-*{suffix}")).unlink()
        open_weights(index)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "module._orig_mod.", "module.model."),
        *("model.module.", "net.", "vggt.", "ema_model."),
    ],
)
def test_prefixes_are_recognised_and_said(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.build()
    torch.save({prefix + k: x for k, x in model.state_dict().items()}, tmp_path / "p.pt")
    done = vq.quantize_file(tmp_path / "p.pt", INT4, tmp_path / "q.safetensors")
    assert type(vq.load(tmp_path / "q.safetensors")) is TinyVGGT
    assert f"every name began with {prefix}, which is left out" in done.notes
    loaded = models.load_model(tmp_path / "p.pt")
    assert type(loaded.model) is TinyVGGT and prefix in loaded.source
    assert torch.equal(loaded.model.state_dict()["aggregator.camera_token"],
                       model.state_dict()["aggregator.camera_token"])  # fmt: skip


@pytest.mark.parametrize("key", ["model", "model_state_dict", "state_dict", "module"])
def test_the_weights_of_a_training_checkpoint(key: str, tmp_path: Path) -> None:
    state = tiny.build().state_dict()
    beside = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}}
    torch.save({**beside, key: {f"model.{k}": x for k, x in state.items()}}, tmp_path / "w.ckpt")
    assert open_weights(tmp_path / "w.ckpt").prefix == "model."
    torch.save({**beside, "elsewhere": state}, tmp_path / "w.ckpt")
    with pytest.raises(UserError, match=r"no state dict \(epoch, optimizer, elsewhere\)"):
        open_weights(tmp_path / "w.ckpt")


@pytest.mark.parametrize("inner", [None, "module"])
def test_other_weights_beside_those_that_are_taken_are_told(
    inner: str | None, tmp_path: Path
) -> None:
    """A moving average: which one was taken, and a line that makes a file of the other."""
    state = tiny.build().state_dict()
    mean = {k: x + 1 for k, x in state.items()}
    held = {"model": state, "ema": {inner: mean} if inner else mean, "scaler": {"s": torch.ones(1)}}
    torch.save(held, path := tmp_path / "w.ckpt")
    dotted = "ema.module" if inner else "ema"
    with pytest.warns(UserWarning, match=f"under model; {dotted} holds weights too") as caught:
        found = open_weights(path)
    assert torch.equal(found.tensor("aggregator.camera_token"), state["aggregator.camera_token"])
    [line] = [str(one.message).rpartition(": ")[2] for one in caught]
    other = tmp_path / "other.pt"
    exec(line.partition(" makes ")[0], {"torch": torch, "FILE": path, "OTHER": other})
    found = open_weights(other)
    assert torch.equal(found.tensor("aggregator.camera_token"), mean["aggregator.camera_token"])


def test_the_command_tells_of_other_weights_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Zoo().state_dict()
    torch.save({"state_dict": state, "ema": state}, path := tmp_path / "w.ckpt")
    words = ["quantize", str(path), "--all_layers", "--out", str(tmp_path / "q.safetensors")]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(words) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith(f"vggtquant: warning: {path}: took the weights under state_dict; ema ")


def test_a_pickled_model_is_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save(tiny.build(), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"torch\.save\(model\.state_dict\(\), FILE\)"):
        open_weights(tmp_path / "whole.pt")


def test_a_model_whose_only_part_is_called_model(tmp_path: Path) -> None:
    """What stands before all names is the user's own there, and load must find it again."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Zoo()

    torch.save(Wrapped().state_dict(), tmp_path / "w.pt")
    assert open_weights(tmp_path / "w.pt").prefix == ""
    vq.quantize_file(tmp_path / "w.pt", ALL, tmp_path / "a.safetensors")
    vq.load(tmp_path / "a.safetensors", model=Wrapped)


def test_one_file_of_another_name_in_a_directory(tmp_path: Path) -> None:
    torch.save(tiny.build().state_dict(), tmp_path / "epoch_12.pt")
    assert type(models.load_model(tmp_path).model) is TinyVGGT
    torch.save(tiny.build().state_dict(), tmp_path / "epoch_13.pt")
    with pytest.raises(UserError, match="holds 2 weights files; name the file"):
        models.load_model(tmp_path)


def test_kinds_are_told_by_content(tmp_path: Path) -> None:
    state = Zoo().state_dict()
    safetensors.torch.save_file(state, tmp_path / "a.bin")
    assert open_weights(tmp_path / "a.bin").shapes.keys() == state.keys()


def test_a_model_that_code_builds_has_weights_too(tmp_path: Path) -> None:
    found = open_weights("builtin:tiny")
    assert found.ordered and found.nbytes == sum(
        x.numel() * x.element_size() for x in tiny.build().state_dict().values()
    )
    assert found.sha256() == tensors.state_hash(tiny.build())
    done = vq.quantize_file("builtin:tiny", INT4, tmp_path / "a.safetensors")
    assert done.document.architecture == "builtin:tiny"
    model, report = vq.quantize_model(tiny.build(), INT4)
    assert [row.name for row in done.document.layers] == [row.name for row in report.quantized]
    assert done.document.skipped == {row.name: row.skipped for row in report.skipped}


def test_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sandbox without /proc pages are not given back, and everything else works."""
    torch.save(Zoo().state_dict(), tmp_path / "w.pt")
    vq.quantize_file(tmp_path / "w.pt", INT4, tmp_path / "a.safetensors")
    read_text = Path.read_text

    def absent(path: Path, *args: object, **kwargs: object) -> str:
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory")
        return read_text(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", absent)
    vq.quantize_file(tmp_path / "w.pt", INT4, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_command_without_proc(tmp_path: Path) -> None:
    torch.save(Zoo().state_dict(), tmp_path / "w.pt")
    command = f"{sys.executable} -m vggtquant quantize {tmp_path / 'w.pt'} --all_layers"
    command = f"mount -t tmpfs none /proc && {command} --out {tmp_path / 'a.safetensors'}"
    try:
        run = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True)
    except FileNotFoundError:
        pytest.skip("unshare is not here")
    if b"mount" in run.stderr or b"unshare" in run.stderr:
        pytest.skip("mounting over /proc is not permitted here")
    assert run.returncode == 0, run.stderr


def test_names_without_a_bias_are_linear_or_named(tmp_path: Path) -> None:
    known = ("q_proj", "v_proj", "o_proj", "gate_proj")
    model = nn.ModuleDict({n: nn.Linear(64, 64, bias=False) for n in (*known, "mystery")})
    torch.save(model.state_dict(), tmp_path / "n.pt")
    config = vq.QuantizationConfig("a", "int8_per_channel_sym", skip_first_last=False)
    document = vq.quantize_file(tmp_path / "n.pt", config, tmp_path / "n.safetensors").document
    assert [layer.name for layer in document.layers] == list(known)
    assert "include it by its name" in document.skipped["mystery"]
    document = vq.quantize_file(
        tmp_path / "n.pt", config, tmp_path / "n.safetensors", include=["mystery"]
    ).document
    assert [layer.name for layer in document.layers] == ["mystery"]


def test_adapters_are_left_alone_and_named(tmp_path: Path) -> None:
    state = {
        "a.base_layer.weight": torch.randn(64, 64),
        "a.base_layer.bias": torch.zeros(64),
        "a.lora_A.default.weight": torch.randn(8, 64),
        "a.lora_B.default.weight": torch.randn(64, 8),
    }
    torch.save(state, tmp_path / "n.pt")
    config = vq.QuantizationConfig("a", "int8_per_channel_sym", skip_first_last=False)
    document = vq.quantize_file(tmp_path / "n.pt", config, tmp_path / "n.safetensors").document
    assert [layer.name for layer in document.layers] == ["a.base_layer"]
    assert all("an adapter" in document.skipped[f"a.lora_{x}.default"] for x in "AB")


def test_a_hub_repository_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--me--tiny"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    sharded(tiny.build().state_dict(), snapshot, suffix=".safetensors")
    assert type(models.load_model("me/tiny").model) is TinyVGGT
    next(snapshot.glob("*00002*.safetensors")).unlink()
    with pytest.raises(UserError, match="no copy in the hub cache"):
        models.load_model("me/tiny")


def test_pages_of_a_mapped_tensor_go_and_come_back(tmp_path: Path) -> None:
    """What was written to them stays; memory of no file is left alone."""
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.arange(1 << 20, dtype=torch.float32)}, path)
    mapped = Container(path).tensor("w")
    mapped[5000] = -1.0
    want, others = mapped.clone(), torch.ones(1 << 20)
    before = resident(path)
    tensors.page_out(mapped)
    tensors.page_out(others)
    after = resident(path)
    assert torch.equal(mapped, want) and bool((others == 1).all())
    assert before > 4000 and after < before / 2, (before, after)


def resident(path: Path) -> int:
    """KB of a mapped file that are in memory."""
    here, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found
