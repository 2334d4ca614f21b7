# SPDX-License-Identifier: Apache-2.0
"""`vq.export`: a model as a file for ONNX Runtime, OpenVINO, TensorRT or ExecuTorch."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import environment, memory
from ..adapter import PATCH
from ..conv import QuantizedConv2d
from ..errors import PATH, UserError, check_type
from ..files import writable_folder
from . import FILES, FLOAT_TYPES, FORMATS, NEWEST_OPSET, OPSET, FloatType, Format

if TYPE_CHECKING:
    from .check import Difference
    from .runtimes import Ran

_ONNX = ("onnx", "onnxscript", "onnx_ir")
NEEDED: dict[Format, dict[str, str]] = {
    "onnx": dict.fromkeys(_ONNX, "'vggtquant[onnx]'"),
    "openvino": {**dict.fromkeys(_ONNX, "'vggtquant[onnx]'"), "openvino": "openvino"},
    "executorch": {"executorch": "'vggtquant[phone]'"},
}
"""Packages that a format wants, and what pip installs for each."""


@dataclass
class Export:
    """What was written, and how runtimes compute it beside us."""

    path: Path
    nbytes: int
    """Of the file and of the weights beside it."""
    forms: Counter[str]
    """Layers by the way in which they are written (lowering.FORMS)."""
    nodes: Counter[str]
    """Nodes of the graph by kind."""
    notes: list[str]
    tensorrt: list[str] | None
    """Rules of TensorRT that the graph breaks; [] for none, None for a file that it cannot read."""
    runs: dict[str, Ran] = field(default_factory=dict, repr=False)
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    """By runtime; empty where none is installed or no check was wanted."""

    @property
    def agrees(self) -> bool:
        """Whether all outputs of all runtimes that were asked stay within their bounds."""
        return all(d.is_small for found in self.differences.values() for d in found)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.nbytes / 1e6:.1f} MB"]
        if self.forms:
            forms = ", ".join(f"{count} {form}" for form, count in self.forms.items())
            lines.append(f"quantized layers by form: {forms}")
        lines += [f"note: {note}" for note in self.notes]
        if self.tensorrt is not None:
            rules = "; ".join(self.tensorrt) or "none broken"
            lines.append(f"rules of TensorRT for quantized graphs: {rules}")
        for name, run in self.runs.items():
            kernels = ", ".join(f"{n} {kind}" for kind, n in run.kernels.most_common())
            told = f"; products: {kernels}" if kernels else ""
            lines.append(f"{name} {run.version}: {run.seconds:.3g} s a pass{told}")
            lines += [f"  {difference}" for difference in self.differences[name]]
        return "\n".join(lines)


def export(
    model: nn.Module | str | Path,
    out: str | Path,
    *,
    scheme: Any = None,
    format: Format = "onnx",
    size: str | tuple[int, int] = (350, 518),
    frames: int = 1,
    dynamic_frames: bool = False,
    opset: int = OPSET,
    float_dtype: FloatType = "float32",
    images: torch.Tensor | None = None,
    check: bool = True,
    force: bool = False,
) -> Export:
    """Write a model as one graph for pictures of one size, weights beside it, and check it.

    model: a module that returns VGGT's dictionary, quantized by this package or float, or a name
    that load_model takes, packed files included. It is not modified. out: a folder, which gets
    model.onnx and model.onnx.data (or model.xml and model.bin, or model.pte). scheme: quantize
    first; for a name only. size: (height, width) or "350x518", multiples of 14. frames: pictures in
    a pass; with dynamic_frames any number. float_dtype: of products that are not integer ones,
    "float16" or "bfloat16" as under torch.autocast; all between them stays float32. images (1,
    frames, 3, height, width): what the check runs; rendered scenes without. check: run the file in
    each runtime that is installed. force: write a module that returns something else than VGGT's
    dictionary, its tensors as output_0, output_1, …

    Activations coded to INT8 stay so: with a calibrated static scale as QuantizeLinear and
    DequantizeLinear, else token by token before MatMulInteger. Inputs of convolutions stay so with
    a static scale alone. Attention is float in the graph.
    ExecuTorch's XNNPACK codes tokens in its own way, so its file is compared with float
    activations; its bound is of what our coding or its own changes, whichever is more.

    Raises:
        UserError: bad arguments, packages that are not installed, a model that cannot be recorded.

    >>> vq.export("builtin:tiny", "deployed", scheme="INT8_Per_Channel_Symmetric_A8",
    ...           size=(84, 112)).agrees  # doctest: +SKIP
    True
    """
    check_type("model", model, (nn.Module, *PATH), "a module, or the name of one")
    check_type("out", out, PATH, "a folder")
    height, width = parse_size(size)
    _check(format, frames, opset, float_dtype)
    _need(format)
    from . import check as checks
    from . import phone, runtimes, sites

    folder = writable_folder(out)
    for name in FILES[format]:
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a directory; the name of a file is wanted")
    module = _model(model, scheme)
    _check_dtype(module)
    _check_memory(module, frames, (height, width))
    asked = _Asked((height, width), frames, dynamic_frames, opset, float_dtype, force)
    if format == "executorch":
        result = _for_phones(module, folder, asked)
    else:
        result = _as_onnx(module, folder, format, asked)
    if not check or force:
        return result
    pictures = _pictures(images, frames, height, width)
    ours = checks.expected(module, pictures)
    # A copy of its own: recording leaves tensors without values in the caches of the first one.
    bounds = checks.bounds(ours, sites.with_sites(module), pictures, float_dtype)
    reference = ours
    if format == "executorch":  # it codes tokens in its own way, with noise of its own
        coded = checks.expected(sites.with_sites(module, phone.stand_in).model, pictures)
        own = checks.bounds(coded, sites.with_sites(module), pictures)
        bounds = {name: max(bound, own[name]) for name, bound in bounds.items()}
        reference = checks.with_float_activations(sites.with_sites(module), pictures, phone.Read)
    for name, runtime in runtimes.RUNTIMES.items():
        if format not in runtime.reads or not runtime.is_installed:
            continue
        if float_dtype in runtime.lacks:
            result.notes.append(f"{name} was not asked: its CPU kernels have no {float_dtype}")
            continue
        run = runtime.run(result.path, pictures.numpy())
        result.runs[name] = run
        result.differences[name] = checks.differences(reference, run.outputs, bounds)
        if reference is not ours:
            apart = checks.differences(ours, run.outputs, bounds)
            words = ", ".join(f"{d.output} {d.size:.2g}" for d in apart)
            result.notes.append(
                f"{name} codes tokens in its own way: it is compared with float activations; the "
                f"difference from ours is {words} of a deviation"
            )
    if not result.runs:
        result.notes.append(
            "nothing was checked: no runtime is installed (pip install onnxruntime)"
        )
    return result


@dataclass(frozen=True)
class _Asked:
    """What the file is to be."""

    size: tuple[int, int]
    frames: int
    dynamic_frames: bool
    opset: int
    float_dtype: FloatType
    force: bool


def _as_onnx(module: nn.Module, folder: Path, format: Format, asked: _Asked) -> Export:
    from . import lowering, narrow, onnx_file, sites, tensorrt, trace

    found = sites.with_sites(module)
    graph = trace.graph_of(
        found.model, asked.size, asked.frames, asked.dynamic_frames, asked.opset, asked.force
    )
    forms = lowering.lower(graph, found.layers)
    if asked.float_dtype != "float32":
        narrow.narrow(graph, asked.float_dtype)
    path, nbytes = onnx_file.write(graph, folder, format)
    nodes = Counter(node.op_type for node in graph.graph)
    notes, rules = _notes(found), tensorrt.broken_rules(graph)
    return Export(path, nbytes, Counter(forms.values()), nodes, notes, rules)


def _for_phones(module: nn.Module, folder: Path, asked: _Asked) -> Export:
    from . import phone, sites, trace

    if asked.dynamic_frames or asked.float_dtype != "float32":
        raise UserError(
            "the format executorch has a fixed number of pictures and float32 between products: "
            "no dynamic_frames, no float_dtype"
        )
    found = sites.with_sites(module, phone.stand_in)
    program, names = trace.program_of(
        found.model, asked.size, asked.frames, asked.force, phone.TABLE
    )
    path, nbytes, nodes = phone.write(program, names, folder)
    forms: Counter[str] = Counter(phone.form_of(layer) for layer in found.layers.values())
    notes = [f"{found.attentions} attentions are float in the file"] if found.attentions else []
    if forms["weights"]:
        notes.append(f"{forms['weights']} layers without INT8 activations are stored as float32")
    return Export(path, nbytes, forms, nodes, notes, None)


def parse_size(size: str | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from "350x518" or a pair.

    >>> parse_size("350x518")
    (350, 518)

    Raises:
        UserError: other words, or a side that is no positive multiple of 14.
    """
    if isinstance(size, str):
        words = re.fullmatch(r"(\d+)[x×](\d+)", size.strip())
        if words is None:
            raise UserError(f"the size is {size!r}; HEIGHTxWIDTH is wanted, such as 350x518")
        size = (int(words[1]), int(words[2]))
    if len(size) != 2 or any(type(n) is not int or n < PATCH or n % PATCH for n in size):
        said = "x".join(map(str, size))
        raise UserError(f"the size is {said}; two positive multiples of {PATCH} are wanted")
    return size


