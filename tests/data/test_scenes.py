# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes: exact geometry, the same bits however work is split, files that come back."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggtquant import _render
from vggtquant.data import scenes
from vggtquant.errors import UserError

ARRAYS = ("images", "depth", "world_points", "extrinsics", "intrinsics", "mask")

# sha256 of all arrays of scene HELD_OUT + 3: changes only when a change of the scenes is meant,
# and must be the same on every machine, compiler and number of threads
GOLDEN = "e2642ccefdba7dc22e68bc9148f367e9ccf4c426860c397a3e60ccf82f882b79"


def digest(scene: scenes.Scene) -> str:
    sha = hashlib.sha256()
    for name in ARRAYS:
        sha.update(np.ascontiguousarray(getattr(scene, name)).tobytes())
    return sha.hexdigest()


def test_a_seed_names_its_scene_for_good() -> None:
    assert digest(scenes.make_scene(scenes.HELD_OUT + 3, 4)) == GOLDEN


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_rows_split_over_threads_give_the_same_bits(threads: int) -> None:
    size, frames = (42, 56), 3
    tables, _, _ = scenes._tables(scenes._Room(scenes._Dice(5)), frames, size)

    def render(parts: int) -> tuple[np.ndarray, ...]:
        shape = (frames, *size)
        out = (np.zeros((*shape, 3), "u1"), np.zeros(shape, "f4"), np.zeros((*shape, 3), "f4"))
        cuts = np.linspace(0, frames * size[0], parts + 1).astype(int).tolist()
        with ThreadPoolExecutor(parts) as pool:
            jobs = [
                pool.submit(_render.render, *tables, True, a, b, *out)
                for a, b in zip(cuts[:-1], cuts[1:], strict=True)
            ]
        for job in jobs:
            job.result()
        return out

    for whole, split in zip(render(1), render(threads), strict=True):
        assert whole.tobytes() == split.tobytes()


@pytest.mark.parametrize("seed", [0, 1, scenes.HELD_OUT, scenes.HELD_OUT + 17])
def test_geometry_is_exact(seed: int) -> None:
    scene = scenes.make_scene(seed, 4, (56, 84))
    assert scene.depth.min() > 0 and scene.mask.all()
    # the first camera is the world, the scale is the mean distance from it
    assert np.array_equal(scene.extrinsics[0], np.eye(3, 4, dtype=np.float32))
    assert np.linalg.norm(scene.world_points, axis=-1).mean() == pytest.approx(1, abs=1e-5)
    v, u = np.mgrid[:56, :84].astype(np.float64)
    for i in range(4):
        rotation = scene.extrinsics[i, :, :3].astype(np.float64)
        shift = scene.extrinsics[i, :, 3]
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-6)
        # points, seen by the camera, land on their own pixels at their own depth
        seen = scene.world_points[i] @ rotation.T + shift
        assert np.allclose(seen[..., 2], scene.depth[i], rtol=1e-4)
        k = scene.intrinsics[i]
        assert np.allclose(k[0, 0] * seen[..., 0] / seen[..., 2] + k[0, 2], u, atol=0.01)
        assert np.allclose(k[1, 1] * seen[..., 1] / seen[..., 2] + k[1, 2], v, atol=0.01)


def test_frames_see_the_same_surfaces() -> None:
    """Points of one frame, projected into another, mostly meet a surface at their depth."""
    agreeing = []
    for seed in range(scenes.HELD_OUT, scenes.HELD_OUT + 6):
        scene = scenes.make_scene(seed, 2)
        rotation, shift = scene.extrinsics[1, :, :3], scene.extrinsics[1, :, 3]
        seen = scene.world_points[0] @ rotation.T + shift
        k = scene.intrinsics[1]
        uv = np.rint(seen[..., :2] / seen[..., 2:] * k[0, 0] + k[:2, 2]).astype(int)
        inside = (seen[..., 2] > 0) & (uv >= 0).all(-1) & (uv < 112).all(-1)
        found = scene.depth[1, uv[inside][:, 1], uv[inside][:, 0]]
        agreeing.append(np.mean(np.abs(found - seen[inside][:, 2]) < 0.03 * found))
        assert inside.mean() > 0.3
    assert np.mean(agreeing) > 0.8


