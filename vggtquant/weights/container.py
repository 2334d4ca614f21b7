# SPDX-License-Identifier: Apache-2.0
"""A safetensors file: read with distrust, and written so that half of one never looks whole.

The format is a length (8 bytes, little-endian), a JSON header with each tensor's dtype, shape and
place, and the tensors' bytes without holes. Nothing here knows what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import UserError
from ..files import Replacement

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

ALIGN = 64
"""Bytes: the data begins at a multiple, and so does every tensor that the writer does not hold."""
MOST_HEADER = 100_000_000
"""Bytes of a header, as in the safetensors library."""
_MOST_DIMENSIONS = 64
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named from Python 3.13 on
SEAL = "header_sha256"
"""The metadata key that holds the header's own checksum, computed with zeros in its place."""


class Entry(NamedTuple):
    """One tensor of a file: [start, end) are bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


class Container:
    """A safetensors file, memory-mapped; tensors are views that nobody may write to.

    Raises:
        UserError: no regular file, not safetensors, truncated, tensors that overlap, leave holes,
            or do not fit their dtype and shape.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise UserError(f"{self.path} is no regular file")
                self.nbytes = about.st_size
                self.header = self._read_header(file)
                self.metadata, self.entries = self._parse()
                self._map = mmap.mmap(
                    file.fileno(),
                    0,
                    # torch wants writable memory; nothing is written, so nothing is reserved.
                    flags=mmap.MAP_PRIVATE | _NORESERVE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor on the file's own pages; a copy where it is not aligned to its dtype."""
        entry = self.entries[name]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        aligned = entry.start % entry.dtype.itemsize == 0
        count = math.prod(entry.shape) if aligned else entry.nbytes
        dtype = entry.dtype if aligned else torch.uint8
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=entry.start)
        return (flat if aligned else flat.clone().view(entry.dtype)).reshape(entry.shape)

    def sha256(self, name: str) -> str:
        """SHA-256 of the tensor's bytes."""
        entry = self.entries[name]
        with memoryview(self._map)[entry.start : entry.end] as data:
            return hashlib.sha256(data).hexdigest()

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system; they are read again when touched."""
        entry = self.entries[name]
        start = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
        if entry.nbytes:
            self._map.madvise(mmap.MADV_DONTNEED, start, entry.end - start)

    def header_sha256(self) -> str:
        """The header's checksum, with zeros in its own place; "" where it does not say one."""
        said = self.metadata.get(SEAL, "").encode()
        if len(said) != 64 or self.header.count(said) != 1:
            return ""
        return hashlib.sha256(self.header.replace(said, b"0" * 64)).hexdigest()

    def _read_header(self, file: Any) -> bytes:
        head = file.read(8)
        if len(head) < 8:
            raise UserError(f"{self.path} has {self.nbytes} bytes: no safetensors file")
        length = int.from_bytes(head, "little")
        if length > min(self.nbytes - 8, MOST_HEADER) or length < 2:
            raise UserError(
                f"{self.path} is no safetensors file, or cut off: a header of {length} bytes is "
                f"declared, the file has {self.nbytes}"
            )
        header: bytes = file.read(length)
        return header

    def _parse(self) -> tuple[dict[str, str], dict[str, Entry]]:
        try:
            header = json.loads(
                self.header.decode("utf-8"),
                object_pairs_hook=_no_duplicates,
                parse_constant=_no_constant,
            )
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path}: the header is damaged ({_brief(error)})") from error
        if not isinstance(header, dict):
            raise UserError(f"{self.path}: the header is no JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise UserError(f"{self.path}: __metadata__ is no object of strings")
        data = 8 + len(self.header)
        entries = {name: self._entry(name, value, data) for name, value in header.items()}
        at, before = data, "the header"
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
            if entry.start != at:
                what = "overlaps" if entry.start < at else "leaves a hole after"
                raise UserError(f"{self.path}: tensor {name} {what} {before}")
            at, before = entry.end, name
        if at != self.nbytes:
            raise UserError(
                f"{self.path} is {'cut off' if at > self.nbytes else 'too long'}: its tensors end "
                f"at byte {at}, the file at {self.nbytes}"
            )
        return metadata, entries

    def _entry(self, name: str, value: Any, data: int) -> Entry:
        wrong = UserError(f"{self.path}: the header's entry of tensor {name[:200]} is damaged")
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise wrong
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or not _whole(shape) or not _whole(offsets):
            raise wrong
        if dtype not in DTYPES:
            raise UserError(f"{self.path}: tensor {name} is of the unknown dtype {dtype[:20]!r}")
        if len(offsets) != 2 or len(shape) > _MOST_DIMENSIONS or max([*shape, *offsets]) >= 2**63:
            raise wrong
        entry = Entry(DTYPES[dtype], tuple(shape), data + offsets[0], data + offsets[1])
        if entry.nbytes != math.prod(shape) * entry.dtype.itemsize:
            raise UserError(
                f"{self.path}: tensor {name} has {entry.nbytes} bytes; {dtype} {tuple(shape)} "
                f"needs {math.prod(shape) * entry.dtype.itemsize}"
            )
        return entry


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands there twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


# ---- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """A tensor on its way into a file, and the checksum of its bytes."""

    name: str
    tensor: torch.Tensor = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Blob:
        """The tensor, made contiguous, with its checksum."""
        tensor = tensor.detach().contiguous()
        if tensor.dtype not in _NAMES:
            raise UserError(
                f"tensor {name} is {tensor.dtype}, which a safetensors file cannot hold"
            )
        return cls(name, tensor, hashlib.sha256(_bytes(tensor)).hexdigest())


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class Planned(NamedTuple):
    """A tensor that will, or may, be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def header_bound(plan: Iterable[Planned], metadata: dict[str, str]) -> int:
    """Bytes that a header of at most these tensors and no longer metadata needs."""
    far = 10**15  # no offset has more digits
    entries = {t.name: _json_entry(t.dtype, t.shape, far, far) for t in plan}
    return len(_encode({"__metadata__": metadata, **entries}))


def header_nbytes(bound: int) -> int:
    """Bytes before the data: the header's length and its text, filled up with spaces."""
    return -(-(8 + bound) // ALIGN) * ALIGN


def _json_entry(dtype: torch.dtype, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    return {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class Writer:
    """Writes a safetensors file that appears under its name only when it is whole.

    The header is written last, over zeros, and the tensors are on the disk before it (see
    files.Replacement). Use as a context manager; leaving it before `finish` removes what was
    written.

    bound: bytes that the header may need (header_bound).
    Raises UserError, one line, where the system refuses.
    """

    def __init__(self, path: str | Path, bound: int) -> None:
        self._new = Replacement(path)
        self._header_nbytes = header_nbytes(bound) - 8
        self._entries: dict[str, dict[str, Any]] = {}
        self._at = 0
        self._held: list[Blob] = []

    def __enter__(self) -> Writer:
        self._new.__enter__()
        try:
            self._write(bytes(8 + self._header_nbytes))
        except BaseException:
            self._new.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._new.__exit__()

    def add(self, blob: Blob) -> None:
        """Write a tensor, or hold it to the end if its length would misalign the next one."""
        if blob.name in self._entries or any(blob.name == held.name for held in self._held):
            raise UserError(f"tensor {blob.name} stands there twice")
        if blob.tensor.nbytes % ALIGN:
            self._held.append(Blob(blob.name, blob.tensor.clone(), blob.sha256))
        else:
            self._put(blob)

    @property
    def nbytes(self) -> int:
        """Of the file that `finish` would leave."""
        held = sum(blob.tensor.nbytes for blob in self._held)
        return 8 + self._header_nbytes + self._at + held

    def finish(self, metadata: dict[str, str]) -> int:
        """Write the header, sync, rename; the file's bytes. SEAL in metadata is filled in."""
        # Widest first, so that each is aligned to its dtype.
        for blob in sorted(self._held, key=lambda blob: -blob.tensor.dtype.itemsize):
            self._put(blob)
        self._held = []
        if SEAL in metadata:
            metadata = {**metadata, SEAL: "0" * 64}
        header = _encode({"__metadata__": metadata, **self._entries})
        if len(header) > self._header_nbytes:
            raise AssertionError(f"a header of {len(header)} bytes outgrew {self._header_nbytes}")
        header = header.ljust(self._header_nbytes)
        if SEAL in metadata:
            digest = hashlib.sha256(header).hexdigest().encode()
            place = f'"{SEAL}":"'.encode()
            header = header.replace(place + b"0" * 64, place + digest, 1)
        try:
            self._new.sync()  # data reach the disk before a header says so
            self._new.file.seek(0)
        except OSError as error:
            raise self._new.refused(error) from error
        self._write(self._header_nbytes.to_bytes(8, "little") + header)
        self._new.commit()
        return self.nbytes

    def _put(self, blob: Blob) -> None:
        end = self._at + blob.tensor.nbytes
        self._entries[blob.name] = _json_entry(
            blob.tensor.dtype, tuple(blob.tensor.shape), self._at, end
        )
        if blob.tensor.nbytes:
            self._write(_bytes(blob.tensor))
        self._at = end

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._new.file.write(data)
        except OSError as error:
            raise self._new.refused(error) from error
