# SPDX-License-Identifier: Apache-2.0
"""How figures are written: in progress lines, tables, charts and on the page."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None, digits: int = 4) -> str:
    """A number to a few significant digits; a dash for None.

    >>> number(0.000123456), number(12.0), number(None)
    ('0.0001235', '12', '-')
    """
    return "-" if value is None else f"{value:.{digits}g}"


def megabytes(nbytes: float | None) -> str:
    """Bytes as millions, the unit of every MB in the reports."""
    return "-" if nbytes is None else f"{nbytes / 1e6:,.2f}"


def percent(value: float | None) -> str:
    """A share in percent, to three digits; a dash for None."""
    return "-" if value is None else f"{100 * value:.3g}"


def scaled(value: float | None, factor: float, form: str) -> str:
    """A figure times a factor, as written by `form`; a dash for None, 0 for what has no exponent.

    >>> scaled(0.125, 100, ".1f"), scaled(None, 1, ".1f"), scaled(0.0, 1, ".2e")
    ('12.5', '-', '0')
    """
    if value is None:
        return "-"
    return "0" if value == 0 and form.endswith("e") else format(factor * value, form)


def signed(value: float | None, digits: int) -> str:
    """A difference with its sign; what rounds to zero has a plus, and a dash stands for None.

    >>> signed(-0.00001, 4), signed(-0.2, 1), signed(None, 4)
    ('+0.0000', '-0.2', '-')
    """
    return "-" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"


def ends(low: float | None, high: float | None, factor: float, digits: int) -> str:
    """An interval; a dash where there is none.

    >>> ends(-0.01, 0.02, 100, 1)
    '-1.0 .. +2.0'
    """
    if low is None or high is None:
        return "-"
    return f"{signed(factor * low, digits)} .. {signed(factor * high, digits)}"


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "thread"), count(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def some(names: Sequence[str], most: int = 3, what: str = "") -> str:
    """The first of the names, and how many there are in all.

    >>> some(["a", "b", "c", "d"], 2, "layers")
    '4 layers (a, b, ...)'
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{len(names)} {what} ({', '.join(names[:most])}, ...)".replace("  ", " ")


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
