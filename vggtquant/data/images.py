# SPDX-License-Identifier: Apache-2.0
"""Finds pictures and prepares them as VGGT's own loader does, bit for bit, without torchvision.

The rules are those of `load_and_preprocess_images` in VGGT's `vggt/utils/load_fn.py`: Pillow's
bicubic resize, RGBA on white, EXIF rotation not applied (but told). The frame size is a parameter
here, and pictures of more than 8 bits are scaled, where VGGT's loader clips them to white.
"""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..adapter import FRAME_SIZE, PATCH
from ..errors import UserError
from . import picture

Mode = Literal["crop", "pad"]
MODES: tuple[Mode, ...] = ("crop", "pad")
SUFFIXES = tuple(".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .avif .jp2".split())
# Pictures of kinds that are not taken from a folder by themselves; a warning names them.
_OTHERS = frozenset(".dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .jxl .exr .hdr .svg".split())
_ARCHIVES = frozenset(".zip .tar .gz .tgz .7z .rar".split())

# Looked through in this order: a plain folder, VGGT's SCENE_DIR/images, ETH3D's two layouts.
_SUBFOLDERS = ("", "images", "images/dslr_images_undistorted", "dslr_images_undistorted")


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in its frame: resized from `size` to `scaled`, its corner at `corner`.

    Sizes are (width, height); the corner is negative on a side that was cropped. Columns and rows
    name the middle of a pixel, as in geometry.py: 0 is the first one.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]

    def to_frame(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where columns and rows (…,2) of the picture come to lie in the frame.

        >>> Placement((100, 50), (50, 25), (0, 3)).to_frame(np.array([0.5, 0.5])).tolist()
        [0.0, 3.0]
        """
        moved: NDArray[np.float64] = (pixels + 0.5) * self._scale - 0.5 + self.corner
        return moved

    def to_picture(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `to_frame`."""
        moved: NDArray[np.float64] = (pixels - self.corner + 0.5) / self._scale - 0.5
        return moved

    def intrinsics(self, k: NDArray[np.float64]) -> NDArray[np.float64]:
        """The intrinsics (3,3) of the frame, of those of the picture."""
        moved = k.copy()
        moved[[0, 1], [0, 1]] *= self._scale
        moved[:2, 2] = self.to_frame(k[:2, 2])
        return moved

    @property
    def _scale(self) -> NDArray[np.float64]:
        scale: NDArray[np.float64] = np.array(self.scaled) / np.array(self.size)
        return scale


@dataclass(frozen=True)
class Frames:
    """Prepared pictures: images (S,3,H,W) float32 in [0, 1], mask (S,H,W) False on padding."""

    images: Tensor
    mask: Tensor
    paths: list[Path]
    placements: tuple[Placement, ...] = ()  # of pictures that were read


def find_images(folder: str | Path) -> list[Path]:
    """Pictures of a folder in natural order (`2.png` before `10.png`); a picture stands for itself.

    Looks into `images/` and ETH3D's `dslr_images_undistorted/` when the folder itself has none.
    UserError when the folder is missing or holds no picture; a warning for what lies beside the
    pictures and is not taken: other kinds of pictures, videos, folders of pictures.

    >>> find_images("examples/kitchen")[0].name                            # doctest: +SKIP
    '00.png'
    """
    folder = Path(folder)
    if os.path.isfile(folder):  # of Path's own, a name that is too long is an error
        return [folder]
    if not os.path.isdir(folder):
        raise UserError(f"no such image folder: {folder}")
    for sub in _SUBFOLDERS:
        if found := pictures_in(folder / sub):
            if left := _left_out(_listing(folder / sub)):
                warnings.warn(f"not taken of {folder / sub}: {left}", stacklevel=2)
            return found
    wanted = ", ".join(SUFFIXES)
    there = " (looked in images/ and ETH3D's folders, too)"
    left = ", ".join(filter(None, (_left_out(_listing(folder)), _archives(_listing(folder)))))
    if left:
        there = f"; it holds {left}"
    elif below := _deeper(folder):
        there = f"; pictures are deeper, in {below}"
    raise UserError(f"no picture in {folder}: wanted {wanted}{there}")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder itself in natural order; none where there is no such folder."""
    return sorted(filter(_is_picture, _listing(folder)), key=_natural)


def labels(paths: Sequence[Path]) -> list[str]:
    """A name for each picture: its file's, with as many folders before it as tell it from others.

    A picture that is there twice is numbered. Bytes that are no UTF-8 are written as \\xNN.

    >>> labels([Path("cam0/1.png"), Path("cam1/1.png"), Path("2.png")])
    ['cam0/1.png', 'cam1/1.png', '2.png']
    """
    different = list(dict.fromkeys(paths))
    length = dict.fromkeys(different, 1)
    for _ in range(max((len(path.parts) for path in different), default=0)):
        names = {path: "/".join(path.parts[-length[path] :]) for path in different}
        counts = Counter(names.values())
        length = {path: n + (counts[names[path]] > 1) for path, n in length.items()}
    seen: Counter[Path] = Counter()
    found = []
    for path in paths:
        seen[path] += 1
        again = f" ({seen[path]})" if seen[path] > 1 else ""
        found.append(picture.shown("/".join(path.parts[-length[path] :])) + again)
    return found


def load_images(
    source: str | Path | Sequence[str | Path],
    mode: Mode = "crop",
    max_images: int | None = None,
    *,
    size: int = FRAME_SIZE,
    patch: int = PATCH,
) -> tuple[Tensor, list[Path]]:
    """Pictures of a folder, or of a list of paths, as VGGT wants them: (S,3,H,W), and their paths.

    Equal bit for bit to VGGT's `load_and_preprocess_images` at size 518. `max_images` takes the
    first ones. Errors: as `load_frames`.

    >>> images, paths = load_images("examples/kitchen", "crop", 4)         # doctest: +SKIP
    """
    frames = load_frames(source, mode, max_images, size=size, patch=patch)
    return frames.images, frames.paths


def load_frames(
    source: str | Path | Sequence[str | Path],
    mode: Mode = "crop",
    max_images: int | None = None,
    *,
    size: int = FRAME_SIZE,
    patch: int = PATCH,
) -> Frames:
    """As `load_images`, with a mask that tells picture from padding.

    UserError for an unknown mode, `max_images` below 1, a size that is no multiple of the patch,
    and a picture that cannot be read (named). Different shapes are padded to the largest, with a
    warning; another tells of pictures that are turned by EXIF, deeper than 8 bits, or of several
    frames.
    """
    check_mode(mode)
    if max_images is not None and max_images < 1:
        raise UserError(f"max_images must be 1 or more, got {max_images}")
    check_size(size, patch)
    if isinstance(source, str | Path):
        paths = find_images(source)
    else:
        paths = [Path(path) for path in source]
    if not paths:
        raise UserError("no pictures given: at least one is needed")
    paths = paths[:max_images]
    prepared, notes = [], Counter[str]()
    for path in paths:
        x, place, told = _prepare(path, mode, size, patch)
        prepared.append((x, place))
        notes.update(told)
    for words, count in notes.items():
        warnings.warn(f"{count} of {len(paths)} pictures {words}", stacklevel=2)
    pictures = [x for x, _ in prepared]

    shapes = {(x.shape[-2], x.shape[-1]) for x in pictures}
    height, width = (size, size) if mode == "pad" else map(max, zip(*shapes, strict=True))
    if mode == "crop" and len(shapes) > 1:
        seen = ", ".join(f"{h}x{w}" for h, w in sorted(shapes))
        warnings.warn(
            f"pictures of different shapes ({seen}) are padded with white to {height}x{width}",
            stacklevel=2,
        )
    return Frames(
        images=torch.stack([_pad(x, height, width, 1.0) for x in pictures]),
        mask=torch.stack([_pad(x[0] >= 0, height, width, False) for x in pictures]),
        paths=paths,
        placements=tuple(
            replace(place, corner=_corner(x, place, height, width)) for x, place in prepared
        ),
    )


def check_mode(mode: str) -> Mode:
    """The mode itself, as a type checker knows it; UserError for an unknown one."""
    for known in MODES:
        if mode == known:
            return known
    raise UserError(f"unknown mode {mode!r}: wanted one of {', '.join(MODES)}")


def check_size(size: int, patch: int = PATCH) -> int:
    """The frame size itself; UserError when it is no positive multiple of the patch."""
    if size < patch or size % patch:
        raise UserError(f"size must be a positive multiple of {patch}, got {size}")
    return size


def image_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file under its label, for a report that says what was looked at."""
    hashes = {}
    for label, path in zip(labels(paths), paths, strict=True):
        with open(path, "rb") as file:
            hashes[label] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _prepare(path: Path, mode: Mode, size: int, patch: int) -> tuple[Tensor, Placement, list[str]]:
    """One picture, resized and cropped but not padded: (3,H,W), its place in that, and notes."""
    image, notes = picture.rgb(path)
    width, height = image.size
    # Python's round and this order of operations are VGGT's; both decide ties.
    if mode == "pad" and width < height:
        to = (round(width * (size / height) / patch) * patch, size)
    else:
        to = (size, round(height * (size / width) / patch) * patch)
    if min(to) < patch:
        raise UserError(
            f"{path} is too narrow: {width}x{height} px scaled to {size} leaves less than a "
            f"{patch} px patch"
        )
    pixels = np.array(image.resize(to, picture.BICUBIC))
    x = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    top = 0
    if mode == "crop" and to[1] > size:
        top = (to[1] - size) // 2
        x = x[:, top : top + size]
    return x, Placement((width, height), to, (0, -top)), notes


def _pad(x: Tensor, height: int, width: int, value: float) -> Tensor:
    """x (…,h,w) in the middle of a frame of the given size."""
    down, right = height - x.shape[-2], width - x.shape[-1]
    top, left = down // 2, right // 2
    padding = (left, right - left, top, down - top)
    return torch.nn.functional.pad(x, padding, value=value)


def _corner(x: Tensor, place: Placement, height: int, width: int) -> tuple[int, int]:
    """Where the corner of a picture comes to lie when `_pad` has put x into its frame."""
    left, top = place.corner
    return left + (width - x.shape[-1]) // 2, top + (height - x.shape[-2]) // 2


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror or error}") from error


