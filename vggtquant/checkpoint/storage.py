# SPDX-License-Identifier: Apache-2.0
"""save, load and push_to_hub: a quantized model to a packed checkpoint and back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from .. import adapters, files, ops, recognition, selection
from ..about import VERSION
from ..configs import QuantizationConfig
from ..conv import QuantizedConv2d, product_shape
from ..dense import fuse_heads, set_module
from ..errors import PATH, UserError, check_type
from ..linear import QuantizedLinear, settle
from ..meta import parameters_without_memory
from ..weights import architectures, names
from ..weights.container import Blob, Planned, Writer
from .document import (
    INPUT_PARTS,
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


class Origin(Protocol):
    """Where the float weights came from, as load_model says it."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def licence(self) -> str: ...


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was written."""

    path: Path
    """The file; in a directory, its model.safetensors."""
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
    float_dtype: str = "float32",
    source: Origin | None = None,
) -> Saved:
    """Write a quantized model as one packed checkpoint, which load gives back bit for bit.

    path: a .safetensors file; or a directory (any name without a suffix), which gets
    model.safetensors and config.json. float_dtype: "float32" stores what is not quantized as it is,
    "bfloat16" narrows it, which halves it and costs what the result says. source: where the
    weights came from, as load_model says it; it goes into the file.

    Raises:
        UserError: no quantized layer, a full disk, a directory that cannot be written.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    >>> _ = vq.quantize_model(model, "INT4_Group_32")
    >>> vq.save(model, "small.safetensors").layers   # doctest: +SKIP
    1
    """
    check_float_dtype(float_dtype)
    architectures.check_module(model)
    if source is not None and not hasattr(source, "sha256"):
        raise UserError(f"source is {source!r}; wanted what models.load_model returns")
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
        given = tuple(key for key in module.input_tensors() if key in INPUT_PARTS)
        layers.append(
            Layer(
                name,
                shape,
                module.spec,
                configs.index(module.config),
                input_scale=module.input_scale,
                input_parts=given,
            )
        )
    floats = dict(_float_tensors(model))
    architecture, settings = architectures.of_model(model)
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
    file, folder = place(path)
    with Writer(file, room(document, planned)) as out:
        for name, module in quantized.items():
            for part, x in tensors_of(name, module.qtensor()).items():
                _add(out, Blob.of(part, x), sha256)
            for key, x in module.input_tensors().items():
                if key in INPUT_PARTS:
                    _add(out, Blob.of(f"{name}.{key}", x.detach().cpu().float()), sha256)
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
    if folder is not None:
        write_config(folder, document)
    return Saved(file, nbytes, len(layers), document.narrowed)


def writer() -> str:
    """What a file says of the program that wrote it."""
    return f"vggtquant {VERSION}"


FOREIGN = (".pt", ".pth", ".bin", ".ckpt", ".onnx", ".gguf", ".npz", ".json", ".toml", ".txt")
"""Suffixes of other formats, under which no packed file is written."""


def check_name(path: str | Path) -> None:
    """UserError for an empty path, and for a file under the name of another format."""
    if not os.fspath(path):
        raise UserError("the path is empty; a .safetensors file or a directory is wanted")
    if Path(path).suffix in FOREIGN and not os.path.isdir(path):
        raise UserError(
            f"{path} would hold safetensors under the name of another format; wanted .safetensors "
            "or a directory"
        )


def place(path: str | Path) -> tuple[Path, Path | None]:
    """The file that a path means, and the directory around it where a directory is meant."""
    check_name(path)
    path = Path(path)
    if path.suffix and not os.path.isdir(path):
        return path, None
    files.writable_folder(path)
    return path / names.WEIGHTS[0], path


def write_config(folder: Path, document: Document) -> None:
    """The config.json beside a packed checkpoint, for people and for other tools."""
    about = {
        "library_name": "vggtquant",
        "architecture": document.architecture,
        "settings": document.settings,
        "quantization": [config.to_dict() for config in document.configs],
        "licence": document.source.licence,
    }
    files.write_bytes(folder / names.CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    float_dtype: str = "bfloat16",
    source: Origin | None = None,
) -> str:
    """Upload a quantized model as save writes it into a directory; the address of the commit.

    repository: owner/name, made where it is not there. The licence of the weights stays that of
    their source. Needs the extra: pip install 'vggtquant[hub]'.

    Raises:
        UserError: no quantized layer, no huggingface_hub, or the hub refuses.

    >>> vq.push_to_hub(model, "me/vggt-int4")   # doctest: +SKIP
    'https://huggingface.co/me/vggt-int4/commit/…'
    """
    client = names.hub()
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, float_dtype=float_dtype, source=source)
        try:
            api = client.HfApi(token=token)
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repository, folder_path=folder)
        except Exception as error:  # the hub's client raises many kinds, of several libraries
            raise UserError(f"the hub refuses {repository}: {names.first_line(error)}") from error
    return str(done.commit_url)


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


def workers(count: int, name: str) -> ThreadPoolExecutor:
    """Threads to which whole tensors are dealt: each computes alone, or teams would only wait."""
    return ThreadPoolExecutor(count, name, ops.limit_threads, (1,))


# ---- load ----------------------------------------------------------------------------------------


def load(
    source: str | Path,
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The model of a packed checkpoint, in eval mode, its packed weights made for this machine.

    source: a packed file, a directory with one, or a hub id. model: the user's own, for
    architectures other than VGGT (through the user's `vggt` package) and builtin:tiny; a class or
    function that builds it gets parameters without memory, so that float weights are never
    allocated. A model with memory keeps its devices, unless device says another. dtype: of what is
    not quantized. The model stays as it was if anything is wrong. Every tensor's checksum is
    verified; afterwards the file is not needed any more.

    Raises:
        UserError: nothing of that name, a damaged file, a newer format, tensors that do not fit the
            model.

    >>> model = vq.load("vggt-int4.safetensors", device="cuda")   # doctest: +SKIP
    """
    check_type("source", source, PATH, "a packed file, a directory or a hub id")
    if model is not None and not callable(model):  # a module is callable
        raise UserError(f"model is {model!r}; wanted a module, or a function that builds it")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(f"dtype is {dtype!r}; wanted torch.float32, torch.bfloat16 or float16")
    if device is not None:
        ops.check_device(device)
    checkpoint = Checkpoint(_file_of(source))
    layers = checkpoint.document.layers
    pool = workers(torch.get_num_threads(), "load")
    try:
        # Bytes are checked and packed while Python builds the model.
        coming = {layer.name: pool.submit(_pack, checkpoint, layer) for layer in layers}
        floats = {name: pool.submit(_read, checkpoint, name) for name in checkpoint.floats}
        target = model if isinstance(model, nn.Module) else _build(checkpoint, model)
        _leave_out_extras(checkpoint, target)
        _check_fit(checkpoint, target)
        packed = {name: future.result() for name, future in coming.items()}
        read = {name: future.result() for name, future in floats.items()}
    finally:
        pool.shutdown(cancel_futures=True)

    for name, module in packed.items():
        module.to(_device_of(target.get_submodule(name)))
    # From here on nothing can go wrong.
    for name, module in packed.items():
        old = target.get_submodule(name)
        if isinstance(old, (nn.Conv2d, nn.ConvTranspose2d)):
            module = QuantizedConv2d.from_product(module, old)
        module.register_parameter("bias", old._parameters.get("bias"))
        module.train(old.training)
        parent, _, child = name.rpartition(".")
        setattr(target.get_submodule(parent), child, module)
    for name, x in read.items():
        _put(target, name, x)
    fuse_heads(target)
    recognition.swap(target, checkpoint.document.configs, each=False)
    target.to(device=device, dtype=dtype)
    settle(target)
    return target if isinstance(model, nn.Module) else target.eval()


