# SPDX-License-Identifier: Apache-2.0
"""Files are whole or not there; folders are tried before any work."""

from pathlib import Path

import pytest

from vggtquant import files
from vggtquant.errors import UserError


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(b"old")
    with files.replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.replacing(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin"]
    with pytest.raises(UserError, match="cannot write .*no/g.bin: No such file"):
        files.write_bytes(tmp_path / "no" / "g.bin", b"")
    with pytest.raises(UserError, match="is a directory; the name of a file is wanted"):
        files.write_bytes(tmp_path, b"")


def test_a_disk_that_cannot_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    files.write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match="cannot write .*x.json: Input/output error"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(UserError, match="no room for .*x.ply .No space left"):
        with files.replacing(tmp_path / "x.ply"), open(full, "wb", buffering=0) as disk:
            disk.write(b"x")
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    with files.replacing(path) as first:
        with pytest.raises(UserError, match="another run is writing .*f.bin"):
            files.write_bytes(path, b"second")
        first.write(b"first")
    assert path.read_bytes() == b"first"


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    assert files.writable_folder(tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self/attr")):
        with pytest.raises(UserError, match=f"cannot write into {folder}: "):
            files.writable_folder(folder)


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with files.output_folder(tmp_path / "a") as folder:
        assert folder.is_dir()
    assert not folder.exists()
    with files.output_folder(tmp_path / "a"):
        files.write_bytes(folder / "f", b"x")
    assert (folder / "f").exists()