def _is_picture(path: Path) -> bool:
    hidden = path.name.startswith(".")  # macOS leaves ._IMG.jpg beside IMG.jpg
    kind = path.suffix.lower()
    taken = kind in SUFFIXES or (kind in picture.HEIF and picture.heif_is_read())
    return taken and not hidden and path.is_file()


def _is_lost(path: Path) -> bool:
    """Whether it is a link to what is not there."""
    return path.is_symlink() and not path.exists()


def _left_out(listing: Sequence[Path]) -> str:
    """What of a folder's files and folders looks like pictures and is not taken: "3 .heic, …"."""
    kinds = picture.HEIF | picture.VIDEOS | _OTHERS
    other = Counter(
        path.suffix.lower()
        for path in listing
        if path.suffix.lower() in kinds and not _is_picture(path) and path.is_file()
    )
    words = [f"{count} {kind}" for kind, count in sorted(other.items())]
    if not picture.HEIF.isdisjoint(other):
        words.append("HEIC needs `pip install pillow-heif`")
    lost = [path for path in listing if path.suffix.lower() in SUFFIXES and _is_lost(path)]
    if lost:
        shown = _few([picture.shown(path.name) for path in sorted(lost, key=_natural)])
        words.append(f"{len(lost)} broken link{'s' * (len(lost) > 1)} ({shown})")
    below = [path for path in listing if path.is_dir() and any(map(_is_picture, _listing(path)))]
    if below:
        names = [f"{path.name}/" for path in sorted(below, key=_natural)]
        words.append(f"pictures in {_few(names)}")
    return ", ".join(words)


def _archives(listing: Sequence[Path]) -> str:
    """As "2 .zip, to be unpacked first"; 7-Scenes, for one, comes as an archive a sequence."""
    found = Counter(path.suffix.lower() for path in listing if path.suffix.lower() in _ARCHIVES)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
    return f"{kinds}, to be unpacked first" if kinds else ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _deeper(folder: Path) -> str:
    """Folders of pictures two levels down and more, as "a/b/, a/c/"; a look at 1,000 folders ends
    the search, and links are not followed."""
    found, queue = [], [folder]
    for looked, at in enumerate(queue):  # grows as it is read
        if looked == 1000:
            break
        listing = _listing(at)
        queue += sorted((p for p in listing if p.is_dir() and not p.is_symlink()), key=_natural)
        if any(map(_is_picture, listing)):
            found.append(f"{picture.shown(at.relative_to(folder))}/")
    return _few(found)


def _natural(path: Path) -> tuple[list[int | str], str]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if part.isdecimal() else part for part in parts], path.name
