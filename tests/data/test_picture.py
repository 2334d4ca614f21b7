# SPDX-License-Identifier: Apache-2.0
"""Single pictures as cameras, phones and scanners write them, and what is no picture."""

import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vggtquant.data import images, picture
from vggtquant.errors import UserError

RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        picture.rgb(path)
    said = str(caught.value)
    assert "\n" not in said and path.name in said and all(word in said for word in words), said


# ---- more than 8 bits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("16.png", (RAMP * 65535).astype("u2")),
        ("16.tif", (RAMP * 65535).astype("u2")),
        ("16.pgm", (RAMP * 65535).astype("u2")),
        ("32.tif", (RAMP * 65535).astype("i4")),
        ("32-as-8.tif", (RAMP * 255).astype("i4")),
        ("float.tif", RAMP.astype("f4")),
        ("float-as-8.tif", (RAMP * 255).astype("f4")),
        ("float-as-16.tif", (RAMP * 65535).astype("f4")),
    ],
)
def test_deep_pictures_are_scaled_aloud(tmp_path: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / name)
    with pytest.warns(UserWarning, match="1 of 1 pictures hold more than 8 bits a channel"):
        found, _ = images.load_images([tmp_path / name], size=56)
    assert abs(float(found.mean()) - 0.5) < 0.01
    assert float(found.min()) < 0.02 and float(found.max()) > 0.98


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((28, 28), 200, "u2")).save(tmp_path / "dark.png")
    assert np.asarray(picture.rgb(tmp_path / "dark.png")[0]).max() == 1  # 200 * 255 / 65535 = 0.78


@pytest.mark.parametrize("value", [-1.0, 1e6, np.nan, np.inf])
def test_values_that_are_no_colours_are_refused(tmp_path: Path, value: float) -> None:
    values = RAMP.astype("f4")
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "x.tif")
    refused(tmp_path / "x.tif", "holds values from", "wanted 0 to 1 or 0 to 255 or 0 to 65535")


def test_maps_keep_their_numbers(tmp_path: Path) -> None:
    depth = np.arange(12, dtype="u2").reshape(3, 4) * 5000
    Image.fromarray(depth).save(tmp_path / "depth.png")
    assert np.array_equal(picture.numbers(tmp_path / "depth.png"), depth)
    Image.new("RGB", (4, 3)).save(tmp_path / "colour.png")
    Image.new("P", (4, 3)).save(tmp_path / "palette.png")
    for name in ("colour.png", "palette.png"):
        with pytest.raises(UserError, match=f"{name} is a picture in colour"):
            picture.numbers(tmp_path / name)


# ---- phones --------------------------------------------------------------------------------------


def turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (56, 28), "red").save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])  # Pillow itself turns TIFF
def test_a_turned_picture_is_told(tmp_path: Path, kind: str) -> None:
    paths = [turned(tmp_path / f"{i}.{kind}", i) for i in (1, 6, 3)]
    with pytest.warns(UserWarning, match="2 of 3 pictures carry an EXIF tag that turns them"):
        found, _ = images.load_images(paths, size=56)
    assert found.shape == (3, 3, 28, 56)  # as the sensor lay, as VGGT's own loader has it


