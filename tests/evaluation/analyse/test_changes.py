# SPDX-License-Identifier: Apache-2.0
"""vggtquant compare: what changed between two reports, and what must not be compared."""

import copy
import json
from pathlib import Path

import msgspec
import pytest
from builders import document, seven

from vggtquant.commands import cli
from vggtquant.evaluation import schema
from vggtquant.evaluation.analyse import changes
from vggtquant.evaluation.present import comparison, files
from vggtquant.evaluation.schema import Document, Row, SceneInput, Status

INT8 = "INT8_Per_Channel_Symmetric"


@pytest.fixture
def a() -> Document:
    return document(seven())


@pytest.fixture
def b(a: Document) -> Document:
    return copy.deepcopy(a)


def _row(document: Document, name: str = INT8) -> Row:
    found = document.row(name)
    assert found is not None
    return found


def _compare(tmp_path: Path, a: Document, b: Document, *flags: str) -> int:
    for name, made in (("a", a), ("b", b)):
        (tmp_path / f"{name}.json").write_bytes(files.as_json(made))
    return cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *flags])


def test_equal_reports_have_no_changes(a: Document, b: Document) -> None:
    found = changes.compare(a, b)
    assert found.differences == [] and found.comparable == changes.Comparable(True, True)
    assert all(not one.changes and one.unchanged > 10 for one in found.schemes.values())
    said = comparison.in_words(found, a, b)
    assert said[0].startswith("no difference in these figures: Baseline_FP32")
    assert said[-1].startswith("0 figures in 7 schemes differ")


def test_every_figure_that_changed_is_listed(a: Document, b: Document) -> None:
    _row(b).error = 0.02
    _row(b).metrics["depth"].mae *= 2
    _row(b).bytes.model_bytes += 1
    found = changes.compare(a, b).schemes[INT8]
    assert set(found.changes) == {"error", "metrics/depth/mae", "bytes/model_bytes"}
    assert found.changes["error"] == changes.Change(0.01, 0.02, 2.0, True)
    (line,) = [
        line for line in comparison.in_words(changes.compare(a, b), a, b) if "error %" in line
    ]
    assert line.split() == [INT8, "error", "%", "1", "2", "+100.0", "%"]


@pytest.mark.parametrize(
    ("factor", "iqr", "beyond", "words"),
    [
        (1.05, 0.1, False, "+5.0 %, within the spread"),
        (1.5, 0.1, True, "+50.0 %"),
        (1.5, None, None, "+50.0 %, spread unknown"),
    ],
)
def test_times_are_held_to_their_spread(a, b, factor, iqr, beyond, words) -> None:
    time = _row(b).time
    time.forward_ms_median *= factor
    time.forward_ms_iqr = iqr and iqr * time.forward_ms_median
    found = changes.compare(a, b)
    assert found.schemes[INT8].time_beyond_spread is beyond
    (line,) = [line for line in comparison.in_words(found, a, b) if " ms " in line]
    assert line.endswith(words)


def test_schemes_that_only_one_has(a: Document, b: Document) -> None:
    a.schemes.pop(2)
    b.schemes.pop(5)
    found = changes.compare(a, b)
    assert found.only_in_a == ["INT4_Group_128"]
    assert found.only_in_b == ["INT8_Per_Tensor_Symmetric"]
    said = comparison.in_words(found, a, b)
    assert "only in A: INT4_Group_128" in said and "only in B: INT8_Per_Tensor_Symmetric" in said


def test_a_scheme_that_failed_in_one_of_them(a: Document, b: Document) -> None:
    row = _row(b)
    row.status, row.time, row.bytes, row.error, row.metrics = Status.FAILED, None, None, None, {}
    found = changes.compare(a, b)
    assert found.schemes[INT8].status == ["ok", "failed"]
    assert "metrics/depth/mae" in found.schemes[INT8].only_in_a
    (line,) = [line for line in comparison.in_words(found, a, b) if INT8 in line and "ok" in line]
    assert line.split() == [INT8, "status", "ok", "failed"]


