# SPDX-License-Identifier: Apache-2.0
"""save and load: a quantized model to a packed checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import ops
from ..configs import QuantizationConfig
from ..errors import UserError
from ..linear import QuantizedLinear
from ..weights import models
from .checkpoint import (
    Checkpoint,
    Cost,
    Document,
    Layer,
    Narrowed,
    Source,
    check_float_dtype,
    narrowing,
    room,
    stored,
    tensors_of,
)
from .container import Blob, Planned, Writer


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was written."""

    path: Path
    nbytes: int
    layers: int
    """Quantized ones."""
    narrowed: Narrowed | None
    """What storing the rest as bfloat16 cost; None where it is stored as it was."""

    def __str__(self) -> str:
        words = f"{self.path}: {self.nbytes / 1e6:.1f} MB, {self.layers} layers quantized"
        return words if self.narrowed is None else f"{words}; {describe(self.narrowed)}"


def describe(narrowed: Narrowed) -> str:
    """The cost of bfloat16 in words."""
    return (
        f"{narrowed.tensors} float tensors as bfloat16, relative L2 error "
        f"{narrowed.relative_l2:.1e}, at most {narrowed.worst_relative_l2:.1e} ({narrowed.worst})"
    )


# ---- save ----------------------------------------------------------------------------------------


def save(
    model: nn.Module,
    path: str | Path,
    *,
    float_dtype: str = "bfloat16",
    source: models.LoadedModel | None = None,
) -> Saved:
    """Write a quantized model as one packed checkpoint.

    float_dtype: "bfloat16" narrows what is not quantized, "float32" stores it as it is. source:
    where the weights came from, as load_model says it; it goes into the file.

    Raises:
        UserError: no quantized layer, a full disk, a directory that cannot be written.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    >>> _ = vq.quantize_model(model, "INT4_Group_32")
    >>> vq.save(model, "small.safetensors").layers   # doctest: +SKIP
    1
    """
    check_float_dtype(float_dtype)
    quantized = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, QuantizedLinear)
    }
    if not quantized:
        raise UserError(f"{type(model).__name__} has no quantized layer; quantize_model first")
    configs: list[QuantizationConfig] = []
    layers = []
    for name, module in quantized.items():
        if module.config not in configs:
            configs.append(module.config)
        shape = (module.out_features, module.in_features)
        layers.append(Layer(name, shape, module.scheme, configs.index(module.config)))
    floats = dict(_float_tensors(model))
    architecture, settings = _architecture(model)
    document = Document(
        writer=writer(),
        architecture=architecture,
        settings=settings,
        configs=configs,
        layers=layers,
        skipped={
            name: "not quantized when saved"
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, nn.Linear)
        },
        source=Source(source.name, source.sha256, source.licence) if source else Source(),
    )
    planned = [Planned(name, x.dtype, tuple(x.shape)) for name, x in floats.items()]
    planned += [Planned(n, *part) for layer in layers for n, part in layer.parts().items()]
    costs: dict[str, Cost] = {}
    sha256: dict[str, str] = {}
    with Writer(path, room(document, planned)) as out:
        for name, module in quantized.items():
            for part, x in tensors_of(name, module.qtensor()).items():
                _add(out, Blob.of(part, x), sha256)
        for name, x in floats.items():
            narrow, costs[name] = stored(x.detach().cpu(), float_dtype)
            _add(out, Blob.of(name, narrow), sha256)
        document = replace(
            document,
            sha256=sha256,
            dtypes={name: cost.was for name, cost in costs.items() if cost.was},
            narrowed=narrowing(costs),
        )
        nbytes = out.finish(document.to_metadata())
    return Saved(Path(path), nbytes, len(layers), document.narrowed)


def writer() -> str:
    """What a file says of the program that wrote it."""
    import vggtquant

    return f"vggtquant {vggtquant.__version__}"


def _add(out: Writer, blob: Blob, sha256: dict[str, str]) -> None:
    sha256[blob.name] = blob.sha256
    out.add(blob)


def _float_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a state dict holds but for quantized weights, without unpacking those."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        transient = module._non_persistent_buffers_set
        for name, x in [*module._parameters.items(), *module._buffers.items()]:
            if x is not None and name not in transient:
                yield dot + name, x


def _architecture(model: nn.Module) -> tuple[str, dict[str, int | bool]]:
    """What load can build again, and with which arguments."""
    kind = type(model)
    if (kind.__module__, kind.__name__) == ("vggtquant.tiny.model", "TinyVGGT"):
        return "builtin:tiny", {}
    if kind.__module__.partition(".")[0] == "vggt" and kind.__name__ == "VGGT":
        return "vggt", plain_settings(getattr(model, "_hub_mixin_config", None) or {})
    return "", {}


def plain_settings(given: Mapping[str, Any]) -> dict[str, int | bool]:
    """Sizes and switches among an architecture's arguments, which is all that VGGT has."""
    return {k: v for k, v in given.items() if isinstance(v, int) and 0 <= v <= 65536}


@contextmanager
def one_thread_a_worker() -> Iterator[None]:
    """Whole tensors are dealt to threads here, so the kernels' own threads would only wait."""
    ops.set_threads(1)
    try:
        yield
    finally:
        ops.set_threads(0)


# ---- load ----------------------------------------------------------------------------------------


