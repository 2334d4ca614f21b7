# SPDX-License-Identifier: Apache-2.0
"""The document, its picks, the text and the charts: pure functions of rows, so no model runs."""

import io
import json
import math
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

import vggtquant as vq
from vggtquant.errors import UserError
from vggtquant.evaluation.analyse import intervals, recommendation, report
from vggtquant.evaluation.analyse.rows import skipped_row
from vggtquant.evaluation.measure import task
from vggtquant.evaluation.measure.scores import METRIC_NAMES, Row
from vggtquant.evaluation.present import charts, text

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "report.schema.json").read_text())
FP32_BYTES = 1_000_000


def _row(name: str, error: float, nbytes: int, ms: float, **changes: object) -> Row:
    config = vq.get_config(name)
    row = skipped_row(config, "") | {"status": "ok", "reason": None}
    metrics = dict.fromkeys(METRIC_NAMES, 0.5) | {"relative_l2": error, "mae": error / 3}
    row["metrics"] = {"depth": metrics, "pose_fov": metrics | {"ssim": None}}
    row["reasons"] = {"pose_fov": {"ssim": "not an image"}}
    row["error"] = error
    row["outputs_equal_baseline"] = row["kind"] == "baseline"
    row["bytes"] = {
        "model_bytes": nbytes,
        "compression_ratio_model": FP32_BYTES / nbytes,
        "quantized_layers_bytes_before": None,
        "quantized_layers_bytes_after": None,
        "compression_ratio_quantized_layers": None,
        "bits_per_weight": None,
    }
    row["time"] = {
        "forward_ms_median": ms,
        "forward_ms_iqr": 0.1 * ms,
        "forward_ms_min": ms,
        "forward_ms_max": ms,
        "fp32_ms_before": 90.0,
        "fp32_ms_after": 110.0,
        "fp32_ms_nearby": 100.0,
        "speedup": 100 / ms,
        "speedup_low": 85 / ms,
        "speedup_high": 115 / ms,
    }
    row["scenes"] = [
        {
            "scene": "s0",
            "metrics": row["metrics"],
            "reasons": row["reasons"],
            "task": {"fp32": {"depth_abs_rel": error}, "truth": None, "consistency": {}},
            "pose_errors": {"fp32": None, "truth": None},
            "calibration": {},
            "forward_ms_runs": [ms],
        }
    ]
    row |= task.over_scenes(row["scenes"])
    if row["kind"] == "quantized":
        row["proof"] = {
            "layers_swapped": 3,
            "layers_executed": 3,
            "layer_calls": 3,
            "layers_not_executed": [],
            "layers_not_exercised": [],
            "layers_with_float_weights": [],
            "layers_without_kernel": [],
            "kernels": [{"kernel": "float x int8, scalar", "layers": 3, "calls": 3}],
            "packed_bytes_touched": 1000,
            "scenes_equal_baseline": [],
        }
        row["layers"] = [{"name": "first", "skipped": "the first Linear (skip_first_last)"}]
    return row | changes


def _rows() -> list[Row]:
    return [
        _row("Baseline_FP32", 0.0, FP32_BYTES, 100.0),
        _row("Baseline_BF16", 0.002, FP32_BYTES, 60.0),
        _row("INT8_Per_Tensor_Symmetric", 0.02, 300_000, 80.0),
        _row("INT8_Per_Channel_Symmetric", 0.01, 310_000, 80.0),
        _row("INT8_Per_Channel_Symmetric_A8", 0.012, 310_000, 40.0),
        _row("INT4_Group_128", 0.08, 180_000, 90.0),
        _row("INT4_Group_32", 0.06, 190_000, 95.0),
    ]


def _document(rows: list[Row], **changes: object) -> report.Document:
    parts = {
        "status": "complete",
        "environment": {
            "utc": "2026-01-02T03:04:05Z",
            "argv": ["vggtquant", "evaluate"],
            "cpu": {
                "model": "A processor",
                "cores_usable": 2,
                "flags": ["avx2"],
                "isa_active": "avx2",
                "isa_available": ["scalar", "avx2"],
            },
            "machines": ["A processor"],
            "memory_bytes": 1 << 33,
            "system": "Linux",
            "threads": {"torch": 2, "omp_num_threads": None},
            "load_average_1min": 0.1,
            "versions": {"vggtquant": "1", "torch": "2"},
        },
        "model": {
            "name": "toy",
            "source": "function",
            "licence": "ours",
            "sha256": "0" * 64,
            "parameters": 250_000,
            "parameter_bytes": FP32_BYTES,
            "linear_layers": 5,
            "linear_subclass_layers": 0,
            "linear_weights": 240_000,
            "linear_share": 0.96,
            "linear_layers_not_reached": ["track_head"],
            "outputs": {"depth": [1, 2, 28, 28, 1]},
        },
        "data": {
            "description": "pictures",
            "synthetic": False,
            "preprocessing": "crop",
            "scenes": [
                {
                    "name": "s0",
                    "frames": 2,
                    "height_px": 28,
                    "width_px": 28,
                    "ground_truth": False,
                    "images_sha256": {},
                }
            ],
        },
        "settings": {
            "model": "toy",
            "images": ["here"],
            "max_images": None,
            "scenes": None,
            "mode": "crop",
            "schemes": [row["name"] for row in rows],
            "output_dir": "out",
            "device": "cpu",
            "runs": 3,
            "warmup": 1,
            "threads": None,
            "seed": 0,
            "layout": None,
            "max_drop": None,
            "max_bytes": None,
            "min_speedup": None,
            "shard": None,
            "isolate": False,
            "sensitivity": None,
        },
        "forecast": [],
        "rows": rows,
        "recheck": None,
    }
    return report.document(**(parts | changes))  # type: ignore[arg-type]