def test_other_machines_are_refused_unless_forced(tmp_path, a, b, capsys) -> None:
    b.environment.cpu.model = "Another processor"
    _row(b).time.forward_ms_median = 70.0
    _row(b).error = 0.02
    assert _compare(tmp_path, a, b) == 4
    out = capsys.readouterr().out
    assert "A processor -> Another processor (times not comparable)" in out
    assert "70.0" not in out and "--force" in out
    assert _compare(tmp_path, a, b, "--force") == 0
    out = capsys.readouterr().out
    (time,) = [line for line in out.splitlines() if " ms " in line]
    assert "70.0" in time and time.endswith("not comparable")
    assert "+100.0 %" in out  # scores are those of the same model on the same pictures
    assert _compare(tmp_path, a, b, "--force", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparable"] == {"scores": True, "times": False}
    change = found["schemes"][INT8]["changes"]["time/forward_ms_median"]
    assert change == {"a": 80.0, "b": 70.0, "ratio": None, "comparable": False}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "sha256"), "1" * 64),
        (("data", "preprocessing"), "pad"),
        (("environment", "versions", "torch"), "3"),
        (("data", "scenes"), [SceneInput("s0", 2, 28, 28, False, {"0.png": "2" * 64})]),
        (("environment", "threads", "torch"), 7),
        (("environment", "cpu", "isa_active"), "scalar"),
    ],
)
def test_unlike_conditions_are_refused(tmp_path, a, b, path, value, capsys) -> None:
    inner = b
    for key in path[:-1]:
        inner = getattr(inner, key)
    if isinstance(inner, dict):
        inner[path[-1]] = value
    else:
        setattr(inner, path[-1], value)
    assert _compare(tmp_path, a, b) == 4
    capsys.readouterr()
    assert _compare(tmp_path, a, b, "--json") == 4
    found = json.loads(capsys.readouterr().out)
    assert found["refused"] and found["schemes"] == {} and len(found["differences"]) == 1
    assert _compare(tmp_path, a, b, "--force") == 0


def test_another_version_of_ours_is_said_and_compared(tmp_path, a, b, capsys) -> None:
    b.environment.versions["vggtquant"] = "2"
    assert _compare(tmp_path, a, b) == 0
    assert capsys.readouterr().out.startswith("environment/versions/vggtquant: 1 -> 2\n")


def test_a_folder_stands_for_its_report(tmp_path: Path, a: Document, capsys) -> None:
    (tmp_path / schema.JSON_NAME).write_bytes(files.as_json(a))
    assert cli.main(["compare", str(tmp_path), str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        (b"\xff\xfe{", "no JSON"),
        (b"[1, 2]", "is no comprehensive_results.json"),
        (b'{"schema_version": "1.0"}', "is no comprehensive_results.json"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, capsys, content, words) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["compare", str(file), str(file)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err and "x.json" in err


def test_another_major_version_is_refused(tmp_path: Path, a: Document, capsys) -> None:
    a.schema_version = "99.0"
    assert _compare(tmp_path, a, a) == 2
    assert "has schema version 99.0" in capsys.readouterr().err


def test_a_key_of_another_type_is_named_with_its_place(tmp_path: Path, a: Document, capsys) -> None:
    plain = msgspec.to_builtins(a)
    plain["schemes"][2]["time"]["forward_ms_median"] = "fast"
    (tmp_path / schema.JSON_NAME).write_text(json.dumps(plain))
    assert cli.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "got `str` - at `$.schemes[2].time.forward_ms_median`" in err


def test_a_report_of_version_0_1_is_read(tmp_path: Path, a: Document, capsys) -> None:
    """Schema 3.0: keys that went away, and none of those that came."""
    plain = msgspec.to_builtins(a) | {"schema_version": "3.0"}
    for row in plain["schemes"]:
        row |= {"energy_joules": None}
        del row["why"]
        for key in ("speedup_withheld", "pairs", "waited"):
            del row["time"][key]
        row["time"] |= {"fp32_ms_before": 90.0, "fp32_ms_after": 110.0}
    plain["best"] |= {"balance": INT8, "tied": {"accuracy": [], "speed": []}}
    plain["recommendation"] |= {"loss": {"against": "truth", "points": 1, "low": None, "high": 2}}
    for key in ("nearest", "tied", "depth_bound"):
        del plain["recommendation"][key]
    plain["timing"] = {"rule": "", "wide": [], "advice": None}
    for key in ("groups", "source"):
        del plain["settings"][key]
    del plain["environment"]["threads"]["wait_policy"]
    (tmp_path / "old.json").write_text(json.dumps(plain))
    (tmp_path / "new.json").write_bytes(files.as_json(a))
    assert cli.main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    assert "no difference in these figures" in capsys.readouterr().out
