# SPDX-License-Identifier: Apache-2.0
"""Looking into packed checkpoints: what they hold, what that stands for, how two of them differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from .. import ops
from ..errors import UserError
from ..weights.container import Blob, Planned, Writer, header_bound
from ..weights.tensors import open_weights
from .document import Checkpoint, Layer, is_checkpoint
from .storage import check_name, describe
from .streaming import in_order

# ---- info ----------------------------------------------------------------------------------------


@dataclass
class Part:
    """The sum over the tensors whose names begin alike."""

    layers: int = 0
    weights: int = 0
    quantized: int = 0
    """Bytes of codes, scales, factors and zero points."""
    floats: int = 0
    """Bytes of everything else."""


def info(path: str | Path, *, layers: bool = False) -> list[str]:
    """A packed checkpoint in lines for a person, all its checksums verified.

    layers: a line for each layer too.

    Raises:
        UserError: a damaged file, or no packed checkpoint.
    """
    checkpoint = verified(path)
    document = checkpoint.document
    source, parts = document.source, _parts(checkpoint)
    total = Part()
    for part in parts.values():
        for key, value in asdict(part).items():
            setattr(total, key, getattr(total, key) + value)
    rows = [
        ("file", f"{checkpoint.path}, {checkpoint.file.nbytes / 1e6:.1f} MB"),
        ("format", f"{_version(checkpoint)}, written by {document.writer}"),
        ("scheme", ", ".join(_counted(checkpoint))),
        ("model", document.architecture or "the user's own"),
        ("layers", f"{len(document.layers)} quantized, {len(document.skipped)} left in float"),
        ("weights", f"{_bits(total):.2f} bits each, in the quantized layers"),
        ("source", f"{source.name or 'not known'}, {source.nbytes / 1e6:.1f} MB"),
        ("sha256", f"{source.sha256 or 'not known'} (source)"),
        ("", f"{checkpoint.file.header_sha256()} (this file's header, which has all the others)"),
        ("licence", source.licence or "not known"),
        ("float", describe(document.narrowed) if document.narrowed else "stored as it was"),
        ("checked", f"all {len(checkpoint.entries)} tensors fit their SHA-256"),
    ]
    lines = [f"{key:8} {words}" for key, words in rows]
    width = max(map(len, [*parts, "part"]))
    lines += ["", f"{'part':{width}}  layers  bits  quantized MB  float MB"]
    for name, part in [*parts.items(), ("total", total)]:
        bits = f"{_bits(part):.2f}" if part.weights else ""
        lines.append(
            f"{name:{width}}  {part.layers:6}  {bits:>4}  {part.quantized / 1e6:12.2f}  "
            f"{part.floats / 1e6:8.2f}"
        )
    header = checkpoint.file.nbytes - total.quantized - total.floats
    lines.append(f"{'header':{width}}  {'':6}  {'':4}  {'':12}  {header / 1e6:8.2f}")
    if layers:
        lines += ["", *_layer_lines(checkpoint)]
    return lines


def _version(checkpoint: Checkpoint) -> int:
    version: int = json.loads(checkpoint.file.metadata["vggtquant"])["format_version"]
    return version


def _counted(checkpoint: Checkpoint) -> Iterator[str]:
    for i, config in enumerate(checkpoint.document.configs):
        of = [layer for layer in checkpoint.document.layers if layer.config == i]
        eight = sum(layer.spec.bits == 8 for layer in of)
        mixed = f" ({eight} layers at 8 bits)" if 0 < eight < len(of) else ""
        yield f"{config.name}{mixed}"


def _bits(part: Part) -> float:
    return 8 * part.quantized / part.weights if part.weights else math.nan


def _parts(checkpoint: Checkpoint) -> dict[str, Part]:
    """By the first two names of what has many tensors, such as aggregator.frame_blocks."""
    found: dict[str, Part] = {}
    for layer in checkpoint.document.layers:
        part = found.setdefault(_part_of(layer.name), Part())
        part.layers += 1
        part.weights += math.prod(layer.shape)
        part.quantized += layer.bytes
    for name in checkpoint.floats:
        found.setdefault(_part_of(name), Part()).floats += checkpoint.entries[name].nbytes
    return dict(sorted(found.items()))


def _part_of(name: str) -> str:
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first == "aggregator" and len(rest) > 1 else first


def _layer_lines(checkpoint: Checkpoint) -> Iterator[str]:
    document = checkpoint.document
    width = max(map(len, [*document.skipped, *(layer.name for layer in document.layers)]))
    yield f"{'layer':{width}}  {'out x in':>13}  {'bytes':>10}  {'SQNR dB':>7}  what"
    for layer in document.layers:
        noise = "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        yield f"{layer.name:{width}}  {shape:>13}  {layer.bytes:10}  {noise:>7}  {_what(layer)}"
    for name, reason in document.skipped.items():
        yield f"{name:{width}}  {'':>13}  {'':>10}  {'':>7}  float: {reason}"


def _what(layer: Layer) -> str:
    spec = layer.spec
    words = spec.label
    if spec.granularity == "per_group":
        words += f", groups of {spec.group_size}"
        words += "" if spec.two_level else " with float scales"
    return words + ("" if spec.symmetric else ", zero points")


def verified(path: str | Path) -> Checkpoint:
    """The checkpoint, every tensor compared with its checksum; UserError for a damaged one."""
    checkpoint = Checkpoint(path)

    def job(name: str) -> None:
        checkpoint.verify(name)
        checkpoint.file.release(name)

    for _ in in_order(job, checkpoint.entries):
        pass
    return checkpoint


# ---- dequantize ----------------------------------------------------------------------------------


def dequantize(path: str | Path, out: str | Path) -> int:
    """Write what a packed checkpoint stands for as a plain float safetensors file; its bytes.

    Tensors have the names, shapes and dtypes of the float model, weights float32.

    Raises:
        UserError: a damaged file, a full disk, a directory that cannot be written.
    """
    checkpoint = Checkpoint(path)
    check_name(out)
    if Path(out).exists() and Path(out).samefile(checkpoint.path):
        raise UserError(f"--out {out} is the source itself; another name is wanted")
    view = _Packed(checkpoint)
    source = json.dumps(asdict(checkpoint.document.source))
    metadata = {"format": "pt", "dequantized_by": checkpoint.document.writer, "source": source}
    plan = [Planned(name, view.dtype(name), shape) for name, shape in view.shapes.items()]

    def job(name: str) -> Blob:
        return Blob.of(name, view.checked(name))

    with Writer(out, header_bound(plan, metadata)) as file:
        for name, blob in in_order(job, view.shapes):
            file.add(blob)
            view.release(name)
        return file.finish(metadata)


# ---- diff ----------------------------------------------------------------------------------------


class _Packed:
    """A packed checkpoint as the float tensors that it stands for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._layers = {f"{layer.name}.weight": layer for layer in checkpoint.document.layers}
        self.shapes: dict[str, tuple[int, ...]] = {
            **{name: layer.shape for name, layer in self._layers.items()},
            **{name: checkpoint.entries[name].shape for name in checkpoint.floats},
        }

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self._layers else self.checkpoint.dtype(name)

    def files(self, name: str) -> list[str]:
        return list(self._layers[name].parts()) if name in self._layers else [name]

    def tensor(self, name: str) -> torch.Tensor:
        if name in self._layers:
            x: torch.Tensor = self.checkpoint.qtensor(self._layers[name]).dequantize()
            return x
        return self.checkpoint.file.tensor(name).to(self.dtype(name))

    def checked(self, name: str) -> torch.Tensor:
        """The tensor, after its checksums."""
        for part in self.files(name):
            self.checkpoint.verify(part)
        return self.tensor(name)

    def release(self, name: str) -> None:
        for part in self.files(name):
            self.checkpoint.file.release(part)


