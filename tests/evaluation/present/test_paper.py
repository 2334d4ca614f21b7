# SPDX-License-Identifier: Apache-2.0
"""The experiment report: four formats, two languages, and no claim without an interval."""

import csv
import io
import re
import shutil
import string
import subprocess
import xml.etree.ElementTree
from pathlib import Path

import docx
import pytest
from builders import document as made_of
from builders import row, seven, with_scenes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vggtquant.commands import cli
from vggtquant.errors import UserError
from vggtquant.evaluation.api import Report
from vggtquant.evaluation.present import charts, files, paper
from vggtquant.evaluation.present.paper import content, figures, phrases
from vggtquant.evaluation.schema import (
    Document,
    Kind,
    Layer,
    Metrics,
    State,
    Status,
    Task,
    Why,
)
from vggtquant.weights.names import resolve

NASTY = r"a|b & 50 % $x_1$ {y} #<b>`c`</b> \end"


def _failing() -> Document:
    rows = seven()
    rows[3].status, rows[3].reason = Status.FAILED, f"NaN in {NASTY}"
    made = made_of(rows)
    made.model.name = NASTY
    return made


def _with_layers() -> Document:
    rows = seven()
    for one in rows[2:]:
        one.layers = [Layer(f"aggregator.{i}", sqnr_db=20 + one.error + i) for i in range(4)]
    rows[3].status, rows[3].reason = Status.FAILED, f"NaN in {NASTY}"
    return made_of(rows)


def _scenes(errors: dict[str, list[float]]) -> Document:
    """FP32 and schemes with these depth errors on each scene; metrics follow them."""
    names = {"Baseline_FP32": [0.0] * len(next(iter(errors.values())))} | errors
    rows = []
    for name, found in names.items():
        made = row(name, sum(found) / len(found), 1_000_000 if "FP32" in name else 300_000, 100.0)
        with_scenes(made, [Task(fp32={"depth_abs_rel": e}, consistency={}) for e in found])
        for scene, error in zip(made.scenes, found, strict=True):
            scene.metrics = {"depth": _metrics(error)}
        rows.append(made)
    return made_of(rows)


def _metrics(error: float) -> Metrics:
    return Metrics(mae=error, relative_l2=error)


def _same() -> Document:
    """Two schemes that are now better, now worse than each other, beside a float reference."""
    up, down = [0.01, 0.02] * 4, [0.02, 0.01] * 4
    return _scenes({"INT8_Per_Channel_Symmetric": up, "INT8_Per_Tensor_Symmetric": down})


def _apart() -> Document:
    low, high = [0.01, 0.011] * 4, [0.05, 0.051] * 4
    return _scenes({"INT8_Per_Channel_Symmetric": low, "INT8_Per_Tensor_Symmetric": high})


DOCUMENTS = {
    "plain": lambda: made_of(seven()),
    "failing": _failing,
    "one row": lambda: made_of(seven()[:1]),
    "same": _same,
    "apart": _apart,
}


def _said(document: Document, language: str = "en") -> tuple[list[str], str]:
    """The keys of the sentences of a report, and its text."""
    say = phrases.Phrases(language)
    blocks = content.blocks(document, say, [], "vggtquant report RESULTS")
    return say.used, "\n".join(b.text for b in blocks if isinstance(b, content.Paragraph))


def _claims(document: Document) -> set[str]:
    return {key for key in _said(document)[0] if key.startswith("claim_")}


# ---- what is said --------------------------------------------------------------------------------


def test_both_languages_have_the_same_sentences_with_the_same_facts() -> None:
    def fields(words: str) -> set[str | None]:
        return {field for _, field, _, _ in string.Formatter().parse(words) if field}

    english, chinese = (phrases.Phrases(name).table for name in phrases.LANGUAGES)
    assert list(english) == list(chinese)
    for key, words in english.items():
        assert fields(words) == fields(chinese[key]), key


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_every_document_can_be_told(name: str, language: str) -> None:
    _, text = _said(DOCUMENTS[name](), language)
    assert text and not re.search(r"\bNone\b|\bnan\b", text)


def test_one_scene_claims_nothing_of_scores() -> None:
    used, text = _said(made_of(seven()))
    assert {key for key in used if key.startswith("claim_")} <= {"claim_faster", "claim_slower"}
    assert "error_unknown" in used and "conclude_unknown" in used
    assert "too few scenes for intervals (1)" in text


def test_no_difference_claims_no_accuracy() -> None:
    used, text = _said(_same())
    assert "claim_accurate" not in used and "error_tied" in used
    assert "smaller than that of every other" not in text


