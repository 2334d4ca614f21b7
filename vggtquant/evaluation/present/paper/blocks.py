# SPDX-License-Identifier: Apache-2.0
"""What an experiment report is made of, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    """Of a section; level 1 is the largest below the title."""

    text: str
    level: int = 1


@dataclass(frozen=True)
class Paragraph:
    """Plain text; each format escapes it."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Short paragraphs below each other."""

    items: Sequence[str]


@dataclass(frozen=True)
class Formula:
    """As LaTeX, and in Unicode for formats without it."""

    tex: str
    plain: str


@dataclass(frozen=True)
class Grid:
    """A table; `name` is that of its CSV file, whose cells are `exact`."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    name: str | None = None
    exact: Sequence[Sequence[object]] = ()
    figures: bool = True
    """Whether the columns after the first hold numbers, which stand at the right."""


@dataclass(frozen=True)
class Picture:
    """A figure in files of that name."""

    name: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Lines as they are."""

    text: str


Block = Heading | Paragraph | Bullets | Formula | Grid | Picture | Code


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn: the name of its files, and the phrase of its caption."""

    name: str
    draw: Callable[[], Figure]
    caption: str
    facts: Mapping[str, object] = field(default_factory=dict)
