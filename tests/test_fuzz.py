# SPDX-License-Identifier: Apache-2.0
"""What the Python fuzzers have reached and found runs again, without atheris."""

import warnings
from pathlib import Path

import corpus
import fuzz_python
import numpy as np
import pytest


@pytest.mark.parametrize("target", ["api", "binding"])
def test_the_corpus_replays(target: str, tmp_path: Path) -> None:
    corpus.unpack(fuzz_python.DATA / f"{target}.bin", tmp_path)
    inputs = sorted(tmp_path.iterdir())
    assert len(inputs) > 20
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for path in inputs:
            fuzz_python.TARGETS[target](path.read_bytes())
