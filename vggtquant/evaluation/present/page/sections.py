# SPDX-License-Identifier: Apache-2.0
"""The sections of the page: one function each, from a document to markup, or None without data."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...analyse import report
from .. import columns, conclusions, labels, text
from . import depth, layers, scores
from .elements import Html, Part, breakable, facts, heat, heat_table, join, scroll, table, tag
from .graphs import Bar, Point, bars, dots, legend, look, scatter

Row = dict[str, Any]
Document = dict[str, Any]


def body(document: Document) -> Html:
    """Everything between <body> and </body>."""
    parts = [(key, title, build(document)) for key, title, build in SECTIONS]
    there = [(key, title, part) for key, title, part in parts if part is not None]
    links = [tag("a", title, href=f"#{key}") for key, title, _ in there]
    return join(
        [
            tag("header", _top(document), tag("nav", *links, aria_label="Sections")),
            tag(
                "main",
                *(
                    tag("section", tag("h2", title), part, id=key, aria_label=title)
                    for key, title, part in there
                ),
            ),
            tag(
                "footer",
                tag(
                    "p",
                    f"vggtquant {document['generator']['version']}, schema "
                    f"{document['schema_version']}, {document['environment']['utc']}. "
                    f"All figures are those of {report.JSON_NAME}.",
                    class_="quiet",
                ),
            ),
        ],
        "\n",
    )


def finished(document: Document) -> list[Row]:
    """The rows that have figures."""
    return [row for row in document["schemes"] if row["status"] == "ok"]


# ---- top -----------------------------------------------------------------------------------------


def _top(document: Document) -> Html:
    model, data, env = document["model"], document["data"], document["environment"]
    scenes = data["scenes"]
    size = f"{scenes[0]['width_px']} x {scenes[0]['height_px']} px"
    lines: list[Part] = [
        tag("h1", "VGGT quantization report: ", breakable(model["name"])),
        tag(
            "p",
            f"{model['parameters']:,} parameters, {text.megabytes(model['parameter_bytes'])} MB in "
            f"FP32. {data['description'].capitalize()}: {text.count(len(scenes), 'scene')} of "
            f"{text.count(scenes[0]['frames'], 'picture')}, {size}. {env['cpu']['model']}, "
            f"{text.count(env['threads']['torch'], 'thread')}, kernels {env['cpu']['isa_active']}.",
            class_="quiet",
        ),
    ]
    if document["status"] != "complete":
        lines.append(tag("p", tag("strong", f"State: {document['status']}"), class_="bad"))
    for row in document["schemes"]:
        if row["status"] != "ok":
            lines.append(tag("p", f"{row['name']} {row['status']}: {row['reason']}", class_="bad"))
    return join([*lines, _picks(document)])


def _picks(document: Document) -> Html:
    """The recommendation, and the best scheme for each purpose."""
    rows = {row["name"]: row for row in document["schemes"]}
    advice = document["recommendation"]
    excluded = [f"{name}: {' and '.join(whys)}" for name, whys in advice["excluded"].items()]
    cards: list[Part] = [
        tag(
            "div",
            tag("small", "Recommended"),
            tag("strong", breakable(advice["scheme"] or "no scheme")),
            tag("p", advice["reason"]),
            *(tag("p", f"Poses: {words}") for words in conclusions.poses(document)),
            *(tag("p", f"But {words}.", class_="bad") for words in advice["open"]),
            tag(
                "p",
                f"Budget: {conclusions.budget(advice)}. Front: {', '.join(advice['front']) or '-'}",
            ),
            *(tag("p", words, class_="quiet") for words in excluded),
            tag("details", tag("summary", "Rule"), tag("p", advice["rule"], class_="quiet")),
            class_="card main",
        )
    ]
    for why in text.PICKS:
        row = rows.get(document["best"][why])
        if row is not None:
            cards.append(
                tag(
                    "div",
                    tag("small", f"Best for {why}"),
                    tag("strong", breakable(row["name"])),
                    f"{text.megabytes(row['bytes']['model_bytes'])} MB, "
                    f"{row['time']['speedup']:.2f}x speed, error {text.percent(row['error'])} %",
                    *(tag("p", words, class_="quiet") for words in conclusions.tied(document, why)),
                    class_="card",
                    title=document["best"]["rules"][why],
                )
            )
    return tag("div", *cards, class_="cards")


# ---- results -------------------------------------------------------------------------------------


def _results(document: Document) -> Html:
    rows = document["schemes"]
    shown = columns.main(rows)
    chosen = {document["recommendation"]["scheme"], *(document["best"][w] for w in text.PICKS)}
    head: list[Part] = [tag("th", "Scheme", scope="col", data_sort="text")]
    head.append(tag("th", "row", scope="col", data_sort="number"))
    for column in shown:
        first = "descending" if column.more_is_better else "ascending"
        head.append(tag("th", column.heading, scope="col", data_sort="number", data_first=first))
    lines = [
        _result(row, number, shown, row["name"] in chosen) for number, row in enumerate(rows, 1)
    ]
    whole = tag(
        "table", tag("thead", tag("tr", *head)), tag("tbody", *lines), data_sortable=True,
        class_="numbers",
    )  # fmt: skip
    return join(
        [
            scroll(whole, "Results of the schemes"),
            legend(rows),
            *(tag("p", line, class_="quiet") for line in text.legend(document)),
        ]
    )


def _result(row: Row, number: int, shown: Sequence[columns.Column], chosen: bool) -> Html:
    swatch = tag("i", class_=f"swatch {look(row)}")
    name = tag("th", swatch, breakable(row["name"]), scope="row", data_value=row["name"])
    cells: list[Part] = [name, tag("td", str(number), data_value=number)]
    if row["status"] == "ok":
        for column in shown:
            cells.append(tag("td", column.cell(row), data_value=column.value(row)))
    else:
        cells.append(tag("td", row["status"], class_="bad"))
        cells += [tag("td") for _ in shown[1:]]
    return tag("tr", *cells, class_="chosen" if chosen else None)


# ---- charts --------------------------------------------------------------------------------------


def _charts(document: Document) -> Html:
    rows = document["schemes"]
    numbers = {row["name"]: number for number, row in enumerate(rows, 1)}

    def lines(column: columns.Column, spread: bool = False) -> list[Bar]:
        return [_bar(row, column, spread) for row in rows]

    by = {column.heading: column for column in columns.COLUMNS}
    front = set(document["best"]["pareto_front"])
    errors = {row["name"]: row["error"] for row in finished(document) if row["error"]}
    references = [row["name"] for row in rows if row["kind"] == "reference"]
    beside = labels.beside_others(errors, references)
    left_out = [str(numbers[name]) for name in errors if name not in beside]
    points = [
        Point(
            str(numbers[row["name"]]),
            row["name"],
            look(row),
            row["bytes"]["compression_ratio_model"],
            100 * row["error"],
            row["name"] in front,
            row["name"] == document["recommendation"]["scheme"],
        )
        for row in finished(document)
        if row["name"] in beside
    ]
    return join(
        [
            tag(
                "div",
                bars("Model size", "parameters as held, MB", lines(by["MB"])),
                bars(
                    "Inference time", "median of a forward, ms; whiskers: interquartile range",
                    lines(by["ms"], spread=True),
                ),
                bars(
                    "Speedup", "FP32 time beside it / time, x; whiskers: by the quartiles of both",
                    lines(by["speedup"], spread=True), mark=1.0,
                ),
                dots(
                    "Error against FP32", "percent, logarithmic; pale: less than the axis shows",
                    lines(by["error %"]),
                ),
                scatter(
                    "Accuracy against compression",
                    "FP32 bytes / bytes, whole model (x)",
                    "error against FP32 (%)",
                    points,
                ),
                class_="charts",
            ),
            tag(
                "p",
                "In the last chart numbers are rows of the table, the dashed line joins the "
                "schemes that no other beats in both, the ring is the recommended one."
                + (f" Far below what is shown: {', '.join(left_out)}." if left_out else ""),
                class_="quiet",
            ),
        ]
    )  # fmt: skip


def _bar(row: Row, column: columns.Column, spread: bool) -> Bar:
    if row["status"] != "ok":
        return Bar(row["name"], look(row), None, row["status"])
    if row["time"]["speedup"] is None and column.heading in ("ms", "speedup"):
        return Bar(row["name"], look(row), None, "run once")
    value = column.value(row)
    low = high = None
    if spread and column.heading == "speedup":
        low, high = (row["time"][f"speedup_{end}"] for end in ("low", "high"))
    elif spread and value is not None and row["time"]["forward_ms_iqr"] is not None:
        half = row["time"]["forward_ms_iqr"] / 2
        low, high = value - half, value + half
    if column.heading == "error %" and value is not None:
        value *= 100
    return Bar(row["name"], look(row), value, column.cell(row), low, high)


# ---- outputs -------------------------------------------------------------------------------------


def _outputs(document: Document) -> Html | None:
    """relative_l2 of every output, and all other metrics folded away."""
    rows = [row for row in finished(document) if row["kind"] != "baseline" and row["metrics"]]
    if not rows:
        return None
    outputs = list(rows[0]["metrics"])
    found = [[row["metrics"][output]["relative_l2"] for output in outputs] for row in rows]
    worst = max((value for line in found for value in line if value is not None), default=1.0)
    lines = [
        [breakable(row["name"]), *(heat(v, worst, text.percent(v)) for v in values)]
        for row, values in zip(rows, found, strict=True)
    ]
    return join(
        [
            tag("p", "||FP32 - scheme|| / ||FP32|| of each output in percent, mean over scenes."),
            heat_table(["Scheme", *map(breakable, outputs)], lines, "Error of each output"),
            tag(
                "details",
                tag("summary", "Every metric of every output"),
                *(_metrics(document, row) for row in rows),
            ),
        ]
    )


def _metrics(document: Document, row: Row) -> Html:
    names = [*(metric["name"] for metric in document["metrics"]), "relative_l2"]
    lines = [
        [breakable(output), *(text.number(values[name]) for name in names)]
        for output, values in row["metrics"].items()
    ]
    return join(
        [
            tag("h3", breakable(row["name"])),
            table(["output", *map(breakable, names)], lines, words=f"Metrics of {row['name']}"),
        ]
    )


# ---- memory, loading, energy ---------------------------------------------------------------------


def _resources(document: Document) -> Html:
    """Memory of the process, and what a process of its own and the energy counter say."""
    lines = [
        [
            breakable(row["name"]),
            text.megabytes(row["process_peak_bytes"]),
            text.number(own.get("load_s"), 3),
            text.number(own.get("first_forward_s"), 3),
            text.megabytes(own.get("peak_rss_bytes")),
            text.megabytes(own.get("file_bytes")),
            text.number(row["energy_joules"], 3),
        ]
        for row in finished(document)
        for own in [row["isolated"] or {}]
    ]
    head = [
        "Scheme",
        "peak MB",
        "load s",
        "first forward s",
        "own peak MB",
        "file MB",
        "J a forward",
    ]
    words = (
        "peak: of this process, FP32 layers included. load, first forward, own peak, file: of a "
        "process for the scheme alone (--isolate). J: where the processor counts its energy."
    )
    return join([table(head, lines, words="Memory, loading, energy"), tag("p", words)])


# ---- proof, environment, reproduction ------------------------------------------------------------


def _proof(document: Document) -> Html | None:
    rows = [row for row in document["schemes"] if row["proof"]]
    if not rows:
        return None
    lines = [
        [
            breakable(row["name"]),
            str(row["proof"]["layers_swapped"]),
            str(row["proof"]["layers_executed"]),
            str(row["proof"]["layer_calls"]),
            str(len(row["proof"]["layers_with_float_weights"])),
            text.kernels(row["proof"]),
            text.number((row["bytes"] or {}).get("bits_per_weight"), 3),
        ]
        for row in rows
    ]
    head = ["Scheme", "swapped", "ran", "calls", "float weights", "kernels", "bits/weight"]
    check = document["baseline_recheck"]
    words = None
    if check:
        same = "the same bits as" if check["outputs_equal_first_run"] else "OTHER outputs than"
        words = tag("p", f"FP32 run once more after all schemes gave {same} before them.")
    return join([table(head, lines, words="Layers that were swapped and ran"), words])


def _cautions(document: Document) -> Html:
    return tag("ul", *(tag("li", words) for words in text.cautions(document)))


def _environment(document: Document) -> Html:
    env, model = document["environment"], document["model"]
    memory = env["memory_bytes"]
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    settings = ", ".join(f"{name}: {_plain(v)}" for name, v in document["settings"].items())
    return facts(
        [
            ("Processor", f"{env['cpu']['model']}, {env['cpu']['cores_usable']} cores"),
            ("Instruction sets", ", ".join(env["cpu"]["flags"])),
            ("Kernels", f"{env['cpu']['isa_active']} of {', '.join(env['cpu']['isa_available'])}"),
            ("Threads", ", ".join(f"{k}: {_plain(v)}" for k, v in env["threads"].items())),
            ("Memory", "-" if memory is None else f"{memory / 1e9:.1f} GB"),
            ("System", env["system"]),
            ("Load at the start", f"{env['load_average_1min']}"),
            ("Versions", versions),
            ("Model", f"{model['name']} from {model['source']}; licence: {model['licence']}"),
            ("SHA-256 of its weights", tag("code", model["sha256"])),
            ("Settings", settings),
        ]
    )


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    return "default" if value is None else str(value)


def _files(document: Document) -> Html:
    env, scenes = document["environment"], document["data"]["scenes"]
    names = {
        report.JSON_NAME: "every figure, for programs",
        report.TEXT_NAME: "the same in words",
        report.CHARTS_NAME: "six charts",
    }
    if document["sensitivity"]:
        names[report.SENSITIVITY_NAME] = "the layers' shares of the error"
    pictures = [
        [breakable(scene["name"]), breakable(name), tag("code", digest)]
        for scene in scenes
        for name, digest in scene["images_sha256"].items()
    ]
    return join(
        [
            tag(
                "ul",
                *(tag("li", tag("a", n, href=n), f": {words}") for n, words in names.items()),
            ),
            tag("p", "The same run again, and what differs from this one:"),
            tag("pre", tag("code", "\n".join(_commands(env)))),
            tag(
                "details",
                tag("summary", f"The {len(pictures)} input pictures by SHA-256"),
                table(["Scene", "Picture", "SHA-256"], pictures, words="Input pictures"),
            )
            if pictures
            else None,
        ]
    )


def _commands(env: Mapping[str, Any]) -> list[str]:
    threads = env["threads"]["omp_num_threads"]
    before = f"OMP_NUM_THREADS={shlex.quote(threads)} " if threads else ""
    return [
        f"VGGTQUANT_ISA={env['cpu']['isa_active']} {before}{shlex.join(env['argv'])}",
        f"vggtquant compare {report.JSON_NAME} OTHER/{report.JSON_NAME}",
    ]


Section = Callable[[Document], Html | None]
SECTIONS: tuple[tuple[str, str, Section], ...] = (
    ("results", "Results", _results),
    ("charts", "Charts", _charts),
    ("outputs", "Errors by output", _outputs),
    ("depth", "Depth and its error", depth.section),
    ("floor", "Noise floor", scores.floor),
    ("scores", "Scores and chance", scores.section),
    ("layers", "Which layers make the error", layers.section),
    ("resources", "Memory, loading, energy", _resources),
    ("proof", "Proof that the quantized layers ran", _proof),
    ("cautions", "Cautions", _cautions),
    ("environment", "Environment", _environment),
    ("files", "Files and commands", _files),
)
