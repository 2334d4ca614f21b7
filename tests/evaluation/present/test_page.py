# SPDX-License-Identifier: Apache-2.0
"""The HTML report: whole, well formed, without network or script injection, and sortable."""

import base64
import doctest
import functools
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import torch
from builders import SCHEMA, plain, seven
from builders import document as made_of
from PIL import Image

from vggtquant.evaluation.analyse import shares
from vggtquant.evaluation.measure import layers, pictures
from vggtquant.evaluation.present import charts, columns, heatmap, page, text
from vggtquant.evaluation.records import LayerAlone, Whole
from vggtquant.evaluation.schema import Document, Layer, Reading, Sensitivity, Status

NASTY = '<script>alert("1")</script>\'"&amp;.png'
VOID = {"br", "img", "meta", "wbr"}


class Reader(HTMLParser):
    """Elements with their attributes, and all text; complains about tags that do not close."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), (name, attributes)
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]


def _failing() -> Document:
    rows = seven()
    rows[3].status, rows[3].reason = Status.FAILED, f"NaN in {NASTY}"
    made = made_of(rows)
    made.model.name = made.model.licence = NASTY
    made.data.scenes[0].name, made.data.scenes[0].images_sha256 = NASTY, {NASTY: "0" * 64}
    made.environment.argv = ["vggtquant", "evaluate", NASTY]
    return made


def _outputs(height: int = 28, width: int = 42, *, error: float = 0.0) -> dict[str, torch.Tensor]:
    depth = torch.linspace(0.5, 4.0, height * width).reshape(1, 1, height, width, 1)
    return {"depth": depth.expand(1, 2, -1, -1, -1) * (1 + error)}


def _pictured(height: int = 28, width: int = 42) -> Document:
    """A document with pictures; the schemes' relative errors are 0, 1, 2, ... percent."""
    rows = seven()
    fp32 = _outputs(height, width)
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    found = {
        row.name: pictures.of_scene(
            _outputs(height, width, error=i / 100) if i else fp32, fp32, images
        )
        for i, row in enumerate(rows)
    }
    return made_of(rows, pictures=pictures.block("s0", found))


def _whole() -> Document:
    """All blocks that a document can have."""
    made = _pictured()
    made.sensitivity = _sensitivity()
    made.statistics.note = None
    for entry in made.statistics.against_fp32.values():
        for one in entry.values():
            one.low, one.high = one.difference - 0.5, one.difference + 0.25
            one.shown, one.reading = one.low * one.high > 0, Reading.WORSE
    jsonschema.validate(plain(made), SCHEMA)
    return made


def _sensitivity() -> Sensitivity:
    names = ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "head.last"]
    first = Whole(
        scheme=layers.key("INT4_Group_128"),
        scene=NASTY,
        error_all={"depth": 0.1, "pose": 0.2, "exact": 0.0},
        layers=[
            *(Layer(name, bytes_before=400, bytes_after=60, sqnr_db=20.0) for name in names),
            Layer(name="blocks.1.fc2", skipped="the last Linear (skip_first_last)"),
        ],
        not_reached=["blocks.1.fc1"],
    )
    alone = [
        LayerAlone(
            scheme=first.scheme,
            layer=name,
            error_alone={"depth": 0.01 * i, "pose": 0.02 * i, "exact": 0.0},
            output_sqnr_db=None,
            output_cosine=1.0,
        )
        for i, name in enumerate(names)
        if name != "blocks.1.fc1"
    ]
    block = shares.block([first, *alone])
    assert block is not None
    return block


DOCUMENTS = {
    "whole": _whole,
    "plain": lambda: made_of(seven()),
    "one row": lambda: made_of(seven()[:1]),
    "failing": _failing,
}


@functools.cache
def drawn_page(name: str) -> str:
    """The page of a document, charts and all; drawing takes a second."""
    return page.draw(DOCUMENTS[name]())


every_document = pytest.mark.parametrize("name", DOCUMENTS)


def test_the_examples_in_the_docstrings_hold() -> None:
    for module in (page, charts):
        assert doctest.testmod(module).failed == 0


@pytest.mark.charts
@every_document
def test_a_page_is_well_formed_and_self_contained(name: str) -> None:
    drawn = drawn_page(name)
    reader = Reader(drawn)
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 3
    names = {row.name for row in DOCUMENTS[name]().schemes}
    assert names <= {attributes.get("data-value") for attributes in reader.all("th")}
    inside = {f"#{name}" for name in ids}
    beside = {"comprehensive_results.json", "comprehensive_report.txt", "sensitivity.png"}
    beside |= {"sensitivity.json"}
    for _, attributes in reader.elements:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href"):
            target = attributes.get(key)
            if target is not None and not target.startswith("data:"):
                assert key == "href" and target in inside | beside | {
                    "comprehensive_visualizations.png"
                }
    assert not reader.all("link") and not reader.all("iframe")
    own = re.sub(r"data:image/(png|svg.xml);base64,[A-Za-z0-9+/=]+|// ", "", drawn)
    assert not re.search(r"(?:https?:)?//\w|url\(|@import", own)
    assert len(drawn) < 3e6


