# SPDX-License-Identifier: Apache-2.0
"""quantize_file and what surrounds it: the same codes as in memory, interruptions, refusals."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints import Zoo
from everywhere import by_default
from torch import nn
from zoo import in_memory, same

import vggtquant as vq
from vggtquant import UserError
from vggtquant.checkpoint.document import Checkpoint
from vggtquant.checkpoint.storage import load, save
from vggtquant.checkpoint.streaming import quantize_file
from vggtquant.commands import cli
from vggtquant.selection import Request
from vggtquant.tiny.model import TinyVGGT
from vggtquant.weights import linears
from vggtquant.weights.tensors import open_weights

ALL = replace(vq.get_config("INT4_Group_32"), skip_first_last=False)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Zoo's float weights, in the order of its modules."""
    torch.save(Zoo().state_dict(), tmp_path / "zoo.pt")
    return tmp_path / "zoo.pt"


# ---- the same as in memory -----------------------------------------------------------------------


def test_same_layers_and_codes_as_in_memory(
    config: vq.QuantizationConfig, zoo: Path, tmp_path: Path
) -> None:
    if config.convolutions != "float":  # a file does not tell them, and Zoo is nobody's model
        assert "packs convolutions, which takes the model" in refused(zoo, tmp_path, config)
        return
    done = quantize_file(zoo, config, tmp_path / "a.safetensors")
    model = Zoo()
    assert same(tmp_path / "a.safetensors", in_memory(model, config))
    assert done.layers == sum(isinstance(m, vq.QuantizedLinear) for m in model.modules())
    assert done.nbytes == (tmp_path / "a.safetensors").stat().st_size


def test_the_reasons_are_those_of_quantize_model(zoo: Path) -> None:
    kwargs = {"include": ["blocks.*", "wide", "last", "attn*"], "exclude": ["wide"]}
    _, report = vq.quantize_model(Zoo(), "INT4_Group_32", **kwargs)
    request = Request(vq.get_config("INT4_Group_32"), **kwargs)
    choice = linears.choose(open_weights(zoo), request)
    assert list(choice.chosen) == [layer.name for layer in report.quantized]
    assert "embedding" in choice.skipped.pop("table")  # a file does not say what it is
    assert choice.skipped == {layer.name: layer.skipped for layer in report.skipped}


def test_it_loads_as_what_was_quantized_in_memory(zoo: Path, tmp_path: Path) -> None:
    quantize_file(zoo, "INT4_Group_32_A8", tmp_path / "a.safetensors", float_dtype="float32")
    model = Zoo().eval()
    vq.quantize_model(model, "INT4_Group_32_A8")
    x = torch.randn(5, 16)
    assert torch.equal(load(tmp_path / "a.safetensors", model=Zoo)(x), model(x))


def test_vggt_is_known_by_its_names(tmp_path: Path) -> None:
    model = TinyVGGT()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    quantize_file(tmp_path / "tiny.safetensors", "INT4_Group_64", tmp_path / "a.safetensors")
    assert same(tmp_path / "a.safetensors", in_memory(model, "INT4_Group_64"))
    assert type(vq.load(tmp_path / "a.safetensors")) is TinyVGGT


def test_a_sorted_file_does_not_tell_first_and_last(tmp_path: Path) -> None:
    safetensors.torch.save_file(Zoo().state_dict(), tmp_path / "zoo.safetensors")
    with pytest.raises(UserError, match="--all_layers"):
        quantize_file(tmp_path / "zoo.safetensors", "INT4_Group_32", tmp_path / "a.safetensors")
    quantize_file(tmp_path / "zoo.safetensors", ALL, tmp_path / "a.safetensors")
    assert same(tmp_path / "a.safetensors", in_memory(Zoo(), ALL))


def test_runs_are_equal_byte_for_byte(zoo: Path, tmp_path: Path, isa: str) -> None:
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        quantize_file(zoo, "INT4_Group_32", tmp_path / f"{threads}.safetensors")
    torch.set_num_threads(before)
    a, b = (tmp_path / f"{threads}.safetensors" for threads in (1, 3))
    assert a.read_bytes() == b.read_bytes()


