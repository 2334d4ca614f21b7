# SPDX-License-Identifier: Apache-2.0
"""The document, its picks, the text and the charts: pure functions of rows, so no model runs."""

import io
import json
import math
from pathlib import Path

import jsonschema
import pytest
from builders import SCHEMA, SCHEMA_FILE, document, plain, row, seven, variant, with_scenes
from PIL import Image

import vggtquant as vq
from vggtquant.evaluation import schema, words
from vggtquant.evaluation.analyse import intervals, recommendation, report, rows
from vggtquant.evaluation.present import charts, files, tables, text
from vggtquant.evaluation.schema import Best, Recheck, Row, Status, Task, Why

# ---- picks ---------------------------------------------------------------------------------------


def _best(found: list[Row]) -> Best:
    return recommendation.best(found, intervals.statistics(found))


def test_picks_follow_their_rules() -> None:
    best = _best(seven())
    assert best.accuracy == "INT8_Per_Channel_Symmetric"
    assert best.size == "INT4_Group_128"
    assert best.speed == "INT8_Per_Channel_Symmetric_A8"
    assert best.pareto_front == [
        "INT4_Group_128",
        "INT4_Group_32",
        "INT8_Per_Tensor_Symmetric",
        "INT8_Per_Channel_Symmetric",
    ]


def test_failed_rows_and_references_are_never_picked() -> None:
    found = seven()
    found[5].status, found[5].reason = Status.FAILED, "NaN"
    best = _best(found)
    assert best.size == "INT4_Group_32"
    assert "Baseline_BF16" not in (best.accuracy, best.size, best.speed)


def test_without_a_finished_scheme_there_is_no_pick() -> None:
    best = _best(seven()[:2])
    assert [best.accuracy, best.size, best.speed] == [None] * 3
    assert "none. No scheme finished" in text.full_report(document(seven()[:2]))


def test_ties_go_to_the_smaller_and_the_more_accurate() -> None:
    rows = [
        row("INT4_Group_64", 0.01, 200_000, 10.0),
        row("INT4_Group_128", 0.01, 190_000, 10.0),
        row("INT4_Group_32", 0.02, 190_000, 10.0),
    ]
    best = _best(rows)
    assert best.accuracy == best.size == "INT4_Group_128"
    assert best.tied.size == ["INT4_Group_32"]
    assert best.pareto_front == ["INT4_Group_128"]


def test_regressions_are_sorted() -> None:
    found = report.regressions(seven(), most=3)
    assert [(value, name) for value, name, _ in found] == [
        (0.08, "INT4_Group_128"),
        (0.08, "INT4_Group_128"),
        (0.06, "INT4_Group_32"),
    ]


# ---- the document --------------------------------------------------------------------------------


def test_the_schema_is_generated_and_of_this_version() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"].endswith(f"schema_version {schema.SCHEMA_VERSION}")
    made = schema.json_text()
    assert made == SCHEMA_FILE.read_text(), (
        "python -m vggtquant.evaluation.schema > docs/report.schema.json"
    )


@pytest.mark.parametrize("count", [1, 2, 7])
def test_documents_follow_the_schema(count: int) -> None:
    jsonschema.validate(plain(document(seven()[:count])), SCHEMA)


def test_failed_and_skipped_rows_follow_the_schema() -> None:
    skipped = rows.empty(variant("Baseline_BF16"))
    skipped.status, skipped.why, skipped.reason = Status.SKIPPED, Why.SLOW, "would take 3 h"
    failed = rows.empty(variant("INT4_Group_64"))
    failed.status, failed.why, failed.reason = Status.FAILED, Why.NONFINITE, "NaN"
    jsonschema.validate(plain(document([*seven()[:1], skipped, failed])), SCHEMA)


def test_the_schema_refuses_what_is_wrong() -> None:
    made = plain(document(seven()))
    jsonschema.validate(made, SCHEMA)
    for change in ({"status": "splendid"}, {"unheard": 1}, {"error": "large"}):
        wrong = made | {"schemes": [made["schemes"][0] | change]}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_nan_and_inf_become_null_with_a_reason() -> None:
    found = seven()
    found[2].metrics["depth"].psnr = math.inf
    found[2].prepare_s = math.nan
    made = document(found)
    assert made.schemes[2].metrics["depth"].psnr is None
    assert made.nulls == {
        "/schemes/2/prepare_s": "the value was nan",
        "/schemes/2/metrics/depth/psnr": "the value was inf",
        "/schemes/2/scenes/0/metrics/depth/psnr": "the value was inf",
    }
    json.loads(files.as_json(made), parse_constant=lambda word: pytest.fail(word))


