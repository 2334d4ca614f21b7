# SPDX-License-Identifier: Apache-2.0
"""Says a document of results in words and tables: for the terminal, and as the text report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..analyse import report
from . import columns, conclusions
from .tables import new_table, scaled

Row = dict[str, Any]
Document = dict[str, Any]

WIDTH = 100
# FP32's slowest time over its fastest from which on a reader is told.
_DRIFT = 1.15
PICKS = ("accuracy", "size", "speed")


def number(value: float | None, digits: int = 4) -> str:
    """A number to a few significant digits; a dash for None.

    >>> number(0.000123456), number(12.0), number(None)
    ('0.0001235', '12', '-')
    """
    return "-" if value is None else f"{value:.{digits}g}"


def megabytes(nbytes: float | None) -> str:
    """Bytes as millions, the unit of every MB in the reports."""
    return "-" if nbytes is None else f"{nbytes / 1e6:,.2f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use.

    >>> duration(0.4), duration(75), duration(5400)
    ('0.4 s', '1 min 15 s', '1 h 30 min')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def main_table(document: Document) -> Table:
    """A line a scheme: bytes, time and accuracy."""
    rows = document["schemes"]
    shown = columns.main(rows)
    table = new_table(["Scheme", *(column.heading for column in shown)])
    chosen = {document["recommendation"]["scheme"], *(document["best"][why] for why in PICKS)}
    for row in rows:
        if row["status"] != "ok":
            table.add_row(row["name"], Text(row["status"], style="red"))
            continue
        cells = {column.heading: column.cell(row) for column in shown}
        if row["kind"] == "baseline":
            cells["error %"] = "(is 0)"
        name = Text(row["name"], style="bold" if row["name"] in chosen else "")
        table.add_row(name, *cells.values())
    return table


def percent(value: float | None) -> str:
    """A share in percent, to three digits; a dash for None."""
    return "-" if value is None else f"{100 * value:.3g}"


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "thread"), count(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def _doubted(document: Document, why: str) -> list[str]:
    """How many others may be as good, in parentheses."""
    others = len(document["best"]["tied"].get(why, ()))
    return [f"(as good may be {count(others, 'other')})"] if others else []


def headline(document: Document) -> list[str]:
    """What to use, and the reasons of schemes that failed or were not run: a line each."""
    advice = document["recommendation"]
    lines = [f"recommended:        {advice['scheme'] or 'none. ' + advice['reason']}"]
    lines += [f"  but {words}" for words in advice["open"]]
    lines += [
        " ".join((f"best for {why + ':':10} {document['best'][why]}", *_doubted(document, why)))
        for why in PICKS
        if document["best"][why] is not None
    ]
    for row in document["schemes"]:
        if row["status"] != "ok":
            lines.append(f"{row['status']}: {row['name']}: {row['reason']}")
    return lines


def legend(document: Document) -> list[str]:
    """What the columns of the main table mean."""
    lines = [
        "MB: millions of bytes of parameters and buffers as held; smaller: FP32 bytes / these.",
        "ms: median time of a forward; ±: interquartile range; speedup: against "
        "FP32 timed right before and after; ±x: half of what the quartiles of both times leave "
        "open.",
        "error: geometric mean over outputs of ||FP32 - scheme|| / ||FP32||, in percent.",
    ]
    if any(row["task"]["truth"] for row in document["schemes"]):
        lines.append(
            "AUC@30 (camera poses, more is better) and AbsRel (depth, less is better): against "
            "ground truth, in percent."
        )
    return lines


# ---- the text report -----------------------------------------------------------------------------


def _section(out: Console, title: str) -> None:
    out.print(f"\n{title}\n{'-' * len(title)}")


def _facts(out: Console, facts: Sequence[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for name, value in facts:
        grid.add_row(name, value)
    out.print(grid)


def _compared(out: Console, document: Document) -> None:
    model, data, settings = document["model"], document["data"], document["settings"]
    env = document["environment"]
    first = data["scenes"][0]
    frames = sum(scene["frames"] for scene in data["scenes"])
    inputs = (
        f"{data['description']}: {count(len(data['scenes']), 'scene')}, "
        f"{count(frames, 'picture')} in all, {first['width_px']} x {first['height_px']} px"
    )
    _facts(
        out,
        [
            (
                "Model",
                f"{model['name']}: {model['parameters']:,} parameters, "
                f"{megabytes(model['parameter_bytes'])} MB in FP32, {model['linear_layers']} "
                f"Linear layers with {100 * model['linear_share']:.1f} % of them. "
                f"Licence: {model['licence']}.",
            ),
            ("Inputs", inputs),
            (
                "Reference",
                "the same model with its FP32 weights on the same pictures. Each scheme replaces "
                "the weights of the Linear layers by packed integers; every output is compared.",
            ),
            (
                "Runs",
                f"{settings['warmup']} warm-up, then over all scenes, times: {settings['runs']}; "
                f"{count(env['threads']['torch'], 'thread')}",
            ),
            (
                "Machine",
                f"{env['cpu']['model']}, {env['cpu']['cores_usable']} cores, kernels: "
                f"{env['cpu']['isa_active']}; torch {env['versions']['torch']}",
            ),
            ("Date", env["utc"]),
            ("State", document["status"]),
        ],
    )


# Of the metrics' columns: headings shorter than their names, formats other than 1.23e-04.
_SHORT = {
    "cross_entropy": "CE",
    "cosine_similarity": "cosine",
    "relative_error": "rel. err",
    "relative_l2": "rel. L2",
}
_FORMS = {"psnr": ".1f", "cross_entropy": ".3f", "cosine_similarity": ".6f", "ssim": ".5f"}


def _metrics(out: Console, document: Document) -> None:
    names = [*(metric["name"] for metric in document["metrics"]), "relative_l2"]
    for row in document["schemes"]:
        if row["outputs_equal_baseline"] or not row["metrics"]:
            continue
        table = new_table(["output", *(_SHORT.get(n, n) for n in names)], title=row["name"])
        for output, values in row["metrics"].items():
            table.add_row(output, *(scaled(values[n], 1.0, _FORMS.get(n, ".2e")) for n in names))
        out.print(table)
        out.print()
    whys = sorted(
        {
            f"{output}, {metric}: {why}"
            for row in document["schemes"]
            if not row["outputs_equal_baseline"]
            for output, reasons in row["reasons"].items()
            for metric, why in reasons.items()
        }
    )
    if whys:
        out.print("A dash means that there is no such value:")
        for why in whys:
            out.print(f"  {why}")


def _left_out(out: Console, document: Document) -> None:
    model = document["model"]
    rest = model["parameter_bytes"] - model["linear_weights"] * 4
    out.print(
        f"{megabytes(rest)} MB are no Linear weights (convolutions, norms, embeddings, biases) and "
        "stay as they are in every scheme."
    )
    skipped: dict[str, dict[str, list[str]]] = {}  # by reason: layers, and the schemes of each
    for row in document["schemes"]:
        for layer in row["layers"]:
            if layer["skipped"]:
                names = skipped.setdefault(layer["skipped"], {})
                names.setdefault(layer["name"], []).append(row["name"])
    for why, names in skipped.items():
        schemes = max(map(len, names.values()))
        out.print(f"* {_some(list(names))}: {why} (in {schemes} schemes)")
    lost = model["linear_layers_not_reached"]
    if lost:
        out.print(
            "Did not run on these inputs, not even in FP32, so nothing is known about it: "
            f"{_some(lost)}"
        )


def _some(names: Sequence[str], most: int = 2) -> str:
    """The first of the names, and how many there are in all."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{len(names)} layers ({', '.join(names[:most])}, ...)"


