# SPDX-License-Identifier: Apache-2.0
"""quantize_file and what surrounds it: the same codes as in memory, budgets, interruptions, CLI."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import checkpoints
import pytest
import safetensors.torch
import torch
from checkpoints import Zoo
from torch import nn

import vggtquant as vq
from vggtquant import UserError
from vggtquant.checkpoint import budget, inspection
from vggtquant.checkpoint.document import Checkpoint, tensors_of
from vggtquant.checkpoint.storage import load, save
from vggtquant.checkpoint.streaming import quantize_file
from vggtquant.commands import cli
from vggtquant.selection import Request
from vggtquant.tiny.model import TinyVGGT
from vggtquant.weights import linears
from vggtquant.weights.tensors import open_weights

ASYMMETRIC = vq.QuantizationConfig(
    "asymmetric", "int4_group", bits=4, symmetric=False, group_size=32
)
ALL = replace(vq.get_config("INT4_Group_32"), skip_first_last=False)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Zoo's float weights, in the order of its modules."""
    torch.save(Zoo().state_dict(), tmp_path / "zoo.pt")
    return tmp_path / "zoo.pt"


def in_memory(model: nn.Module, config: str | vq.QuantizationConfig) -> dict[str, torch.Tensor]:
    """The tensors of the layers that quantize_model swaps."""
    vq.quantize_model(model, config)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, vq.QuantizedLinear)}
    return {k: x for n, m in layers.items() for k, x in tensors_of(n, m.qtensor()).items()}


def same(path: Path, wanted: dict[str, torch.Tensor]) -> bool:
    state = safetensors.torch.load_file(path)
    parts = {name: x for name, x in state.items() if ".weight_" in name}
    return parts.keys() == wanted.keys() and all(torch.equal(parts[k], wanted[k]) for k in parts)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
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


# ---- mixed precision -----------------------------------------------------------------------------


def test_within_a_budget_everything_else_is_worse() -> None:
    costs = {
        "a": budget.Cost(40, 80, 9.0),
        "b": budget.Cost(40, 80, 1.0),
        "c": budget.Cost(10, 20, 1.0),
        "never": budget.Cost(30, 30, 0.0),
    }
    assert budget.within(costs, 210) == dict.fromkeys(costs, 8)
    assert budget.within(costs, 200)["b"] == 4
    assert budget.within(costs, 165) == {"a": 8, "b": 4, "c": 4, "never": 8}
    assert budget.within(costs, 120)["a"] == 4
    with pytest.raises(UserError, match="at 4 bits"):
        budget.within(costs, 119)


def test_max_bytes(zoo: Path, tmp_path: Path) -> None:
    config = vq.get_config("INT4_Group_32_A8")
    found = open_weights(zoo)
    small = quantize_file(found, config, tmp_path / "small.safetensors").nbytes
    most = small + 1000
    plan = budget.from_bytes(found, config, most)
    assert set(plan.bits.values()) == {4, 8}
    done = quantize_file(found, plan.config, tmp_path / "mixed.safetensors", max_bytes=most)
    assert small < done.nbytes <= most
    layers = Checkpoint(tmp_path / "mixed.safetensors").document.layers
    assert {layer.name: layer.spec.bits for layer in layers} == plan.bits
    assert plan.config.quantize_activations
    # The same config gives the same codes in memory.
    assert same(tmp_path / "mixed.safetensors", in_memory(Zoo(), plan.config))
    with pytest.raises(UserError, match="--max_bytes 2000: "):
        budget.from_bytes(found, config, 2000)
    with pytest.raises(UserError, match="not written"):
        quantize_file(found, config, tmp_path / "x.safetensors", max_bytes=small - 1)