def test_cameras_differ_but_look_the_same_way() -> None:
    for seed in range(20):
        scene = scenes.make_scene(seed, 8, 14)
        for i in range(8):
            for j in range(i):
                turn = scene.extrinsics[i, :, :3] @ scene.extrinsics[j, :, :3].T
                assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 30.1
                centres = [-e[:, :3].T @ e[:, 3] for e in scene.extrinsics[[i, j]]]
                assert np.linalg.norm(centres[0] - centres[1]) > 0.02


def test_shorter_scenes_begin_the_longer_ones() -> None:
    short, long = scenes.make_scene(9, 2, 28), scenes.make_scene(9, 5, 28)
    assert np.array_equal(short.images, long.images[:2])


def test_pictures_hold_something_to_see() -> None:
    """Neither dark nor blown out, and with texture, over many scenes."""
    for seed in range(30):
        images = scenes.make_scene(seed, 1, 56).images
        assert 30 < images.mean() < 225
        assert images.std() > 12
        assert np.mean(images == 255) < 0.4


def test_files_come_back(tmp_path: Path) -> None:
    folders = scenes.write_dataset(tmp_path, count=2, frames=3, seed=4, size=28)
    assert [scenes.load_scene(f).seed for f in folders] == list(scenes.scene_seeds(2, 4))
    made = scenes.make_scene(scenes.scene_seeds(1, 4)[0], 3, 28)
    assert digest(scenes.load_scene(folders[0])) == digest(made)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * 28, 2 * 28)


def test_evaluation_seeds_are_held_out() -> None:
    assert min(scenes.scene_seeds(64, 0)) == scenes.HELD_OUT
    assert min(scenes.scene_seeds(3, 7)) >= scenes.HELD_OUT


