# SPDX-License-Identifier: Apache-2.0
"""Pictures that the commands read."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (56, 42), (40 * i, 100, 200)).save(folder / f"{i}.png")
    return folder
