# SPDX-License-Identifier: Apache-2.0
"""One picture of a file: opened, as 8-bit RGB, or as a map of numbers. What cannot be read is one
line that names the file."""

from __future__ import annotations

import importlib.util
import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

try:
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise UserError("reading pictures needs Pillow: pip install 'vggtquant[eval]'") from error

BICUBIC = Image.Resampling.BICUBIC
# 1.2 GB as RGB. Pillow's own limit would refuse the 200 megapixels of a telephone.
MOST_PIXELS = 400_000_000
VIDEOS = frozenset(".mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .mts .m2ts .wmv .3gp".split())
HEIF = frozenset((".heic", ".heif", ".hif"))

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_WHITES = (1.0, 255.0, 65535.0)

# What a reader should know of a picture that was read: see `rgb`.
DEEP = "hold more than 8 bits a channel and are scaled to 8 (VGGT's own loader shows them white)"
TURNED = (
    "carry an EXIF tag that turns them, which VGGT's loader ignores: they are taken as the sensor "
    "lay (`magick mogrify -auto-orient` turns the pixels)"
)
SEVERAL = "hold several frames, of which the first is taken"


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The file as Pillow sees it before its pixels are decoded.

    Raises UserError, naming the path, for a file that is missing, empty, a video, no picture, or
    larger than MOST_PIXELS; likewise for whatever an `Exception` within the block was: Pillow's
    decoders raise OSError, SyntaxError, ValueError and more.
    """
    before = Image.MAX_IMAGE_PIXELS
    try:
        if path.suffix.lower() in VIDEOS:
            raise UserError(video_words(path))
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes)")
        if path.suffix.lower() in HEIF or _is_heic(path):
            _register_heif(path)
        Image.MAX_IMAGE_PIXELS = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of metadata that it cannot read
            image = Image.open(path)
        with image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise UserError(
                    f"{path} has {width * height / 1e6:.0f} megapixels; at most "
                    f"{MOST_PIXELS / 1e6:.0f} are read: `magick {shlex.quote(str(path))} -resize "
                    f"4000x4000 small.png` makes a smaller one"
                )
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such picture: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is no picture, or one of a kind that is not read") from None
    except Exception as error:
        raise UserError(f"cannot read the picture {path}: {_first_line(error)}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels; UserError as `opened`.

    >>> size_of(Path("frame_00.png"))                                       # doctest: +SKIP
    (112, 112)
    """
    with opened(path) as image:
        return image.size


def rgb(path: Path) -> tuple[Image.Image, list[str]]:
    """The picture as 8-bit RGB, and which of DEEP, TURNED and SEVERAL are true of it.

    Transparent RGBA goes on white, other modes are converted by Pillow, both as in VGGT's loader.
    Channels of 16 bits, integers and floats are scaled so that 65535, 255 or 1 becomes white,
    whichever is the least that holds all values. Raises UserError as `opened`, and for values
    outside 0 to 65535.
    """
    notes = []
    with opened(path) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a preview
            notes.append(SEVERAL)
        image.load()
        if _orientation(image) not in (0, 1):
            notes.append(TURNED)
        if image.mode in _DEEP:
            notes.append(DEEP)
            sixteen = image.mode.startswith("I;16") or image.format == "PNG"
            whites = _WHITES if image.mode == "F" else _WHITES[2 if sixteen else 1 :]
            return _eight_bits(np.asarray(image), whites, path), notes
        if image.mode == "RGBA":
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, image).convert("RGB"), notes
        return image.convert("RGB"), notes


def numbers(path: Path) -> NDArray[Any]:
    """The values (H,W) of a picture of one channel, as they stand in the file: a depth map, a mask.

    Raises UserError as `opened`, and for a picture in colour.
    """
    with opened(path) as image:
        values = np.asarray(image)
        if values.ndim != 2 or image.mode == "P":
            raise UserError(
                f"{path} is a picture in colour ({image.mode}); wanted one channel of numbers"
            )
        return values


def heif_is_read() -> bool:
    """Whether pillow-heif is installed, which reads the pictures of HEIF."""
    return importlib.util.find_spec("pillow_heif") is not None


def video_words(path: Path) -> str:
    """What to do with a video, in one line."""
    folder = path.with_suffix("")
    return (
        f"{path} is a video; wanted pictures: `mkdir {shlex.quote(str(folder))} && ffmpeg -i "
        f"{shlex.quote(str(path))} -vf fps=1 {shlex.quote(str(folder))}/%04d.png` takes one a "
        "second"
    )


def shown(path: str | os.PathLike[str]) -> str:
    """The path in characters that every file and terminal takes: bytes that are no UTF-8 as \\xNN.

    >>> shown(os.fsdecode(b"caf\\xe9.png"))
    'caf\\\\xe9.png'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _orientation(image: Image.Image) -> int:
    """Of the EXIF tag; 1 where there is none, or none that can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(image.getexif().get(_ORIENTATION, 1))
        except Exception:  # damaged metadata does not spoil a picture
            return 1


def _eight_bits(values: NDArray[Any], whites: tuple[float, ...], path: Path) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    white = next((white for white in whites if high <= white), None)
    if white is None or not low >= 0:  # NaN is not
        raise UserError(
            f"{path} holds values from {low:g} to {high:g}; wanted 0 to "
            f"{' or 0 to '.join(f'{white:g}' for white in whites)}"
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def _is_heic(path: Path) -> bool:
    """By its first bytes: phones and mail programs name such files .jpg, too."""
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS


def _register_heif(path: Path) -> None:
    if not heif_is_read():
        raise UserError(f"{path} is a HEIC picture, which needs: pip install pillow-heif")
    import pillow_heif

    pillow_heif.register_heif_opener()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
