# SPDX-License-Identifier: Apache-2.0
"""The graph as a file that is whole or not there, its weights in one file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from .. import files
from ..errors import UserError
from . import FILES, Format


def write(model: ir.Model, folder: Path, format: Format) -> tuple[Path, int]:
    """The file's path, and its bytes with those of its weights.

    It is checked by onnx, shapes included, before it takes the place of an older one.

    Raises:
        UserError: the graph is refused by onnx's checker, or by OpenVINO; the disk refuses.
    """
    name, weights = FILES[format]
    with files.staging(folder, (weights, name)) as made:
        graph = made / FILES["onnx"][0]
        ir.save(model, graph, external_data=FILES["onnx"][1])
        try:
            onnx.checker.check_model(str(graph), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise UserError(f"onnx refuses the graph: {str(error).splitlines()[0]}") from error
        if format == "openvino":
            _convert(graph, made / name)
    parts = [folder / part for part in (name, weights) if (folder / part).exists()]
    return folder / name, sum(part.stat().st_size for part in parts)


def _convert(graph: Path, to: Path) -> None:
    import openvino as ov

    try:
        found: Any = ov.convert_model(graph)
        ov.save_model(found, to, compress_to_fp16=False)
    except Exception as error:  # of several kinds, by release
        raise UserError(f"OpenVINO refuses the graph: {str(error).splitlines()[-1]}") from error
