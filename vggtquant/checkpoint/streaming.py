# SPDX-License-Identifier: Apache-2.0
"""quantize_file: float weights to a packed checkpoint, tensor by tensor, without the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

import torch

from .. import devices, model, ops
from ..configs import QuantizationConfig, QuantizationSpec, get_config
from ..errors import PATH, UserError, check_type
from ..qtensor import QTensor, quantize
from ..selection import Choice, Patterns, Request
from ..weights import architectures, linears
from ..weights.container import Blob, Planned, Writer, header_nbytes
from ..weights.tensors import Weights, instantiate, open_weights
from .document import (
    Checkpoint,
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
from .storage import Saved, place, save, workers, write_config, writer

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_WORKERS = 4
"""Tensors in work at a time, each with a few copies in memory; a disk is not faster anyway."""
Progress = Callable[[int, int, str], None]
"""Called with bytes of input done, bytes in all, and the name of the tensor."""


@dataclass(frozen=True)
class Streamed(Saved):
    """A checkpoint that was made tensor by tensor."""

    document: Document
    nbytes_before: int
    """Of the source."""
    prefix: str
    """What stood before every name of the source."""

    @property
    def bits_per_weight(self) -> float:
        """Of the quantized layers, without their biases; NaN where there are none."""
        return self.document.bits_per_weight

    @property
    def notes(self) -> list[str]:
        """What a user should know of this run."""
        document = self.document
        plain = [
            layer.name
            for layer in document.layers
            if layer.spec.bits == 4 and not layer.spec.two_level
        ]
        notes = [f"licence of the weights: {document.source.licence}"]
        if self.prefix:
            notes.append(f"every name began with {self.prefix}, which is left out")
        if plain and any(config.spec(4).two_level for config in document.configs):
            notes.append(
                f"float group scales in {len(plain)} of {len(document.layers)} layers, where "
                f"two-level ones would cost more than 5 % in squared error: {', '.join(plain[:3])}"
                + (", …" if len(plain) > 3 else "")
            )
        if not document.architecture:
            notes.append("the architecture is not known: load it with load(file, model=YourModel)")
        return notes


def quantize_file(
    source: str | Path | Weights,
    config: str | QuantizationConfig,
    out: str | Path,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    configs: Mapping[str, str | QuantizationConfig | None] | None = None,
    float_dtype: str = "bfloat16",
    max_bytes: int | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Streamed:
    """Quantize weights into a packed checkpoint, with the memory of a few tensors.

    source: any name that weights.names.resolve takes: a file, a directory, a hub id, shards,
    module:function. out: a .safetensors file, or a directory as for save. include, exclude,
    configs: as for quantize_model, whose codes these are, bit for bit, on the instantiated model.
    max_bytes: that the file may have (budget.from_bytes plans for it). device: where weights are
    coded, a tensor at a time (None: config.device); the file is the same. Until the new file is
    whole, whatever stood at `out` stays.

    Raises:
        UserError: no such source, a damaged one, NaN or infinite weights (the layer is named), an
            unknown scheme, a full disk, a directory that cannot be written.

    >>> vq.quantize_file("facebook/VGGT-1B", "INT4_Group_128", "vggt.safetensors")  # doctest: +SKIP
    """
    check_type("source", source, (*PATH, Weights), "the name of a model or file")
    check_type("out", out, PATH, "the path of a file")
    config = checked_config(config)
    check_float_dtype(float_dtype)
    there = ops.check_served(config.device if device is None else device)
    found = source if isinstance(source, Weights) else open_weights(source)
    check_output(found, out)
    if config.convolutions != "float":
        return _as_a_model(found, config, out, include, exclude, configs, float_dtype, max_bytes)
    request = Request(config, include, exclude, configs=configs or {})
    choice = linears.choose(found, request)
    if not choice.chosen:
        raise UserError(
            f"{found.place.name}: no layer is left to quantize of {len(choice.skipped)} Linear "
            "layers; wanted other patterns"
        )
    document = _planned_document(found, choice, config)

    def job(name: str) -> _Made:
        return _make(found, choice, document.configs, float_dtype, there, name)

    layers: list[Layer] = []
    costs: dict[str, Cost] = {}
    sha256: dict[str, str] = {}
    done, total = 0, sum(about.nbytes for about in found.tensors.values())
    path, folder = place(out)
    with Writer(path, room(document, planned(found, choice))) as file:
        with _digest(found) as digest:
            for name, made in in_order(job, found.tensors, there):
                for blob in made.blobs:
                    sha256[blob.name] = blob.sha256
                    file.add(blob)
                if made.layer is not None:
                    layers.append(made.layer)
                else:
                    costs[name] = made.cost
                found.release(name)
                done += found.tensors[name].nbytes
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
        if max_bytes is not None and file.nbytes > max_bytes:
            raise UserError(
                f"{out} would have {file.nbytes} bytes, more than {max_bytes}; not written"
            )
        nbytes = file.finish(document.to_metadata())
    if folder is not None:
        write_config(folder, document)
    return Streamed(
        path, nbytes, len(layers), document.narrowed, document, found.nbytes, found.prefix
    )


def _as_a_model(
    found: Weights,
    config: QuantizationConfig,
    out: str | Path,
    include: Patterns,
    exclude: Patterns,
    configs: Mapping[str, str | QuantizationConfig | None] | None,
    float_dtype: str,
    max_bytes: int | None,
) -> Streamed:
    """Through the model itself: names and shapes do not tell what its convolutions do."""
    if max_bytes is not None:
        raise UserError(f"max_bytes is for Linear layers; {config.name} packs convolutions too")
    if found.model is None and not architectures.recognised(found.shapes, found.place.settings):
        raise UserError(
            f"{config.name} packs convolutions, which takes the model, and that of "
            f"{found.place.name} is not known; quantize_model(model, …) and save do it"
        )
    whole = instantiate(found).eval()
    model.quantize_model(whole, config, include=include, exclude=exclude, configs=configs)
    source = Source(found.place.name, found.sha256(), found.place.licence, found.nbytes)
    saved = save(whole, out, float_dtype=float_dtype, source=source)
    document = Checkpoint(saved.path).document
    return Streamed(
        saved.path,
        saved.nbytes,
        saved.layers,
        saved.narrowed,
        document,
        found.nbytes,
        found.prefix,
    )


class _Made(NamedTuple):
    """What became of one tensor of the source."""

    blobs: list[Blob]
    layer: Layer | None
    cost: Cost


def _make(
    found: Weights,
    choice: Choice,
    configs: list[QuantizationConfig],
    float_dtype: str,
    device: torch.device,
    name: str,
) -> _Made:
    layer_name = name.removesuffix(".weight")
    if name == layer_name or layer_name not in choice.chosen:
        tensor, cost = stored(found.tensor(name).cpu(), float_dtype)
        return _Made([Blob.of(name, tensor)], None, cost)
    config = choice.chosen[layer_name]
    q, weight = code(found, layer_name, config.layer_spec(layer_name), device)
    sqnr_db, _ = model.weight_quality(weight, q)
    shape = linears.shape_of(found, layer_name)
    layer = Layer(layer_name, shape, q.spec, configs.index(config), sqnr_db)
    blobs = [Blob.of(part, tensor) for part, tensor in tensors_of(layer_name, q.cpu()).items()]
    return _Made(blobs, layer, Cost())


def code(
    found: Weights, layer: str, spec: QuantizationSpec, device: torch.device = devices.CPU
) -> tuple[QTensor, torch.Tensor]:
    """A layer's codes and its weight, on the device; UserError naming the layer where it cannot be
    coded."""
    weight = found.tensor(f"{layer}.weight").to(device)
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        weight = weight.float()
    try:
        return quantize(weight, spec), weight
    except UserError as error:
        raise UserError(f"layer {layer}: {error}") from error


def checked_config(config: str | QuantizationConfig) -> QuantizationConfig:
    """The config; UserError for one that makes no packed file."""
    config = get_config(config)
    config.layer_spec()
    return config


def check_output(found: Weights, out: str | Path) -> None:
    """UserError when the result would replace its own source."""
    if Path(out).exists() and any(Path(out).samefile(path) for path in found.place.files):
        raise UserError(f"--out {out} is the source itself; another name is wanted")


def planned(found: Weights, choice: Choice) -> Iterator[Planned]:
    """Every tensor that may be written; both kinds of group scales where both are possible."""
    for name, about in found.tensors.items():
        layer = name.removesuffix(".weight")
        if name == layer or layer not in choice.chosen:
            yield Planned(name, about.dtype, about.shape)
            continue
        parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        shape = linears.shape_of(found, layer)
        for spec in _possible_specs(choice.chosen[layer], layer):
            for part, kind in Layer(layer, shape, spec).parts().items():
                parts[part] = max(parts.get(part, kind), kind, key=lambda a: len(str(a)))
        for part, kind in parts.items():
            yield Planned(part, *kind)


def _possible_specs(config: QuantizationConfig, layer: str) -> list[QuantizationSpec]:
    """What the layer may be coded with, before its values and its share of a budget are known."""
    specs = [config.layer_spec(layer)]
    if config.quant_type == "mixed_precision":
        specs = [config.spec(4), config.spec(8)]
    return specs + [replace(spec, two_level=False) for spec in specs if spec.two_level]


def fixed_nbytes(
    found: Weights, choice: Choice, config: QuantizationConfig, float_dtype: str
) -> int:
    """Bytes of a file beside the quantized weights: the header and what stays float."""
    document = _planned_document(found, choice, config)
    total = header_nbytes(room(document, planned(found, choice)))
    for name, about in found.tensors.items():
        layer = name.removesuffix(".weight")
        if name == layer or layer not in choice.chosen:
            narrow = float_dtype == "bfloat16" and about.dtype in (torch.float32, torch.float64)
            total += about.nbytes * (2 if narrow else about.dtype.itemsize) // about.dtype.itemsize
    return total


def _planned_document(found: Weights, choice: Choice, config: QuantizationConfig) -> Document:
    """What is known of a file before anything is computed."""
    settings = architectures.plain(found.place.settings)
    known = architectures.recognised(found.shapes, settings)
    architecture = known.name if known else ""
    if found.model is not None:
        architecture, settings = architectures.of_model(found.model)
    configs = list(dict.fromkeys([config, *choice.chosen.values()]))
    return Document(
        writer=writer(),
        architecture=architecture,
        settings=settings,
        configs=configs,
        layers=[
            Layer(layer, linears.shape_of(found, layer), own.layer_spec(layer), configs.index(own))
            for layer, own in choice.chosen.items()
        ],
        skipped=choice.skipped,
        source=Source(found.place.name, "", found.place.licence, found.nbytes),
    )


# ---- work shared out -----------------------------------------------------------------------------


def in_order(
    job: Callable[[Item], Result], items: Iterable[Item], device: torch.device = devices.CPU
) -> Iterator[tuple[Item, Result]]:
    """Each item with job(item), computed by all cores, in order, few results waiting at a time; for
    a GPU, whose work is one queue, one after the other."""
    if device != devices.CPU:
        yield from ((item, job(item)) for item in items)
        return
    most = min(torch.get_num_threads(), MOST_WORKERS)
    pool = workers(most, "quantize")
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(job, item)))
            if len(waiting) > most + 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _digest(found: Weights) -> Iterator[Future[str]]:
    """The source's SHA-256, computed beside the rest."""
    stop = Event()
    pool = ThreadPoolExecutor(1, "sha256")
    try:
        yield pool.submit(found.sha256, stop)
    finally:
        stop.set()
        pool.shutdown()