# ---- picks ---------------------------------------------------------------------------------------


def _best(rows: list[Row]) -> Row:
    return recommendation.best(rows, intervals.statistics(rows))


def test_picks_follow_their_rules() -> None:
    best = _best(_rows())
    assert best["accuracy"] == "INT8_Per_Channel_Symmetric"
    assert best["size"] == "INT4_Group_128"
    assert best["speed"] == "INT8_Per_Channel_Symmetric_A8"
    assert best["balance"] == "INT4_Group_32"  # 0.19 + 0.06 < 0.18 + 0.08 < 0.31 + 0.01
    assert best["pareto_front"] == [
        "INT4_Group_128",
        "INT4_Group_32",
        "INT8_Per_Tensor_Symmetric",
        "INT8_Per_Channel_Symmetric",
    ]


def test_failed_rows_and_references_are_never_picked() -> None:
    rows = _rows()
    rows[5] |= {"status": "failed", "reason": "NaN"}
    best = _best(rows)
    assert best["size"] == "INT4_Group_32"
    assert "Baseline_BF16" not in best.values()


def test_without_a_finished_scheme_there_is_no_pick() -> None:
    best = _best(_rows()[:2])
    assert [best[why] for why in ("accuracy", "size", "speed", "balance")] == [None] * 4
    assert "none. No scheme finished" in text.full_report(_document(_rows()[:2]))


def test_ties_go_to_the_smaller_and_the_more_accurate() -> None:
    rows = [
        _row("INT4_Group_64", 0.01, 200_000, 10.0),
        _row("INT4_Group_128", 0.01, 190_000, 10.0),
        _row("INT4_Group_32", 0.02, 190_000, 10.0),
    ]
    best = _best(rows)
    assert best["accuracy"] == best["size"] == best["balance"] == "INT4_Group_128"
    assert best["pareto_front"] == ["INT4_Group_128"]


def test_regressions_are_sorted() -> None:
    found = report.regressions(_rows(), most=3)
    assert [(value, name) for value, name, _ in found] == [
        (0.08, "INT4_Group_128"),
        (0.08, "INT4_Group_128"),
        (0.06, "INT4_Group_32"),
    ]


# ---- the document --------------------------------------------------------------------------------


def test_the_schema_is_a_schema_of_this_version() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"]["const"] == report.SCHEMA_VERSION
    assert SCHEMA["title"].endswith(f"schema_version {report.SCHEMA_VERSION}")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_documents_follow_the_schema(count: int) -> None:
    jsonschema.validate(_document(_rows()[:count]), SCHEMA)


def test_failed_and_skipped_rows_follow_the_schema() -> None:
    skipped = skipped_row(vq.get_config("Baseline_BF16"), "would take 3 h")
    failed = skipped_row(vq.get_config("INT4_Group_64"), "NaN") | {"status": "failed"}
    jsonschema.validate(_document([*_rows()[:1], skipped, failed]), SCHEMA)


def test_the_schema_refuses_what_is_wrong() -> None:
    document = _document(_rows())
    document["schemes"][2]["status"] = "splendid"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_nan_and_inf_become_null_with_a_reason(tmp_path: Path) -> None:
    rows = _rows()
    rows[2]["metrics"]["depth"]["psnr"] = math.inf
    rows[2]["prepare_s"] = math.nan
    document = _document(rows)
    assert document["schemes"][2]["metrics"]["depth"]["psnr"] is None
    assert document["nulls"] == {
        "/schemes/2/prepare_s": "the value was nan",
        "/schemes/2/metrics/depth/psnr": "the value was inf",
        "/schemes/2/scenes/0/metrics/depth/psnr": "the value was inf",
    }
    report.write_json(tmp_path / "x.json", document)
    json.loads((tmp_path / "x.json").read_text(), parse_constant=lambda word: pytest.fail(word))