def test_sensitivity_decides(zoo: Path) -> None:
    found = open_weights(zoo)
    names = list(linears.choose(found, Request(vq.get_config("INT4_Group_32"))).chosen)
    costs = dict.fromkeys(names, 1.0)
    small = budget.from_bytes(found, "INT4_Group_32", 34_500, sensitivity=costs | {"wide": 1e9})
    assert small.bits["wide"] == 8
    small = budget.from_bytes(found, "INT4_Group_32", 34_500, sensitivity=costs | {"wide": 0.0})
    assert small.bits["wide"] == 4
    with pytest.raises(UserError, match="sensitivity of 1 layers is missing"):
        budget.from_bytes(found, "INT4_Group_32", 10**6, sensitivity={n: 1.0 for n in names[1:]})


def test_bits_by_name(zoo: Path, tmp_path: Path) -> None:
    found = open_weights(zoo)
    wanted = {"blocks.0": 8, "blocks.*": "float", "w*": 8}
    plan = budget.from_bits(found, "INT4_Group_32", wanted)
    quantize_file(found, plan.config, tmp_path / "a.safetensors", exclude=plan.exclude)
    document = Checkpoint(tmp_path / "a.safetensors").document
    bits = {layer.name: layer.spec.bits for layer in document.layers}
    assert bits == {"blocks.0": 8, "wide": 8, "qkv": 4, "narrow": 4}
    assert document.skipped["blocks.2"] == "excluded"
    for nonsense in ({"wide": 5}, {"wide": True}, {"nobody": 4}):
        with pytest.raises(UserError, match="bits"):
            budget.from_bits(found, "INT4_Group_32", nonsense)
    with pytest.raises(UserError, match="starts from an INT4_Group scheme"):
        budget.from_bits(found, "INT8_Per_Channel_Symmetric", {})


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"sensitivity": {"a": 1, "b": 0.5}, "other": 3}')
    assert budget.read_sensitivity(path) == {"a": 1.0, "b": 0.5}
    for words in ("", "[]", '{"a": "x"}', '{"a": -1}', '{"a": NaN}', "[" * 100_000):
        path.write_text(words)
        with pytest.raises(UserError):
            budget.read_sensitivity(path)
    with pytest.raises(UserError):
        budget.read_sensitivity(tmp_path / "absent.json")
    for words in ("x", "-1", "0", "1e30", "nan", "M"):
        with pytest.raises(UserError, match="number of bytes"):
            budget.parse_bytes(words)
    assert budget.parse_bytes("763Mi") == 763 * 2**20 and budget.parse_bytes("1.5GB") == 1.5e9


# ---- looking into files --------------------------------------------------------------------------


