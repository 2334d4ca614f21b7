# SPDX-License-Identifier: Apache-2.0
"""quantize_file: a float checkpoint to a packed one, tensor by tensor, never holding the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

import torch

from .. import model, vggt
from ..configs import QuantizationConfig, Scheme, get_config
from ..errors import UserError
from ..qtensor import QTensor, quantize
from ..weights import models, sources
from ..weights.sources import Choice, FloatCheckpoint
from .checkpoint import (
    Cost,
    Document,
    Layer,
    Source,
    check_float_dtype,
    narrowing,
    room,
    stored,
    tensors_of,
)
from .container import Blob, Planned, Writer, header_nbytes
from .storage import Saved, one_thread_a_worker, plain_settings, writer

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_WORKERS = 4
"""Tensors in work at a time, each with a few copies in memory; a disk is not faster anyway."""
Progress = Callable[[int, int, str], None]
"""Called with bytes of input done, bytes in all, and the name of the tensor."""


@dataclass(frozen=True)
class Streamed(Saved):
    """A checkpoint that was made from a file."""

    document: Document
    nbytes_before: int
    """Of the source."""
    bits_per_weight: float
    """Of the quantized layers, without their biases."""

    @property
    def notes(self) -> list[str]:
        """What a user should know of this run."""
        config = self.document.configs[0]
        plain = [
            layer.name
            for layer in self.document.layers
            if layer.scheme.bits == 4 and not layer.scheme.two_level
        ]
        notes = [f"licence of the weights: {self.document.source.licence}"]
        if plain and config.scheme(4).two_level:
            notes.append(
                f"float group scales in {len(plain)} of {len(self.document.layers)} layers, where "
                f"two-level ones would cost more than 5 % in squared error: {', '.join(plain[:3])}"
                + (", …" if len(plain) > 3 else "")
            )
        return notes


def quantize_file(
    source: str | Path | FloatCheckpoint,
    config: str | QuantizationConfig,
    out: str | Path,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    float_dtype: str = "bfloat16",
    most: int | None = None,
    progress: Progress | None = None,
) -> Streamed:
    """Quantize a weights file into a packed checkpoint, with the memory of a few tensors.

    source: what sources.open_checkpoint takes. include, exclude: fnmatch patterns of layer names.
    The codes are those of quantize_model on the instantiated model, bit for bit. most: bytes that
    the file may have. Until the new file is whole, whatever stood at `out` stays.

    Raises:
        UserError: no such source, a damaged one, NaN or infinite weights (the layer is named), an
            unknown scheme, a full disk, a directory that cannot be written.

    >>> quantize_file("model.safetensors", "INT4_Group_128", "packed.safetensors")  # doctest: +SKIP
    """
    config = checked_config(config)
    check_float_dtype(float_dtype)
    found = source if isinstance(source, FloatCheckpoint) else sources.open_checkpoint(source)
    check_output(found, out)
    choice = sources.choose(found, config, include=include, exclude=exclude)
    document = _planned_document(found, choice, config)

    def job(name: str) -> _Made:
        return _make(found, choice, config, float_dtype, name)

    layers: list[Layer] = []
    costs: dict[str, Cost] = {}
    sha256: dict[str, str] = {}
    done, total = 0, sum(_nbytes(found, name) for name in found.tensors)
    with Writer(out, room(document, planned(found, choice, config))) as file:
        with _digest(found) as digest, one_thread_a_worker():
            for name, made in in_order(job, found.tensors):
                for blob in made.blobs:
                    sha256[blob.name] = blob.sha256
                    file.add(blob)
                if made.layer is not None:
                    layers.append(made.layer)
                else:
                    costs[name] = made.cost
                found.release(name)
                done += _nbytes(found, name)
                if progress:
                    progress(done, total, name)
            document = replace(
                document,
                layers=layers,
                source=replace(document.source, sha256=digest.result()),
                sha256=sha256,
                dtypes={name: cost.was for name, cost in costs.items() if cost.was},
                narrowed=narrowing(costs),
            )
        if most is not None and file.nbytes > most:
            raise UserError(f"{out} would have {file.nbytes} bytes, more than {most}; not written")
        nbytes = file.finish(document.to_metadata())
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    return Streamed(
        Path(out),
        nbytes,
        len(layers),
        document.narrowed,
        document,
        found.nbytes,
        8 * sum(layer.bytes for layer in layers) / weights if weights else 0.0,
    )


class _Made(NamedTuple):
    """What became of one tensor of the source."""

    blobs: list[Blob]
    layer: Layer | None
    cost: Cost


def _make(
    found: FloatCheckpoint,
    choice: Choice,
    config: QuantizationConfig,
    float_dtype: str,
    name: str,
) -> _Made:
    layer_name = name.removesuffix(".weight")
    if name == layer_name or layer_name not in choice.chosen:
        tensor, cost = stored(found.tensor(name), float_dtype)
        return _Made([Blob.of(name, tensor)], None, cost)
    q, weight = code(found, layer_name, config)
    sqnr_db, _ = model._weight_quality(weight, q)
    layer = Layer(layer_name, choice.chosen[layer_name], q.scheme, 0, sqnr_db)
    blobs = [Blob.of(part, tensor) for part, tensor in tensors_of(layer_name, q).items()]
    return _Made(blobs, layer, Cost())


def code(
    found: FloatCheckpoint, layer: str, config: QuantizationConfig, bits: int | None = None
) -> tuple[QTensor, torch.Tensor]:
    """A layer's codes and its weight; UserError naming the layer where it cannot be coded."""
    weight = found.tensor(f"{layer}.weight")
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        weight = weight.float()
    scheme = config.layer_scheme(layer) if bits is None else config.scheme(bits)
    try:
        return quantize(weight, scheme), weight
    except UserError as error:
        raise UserError(f"layer {layer}: {error}") from error