def test_a_difference_that_intervals_show_is_told() -> None:
    claims = _claims(_apart())
    assert {"claim_accurate", "claim_worse"} <= claims
    assert "conclude_shown" in _said(_apart())[0]


def test_quartiles_about_one_claim_no_speed() -> None:
    rows = seven()
    for one in rows:
        one.timed.speedup, one.timed.speedup_low, one.timed.speedup_high = 1.1, 0.9, 1.3
    used, _ = _said(made_of(rows))
    assert "speed_not_shown" in used and not {"claim_faster", "claim_slower"} & set(used)


def test_withheld_times_name_no_fastest() -> None:
    rows = seven()
    for one in rows:
        one.timed.speedup = None
    assert "no_speed" in _said(made_of(rows))[0]


def test_failed_rows_and_none_at_all_are_said() -> None:
    used, _ = _said(_failing())
    assert "bad" in used
    assert "nothing" in _said(made_of(seven()[:1]))[0]
    finished = next(
        line for line in _said(_failing())[1].splitlines() if "schemes finished" in line
    )
    assert "4 of 5 quantized schemes finished" in finished


def test_reasons_and_descriptions_are_told_in_the_language_of_the_report() -> None:
    rows = seven()
    rows[3].status, rows[3].why = Status.FAILED, Why.NONFINITE
    rows[3].reason = Why.NONFINITE.text(output="depth", count=3, scene="kitchen")
    document = made_of(rows)
    document.data.description = "pictures in 4 overlapping groups"
    say = phrases.Phrases("zh")
    blocks = content.blocks(document, say, [], "")
    items = [item for b in blocks if isinstance(b, content.Bullets) for item in b.items]
    assert any("在 kitchen 上 depth 含 3 个 NaN 或 Inf" in item for item in items)
    setup = next(b for b in blocks if isinstance(b, content.Grid))
    assert any("图片，分为 4 个相互重叠的组" in row[1] for row in setup.rows)


def test_a_chinese_report_holds_no_english_sentence() -> None:
    """Names of schemes, metrics and machines stay; three words in a row do not."""
    rows = seven()
    rows[3].status, rows[3].why = Status.FAILED, Why.NO_KERNEL
    rows[3].reason = Why.NO_KERNEL.text(count=2, names="aggregator.0")
    document = made_of(rows)
    document.status = State.INTERRUPTED
    document.model.licence = resolve("builtin:tiny").licence
    document.data.description, document.data.synthetic = "rendered scenes of vggtquant", True
    say = phrases.Phrases("zh")
    blocks = content.blocks(document, say, [*figures.drawings(document)], "vggtquant report R")
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, content.Grid):
            texts += [block.caption, *block.headings, *(cell for row in block.rows for cell in row)]
        elif isinstance(block, content.Bullets):
            texts += block.items
        elif isinstance(block, content.Picture):
            texts.append(block.caption)
        elif isinstance(block, content.Heading | content.Paragraph):
            texts.append(block.text)
    english = [text for text in texts if re.search(r"[A-Za-z]{2,}(,? [a-z]{2,}){2,}", text)]
    assert english == ["SSIM (Wang et al. 2004)"]


@pytest.mark.parametrize("why", Why)
def test_every_reason_has_a_phrase_with_its_facts(why: Why) -> None:
    names = ("error", "scene", "output", "count", "names", "scenes", "what", "times", "name")
    facts = why.facts(why.text(**{name: f"the {name}" for name in names}))
    assert facts is not None
    said = phrases.Phrases("zh")(f"why_{why.name.lower()}", **facts)
    assert all(f"the {name}" in said for name in facts)


# ---- tables --------------------------------------------------------------------------------------


def test_a_matrix_of_the_eight_metrics_an_output() -> None:
    document = made_of(seven())
    blocks = content.blocks(document, phrases.Phrases("en"), [], "")
    grids = {b.name: b for b in blocks if isinstance(b, content.Grid)}
    assert len(content.EIGHT) == 8
    for output in ("depth", "pose_fov"):
        grid = grids[f"matrix_{output}"]
        assert list(grid.headings[1:]) == list(content.EIGHT)
        assert [cells[0] for cells in grid.rows] == [one.name for one in document.schemes]
    assert grids["matrix_pose_fov"].rows[2][8] == "-"  # no SSIM: not an image
    assert grids["matrix_depth"].exact[3][1] == document.schemes[2].metrics["depth"].mae