def test_the_order_of_keys_is_stable() -> None:
    assert json.dumps(_document(_rows())) == json.dumps(_document(_rows()))
    assert list(_document(_rows()))[:3] == ["schema_version", "generator", "status"]


def test_other_types_are_a_defect() -> None:
    with pytest.raises(TypeError, match="/model/name holds a set"):
        _document(_rows(), model={"name": {1}})


# ---- files ---------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "x.json"
    report.write_json(target, {"a": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match="x.json: No space left"):
        report.write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_is_made_and_tried(tmp_path: Path) -> None:
    report.check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to output directory .*file"):
        report.check_writable(tmp_path / "file" / "out")


# ---- words and pictures --------------------------------------------------------------------------


def test_the_text_report_says_what_a_reader_needs() -> None:
    said = text.full_report(_document(_rows()))
    for words in (
        "What was compared",
        "toy: 250,000 parameters, 1.00 MB in FP32",
        "Use                INT4_Group_32 (0.19 MB, 1.05x FP32's speed (0.89 .. 1.21), error 6",
        "Rule               Quantized schemes that finished",
        "Best for accuracy  INT8_Per_Channel_Symmetric (0.31 MB",
        "No difference in error is shown from all",
        "Biggest regressions",
        "* first: the first Linear (skip_first_last) (in 5 schemes)",
        "track_head",
        "pose_fov, ssim: not an image",
        "say little about chance",
        "A processor, 2 cores, kernels: avx2",
    ):
        assert words in said, words
    assert max(map(len, said.splitlines())) <= text.WIDTH
    for row in _rows():
        assert row["name"] in said


def test_all_names_fit_the_table() -> None:
    rows = [_row(name, 0.01, 1_123_456_789, 12345.6) for name in vq.CONFIGS]
    for row in rows:
        row["task"]["truth"] = {"auc_30": 0.5, "depth_abs_rel_median": 0.1}
    said = text.full_report(_document(rows))
    assert "…" not in said
    for name in vq.CONFIGS:
        assert name in said


def test_chance_and_the_chain_are_told_in_whole_words() -> None:
    names = (
        "INT8_Per_Tensor_Symmetric",
        "INT8_Per_Channel_Symmetric",
        "INT4_Group_128",
        "INT4_Group_64",
        "INT4_Group_32",
    )
    rows = [_row(name, 0.01, 200_000, 10.0) for name in ("Baseline_FP32", *names)]
    errors = {"INT8_Per_Tensor_Symmetric": 0.02, "INT4_Group_128": 0.2, "INT4_Group_64": 0.1}
    for row in rows:
        scene = row["scenes"][0]
        mean = 0.0 if row["kind"] == "baseline" else errors.get(row["name"], 0.01)
        row["scenes"] = [
            scene
            | {"scene": f"s{i}"}
            | {"task": scene["task"] | {"fp32": {"depth_abs_rel": mean * (1 + 0.01 * i)}}}
            for i in range(6)
        ]
        row |= task.over_scenes(row["scenes"])
    said = text.full_report(_document(rows))
    assert "…" not in said
    chain = said[said.index("Does the depth error") :].splitlines()[3:8]
    assert [line.split()[0] for line in chain] == [
        "INT8_Per_Channel_Symmetric",
        "INT8_Per_Tensor_Symmetric",
        "INT4_Group_32",
        "INT4_Group_64",
        "INT4_Group_128",
    ]
    assert [line.split()[-1] for line in chain[1:]] == ["grows", "shrinks", "grows", "grows"]
    assert "6 scenes (10000 resamples, seed 0)" in " ".join(said.split())


def test_cautions_name_a_busy_machine() -> None:
    document = _document(_rows())
    document["environment"]["load_average_1min"] = 9.0
    document["baseline_recheck"] = {
        "outputs_equal_first_run": True,
        "forward_ms": 150.0,
        "time_drift_percent": 50.0,
    }
    said = " ".join(text.cautions(document))
    assert "load 9.0 on 2 cores" in said and "from 90.0 to 150.0 ms" in said


@pytest.mark.parametrize("count", [1, 2, 7])
def test_charts_are_a_png_of_a_printable_size(count: int) -> None:
    rows = _rows()[:count]
    if count == 7:
        rows[3] |= {"status": "failed", "reason": "NaN"}
    png = charts.draw(_document(rows))
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG" and image.width >= 1800 and image.height >= 700


def test_charts_of_one_document_are_the_same_bytes() -> None:
    assert charts.draw(_document(_rows())) == charts.draw(_document(_rows()))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (3599.0, "59 min 59 s"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said
