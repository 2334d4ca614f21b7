# SPDX-License-Identifier: Apache-2.0
"""Wrong input to each command: exit code 2, one line that names what was seen, no file written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vggtquant as vq
from vggtquant import tiny
from vggtquant.commands import cli
from vggtquant.files import writable_folder

CONFIGS = {
    "type.json": '{"name": "a", "quant_type": ["x"]}',
    "patterns.json": '{"name": "a", "quant_type": "mixed_precision", "sensitive_layers": 5}',
    "nameless.json": '{"name": " ", "quant_type": "int4_group"}',
    "lines.json": '{"name": "a\\nb", "quant_type": "int4_group"}',
    "long.json": json.dumps({"name": "n" * 400, "quant_type": "int4_group"}),
    "number.json": '{"name": 7, "quant_type": "int4_group"}',
    "twice.json": '[{"name": "a", "quant_type": "fp32"}, {"name": "a", "quant_type": "bf16"}]',
    "field.json": '{"name": "a", "quant_type": "int4_group", "grp": 8}',
    "bits.json": '{"name": "a", "quant_type": "int4_group", "bits": 8}',
    "none.json": "[]",
    "broken.toml": "name =",
}
"""Files of configs, each with an error."""

CASES = {
    # an unset variable of the shell is an empty word
    "evaluate --output_dir ''": "--output_dir has an empty value",
    "evaluate --output_dir=": "--output_dir= has an empty value",
    "quantize tiny.pt --out ''": "--out has an empty value",
    "run builtin:tiny pictures --out ''": "--out has an empty value",
    "info ''": "info has an empty value",
    "diff '' ''": "diff has an empty value",
    "scenes --out ''": "--out has an empty value",
    # names that no file can have
    "info a\0b": r"'a\x00b' has a NUL character",
    "merge a\0b --out out": r"'a\x00b' has a NUL character",
    f"quantize {'x' * 300} --out x.safetensors": "is too long for a file",
    f"evaluate --output_dir {'x' * 300}": "is too long for a file",
    f"quantize tiny.pt --out {'x' * 300}.safetensors": "is too long for a file",
    f"merge pictures --out {'x' * 300}": "is too long for a file",
    # configs
    "evaluate --config type.json": "quant_type ['x'] is unknown",
    "evaluate --config patterns.json": "sensitive_layers is 5; patterns of names are wanted",
    "evaluate --config nameless.json": "name is ' '; a line of text is wanted",
    "evaluate --config lines.json": "name is 'a\\nb'; a line of text is wanted",
    "evaluate --config number.json": "name is 7; a line of text is wanted",
    "evaluate --config long.json": "name has 400 characters (nnnnnnnnnnnnnnnnnnnn…); at most 100 ",
    "evaluate --config twice.json": "two configs are named 'a'",
    "evaluate --config field.json": "no field grp",
    "evaluate --config bits.json": "bits=4, not 8",
    "evaluate --config none.json": "holds no configs",
    "evaluate --config broken.toml": "cannot read broken.toml",
    "quantize tiny.pt --scheme twice.json --out x.safetensors": "two configs are named 'a'",
    # what would have been passed over
    "evaluate --layout co3d": "--layout is co3d; it wants one folder",
    "info --layers": "--layers is for a packed file",
    "run packed.safetensors pictures --scheme INT4_Group_64 --out out": "is quantized already",
    "quantize tiny.pt --exclude '*' --out x.safetensors": "no layer is left to quantize",
    "evaluate --full --scenes 3": "--scenes: not allowed with argument --full",
    # a name that says another thing
    "quantize tiny.pt --out x.onnx": "under the name of another format",
    "quantize tiny.pt --out x.pt": "under the name of another format",
    "dequantize packed.safetensors --out x.pt": "under the name of another format",
    "run builtin:tiny pictures --out pictures": "is the folder of the pictures",
    # sizes without bounds
    "scenes --count 1000000000000 --out out": "count must be 1 to 100000, got 1000000000000",
    "scenes --count 0 --out out": "count must be 1 to 100000, got 0",
    "evaluate --scenes 1000000000000": "--scenes is 1000000000000; wanted 1 to 100000",
    # tensors without real values
    "quantize sparse.pt --out x.safetensors": "tensor a.weight as torch.float32, torch.sparse_coo",
    "evaluate --model complex.pt --output_dir out": "tensor a.weight as torch.complex64",
    "run meta.pt pictures --out out": "tensor a.weight as no values (device meta)",
    "quantize builtins:exit --out x.safetensors": "ended the program",
    # files of another kind, or damaged
    "evaluate --model junk.pt": "cannot read the weights junk.pt: damaged, or not of torch.save",
    "evaluate --model flipped.safetensors --output_dir out": "is damaged",
    "run flipped.safetensors pictures --out out": "is damaged",
    "info flipped.safetensors": "is damaged",
    "compare none.json none.json": "none.json",
    "report none.json": "none.json",
    "merge pictures --out out": "comprehensive_journal.jsonl",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files and bad ones."""
    made = tmp_path_factory.mktemp("wrong")
    for name, text in CONFIGS.items():
        (made / name).write_text(text)
    (made / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(made / "pictures" / f"{i}.png")
    (made / "junk.pt").write_bytes(b"junk" * 10)
    torch.save(tiny.build().state_dict(), made / "tiny.pt")
    torch.save({"a.weight": torch.eye(4).to_sparse()}, made / "sparse.pt")
    torch.save({"a.weight": torch.eye(4).to(torch.complex64)}, made / "complex.pt")
    torch.save({"a.weight": torch.eye(4, device="meta")}, made / "meta.pt")
    vq.quantize_file(made / "tiny.pt", "INT4_Group_128", made / "packed.safetensors")
    content = bytearray((made / "packed.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (made / "flipped.safetensors").write_bytes(content)
    return made


@pytest.mark.parametrize("words", CASES)
def test_wrong_input(words: str, folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert cli.main(["" if word == "''" else word.strip("'") for word in words.split(" ")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(said) == 1 and CASES[words] in said[0]
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {path: ns for path, ns in before.items() if path.is_file()} == after


def test_a_nul_character_in_a_path_in_python(folder: Path) -> None:
    with pytest.raises(vq.UserError, match="NUL character"):
        writable_folder("a\0b")


@pytest.mark.parametrize("call", [vq.save, vq.quantize_file])
def test_an_empty_path_in_python(call, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    model, _ = vq.quantize_model(tiny.build(), "INT4_Group_128")
    words = (model, "") if call is vq.save else ("tiny.pt", "INT4_Group_128", "")
    with pytest.raises(vq.UserError, match="the path is empty"):
        call(*words)