def test_core_leaves_the_eight_schemes_and_chooses_among_them() -> None:
    document = made_of(seven())
    shown = content.core(document)
    assert len(content.CORE) == 8
    names = {one.name for one in shown.schemes}
    assert "INT8_Per_Channel_Symmetric_A8" not in names and "Baseline_BF16" not in names
    assert names <= set(content.CORE) and shown.best.accuracy in names
    assert set(shown.best.pareto_front) <= names
    assert set(shown.statistics.against_fp32) <= names
    assert shown.noise_floor.errors == document.noise_floor.errors
    assert len(document.schemes) == 7  # the document itself is left alone


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results as evaluate writes them."""
    there = tmp_path_factory.mktemp("results")
    files.write(there, _failing(), charts=False)
    return there


FEW = ("tradeoff", "metrics_depth")
"""One chart and one of metrics, for speed."""


def test_every_format_is_written_by_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All four at once, which share their figures."""
    words = ["report", str(folder), "--format", ",".join(paper.FORMATS), "--out", str(tmp_path)]
    words += ["--core", "--figures", *FEW]
    assert cli.main(words) == 0
    assert "wrote 6 files" in capsys.readouterr().out
    for name in FEW:
        xml.etree.ElementTree.parse(tmp_path / "figures" / f"{name}.svg")
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert round(picture.info["dpi"][0]) == 300
    rows = [*csv.reader(io.StringIO((tmp_path / "tables/matrix_depth.csv").read_text("utf-8-sig")))]
    assert rows[0] == ["scheme", *content.EIGHT] and rows[1][0] == "Baseline_FP32"
    for read in _READERS.values():
        read(tmp_path)


