# SPDX-License-Identifier: Apache-2.0
"""Models for other programs: ONNX graphs with our codes and scales, and what runs them.

`sites` marks the quantized layers, `trace` records the graph, `lowering` writes the layers,
`onnx_file` stores it, `runtimes` run it, `check` compares, `tensorrt` has rules, `api` is export.
"""

from typing import Literal

Format = Literal["onnx", "openvino"]
FORMATS: tuple[Format, ...] = ("onnx", "openvino")
OPSET = 21
"""Of ONNX: the first one with INT4 and with blocks."""