def kernels(proof: Row) -> str:
    """What multiplied in how many layers."""
    return "; ".join(f"{kernel['layers']} {kernel['kernel']}" for kernel in proof["kernels"])


def _proofs(out: Console, document: Document) -> None:
    rows = [row for row in document["schemes"] if row["proof"]]
    table = new_table(["Scheme", "swapped", "ran", "calls", "MB touched", "kernels"])
    for row in rows:
        proof = row["proof"]
        table.add_row(
            row["name"],
            str(proof["layers_swapped"]),
            str(proof["layers_executed"]),
            str(proof["layer_calls"]),
            megabytes(proof["packed_bytes_touched"]),
            kernels(proof),
        )
    out.print(table)
    out.print()
    floats = sum(len(row["proof"]["layers_with_float_weights"]) for row in rows)
    out.print(
        f"Swapped layers that held float weights: {floats or 'none'}. MB touched: packed weights "
        "and biases of the layers that ran. Kernels: layers, activations x weights, instructions."
    )
    check = document["baseline_recheck"]
    if check:
        same = "the same bits as" if check["outputs_equal_first_run"] else "OTHER outputs than"
        out.print(
            f"FP32 run once more after all schemes gave {same} before them, in "
            f"{check['forward_ms']:.1f} ms ({check['time_drift_percent']:+.0f} %)."
        )


def _floor(out: Console, document: Document) -> None:
    floor = document["noise_floor"]
    rows = {row["name"]: row for row in document["schemes"]}
    names = list(floor["errors"])
    short = (name.removeprefix("Baseline_").removeprefix("FP32_") for name in names)
    table = new_table(["Error %", *short])
    table.add_row("all outputs", *(percent(floor["errors"][name]) for name in names))
    for output in rows[names[0]]["metrics"]:
        cells = (percent(rows[name]["metrics"][output]["relative_l2"]) for name in names)
        table.add_row(output, *cells)
    out.print(table)
    out.print()
    for name in floor["errors"]:
        for note in rows[name]["notes"]:
            out.print(f"{name}: {note}.")
    out.print(floor["rule"])
    for scheme, below in floor["below"].items():
        if below["error"]:
            out.print(f"* {scheme}: its error is below that of {', '.join(below['error'])}.")
        else:
            some = [f"{output} ({', '.join(names)})" for output, names in below["outputs"].items()]
            if some:
                out.print(f"* {scheme}: below the floor only in {'; '.join(some)}.")
    if not any(below["error"] or below["outputs"] for below in floor["below"].values()):
        out.print("No scheme has an error below it.")


