# SPDX-License-Identifier: Apache-2.0
"""Float weights as tensors by name, one at a time: of mapped files, or of a model in memory."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Shapes
from ..errors import UserError
from . import architectures
from .container import Container
from .names import Place, first_line, resolve

PACKED_KEY = "vggtquant"
"""The metadata key of a safetensors file that is quantized already."""
_WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DataParallel put before every name."""
_BESIDE = ("model", "model_state_dict", "state_dict", "module")
"""Keys of the weights in training checkpoints, which keep the optimizer's state beside them; the
last is DeepSpeed's."""


class About(NamedTuple):
    """What a file says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class _Holder(Protocol):
    def tensor(self, name: str) -> Tensor: ...
    def release(self, name: str) -> None: ...


@dataclass(frozen=True)
class _State:
    """A state dict in memory, or on a file that torch has mapped."""

    tensors: Mapping[str, Tensor]
    mapped: list[range] = field(default_factory=list)
    """Addresses of the mapping; none where the system does not tell (no /proc)."""

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def release(self, name: str) -> None:
        _release(self.tensors[name], self.mapped)


@dataclass
class Weights:
    """The float tensors of one or several files, or of a model."""

    place: Place
    tensors: dict[str, About] = field(repr=False)
    ordered: bool
    """Whether tensors stand in the order of the model's modules."""
    twins: dict[str, str]
    """Tensors that are another one's memory."""
    prefix: str
    """What stood before every name in the file, and is left out here."""
    model: nn.Module | None
    """The model, where the tensors are one's."""
    _held: dict[str, tuple[_Holder, str]] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Of the files, or of the tensors where there are none."""
        if self.place.files:
            return sum(path.stat().st_size for path in self.place.files)
        return sum(about.nbytes for name, about in self.tensors.items() if name not in self.twins)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: about.shape for name, about in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor on the file's pages."""
        holder, inner = self._held[name]
        return holder.tensor(inner)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system."""
        holder, inner = self._held[name]
        holder.release(inner)

    def sha256(self, stop: Event | None = None) -> str:
        """Of the file; of several, over a line "digest  name" each, as sha256sum prints them; of a
        model, state_hash.

        "" as soon as `stop` is set.
        """
        if self.model is not None:
            return state_hash(self.model)
        return file_hash(self.place.files, stop)


def open_weights(address: str | Path) -> Weights:
    """The float weights that `address` names, whatever kind of name it is (see names.resolve).

    Raises:
        UserError: nothing of that name, a damaged file, one that is quantized already.

    >>> len(open_weights("builtin:tiny").tensors) > 100
    True
    """
    return read(resolve(address))


def read(place: Place) -> Weights:
    """The float weights of a place."""
    if place.build is not None:
        model = place.build()
        to_float32(model, wider=True)  # as for a model that runs: no scheme reads float64
        return of_model(model, place)
    held: dict[str, tuple[_Holder, str]] = {}
    tensors: dict[str, About] = {}
    twins: dict[str, str] = {}
    ordered = True
    for path in place.files:
        holder, found, shared, in_order = _read_file(path)
        ordered &= in_order and len(place.files) == 1
        twins |= shared
        for name, about in found.items():
            if name in tensors:
                raise UserError(f"{path} holds tensor {name}, which another shard holds too")
            tensors[name], held[name] = about, (holder, name)
    missing = sorted(place.weight_map.keys() - tensors.keys())
    if missing:
        raise UserError(f"the index of {place.name} names tensor {missing[0]}, which no shard has")
    prefix = _prefix({name: about.shape for name, about in tensors.items()}, place.settings)
    cut = len(prefix)
    return Weights(
        place,
        {name[cut:]: about for name, about in tensors.items()},
        ordered,
        {a[cut:]: b[cut:] for a, b in twins.items()},
        prefix,
        None,
        {name[cut:]: where for name, where in held.items()},
    )


def to_float32(model: nn.Module, *, wider: bool = False) -> None:
    """Casts a model's floating-point parameters and buffers in place; wider: only float64 ones.

    >>> to_float32(model := torch.nn.Linear(2, 2).half())
    >>> model.weight.dtype
    torch.float32
    """
    for x in [*model.parameters(), *model.buffers()]:
        if x.dtype == torch.float64 or (x.is_floating_point() and not wider):
            x.data = x.data.float()


def of_model(model: nn.Module, place: Place) -> Weights:
    """The weights of a model in memory."""
    state = {k: x.detach() for k, x in model.state_dict().items() if isinstance(x, Tensor)}
    holder = _State(state)
    about = {name: About(x.dtype, tuple(x.shape)) for name, x in state.items()}
    held: dict[str, tuple[_Holder, str]] = {name: (holder, name) for name in state}
    return Weights(place, about, True, _twins(state), "", model, held)


def instantiate(found: Weights, chosen: Adapter | None = None) -> nn.Module:
    """The model that the weights belong to, VGGT where nothing else is recognised, on their memory;
    the chosen one, where its adapter builds models.

    Half-precision weights are widened: the heads compute in float32 whatever the file holds.

    Raises:
        UserError: a name or a shape that does not fit, or the model's package is missing.
    """
    if found.model is not None:
        return found.model
    place = found.place
    known = chosen if chosen is not None and chosen.files else None
    kind = known or architectures.recognised(found.shapes, place.settings)
    model = architectures.built(kind.name if kind else "vggt", place.settings, found.tensors)
    wanted = model.state_dict()
    misfit = architectures.misfit({k: tuple(x.shape) for k, x in wanted.items()}, found.shapes)
    if misfit:
        path = place.files[0]
        raise UserError(f"{path} does not fit {type(model).__name__}: tensors {misfit}")
    fitting = {name: found.tensor(name).to(x.dtype) for name, x in wanted.items()}
    model.load_state_dict(fitting, strict=True, assign=True)
    return model


def _prefix(shapes: Shapes, settings: Mapping[str, Any]) -> str:
    """What stands before every name and is no part of the model's own names."""
    prefix, more = "", True
    while more:
        more = False
        for wrapper in _WRAPPERS:
            if shapes and all(name.startswith(prefix + wrapper) for name in shapes):
                prefix, more = prefix + wrapper, True
    # A model may well call its only part "model"; a known one below it says that it does not.
    inner = prefix
    while len(first := {name[len(inner) :].partition(".")[0] for name in shapes}) == 1:
        inner += f"{first.pop()}."
        if not all(name.startswith(inner) for name in shapes):
            break
        below = {name[len(inner) :]: shape for name, shape in shapes.items()}
        if architectures.recognised(below, settings, exactly=True):
            return inner
    return prefix