@pytest.mark.charts
@every_document
def test_pictures_are_data_that_decodes(name: str) -> None:
    for attributes in Reader(drawn_page(name)).all("img"):
        head, _, data = (attributes["src"] or "").partition(",")
        assert attributes["alt"] is not None
        content = base64.b64decode(data, validate=True)
        begins = {"data:image/png;base64": b"\x89PNG", "data:image/svg+xml;base64": b"<svg"}
        assert content.startswith(begins[head])
        if head.endswith("svg+xml;base64"):  # nothing in it is loaded or run
            ElementTree.fromstring(content)
            assert not re.search(rb"<script|href=.http|url\((?!#)", content)


def test_texts_of_users_are_escaped() -> None:
    document = _failing()
    drawn = page.draw(document)
    reader = Reader(drawn)
    assert len(reader.all("script")) == 1 and "<script>alert" not in drawn
    assert reader.text.count("alert") >= 4  # model, picture, reason, command are shown as text
    policy = next(m["content"] for m in reader.all("meta") if m.get("http-equiv"))
    assert "default-src 'none'" in (policy or "") and "script-src 'sha256-" in (policy or "")


def test_the_table_of_results_says_how_it_sorts() -> None:
    reader = Reader(page.draw(made_of(seven())))
    tables = [attributes for attributes in reader.all("table") if "data-sortable" in attributes]
    assert len(tables) == 3  # schemes, _A8, references
    sorted_by = [head for head in reader.all("th") if "data-sort" in head]
    assert [head["data-sort"] for head in sorted_by] == 3 * (["text"] + 8 * ["number"])
    assert {head.get("data-first") for head in sorted_by} == {None, "ascending", "descending"}
    values = [cell["data-value"] for cell in reader.all("td") if "data-value" in cell]
    assert all(float(value or "x") >= 0 for value in values)
    boxes = [box for box in reader.all("div") if box.get("class") == "scroll"]
    assert boxes and all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


@pytest.mark.charts
def test_what_a_document_lacks_is_left_out() -> None:
    optional = {"outputs", "proof", "depth", "floor", "scores", "layers"}
    whole, alone = (Reader(drawn_page(name)) for name in ("whole", "one row"))
    assert optional <= {section["id"] for section in whole.all("section")}
    assert optional & {section["id"] for section in alone.all("section")} <= {"scores"}
    assert set(page.SECTIONS) == {section["id"] for section in whole.all("section")}


def test_layers_are_shown_where_they_stand() -> None:
    block = _sensitivity()
    found = {layer.name: layer.share for layer in block.layers}
    assert found == pytest.approx({"head.last": 0.09, "blocks.0.fc2": 0.01, "blocks.0.fc1": 0.0})
    assert list(found)[0] == "head.last" and block.share_sum == pytest.approx(0.1)
    assert block.layers_to_try == 3
    assert shares.harms(block) == pytest.approx(found | {"blocks.1.fc1": 0.0})
    (least, whole), *between, (most, none) = shares.curve(block)
    assert least < most and whole == pytest.approx(1) and none == 0
    errors = [error for _, error in between]
    assert errors[0] == pytest.approx((0.01 / 0.1) ** 0.5)  # without head.last
    assert errors == sorted(errors, reverse=True) and len(between) == 2
    grids = shares.grids(list(found))
    assert {group: list(grid) for group, grid in grids.items()} == {"blocks": ["0"], "": ["head"]}
    said = text.full_report(_whole())
    assert "Which layers make the error" in said and "add up to 10 %" in said
    assert said.index("head.last") < said.index("blocks.0.fc2")
    assert "Not run by these inputs: blocks.1.fc1" in said
    assert "Stay float in this scheme: blocks.1.fc2" in said


def test_layers_that_were_left_out_are_not_drawn_as_missing(monkeypatch) -> None:
    """A layer that stays float once was hatched: no such layer."""
    block = _sensitivity()
    assert list(block.left_float) == ["blocks.1.fc2"]
    written: list[str] = []
    real = heatmap.Axes.text
    monkeypatch.setattr(
        heatmap.Axes,
        "text",
        lambda self, x, y, s, **k: written.append(s) or real(self, x, y, s, **k),
    )
    with Image.open(io.BytesIO(heatmap.png(block))) as image:
        assert image.format == "PNG" and image.width > 1000
    assert {"float", "not run"} <= set(written)
    assert heatmap.png(block) == heatmap.png(block)


