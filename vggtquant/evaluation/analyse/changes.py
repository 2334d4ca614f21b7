# SPDX-License-Identifier: Apache-2.0
"""`vggtquant compare`: what changed between two documents of results, and what that says.

Scores mean something side by side for the same model on the same pictures, times moreover only for
the same machine in the same state. Nothing is compared across such a difference unasked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..present import columns
from . import report

Document = dict[str, Any]
Row = dict[str, Any]

# Blocks of a row that hold no figure of its own: settings, and what they were made from.
_NO_FIGURES = frozenset(("config", "layers", "scenes", "proof", "reasons", "notes", "pictures"))
# Those that depend on the machine and on what else it did.
_TIMES = frozenset(("time", "prepare_s", "process_peak_bytes", "isolated", "energy_joules"))


@dataclass(frozen=True)
class Condition:
    """Something that two runs should have in common, and what cannot be compared without it."""

    path: tuple[str, ...]
    spoils: tuple[str, ...]  # of "scores" and "times"; none: worth a word only


_BLOCKS = {"status", "environment", "model", "data", "settings", "schemes"}
_BOTH = ("scores", "times")
CONDITIONS = (
    Condition(("model", "sha256"), _BOTH),
    Condition(("data", "scenes"), _BOTH),
    Condition(("data", "preprocessing"), _BOTH),
    Condition(("environment", "versions", "torch"), _BOTH),
    Condition(("environment", "cpu", "model"), ("times",)),
    Condition(("environment", "cpu", "cores_usable"), ("times",)),
    Condition(("environment", "cpu", "isa_active"), ("times",)),
    Condition(("environment", "threads"), ("times",)),
    Condition(("environment", "machines"), ("times",)),
    Condition(("settings", "device"), ("times",)),
    Condition(("settings", "runs"), ()),
    Condition(("settings", "warmup"), ()),
    Condition(("environment", "versions", "vggtquant"), ()),
    Condition(("environment", "versions", "python"), ()),
    Condition(("environment", "versions", "numpy"), ()),
    Condition(("status",), ()),
)


def load(path: str | Path) -> Document:
    """A document of results, from its file or from the folder that holds it.

    Raises UserError for what is no such document, or one of another major schema version.
    """
    file = Path(path)
    if file.is_dir():
        file = file / report.JSON_NAME
    try:
        document: Document = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:  # no UTF-8, no JSON
        hint = "; checkpoints are for `vggtquant diff`" if file.suffix == ".safetensors" else ""
        raise UserError(f"{file} is no JSON: {error}{hint}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, str) or not _BLOCKS <= document.keys():
        raise UserError(f"{file} is no {report.JSON_NAME} of vggtquant evaluate")
    if version.partition(".")[0] != report.SCHEMA_VERSION.partition(".")[0]:
        raise UserError(
            f"{file} has schema version {version}; this version reads {report.SCHEMA_VERSION}"
        )
    return document


# ---- what the two have in common -----------------------------------------------------------------


def _at(document: Document, path: tuple[str, ...]) -> Any:
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if path == ("data", "scenes"):
        return [_scene(scene) for scene in value or ()]
    return value


def _scene(scene: Mapping[str, Any]) -> str:
    pictures = ",".join(scene["images_sha256"].values())
    size = f"{scene['frames']} x {scene['width_px']} x {scene['height_px']}"
    return f"{scene['name']} {size} {pictures}"


def differences(a: Document, b: Document) -> list[dict[str, Any]]:
    """The conditions in which two runs differ: what, both values, and what that spoils."""
    found = []
    for condition in CONDITIONS:
        one, two = _at(a, condition.path), _at(b, condition.path)
        if one != two:
            if condition.path == ("data", "scenes"):
                one, two = _scenes_in_words(one, two)
            found.append(
                {
                    "what": "/".join(condition.path),
                    "a": one,
                    "b": two,
                    "spoils": list(condition.spoils),
                }
            )
    return found


def _scenes_in_words(one: list[str], two: list[str]) -> tuple[str, str]:
    """Two different lists of scenes, in few words: how many, and how many the other lacks."""

    def words(here: list[str], there: list[str]) -> str:
        return f"{len(here)} scenes, {len(set(here) - set(there))} of them not in the other"

    return words(one, two), words(two, one)


# ---- figures -------------------------------------------------------------------------------------


def figures(row: Row) -> dict[str, float]:
    """The numbers of a row by path, such as "metrics/depth/mae": what is not per scene or layer."""
    there = {key: value for key, value in row.items() if key not in _NO_FIGURES}
    return dict(_leaves(there, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _is_time(path: str) -> bool:
    return path.partition("/")[0] in _TIMES


def _apart(a: Row, b: Row) -> bool | None:
    """Whether the quartiles of the two times do not overlap; None for a time without them."""
    one, two = a["time"], b["time"]
    if not one or not two or one["forward_ms_iqr"] is None or two["forward_ms_iqr"] is None:
        return None
    halves = (one["forward_ms_iqr"] + two["forward_ms_iqr"]) / 2
    return bool(abs(two["forward_ms_median"] - one["forward_ms_median"]) > halves)


def compare(a: Document, b: Document) -> dict[str, Any]:
    """What changed from a to b, as plain JSON values; docs/report.md explains the keys."""
    rows_a = {row["name"]: row for row in a["schemes"]}
    rows_b = {row["name"]: row for row in b["schemes"]}
    unlike = differences(a, b)
    spoiled = {what for one in unlike for what in one["spoils"]}
    schemes = {}
    for name in rows_a:
        if name not in rows_b:
            continue
        one, two = rows_a[name], rows_b[name]
        before, after = figures(one), figures(two)
        common = [path for path in before if path in after]
        schemes[name] = {
            "status": [one["status"], two["status"]],
            "time_beyond_spread": _apart(one, two),
            "unchanged": sum(before[path] == after[path] for path in common),
            "changes": {
                path: _change(before[path], after[path], _is_time(path), spoiled)
                for path in common
                if before[path] != after[path]
            },
            "only_in_a": [path for path in before if path not in after],
            "only_in_b": [path for path in after if path not in before],
        }
    return {
        "differences": unlike,
        "comparable": {what: what not in spoiled for what in _BOTH},
        "only_in_a": [name for name in rows_a if name not in rows_b],
        "only_in_b": [name for name in rows_b if name not in rows_a],
        "schemes": schemes,
    }


def _change(a: float, b: float, time: bool, spoiled: set[str]) -> dict[str, Any]:
    comparable = ("times" if time else "scores") not in spoiled
    return {"a": a, "b": b, "ratio": b / a if comparable and a else None, "comparable": comparable}


# ---- words ---------------------------------------------------------------------------------------


def conditions_in_words(found: Mapping[str, Any]) -> list[str]:
    """The differences of conditions, a line each, with what they spoil."""
    lines = []
    for one in found["differences"]:
        spoils = " and ".join(one["spoils"])
        lines.append(
            f"{one['what']}: {_short(one['a'])} -> {_short(one['b'])}"
            + (f" ({spoils} not comparable)" if spoils else "")
        )
    return lines


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    words = str(value)
    return f"{words[:16]}..." if len(words) == 64 and words.isalnum() else words  # a SHA-256


def in_words(found: Mapping[str, Any], a: Document, b: Document) -> list[str]:
    """The whole comparison in lines: conditions, then a line for each main figure that changed."""
    lines = conditions_in_words(found)
    for key, name in (("only_in_a", "A"), ("only_in_b", "B")):
        if found[key]:
            lines.append(f"only in {name}: {', '.join(found[key])}")
    rows_a = {row["name"]: row for row in a["schemes"]}
    rows_b = {row["name"]: row for row in b["schemes"]}
    shown = columns.main([*a["schemes"], *b["schemes"]])
    table = [("Scheme", "figure", "A", "B", "change")]
    same = []
    for name, change in found["schemes"].items():
        one, two = rows_a[name], rows_b[name]
        if change["status"] != ["ok", "ok"]:
            if change["status"][0] != change["status"][1]:
                table.append((name, "status", *change["status"], ""))
            continue
        before = len(table)
        for column in shown:
            if column.heading.startswith("±"):  # stands beside the time
                continue
            line = _line(column, one, two, found["comparable"], change["time_beyond_spread"])
            if line:
                table.append((name if len(table) == before else "", column.heading, *line))
        if len(table) == before:
            same.append(name)
    if len(table) > 1:
        lines += ["", *_aligned(table), ""]
    if same:
        lines.append(f"no difference in these figures: {', '.join(same)}")
    counts = [len(change["changes"]) for change in found["schemes"].values()]
    lines.append(
        f"{sum(counts)} figures in {len(counts)} schemes differ, all of them in --json; "
        "ms: median ± interquartile range"
    )
    return lines


def _line(
    column: columns.Column, a: Row, b: Row, comparable: Mapping[str, bool], apart: bool | None
) -> tuple[str, str, str] | None:
    """A figure before and after, and its change; None where it reads the same."""
    one, two = column.value(a), column.value(b)
    if one == two or (column.cell(a) == column.cell(b) and column.heading != "ms"):
        return None
    cells = [column.cell(a), column.cell(b)]
    if column.heading == "ms":
        spreads = (row["time"]["forward_ms_iqr"] for row in (a, b))
        cells = [
            cell if spread is None else f"{cell} ± {spread:.1f}"
            for cell, spread in zip(cells, spreads, strict=True)
        ]
    timed = column.heading in ("ms", "speedup")
    if not comparable["times" if timed else "scores"]:
        return cells[0], cells[1], "not comparable"
    words = f"{100 * (two / one - 1):+.1f} %" if one and two is not None else ""
    if column.heading == "ms" and apart is False:
        words += ", within the spread"
    elif column.heading == "ms" and apart is None:
        words += ", spread unknown"
    return cells[0], cells[1], words


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def add_arguments(parser: Any) -> None:
    """The arguments of `vggtquant compare`."""
    parser.epilog = (
        "Exits with 0 when the two could be compared, changed or not; with 4 when models, pictures "
        "or machines differ and --force was not given; with 2 for what is no report."
    )
    parser.add_argument("a", metavar="A", help=f"a {report.JSON_NAME}, or the folder of one")
    parser.add_argument("b", metavar="B", help="another one, with which it is compared")
    parser.add_argument(
        "--force",
        action="store_true",
        help="show what cannot be compared, too: scores of other models or pictures, times of "
        "other machines; such figures are marked and get no ratio",
    )
    parser.add_argument("--json", action="store_true", help="all that changed, for programs")


def main(args: Any) -> int:
    """Runs the command and returns its exit code."""
    a, b = load(args.a), load(args.b)
    found = compare(a, b)
    refused = not all(found["comparable"].values()) and not args.force
    if args.json:
        whole = {"refused": refused, **found}
        if refused:  # nobody reads past a flag
            whole["schemes"] = {}
        print(json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False))
    elif refused:
        for line in conditions_in_words(found):
            print(line)
        what = " and ".join(name for name, good in found["comparable"].items() if not good)
        print(f"not compared: {what} mean nothing side by side; --force shows them all the same")
    else:
        for line in in_words(found, a, b):
            print(line)
    return 4 if refused else 0