def _file_of(source: str | Path) -> Path:
    """The one file that a name means."""
    if os.path.exists(source) and not os.path.isdir(source):
        return Path(source)
    place = names.resolve(source)
    if len(place.files) != 1:
        raise UserError(f"{place.name} is no packed checkpoint, which is one file")
    return place.files[0]


def _pack(checkpoint: Checkpoint, layer: Layer) -> QuantizedLinear:
    for part in layer.parts():
        checkpoint.verify(part)
    config = checkpoint.document.configs[layer.config]
    inputs = checkpoint.inputs(layer)
    module = QuantizedLinear(checkpoint.qtensor(layer), None, config, layer.name, inputs)
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
        with parameters_without_memory():
            return architectures.check_module(factory())
    document = checkpoint.document
    if architectures.files_of(document.architecture) is None:
        whose = document.architecture or document.source.name or "the user\u2019s own"
        raise UserError(
            f"{checkpoint.path} is of an architecture that cannot be built here ({whose}); "
            "give the model: load(path, model=YourModel)"
        )
    try:
        model = architectures.built(document.architecture, document.settings, checkpoint.entries)
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    architectures.drop_heads(model, checkpoint.entries)
    return model


def _leave_out_extras(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Set plain Linear layers in the place of those whose further tensors the file has not."""
    for name, linear in selection.linears_of(model).items():
        extras = [f"{name}.{leaf}" for leaf, x in linear._buffers.items() if x is not None]
        if name and extras and not any(extra in checkpoint.entries for extra in extras):
            set_module(model, name, adapters.without_extras(linear))


def _device_of(module: nn.Module) -> torch.device:
    """Where a layer's memory is; the CPU for one that has none yet."""
    held = next(iter([*module.parameters(), *module.buffers()]), None)
    return torch.device("cpu") if held is None or held.is_meta else held.device


def _check_fit(checkpoint: Checkpoint, model: nn.Module) -> None:
    """UserError unless every tensor of the file has its place in the model, and the reverse."""
    layers = {layer.name: layer for layer in checkpoint.document.layers}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, layer in layers.items():
        module = modules.get(name)
        shape = product_shape(module) if module is not None else None
        if shape is None:
            seen = "nothing" if module is None else type(module).__name__
            raise UserError(
                f"{checkpoint.path} does not fit {type(model).__name__}: layer {name} is {seen} "
                "there, a Linear in the file"
            )
        if shape != layer.shape:
            raise UserError(
                f"{checkpoint.path} does not fit {type(model).__name__}: layer {name} is {shape} "
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
    shapes = {name: checkpoint.entries[name].shape for name in checkpoint.floats}
    misfit = architectures.misfit(wanted, shapes)
    if misfit:
        raise UserError(f"{checkpoint.path} does not fit {type(model).__name__}: tensors {misfit}")


def _put(model: nn.Module, name: str, x: torch.Tensor) -> None:
    """Set a parameter or buffer to x, in the dtype that it has there."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    held = module._parameters.get(leaf)
    if held is None:
        old = module._buffers[leaf]
        assert old is not None  # _check_fit found it
        module._buffers[leaf] = x.to("cpu" if old.is_meta else old.device, old.dtype)
    elif held.is_meta:
        new = nn.Parameter(x.to(held.dtype), requires_grad=held.requires_grad)
        module._parameters[leaf] = new
    else:
        with torch.no_grad():
            held.copy_(x)
