# SPDX-License-Identifier: Apache-2.0
"""save, load and the file between them: round trips, golden files, and every fault we know."""

import hashlib
import json
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoints import Zoo
from torch import nn

import vggtquant as vq
from vggtquant import UserError
from vggtquant.checkpoint.document import Checkpoint
from vggtquant.checkpoint.storage import load, save
from vggtquant.tiny.model import TinyVGGT
from vggtquant.weights import container

DATA = Path(__file__).parents[1] / "data"


def quantized(config: str | vq.QuantizationConfig, model: nn.Module | None = None) -> nn.Module:
    model = model or Zoo().eval()
    vq.quantize_model(model, config)
    return model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    save(quantized("INT4_Group_32"), tmp_path / "zoo.safetensors")
    return tmp_path / "zoo.safetensors"


def state_bits(model: nn.Module) -> dict[str, bytes]:
    state = model.state_dict()
    return {name: x.reshape(-1).view(torch.uint8).numpy().tobytes() for name, x in state.items()}


# ---- round trips ---------------------------------------------------------------------------------


def test_every_scheme_comes_back_bit_for_bit(config: vq.QuantizationConfig, tmp_path: Path) -> None:
    model = quantized(config)
    save(model, tmp_path / "a.safetensors", float_dtype="float32")
    back = load(tmp_path / "a.safetensors", model=Zoo)
    assert state_bits(back) == state_bits(model)
    x = torch.randn(3, 16)
    assert torch.equal(back(x), model(x))
    assert not back.training
    for name, layer in back.named_modules():
        if isinstance(layer, vq.QuantizedLinear):
            was = model.get_submodule(name)
            assert (layer.config, layer.spec, layer.name) == (config, was.spec, name)


def test_mixed_precision_and_float_scales_come_back(tmp_path: Path) -> None:
    config = vq.QuantizationConfig(
        "mixed", "mixed_precision", group_size=32, symmetric=False, sensitive_layers=("wide",)
    )
    model = quantized(config)
    specs = {name: m.spec for name, m in model.named_modules() if hasattr(m, "spec")}
    assert {spec.bits for spec in specs.values()} == {4, 8}
    assert {spec.two_level for spec in specs.values() if spec.bits == 4} == {True, False}
    save(model, tmp_path / "a.safetensors", float_dtype="float32")
    back = load(tmp_path / "a.safetensors", model=Zoo())
    assert {n: m.spec for n, m in back.named_modules() if hasattr(m, "spec")} == specs
    assert state_bits(back) == state_bits(model)


def test_layers_of_two_configs_come_back(tmp_path: Path) -> None:
    model = Zoo()
    vq.quantize_model(model, "INT4_Group_32_A8", include=["wide", "blocks.*"])
    vq.quantize_model(model, "INT8_Per_Tensor_Asymmetric", include=["qkv", "narrow"])
    save(model, tmp_path / "a.safetensors")
    back = load(tmp_path / "a.safetensors", model=Zoo)
    configs = {n: m.config.name for n, m in back.named_modules() if hasattr(m, "spec")}
    assert configs["wide"] == "INT4_Group_32_A8"
    assert configs["qkv"] == "INT8_Per_Tensor_Asymmetric"


def test_the_file_is_the_same_on_every_instruction_set(isa: str, tmp_path: Path) -> None:
    config = vq.QuantizationConfig(
        "mixed", "mixed_precision", group_size=32, sensitive_layers=("wide",)
    )
    save(quantized(config), tmp_path / "here.safetensors")
    here = vq.isa()
    vq.use_isa("scalar")
    save(quantized(config), tmp_path / "scalar.safetensors")
    vq.use_isa(here)
    ours = (tmp_path / "here.safetensors").read_bytes()
    assert ours == (tmp_path / "scalar.safetensors").read_bytes()


def test_the_file_is_a_plain_state_dict(file: Path) -> None:
    state = safetensors.torch.load_file(file)
    model = quantized("INT4_Group_32")
    assert state.keys() == model.state_dict().keys()
    model.load_state_dict(state)  # widens the bfloat16 rest


def test_a_model_with_memory_keeps_its_parameters(file: Path) -> None:
    model = Zoo()
    norm, bias = model.norm.weight, model.wide.bias
    assert load(file, model=model) is model
    assert model.norm.weight is norm and model.wide.bias is bias
    assert model.steps.dtype == torch.int64


