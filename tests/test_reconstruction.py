# SPDX-License-Identifier: Apache-2.0
"""What is written is read back by small readers of the formats' own definitions."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vggtquant import reconstruction
from vggtquant.data import datasets
from vggtquant.errors import UserError
from vggtquant.scoring import geometry


def read_ply(path: Path) -> dict[str, NDArray[np.generic]]:
    """The vertices of a binary little-endian PLY, a column a property."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").split("\n")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    kinds = {"float": "<f4", "uchar": "u1"}
    properties = [line.split()[1:] for line in lines if line.startswith("property")]
    dtype = np.dtype([(name, kinds[kind]) for kind, name in properties])
    assert len(body) == count * dtype.itemsize
    rows = np.frombuffer(body, dtype)
    return {name: rows[name] for name in rows.dtype.names or ()}


def read_colmap(path: Path) -> list[list[str]]:
    lines = path.read_text().split("\n")
    assert lines.pop() == ""
    return [line.split() for line in lines if not line.startswith("#")]


@pytest.fixture
def points() -> reconstruction.Points:
    rng = np.random.default_rng(0)
    frame = np.sort(rng.integers(0, 3, 50))
    return reconstruction.Points(
        xyz=rng.normal(size=(50, 3)).astype(np.float32),
        rgb=rng.integers(0, 256, (50, 3), dtype=np.uint8),
        frame=frame,
        uv=rng.integers(0, 28, (50, 2)),
    )


def test_ply_is_read_back(tmp_path: Path, points: reconstruction.Points) -> None:
    path = reconstruction.write_ply(tmp_path / "cloud.ply", points)
    columns = read_ply(path)
    assert list(columns) == ["x", "y", "z", "red", "green", "blue"]
    assert np.array_equal(np.stack([columns[n] for n in "xyz"], 1), points.xyz)
    rgb = np.stack([columns[n] for n in ("red", "green", "blue")], 1)
    assert np.array_equal(rgb, points.rgb)
    assert [p.name for p in tmp_path.iterdir()] == ["cloud.ply"]


def test_an_empty_cloud_is_a_valid_ply(tmp_path: Path, points: reconstruction.Points) -> None:
    none = reconstruction.Points(points.xyz[:0], points.rgb[:0], points.frame[:0], points.uv[:0])
    assert len(read_ply(reconstruction.write_ply(tmp_path / "none.ply", none))["x"]) == 0


def test_the_header_is_a_fixed_text(tmp_path: Path, points: reconstruction.Points) -> None:
    header = (
        reconstruction.write_ply(tmp_path / "c.ply", points).read_bytes().split(b"end_header\n")[0]
    )
    assert header == (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 50\n"
        b"property float x\nproperty float y\nproperty float z\n"
        b"property uchar red\nproperty uchar green\nproperty uchar blue\n"
    )


def test_colmap_text_is_read_back(tmp_path: Path, points: reconstruction.Points) -> None:
    rng = np.random.default_rng(1)
    encoded = rng.normal(size=(3, 9))
    encoded[:, 7:] = rng.uniform(0.5, 1.5, (3, 2))
    extrinsics, intrinsics = geometry.decode_pose(encoded, (21, 28))
    names = ["000_a.png", "001_b.png", "002_c.png"]
    paths = reconstruction.write_colmap(
        tmp_path / "sparse", names, extrinsics, intrinsics, (21, 28), points
    )
    assert [path.name for path in paths] == ["cameras.txt", "images.txt", "points3D.txt"]

    for i, row in enumerate(read_colmap(paths[0])):
        assert row[:4] == [str(i + 1), "PINHOLE", "28", "21"]
        k = intrinsics[i]
        expected = [k[0, 0], k[1, 1], 14.5, 11]  # COLMAP's first pixel has its middle at 0.5
        np.testing.assert_allclose(np.array(row[4:], float), expected, rtol=1e-8)

    lines = read_colmap(paths[1])
    assert len(lines) == 6
    for i, (row, seen) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        assert (row[0], row[8], row[9]) == (str(i + 1), str(i + 1), names[i])
        w, x, y, z, *t = np.array(row[1:8], float)
        rotation = geometry.quaternion_to_matrix([x, y, z, w])
        np.testing.assert_allclose(rotation, extrinsics[i, :, :3], atol=1e-8)
        np.testing.assert_allclose(t, extrinsics[i, :, 3], atol=1e-8)
        u, v, number = np.array(seen, float).reshape(-1, 3).T
        expected_numbers = 1 + np.flatnonzero(points.frame == i)
        assert np.array_equal(number, expected_numbers)
        assert np.array_equal(np.stack([u, v], 1) - 0.5, points.uv[points.frame == i])

    for i, row in enumerate(read_colmap(paths[2])):
        assert row[0] == str(i + 1)
        assert np.array_equal(np.array(row[1:4], np.float32), points.xyz[i])
        assert np.array_equal(np.array(row[4:7], int), points.rgb[i])
        image, index = int(row[8]), int(row[9])
        assert image == points.frame[i] + 1
        track = np.array(lines[2 * image - 1], float).reshape(-1, 3)
        assert track[index, 2] == i + 1