def test_info(zoo: Path, tmp_path: Path) -> None:
    done = quantize_file(zoo, ASYMMETRIC, tmp_path / "a.safetensors")
    assert "float group scales in 1 of 5 layers" in done.notes[1] and "narrow" in done.notes[1]
    text = "\n".join(inspection.info(tmp_path / "a.safetensors", layers=True))
    for words in ("asymmetric", "zoo.pt", "bfloat16", "with float scales", "130 x 24", "fit"):
        assert words in text
    header, data = checkpoints.read(tmp_path / "a.safetensors")
    checkpoints.write(tmp_path / "b.safetensors", header, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        inspection.info(tmp_path / "b.safetensors")


def test_dequantize(config: vq.QuantizationConfig, zoo: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "a.safetensors", tmp_path / "float.safetensors"
    if config.convolutions != "float":
        pytest.skip("Zoo's convolutions are packed in memory only")
    quantize_file(zoo, config, packed)
    inspection.dequantize(packed, out)
    state = safetensors.torch.load_file(out)
    model = load(packed, model=Zoo)
    plain = Zoo()
    plain.load_state_dict(state)
    assert {k: (x.dtype, x.shape) for k, x in state.items()} == {
        k: (x.dtype, x.shape) for k, x in Zoo().state_dict().items()
    }
    assert torch.equal(state["wide.weight"], model.wide.weight)
    assert torch.equal(state["norm.weight"], model.norm.weight)
    with pytest.raises(UserError, match="the source itself"):
        inspection.dequantize(packed, packed)


def test_diff(zoo: Path, tmp_path: Path) -> None:
    four, eight = tmp_path / "4.safetensors", tmp_path / "8.safetensors"
    quantize_file(zoo, "INT4_Group_32", four)
    quantize_file(zoo, "INT8_Per_Channel_Symmetric", eight)
    assert inspection.diff(four, four).identical and "identical" in str(inspection.diff(zoo, zoo))
    found = inspection.diff(zoo, four)
    errors = {row.name: row.relative_l2 for row in found.rows}
    assert 0.02 < errors["wide.weight"] < 0.2 and 0 < errors["wide.bias"] < 0.004
    assert not found.identical and not (found.only_a or found.only_b or found.shapes)
    assert {row.name for row in inspection.diff(eight, four).rows} == {
        f"{name}.weight" for name in ("blocks.0", "blocks.2", "qkv", "wide", "narrow")
    }
    inspection.dequantize(four, tmp_path / "f.safetensors")
    assert all(
        row.relative_l2 == 0 for row in inspection.diff(four, tmp_path / "f.safetensors").rows
    )
    state = Zoo().state_dict()
    state["more"], state["norm.weight"] = torch.ones(1), torch.ones(3)
    del state["norm.bias"]
    torch.save(state, tmp_path / "other.pt")
    found = inspection.diff(zoo, tmp_path / "other.pt")
    assert (found.only_a, found.only_b) == (["norm.bias"], ["more"]) and len(found.shapes) == 1


# ---- the command ---------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_commands(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.safetensors"
    code, text, err = run(capsys, "quantize", zoo, "--scheme", "INT4_Group_32", "--out", out)
    assert code == 0 and not err
    assert "5 layers quantized" in text and "non-commercial" in text and "bits a weight" in text
    code, text, _ = run(capsys, "info", out)
    assert code == 0 and "INT4_Group_32" in text
    code, text, _ = run(capsys, "dequantize", out, "--out", tmp_path / "f.safetensors")
    assert code == 0 and "wrote" in text
    code, text, _ = run(capsys, "diff", zoo, out)
    assert code == 0 and "differ" in text
    code, _, err = run(capsys, "info", zoo)
    assert code == 2 and err.count("\n") == 1


def test_command_for_models_that_code_builds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    words = ("quantize", "checkpoints:Zoo", "--scheme", "INT4_Group_32", "--out", out)
    code, text, err = run(capsys, *words)
    assert code == 0, err
    assert "5 layers quantized" in text
    assert same(out, in_memory(Zoo(), "INT4_Group_32"))
    code, text, err = run(capsys, *words, "--max_bytes", "34.5k")
    assert code == 0 and "at 8 bits" in text and out.stat().st_size <= 34_500, err


def test_command_with_a_budget(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bits = tmp_path / "a.safetensors", tmp_path / "bits.json"
    common = ("quantize", zoo, "--scheme", "INT4_Group_32", "--out", out)
    code, text, err = run(capsys, *common, "--max_bytes", "34.5k")
    assert code == 0 and "at 8 bits" in text and out.stat().st_size <= 34_500, err
    bits.write_text('{"bits": {"wide": 8, "blocks.*": "float"}}')
    code, text, _ = run(capsys, *common, "--bits", bits)
    assert code == 0 and "1 layers at 8 bits, 2 at 4" in text
    for words in (["--max_bytes", "1M", "--bits", bits], ["--sensitivity", bits]):
        code, _, err = run(capsys, *common, *words)
        assert code == 2 and err.count("\n") == 1


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


def test_pages_are_given_back(tmp_path: Path) -> None:
    """Reading 200 MB costs the memory of a few tensors."""
    state = {}
    for i in range(25):
        state[f"layers.{i}.weight"] = torch.randn(1024, 2048)
        state[f"layers.{i}.bias"] = torch.randn(1024)
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    config = replace(vq.get_config("INT8_Per_Channel_Symmetric"), skip_first_last=False)
    del state
    for name in ("a.safetensors", "a.pt"):
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
        os.remove(tmp_path / f"{name}.out")


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
