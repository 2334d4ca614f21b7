# SPDX-License-Identifier: Apache-2.0
"""`vggtquant merge`: shards become one report."""

import json
from pathlib import Path

import jsonschema
from builders import SCHEMA
from commandline import evaluate

from vggtquant.commands import cli
from vggtquant.evaluation import schema


def test_shards_are_evaluated_and_merged(tmp_path: Path, capsys) -> None:
    for part in ("1/2", "2/2"):
        words = ("--scenes", "2", "--shard", part, "--output_dir", str(tmp_path / part[0]))
        assert evaluate(tmp_path, *words) == 0
    shards = [str(tmp_path / part) for part in "21"]
    assert cli.main(["merge", *shards, "--output_dir", str(tmp_path / "whole")]) == 0
    assert f"wrote {tmp_path / 'whole' / schema.JSON_NAME}" in capsys.readouterr().out
    document = json.loads((tmp_path / "whole" / schema.JSON_NAME).read_text())
    jsonschema.validate(document, SCHEMA)
    assert len(document["data"]["scenes"]) == 2 and document["settings"]["shard"] is None
    assert cli.main(["merge", shards[0], "--output_dir", str(tmp_path / "half")]) == 2
    assert "missing: shard 1/2" in capsys.readouterr().err