def checked_config(config: str | QuantizationConfig) -> QuantizationConfig:
    """The config; UserError for one that makes no packed file."""
    config = get_config(config)
    if not config.quantizes:
        raise UserError(f"{config.name} quantizes nothing; a scheme of integers is wanted")
    return config


def check_output(found: FloatCheckpoint, out: str | Path) -> None:
    """UserError when the result would replace its own source."""
    if Path(out).exists() and any(Path(out).samefile(path) for path in found.files):
        raise UserError(f"--out {out} is the source itself; another name is wanted")


def planned(
    found: FloatCheckpoint, choice: Choice, config: QuantizationConfig
) -> Iterator[Planned]:
    """Every tensor that may be written; both kinds of group scales where both are possible."""
    for name, (dtype, shape) in found.tensors.items():
        layer = name.removesuffix(".weight")
        if name == layer or layer not in choice.chosen:
            yield Planned(name, dtype, shape)
            continue
        parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for scheme in _possible_schemes(config, layer):
            for part, about in Layer(layer, choice.chosen[layer], scheme).parts().items():
                parts[part] = max(parts.get(part, about), about, key=lambda a: len(str(a)))
        for part, about in parts.items():
            yield Planned(part, *about)


def _possible_schemes(config: QuantizationConfig, layer: str) -> list[Scheme]:
    """What the layer may be coded with, before its values and its share of a budget are known."""
    schemes = [config.layer_scheme(layer)]
    if config.quant_type == "mixed_precision":
        schemes = [config.scheme(4), config.scheme(8)]
    return schemes + [replace(scheme, two_level=False) for scheme in schemes if scheme.two_level]


def fixed_nbytes(
    found: FloatCheckpoint, choice: Choice, config: QuantizationConfig, float_dtype: str
) -> int:
    """Bytes of a file beside the quantized weights: the header and what stays float."""
    document = _planned_document(found, choice, config)
    total = header_nbytes(room(document, planned(found, choice, config)))
    for name, (dtype, _) in found.tensors.items():
        layer = name.removesuffix(".weight")
        if name == layer or layer not in choice.chosen:
            narrow = float_dtype == "bfloat16" and dtype in (torch.float32, torch.float64)
            total += _nbytes(found, name) * (2 if narrow else dtype.itemsize) // dtype.itemsize
    return total


def _planned_document(
    found: FloatCheckpoint, choice: Choice, config: QuantizationConfig
) -> Document:
    """What is known of a file before anything is computed."""
    return Document(
        writer=writer(),
        architecture=_architecture(found),
        settings=plain_settings(found.settings),
        configs=[config],
        layers=[
            Layer(name, shape, config.layer_scheme(name)) for name, shape in choice.chosen.items()
        ],
        skipped=choice.skipped,
        source=Source(found.name, "", found.licence, found.nbytes),
    )


def _nbytes(found: FloatCheckpoint, name: str) -> int:
    about = found.tensors[name]
    return torch.Size(about.shape).numel() * about.dtype.itemsize


def _architecture(found: FloatCheckpoint) -> str:
    """What load can build for these names and shapes."""
    from ..tiny.model import TinyVGGT

    with models.parameters_without_memory():
        tiny = TinyVGGT().state_dict()
    if {name: about.shape for name, about in found.tensors.items()} == {
        name: tuple(x.shape) for name, x in tiny.items()
    }:
        return "builtin:tiny"
    return "vggt" if vggt.first_and_last(sources.linear_layers(found.tensors)) else ""


# ---- work shared out -----------------------------------------------------------------------------


def in_order(job: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item with job(item), computed by all cores, in order, few results waiting at a time."""
    workers = min(torch.get_num_threads(), MOST_WORKERS)
    pool = ThreadPoolExecutor(workers, "quantize")
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(job, item)))
            if len(waiting) > workers + 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _digest(found: FloatCheckpoint) -> Iterator[Future[str]]:
    """The source's SHA-256, computed beside the rest."""
    stop = Event()
    pool = ThreadPoolExecutor(1, "sha256")
    try:
        yield pool.submit(found.sha256, stop)
    finally:
        stop.set()
        pool.shutdown()
