# SPDX-License-Identifier: Apache-2.0
"""Float checkpoints as files: tensors one by one, mapped, and which of them are Linear layers.

Nothing is instantiated: what a tensor is must follow from its name, its shape and its neighbours.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch

from .. import vggt
from ..checkpoint import checkpoint
from ..checkpoint.container import Container
from ..configs import QuantizationConfig
from ..errors import UserError
from . import models

_INDEX = "model.safetensors.index.json"
_BIASLESS = ("qkv", "proj", "fc1", "fc2", "w12", "w3", "to_q", "to_k", "to_v", "q_proj", "k_proj")
"""Last names of modules that are Linear layers even where no bias says so (an embedding is not)."""


class About(NamedTuple):
    """What a file says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass
class FloatCheckpoint:
    """The tensors of one or several mapped files."""

    name: str
    licence: str
    files: list[Path]
    tensors: dict[str, About] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    """The architecture's arguments, from config.json beside the weights."""
    ordered: bool = False
    """Whether tensors stand in the order of the model's modules."""
    twins: dict[str, str] = field(default_factory=dict)
    """Tensors that are another one's memory."""
    _containers: dict[str, tuple[Container, str]] = field(default_factory=dict, repr=False)
    _state: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    _ranges: list[range] = field(default_factory=list, repr=False)
    """Addresses where torch has mapped the file."""

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor on the file's pages."""
        if name in self._state:
            return self._state[name]
        container, inner = self._containers[name]
        return container.tensor(inner)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system."""
        if name in self._state:
            _release(self._state[name], self._ranges)
        else:
            container, inner = self._containers[name]
            container.release(inner)

    def sha256(self, stop: Event) -> str:
        """Of the file; of several, over a line "digest  name" each, as sha256sum prints them.

        "" as soon as `stop` is set.
        """
        digests = [(_sha256(path, stop), path.name) for path in self.files]
        if len(digests) == 1 or stop.is_set():
            return digests[0][0]
        lines = "".join(f"{digest}  {name}\n" for digest, name in digests)
        return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path, stop: Event) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stop.is_set():
                return ""
            digest.update(buffer[:count])
    return digest.hexdigest()


_libc = ctypes.CDLL(None)


def _release(x: torch.Tensor, mapped: list[range]) -> None:
    """madvise(MADV_DONTNEED) on a tensor of a mapped file; other memory would lose its values."""
    start, end = x.data_ptr(), x.data_ptr() + x.untyped_storage().nbytes()
    if not any(start in place and end - 1 in place for place in mapped):
        return
    start = start // mmap.PAGESIZE * mmap.PAGESIZE
    advice = ctypes.c_int(mmap.MADV_DONTNEED)
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def _mappings(path: Path) -> list[range]:
    """Where this process has mapped a file."""
    real, found = os.path.realpath(path), []
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == real:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            found.append(range(start, end))
    return found


def open_checkpoint(spec: str | Path) -> FloatCheckpoint:
    """The float checkpoint that `spec` names: a weights file, a directory with one (or with shards
    and their index), or a hub id, through the local cache.

    Raises:
        UserError: nothing of that name, a damaged file, one that is quantized already.
    """
    path = Path(spec)
    if path.is_dir():
        return _directory(path)
    if path.is_file() or path.suffix.lower() in (*models.SUFFIXES, ".json"):
        return _file(path, path.name, models._FILE_LICENCE, path.parent / "config.json")
    if models.is_hub_id(str(spec)):
        return _hub(str(spec))
    raise UserError(
        f"no checkpoint {str(spec)!r}: a {' or '.join(models.SUFFIXES[:2])} file, a directory with "
        "one, or a hub id (facebook/VGGT-1B) is wanted"
    )


def _directory(folder: Path) -> FloatCheckpoint:
    names = (*models._WEIGHTS, _INDEX)
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"no weights in {folder}: looked for {', '.join(names)}")
    return _file(found[0], folder.resolve().name, models._FILE_LICENCE, folder / "config.json")


def _hub(spec: str) -> FloatCheckpoint:
    licence = models._LICENCES.get(spec, f"see https://huggingface.co/{spec}")
    index = models._cached(spec, _INDEX)
    if index is not None:
        for shard in sorted(set(_read_index(index).values())):
            if models._cached(spec, shard) is None:
                raise UserError(f"the local cache lacks {shard} of {spec}; download it first")
    cached = (models._cached(spec, name) for name in models._WEIGHTS)
    path = next(filter(None, cached), index) or models._download(spec)
    config = models._cached(spec, "config.json")
    return _file(path, spec, licence, config)


def _file(path: Path, name: str, licence: str, config: Path | None) -> FloatCheckpoint:
    settings = models._read_config(config) if config is not None and config.is_file() else {}
    if path.suffix == ".json":
        weight_map = _read_index(path)
        files = [path.parent / shard for shard in sorted(set(weight_map.values()))]
        found = _mapped(name, licence, files)
        missing = sorted(weight_map.keys() - found.tensors.keys())
        if missing:
            raise UserError(f"{path} names tensor {missing[0]}, which no shard holds")
    elif path.suffix == ".safetensors":
        found = _mapped(name, licence, [path])
    else:
        found = _torch(name, licence, path)
    found.settings = settings
    return found


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if all(isinstance(v, str) and Path(v).name == v for v in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    raise UserError(f"{path}: weight_map names more than files beside it")


def _mapped(name: str, licence: str, files: list[Path]) -> FloatCheckpoint:
    places: dict[str, tuple[Container, str]] = {}
    for path in files:
        container = Container(path)
        if checkpoint.KEY in container.metadata:
            raise UserError(f"{path} is quantized already; the float weights are wanted")
        for inner in container.entries:
            if inner in places:
                raise UserError(f"{path} holds tensor {inner}, which another shard holds too")
            places[inner] = (container, inner)
    places = _without_prefix(places)
    # In the order of the file, so that a disk is read as it likes to be.
    order = sorted(places.items(), key=lambda item: _place(item[1], files))
    tensors = {}
    for key, (container, inner) in order:
        entry = container.entries[inner]
        tensors[key] = About(entry.dtype, entry.shape)
    return FloatCheckpoint(name, licence, files, tensors, _containers=places)


def _place(place: tuple[Container, str], files: list[Path]) -> tuple[int, int]:
    container, inner = place
    return files.index(container.path), container.entries[inner].start


def _torch(name: str, licence: str, path: Path) -> FloatCheckpoint:
    state = models._read_state(path)
    tensors, twins = {}, {}
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for key, x in state.items():
        tensors[key] = About(x.dtype, tuple(x.shape))
        place = (x.data_ptr(), tuple(x.shape))
        if x.numel() and seen.setdefault(place, key) != key:
            twins[key] = seen[place]
    return FloatCheckpoint(
        name, licence, [path], tensors, {}, True, twins, _state=state, _ranges=_mappings(path)
    )


def _without_prefix(places: dict[str, Any]) -> dict[str, Any]:
    """DataParallel puts "module." before every name."""
    if places and all(name.startswith("module.") for name in places):
        return {name.removeprefix("module."): place for name, place in places.items()}
    return places


# ---- which tensors are Linear layers -------------------------------------------------------------


class Choice(NamedTuple):
    """The Linear layers of a checkpoint."""

    chosen: dict[str, tuple[int, int]]
    """(out_features, in_features) of those to quantize, in the file's order."""
    skipped: dict[str, str]
    """Why the others stay."""


