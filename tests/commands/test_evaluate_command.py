# SPDX-License-Identifier: Apache-2.0
"""`vggtquant evaluate`: exit codes, stdout and stderr, one clear line for bad input."""

import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from builders import SCHEMA
from commandline import evaluate, refused

import vggtquant as vq
from vggtquant import ops
from vggtquant.commands import cli, options
from vggtquant.evaluation import schema
from vggtquant.evaluation.measure import bench, journal, variants

# ---- what works ----------------------------------------------------------------------------------


def test_evaluate_prints_a_table_and_the_paths(tmp_path: Path, capsys) -> None:
    assert evaluate(tmp_path) == 0
    out, err = capsys.readouterr()
    assert "INT8_Per_Channel_Symmetric" in out and "error %" in out
    assert f"wrote {tmp_path / 'out' / schema.JSON_NAME}" in out
    assert "recommended: INT8_Per_Channel_Symmetric. It is the only one that keeps" in out
    assert max(map(len, out.splitlines())) <= 100 or str(tmp_path) in out
    assert "forecast" in err and "[4] INT8_Per_Channel_Symmetric:" in err
    assert "\x1b" not in out + err  # no colours or bars where no terminal is
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["environment"]["argv"][:2] == ["vggtquant", "evaluate"]


def test_evaluate_takes_a_folder_and_pictures(tmp_path: Path, pictures: Path) -> None:
    assert evaluate(tmp_path, "--image_folder", str(pictures)) == 0
    assert evaluate(tmp_path, str(pictures)) == 0
    assert evaluate(tmp_path, str(pictures / "0.png"), str(pictures / "2.png")) == 0
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    (scene,) = document["data"]["scenes"]
    assert list(scene["images_sha256"]) == ["0.png", "2.png"]
    assert not document["data"]["synthetic"] and not scene["ground_truth"]
    jsonschema.validate(document, SCHEMA)


def test_methods_and_seeds_are_rows_of_their_own(tmp_path: Path) -> None:
    """Each row names its method and says which pictures it looked at."""
    words = ["--method", "rtn,gptq", "--samples", "4", "--calibration_seeds", "2"]
    assert evaluate(tmp_path, "--schemes", "INT4_Group_64", *words) == 0
    text = (tmp_path / "out" / schema.JSON_NAME).read_text()
    jsonschema.validate(json.loads(text), SCHEMA)
    rows = {row["name"]: row for row in json.loads(text)["schemes"]}
    plain, first, second = (rows[f"INT4_Group_64{end}"] for end in ("", "_gptq", "_gptq_seed1"))
    assert "calibration" not in plain["config"] or plain["config"]["calibration"] == "rtn"
    assert first["config"]["calibration"] == second["config"]["calibration"] == "gptq"
    assert first["config"]["calibration_samples"] == 4
    assert second["config"]["calibration_seed"] == 1
    assert any("method gptq" in n and "4 pictures" in n and "seed 1" in n for n in second["notes"])
    assert first["error"] < 0.7 * plain["error"] and first["error"] != second["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "magic"], "method 'magic' is unknown"),
        (["--samples", "4"], "--samples is for --method"),
        (["--calibration_seeds", "2"], "--calibration_seeds is for --method"),
        (["--method", "gptq", "--calibration_seeds", "0"], "--calibration_seeds is 0"),
    ],
    ids=str,
)
def test_a_method_that_cannot_be_served_is_refused(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, evaluate(tmp_path, *words), said)


def test_schemes_may_be_listed_or_repeated(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "--schemes", "INT4_Group_64, INT4_Group_32") == 0
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    assert [row["name"] for row in document["schemes"]] == [
        "Baseline_FP32",
        *variants.NOISE_FLOOR,
        "INT8_Per_Channel_Symmetric",
        "INT4_Group_64",
        "INT4_Group_32",
    ]


def test_the_embedded_model(tmp_path: Path) -> None:
    assert evaluate(tmp_path, model="builtin:tiny") == 0


# ---- bad input: exit code 2, one line, nothing written -------------------------------------------


def test_a_missing_folder(tmp_path: Path, capsys) -> None:
    refused(capsys, evaluate(tmp_path, "--image_folder", str(tmp_path / "none")), "none")


def test_an_empty_folder(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    refused(capsys, evaluate(tmp_path, "--image_folder", str(tmp_path / "empty")), "empty")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n and then nothing"])
def test_a_broken_picture_is_named(tmp_path: Path, pictures: Path, capsys, content: bytes) -> None:
    (pictures / "1.png").write_bytes(content)
    words = ("--image_folder", str(pictures), "--max_images", "3")
    refused(capsys, evaluate(tmp_path, *words), "1.png")


def test_an_unknown_scheme_shows_the_nearest(tmp_path: Path, capsys) -> None:
    refused(capsys, evaluate(tmp_path, "--schemes", "INT4_Group_46"), "INT4_Group_64")


@pytest.mark.parametrize(
    "command", ["evaluate", "quantize builtin:tiny", "run builtin:tiny builtin"]
)
def test_without_kernels_for_the_gpu_one_line_says_so(
    tmp_path: Path, capsys, monkeypatch, command: str
) -> None:
    monkeypatch.setattr(ops.native, "cuda", None)
    words = [*command.split(), "--device", "cuda", "--out", str(tmp_path / "out.safetensors")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "device 'cuda': this installation has no CUDA kernels" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "mps"])
