# SPDX-License-Identifier: Apache-2.0
"""Markup from Python values: every text is escaped unless it is markup already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

# Elements of HTML and SVG that have no end tag.
_VOID = frozenset(("br", "img", "meta", "wbr"))


class Html(str):
    """Text that is markup; any other str is escaped where it is put into an element."""


Part = str | None


def markup(part: Part) -> str:
    """One part as markup.

    >>> markup("<b>"), markup(Html("<b>")), markup(None)
    ('&lt;b&gt;', '<b>', '')
    """
    if part is None:
        return ""
    return str(part) if isinstance(part, Html) else escape(part)


def join(parts: Iterable[Part], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(between.join(map(markup, parts)))


def tag(name: str, *parts: Part, **attributes: object) -> Html:
    """An element; `class_` is class, `data_x` is data-x; None and False leave an attribute out.

    >>> tag("td", "a<b", class_="n", data_value=1.5, hidden=False)
    '<td class="n" data-value="1.5">a&lt;b</td>'
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in _VOID else f"{start}{join(parts)}</{name}>")


def breakable(name: str) -> Html:
    """A name that may be broken after _ and . so that it fits a narrow column."""
    return Html(escape(name).replace("_", "_<wbr>").replace(".", ".<wbr>"))


def table(
    headings: Sequence[Part],
    rows: Iterable[Sequence[Part]],
    *,
    words: str,
    class_: str | None = None,
) -> Html:
    """A plain table in a box that scrolls sideways; `words` name it. First cells are headings."""
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return scroll(
        tag("table", tag("thead", head), tag("tbody", *body), class_=class_ or "numbers"), words
    )


def scroll(inner: Html, words: str) -> Html:
    """A box that scrolls sideways, by keys too, with a name for readers that do not see it."""
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=words)


def facts(pairs: Iterable[tuple[str, Part]]) -> Html:
    """Names and what they stand for."""
    return tag(
        "dl",
        *(join((tag("dt", name), tag("dd", value))) for name, value in pairs),
        class_="facts",
    )


def heat(value: float | None, worst: float, words: str) -> Html:
    """A cell shaded by the square root of its share of the worst value."""
    if value is None:
        return tag("td", words, class_="none")
    share = (max(value, 0.0) / worst) ** 0.5 if worst else 0.0
    over = " over" if share > 0.62 else ""
    return tag("td", words, class_=f"heat{over}", style=f"--v:{100 * share:.0f}%")


def heat_table(headings: Sequence[Part], rows: Iterable[Sequence[Part]], words: str) -> Html:
    """A table whose cells, but for the first of a row, are shaded ones."""
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    lines = [tag("tr", tag("th", row[0], scope="row"), *row[1:]) for row in rows]
    return scroll(tag("table", tag("thead", head), tag("tbody", *lines)), words)
