# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms with exact depth, points and cameras, the same bits from the same seed everywhere.

Composition is plain Python float arithmetic (add, multiply, divide, square root: exact on every
machine, no libm, no BLAS) and the pictures come from csrc/render, so a seed names a scene for good.
Conventions are VGGT's: extrinsics are OpenCV camera-from-world with the first camera as world,
pixel (u, v) looks along ((u - W/2) / fx, (v - H/2) / fy, 1), and lengths are divided by the mean
distance of all points from the first camera.

Seeds from HELD_OUT on are for evaluation and are never trained on; training draws below it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggtquant import _render
from vggtquant.data import picture
from vggtquant.errors import UserError

HELD_OUT = 1_000_000_000
MAX_FRAMES = 8
PATCH = 14  # the smallest picture that is of use to a VGGT-shaped model

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]  # rows


@dataclass(frozen=True)
class Scene:
    """S pictures of one room and everything that is true about them (see the module's text)."""

    images: NDArray[np.uint8]  # (S, H, W, 3), sRGB-like
    depth: NDArray[np.float32]  # (S, H, W), z in the frame's own camera
    world_points: NDArray[np.float32]  # (S, H, W, 3), in the first camera
    extrinsics: NDArray[np.float32]  # (S, 3, 4), camera from world
    intrinsics: NDArray[np.float32]  # (S, 3, 3), pixels
    mask: NDArray[np.bool_]  # (S, H, W), where depth is known: everywhere, the rooms are closed
    seed: int


# ---- vectors and rotations, three floats at a time


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _add(a: Vector, b: Vector, scale: float = 1.0) -> Vector:
    return (a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2])


def _cross(a: Vector, b: Vector) -> Vector:
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def _unit(a: Vector) -> Vector:
    length = math.sqrt(_dot(a, a))
    return (a[0] / length, a[1] / length, a[2] / length)


def _apply(m: Matrix, v: Vector) -> Vector:
    return (_dot(m[0], v), _dot(m[1], v), _dot(m[2], v))


def _transposed(m: Matrix) -> Matrix:
    (a, b, c), (d, e, f), (g, h, i) = m
    return ((a, d, g), (b, e, h), (c, f, i))


def _product(a: Matrix, b: Matrix) -> Matrix:
    columns = _transposed(b)
    first, second, third = (
        (_dot(row, columns[0]), _dot(row, columns[1]), _dot(row, columns[2])) for row in a
    )
    return (first, second, third)


def _rotation(w: float, x: float, y: float, z: float) -> Matrix:
    """The rotation of a quaternion of any length but 0."""
    s = 2.0 / (w * w + x * x + y * y + z * z)
    return (
        (1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)),
        (s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x)),
        (s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y)),
    )