def cautions(document: Document) -> list[str]:
    """What a reader should not conclude from these results."""
    settings, scenes = document["settings"], document["data"]["scenes"]
    words = [
        "Times hold for this machine, these threads and this load: compare within this report.",
        "Only weights shrink. The memory of activations is the same in every scheme, so the whole "
        "process shrinks by less than the weights do.",
    ]
    if not all(scene["ground_truth"] for scene in scenes):
        words.append("Errors are against the FP32 model, not against the truth.")
    if document["data"]["synthetic"]:
        words.append(
            "The scenes are rendered, not photographed: test your own with --image_folder."
        )
    if document["model"]["name"].startswith("builtin:"):
        words.append("The built-in model is small; VGGT-1B need not rank the schemes alike.")
    if len(scenes) < 5:
        words.append(
            f"{len(scenes)} scene(s) say little about chance; small differences mean nothing."
        )
    if settings["runs"] * len(scenes) < 3:
        words.append("Fewer than three forwards a scheme: the times have no useful spread.")
    unsteady = [r["name"] for r in document["schemes"] if r["outputs_repeat_bit_for_bit"] is False]
    if unsteady:
        words.append(
            f"Other bits in another pass over the same pictures: {', '.join(unsteady)}; figures "
            "are those of the first pass."
        )
    return words + timing_cautions(document)


def timing_cautions(document: Document) -> list[str]:
    """What speaks against the times, from the times themselves and the machine's load."""
    env, timing = document["environment"], document["timing"]
    words = []
    if timing["wide"]:
        words.append(f"{timing['rule']} ({len(timing['wide'])} rows.) {timing['advice']}")
    if len(env["machines"]) > 1:
        words.append(f"Times are of several machines: {', '.join(env['machines'])}.")
    if env["load_average_1min"] > env["cpu"]["cores_usable"]:
        words.append(
            f"The machine was busy in the minute before the run (load {env['load_average_1min']} "
            f"on {env['cpu']['cores_usable']} cores): if it stayed so, times are too long."
        )
    times = [ms for row in document["schemes"] for ms in _fp32_times(row)]
    if document["baseline_recheck"]:
        times.append(document["baseline_recheck"]["forward_ms"])
    if times and max(times) > _DRIFT * min(times):
        words.append(
            f"FP32's own time ran from {min(times):.1f} to {max(times):.1f} ms in the course of "
            "the run: differences in time of that size are no finding."
        )
    return words


def _fp32_times(row: Row) -> list[float]:
    """What FP32 took, by its own row or beside this one."""
    if row["status"] != "ok":
        return []
    keys = ("fp32_ms_before", "fp32_ms_after")
    known = [row["time"][key] for key in keys if row["time"][key] is not None]
    return known + [row["time"]["forward_ms_median"]] * (row["kind"] == "baseline")


def full_report(document: Document) -> str:
    """The text report: what was compared, results, what to use, what got worse, what to beware."""
    file = io.StringIO()
    out = Console(file=file, width=WIDTH, color_system=None, highlight=False, markup=False)
    title = "VGGT quantization report"
    out.print(f"{title}\n{'=' * len(title)}")
    _section(out, "What was compared")
    _compared(out, document)
    _section(out, "Results")
    out.print(main_table(document))
    out.print()
    for line in legend(document):
        out.print(line)
    bad = [row for row in document["schemes"] if row["status"] != "ok"]
    if bad:
        _section(out, "Failed or not run")
        for row in bad:
            out.print(f"{row['name']} ({row['status']}): {row['reason']}")
    _section(out, "Recommendation")
    _facts(out, list(conclusions.recommendation(document)))
    _section(out, "Biggest regressions (relative_l2 against FP32)")
    for value, scheme, output in report.regressions(document["schemes"]):
        out.print(f"{100 * value:10.3f} %  {output:18} {scheme}")
    if document["noise_floor"]["errors"]:
        _section(out, "Noise floor: how far FP32 is from itself")
        _floor(out, document)
    for heading, content in conclusions.sections(document):
        _section(out, heading)
        for part in content:
            out.print(part)
            out.print()
    _section(out, "What was not quantized")
    _left_out(out, document)
    _section(out, "Proof that the quantized layers ran")
    _proofs(out, document)
    _section(out, "Cautions")
    for words in cautions(document):
        out.print(f"* {words}")
    _section(out, "Every metric of every output, against FP32 (mean over scenes)")
    _metrics(out, document)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