def _read_file(path: Path) -> tuple[_Holder, dict[str, About], dict[str, str], bool]:
    """A file's tensors, which of them share memory, and whether they have the modules' order."""
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise UserError(f"{path} is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run git lfs pull there")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        container = Container(path)
        if PACKED_KEY in container.metadata:
            raise UserError(f"{path} is quantized already; the float weights are wanted")
        # In the order of the file, so that a disk is read as it likes to be.
        entries = sorted(container.entries.items(), key=lambda item: item[1].start)
        return container, {name: About(e.dtype, e.shape) for name, e in entries}, {}, False
    state = _read_torch(path)
    found = {name: About(x.dtype, tuple(x.shape)) for name, x in state.items()}
    return _State(state, _mappings(path)), found, _twins(state), True


def _read_torch(path: Path) -> dict[str, Tensor]:
    """A state dict as torch.save writes it, memory-mapped."""
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files of torch before 1.6 cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, or is no checkpoint: refused; of a pickled model "
            "torch.save(model.state_dict(), FILE) makes one that is read"
        ) from error
    except Exception as error:  # truncated and foreign files fail in many ways
        raise UserError(
            f"cannot read the weights {path}: damaged, or not of torch.save ({first_line(error)})"
        ) from error
    state, taken, left = _weights_in(state)
    if left:
        place = "".join(f"[{key!r}]" for key in left[0])
        warnings.warn(
            f"{path}: took the weights under {_dotted(taken)}; {' and '.join(map(_dotted, left))} "
            f"holds weights too: torch.save(torch.load(FILE){place}, OTHER) makes a file of them",
            stacklevel=2,
        )
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        held = f" ({', '.join(map(str, state))[:80]})" if isinstance(state, dict) else ""
        raise UserError(
            f"{path} holds no state dict{held}: wanted tensors by name, or a dict of them under "
            f"{', '.join(_BESIDE)}"
        )
    for name, x in state.items():
        if x.is_meta or x.layout != torch.strided or x.is_complex():
            kind = "no values (device meta)" if x.is_meta else f"{x.dtype}, {x.layout}"
            raise UserError(f"{path} holds tensor {name} as {kind}: wanted dense real values")
    return {str(name): x for name, x in state.items()}


