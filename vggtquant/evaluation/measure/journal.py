# SPDX-License-Identifier: Apache-2.0
"""The journal of an evaluation: what was measured, a JSON line at a time, safe against any kill.

The first line is the head: what is evaluated, with what, on what, and every choice that was made.
Then comes a record for each scene of each scheme and for whatever else was measured. A record is
on the disk before the next forward begins; a last line that a kill cut short is dropped. Everything
that a report says is computed from head and records (rows.py), so that a run which was continued
or put together from shards says the same as one that was not.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..analyse import report

Record = dict[str, Any]

NAME = "comprehensive_journal.jsonl"
VERSION = 1


class Journal:
    """Head and records of one evaluation, and the file to which records are added.

    Use as a context manager; it keeps other processes out of the file meanwhile.
    """

    def __init__(self, path: Path, head: Record, records: list[Record], descriptor: int) -> None:
        self.path, self.head, self.records = path, head, records
        self._descriptor = descriptor

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes at the file."""
        os.close(self._descriptor)

    def add(self, record: Mapping[str, Any]) -> Record:
        """Writes a record through to the disk; returns it as a reader of the file will see it.

        Raises UserError when the disk refuses.
        """
        line = json.dumps(record, ensure_ascii=False) + "\n"
        try:
            data = memoryview(line.encode())
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        kept: Record = json.loads(line)
        self.records.append(kept)
        return kept

    def of(self, scheme: str) -> list[Record]:
        """The records of a scheme."""
        return [record for record in self.records if record["scheme"] == scheme]

    def retry(self, scheme: str) -> None:
        """Takes back that the scheme broke off, so that it is run again."""
        if any(record["kind"] == "error" for record in self.of(scheme)):
            self.add({"kind": "retry", "scheme": scheme})
            self.records = _settled(self.records)


def _settled(records: list[Record]) -> list[Record]:
    """The records without errors that were tried again."""
    last = {r["scheme"]: i for i, r in enumerate(records) if r["kind"] == "retry"}
    return [
        record
        for i, record in enumerate(records)
        if record["kind"] not in ("error", "retry") or i > last.get(record["scheme"], -1)
    ]


def is_over(records: Sequence[Record]) -> bool:
    """Whether a scheme with these records was run to its end, left out, or broke off."""
    return any(record["kind"] in ("end", "skip", "error") for record in records)


def read(path: Path) -> tuple[Record, list[Record], int]:
    """Head and records of a file, and the bytes of its whole lines.

    Raises UserError when it cannot be read, is of another version or damaged before its end.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    end = content.rfind(b"\n") + 1
    found: list[Record] = []
    for number, line in enumerate(content[:end].splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is damaged; --restart begins anew") from error
    if not found or found[0].get("journal") != VERSION:
        raise UserError(f"{path} is no journal of this version of vggtquant")
    return found[0], _settled(found[1:]), end


def create(path: Path, head: Mapping[str, Any]) -> Journal:
    """A journal that holds the head alone; what was there before is replaced."""
    report.write_bytes(path, (json.dumps(head, ensure_ascii=False) + "\n").encode())
    return Journal(path, json.loads(json.dumps(head)), [], _open(path))


def reopen(path: Path) -> Journal:
    """A journal to go on with, without the line that was cut short."""
    descriptor = _open(path)
    head, records, end = read(path)
    os.ftruncate(descriptor, end)
    return Journal(path, head, records, descriptor)


def _open(path: Path) -> int:
    """The file for appending, locked; UserError when another evaluation has it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another evaluation is writing {path}; wait, or kill it") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return descriptor


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