def test_upright_and_damaged_exif_is_not_told(tmp_path: Path) -> None:
    turned(tmp_path / "up.jpg", 1)
    Image.new("RGB", (28, 28)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    Image.new("RGB", (28, 28)).save(tmp_path / "none.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("up.jpg", "odd.jpg", "none.png"):
            assert picture.rgb(tmp_path / name)[1] == []


def test_several_frames_are_told_and_a_phone_s_preview_is_not(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.tif", "a.webp", "a.mpo"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        first, notes = picture.rgb(tmp_path / name)
        assert notes == ([] if name == "a.mpo" else [picture.SEVERAL]), name
        red, _, blue = first.getpixel((5, 5))
        assert red > 200 and blue < 50, name


def test_a_picture_of_200_megapixels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "phone.png"
    Image.new("L", (16384, 12288)).save(path)  # 201 megapixels; 0.2 MB as a file
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture.size_of(path) == (16384, 12288)
        with picture.opened(path) as image:
            image.load()
    assert Image.MAX_IMAGE_PIXELS == before


def test_a_picture_beyond_all_measure_is_one_line_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (30000, 20000)).save(path)
    refused(path, "600 megapixels; at most 400 are read", "-resize")


def test_heic_wants_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "IMG_1.HEIC"
    Image.new("RGB", (28, 28)).save(path, format="PNG")
    monkeypatch.setattr(picture, "heif_is_read", lambda: False)
    refused(path, "pip install pillow-heif")
    with pytest.raises(UserError, match="no picture in .*1 .heic, HEIC needs `pip install pillow"):
        images.find_images(tmp_path)
    monkeypatch.setattr(picture, "heif_is_read", lambda: True)
    opener = SimpleNamespace(register_heif_opener=lambda: None)
    monkeypatch.setitem(sys.modules, "pillow_heif", opener)
    assert images.find_images(tmp_path) == [path]
    assert picture.size_of(path) == (28, 28)


# ---- what is no picture --------------------------------------------------------------------------


def test_a_heic_named_jpg_wants_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "heif_is_read", lambda: False)
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(UserError, match=r"IMG_1\.jpg is a HEIC picture, .*pip install pillow-heif"):
        picture.rgb(tmp_path / "IMG_1.jpg")


def test_a_web_page_named_jpg_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(
        UserError, match=r"a\.jpg is no picture, or one of a kind that is not read$"
    ):
        picture.rgb(tmp_path / "a.jpg")


def test_a_video_is_told_how_to_become_pictures(tmp_path: Path) -> None:
    path = tmp_path / "my walk.MP4"
    path.write_bytes(b"\0\0\0\x18ftypmp42")
    refused(path, "is a video", "ffmpeg -i", f"'{path}' -vf fps=1", "my walk")
    with pytest.raises(UserError, match="no picture in .*it holds 1 .mp4"):
        images.find_images(tmp_path)


def test_pictures_two_folders_down_are_named(tmp_path: Path) -> None:
    for name in ("a/b", "a/c", "d/e/f", "g/h"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (28, 28)).save(tmp_path / name / "0.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    with pytest.raises(UserError, match="; pictures are deeper, in a/b/, a/c/, g/h/ …$"):
        images.find_images(tmp_path)


def test_what_goes_wrong_within_is_a_line_with_the_path(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    for error in (SyntaxError("two\nlines"), MemoryError(), ValueError()):
        with pytest.raises(UserError, match="cannot read the picture .*x.png: ") as caught:
            with picture.opened(tmp_path / "x.png"):
                raise error
        assert "\n" not in str(caught.value)


def test_names_that_are_no_utf_8_are_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (28, 28)).save(tmp_path / name)
    assert picture.shown(name) == r"caf\xe9.png" and picture.shown("café") == "café"
    assert list(images.image_hashes(images.find_images(tmp_path))) == [r"caf\xe9.png"]


# ---- folders -------------------------------------------------------------------------------------


def test_what_a_folder_holds_beside_its_pictures_is_told(tmp_path: Path) -> None:
    for kind in ("jpg", "gif", "bmp", "tiff", "webp", "ppm"):
        Image.new("RGB", (28, 28)).save(tmp_path / f"x.{kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(images.find_images(tmp_path)) == 6
    for name in ("a.mov", "b.mov", "c.dng"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (28, 28)).save(tmp_path / "more" / "y.png")
    with pytest.warns(UserWarning, match=r"not taken of .*: 1 .dng, 2 .mov, pictures in more/$"):
        assert len(images.find_images(tmp_path)) == 6


def test_folders_of_pictures_are_named_where_there_is_none(tmp_path: Path) -> None:
    for name in ("room10", "room2", "room1", "room3"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (28, 28)).save(tmp_path / name / "x.png")
    with pytest.raises(UserError, match=r"holds pictures in room1/, room2/, room3/ …$"):
        images.find_images(tmp_path)


def test_pictures_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for i, name in enumerate(("a/cam0/1.png", "a/cam1/1.png", "b/cam1/1.png", "2.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 28), (i, 0, 0)).save(tmp_path / name)
    paths = [*tmp_path.rglob("1.png"), tmp_path / "2.png"]
    hashes = images.image_hashes(sorted(paths))
    assert list(hashes) == ["2.png", "cam0/1.png", "a/cam1/1.png", "b/cam1/1.png"]
    assert len(set(hashes.values())) == 4
    again = images.image_hashes([tmp_path / "2.png"] * 2)
    assert list(again) == ["2.png", "2.png (2)"]
