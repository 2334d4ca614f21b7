# SPDX-License-Identifier: Apache-2.0
"""The document: its schema is generated, it is written and read back."""

import json
import math
from pathlib import Path

import jsonschema
import pytest
from builders import SCHEMA, SCHEMA_FILE, document, plain, seven, variant

from vggtquant.errors import UserError
from vggtquant.evaluation import schema
from vggtquant.evaluation.analyse import rows
from vggtquant.evaluation.present import files
from vggtquant.evaluation.schema import Status, Why

# ---- the document --------------------------------------------------------------------------------


def test_the_schema_is_generated_and_of_this_version() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"].endswith(f"schema_version {schema.SCHEMA_VERSION}")
    made = schema.json_text()
    assert made == SCHEMA_FILE.read_text(), (
        "python -m vggtquant.evaluation.schema > docs/report.schema.json"
    )


@pytest.mark.parametrize("count", [1, 2, 7])
def test_documents_follow_the_schema(count: int) -> None:
    jsonschema.validate(plain(document(seven()[:count])), SCHEMA)


def test_failed_and_skipped_rows_follow_the_schema() -> None:
    skipped = rows.empty(variant("Baseline_BF16"))
    skipped.status, skipped.why, skipped.reason = Status.SKIPPED, Why.SLOW, "would take 3 h"
    failed = rows.empty(variant("INT4_Group_64"))
    failed.status, failed.why, failed.reason = Status.FAILED, Why.NONFINITE, "NaN"
    jsonschema.validate(plain(document([*seven()[:1], skipped, failed])), SCHEMA)


def test_the_schema_refuses_what_is_wrong() -> None:
    made = plain(document(seven()))
    jsonschema.validate(made, SCHEMA)
    for change in ({"status": "splendid"}, {"unheard": 1}, {"error": "large"}):
        wrong = made | {"schemes": [made["schemes"][0] | change]}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made["data"].update(scenes=[]), "it has no scene"),
        (lambda made: made["schemes"][1].update(time=None), "is ok, but has no time"),
        (lambda made: made["schemes"][0].update(bytes=None), "is ok, but has no time or no bytes"),
        (lambda made: made["schemes"][2].update(error=math.inf), "not finite"),
        (lambda made: made["schemes"][2].update(error="x"), "Expected `float | null`"),
        (lambda made: made.update(schemes=[]), "length >= 1"),
    ],
)
def test_a_file_that_no_evaluation_wrote_is_refused(tmp_path: Path, change, words: str) -> None:
    made = plain(document(seven()))
    change(made)
    path = tmp_path / schema.JSON_NAME
    path.write_text(json.dumps(made).replace("Infinity", "1e999"))
    with pytest.raises(UserError, match="damaged") as caught:
        schema.read(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_nan_and_inf_become_null_with_a_reason() -> None:
    found = seven()
    found[2].metrics["depth"].psnr = math.inf
    found[2].prepare_s = math.nan
    made = document(found)
    assert made.schemes[2].metrics["depth"].psnr is None
    assert made.nulls == {
        "/schemes/2/prepare_s": "the value was nan",
        "/schemes/2/metrics/depth/psnr": "the value was inf",
        "/schemes/2/scenes/0/metrics/depth/psnr": "the value was inf",
    }
    json.loads(files.as_json(made), parse_constant=lambda word: pytest.fail(word))


def test_the_order_of_keys_is_stable() -> None:
    first = files.as_json(document(seven()))
    assert first == files.as_json(document(seven()))
    assert list(json.loads(first))[:3] == ["schema_version", "generator", "status"]


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = document(seven())
    (tmp_path / schema.JSON_NAME).write_bytes(files.as_json(made))
    assert schema.read(tmp_path) == made