def test_a_seed_below_0_would_be_of_the_training(tmp_path: Path) -> None:
    for call in (
        lambda: scenes.scene_seeds(1, -1),
        lambda: scenes.write_dataset(tmp_path / "out", 1, seed=-1),
    ):
        with pytest.raises(UserError, match="seed must be 0 or more, got -1"):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"frames": 0}, "frames must be 1 to 8, got 0"),
        ({"frames": 9}, "frames must be 1 to 8, got 9"),
        ({"size": 13}, "size must be 14 to 4096 pixels, got 13x13"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_bad_scenes_are_told_in_one_line(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        scenes.make_scene(**{"seed": 0, **arguments})


def test_bad_folders_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="count must be 1 to 100000, got 0"):
        scenes.write_dataset(tmp_path, count=0)
    with pytest.raises(UserError, match="no readable scene"):
        scenes.load_scene(tmp_path / "nowhere")
    folder = scenes.save_scene(scenes.make_scene(0, 1, 14), tmp_path / "cut")
    truth = folder / "truth.npz"
    truth.write_bytes(truth.read_bytes()[:100])
    with pytest.raises(UserError, match="no readable scene"):
        scenes.load_scene(folder)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write scenes"):
        scenes.write_dataset(blocked, count=1, frames=1, size=14)


def test_the_renderer_refuses_what_it_cannot_draw() -> None:
    tables, _, _ = scenes._tables(scenes._Room(scenes._Dice(0)), 1, (14, 14))
    out = (
        np.zeros((1, 14, 14, 3), "u1"),
        np.zeros((1, 14, 14), "f4"),
        np.zeros((1, 14, 14, 3), "f4"),
    )
    for row, column, value, words in (
        (0, 0, 1, "shape 0 is a room"),
        (1, 0, 9, "shape 0 is a room"),
        (1, 0, -1, "shape 0 is a room"),
        (1, 0, 4, "shape 0 is a room"),
        (1, 0, np.nan, "shape 0 is a room"),
        (1, 1, 1e6, "texture is not in the table"),
        (1, 1, -1, "texture is not in the table"),
        (1, 14, 0, "half sizes must be positive"),
        (1, 14, np.nan, "half sizes must be positive"),
        (1, 15, -1, "half sizes must be positive"),
        (1, 16, 0, "half sizes must be positive"),
    ):
        shapes = tables[0].copy()
        shapes[row, column] = value
        with pytest.raises(ValueError, match=words):
            _render.render(shapes, *tables[1:], True, 0, 14, *out)
    for column, value, words in (
        (0, -1, "texture is of no known kind"),
        (0, 9, "texture is of no known kind"),
        (1, -1, "seed must be an integer below 2.24"),
        (1, 2**24, "seed must be an integer below 2.24"),
    ):
        textures = tables[1].copy()
        textures[-1, column] = value
        with pytest.raises(ValueError, match=words):
            _render.render(tables[0], textures, *tables[2:], True, 0, 14, *out)
    for count in (0, _render.MAX_SHAPES + 1):
        shapes = np.resize(tables[0], (count, tables[0].shape[1]))
        with pytest.raises(ValueError, match=f"1 to {_render.MAX_SHAPES} shapes"):
            _render.render(shapes, *tables[1:], True, 0, 14, *out)
    with pytest.raises(ValueError, match="rows 0 to 15"):
        _render.render(*tables, True, 0, 15, *out)
    with pytest.raises(TypeError, match="float32"):
        _render.render(tables[0].astype(np.float64), *tables[1:], True, 0, 14, *out)


ROOM, BOX, BALL, CYLINDER = range(4)
X, Y, Z = np.eye(3)


@pytest.mark.parametrize(
    ("kind", "origin", "ray", "depth"),
    [
        (BOX, -3 * Z, Z, 2),  # parallel to four faces
        (BOX, 2 * X - 3 * Z, Z, 8),  # and beside it
        (BOX, 3 * Z, Z, 2),  # behind
        (BOX, 0 * Z, Z, 5),  # from inside
        (BOX, 6 * Z, Z, 0),  # from behind the room's wall
        (BALL, -3 * Z, Z, 2),
        (BALL, X - 3 * Z, Z, 8),  # tangent
        (BALL, 1.25 * X - 1.25 * Z, Z, 6.25),  # inside its bounding rectangle only
        (BALL, 1.5 * Z, Z, 3.5),
        (BALL, -0.5 * Z, Z, 5.5),
        (CYLINDER, -3 * Y, Y, 2),  # along the axis
        (CYLINDER, 1.5 * X - 3 * Y, Y, 8),
        (CYLINDER, -3 * X, X, 2),  # across it
        (CYLINDER, 1.5 * Y - 3 * X, X, 8),
        (CYLINDER, 0.5 * X, X, 4.5),
        (CYLINDER, 1.5 * X, X, 3.5),
        (CYLINDER, 0 * Y, Y, 5),
        (CYLINDER, 1e18 * X - 1.5 * Y, Y + 1e-23 * X, 0),  # the square of its slope is nothing
        (CYLINDER, -2 * X - 2 * Y, X + Y, 1),  # side and cap at their rim
        (CYLINDER, 2 * Y - 2 * X, X - Y, 1),
        # the same, where rounding has the cap before the side
        (
            CYLINDER,
            (2.859234094619751, -3.7313153743743896, 1.8372435569763184),
            (-2.4084184169769287, 2.7313153743743896, -0.94462651014328),
            1,
        ),
    ],
)
def test_a_ray_meets_what_it_should(
    kind: int, origin: np.ndarray, ray: np.ndarray, depth: float
) -> None:
    """Of the unit form in the middle of a room of half size 5, by the ray of the middle pixel."""
    shapes = np.zeros((2, 17), np.float32)
    shapes[:, 2:11] = np.eye(3).ravel()
    shapes[:, 0], shapes[:, 14:] = (ROOM, kind), [[5], [1]]
    across = np.cross(ray, Z if abs(ray[2]) < 0.5 else X) / np.linalg.norm(ray)
    rotation = [*across, *np.cross(ray, across) / np.linalg.norm(ray), *ray]
    camera = np.float32([[*rotation, *origin, 100, 100]])
    tables = (shapes, np.zeros((6, 16), "f4"), np.zeros((1, 8), "f4"), np.ones(3, "f4"), camera)
    rgb, z, points = np.zeros((1, 2, 2, 3), "u1"), np.zeros((1, 2, 2), "f4"), np.zeros((12,), "f4")
    _render.render(*tables, False, 0, 2, rgb, z, points)
    assert z[0, 1, 1] == pytest.approx(depth, abs=1e-6)
    place = np.add(origin, np.multiply(depth, ray))
    assert points[-3:] == pytest.approx(place, rel=1e-6, abs=1e-5)