def test_float_linear_weights_are_never_allocated(file: Path) -> None:
    seen = []

    def build() -> nn.Module:
        model = Zoo()
        seen.extend(p.is_meta for p in model.parameters())
        return model

    model = load(file, model=build)
    assert all(seen) and not any(p.is_meta for p in model.parameters())


def test_the_file_may_go_once_loaded(file: Path) -> None:
    model = load(file, model=Zoo)
    before = state_bits(model)
    file.write_bytes(bytes(file.stat().st_size))
    assert state_bits(model) == before


def test_tiny_needs_no_model(tmp_path: Path) -> None:
    model = quantized("INT4_Group_64", TinyVGGT().eval())
    save(model, tmp_path / "tiny.safetensors", float_dtype="float32")
    back = vq.load(tmp_path / "tiny.safetensors")
    images = torch.rand(1, 2, 3, 28, 28)
    with torch.inference_mode():
        ours, theirs = back(images), model(images)
    assert all(torch.equal(ours[key], theirs[key]) for key in ("depth", "pose_enc"))


def test_names_and_settings_of_vggt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = checkpoints.fake_vggt(monkeypatch)
    model = kind(img_size=28, enable_track=False).eval()
    save(quantized("INT4_Group_32", model), tmp_path / "a.safetensors")
    document = Checkpoint(tmp_path / "a.safetensors").document
    assert (document.architecture, document.settings["img_size"]) == ("vggt", 28)
    back = vq.load(tmp_path / "a.safetensors")
    assert isinstance(back, kind) and back.track_head is None and back.img_size == 28


def test_bfloat16_is_rounded_once_and_its_cost_is_told(tmp_path: Path) -> None:
    model = Zoo()
    with torch.no_grad():
        model.norm.weight[0] = 3.4e38  # bfloat16 has no such number
    quantized("INT4_Group_32", model)
    saved = save(model, tmp_path / "a.safetensors", float_dtype="bfloat16")
    back = load(tmp_path / "a.safetensors", model=Zoo)
    assert torch.equal(back.pos_embed, model.pos_embed.bfloat16().float())
    assert torch.equal(back.norm.weight, model.norm.weight)
    assert torch.equal(back.mask, model.mask)
    assert saved.narrowed is not None and saved.narrowed.worst in model.state_dict()
    assert 1e-4 < saved.narrowed.relative_l2 < 4e-3
    assert "bfloat16" in str(saved)
    assert save(model, tmp_path / "b.safetensors").narrowed is None


def test_short_float_models_stay_short(tmp_path: Path) -> None:
    model = Zoo()
    model.norm.half()
    model.table.bfloat16()
    save(quantized("INT4_Group_32", model), tmp_path / "a.safetensors", float_dtype="bfloat16")
    state = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert state["norm.weight"].dtype == torch.float16
    assert state["table.weight"].dtype == torch.bfloat16


def test_every_tensor_is_aligned(file: Path) -> None:
    for entry in container.Container(file).entries.values():
        assert entry.start % entry.dtype.itemsize == 0


def test_misaligned_tensors_are_read_too(tmp_path: Path) -> None:
    data = np.arange(9, dtype=np.uint8).tobytes() + np.float32([1, 2]).tobytes()
    header = {
        "a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [9, 17]},
    }
    path = checkpoints.write(tmp_path / "a.safetensors", header, data)
    assert container.Container(path).tensor("b").tolist() == [1, 2]


# ---- golden files: what was written once is read for ever ----------------------------------------

GOLDEN = json.loads((DATA / "checkpoints.json").read_text()) if DATA.is_dir() else {}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str, isa: str) -> None:
    """Every version ever written loads, to the same codes and floats."""
    model = load(DATA / name, model=Zoo)
    digest = hashlib.sha256()
    for key, bits in sorted(state_bits(model).items()):
        digest.update(key.encode() + bits)
    assert digest.hexdigest() == GOLDEN[name]["state"]
    values = hashlib.sha256()
    for _, layer in model.named_modules():
        if isinstance(layer, vq.QuantizedLinear):
            values.update(layer.weight.numpy().tobytes())
    assert values.hexdigest() == GOLDEN[name]["values"]


def test_golden_files_of_every_version() -> None:
    versions = {GOLDEN[name]["format"] for name in GOLDEN}
    from vggtquant.checkpoint import document as checkpoint

    assert versions == set(checkpoint._READERS)