def load(
    path: str | Path, *, model: nn.Module | Callable[[], nn.Module] | None = None
) -> nn.Module:
    """The model of a packed checkpoint, in eval mode, its packed weights made for this machine.

    model: the user's own, for architectures other than VGGT (through the user's `vggt` package) and
    builtin:tiny; a class or function that builds it gets parameters without memory, so that float
    weights are never allocated. The model stays as it was if anything is wrong. Every tensor's
    checksum is verified; afterwards the file is not needed any more.

    Raises:
        UserError: a damaged file, a newer format, tensors that do not fit the model.

    >>> model = vq.load("vggt-int4.safetensors")   # doctest: +SKIP
    """
    checkpoint = Checkpoint(path)
    layers = checkpoint.document.layers
    pool = ThreadPoolExecutor(torch.get_num_threads(), "load")
    try:
        # Bytes are checked and packed while Python builds the model.
        with one_thread_a_worker():
            coming = {layer.name: pool.submit(_pack, checkpoint, layer) for layer in layers}
            floats = {name: pool.submit(_read, checkpoint, name) for name in checkpoint.floats}
            target = model if isinstance(model, nn.Module) else _build(checkpoint, model)
            _check_fit(checkpoint, target)
            packed = {name: future.result() for name, future in coming.items()}
            read = {name: future.result() for name, future in floats.items()}
    finally:
        pool.shutdown(cancel_futures=True)

    # From here on nothing can go wrong.
    for name, module in packed.items():
        old = target.get_submodule(name)
        module.register_parameter("bias", old._parameters.get("bias"))
        module.train(old.training)
        parent, _, child = name.rpartition(".")
        setattr(target.get_submodule(parent), child, module)
    for name, x in read.items():
        _put(target, name, x)
    return target if isinstance(model, nn.Module) else target.eval()


def _pack(checkpoint: Checkpoint, layer: Layer) -> QuantizedLinear:
    for part in layer.parts():
        checkpoint.verify(part)
    config = checkpoint.document.configs[layer.config]
    module = QuantizedLinear(checkpoint.qtensor(layer), None, config, layer.name)
    for part in layer.parts():
        checkpoint.file.release(part)
    return module


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A copy of a float tensor in the dtype that it had."""
    checkpoint.verify(name)
    x = checkpoint.file.tensor(name).to(checkpoint.dtype(name), copy=True)
    checkpoint.file.release(name)
    return x


def _build(checkpoint: Checkpoint, factory: Callable[[], nn.Module] | None) -> nn.Module:
    """The checkpoint's architecture with parameters that have no memory yet."""
    if factory is not None:
        with models.parameters_without_memory():
            return factory()
    document = checkpoint.document
    if document.architecture == "builtin:tiny":
        from ..tiny.model import TinyVGGT

        with models.parameters_without_memory():
            return TinyVGGT()
    if document.architecture == "vggt":
        tracker = any(name.startswith("track_head.") for name in checkpoint.entries)
        try:
            model = models._build_vggt(document.settings, has_tracker=tracker)
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{checkpoint.path}: VGGT cannot be built with {document.settings} ({error})"
            ) from error
        for head, _ in list(model.named_children()):  # VGGT checks for None
            if head.endswith("_head") and not any(
                name.startswith(f"{head}.") for name in checkpoint.entries
            ):
                setattr(model, head, None)
        return model
    raise UserError(
        f"{checkpoint.path} is of an architecture that cannot be built here "
        f"({document.architecture or document.source.name or 'the user’s own'}); "
        "give the model: load(path, model=YourModel)"
    )


def _check_fit(checkpoint: Checkpoint, model: nn.Module) -> None:
    """UserError unless every tensor of the file has its place in the model, and the reverse."""
    layers = {layer.name: layer for layer in checkpoint.document.layers}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, layer in layers.items():
        module = modules.get(name)
        if not isinstance(module, (nn.Linear, QuantizedLinear)):
            seen = "nothing" if module is None else type(module).__name__
            raise UserError(
                f"{checkpoint.path} does not fit {type(model).__name__}: layer {name} is {seen} "
                "there, a Linear in the file"
            )
        if (module.out_features, module.in_features) != layer.shape:
            seen = str((module.out_features, module.in_features))
            raise UserError(
                f"{checkpoint.path} does not fit {type(model).__name__}: layer {name} is {seen} "
                f"there, {layer.shape} in the file"
            )
    for name, module in modules.items():
        if isinstance(module, QuantizedLinear) and name not in layers:
            raise UserError(
                f"{checkpoint.path} does not fit {type(model).__name__}: layer {name} is quantized "
                "there, float in the file; give a model that is not quantized"
            )
    wanted = {
        name: tuple(x.shape)
        for name, x in _float_tensors(model)
        if not (name.endswith(".weight") and name.removesuffix(".weight") in layers)
    }
    seen_shapes = {name: checkpoint.entries[name].shape for name in checkpoint.floats}
    wrong = [
        f"{name} {seen_shapes[name]} for {shape}"
        for name, shape in wanted.items()
        if name in seen_shapes and seen_shapes[name] != shape
    ]
    faults = [
        ("missing", [name for name in wanted if name not in seen_shapes]),
        ("unexpected", [name for name in seen_shapes if name not in wanted]),
        ("of another shape", wrong),
    ]
    told = [f"{len(names)} {what} ({models._few(names)})" for what, names in faults if names]
    if told:
        raise UserError(
            f"{checkpoint.path} does not fit {type(model).__name__}: tensors {', '.join(told)}"
        )


def _put(model: nn.Module, name: str, x: torch.Tensor) -> None:
    """Set a parameter or buffer to x, in the dtype that it has there."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    held = module._parameters.get(leaf)
    if held is None:
        old = module._buffers[leaf]
        assert old is not None  # _check_fit found it
        module._buffers[leaf] = x.to(old.device, old.dtype)
    elif held.is_meta:
        new = nn.Parameter(x.to(held.dtype), requires_grad=held.requires_grad)
        module._parameters[leaf] = new
    else:
        with torch.no_grad():
            held.copy_(x)