def _check(format: str, frames: object, opset: object, float_dtype: str) -> None:
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; one of {', '.join(FORMATS)} is wanted")
    if float_dtype not in FLOAT_TYPES:
        known = ", ".join(FLOAT_TYPES)
        raise UserError(f"unknown float_dtype {float_dtype!r}; one of {known} is wanted")
    if type(frames) is not int or frames < 1:
        raise UserError(f"frames is {frames}; 1 or more is wanted")
    if type(opset) is not int or not OPSET <= opset <= NEWEST_OPSET:
        raise UserError(
            f"opset is {opset}; {OPSET} to {NEWEST_OPSET} is wanted: INT4 needs {OPSET}, and torch "
            f"writes none above {NEWEST_OPSET}"
        )


def _check_dtype(model: nn.Module) -> None:
    """UserError for a model that takes no float32 pictures."""
    for name, x in model.named_parameters():
        if x.is_floating_point() and x.dtype != torch.float32:
            raise UserError(
                f"{name} is {str(x.dtype).removeprefix('torch.')}; float32 is wanted: give "
                "model.float(), and float_dtype for narrow products in the graph"
            )


def _check_memory(model: nn.Module, frames: int, size: tuple[int, int]) -> None:
    """UserError for pictures that this machine cannot hold: a graph is recorded from a forward."""
    limit = environment.memory_bytes()
    try:
        nbytes = memory.forecast(model, frames, size)
    except UserError:  # not built like VGGT: its pictures alone are known
        nbytes = frames * 3 * 4 * size[0] * size[1]
    if limit is not None and nbytes > limit:
        raise UserError(
            f"frames is {frames}: pictures of {size[0]}x{size[1]} and their forward take "
            f"{memory.gigabytes(nbytes)}, and this machine has {memory.gigabytes(limit)}"
        )