# ---- faults --------------------------------------------------------------------------------------


def refused(path: Path, model: Callable[[], nn.Module] | nn.Module = Zoo) -> str:
    """The one line that load says."""
    with pytest.raises(UserError) as caught:
        load(path, model=model)
    words = str(caught.value)
    assert words and "\n" not in words
    return words


def test_truncated_anywhere(file: Path) -> None:
    whole = file.read_bytes()
    rng = random.Random(0)
    for at in [0, 1, 7, 8, 9, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(200))]:
        file.write_bytes(whole[:at])
        refused(file)
    file.write_bytes(whole + b"\0")
    assert "too long" in refused(file)
    file.write_bytes(whole)
    load(file, model=Zoo)


def test_a_bit_flipped_anywhere(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    data = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    places = [*range(12), *(rng.randrange(data) for _ in range(150))]
    places += [rng.randrange(data, len(whole)) for _ in range(150)] + [len(whole) - 1]
    for at in places:
        bit = 1 << rng.randrange(8)
        whole[at] ^= bit
        file.write_bytes(whole)
        refused(file)
        whole[at] ^= bit


def test_a_damaged_tensor_is_named(file: Path) -> None:
    header, data = checkpoints.read(file)
    start, end = header["wide.weight_codes"]["data_offsets"]
    checkpoints.write(file, header, data[:start] + bytes(end - start) + data[end:])
    assert "wide.weight_codes" in refused(file)


def test_the_users_model_stays_as_it_was(file: Path) -> None:
    header, data = checkpoints.read(file)
    checkpoints.write(file, header, data[:-1] + bytes([data[-1] ^ 1]))
    model = Zoo()
    before, kinds = state_bits(model), [type(m) for m in model.modules()]
    refused(file, model)
    assert state_bits(model) == before and [type(m) for m in model.modules()] == kinds


Change = Callable[[checkpoints.Header, bytes], tuple[checkpoints.Header, bytes]]


def entry(name: str, **changed: object) -> Change:
    """Another dtype, shape or place of a tensor."""
    return lambda header, data: ({**header, name: {**header[name], **changed}}, data)


def moved(name: str, by: int) -> Change:
    def change(header: checkpoints.Header, data: bytes) -> tuple[checkpoints.Header, bytes]:
        start, end = header[name]["data_offsets"]
        return entry(name, data_offsets=[start + by, end + by])(header, data)

    return change


def without(name: str) -> Change:
    def change(header: checkpoints.Header, data: bytes) -> tuple[checkpoints.Header, bytes]:
        start, end = header[name]["data_offsets"]
        kept = {}
        for key, value in header.items():
            if key != "__metadata__" and value["data_offsets"][0] >= end:
                a, b = value["data_offsets"]
                value = {**value, "data_offsets": [a - end + start, b - end + start]}
            if key != name:
                kept[key] = value
        return kept, data[:start] + data[end:]

    return change


def said(**changed: object) -> Change:
    """Other fields of the document."""
    return lambda header, data: (
        checkpoints.with_document(header, {**checkpoints.document(header), **changed}),
        data,
    )


def layer(**changed: object) -> Change:
    """Other fields of the first layer."""

    def change(header: checkpoints.Header, data: bytes) -> tuple[checkpoints.Header, bytes]:
        values = checkpoints.document(header)
        values["layers"][0].update(changed)
        return checkpoints.with_document(header, values), data

    return change


def spec(**changed: object) -> Change:
    def change(header: checkpoints.Header, data: bytes) -> tuple[checkpoints.Header, bytes]:
        values = checkpoints.document(header)
        values["layers"][0]["scheme"].update(changed)
        return checkpoints.with_document(header, values), data

    return change


def bytes_of(name: str, new: Callable[[int], bytes]) -> Change:
    def change(header: checkpoints.Header, data: bytes) -> tuple[checkpoints.Header, bytes]:
        start, end = header[name]["data_offsets"]
        return checkpoints.with_bytes(header, data, name, new(end - start))

    return change


def floats(value: float) -> Callable[[int], bytes]:
    return lambda nbytes: np.full(nbytes // 4, value, np.float32).tobytes()


FAULTS: dict[str, Change] = {
    "codes of another dtype": entry("wide.weight_codes", dtype="I8"),
    "an unknown dtype": entry("wide.weight_codes", dtype="F4"),
    "a dtype that is no string": entry("wide.weight_codes", dtype=[]),
    "a shape that does not fit": entry("wide.weight_codes", shape=[65, 24]),
    "a negative size": entry("wide.weight_codes", shape=[-130, -12]),
    "a huge size": entry("wide.weight_codes", shape=[2**62, 2**62]),
    "a huge place": entry("wide.weight_codes", data_offsets=[2**63, 2**63 + 1560]),
    "a size that is no integer": entry("wide.weight_codes", shape=[130.0, 12]),
    "a size that is a bool": entry("wide.weight_codes", shape=[True]),
    "a thousand axes": entry("wide.weight_codes", shape=[1] * 1000),
    "three offsets": entry("wide.weight_codes", data_offsets=[0, 1, 2]),
    "a field too many": entry("wide.weight_codes", more=1),
    "overlapping": moved("wide.weight_codes", -8),
    "behind the end": moved("wide.weight_codes", 10**9),
    "no codes": without("wide.weight_codes"),
    "no scale": without("wide.weight_scale"),
    "no factor": without("wide.weight_factor"),
    "no bias": without("wide.bias"),
    "no norm": without("norm.weight"),
    "version 0": said(format_version=0),
    "version true": said(format_version=True),
    "version words": said(format_version="1"),
    "no layers": said(layers=[]),
    "layers that are none": said(layers=5),
    "configs that are none": said(configs=[]),
    "a config of nonsense": said(configs=[{"name": 5}]),
    "a source of nonsense": said(source=None),
    "checksums that are none": said(sha256={}),
    "dtypes of nonsense": said(dtypes={"norm.weight": "int4"}),
    "dtypes of codes": said(dtypes={"wide.weight_codes": "float32"}),
    "settings of nonsense": said(settings={"img_size": "x"}),
    "narrowed nonsense": said(narrowed={"x": 1}),
    "a layer of another name": layer(name="nobody"),
    "a layer of another shape": layer(shape=[33, 41]),
    "a layer of huge shape": layer(shape=[2**40, 2**40]),
    "a layer of no shape": layer(shape=[]),
    "a layer of a config that is none": layer(config=7),
    "a spec of 5 bits": spec(bits=5),
    "a spec of 8 bits": spec(bits=8, two_level=False),
    "a spec with zero points": spec(symmetric=False),
    "a spec of words": spec(symmetric="yes"),
    "groups of 0": spec(group_size=0),
    "groups of 12": spec(group_size=12),
    "NaN scales": bytes_of("wide.weight_scale", floats(np.nan)),
    "infinite scales": bytes_of("wide.weight_scale", floats(np.inf)),
    "zero scales": bytes_of("wide.weight_scale", floats(0.0)),
    "negative scales": bytes_of("wide.weight_scale", floats(-1.0)),
    "zero factors": bytes_of("wide.weight_factor", bytes),
    "factors of 16": bytes_of("wide.weight_factor", lambda n: b"\x10" * n),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nonsense_with_checksums_that_fit(fault: str, file: Path) -> None:
    checkpoints.write(file, *FAULTS[fault](*checkpoints.read(file)))
    refused(file)


def test_an_unchanged_rewrite_loads(file: Path) -> None:
    checkpoints.write(file, *checkpoints.read(file))
    load(file, model=Zoo)


def test_a_newer_format_says_what_to_do(file: Path) -> None:
    checkpoints.write(file, *said(format_version=2)(*checkpoints.read(file)))
    words = refused(file)
    assert "format 2" in words and "upgrade" in words


HEADERS = {
    "no JSON": b"{" * 40,
    "deep": b"[" * 100_000,
    "no object": b"[]",
    "not UTF-8": b'{"\xff":1}',
    "twice": b'{"a":{},"a":{}}',
    "NaN": b'{"a":NaN}',
    "huge number": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}',
    "metadata of numbers": b'{"__metadata__":{"vggtquant":5}}',
    "metadata of words": b'{"__metadata__":"vggtquant"}',
    "document of a list": b'{"__metadata__":{"vggtquant":"[]"}}',
    "deep document": b'{"__metadata__":{"vggtquant":"' + b"[" * 100_000 + b'"}}',
    "no seal": b'{"__metadata__":{"vggtquant":"{\\"format_version\\":1}"}}',
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_nonsense(kind: str, tmp_path: Path) -> None:
    text = HEADERS[kind]
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("length", [0, 1, 100, 10**8, 2**40, 2**63, 2**64 - 1])
def test_declared_headers(length: int, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    refused(tmp_path / "a.safetensors")


def test_other_files(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent.safetensors")
    assert "no weights in" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refused(tmp_path / "pipe")
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "plain.safetensors")
    assert "vggtquant quantize" in refused(tmp_path / "plain.safetensors")


def test_another_architecture(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the model"):
        load(file)
    words = refused(file, TinyVGGT)
    assert "TinyVGGT" in words and "blocks.0" in words
    model = Zoo()
    model.wide = nn.Linear(24, 131)
    assert "(131, 24)" in refused(file, model)
    model = Zoo()
    model.more = nn.Linear(2, 2)
    assert "2 missing (more.weight, more.bias)" in refused(file, model)
    model = Zoo()
    model.norm = nn.LayerNorm(41)
    assert "of another shape" in refused(file, model)
    config = replace(vq.get_config("INT4_Group_32"), skip_first_last=False)
    assert "layer first is quantized there" in refused(file, quantized(config))


def test_save_wants_something_quantized(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no quantized layer"):
        save(Zoo(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="float_dtype"):
        save(quantized("INT4_Group_32"), tmp_path / "a.safetensors", float_dtype="float8")
    assert not list(tmp_path.iterdir())


# ---- writing where it cannot be done -------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def saves(path: Path) -> None:
    save(quantized("INT4_Group_32", Zoo()), path, float_dtype="float32")


def test_a_full_disk(small_disk: Path) -> None:
    (small_disk / "old.safetensors").write_bytes(b"old")
    with pytest.raises(UserError, match="no room for .*No space left on device"):
        save(
            quantized("INT8_Per_Channel_Symmetric", TinyVGGT(dim=64)),
            small_disk / "old.safetensors",
        )
    assert [p.name for p in small_disk.iterdir()] == ["old.safetensors"]
    assert (small_disk / "old.safetensors").read_bytes() == b"old"


def test_a_file_too_large(tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match="no room for"):
            saves(tmp_path / "old.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["old.safetensors"]
    assert (tmp_path / "old.safetensors").read_bytes() == b"old"


def test_a_read_only_directory(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    me = os.geteuid()
    if me == 0:  # root may write anywhere
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="cannot write .*Permission denied"):
            saves(folder / "a.safetensors")
    finally:
        os.seteuid(me)
    assert not list(folder.iterdir())


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        saves(tmp_path / "absent" / "a.safetensors")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        container.Writer(tmp_path / "d.safetensors", 100).__enter__()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real.safetensors")
    saves(tmp_path / "link.safetensors")
    assert (tmp_path / "link.safetensors").is_symlink()
    load(tmp_path / "real.safetensors", model=Zoo)


def test_two_writers(tmp_path: Path) -> None:
    with container.Writer(tmp_path / "a.safetensors", 100) as first:
        with pytest.raises(UserError, match="another run is writing"):
            saves(tmp_path / "a.safetensors")
        first.finish({})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_stale_partial_file_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors.partial").write_bytes(b"left by a run that was killed" * 10_000)
    saves(tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    load(tmp_path / "a.safetensors", model=Zoo)


# ---- what fuzzing found --------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((DATA / "fuzz").iterdir()), ids=lambda path: path.stem)
def test_fuzzed(path: Path) -> None:
    """Whatever tests/fuzz_checkpoint.py once broke a reader with is refused, or loads."""
    import fuzz_checkpoint

    outcome = fuzz_checkpoint.feed(path)
    assert outcome == ("loaded" if path.stem.startswith("seed") else "refused")


# ---- the reader in docs/checkpoint-format.md -----------------------------------------------------


@pytest.mark.parametrize("path", sorted(DATA.rglob("*-v1-*.safetensors")), ids=lambda p: p.stem)
def test_the_reader_in_the_document(path: Path) -> None:
    page = DATA.parent.parent / "docs" / "checkpoint-format.md"
    known: dict[str, Callable[[Path], Iterator[tuple[str, np.ndarray]]]] = {}
    exec(page.read_text().partition("```python\n")[2].partition("```")[0], known)
    model = load(path, model=checkpoints.small if path.parent.name == "fuzz" else Zoo)
    read = dict(known["weights"](path))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, vq.QuantizedLinear)}
    assert read.keys() == layers.keys()
    for name, layer in layers.items():
        assert read[name].tobytes() == layer.weight.numpy().tobytes()