def test_colmap_points_project_to_their_observations(tmp_path: Path) -> None:
    """The exported model is consistent: K (R X + t) is the pixel that the point came from."""
    encoded = np.array([[0.1, -0.2, 0.3, 0.1, 0.2, -0.1, 1.0, 0.9, 1.1]])
    extrinsics, intrinsics = geometry.decode_pose(encoded, (14, 28))
    world = geometry.unproject(np.full((1, 14, 28), 2.0), extrinsics, intrinsics)
    points = reconstruction.select_points(world, np.zeros((1, 3, 14, 28)))
    paths = reconstruction.write_colmap(
        tmp_path, ["a.png"], extrinsics, intrinsics, (14, 28), points
    )
    fx, fy, cx, cy = np.array(read_colmap(paths[0])[0][4:], float)
    head, seen = read_colmap(paths[1])
    w, x, y, z, *t = np.array(head[1:8], float)
    xyz = np.array([row[1:4] for row in read_colmap(paths[2])], float)
    camera = xyz @ geometry.quaternion_to_matrix([x, y, z, w]).T + t
    u, v, _ = np.array(seen, float).reshape(-1, 3).T
    np.testing.assert_allclose(fx * camera[:, 0] / camera[:, 2] + cx, u, atol=1e-4)
    np.testing.assert_allclose(fy * camera[:, 1] / camera[:, 2] + cy, v, atol=1e-4)


def test_our_reader_of_colmap_gives_back_what_was_written(tmp_path: Path) -> None:
    """Cameras, poses and the depth of every point, not half a pixel off."""
    encoded = np.array([[0.1, -0.2, 0.3, 0.1, 0.2, -0.1, 1.0, 0.9, 1.1], [0.0] * 6 + [1, 1, 1]])
    extrinsics, intrinsics = geometry.decode_pose(encoded, (14, 28))
    depth = np.linspace(1, 2, 2 * 14 * 28).reshape(2, 14, 28)
    points = reconstruction.select_points(
        geometry.unproject(depth, extrinsics, intrinsics), np.zeros((2, 3, 14, 28))
    )
    names = ["a.png", "b.png"]
    reconstruction.write_colmap(
        tmp_path / "sparse", names, extrinsics, intrinsics, (14, 28), points
    )
    (tmp_path / "images").mkdir()
    for name in names:
        Image.new("RGB", (28, 14)).save(tmp_path / "images" / name)
    found = datasets.find(tmp_path)
    assert found is not None and found[0] == "colmap"
    for i, view in enumerate(found[1][0].views):
        np.testing.assert_allclose(view.intrinsics, intrinsics[i], rtol=1e-8)
        np.testing.assert_allclose(view.extrinsics, extrinsics[i], atol=1e-8)
        assert view.points is not None
        u, v, z = view.points.T
        np.testing.assert_allclose(z, depth[i][v.astype(int), u.astype(int)], rtol=1e-5)


def test_selection_by_confidence_mask_and_finiteness() -> None:
    xyz = np.zeros((1, 2, 4, 3), np.float32)
    xyz[0, :, :, 0] = np.arange(8).reshape(2, 4)
    xyz[0, 0, 0] = np.nan
    images = np.zeros((1, 3, 2, 4), np.float32)
    images[0, 0] = np.arange(8).reshape(2, 4) / 255
    images[0, 2] = 1
    mask = np.ones((1, 2, 4), bool)
    mask[0, 1, 3] = False
    confidence = np.arange(8.0).reshape(1, 2, 4)
    kept = reconstruction.select_points(xyz, images, confidence, mask)
    assert kept.xyz[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert kept.rgb.tolist() == [[i, 0, 255] for i in range(1, 7)]
    assert kept.uv.tolist() == [[1, 0], [2, 0], [3, 0], [0, 1], [1, 1], [2, 1]]
    assert kept.frame.tolist() == [0] * 6
    half = reconstruction.select_points(xyz, images, confidence, mask, percentile=50)
    assert half.xyz[:, 0].tolist() == [4, 5, 6]  # the median of 1 … 6 is 3.5
    best = reconstruction.select_points(xyz, images, confidence, mask, percentile=100)
    assert best.xyz[:, 0].tolist() == [6]
    assert kept.thinned(3).xyz[:, 0].tolist() == [1, 3, 6]
    assert kept.thinned(6) is kept
    for wrong in (-1, 101):
        with pytest.raises(UserError, match=f"between 0 and 100, got {wrong}"):
            reconstruction.select_points(xyz, images, percentile=wrong)


def test_npz_is_read_back(tmp_path: Path) -> None:
    arrays = {"depth": np.random.default_rng(0).normal(size=(2, 3)), "names": np.array(["a", "b"])}
    with np.load(reconstruction.write_npz(tmp_path / "p.npz", arrays)) as stored:
        assert stored.files == ["depth", "names"]
        assert np.array_equal(stored["depth"], arrays["depth"])
        assert stored["names"].tolist() == ["a", "b"]


def test_depth_previews(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 4, 6))
    images[0, 1] = 1
    depth = np.exp(np.linspace(0, 2, 48)).reshape(2, 4, 6)
    depth[0, 0, 0] = np.nan
    mask = np.ones((2, 4, 6), bool)
    mask[1, 3, 5] = False
    pictures = [
        np.asarray(picture) for picture in reconstruction.depth_previews(images, depth, mask)
    ]
    assert [picture.shape for picture in pictures] == [(4, 12, 3)] * 2
    assert np.array_equal(pictures[0][:, :6], np.full((4, 6, 3), (0, 255, 0)))
    assert pictures[0][0, 7].tolist() == [253, 231, 37]  # near: bright
    assert pictures[1][3, 10].tolist() == [68, 1, 84]  # far: dark
    assert pictures[0][0, 6].tolist() == pictures[1][3, 11].tolist() == [128, 128, 128]
    nothing = reconstruction.depth_previews(images, np.zeros((2, 4, 6)))
    assert np.array_equal(np.asarray(next(nothing))[:, 6:], np.full((4, 6, 3), 128))


def test_names_with_spaces_are_refused(tmp_path: Path, points: reconstruction.Points) -> None:
    with pytest.raises(UserError, match="spaces: 'a b.png'"):
        reconstruction.write_colmap(
            tmp_path, ["a b.png"], [np.eye(3, 4)], [np.eye(3)], (9, 9), points
        )