class _Dice:
    """Random draws from Random.random() alone, whose sequence Python keeps for ever."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def below(self, n: int) -> int:
        return int(self._random() * n)

    def chance(self, p: float) -> bool:
        return self._random() < p

    def heading(self) -> Vector:
        """A horizontal direction."""
        while True:
            x, z = self.between(-1, 1), self.between(-1, 1)
            if 0.01 < x * x + z * z < 1:
                return _unit((x, 0.0, z))

    def yaw(self) -> Matrix:
        h = self.heading()
        return ((h[0], 0.0, -h[2]), (0.0, 1.0, 0.0), (h[2], 0.0, h[0]))

    def tilt(self, amount: float) -> Matrix:
        """A rotation by at most about 2 * amount radians around a random axis."""
        return _rotation(
            1.0,
            self.between(-amount, amount),
            self.between(-amount, amount),
            self.between(-amount, amount),
        )


# ---- composition: a room is lists of table rows for the renderer (csrc/render/render.h)

_ROOM, _BOX, _ELLIPSOID, _CYLINDER = range(4)
_FLAT, _CLOUD, _MARBLE, _CHECKER, _STRIPES, _BRICKS, _CELLS, _DOTS, _GLYPHS = range(9)
_WALL_TEXTURES = (_CLOUD, _MARBLE, _CHECKER, _STRIPES, _BRICKS, _CELLS, _DOTS, _GLYPHS, _CLOUD)
_THING_TEXTURES = (_FLAT, *_WALL_TEXTURES, _CELLS)


@dataclass
class _Shape:
    kind: int
    texture: int
    axes: Matrix  # rows are the shape's own axes in the room
    centre: Vector
    half: Vector


@dataclass
class _Camera:
    axes: Matrix  # camera from room
    centre: Vector
    focal: float  # in half picture widths


class _Room:
    """Draws a room: size, cameras, then things that stand clear of the cameras."""

    def __init__(self, dice: _Dice) -> None:
        self.dice = dice
        self.shapes: list[_Shape] = []
        self.textures: list[list[float]] = []
        self.lights: list[list[float]] = []
        self.half = (dice.between(1.8, 4.0), dice.between(1.2, 1.8), dice.between(1.8, 4.0))
        identity: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        self.shapes.append(_Shape(_ROOM, 0, identity, (0.0, 0.0, 0.0), self.half))
        for _ in range(6):
            self.texture(_WALL_TEXTURES, 0.25, 0.9)
        self.gaze = dice.heading()
        reach = min(
            self.half[i] / abs(self.gaze[i]) if abs(self.gaze[i]) > 1e-6 else 1e6 for i in (0, 2)
        )
        self.target = _add((0.0, 0.0, 0.0), self.gaze, reach * dice.between(0.3, 0.7))
        self.stand = _add((0.0, 0.0, 0.0), self.gaze, -reach * dice.between(0.35, 0.8))
        self.cameras = self._cameras()
        for _ in range(5 + dice.below(8)):
            _THINGS[dice.below(len(_THINGS))](self)
        self._light()

    # -- looks

    def colours(self) -> list[float]:
        """Three linear colours, the first two of clearly different brightness."""
        dice = self.dice
        dark, bright = dice.between(0.03, 0.3), dice.between(0.45, 0.95)
        out: list[float] = []
        order = (dark, bright) if dice.chance(0.5) else (bright, dark)
        for level in (*order, dice.between(0.05, 0.9)):
            tint = dice.between(0.0, 0.9)
            for _ in range(3):
                out.append(
                    level * (1 - tint + 2 * tint * dice.between(0.0, 1.0)) / (1 + 0.3 * tint)
                )
        return out

    def texture(self, kinds: Sequence[int], smallest: float, largest: float) -> int:
        dice = self.dice
        kind = kinds[dice.below(len(kinds))]
        size = dice.between(smallest, largest)
        if kind == _GLYPHS:
            size *= 1.5  # a glyph is six cells across
        turn = dice.heading() if dice.chance(0.4) else (1.0, 0.0, 0.0)
        aspect = dice.between(0.6, 1.6)
        row = [float(kind), float(dice.below(1 << 24)), turn[0], turn[2], 1 / size, aspect / size]
        row += self.colours()
        row.append(dice.between(0.05, 0.35))
        self.textures.append(row)
        return len(self.textures) - 1

    def _light(self) -> None:
        dice = self.dice
        warm = dice.between(0.85, 1.15)
        self.ambient = (0.3 * warm, 0.3, 0.3 / warm)
        for _ in range(1 + dice.below(2)):
            towards = _unit((dice.between(-1, 1), dice.between(-1, -0.1), dice.between(-1, 1)))
            strength = dice.between(0.2, 0.6)
            tint = dice.between(0.9, 1.1)
            self.lights.append([0.0, *towards, strength * tint, strength, strength / tint, 0.0])
        for _ in range(1 + dice.below(2)):
            place = self.inside(0.9, -0.95, -0.2)
            strength = dice.between(0.4, 1.0)
            tint = dice.between(0.85, 1.15)
            self.lights.append(
                [1.0, *place, strength * tint, strength, strength / tint, dice.between(0.02, 0.15)]
            )

    # -- places

    def inside(self, part: float, low: float, high: float) -> Vector:
        """A random place in the middle of the room, low..high of the half height up or down."""
        dice, half = self.dice, self.half
        return (
            half[0] * part * dice.between(-1, 1),
            half[1] * dice.between(low, high),
            half[2] * part * dice.between(-1, 1),
        )

    def clear(self, centre: Vector, radius: float) -> bool:
        """Whether a ball stays half a metre away from every camera."""
        for camera in self.cameras:
            apart = _add(centre, camera.centre, -1.0)
            if _dot(apart, apart) < (radius + 0.5) ** 2:
                return False
        return True

    def place(self, radius: float) -> Vector | None:
        """A clear place, mostly in the half of the room that the cameras see."""
        for _ in range(20):
            spot = self.inside(0.95, -0.8, 0.9)
            seen = _dot(_add(spot, self.stand, -1.0), self.gaze) > 0.8
            if (seen or self.dice.chance(0.1)) and self.clear(spot, radius):
                return spot
        return None

    def put(self, kind: int, axes: Matrix, centre: Vector, half: Vector, texture: int = -1) -> None:
        if texture < 0:
            texture = self.texture(_THING_TEXTURES, 0.1, 0.4)
        self.shapes.append(_Shape(kind, texture, axes, centre, half))

    # -- cameras

    def _cameras(self) -> list[_Camera]:
        """Eight cameras that look at one part of the room, no two more than 30 degrees apart."""
        dice = self.dice
        focal = 1 / dice.between(0.5, 0.8)  # a field of view of 53 to 77 degrees
        baseline = dice.between(0.5, 1.3)
        side = (self.gaze[2], 0.0, -self.gaze[0])
        path = dice.chance(0.5)  # a walk with steady steps, or scattered places
        first_step = dice.between(-1, 1)
        cameras: list[_Camera] = []
        tries = 0
        while len(cameras) < MAX_FRAMES:
            n, tries = len(cameras), tries + 1
            if tries % 200 == 0:  # the first cameras leave no room for the others: start again
                cameras.clear()
                continue
            across = first_step + (n * 0.5 if first_step < 0 else -n * 0.5)
            across = across if path and abs(across) <= 1.2 else dice.between(-1, 1)
            centre = _add(self.stand, side, baseline * across + dice.between(-0.1, 0.1))
            centre = _add(centre, self.gaze, baseline * dice.between(-0.6, 0.6))
            centre = _add(centre, (0.0, 1.0, 0.0), dice.between(-0.5, 0.5) * baseline)
            centre = (
                max(-self.half[0] + 0.3, min(self.half[0] - 0.3, centre[0])),
                max(-self.half[1] + 0.3, min(self.half[1] - 0.3, centre[1])),
                max(-self.half[2] + 0.3, min(self.half[2] - 0.3, centre[2])),
            )
            aim = _add(
                self.target,
                (dice.between(-0.6, 0.6), dice.between(-0.3, 0.6), dice.between(-0.6, 0.6)),
            )
            ahead = _unit(_add(aim, centre, -1.0))
            right = _unit(_cross((dice.between(-0.15, 0.15), 1.0, 0.0), ahead))
            axes: Matrix = (right, _cross(ahead, right), ahead)
            if all(self._near(axes, centre, other) for other in cameras):
                cameras.append(_Camera(axes, centre, focal))
        return cameras

    @staticmethod
    def _near(axes: Matrix, centre: Vector, other: _Camera) -> bool:
        """Whether two cameras differ by 30 degrees at most and by 20 cm at least."""
        trace = sum(_dot(a, b) for a, b in zip(axes, other.axes, strict=True))
        apart = _add(centre, other.centre, -1.0)
        return trace > 1 + 2 * 0.8660254 and _dot(apart, apart) > 0.2**2


# ---- things: each puts one or a few shapes into the room


def _standing_box(room: _Room) -> None:
    dice = room.dice
    half = (dice.between(0.12, 0.55), dice.between(0.12, 0.7), dice.between(0.12, 0.55))
    spot = room.place(max(half) * 1.5)
    if spot is None:
        return
    floor = room.half[1]
    axes = dice.yaw()
    room.put(_BOX, axes, (spot[0], floor - half[1], spot[2]), half)
    if dice.chance(0.4) and 2 * half[1] < room.half[1]:  # another one on top
        small = (half[0] * 0.7, dice.between(0.08, 0.3), half[2] * 0.7)
        top = (spot[0], floor - 2 * half[1] - small[1], spot[2])
        if room.clear(top, max(small)):
            room.put((_BOX, _CYLINDER, _ELLIPSOID)[dice.below(3)], dice.yaw(), top, small)


def _floating_box(room: _Room) -> None:
    dice = room.dice
    half = (dice.between(0.1, 0.4), dice.between(0.1, 0.4), dice.between(0.1, 0.4))
    if (spot := room.place(max(half) * 1.5)) is not None:
        room.put(_BOX, dice.tilt(1.0), spot, half)


def _ball(room: _Room) -> None:
    dice = room.dice
    radius = dice.between(0.12, 0.55)
    if (spot := room.place(radius)) is not None:
        if dice.chance(0.6):
            spot = (spot[0], room.half[1] - radius, spot[2])
        squash = dice.between(0.6, 1.0) if dice.chance(0.3) else 1.0
        room.put(_ELLIPSOID, dice.tilt(1.0), spot, (radius, radius * squash, radius))


def _drum(room: _Room) -> None:
    dice = room.dice
    radius, half = dice.between(0.1, 0.45), dice.between(0.12, 0.6)
    if (spot := room.place(radius + half)) is None:
        return
    if dice.chance(0.7):
        room.put(
            _CYLINDER, dice.yaw(), (spot[0], room.half[1] - half, spot[2]), (radius, half, radius)
        )
    else:
        room.put(_CYLINDER, dice.tilt(1.0), spot, (radius, half, radius))


def _pole(room: _Room) -> None:
    dice = room.dice
    radius = dice.between(0.03, 0.12)
    spot = room.place(0.3)
    if spot is None or not room.clear((spot[0], 0.0, spot[2]), 0.3):
        return
    kind = _CYLINDER if dice.chance(0.6) else _BOX
    centre = (spot[0], 0.0, spot[2])
    room.put(kind, dice.yaw(), centre, (radius, room.half[1], radius))


def _beam(room: _Room) -> None:
    """A thin stick at any angle."""
    dice = room.dice
    half = (dice.between(0.02, 0.06), dice.between(0.5, 1.2), dice.between(0.02, 0.06))
    if (spot := room.place(half[1])) is not None:
        room.put(_BOX if dice.chance(0.5) else _CYLINDER, dice.tilt(1.2), spot, half)


def _table(room: _Room) -> None:
    dice = room.dice
    x, z, height = dice.between(0.3, 0.7), dice.between(0.25, 0.5), dice.between(0.45, 0.9)
    spot = room.place(0.9)
    if spot is None or not room.clear((spot[0], room.half[1] - height, spot[2]), 0.8):
        return
    axes = dice.yaw()
    floor = room.half[1]
    room.put(_BOX, axes, (spot[0], floor - height, spot[2]), (x, 0.03, z))
    legs = room.texture(_THING_TEXTURES, 0.1, 0.4)
    for i in (-1.0, 1.0):
        for j in (-1.0, 1.0):
            foot: Vector = (spot[0], floor - 0.5 * height, spot[2])
            foot = _add(_add(foot, axes[0], i * (x - 0.05)), axes[2], j * (z - 0.05))
            room.put(_BOX, axes, foot, (0.035, 0.5 * height, 0.035), legs)


def _picture(room: _Room) -> None:
    """A flat picture on the wall that the cameras look at."""
    dice = room.dice
    axis = 0 if abs(room.gaze[0]) * room.half[2] > abs(room.gaze[2]) * room.half[0] else 2
    if dice.chance(0.3):
        axis = 2 - axis
    wall = room.half[axis] if room.gaze[axis] > 0 else -room.half[axis]
    width, height = dice.between(0.2, 0.6), dice.between(0.2, 0.6)
    centre = list(room.inside(0.8, -0.6, 0.4))
    centre[axis] = wall
    half = (0.04, height, width) if axis == 0 else (width, height, 0.04)
    texture = room.texture((_GLYPHS, _CELLS, _CHECKER, _DOTS), 0.12, 0.35)
    place = (centre[0], centre[1], centre[2])
    if room.clear(place, 0.4):
        room.put(_BOX, room.shapes[0].axes, place, half, texture)


_THINGS: tuple[Callable[[_Room], None], ...] = (
    _standing_box,
    _standing_box,
    _floating_box,
    _ball,
    _ball,
    _drum,
    _drum,
    _pole,
    _beam,
    _table,
    _picture,
    _picture,
)


# ---- from a room to tables in the first camera's coordinates, to pictures


def _tables(
    room: _Room, frames: int, size: tuple[int, int]
) -> tuple[list[NDArray[np.float32]], list[tuple[Matrix, Vector]], float]:
    origin = room.cameras[0]
    back = _transposed(origin.axes)

    def moved(place: Vector) -> Vector:
        return _apply(origin.axes, _add(place, origin.centre, -1.0))

    shapes = []
    for s in room.shapes:
        axes = _product(s.axes, back)
        shapes.append([s.kind, s.texture, *axes[0], *axes[1], *axes[2], *moved(s.centre), *s.half])
    lights = []
    for kind, x, y, z, *rest in room.lights:
        place = moved((x, y, z)) if kind else _apply(origin.axes, (x, y, z))
        lights.append([kind, *place, *rest])
    poses: list[tuple[Matrix, Vector]] = []
    for camera in room.cameras[:frames]:
        poses.append((_product(camera.axes, back), moved(camera.centre)))
    poses[0] = (((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0))
    focal = origin.focal * 0.5 * max(size)
    cameras = [[*axes[0], *axes[1], *axes[2], *centre, focal, focal] for axes, centre in poses]
    tables = (shapes, room.textures, lights, room.ambient, cameras)
    return [np.array(t, dtype=np.float32) for t in tables], poses, focal


def make_scene(
    seed: int, frames: int = 4, size: int | tuple[int, int] = 112, *, antialias: bool = True
) -> Scene:
    """Return the scene of a seed, with 1 to 8 frames of size (H, W) or size x size pixels.

    The frames of a shorter scene are the first ones of the longer scene of the same seed, up to
    the common scale.  Raises UserError for a frame count or size out of range.

    >>> make_scene(7, frames=2).images.shape
    (2, 112, 112, 3)
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not 1 <= frames <= MAX_FRAMES:
        raise UserError(f"frames must be 1 to {MAX_FRAMES}, got {frames}")
    if min(height, width) < PATCH or max(height, width) > 4096:
        raise UserError(f"size must be {PATCH} to 4096 pixels, got {height}x{width}")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}")
    tables, poses, focal = _tables(_Room(_Dice(seed)), frames, (height, width))
    images = np.empty((frames, height, width, 3), np.uint8)
    depth = np.empty((frames, height, width), np.float32)
    points = np.empty((frames, height, width, 3), np.float32)
    shapes, textures, lights, ambient, cameras = tables
    _render.render(
        shapes,
        textures,
        lights,
        ambient,
        cameras,
        antialias,
        0,
        frames * height,
        images,
        depth,
        points,
    )

    scale = _render.mean_norm(points)
    depth /= np.float32(scale)
    points /= np.float32(scale)
    extrinsics = np.empty((frames, 3, 4), np.float32)
    for out, (axes, centre) in zip(extrinsics, poses, strict=True):
        out[:, :3] = axes
        out[:, 3] = [-x / scale for x in _apply(axes, centre)]
    intrinsics = np.zeros((frames, 3, 3), np.float32)
    intrinsics[:] = [[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]]
    return Scene(images, depth, points, extrinsics, intrinsics, depth > 0, seed)


