# SPDX-License-Identifier: Apache-2.0
"""Writing files: whole or not at all, and the check that a folder can be written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from .errors import UserError


def refused(path: str | Path, error: OSError) -> UserError:
    """The system's refusal to write a file as one line for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"no room for {path} ({error.strerror}); nothing of it was kept")
    return UserError(f"cannot write {path}: {error.strerror or error}")


class Replacement:
    """A file that appears under its name only when it is whole.

    It is written as `<name>.partial` beside its place, under a lock. `commit` syncs it, renames it
    and syncs the folder. Until then what stood at the path stays; leaving the context before
    `commit` removes the partial file. A killed run leaves a partial file, which the next run
    overwrites.

    Raises:
        UserError: the system refuses, or another run is writing the same file.
    """

    file: BinaryIO

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.realpath(path))
        self._shown = path
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._open = False

    def __enter__(self) -> Replacement:
        try:
            if self.path.is_dir():
                raise UserError(f"{self._shown} is a directory; the name of a file is wanted")
            self.file = self._locked()
            self._open = True
            self.file.truncate(0)
        except OSError as error:
            self._discard()
            raise self.refused(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def sync(self) -> None:
        """What was written so far is on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def commit(self) -> None:
        """Put the file in its place."""
        try:
            self.sync()
            os.replace(self._partial, self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self.refused(error) from error
        self.file.close()
        self._open = False

    def refused(self, error: OSError) -> UserError:
        """The system's refusal as one line for the user."""
        return refused(self._shown, error)

    def _locked(self) -> BinaryIO:
        """The partial file, open, and nobody else's."""
        while True:
            file = open(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise UserError(f"another run is writing {self._shown}") from error
            except OSError:
                pass  # a file system without locks
            # The other run may have renamed it meanwhile: then it is the file that must stay.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._partial)):
                    return cast(BinaryIO, file)
            file.close()

    def _discard(self) -> None:
        if self._open:
            self._open = False
            self._partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # what it could not write is not wanted any more
                self.file.close()


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        pass  # some file systems know no such thing
    finally:
        os.close(folder)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place when the body ends well.

    Raises:
        UserError: it cannot be written; what stood at the path stays.
    """
    with Replacement(path) as new:
        try:
            yield new.file
        except OSError as error:
            raise new.refused(error) from error
        new.commit()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all; UserError when the disk refuses."""
    with replacing(path) as file:
        file.write(content)


def writable_folder(folder: str | Path) -> Path:
    """The folder, made if it is not there; UserError when files cannot be written into it."""
    folder = Path(folder)
    if "\0" in str(folder):
        raise UserError(f"cannot write into {str(folder)!r}: a NUL character is in its name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"vggtquant")
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"cannot write into {folder}: a file stands in its place") from error
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error
    return folder


_STAGING = ".staging-"


@contextlib.contextmanager
def staging(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder for files of those names, which take their places when the body ends well.

    The last one says that the rest is there: it comes last, and what stood under its name goes
    first. A killed run leaves its folder, which the next run removes.

    Raises:
        UserError: the system refuses, or another run is writing there; what stood there stays.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another run is writing into {folder}") from error
        except OSError:
            pass  # a file system without locks
        for left in folder.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=_STAGING) as temporary:
            made = Path(temporary)
            yield made
            (folder / names[-1]).unlink(missing_ok=True)
            for name in names:
                if (made / name).exists():
                    os.replace(made / name, folder / name)
    except OSError as error:
        raise refused(folder / names[-1], error) from error
    finally:
        os.close(lock)


@contextlib.contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """A writable folder for results; made for nothing, it is taken away again."""
    there = Path(folder).exists()
    try:
        yield writable_folder(folder)
    finally:
        if not there:
            with contextlib.suppress(OSError):  # it holds something
                Path(folder).rmdir()
