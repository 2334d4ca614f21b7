# SPDX-License-Identifier: Apache-2.0
"""COLMAP's sparse model, text or binary: cameras, images and points3D, .bin or .txt.

Formats: https://colmap.github.io/format.html. Where both are there the binary files are read, as
COLMAP does. Files of versions up to 4, with rigs.bin and frames.bin beside them or without, hold
the pose of each picture in images, which is all that is read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...scoring import geometry
from .views import Array, rigid

# Number, name and count of parameters of COLMAP's camera models (src/colmap/sensor/models.h).
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}
_PARAMETERS = dict(MODELS.values())
_RECORD = 10  # words of a picture's line: number, quaternion, translation, camera, name


@dataclass(frozen=True)
class Camera:
    """A row of cameras."""

    model: str
    size: tuple[int, int]  # width, height
    parameters: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """A row of images."""

    name: str
    camera: int
    extrinsics: Array
    pixels: Array  # (N,2): column and row from the pixel's corner
    points: Array  # (N,): POINT3D_ID of each, or -1


@dataclass(frozen=True)
class Model:
    """The three tables: cameras and points (x, y, z) by their numbers."""

    file: Path  # that of the pictures, for messages
    cameras: dict[int, Camera]
    pictures: list[Picture]
    points: dict[int, Array]


def is_model(folder: Path) -> bool:
    """Whether the folder holds the two files without which there is no model."""
    return any(
        all((folder / f"{name}{kind}").is_file() for name in ("cameras", "images"))
        for kind in (".bin", ".txt")
    )


def count(folder: Path) -> int:
    """How many pictures a model holds; UserError where its file cannot be read."""
    path = _file(folder, "images")
    if path.suffix == ".bin":
        with _Bytes(path) as data:
            return int(data.take("<Q")[0])
    return len(_pictures_of_text(path))


def read(folder: Path, *, points: bool = True) -> Model:
    """The model in a folder; UserError, naming file and line or record, for what is damaged."""
    cameras, pictures = _file(folder, "cameras"), _file(folder, "images")
    cloud = folder / f"points3D{pictures.suffix}"
    text = pictures.suffix == ".txt"
    found: dict[int, Array] = {}
    if points and cloud.is_file():
        found = _points_of_text(cloud) if text else _points_of_binary(cloud)
    return Model(
        pictures,
        _cameras_of_text(cameras) if text else _cameras_of_binary(cameras),
        _pictures_of_text(pictures) if text else _pictures_of_binary(pictures),
        found,
    )


def _file(folder: Path, name: str) -> Path:
    binary = all((folder / f"{file}.bin").is_file() for file in ("cameras", "images"))
    return folder / f"{name}{'.bin' if binary else '.txt'}"


# ---- text ----------------------------------------------------------------------------------------


def _cameras_of_text(path: Path) -> dict[int, Camera]:
    found = {}
    for line in filter(None, _lines(path)):
        with _understood(path, line):
            number, name, width, height, *parameters = line.split()
            size, values = (int(width), int(height)), tuple(map(float, parameters))
            if len(values) < _PARAMETERS.get(name, 0):
                raise ValueError(f"{len(values)} parameters, wanted {_PARAMETERS[name]}")
            found[int(number)] = Camera(name, size, values)
    return found


def _pictures_of_text(path: Path) -> list[Picture]:
    """Two lines a picture, of which the second holds observations; it may be empty, or missing."""
    lines = _lines(path)
    found = []
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line:
            continue
        seen = ""
        if at < len(lines) and not _is_record(lines[at]):
            seen = lines[at]
            at += 1
        with _understood(path, line):
            _, qw, qx, qy, qz, tx, ty, tz, camera, name = line.split(maxsplit=_RECORD - 1)
            quaternion, shift = tuple(map(float, (qw, qx, qy, qz))), tuple(map(float, (tx, ty, tz)))
            pose = _pose(quaternion, shift, f"{path}: {name}")
            number = int(camera)
        with _understood(path, seen):
            points = np.array(seen.split(), float).reshape(-1, 3)
            numbers = np.where(points[:, 2] < 2**63, points[:, 2], -1)  # 2**64 - 1: none
        found.append(Picture(name, number, pose, points[:, :2], numbers.astype(np.int64)))
    return found


def _is_record(line: str) -> bool:
    """Whether a line is a picture's and not its observations, which are threes of numbers."""
    words = line.split()
    if len(words) < _RECORD:
        return False
    try:
        list(map(float, words))
    except ValueError:
        return True
    return len(words) % 3 != 0  # a picture whose name is a number


