# SPDX-License-Identifier: Apache-2.0
"""`vggtquant compare`: what changed between two documents of results.

Scores mean something side by side for the same model on the same pictures, times moreover only for
the same machine in the same state. Nothing is compared across such a difference unasked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ..schema import Document, Part, Row, SceneInput, Status

# Blocks of a row that hold no figure of its own: settings, and what they were made from.
_NO_FIGURES = frozenset(("config", "layers", "scenes", "proof", "reasons", "notes", "why"))
# Those that depend on the machine and on what else it did.
_TIMES = frozenset(("time", "prepare_s", "process_peak_bytes", "isolated"))


@dataclass(frozen=True)
class Condition:
    """Something that two runs should have in common, and what cannot be compared without it."""

    path: tuple[str, ...]
    spoils: tuple[str, ...]  # of "scores" and "times"; none: worth a word only


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


class Unlike(Part):
    """A condition in which two runs differ."""

    what: str
    a: Any
    b: Any
    spoils: list[str]


class Comparable(Part):
    """What means something side by side."""

    scores: bool
    times: bool


class Change(Part):
    """A figure before and after."""

    a: float
    b: float
    ratio: float | None
    comparable: bool


class RowChange(Part):
    """What changed in the row of a scheme."""

    status: list[Status]
    time_beyond_spread: bool | None
    unchanged: int
    changes: dict[str, Change]
    only_in_a: list[str]
    only_in_b: list[str]


class Comparison(Part):
    """What changed from a to b; docs/report.md explains the keys."""

    refused: bool
    differences: list[Unlike]
    comparable: Comparable
    only_in_a: list[str]
    only_in_b: list[str]
    schemes: dict[str, RowChange]


# ---- what the two have in common -----------------------------------------------------------------


def _at(document: Document, path: tuple[str, ...]) -> Any:
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key)
    if path == ("data", "scenes"):
        return [_scene(scene) for scene in value]
    if path == ("environment", "threads"):  # version 3.0 does not know the policy
        return {"torch": value.torch, "omp_num_threads": value.omp_num_threads}
    return value


def _scene(scene: SceneInput) -> str:
    pictures = ",".join(scene.images_sha256.values())
    return f"{scene.name} {scene.frames} x {scene.width_px} x {scene.height_px} {pictures}"


def differences(a: Document, b: Document) -> list[Unlike]:
    """The conditions in which two runs differ: what, both values, and what that spoils."""
    found = []
    for condition in CONDITIONS:
        one, two = _at(a, condition.path), _at(b, condition.path)
        if one != two:
            if condition.path == ("data", "scenes"):
                one, two = _scenes_in_words(one, two)
            found.append(
                Unlike(what="/".join(condition.path), a=one, b=two, spoils=list(condition.spoils))
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
    plain = msgspec.to_builtins(row)
    return dict(_leaves({k: v for k, v in plain.items() if k not in _NO_FIGURES}, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _apart(a: Row, b: Row) -> bool | None:
    """Whether the quartiles of the two times do not overlap; None for a time without them."""
    one, two = a.time, b.time
    if not one or not two or one.forward_ms_iqr is None or two.forward_ms_iqr is None:
        return None
    halves = (one.forward_ms_iqr + two.forward_ms_iqr) / 2
    return abs(two.forward_ms_median - one.forward_ms_median) > halves


def compare(a: Document, b: Document, *, force: bool = False) -> Comparison:
    """What changed from a to b. Without `force`, nothing across a condition that spoils it."""
    rows_a = {row.name: row for row in a.schemes}
    rows_b = {row.name: row for row in b.schemes}
    unlike = differences(a, b)
    spoiled = {what for one in unlike for what in one.spoils}
    return Comparison(
        refused=bool(spoiled) and not force,
        differences=unlike,
        comparable=Comparable(scores="scores" not in spoiled, times="times" not in spoiled),
        only_in_a=[name for name in rows_a if name not in rows_b],
        only_in_b=[name for name in rows_b if name not in rows_a],
        schemes={
            name: _row(row, rows_b[name], spoiled) for name, row in rows_a.items() if name in rows_b
        },
    )


def _row(one: Row, two: Row, spoiled: set[str]) -> RowChange:
    before, after = figures(one), figures(two)
    common = [path for path in before if path in after]
    return RowChange(
        status=[one.status, two.status],
        time_beyond_spread=_apart(one, two),
        unchanged=sum(before[path] == after[path] for path in common),
        changes={
            path: _change(path, before[path], after[path], spoiled)
            for path in common
            if before[path] != after[path]
        },
        only_in_a=[path for path in before if path not in after],
        only_in_b=[path for path in after if path not in before],
    )


def _change(path: str, a: float, b: float, spoiled: set[str]) -> Change:
    what = "times" if path.partition("/")[0] in _TIMES else "scores"
    comparable = what not in spoiled
    return Change(a=a, b=b, ratio=b / a if comparable and a else None, comparable=comparable)
