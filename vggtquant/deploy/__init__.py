# SPDX-License-Identifier: Apache-2.0
"""Models for other programs: ONNX graphs with our codes and scales, and what runs them.

`sites` marks the quantized layers, `trace` records the graph, `repeated` records equal blocks once,
`lowering` writes the layers, `narrow` makes products half precision, `onnx_file` stores it, `phone`
writes ExecuTorch's file instead, `runtimes` run both, `check` compares, `tensorrt` has rules, `api`
is export.
"""

from typing import Literal

Format = Literal["onnx", "openvino", "executorch"]
FORMATS: tuple[Format, ...] = ("onnx", "openvino", "executorch")
FILES: dict[Format, tuple[str, ...]] = {
    "onnx": ("model.onnx", "model.onnx.data"),
    "openvino": ("model.xml", "model.bin"),
    "executorch": ("model.pte",),
}
"""What each format writes: the file that is opened, and that of its weights."""
FloatType = Literal["float32", "float16", "bfloat16"]
FLOAT_TYPES: tuple[FloatType, ...] = ("float32", "float16", "bfloat16")
OPSET, NEWEST_OPSET = 21, 25
"""Of ONNX: the first one with INT4 and with blocks, and the last that torch's exporter writes."""