def choose(
    found: FloatCheckpoint,
    config: QuantizationConfig,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> Choice:
    """The layers that quantize_model would swap in the model of this checkpoint.

    Raises:
        UserError: no Linear layer, a pattern that names none, or no telling which layer is the
            first and which the last.
    """
    linears = linear_layers(found.tensors)
    if not linears:
        raise UserError(f"{found.name} holds no Linear layer to quantize")
    included = _checked("include", include, linears) if include is not None else ("*",)
    excluded = _checked("exclude", exclude, linears)
    _checked("sensitive_layers", config.sensitive_layers, linears)
    siblings = _siblings(found.tensors)
    skipped: dict[str, str] = {}
    for name, shape in linears.items():
        twin = _twin(found.twins, f"{name}.weight")
        if in_attention(name, found.tensors):
            skipped[name] = "nn.MultiheadAttention uses its weight without calling it"
        elif siblings[name] - {"weight", "bias"}:
            skipped[name] = f"no plain nn.Linear: it has {', '.join(sorted(siblings[name]))}"
        elif twin:
            skipped[name] = f"its weight is shared with {twin.rpartition('.')[0]}"
        elif 0 in shape:
            skipped[name] = "its weight is empty"
        elif not _named(name, included):
            skipped[name] = "not included"
        elif _named(name, excluded):
            skipped[name] = "excluded"
    if config.skip_first_last:
        plain = [name for name in linears if not _special(skipped.get(name, ""))]
        for name, which in zip(_edges(found, plain), ("first", "last"), strict=False):
            skipped.setdefault(name, f"the {which} Linear (skip_first_last)")
    chosen = {name: shape for name, shape in linears.items() if name not in skipped}
    return Choice(chosen, skipped)


def linear_layers(tensors: Mapping[str, About]) -> dict[str, tuple[int, int]]:
    """Modules with a 2-D float `weight` and a `bias` of its rows, or of a known name: those that
    quantize_model finds by their type. An embedding has no bias; a convolution has more axes.
    GPT-2's Conv1D, whose weight is transposed, shows by the biases of its layers that are not
    square; square ones of the same name are none of ours either.

    >>> weight, bias = About(torch.float32, (3, 2)), About(torch.float32, (3,))
    >>> linear_layers({"a.weight": weight, "a.bias": bias})
    {'a': (3, 2)}
    """
    layers = {}
    transposed = {
        key.split(".")[-2]
        for key, (_, shape) in tensors.items()
        if key.endswith(".weight")
        and len(shape) == 2
        and shape[0] != shape[1]
        and f"{key.removesuffix('.weight')}.bias" in tensors
        and tensors[f"{key.removesuffix('.weight')}.bias"].shape == shape[1:]
    }
    for key, (dtype, shape) in tensors.items():
        name, _, leaf = key.rpartition(".")
        if name.rpartition(".")[2] in transposed:
            continue
        if leaf != "weight" or not name or len(shape) != 2 or not dtype.is_floating_point:
            continue
        bias = tensors.get(f"{name}.bias")
        if bias is None and name.rpartition(".")[2] not in _BIASLESS:
            continue
        if bias is None or bias.shape == shape[:1]:
            layers[name] = (shape[0], shape[1])
    return layers


def in_attention(name: str, tensors: Mapping[str, About]) -> bool:
    """Whether a layer is the out_proj of an nn.MultiheadAttention."""
    parent, _, leaf = name.rpartition(".")
    dot = f"{parent}." if parent else ""
    keys = (f"{dot}in_proj_weight", f"{dot}q_proj_weight")
    return leaf == "out_proj" and any(key in tensors for key in keys)


def _siblings(tensors: Mapping[str, About]) -> dict[str, set[str]]:
    """Tensors of each module, by the module's name."""
    found: dict[str, set[str]] = {}
    for key in tensors:
        name, _, leaf = key.rpartition(".")
        found.setdefault(name, set()).add(leaf)
    return found


def _twin(twins: Mapping[str, str], key: str) -> str:
    """The other name of a tensor's memory, or ""."""
    return twins.get(key) or next((a for a, b in twins.items() if b == key), "")


def _special(reason: str) -> bool:
    """Whether a layer is no plain Linear, which is never the first or the last one."""
    return "MultiheadAttention" in reason or reason.startswith("no plain")


def _edges(found: FloatCheckpoint, plain: list[str]) -> tuple[str, ...]:
    edges = vggt.first_and_last(plain)
    if edges:
        return edges
    if not found.ordered:
        raise UserError(
            f"{found.name} sorts its tensors by name, so its first and last Linear are not known; "
            "exclude them by name and give --all_layers (skip_first_last=False)"
        )
    return tuple(plain[:1] + plain[-1:])


def _named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _checked(what: str, patterns: Iterable[str] | None, names: Iterable[str]) -> tuple[str, ...]:
    """The patterns, each of which names a layer."""
    patterns, names = tuple(patterns or ()), list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{what} pattern {pattern!r} matches no Linear layer of the checkpoint")
    return patterns