def _points_of_text(path: Path) -> dict[int, Array]:
    found = {}
    for line in filter(None, _lines(path)):
        with _understood(path, line):
            number, x, y, z, *_ = line.split()
            found[int(number)] = np.array([float(x), float(y), float(z)])
    return found


def _lines(path: Path) -> list[str]:
    """The lines but for comments. Names that are no UTF-8 keep their bytes, as in a file system."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    lines = [line.strip() for line in text.split("\n")]
    return [line for line in lines if not line.startswith("#")]


@contextmanager
def _understood(path: Path, line: str) -> Iterator[None]:
    """Turns what a line's parsing raises into one UserError that shows the line."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OverflowError) as error:
        shown = line if len(line) < 60 else line[:57] + "..."
        raise UserError(f"{path}: cannot understand {shown!r} ({error})") from error


def _pose(quaternion: tuple[float, ...], shift: tuple[float, ...], where: str) -> Array:
    """The pose (3,4) of COLMAP's quaternion, whose real part comes first."""
    w, x, y, z = quaternion
    if not 0 < w * w + x * x + y * y + z * z < np.inf:
        raise UserError(f"{where}: ({w:g}, {x:g}, {y:g}, {z:g}) is no rotation's quaternion")
    rotation = geometry.quaternion_to_matrix([x, y, z, w])
    return rigid(np.concatenate([rotation, np.array(shift)[:, None]], axis=1), where)


# ---- binary: little-endian, counts are uint64, numbers of cameras and pictures uint32 ------------


class _Bytes:
    """A file's bytes, taken from front to back; what is not there is a UserError."""

    def __init__(self, path: Path) -> None:
        self.path, self.at, self.record = path, 0, "its count"
        try:
            self.data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            return
        if isinstance(error, struct.error | ValueError | OverflowError):
            raise UserError(
                f"{self.path} is cut short or no COLMAP model: its {len(self.data)} bytes end "
                f"within {self.record}"
            ) from error

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        word = self.data[self.at : end].decode("utf-8", "surrogateescape")
        self.at = end + 1
        return word

    def rows(self, kind: Any, count: int) -> Any:
        start = self.at
        self.skip(np.dtype(kind).itemsize * count)
        return np.frombuffer(self.data[start : self.at], kind)

    def skip(self, nbytes: int) -> None:
        if nbytes > len(self.data) - self.at:
            raise ValueError(f"{nbytes} bytes are wanted at {self.at}")
        self.at += nbytes

    def records(self, word: str) -> Iterator[int]:
        (count,) = self.take("<Q")
        for number in range(count):
            self.record = f"{word} {number + 1} of {count}"
            yield number


def _cameras_of_binary(path: Path) -> dict[int, Camera]:
    found = {}
    with _Bytes(path) as data:
        for _ in data.records("camera"):
            number, model, width, height = data.take("<IiQQ")
            if model not in MODELS:
                raise UserError(
                    f"{path}: camera {number} is of model {model}; known are 0 to {max(MODELS)}"
                )
            name, parameters = MODELS[model]
            found[number] = Camera(name, (width, height), data.take(f"<{parameters}d"))
    return found


def _pictures_of_binary(path: Path) -> list[Picture]:
    found = []
    with _Bytes(path) as data:
        for _ in data.records("picture"):
            _, *values, camera = data.take("<I7dI")
            name = data.text()
            (count,) = data.take("<Q")
            seen = data.rows(
                [("pixel", "<f8", 2), ("point", "<i8")], count
            )  # 2**64 - 1 is -1: none
            pose = _pose(tuple(values[:4]), tuple(values[4:]), f"{path}: {name}")
            found.append(Picture(name, camera, pose, seen["pixel"], seen["point"]))
    return found


def _points_of_binary(path: Path) -> dict[int, Array]:
    found = {}
    with _Bytes(path) as data:
        for _ in data.records("point"):
            number, x, y, z, _, _, _, _, length = data.take("<Q3d3BdQ")
            found[number] = np.array([x, y, z])
            data.skip(8 * length)
    return found