def test_the_order_of_keys_is_stable() -> None:
    first = files.as_json(document(seven()))
    assert first == files.as_json(document(seven()))
    assert list(json.loads(first))[:3] == ["schema_version", "generator", "status"]


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = document(seven())
    (tmp_path / schema.JSON_NAME).write_bytes(files.as_json(made))
    assert schema.read(tmp_path) == made


# ---- words and pictures --------------------------------------------------------------------------


def test_the_text_report_says_what_a_reader_needs() -> None:
    said = text.full_report(document(seven()))
    flowing = " ".join(said.split())
    for part in (
        "What was compared",
        "toy: 250,000 parameters, 1.00 MB in FP32",
        "Use none. No scheme keeps within the bounds (1 point of AUC@30 and 0.2 % of depth",
        "Nearest: INT8_Per_Channel_Symmetric: its depth is 1 % from FP32's",
        "Rule The smallest scheme whose outputs stay",
        "Best for accuracy INT8_Per_Channel_Symmetric (0.31 MB, 1.25x FP32's speed (1.06 .. 1.44)",
        "Whether others are as accurate is unknown",
        "Biggest regressions",
        "* first: the first Linear (skip_first_last) (in 5 schemes)",
        "track_head",
        "Memory and loading",
        "pose_fov, ssim: not an image",
        "1 scene says nothing about chance",
        "A processor, 2 cores, kernels: avx2",
        "Times can be used: they hold for this machine; our threads waited 1 % of their time.",
    ):
        assert part in flowing, part
    assert max(map(len, said.splitlines())) <= tables.WIDTH
    for one in seven():
        assert one.name in said


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_figure_is_cut_in_the_terminal(width: int) -> None:
    found = [row(name, 0.01, 1_123_456_789, 12345.6) for name in vq.CONFIGS]
    for one in found:
        one.task.truth = {"auc_30": 1.0, "depth_abs_rel_median": 0.1}
    said = text.terminal(document(found), width)
    assert "…" not in said and "..." not in said.partition("Times")[0]
    assert max(map(len, said.splitlines())) <= min(width, tables.WIDTH)
    for name in vq.CONFIGS:
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [name]]
        assert line.split()[-2:] == ["100.0", "10.00"] and "12346" in line.split()
    order = [said.index(f"\n{name} ") for name in ("INT4_Group_32", "INT4_Group_32_A8")]
    assert order == sorted(order) and said.index("\nBaseline_BF16 ") > order[1]


def test_what_is_rendered_does_not_depend_on_jupyter(monkeypatch) -> None:
    wanted = text.full_report(document(seven()))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text.full_report(document(seven())) == wanted


def test_chance_and_the_chain_are_told_in_whole_words() -> None:
    names = (
        "INT8_Per_Tensor_Symmetric",
        "INT8_Per_Channel_Symmetric",
        "INT4_Group_128",
        "INT4_Group_64",
        "INT4_Group_32",
    )
    found = [row(name, 0.01, 200_000, 10.0) for name in ("Baseline_FP32", *names)]
    errors = {"INT8_Per_Tensor_Symmetric": 0.02, "INT4_Group_128": 0.2, "INT4_Group_64": 0.1}
    for one in found:
        mean = 0.0 if one.name == "Baseline_FP32" else errors.get(one.name, 0.01)
        fp32 = [{"depth_abs_rel": mean * (1 + 0.01 * i)} for i in range(6)]
        with_scenes(one, [Task(fp32=scores, consistency={}) for scores in fp32])
    said = text.full_report(document(found))
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
    made = document(seven())
    made.environment.load_average_1min = 9.0
    made.baseline_recheck = Recheck(
        outputs_equal_first_run=True, forward_ms=150.0, time_drift_percent=50.0
    )
    said = " ".join(text.cautions(made))
    assert "load 9.0 on 2 cores" in said and "from 100.0 to 150.0 ms" in said


@pytest.mark.parametrize("count", [1, 2, 7])
def test_charts_are_a_png_of_a_printable_size(count: int) -> None:
    found = seven()[:count]
    if count == 7:
        found[3].status, found[3].reason = Status.FAILED, "NaN"
    with Image.open(io.BytesIO(charts.png(document(found)))) as image:
        assert image.format == "PNG" and image.width >= 1800 and image.height >= 700


def test_charts_of_one_document_are_the_same_bytes() -> None:
    made = document(seven())
    assert charts.png(made) == charts.png(document(seven()))
    assert [charts.svg(made, name) for name in charts.CHARTS] == [
        charts.svg(made, name) for name in charts.CHARTS
    ]


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
    assert words.duration(seconds) == said