def test_shards(zoo: Path, tmp_path: Path) -> None:
    state = Zoo().state_dict()
    names = list(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    folder = tmp_path / "sharded"
    folder.mkdir()
    for shard, held in shards.items():
        safetensors.torch.save_file({name: state[name] for name in held}, folder / shard)
    index = folder / "model.safetensors.index.json"
    where = {name: shard for shard, held in shards.items() for name in held}
    index.write_text(json.dumps({"weight_map": where}))
    for source in (folder, index):
        quantize_file(source, ALL, tmp_path / "out.safetensors")
        assert same(tmp_path / "out.safetensors", in_memory(Zoo(), ALL))
    index.write_text(json.dumps({"weight_map": {**where, "more": "a.safetensors"}}))
    with pytest.raises(UserError, match="names tensor more, which no shard has"):
        quantize_file(folder, ALL, tmp_path / "out.safetensors")
    index.write_text(json.dumps({"weight_map": {"x": "../zoo.pt"}}))
    with pytest.raises(UserError, match="files beside it"):
        quantize_file(folder, ALL, tmp_path / "out.safetensors")


def test_a_hub_id_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "hub" in refused("facebook/VGGT-1B", tmp_path)
    cache = tmp_path / "hub" / "models--facebook--VGGT-1B"
    snapshot = cache / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(snapshot.name)
    torch.save(Zoo().state_dict(), cache / "blob")
    (snapshot / "model.pt").symlink_to(cache / "blob")
    (snapshot / "config.json").write_text('{"img_size": 224, "other": "words"}')
    quantize_file("facebook/VGGT-1B", "INT4_Group_32", tmp_path / "a.safetensors")
    document = Checkpoint(tmp_path / "a.safetensors").document
    assert document.source.name == "facebook/VGGT-1B" and "CC BY-NC" in document.source.licence
    assert document.settings == {"img_size": 224}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_sources(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {k: x.to(dtype) if x.is_floating_point() else x for k, x in Zoo().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    quantize_file(tmp_path / "a.pt", "INT4_Group_32", tmp_path / "a.safetensors")
    model = Zoo()
    model.load_state_dict(state)
    assert same(tmp_path / "a.safetensors", in_memory(model, "INT4_Group_32"))


def test_files_of_old_torch_and_of_training(tmp_path: Path) -> None:
    state = Zoo().state_dict()
    old = tmp_path / "old.pt"
    torch.save(state, old, _use_new_zipfile_serialization=False)
    torch.save({"model": {f"module.{k}": x for k, x in state.items()}}, tmp_path / "run.pt")
    for name in ("old.pt", "run.pt"):
        quantize_file(tmp_path / name, "INT4_Group_32", tmp_path / "a.safetensors")
        assert same(tmp_path / "a.safetensors", in_memory(Zoo(), "INT4_Group_32"))


def test_tied_weights_stay_float(tmp_path: Path) -> None:
    model = Zoo()
    model.twin = nn.Linear(24, 130)
    model.twin.weight = model.wide.weight
    torch.save(model.state_dict(), tmp_path / "a.pt")
    quantize_file(tmp_path / "a.pt", "INT4_Group_32", tmp_path / "a.safetensors")
    assert same(tmp_path / "a.safetensors", in_memory(model, "INT4_Group_32"))


def test_the_source_is_written_down(zoo: Path, tmp_path: Path) -> None:
    import hashlib

    quantize_file(zoo, "INT4_Group_32", tmp_path / "a.safetensors")
    source = Checkpoint(tmp_path / "a.safetensors").document.source
    assert source.name == "zoo.pt" and source.nbytes == zoo.stat().st_size
    assert source.sha256 == hashlib.sha256(zoo.read_bytes()).hexdigest()
    assert "non-commercial" in source.licence


# ---- refusals ------------------------------------------------------------------------------------


def refused(source: object, tmp_path: Path, config: object = "INT4_Group_32") -> str:
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError) as caught:
        quantize_file(source, config, out)  # type: ignore[arg-type]
    assert not out.exists() and not list(tmp_path.glob("*.partial"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nonfinite_weights_are_named(tmp_path: Path) -> None:
    model = Zoo()
    with torch.no_grad():
        model.wide.weight[3, 3] = torch.nan
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert "layer wide: 1 values are NaN or infinite" in refused(tmp_path / "a.pt", tmp_path)


def test_weights_near_the_largest_float(tmp_path: Path) -> None:
    model = Zoo()
    with torch.no_grad():
        model.wide.weight[0] = torch.finfo(torch.float32).max
        model.qkv.weight[:] = 0
        model.norm.bias[:] = 0
    torch.save(model.state_dict(), tmp_path / "a.pt")
    for scheme in ("INT4_Group_32", "INT8_Per_Channel_Symmetric"):
        quantize_file(tmp_path / "a.pt", scheme, tmp_path / "a.safetensors")
        load(tmp_path / "a.safetensors", model=Zoo)


def test_sources_that_are_none(zoo: Path, tmp_path: Path) -> None:
    assert "unknown model" in refused(tmp_path / "nothing", tmp_path)
    assert "No such file" in refused(tmp_path / "nothing.safetensors", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no weights in" in refused(tmp_path / "empty", tmp_path)
    (tmp_path / "a.pt").write_bytes(b"nonsense")
    assert "no checkpoint" in refused(tmp_path / "a.pt", tmp_path)
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "no.safetensors")
    assert "no Linear layer" in refused(tmp_path / "no.safetensors", tmp_path)
    quantize_file(zoo, "INT4_Group_32", tmp_path / "packed.safetensors")
    assert "quantized already" in refused(tmp_path / "packed.safetensors", tmp_path)
    assert "quantizes nothing" in refused(zoo, tmp_path, "Baseline_BF16")
    assert "nearest" in refused(zoo, tmp_path, "INT4_Group_127")


def test_a_truncated_source(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(TinyVGGT(dim=32).state_dict(), path)
    whole = path.read_bytes()
    for at in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at])
        refused(path, tmp_path)


def test_the_source_is_never_replaced(zoo: Path, tmp_path: Path) -> None:
    before = zoo.read_bytes()
    (tmp_path / "link.safetensors").hardlink_to(zoo)
    with pytest.raises(UserError, match="is the source itself"):
        quantize_file(zoo, "INT4_Group_32", tmp_path / "link.safetensors")
    assert zoo.read_bytes() == before


# ---- interruptions -------------------------------------------------------------------------------


SLOW = """
import sys, time
import vggtquant.checkpoint.streaming as streaming
from vggtquant.commands import cli
make = streaming._make
def slow(*args):
    time.sleep(0.05)
    return make(*args)
streaming._make = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "number", by_default([signal.SIGINT, signal.SIGTERM, signal.SIGKILL], signal.SIGINT)
)
def test_interrupted(number: signal.Signals, zoo: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "a.safetensors", tmp_path / "a.safetensors.partial"
    out.write_bytes(b"old")
    arguments = ["quantize", str(zoo), "--scheme", "INT4_Group_32", "--out", str(out)]
    run = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size < 9000:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == {2: 130, 15: 143, 9: -9}[number] and b"Traceback" not in errors
    assert out.read_bytes() == b"old"
    if number == signal.SIGKILL:
        with pytest.raises(UserError):
            load(partial, model=Zoo)
    else:
        assert not partial.exists()
    assert cli.main(arguments) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "zoo.pt"]


# ---- the command ---------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_packed_files_are_models(tmp_path: Path) -> None:
    from vggtquant import models

    model = TinyVGGT().eval()
    vq.quantize_model(model, "INT4_Group_64")
    save(model, tmp_path / "a.safetensors")
    loaded = models.load_model(tmp_path / "a.safetensors")
    assert loaded.image_size == 112 and not loaded.model.training
    images = torch.rand(2, 3, 28, 28)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images)["depth"], model(images)["depth"])


@pytest.mark.parametrize("name", by_default(["a.safetensors", "a.pt"], "a.safetensors"))
def test_pages_are_given_back(name: str, tmp_path: Path) -> None:
    """Reading 200 MB costs the memory of a few tensors."""
    state = {}
    for i in range(25):
        state[f"layers.{i}.weight"] = torch.randn(1024, 2048)
        state[f"layers.{i}.bias"] = torch.randn(1024)
    save = safetensors.torch.save_file if name.endswith("s") else torch.save
    save(state, tmp_path / name)
    config = replace(vq.get_config("INT8_Per_Channel_Symmetric"), skip_first_last=False)
    del state
    program = (
        "import sys, torch, vggtquant as vq\n"
        "from vggtquant.checkpoint.streaming import quantize_file\n"
        "def kilobytes(key): return next(int(line.split()[1]) for line in "
        "open('/proc/self/status') if line.startswith(key))\n"
        "torch.set_num_threads(2); vq.isa(); before = kilobytes('VmRSS')\n"
        "config = vq.QuantizationConfig.from_dict(eval(sys.argv[2]))\n"
        "quantize_file(sys.argv[1], config, sys.argv[1] + '.out')\n"
        "print(kilobytes('VmHWM') - before)"
    )
    arguments = [str(tmp_path / name), repr(config.to_dict())]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 140_000, name  # KB; the file has 200 MB


def test_gpt_2_s_transposed_weights_are_no_linears(tmp_path: Path) -> None:
    """Its square projections look like a Linear's; the others of their name tell."""
    shapes = {"attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 64)}
    shapes |= {"mlp.c_proj": (64, 16)}
    state = {f"h.0.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"h.0.{name}.bias": torch.randn(shape[1]) for name, shape in shapes.items()}
    state |= {"head.weight": torch.randn(16, 16), "head.bias": torch.randn(16)}
    torch.save(state, tmp_path / "gpt2.pt")
    config = vq.QuantizationConfig("all", "int8_per_channel_sym", skip_first_last=False)
    quantize_file(tmp_path / "gpt2.pt", config, tmp_path / "gpt2.safetensors")
    document = Checkpoint(tmp_path / "gpt2.safetensors").document
    assert [layer.name for layer in document.layers] == ["head"]