class _View(NamedTuple):
    """A checkpoint of either kind, as float tensors by name."""

    shapes: dict[str, tuple[int, ...]]
    tensor: Callable[[str], torch.Tensor]
    release: Callable[[str], None]


def _view(address: str | Path) -> _View:
    if is_checkpoint(address):
        packed = _Packed(Checkpoint(address))
        return _View(packed.shapes, packed.checked, packed.release)
    found = open_weights(address)
    return _View(found.shapes, found.tensor, found.release)


class Row(NamedTuple):
    """A tensor that two checkpoints have both, with other values."""

    name: str
    relative_l2: float
    """sqrt(sum (a - b)^2 / sum a^2); infinite where a is zero, NaN where one is not finite."""
    max_abs: float


@dataclass
class Difference:
    """How two checkpoints differ, in the float values that they stand for."""

    same: int = 0
    rows: list[Row] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        return not (self.rows or self.only_a or self.only_b or self.shapes)

    def __str__(self) -> str:
        lines = [f"only in A: {name}" for name in self.only_a]
        lines += [f"only in B: {name}" for name in self.only_b]
        lines += [f"other shape: {words}" for words in self.shapes]
        if self.rows:
            width = max(len(row.name) for row in self.rows)
            lines.append(f"{'tensor':{width}}  relative L2   largest |a - b|")
            for row in sorted(self.rows, key=lambda row: -row.relative_l2):
                lines.append(f"{row.name:{width}}  {row.relative_l2:11.3e}   {row.max_abs:.3e}")
        if self.identical:
            return f"identical: {self.same} tensors, bit for bit"
        lines.append(f"{self.same} tensors are the same bit for bit, {len(self.rows)} differ")
        return "\n".join(lines)


def diff(a: str | Path, b: str | Path) -> Difference:
    """Compare two checkpoints, packed or float, tensor by tensor.

    Raises:
        UserError: one of them cannot be read or is damaged.
    """
    left, right = _view(a), _view(b)
    found = Difference(
        only_a=[name for name in left.shapes if name not in right.shapes],
        only_b=[name for name in right.shapes if name not in left.shapes],
    )
    both = [name for name in left.shapes if name in right.shapes]
    for name in both:
        if left.shapes[name] != right.shapes[name]:
            found.shapes.append(f"{name} {left.shapes[name]} and {right.shapes[name]}")

    def job(name: str) -> Row | None:
        return _compare(name, left.tensor(name), right.tensor(name))

    same_shape = [name for name in both if left.shapes[name] == right.shapes[name]]
    for name, row in in_order(job, same_shape):
        left.release(name)
        right.release(name)
        if row is None:
            found.same += 1
        else:
            found.rows.append(row)
    return found


def _compare(name: str, a: torch.Tensor, b: torch.Tensor) -> Row | None:
    if a.dtype == b.dtype and torch.equal(_raw(a), _raw(b)):
        return None
    if not (a.is_floating_point() and b.is_floating_point()):
        distance = float((a.double() - b.double()).abs().max())
        return Row(name, math.nan, distance)
    a, b = a.float(), b.float()
    m = ops.moments(ops.values(a), ops.values(b))
    power = m["rr"]
    relative = math.sqrt(m["dd"] / power) if power else (math.inf if m["dd"] else 0.0)
    return Row(name, relative, float((a - b).abs().max()) if a.numel() else 0.0)


def _raw(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)