def _weights_in(state: Any) -> tuple[Any, tuple[str, ...], list[tuple[str, ...]]]:
    """What a training checkpoint holds under the keys of _BESIDE, one below the other; the keys
    that lead there; the keys that lead to other weights, such as a moving average (EMA)."""
    taken: tuple[str, ...] = ()
    beside: dict[tuple[str, ...], Any] = {}
    for key in _BESIDE:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            for other, value in state.items():
                if other != key and isinstance(value, dict):
                    found, below, _ = _weights_in(value)
                    beside[(*taken, str(other), *below)] = found
            state, taken = state[key], (*taken, key)
    # Less than half as many tensors, or other things between them, are a state of something else.
    others = [
        keys
        for keys, found in beside.items()
        if all(isinstance(x, Tensor) for x in found.values()) and 2 * len(found) >= len(state) > 0
    ]
    return state, taken, others


def _dotted(keys: Iterable[str]) -> str:
    return ".".join(keys)


def _twins(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors that are the memory of one before them."""
    twins: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, x in state.items():
        place = (x.data_ptr(), tuple(x.shape))
        if x.numel() and seen.setdefault(place, name) != name:
            twins[name] = seen[place]
    return twins


# ---- hashes --------------------------------------------------------------------------------------


def file_hash(files: Iterable[Path], stop: Event | None = None) -> str:
    """SHA-256 of a file; of several, over a line "digest  name" each, in the order of the names."""
    digests = [(_sha256(path, stop), path.name) for path in files]
    if len(digests) == 1 or (stop is not None and stop.is_set()):
        return digests[0][0]
    lines = "".join(f"{digest}  {name}\n" for digest, name in digests)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path, stop: Event | None) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stop is not None and stop.is_set():
                return ""
            digest.update(buffer[:count])
    return digest.hexdigest()


def state_hash(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of a state dict, in the order of the names.

    >>> state_hash(torch.nn.Identity())[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):  # a layer may keep extra state that is no tensor
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- pages ---------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None)


def _release(x: Tensor, mapped: list[range]) -> None:
    """madvise(MADV_DONTNEED) on a tensor of a mapped file; other memory would lose its values."""
    start, end = x.data_ptr(), x.data_ptr() + x.untyped_storage().nbytes()
    if not any(start in place and end - 1 in place for place in mapped):
        return
    start = start // mmap.PAGESIZE * mmap.PAGESIZE
    advice = ctypes.c_int(mmap.MADV_DONTNEED)
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


_MADV_PAGEOUT = 21  # Linux 5.4; Python does not name it
_WORTH_A_LOOK = 1 << 20  # bytes: to ask where they lie takes a millisecond


def page_out(x: Tensor) -> None:
    """Give the pages of a mapped file that lie whole within x back to the system.

    For a tensor that nobody needs any more, of a file that stays mapped. Unlike MADV_DONTNEED this
    keeps values that were written. Without effect on other memory, on tensors below a megabyte,
    on a GPU and on older systems.

    >>> page_out(torch.ones(5))
    """
    if x.device.type != "cpu" or x.nbytes < _WORTH_A_LOOK or not _is_of_a_file(x.data_ptr()):
        return
    start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (x.data_ptr() + x.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)


def _is_of_a_file(address: int) -> bool:
    """Whether a file is mapped there; False where there is no /proc to say it."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        fields = line.split(maxsplit=5)
        low, high = (int(part, 16) for part in fields[0].split("-"))
        if low <= address < high:
            return fields[4] != "0"
    return False


def _mappings(path: Path) -> list[range]:
    """Where this process has mapped a file; nothing where there is no /proc to say it."""
    real, found = os.path.realpath(path), []
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == real:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            found.append(range(start, end))
    return found
