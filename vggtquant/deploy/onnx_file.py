# SPDX-License-Identifier: Apache-2.0
"""The graph as a file that is whole or not there, its weights in one file beside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from ..errors import UserError

NAMES = {"onnx": ("model.onnx", "model.onnx.data"), "openvino": ("model.xml", "model.bin")}
"""The file of each format, and that of its weights."""


def write(model: ir.Model, folder: Path, format: str) -> tuple[Path, int]:
    """The file's path, and its bytes with those of its weights.

    It is checked by onnx, shapes included, before it takes the place of an older one.

    Raises:
        UserError: the graph is refused by onnx's checker, or by OpenVINO.
    """
    name, weights = NAMES[format]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        graph = Path(temporary) / NAMES["onnx"][0]
        ir.save(model, graph, external_data=NAMES["onnx"][1])
        try:
            onnx.checker.check_model(str(graph), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise UserError(f"onnx refuses the graph: {str(error).splitlines()[0]}") from error
        if format == "openvino":
            _convert(graph, Path(temporary) / name)
        for part in (weights, name):  # the graph last: it says that the rest is there
            if (Path(temporary) / part).exists():
                os.replace(Path(temporary) / part, folder / part)
    parts = [folder / part for part in (name, weights) if (folder / part).exists()]
    return folder / name, sum(part.stat().st_size for part in parts)


def _convert(graph: Path, to: Path) -> None:
    import openvino as ov

    try:
        found: Any = ov.convert_model(graph)
    except Exception as error:  # of several kinds, by release
        raise UserError(f"OpenVINO refuses the graph: {str(error).splitlines()[-1]}") from error
    ov.save_model(found, to, compress_to_fp16=False)
