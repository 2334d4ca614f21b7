# SPDX-License-Identifier: Apache-2.0
"""The charts' PNG: its size, and the same bytes every time."""

import io

import pytest
from builders import document, seven
from everywhere import by_default
from PIL import Image

from vggtquant.evaluation.present import charts
from vggtquant.evaluation.schema import Status


@pytest.mark.parametrize("count", by_default([1, 2, 7], 7))
def test_charts_are_a_png_of_a_printable_size(count: int) -> None:
    found = seven()[:count]
    if count == 7:
        found[3].status, found[3].reason = Status.FAILED, "NaN"
    with Image.open(io.BytesIO(charts.png(document(found)))) as image:
        assert image.format == "PNG" and image.width >= 1800 and image.height >= 700


def test_charts_of_one_document_are_the_same_bytes() -> None:
    made = document(seven()[:2])
    assert charts.png(made) == charts.png(document(seven()[:2]))
    for name in ("size", "tradeoff"):  # bars, and points with names
        assert charts.svg(made, name) == charts.svg(made, name)
