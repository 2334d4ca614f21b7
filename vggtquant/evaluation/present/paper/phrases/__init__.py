# SPDX-License-Identifier: Apache-2.0
"""The sentences of the experiment report, a TOML table a language."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

LANGUAGES = ("en", "zh")


class Phrases:
    """The table of one language; `used` lists the keys that were asked for, in their order.

    >>> Phrases("en")("baseline", scheme="A", mb="1.00", ms="2")
    'Baseline. A holds 1.00 MB, and the median of its forward is 2 ms.'
    """

    def __init__(self, language: str) -> None:
        file = Path(__file__).parent / f"{language}.toml"
        self.language = language
        self.table: dict[str, str] = tomllib.loads(file.read_text("utf-8"))
        self.used: list[str] = []

    def __call__(self, key: str, **facts: object) -> str:
        """The phrase of that key, with the facts in their places."""
        self.used.append(key)
        return self.table[key].format(**facts)

    def names(self, names: Iterable[str]) -> str:
        """Names in a sentence."""
        return self.table["list"].join(names)

    def sentences(self, found: Iterable[str]) -> str:
        """Sentences as one paragraph; Chinese has no blank between them."""
        return ("" if self.language == "zh" else " ").join(found)
