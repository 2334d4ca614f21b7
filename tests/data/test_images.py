# SPDX-License-Identifier: Apache-2.0
"""Finding pictures; the crop and pad modes against a NumPy expectation written from the rules."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vggtquant.data.images import MODES, find_images, image_hashes, load_frames, load_images
from vggtquant.errors import UserError


def picture(path: Path, width: int, height: int, mode: str = "RGB", seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = image.convert("RGB").quantize(31) if mode == "P" else image.convert(mode)
    image.save(path)
    return path


def on_white(path: Path) -> Image.Image:
    """RGB picture; alpha blended by Pillow's own rule, everything else a plain conversion."""
    image = Image.open(path)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def expected_frame(path: Path, mode: str, size: int) -> NDArray[np.float32]:
    """(3,H,W): scale the width (crop) or the longer side (pad), round the other to patches."""
    image = on_white(path)
    w, h = image.size
    if mode == "crop" or w >= h:
        new = (size, 14 * round(h * (size / w) / 14))
    else:
        new = (14 * round(w * (size / h) / 14), size)
    x = np.asarray(image.resize(new, Image.Resampling.BICUBIC)).astype(np.float32)
    x = np.moveaxis(x, 2, 0) / np.float32(255)
    if mode == "crop":
        cut = max(0, new[1] - size) // 2
        return x[:, cut : cut + size]
    frame = np.ones((3, size, size), np.float32)
    top, left = (size - x.shape[1]) // 2, (size - x.shape[2]) // 2
    frame[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    return frame


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
@pytest.mark.parametrize("shape", [(97, 61), (61, 97), (518, 392), (200, 200)])
def test_frames_equal_the_rules_bit_for_bit(
    tmp_path: Path, mode: str, kind: str, shape: tuple[int, int]
) -> None:
    path = picture(tmp_path / ("x.jpg" if kind == "CMYK" else "x.png"), *shape, kind)
    for size in (518, 112):
        images, paths = load_images(tmp_path, mode, size=size)
        expected = expected_frame(path, mode, size)
        assert paths == [path]
        assert images.dtype == torch.float32
        assert images.shape == (1, *expected.shape)
        assert np.array_equal(images[0].numpy(), expected)


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    Image.new("RGBA", (28, 28), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    images, _ = load_images(tmp_path, size=28)
    assert torch.equal(images, torch.ones(1, 3, 28, 28))


def test_a_tall_picture_is_cropped_in_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((84, 28, 3), np.uint8)
    pixels[28:56] = 255
    Image.fromarray(pixels).save(tmp_path / "tall.png")
    images, _ = load_images(tmp_path, "crop", size=28)
    assert torch.equal(images, torch.ones(1, 3, 28, 28))


def test_mixed_shapes_are_padded_to_the_largest_with_a_warning(tmp_path: Path) -> None:
    wide = picture(tmp_path / "a.png", 56, 28)
    square = picture(tmp_path / "b.png", 56, 56)
    with pytest.warns(UserWarning, match="28x56, 56x56.*padded with white to 56x56"):
        frames = load_frames([wide, square], size=56)
    assert frames.images.shape == (2, 3, 56, 56)
    assert np.array_equal(frames.images[0, :, 14:42].numpy(), expected_frame(wide, "crop", 56))
    assert torch.equal(frames.images[0, :, :14], torch.ones(3, 14, 56))
    assert frames.mask[0].sum() == 28 * 56
    assert frames.mask[0, 14:42].all()
    assert frames.mask[1].all()


def test_the_mask_of_pad_mode_is_the_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 56, 28)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one shape: nothing to warn of
        mask = load_frames(tmp_path, "pad", size=56).mask
    assert mask.dtype == torch.bool
    assert mask[0, 14:42].all()
    assert mask.sum() == 28 * 56


def test_natural_order_and_any_case(tmp_path: Path) -> None:
    names = ["img10.PNG", "img2.jpg", "img1.JPEG", "Img3.webp", "img02.jpg"]
    for name in names:
        picture(tmp_path / name, 20, 20)
    (tmp_path / "._img0.jpg").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    found = [path.name for path in find_images(tmp_path)]
    assert found == ["img1.JPEG", "img02.jpg", "img2.jpg", "Img3.webp", "img10.PNG"]
    assert len(load_images(tmp_path, max_images=2, size=14)[1]) == 2


@pytest.mark.parametrize(
    "layout", ["images", "images/dslr_images_undistorted", "dslr_images_undistorted"]
)
def test_scene_layouts(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / layout
    folder.mkdir(parents=True)
    path = picture(folder / "DSC_1.JPG", 20, 20)
    assert find_images(tmp_path) == [path]


def test_a_single_picture_stands_for_itself(tmp_path: Path) -> None:
    path = picture(tmp_path / "one.png", 20, 20)
    picture(tmp_path / "two.png", 20, 20)
    assert find_images(path) == [path]


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert image_hashes([tmp_path / "abc"]) == {"abc": digest}


def test_archives_are_named_where_there_is_no_picture(tmp_path: Path) -> None:
    for name in ("seq-01.zip", "seq-02.zip"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=r"it holds 2 \.zip, to be unpacked first"):
        find_images(tmp_path)


def test_a_broken_link_among_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"it holds 1 broken link \(a\.png\)"):
        find_images(tmp_path)
    Image.new("RGB", (28, 28)).save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"not taken of .*: 1 broken link \(a\.png\)"):
        assert [path.name for path in find_images(tmp_path)] == ["b.png"]


def broken_pictures(folder: Path) -> dict[str, Path]:
    good = picture(folder / "good.png", 40, 40).read_bytes()
    jpeg = picture(folder / "good.jpg", 40, 40).read_bytes()
    contents = {
        "empty.png": b"",
        "text.png": b"this is no picture",
        "cut.png": good[: len(good) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "flipped.png": good[:40] + bytes(b ^ 0xFF for b in good[40:80]) + good[80:],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


@pytest.mark.parametrize("name", ["empty.png", "text.png", "cut.png", "cut.jpg", "flipped.png"])
def test_a_broken_picture_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    path = broken_pictures(tmp_path)[name]
    with pytest.raises(UserError) as caught:
        load_images([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    path = picture(tmp_path / "a.png", 40, 40)
    flat = picture(tmp_path / "flat.png", 1000, 5)
    cases = [
        (lambda: load_images(tmp_path / "gone"), "no such image folder"),
        (lambda: load_images([tmp_path / "gone.png"]), "no such picture"),
        (lambda: load_images(empty), "no picture in"),
        (lambda: load_images([]), "no pictures given"),
        (lambda: load_images([path], max_images=0), "1 or more, got 0"),
        (lambda: load_images([path], "squash"), "'squash'.*crop, pad"),
        (lambda: load_images([path], size=100), "multiple of 14, got 100"),
        (lambda: load_images([flat]), "flat.png is too narrow: 1000x5"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