def _need(format: Format) -> None:
    missing = {x: of for x, of in NEEDED[format].items() if importlib.util.find_spec(x) is None}
    if missing:
        words = " ".join(dict.fromkeys(missing.values()))
        raise UserError(f"export needs {', '.join(missing)}; install with: pip install {words}")


def _model(model: nn.Module | str | Path, scheme: Any) -> nn.Module:
    from ..model import quantize_model
    from ..models import load_model

    if isinstance(model, nn.Module):
        if scheme is not None:
            raise UserError("scheme is for a model's name; quantize_model quantizes a module")
        return model.eval()
    loaded = load_model(model).model
    return loaded if scheme is None else quantize_model(loaded, scheme)[0]


def _notes(found: Any) -> list[str]:
    from . import lowering

    notes = []
    if found.attentions:
        notes.append(f"{found.attentions} attentions of our kernels are float in the graph")
    convolutions = Counter(
        (lowering.form_of(layer), layer.activation_bits)
        for layer in found.layers.values()
        if isinstance(layer, QuantizedConv2d)
    )
    if coded := convolutions["weights", 8]:
        notes.append(
            f"{coded} INT8 convolutions have float activations in the graph: a pair of "
            "QuantizeLinear and DequantizeLinear wants a static range (activation_range)"
        )
    wide = sum(layer.activation_bits == 16 for layer in found.layers.values())
    if wide:
        notes.append(f"{wide} layers with 16-bit activations have float ones in the graph")
    four = [
        n
        for n, layer in found.layers.items()
        if layer.spec.bits == 4 and layer.config.quantize_activations
    ]
    if four:
        notes.append(f"{len(four)} INT4 layers with INT8 activations have float ones in the graph")
    return notes


def _pictures(images: torch.Tensor | None, frames: int, height: int, width: int) -> torch.Tensor:
    wanted = (1, frames, 3, height, width)
    if images is not None:
        if tuple(images.shape) != wanted:
            raise UserError(f"images have shape {tuple(images.shape)}; {wanted} is wanted")
        return images.float().contiguous()
    from ..data import scenes

    side = max(height, width)
    made = scenes.make_scene(scenes.HELD_OUT, frames, side).images
    cut = torch.from_numpy(made)[:, :height, :width].permute(0, 3, 1, 2)
    return cut.contiguous()[None].float() / 255
