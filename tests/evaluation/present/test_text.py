# SPDX-License-Identifier: Apache-2.0
"""The report in words, at every width of a terminal."""

import pytest
from builders import document, row, seven, with_scenes

import vggtquant as vq
from vggtquant.evaluation import formatting
from vggtquant.evaluation.present import tables, text
from vggtquant.evaluation.schema import Recheck, Task

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
    assert formatting.duration(seconds) == said


def test_memory_without_isolate_has_no_empty_columns() -> None:
    """Every cell is a figure, and the words name the option that adds the rest."""
    found = seven()
    for one in found:
        one.process_peak_bytes = 123_000_000
    made = document(found)
    table = text.memory_table(made)
    assert table.headings == ["Scheme", "peak MB", "quantizing s"]
    assert [line[0] for line in table.rows] == [one.name for one in seven()]
    assert {line[1] for line in table.rows} == {"123.00"}
    said = " ".join(text.full_report(made).split())
    assert "--isolate adds load time, memory and file of each scheme alone." in said
    assert "own peak MB" not in said