# ---- on disk: a folder a scene, PNG pictures and one npz


def save_scene(scene: Scene, folder: str | Path) -> Path:
    """Write frame_00.png ... and truth.npz into a folder, made if missing, and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(scene.images):
        Image.fromarray(image).save(folder / f"frame_{i:02d}.png")
    np.savez_compressed(
        folder / "truth.npz",
        depth=scene.depth,
        world_points=scene.world_points,
        extrinsics=scene.extrinsics,
        intrinsics=scene.intrinsics,
        mask=scene.mask,
        seed=scene.seed,
    )
    return folder


def load_scene(folder: str | Path) -> Scene:
    """Read a folder that save_scene wrote; raises UserError when a part of it is unreadable."""
    folder = Path(folder)
    try:
        with open(folder / "truth.npz", "rb") as file, np.load(file) as truth:
            parts = {name: truth[name] for name in truth.files}
        images = [
            np.asarray(picture.rgb(folder / f"frame_{i:02d}.png")[0])
            for i in range(len(parts["depth"]))
        ]
        return Scene(np.stack(images), seed=int(parts.pop("seed")), **parts)
    except Exception as error:  # of zipfile, zlib and NumPy, which raise what they like
        raise UserError(f"{folder} holds no readable scene ({error})") from error


def contact_sheet(scenes: Sequence[Scene]) -> Image.Image:
    """A picture with one row a scene: its frames, then its first frame's depth (near is bright)."""
    rows = []
    for scene in scenes:
        near, far = float(scene.depth.min()), float(scene.depth.max())
        shown = (far - scene.depth[0]) / max(far - near, 1e-6) * 255
        grey = np.repeat(shown.astype(np.uint8)[..., None], 3, axis=2)
        rows.append(np.concatenate([*scene.images, grey], axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0))


