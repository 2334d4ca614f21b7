# SPDX-License-Identifier: Apache-2.0
"""Draws a document of results as one HTML file that needs no network and no script to be read.

The script only sorts tables and opens what is folded before printing. Nothing is computed here but
places on a page; a block that a document lacks is left out.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from string import Template
from typing import Any

from .elements import markup
from .sections import body

Document = dict[str, Any]


def draw(document: Document) -> str:
    """The page of a document."""
    files = resources.files(__package__)
    style, script, page = (
        files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js", "html")
    )
    # Pictures from the file itself and this one script: nothing else is loaded or run.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(page).substitute(
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
        title=markup(f"{document['model']['name']} · VGGT quantization report"),
        style=style,
        body=body(document),
        script=script,
    )
