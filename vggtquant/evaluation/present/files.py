# SPDX-License-Identifier: Apache-2.0
"""Writes the reports of a document, each whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from ...files import write_bytes
from ..analyse import shares
from ..schema import (
    CHARTS_NAME,
    JSON_NAME,
    PAGE_NAME,
    SENSITIVITY_NAME,
    SHARES_NAME,
    TEXT_NAME,
    Document,
)
from . import text


def write(folder: Path, document: Document, *, charts: bool = True) -> list[Path]:
    """Writes the reports into a folder and returns their paths.

    Without `charts` the pictures and the page are left out; those of other figures, which would not
    belong here, are removed.
    """
    found = {JSON_NAME: as_json(document), TEXT_NAME: text.full_report(document).encode()}
    if charts:
        found |= _drawn(document)
    for name, content in found.items():
        write_bytes(folder / name, content)
    for name in (CHARTS_NAME, PAGE_NAME, SENSITIVITY_NAME, SHARES_NAME):
        if name not in found:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in found]


def _drawn(document: Document) -> dict[str, bytes]:
    """The files that are pictures, and the page, by name."""
    from . import charts, heatmap, page

    found = {CHARTS_NAME: charts.png(document), PAGE_NAME: page.draw(document).encode()}
    if document.sensitivity:
        harms = {"sensitivity": shares.harms(document.sensitivity)}
        found |= {
            SENSITIVITY_NAME: heatmap.png(document.sensitivity),
            SHARES_NAME: (json.dumps(harms, indent=1) + "\n").encode(),
        }
    return found


def as_json(document: Document) -> bytes:
    """The document as JSON, with a key a line."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