def test_an_unknown_device(tmp_path: Path, capsys, device: str) -> None:
    refused(capsys, evaluate(tmp_path, "--device", device), device)


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
    refused(capsys, evaluate(tmp_path, f"--{flag}", value), *words, value)
    assert not (tmp_path / "out").exists()


def test_an_output_directory_that_cannot_be_written(tmp_path: Path, capsys, monkeypatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("work was done before the output directory was tried")

    monkeypatch.setattr(bench.Bench, "records", never)
    (tmp_path / "file").write_text("")
    words = ("--output_dir", str(tmp_path / "file" / "out"))
    refused(capsys, evaluate(tmp_path, *words), "cannot write into")


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
    refused(capsys, evaluate(tmp_path, model=model), said)
    left = list(tmp_path.rglob("*"))  # a journal where FP32 ran before it was refused
    assert not left or (model == "toy:nan_output" and len(left) == 2)


def test_two_sources_of_pictures(tmp_path: Path, pictures: Path, capsys) -> None:
    words = ("--image_folder", str(pictures), str(pictures))
    refused(capsys, evaluate(tmp_path, *words), "--image_folder")


def test_missing_packages_are_named(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(options, "_EXTRA", ("rich", "no_such_package"))
    refused(capsys, evaluate(tmp_path), "no_such_package", "vggtquant[eval]")


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
    assert evaluate(tmp_path) == 3
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
    assert evaluate(tmp_path) == 1
    assert "ZeroDivisionError: oh" in capsys.readouterr().err
    assert evaluate(tmp_path, "-v") == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_gives_130_and_says_what_is_kept(tmp_path: Path, capsys, monkeypatch) -> None:
    real = bench.Bench.records
    at = ["quantized"]

    def stopped(self, variant, *args: object, **options: object):
        if variant.kind in at:
            raise KeyboardInterrupt
        return real(self, variant, *args, **options)

    monkeypatch.setattr(bench.Bench, "records", stopped)
    assert evaluate(tmp_path) == 130
    assert "interrupted; 3 finished" in capsys.readouterr().err
    at[:] = ["baseline"]
    assert evaluate(tmp_path, "--restart") == 130
    assert "before the first result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_signals_keep_finished_schemes(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "out"
    words = ["evaluate", "--model", "toy:slow", "--scenes", "2", "--output_dir", str(out)]
    words += ["--schemes", "INT8_Per_Channel_Symmetric,INT4_Group_32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vggtquant", *words],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
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


def test_a_shard_that_is_none(tmp_path: Path, capsys) -> None:
    refused(capsys, evaluate(tmp_path, "--shard", "3/2"), "--shard is 3/2")
    assert evaluate(tmp_path, "--shard", "third") == 2
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
        assert evaluate(tmp_path) == 130
    assert "--resume goes on" in capsys.readouterr().err
    refused(capsys, evaluate(tmp_path), "unfinished evaluation (3 of 5 rows)", "--restart")
    refused(capsys, evaluate(tmp_path, "--resume", "--seed", "3"), "seed is 0 there and 3 here")
    refused(capsys, evaluate(tmp_path, "--resume", "--restart"), "--restart")
    assert evaluate(tmp_path, "--resume") == 0
    assert "[1] Baseline_FP32: kept" in capsys.readouterr().err


def test_restart_takes_nothing_from_a_running_evaluation(tmp_path: Path, capsys) -> None:
    assert evaluate(tmp_path) == 0
    path = tmp_path / "out" / journal.NAME
    capsys.readouterr()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with journal.reopen(path):  # as the other evaluation holds it
        for word in ("--restart", "--resume"):
            refused(capsys, evaluate(tmp_path, word), "another evaluation is writing", str(path))
    assert before == {file.name: file.read_bytes() for file in path.parent.iterdir()}


@pytest.mark.parametrize("content", ["[]\n", "null\n", '{"journal": 99}\n', "no JSON\n"])
def test_a_journal_that_is_none_is_refused(tmp_path: Path, capsys, content: str) -> None:
    path = tmp_path / "out" / journal.NAME
    path.parent.mkdir()
    path.write_text(content)
    refused(capsys, evaluate(tmp_path, "--resume"), str(path), "no journal of this version")
    assert path.read_text() == content


def test_a_single_picture_has_no_camera_pairs(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "--max_images", "1") == 0
    document = json.loads((tmp_path / "out" / schema.JSON_NAME).read_text())
    jsonschema.validate(document, SCHEMA)
    assert "auc_30" not in document["schemes"][0]["task"]["truth"]
