# SPDX-License-Identifier: Apache-2.0
"""Sections of the page: FP32's noise floor, task scores, confidence, and differences from FP32.

Tables and words are those of the text report (conclusions.py); intervals are drawn beside them.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .. import conclusions, text
from .elements import Html, Part, breakable, heat, heat_table, join, table, tag
from .graphs import Bar, intervals, look

Document = dict[str, Any]


def floor(document: Document) -> Html | None:
    """The errors of FP32's own repetitions, and the schemes that are no worse."""
    found = document["noise_floor"]
    rows = {row["name"]: row for row in document["schemes"]}
    if not found["errors"]:
        return None
    names = list(found["errors"])
    outputs = list(rows[names[0]]["metrics"])
    errors = {
        name: [found["errors"][name], *(rows[name]["metrics"][o]["relative_l2"] for o in outputs)]
        for name in names
    }
    worst = max((e or 0.0 for line in errors.values() for e in line), default=0.0)
    lines: list[list[Part]] = [
        [breakable(name), *(heat(e, worst, text.percent(e)) for e in line)]
        for name, line in errors.items()
    ]
    notes = [f"{name}: {note}" for name in names for note in rows[name]["notes"]]
    below = [
        f"{scheme}: {_below(entry)}"
        for scheme, entry in found["below"].items()
        if entry["error"] or entry["outputs"]
    ]
    return join(
        [
            tag("p", f"Errors in percent. {found['rule']}"),
            heat_table(["FP32 again", "all", *map(breakable, outputs)], lines, "Noise floor"),
            tag("ul", *(tag("li", words) for words in notes)) if notes else None,
            tag("p", "Below the floor:" if below else "No scheme has an error below it."),
            tag("ul", *(tag("li", words) for words in below)) if below else None,
        ]
    )


def _below(entry: dict[str, Any]) -> str:
    if entry["error"]:
        return f"all outputs together ({', '.join(entry['error'])})"
    return "; ".join(f"{output} ({', '.join(names)})" for output, names in entry["outputs"].items())


def section(document: Document) -> Html | None:
    """Task scores, confidence and the differences from FP32 with their intervals."""
    content: list[Part] = []
    for title, _ in conclusions.sections(document):
        if title == "Which layers make the error":  # a section of its own
            continue
        drawn, words = _drawn(document, title), parts(document, title)
        if drawn:  # says the same as the tables
            words = tag("details", tag("summary", "The same in tables"), words)
        content += [tag("h3", title), drawn, words]
    return join(content) if content else None


def parts(document: Document, title: str) -> Html:
    """What the text report says under a heading, as markup."""
    content = dict(conclusions.sections(document))[title]
    return join(
        _table(part) if isinstance(part, Table) else tag("p", part, class_="quiet")
        for part in content
    )


def _table(made: Table) -> Html:
    headings = [str(column.header) for column in made.columns]
    rows = zip(*(map(str, column.cells) for column in made.columns), strict=True)
    title = str(made.title) if made.title else ""
    drawn = table(
        headings,
        ([breakable(first), *rest] for first, *rest in rows),
        words=title or "Scores",
    )
    return join([tag("p", tag("strong", title)) if title else None, drawn])


def _drawn(document: Document, title: str) -> Html | None:
    """Charts of the differences from FP32, where there are intervals."""
    statistics = document["statistics"]
    if title != "Difference or chance" or statistics["note"]:
        return None
    rows = {row["name"]: row for row in document["schemes"]}
    charts = []
    for score, what, factor, unit in conclusions.TOLD:
        lines = [
            _line(name, look(rows[name]), entry[score], factor)
            for name, entry in statistics["against_fp32"].items()
            if score in entry
        ]
        if lines:
            better = "right" if statistics["larger_is_better"][score] else "left"
            charts.append(intervals(what, f"minus FP32, {unit}; {better} is better", lines))
    words = f"Whiskers: {100 * statistics['confidence']:g} % intervals of a paired bootstrap over "
    words += f"{statistics['scenes']} scenes. In parentheses: no difference shown."
    return join([tag("p", words), tag("div", *charts, class_="charts")])


def _line(name: str, kind: str, entry: dict[str, Any], factor: float) -> Bar:
    ends = [None if entry[end] is None else factor * entry[end] for end in ("low", "high")]
    value = factor * entry["difference"]
    words = f"{round(value, 4) + 0.0:+.2g}"  # as many digits as in the tables
    if not entry["shown"]:
        words = f"({words})"
    return Bar(name, kind, value, words, *ends)