MOST_SCENES = 100_000


def scene_seeds(count: int, seed: int) -> range:
    """Seeds of an evaluation set: count of them, held out of training, from a small number.

    UserError for a number below 0, which would name scenes of the training, and for more scenes
    than lie between two small numbers.
    """
    if not 1 <= count <= MOST_SCENES:
        raise UserError(f"count must be 1 to {MOST_SCENES}, got {count}")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}")
    start = seed if seed >= HELD_OUT else HELD_OUT + seed * 1_000_000
    return range(start, start + count)


def write_dataset(
    out: str | Path,
    count: int = 8,
    frames: int = 4,
    seed: int = 0,
    *,
    size: int | tuple[int, int] = 112,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write count held-out scenes as folders under out with contact_sheet.png; return the folders.

    Raises UserError when count is below 1 or out cannot be written.
    """
    out = Path(out)
    folders: list[Path] = []
    shown: list[Scene] = []
    try:
        for i, scene_seed in enumerate(scene_seeds(count, seed)):
            scene = make_scene(scene_seed, frames, size)
            folders.append(save_scene(scene, out / f"scene_{scene_seed}"))
            shown += [scene] if len(shown) < 12 else []
            if progress is not None:
                progress(i + 1, count)
        contact_sheet(shown).save(out / "contact_sheet.png")
    except OSError as error:
        raise UserError(f"cannot write scenes to {out}: {error.strerror or error}") from error
    return folders
