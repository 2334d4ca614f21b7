# SPDX-License-Identifier: Apache-2.0
"""The command: exit codes, what goes to stdout and stderr, and one clear line for bad input."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import pytest
from builders import SCHEMA
from PIL import Image

import vggtquant as vq
from vggtquant import tiny
from vggtquant.commands import cli, options
from vggtquant.evaluation import schema
from vggtquant.evaluation.measure import bench, variants

QUICK = ["--runs", "1", "--warmup", "0", "--scenes", "1", "--max_images", "2"]
ONE = ["--schemes", "INT8_Per_Channel_Symmetric"]


def _evaluate(tmp_path: Path, *words: str, model: str = "toy:build") -> int:
    out = ["--output_dir", str(tmp_path / "out")] if "--output_dir" not in words else []
    return cli.main(["evaluate", "--model", model, *QUICK, *ONE, *out, *words])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (56, 42), (40 * i, 100, 200)).save(folder / f"{i}.png")
    return folder


# ---- what works ----------------------------------------------------------------------------------


def test_evaluate_prints_a_table_and_the_paths(tmp_path: Path, capsys) -> None:
    assert _evaluate(tmp_path) == 0
    out, err = capsys.readouterr()
    assert "INT8_Per_Channel_Symmetric" in out and "error %" in out
    assert f"wrote {tmp_path / 'out' / schema.JSON_NAME}" in out
    assert "recommended: INT8_Per_Channel_Symmetric. It is the smallest" in out
    assert max(map(len, out.splitlines())) <= 100 or str(tmp_path) in out
    assert "forecast" in err and "[4] INT8_Per_Channel_Symmetric:" in err
    assert "\x1b" not in out + err  # no colours or bars where no terminal is
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["environment"]["argv"][:2] == ["vggtquant", "evaluate"]


def test_evaluate_takes_a_folder_and_pictures(tmp_path: Path, pictures: Path) -> None:
    assert _evaluate(tmp_path, "--image_folder", str(pictures)) == 0
    assert _evaluate(tmp_path, str(pictures)) == 0
    assert _evaluate(tmp_path, str(pictures / "0.png"), str(pictures / "2.png")) == 0
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    (scene,) = document["data"]["scenes"]
    assert list(scene["images_sha256"]) == ["0.png", "2.png"]
    assert not document["data"]["synthetic"] and not scene["ground_truth"]
    jsonschema.validate(document, SCHEMA)


def test_schemes_may_be_listed_or_repeated(tmp_path: Path) -> None:
    assert _evaluate(tmp_path, "--schemes", "INT4_Group_64, INT4_Group_32") == 0
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    assert [row["name"] for row in document["schemes"]] == [
        "Baseline_FP32",
        *variants.NOISE_FLOOR,
        "INT8_Per_Channel_Symmetric",
        "INT4_Group_64",
        "INT4_Group_32",
    ]


def test_the_embedded_model(tmp_path: Path) -> None:
    assert _evaluate(tmp_path, model="builtin:tiny") == 0


def test_info_and_schemes(capsys) -> None:
    assert cli.main(["info"]) == 0
    info = capsys.readouterr().out
    assert f"kernels    {vq.isa()}" in info and vq.__version__ in info
    assert cli.main(["schemes"]) == 0
    listed = capsys.readouterr().out
    assert listed in info
    for name in vq.CONFIGS:
        assert name in listed


def test_scenes_are_written(tmp_path: Path, capsys) -> None:
    words = ["scenes", "--out", str(tmp_path / "s"), "--count", "2", "--frames", "2"]
    assert cli.main(words) == 0
    folders = capsys.readouterr().out.split()
    assert len(folders) == 2 and all((Path(folder) / "truth.npz").exists() for folder in folders)


def test_version_and_help(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vggtquant {vq.__version__}\n"
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cli.COMMANDS)
    assert cli.main(["evaluate", "--help"]) == 0
    assert "--max_images" in capsys.readouterr().out
    assert cli.main([]) == 2


# ---- bad input: exit code 2, one line, nothing written -------------------------------------------


def _refused(capsys, code: int, *words: str) -> None:
    assert code == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("vggtquant: error: ")]
    assert out == "" and len(lines) == 1 and "Traceback" not in err and "usage" not in err
    for word in words:
        assert word in lines[0], (word, lines[0])


def test_a_missing_folder(tmp_path: Path, capsys) -> None:
    _refused(capsys, _evaluate(tmp_path, "--image_folder", str(tmp_path / "none")), "none")


def test_an_empty_folder(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    _refused(capsys, _evaluate(tmp_path, "--image_folder", str(tmp_path / "empty")), "empty")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n and then nothing"])
def test_a_broken_picture_is_named(tmp_path: Path, pictures: Path, capsys, content: bytes) -> None:
    (pictures / "1.png").write_bytes(content)
    words = ("--image_folder", str(pictures), "--max_images", "3")
    _refused(capsys, _evaluate(tmp_path, *words), "1.png")


def test_an_unknown_scheme_shows_the_nearest(tmp_path: Path, capsys) -> None:
    _refused(capsys, _evaluate(tmp_path, "--schemes", "INT4_Group_46"), "INT4_Group_64")


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "mps"])
def test_an_unknown_device(tmp_path: Path, capsys, device: str) -> None:
    _refused(capsys, _evaluate(tmp_path, "--device", device), device)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("max_images", "0"),
        ("max_images", "-3"),
        ("runs", "0"),
        ("warmup", "-1"),
        ("threads", "0"),
        ("threads", "100000"),
        ("scenes", "0"),
        ("seed", "-1"),
        ("seed", "99999999999999999999"),
        ("max_drop", "-1"),
        ("max_drop", "inf"),
        ("max_bytes", ""),
        ("max_bytes", "1.5XB"),
        ("min_speedup", "nan"),
        ("shard", "1"),
        ("shard", "1/x"),
        ("shard", "4/3"),
        ("sensitivity", "Baseline_BF16"),
        ("runs", "many"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, capsys, flag: str, value: str) -> None:
    words = () if flag == "max_bytes" else (flag,)
    _refused(capsys, _evaluate(tmp_path, f"--{flag}", value), *words, value)
    assert not (tmp_path / "out").exists()


def test_an_output_directory_that_cannot_be_written(tmp_path: Path, capsys, monkeypatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("work was done before the output directory was tried")

    monkeypatch.setattr(bench.Bench, "records", never)
    (tmp_path / "file").write_text("")
    words = ("--output_dir", str(tmp_path / "file" / "out"))
    _refused(capsys, _evaluate(tmp_path, *words), "cannot write into")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("toy:nan_weight", "blocks.1.3"),
        ("toy:nan_output", "baseline"),
        ("toy:no_linear", "no Linear"),
        ("toy:nothing", "nothing"),
        ("no/such/model.safetensors", "no/such/model.safetensors"),
        ("what is this", "what is this"),
    ],
)
def test_models_that_cannot_be_evaluated(tmp_path: Path, capsys, model: str, said: str) -> None:
    _refused(capsys, _evaluate(tmp_path, model=model), said)
    left = list(tmp_path.rglob("*"))  # a journal where FP32 ran before it was refused
    assert not left or (model == "toy:nan_output" and len(left) == 2)


def test_two_sources_of_pictures(tmp_path: Path, pictures: Path, capsys) -> None:
    words = ("--image_folder", str(pictures), str(pictures))
    _refused(capsys, _evaluate(tmp_path, *words), "--image_folder")


def test_missing_packages_are_named(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(options, "_EXTRA", ("rich", "no_such_package"))
    _refused(capsys, _evaluate(tmp_path), "no_such_package", "vggtquant[eval]")


def test_an_unknown_isa_is_refused() -> None:
    env = os.environ | {"VGGTQUANT_ISA": "sse9"}
    done = subprocess.run(
        [sys.executable, "-m", "vggtquant", "info"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "sse9" in done.stderr


# ---- failures and interruptions ------------------------------------------------------------------


def test_a_failed_scheme_gives_3_and_the_reports(tmp_path: Path, capsys, monkeypatch) -> None:
    real = bench.measure

    def spoil(model, images, passes, *, watched, **options):
        result = real(model, images, passes, watched=watched, **options)
        if any(isinstance(layer, vq.QuantizedLinear) for layer in watched.values()):
            result.outputs["depth"] = result.outputs["depth"].clone()
            result.outputs["depth"][0, 0, 0, 0, 0] = float("nan")
        return result

    monkeypatch.setattr(bench, "measure", spoil)
    assert _evaluate(tmp_path) == 3
    out = capsys.readouterr().out
    assert "failed: INT8_Per_Channel_Symmetric: depth holds 1 NaN or Inf" in out
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["status"] == "with failures"
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_a_defect_gives_1_and_a_hint(tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(bench.Bench, "records", broken)
    assert _evaluate(tmp_path) == 1
    assert "ZeroDivisionError: oh" in capsys.readouterr().err
    assert _evaluate(tmp_path, "-v") == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_gives_130_and_says_what_is_kept(tmp_path: Path, capsys, monkeypatch) -> None:
    real = bench.Bench.records
    at = ["quantized"]

    def stopped(self, variant, *args: object, **options: object):
        if variant.kind in at:
            raise KeyboardInterrupt
        return real(self, variant, *args, **options)

    monkeypatch.setattr(bench.Bench, "records", stopped)
    assert _evaluate(tmp_path) == 130
    assert "interrupted; 3 finished" in capsys.readouterr().err
    at[:] = ["baseline"]
    assert _evaluate(tmp_path, "--restart") == 130
    assert "before the first result" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_finished_schemes(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "out"
    words = ["evaluate", "--model", "toy:slow", "--scenes", "2", "--output_dir", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vggtquant", *words],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / schema.JSON_NAME).exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "finished schemes are kept" in err and "Traceback" not in err
    document = json.loads((out / schema.JSON_NAME).read_text())
    assert document["status"] == "interrupted"
    jsonschema.validate(document, SCHEMA)


def test_the_example_takes_the_flags_of_the_seed_system(tmp_path: Path, pictures: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "comprehensive_evaluation.py"
    example = runpy.run_path(str(script))["evaluate"]
    words = ["--model_name", "toy:build", "--image_folder", str(pictures), "--max_images", "2"]
    words += ["--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert example(words) == 0
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    assert document["data"]["scenes"][0]["frames"] == 2
    assert example([*words[:4], "--max_images", "0"]) == 2


def test_shards_are_evaluated_and_merged(tmp_path: Path, capsys) -> None:
    for part in ("1/2", "2/2"):
        words = ("--scenes", "2", "--shard", part, "--output_dir", str(tmp_path / part[0]))
        assert _evaluate(tmp_path, *words) == 0
    shards = [str(tmp_path / part) for part in "21"]
    assert cli.main(["merge", *shards, "--output_dir", str(tmp_path / "whole")]) == 0
    assert f"wrote {tmp_path / 'whole' / schema.JSON_NAME}" in capsys.readouterr().out
    document = json.loads((tmp_path / "whole" / schema.JSON_NAME).read_text())
    jsonschema.validate(document, SCHEMA)
    assert len(document["data"]["scenes"]) == 2 and document["settings"]["shard"] is None
    assert cli.main(["merge", shards[0], "--output_dir", str(tmp_path / "half")]) == 2
    assert "missing: shard 1/2" in capsys.readouterr().err


def test_a_shard_that_is_none(tmp_path: Path, capsys) -> None:
    _refused(capsys, _evaluate(tmp_path, "--shard", "3/2"), "--shard is 3/2")
    assert _evaluate(tmp_path, "--shard", "third") == 2
    assert "third" in capsys.readouterr().err


def test_an_unfinished_evaluation_is_resumed_or_dropped(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    real = bench.Bench.records

    def stopped(self, variant, *args: object, **options: object):
        if variant.kind == "quantized":
            raise KeyboardInterrupt
        return real(self, variant, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bench.Bench, "records", stopped)
        assert _evaluate(tmp_path) == 130
    assert "--resume goes on" in capsys.readouterr().err
    _refused(capsys, _evaluate(tmp_path), "unfinished evaluation (3 of 5 rows)", "--restart")
    _refused(capsys, _evaluate(tmp_path, "--resume", "--seed", "3"), "seed is 0 there and 3 here")
    _refused(capsys, _evaluate(tmp_path, "--resume", "--restart"), "--restart")
    assert _evaluate(tmp_path, "--resume") == 0
    assert "[1] Baseline_FP32: kept" in capsys.readouterr().err


def test_a_single_picture_has_no_camera_pairs(tmp_path: Path) -> None:
    assert _evaluate(tmp_path, "--max_images", "1") == 0
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    jsonschema.validate(document, SCHEMA)
    assert "auc_30" not in document["schemes"][0]["task"]["truth"]


def test_plain_ascii_and_a_reader_that_leaves() -> None:
    command = [sys.executable, "-m", "vggtquant", "schemes"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=env, capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    read, write = os.pipe()
    os.close(read)
    gone = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert gone.returncode == 141 and gone.stderr == b""


# ---- words that a shell leaves alone, other threads ----------------------------------------------


def test_home_in_an_option_is_the_home_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for words in (["--out=~/x.safetensors"], ["--out", "~/y.safetensors"]):
        (tmp_path / "home").mkdir(exist_ok=True)
        command = ["quantize", "builtin:tiny", "--include", "*.fc1", *words]
        assert cli.main(command) == 0, capsys.readouterr().err
    assert {p.name for p in (tmp_path / "home").iterdir()} == {"x.safetensors", "y.safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("option", ["--out", "--output_dir"])
@pytest.mark.parametrize(
    "words",
    [
        ["scenes", "--count", "1", "--frames", "2"],
        ["quantize", "builtin:tiny", "--include", "*.fc1"],
        ["run", "builtin:tiny", "builtin"],
    ],
)
def test_both_names_of_the_place_for_results(
    words: list[str], option: str, tmp_path: Path, capsys
) -> None:
    assert cli.main([*words, option, str(tmp_path / "results")]) == 0, capsys.readouterr().err
    assert list((tmp_path / "results").iterdir())


def test_a_command_in_another_thread(tmp_path: Path, capsys) -> None:
    codes = []
    words = ["quantize", "builtin:tiny", "--include", "*.fc1", "--out", str(tmp_path / "a")]
    thread = threading.Thread(target=lambda: codes.append(cli.main(words)))
    thread.start()
    thread.join()
    assert codes == [0], capsys.readouterr().err


def test_quantize_and_info_say_the_same_bits(tmp_path: Path, capsys) -> None:
    path = str(tmp_path / "a.safetensors")
    assert cli.main(["quantize", "builtin:tiny", "--out", path]) == 0
    first = capsys.readouterr().out
    assert cli.main(["info", path]) == 0
    said = re.search(r"([\d.]+) bits a weight", first)
    shown = re.search(r"weights +([\d.]+) bits each", capsys.readouterr().out)
    assert said and shown and said[1] == shown[1]


@pytest.mark.parametrize("dtype", ["half", "double", "bfloat16"])
def test_a_user_s_model_of_another_precision(
    dtype: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "precise_model.py").write_text(
        f"from vggtquant import tiny\ndef build():\n    return tiny.build().{dtype}()\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "precise_model:build", "builtin", "--out", "r"]) == 0
    out = str(tmp_path / "a.safetensors")
    assert cli.main(["quantize", "precise_model:build", "--out", out]) == 0
    assert capsys.readouterr().err.count("error") == 0


def test_a_config_of_your_own(tmp_path: Path, capsys) -> None:
    (tmp_path / "my.toml").write_text('name = "Mine"\nquant_type = "int4_group"\ngroup_size = 16\n')
    path = str(tmp_path / "a.safetensors")
    command = ["quantize", "builtin:tiny", "--scheme", str(tmp_path / "my.toml"), "--out", path]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert cli.main(["info", path]) == 0
    assert "Mine" in capsys.readouterr().out
    (tmp_path / "my.toml").write_text("configs = []")
    assert cli.main(command) == 2
    assert "holds no configs" in capsys.readouterr().err


def test_a_budget_from_sensitivity_gives_a_config_for_evaluate(tmp_path: Path, capsys) -> None:
    """What evaluate --sensitivity writes is read; the config that comes out is one of evaluate."""
    from vggtquant.configs import read_configs
    from vggtquant.weights.tensors import open_weights

    _, report = vq.quantize_model(tiny.build(), "INT4_Group_32")
    layers = [
        {"name": layer.name, "share": 1.0 if "qkv" in layer.name else 1e-6}
        for layer in report.quantized
    ]
    results = {"schema_version": "3.0", "sensitivity": {"layers": layers[1:], "not_reached": []}}
    results["sensitivity"]["not_reached"] = [layers[0]["name"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    path, config = tmp_path / "a.safetensors", tmp_path / "mixed.json"
    words = ["--scheme", "INT4_Group_32", "--max_bytes", "3.9MB", "--float_dtype", "bfloat16"]
    words += ["--sensitivity", str(tmp_path / "results.json"), "--config_out", str(config)]
    assert cli.main(["quantize", "builtin:tiny", *words, "--out", str(path)]) == 0
    assert path.stat().st_size <= 3_900_000
    (mixed,) = read_configs(config)
    assert mixed.quant_type == "mixed_precision" and mixed.name == "Mixed_Group_32"
    bits = {layer["name"]: mixed.layer_bits(layer["name"]) for layer in layers[1:]}
    assert set(bits.values()) == {4, 8}
    at_four = [name for name, b in bits.items() if b == 4]
    assert sum("qkv" in name for name in at_four) < len(at_four) / 4
    _, report = vq.quantize_model(tiny.build(), mixed)
    assert {x.name: int(x.scheme[-1]) for x in report.quantized if x.name in bits} == bits
    assert open_weights("builtin:tiny").nbytes > path.stat().st_size
    results["sensitivity"] = None
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert cli.main(["quantize", "builtin:tiny", *words, "--out", str(path)]) == 2
    assert "evaluate was not asked for --sensitivity" in capsys.readouterr().err