def test_a_page_of_one_document_is_the_same_bytes() -> None:
    assert page.draw(made_of(seven())) == page.draw(made_of(seven()))


# ---- pictures of depth ---------------------------------------------------------------------------


def _codes(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def test_pictures_follow_the_schema_and_their_scales() -> None:
    document = _pictured()
    jsonschema.validate(plain(document), SCHEMA)
    block = document.pictures
    assert (block.width_px, block.height_px, block.error_range) == (42, 28, [1e-4, 1.0])
    near, far = block.depth_range
    assert 0.5 < near < 0.6 and 3.9 < far < 4.0
    names = list(block.schemes)
    for percent, name in enumerate(names[1:], 1):
        found = block.schemes[name]
        assert found.error_median == pytest.approx(percent / 100, rel=1e-4)
        # 255 codes for four decades, the error 0.01 * percent on all pixels
        (low, high) = _codes(found.error).getextrema()
        wanted = 255 * (2 + math.log10(percent)) / 4
        assert max(abs(low - wanted), abs(high - wanted)) < 0.51
    depth = _codes(block.schemes[names[0]].depth)
    assert depth.size == (42, 28) and depth.mode == "L"
    assert (depth.getpixel((0, 0)), depth.getpixel((41, 27))) == (255, 0)  # near is bright
    assert _codes(block.input).mode == "RGB"
    assert block.schemes[names[0]].error is None


@pytest.mark.charts
def test_wide_frames_are_thinned_and_the_page_stays_small() -> None:
    document = _pictured(294, 518)
    block = document.pictures
    assert _codes(block.input).size == (173, 98)
    assert (block.width_px, block.height_px) == (518, 294)
    reader = Reader(page.draw(document))
    shown = [img for img in reader.all("img") if img.get("width")]
    assert len(shown) == 2 * len(block.schemes)
    assert all(int(img["width"] or 0) == 518 for img in shown)


def test_no_depth_and_no_finite_depth_have_pictures_that_say_so() -> None:
    assert pictures.of_scene({}, {}, torch.zeros(1, 3, 2, 2)) is None
    assert pictures.block("s", {"a": None}) is None
    empty = {"depth": torch.full((1, 1, 14, 14, 1), torch.nan)}
    found = pictures.of_scene(empty, empty, torch.zeros(1, 3, 14, 14))
    assert found is not None and found.depth_range == [1.0, 1.01]


@pytest.mark.charts
def test_colours_are_those_of_the_palette() -> None:
    uri = pictures.ramp("viridis")
    shown = _codes(uri.partition(",")[2]).convert("RGB")
    assert shown.size == (256, 1)
    assert shown.getpixel((0, 0)) == (68, 1, 84) and shown.getpixel((255, 0)) == (253, 231, 36)


# ---- in a browser --------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_CLICKS = """
const table = document.querySelector("table[data-sortable]");
const heads = [...table.querySelectorAll("th[data-sort]")];
const names = () => [...table.querySelectorAll("tbody tr")]
  .map((row) => row.cells[0].dataset.value).join(" ");
const found = [names()];
for (const column of [2, 2, 3, 0]) {
  heads[column].querySelector("button").click();
  found.push(heads[column].getAttribute("aria-sort") + " " + names());
}
found.push(heads.filter((head) => head.getAttribute("aria-sort") !== "none").length);
document.body.textContent = found.join("|");
"""


@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")
@pytest.mark.charts
def test_a_browser_sorts_it_and_complains_of_nothing(tmp_path: Path) -> None:
    document = _failing()
    drawn = re.sub(r"(script-src &#39;)[^&]*", r"\1unsafe-inline", page.draw(document))
    assert drawn.count("</body>") == 1
    file = tmp_path / "page.html"
    file.write_text(drawn.replace("</body>", f"<script>{_CLICKS}</script></body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    body = done.stdout.partition("<body>")[2].partition("</body>")[0].strip()
    *orders, marked = body.split("|")
    rows = {row.name: row for row in columns.blocks(document)[0].rows}
    names = list(rows)
    good = [name for name in names if rows[name].ok]
    sizes = [rows[name].nbytes for name in good]
    size = dict(zip(good, sizes, strict=True)).__getitem__
    failed = next(name for name in names if name not in good)
    assert orders == [
        " ".join(names),
        " ".join(["ascending", *sorted(good, key=size), failed]),
        " ".join(["descending", *sorted(good, key=size, reverse=True), failed]),
        " ".join(["descending", *sorted(good, key=size), failed]),  # smaller: the better end first
        " ".join(["ascending", *sorted(names)]),
    ]
    assert marked == "1"


@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")
@pytest.mark.charts
def test_the_policy_lets_its_own_script_run(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page.draw(made_of(seven())))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('aria-sort="none"') == 3 * (len(columns.COLUMNS) + 2)