def _markdown(folder: Path) -> None:
    text = (folder / "report.md").read_text("utf-8")
    assert "<b>" not in text and "\n\n\n" not in text
    assert text.count("\n$$\n") == 2 * len(content.FORMULAS)  # on lines of their own
    for line in text.splitlines():  # a cell a column, whatever stands in it
        if line.startswith("| INT8"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (7, 10, 5)
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (folder / name).exists()


def _html(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    assert "<b>`c`" not in text and "&lt;b&gt;" in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def _latex(folder: Path) -> None:
    text = (folder / "report.tex").read_text("utf-8")
    assert r"\toprule" in text and r"a\textbar{}b \& 50 \% \$x\_\allowbreak{}1\$" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") > 4


def _word(folder: Path) -> None:
    found = docx.Document(str(folder / "report.docx"))
    assert NASTY in found.paragraphs[0].text
    tables = [[[cell.text for cell in line.cells] for line in t.rows] for t in found.tables]
    assert ["scheme", *content.EIGHT] in [table[0] for table in tables]
    assert len(found.inline_shapes) == 2
    for table in found.tables:  # the headings stand again on each page; names are not broken
        assert table.rows[0]._tr.xpath("./w:trPr/w:tblHeader")
        widths = [cell.width.inches for cell in table.rows[0].cells]
        assert sum(widths) == pytest.approx(6.77, abs=0.01)
        assert len(widths) < 9 or widths[0] == max(widths)


_READERS = {"md": _markdown, "html": _html, "latex": _latex, "docx": _word}


@pytest.mark.parametrize(
    ("language", "engine"),
    [pytest.param("en", "pdflatex", marks=pytest.mark.slow), ("zh", "xelatex")],
)
def test_latex_compiles(language: str, engine: str, tmp_path: Path) -> None:
    if shutil.which(engine) is None:
        pytest.skip(f"no {engine} here")
    wanted = ("ctexart.cls", "float.sty") if language == "zh" else ("booktabs.sty", "float.sty")
    for file in wanted:
        found = subprocess.run(["kpsewhich", file], capture_output=True, text=True)
        if not found.stdout.strip():
            pytest.skip(f"the TeX here has no {file}")
    paper.write(_failing(), tmp_path, form="latex", language=language, chosen=FEW)
    done = subprocess.run(
        [engine, "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-1500:]
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_report_write_takes_formats(tmp_path: Path) -> None:
    """Several share the figures; what does not number its tables by itself gets numbers."""
    paths = Report(made_of(seven())).write(tmp_path, "md,latex", core=True, figures=["size"])
    assert {tmp_path / "report.md", tmp_path / "report.tex"} <= {*paths}
    assert all(path.exists() for path in paths)
    plain, tex = ((tmp_path / name).read_text("utf-8") for name in ("report.md", "report.tex"))
    assert "**Table 1: Experimental setup**" in plain and "![Figure 1: Size" in plain
    assert "--format md,latex" in plain and "Table 1" not in tex
    with pytest.raises(UserError, match="no format 'pdf'; wanted one of md, latex"):
        Report(made_of(seven())).write(tmp_path, "pdf")


# ---- figures -------------------------------------------------------------------------------------


def test_names_of_any_kind_are_drawn_without_a_warning() -> None:
    """Warnings are errors here: of axes without room, letters without a font, formulas."""
    rows = seven()[:5]
    for one, name in zip(rows[2:], ("n" * 100, "方案一", "$a$_b$"), strict=True):
        one.name = name
    made = made_of(rows)
    made.model.name = "$m$ 模型 " + "m" * 100
    assert charts.png(made)
    drawings = figures.chosen(made, ["tradeoff", "metrics_depth"])
    assert len([*figures.files(made, drawings, "en")]) == 6


def test_the_names_beside_all_panels_have_room() -> None:
    """An axis is 12 hundredths of an inch a row high: nine points."""
    drawn = _drawn(made_of(seven()), "metrics_depth")
    drawn.draw_without_rendering()
    shown = [axis.get_yticklabels() for axis in drawn.axes[::2]]
    assert len(shown) == 4 and all(one.get_fontsize() == 7 for labels in shown for one in labels)


def test_no_label_of_an_axis_is_cut_off() -> None:
    cut = []
    for one in figures.drawings(made_of(seven())):
        figure = one.draw()
        figure.draw_without_rendering()
        width, height = figure.bbox.size + 1
        for label in (x.label for axis in figure.axes for x in (axis.xaxis, axis.yaxis)):
            box = label.get_window_extent()
            inside = -1 <= box.x0 and -1 <= box.y0 and box.x1 <= width and box.y1 <= height
            cut += [] if inside or not label.get_text() else [(one.name, label.get_text())]
    assert not cut


def test_a_chart_shortens_a_name_in_its_middle() -> None:
    long = "INT8_Per_Channel_Asymmetric_A8_smoothquant_seed12"
    assert charts.label(long) == "INT8_Per_Channel_As…8_smoothquant_seed12"


def test_without_a_chinese_font_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "CHINESE", ("No Such Font",))
    said: list[str] = []
    paper.write(made_of(seven()), tmp_path, language="zh", chosen=["size"], warn=said.append)
    assert said == [paper.NO_FONT]
    assert "实验目的" in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize("name", [*figures.CHARTS, "sqnr"])
def test_the_words_of_every_chart_have_a_chinese_one(name: str) -> None:
    _all_words_are_known(_with_layers(), _drawn(_with_layers(), name))


def _drawn(document: Document, name: str) -> Figure:
    return figures.chosen(document, [name])[0].draw()


def _all_words_are_known(document: Document, figure: Figure) -> None:
    figure.draw_without_rendering()
    known = {one.name for one in document.schemes} | {"depth", "pose_fov"}
    table = figures.words()
    for text in figure.findobj(Text):
        words = text.get_text().strip()
        own = any(scheme in words for scheme in known) or not re.search(r"[A-Za-z]{2}", words)
        own = own or "mathdefault" in words or words.startswith("aggregator")
        assert own or words in table or any(words.startswith(key) for key in table), words


def test_one_long_bar_does_not_squeeze_the_others() -> None:
    rows = [*seven(), row("INT4_Group_64", 0.07, 185_000, 9000.0)]
    assert rows[0].kind is Kind.BASELINE
    assert _drawn(made_of(rows), "time").axes[0].get_xscale() == "log"
    assert _drawn(made_of(seven()), "time").axes[0].get_xscale() == "linear"


def test_a_figure_a_metric_where_it_is_named() -> None:
    document = made_of(seven())
    found = [one.name for one in figures.chosen(document, ["metric_depth_*", "size"])]
    assert found == [*(f"metric_depth_{name}" for name in content.EIGHT), "size"]
    assert len(figures.single(document)) == 2 * len(content.EIGHT)
    axes = _drawn(document, "metric_depth_psnr").axes
    assert len(axes) == 1 and axes[0].get_title() == "psnr (dB)"
    with pytest.raises(UserError, match="no figure 'sizes'; wanted size, time"):
        figures.chosen(document, ["sizes"])


def test_the_tradeoff_names_every_scheme_without_overlap() -> None:
    figure = _drawn(made_of(seven()), "tradeoff")
    figure.draw_without_rendering()
    labels = [t for t in figure.axes[0].texts if t.get_text().startswith("INT")]
    assert len(labels) == 5
    boxes = [label.get_window_extent() for label in labels]
    for i, one in enumerate(boxes):
        assert one.x1 < figure.bbox.x1
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])
