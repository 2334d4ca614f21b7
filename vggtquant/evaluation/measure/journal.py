# SPDX-License-Identifier: Apache-2.0
"""The journal of an evaluation: what was measured, a JSON line at a time, safe against any kill.

The first line is the head: what is evaluated, with what, on what, and every choice that was made.
Then comes a record for each scene of each scheme and for whatever else was measured (their types
are records.Head and records.Record). A record is on the disk before the next forward begins; a last
line that a kill cut short is dropped. Everything that a report says is computed from head and
records, so that a run which was continued or put together from shards says the same as one that
was not.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ...errors import UserError
from ..records import Broke, End, Head, Record, Retry, Skip

NAME = "comprehensive_journal.jsonl"
VERSION = 2

R = TypeVar("R")
_DECODER: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class Journal:
    """Head and records of one evaluation, and the file to which records are added.

    Use as a context manager; it keeps other processes out of the file meanwhile.
    """

    def __init__(self, path: Path, head: Head, records: list[Record], descriptor: int) -> None:
        self.path, self.head, self.records = path, head, records
        self._descriptor = descriptor

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes at the file."""
        os.close(self._descriptor)

    def add(self, record: Record) -> Record:
        """Writes a record through to the disk; returns it as a reader of the file will see it.

        Raises UserError when the disk refuses.
        """
        line = msgspec.json.encode(record) + b"\n"
        try:
            _write(self._descriptor, line)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        kept = _DECODER.decode(line)
        self.records.append(kept)
        return kept

    def of(self, scheme: str) -> list[Record]:
        """The records of a scheme."""
        return [record for record in self.records if record.scheme == scheme]

    def retry(self, scheme: str) -> None:
        """Takes back that the scheme broke off, so that it is run again."""
        if kind(self.of(scheme), Broke):
            self.add(Retry(scheme=scheme))
            self.records = _settled(self.records)


def kind(records: Sequence[Record], wanted: type[R]) -> list[R]:
    """The records of one kind."""
    return [record for record in records if isinstance(record, wanted)]


def _settled(records: list[Record]) -> list[Record]:
    """The records without errors that were tried again."""
    last = {r.scheme: i for i, r in enumerate(records) if isinstance(r, Retry)}
    return [
        record
        for i, record in enumerate(records)
        if not isinstance(record, Broke | Retry) or i > last.get(record.scheme, -1)
    ]


def is_over(records: Sequence[Record]) -> bool:
    """Whether a scheme with these records was run to its end, left out, or broke off."""
    return any(isinstance(record, End | Skip | Broke) for record in records)


def read(path: Path) -> tuple[Head, list[Record], int]:
    """Head and records of a file, and the bytes of its whole lines.

    Raises UserError when it cannot be read, is of another version or damaged before its end.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    end = content.rfind(b"\n") + 1
    lines = content[:end].splitlines()
    if not lines or _version(lines[0]) != VERSION:
        raise UserError(f"{path} is no journal of this version of vggtquant; --restart begins anew")
    head = _decoded(path, 1, lines[0], msgspec.json.Decoder(Head))
    found = [_decoded(path, number, line, _DECODER) for number, line in enumerate(lines[1:], 2)]
    return head, _settled(found), end


def begun(path: Path) -> bool:
    """Whether there is a journal with its head: a kill may have left an empty file."""
    try:
        return b"\n" in path.read_bytes()
    except OSError:
        return False


class _Versioned(msgspec.Struct):
    journal: int


def _version(line: bytes) -> int | None:
    try:
        return msgspec.json.decode(line, type=_Versioned).journal
    except msgspec.DecodeError:
        return None


def _decoded(path: Path, number: int, line: bytes, decoder: msgspec.json.Decoder[R]) -> R:
    try:
        return decoder.decode(line)
    except msgspec.DecodeError as error:  # no JSON, or not of the type
        raise UserError(
            f"{path}: line {number} is damaged ({error}); --restart begins anew"
        ) from error


def create(path: Path, head: Head) -> Journal:
    """A journal that holds the head alone; what was there before is replaced.

    Raises UserError when another evaluation is writing there.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    line = msgspec.json.encode(head) + b"\n"
    _lock(path, descriptor)
    try:
        os.ftruncate(descriptor, 0)
        _write(descriptor, line)
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return Journal(path, msgspec.json.decode(line, type=Head), [], descriptor)


def reopen(path: Path) -> Journal:
    """A journal to go on with, without the line that was cut short."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    _lock(path, descriptor)
    try:
        head, records, end = read(path)
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, end)
    return Journal(path, head, records, descriptor)


def _lock(path: Path, descriptor: int) -> None:
    """Keeps others out; UserError when another evaluation has the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"another evaluation is writing {path}; wait, or kill it") from error
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _write(descriptor: int, line: bytes) -> None:
    data = memoryview(line)
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two of a head's `identity`, in words.

    >>> differences({"runs": 3, "seed": 0}, {"runs": 1, "seed": 0})
    ['runs is 3 there and 1 here']
    """
    names = dict.fromkeys([*there, *here])
    return [
        f"{name} is {_words(there.get(name))} there and {_words(here.get(name))} here"
        for name in names
        if there.get(name) != here.get(name)
    ]


def _words(value: Any) -> str:
    if value is None:
        return "the default"
    words = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"{words[:60]}..." if len(words) > 64 else words or "none"
