# SPDX-License-Identifier: Apache-2.0
"""The scenes of an evaluation: rendered ones with ground truth, a user's pictures, or given arrays.

Says how much there is before it is made or read, so that a plan can choose how much to take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...adapter import PATCH
from ...errors import UserError
from .bench import Sample
from .forecast import Shape

if TYPE_CHECKING:
    from ...data.datasets import PosedScene

DEFAULT_SCENES, DEFAULT_FRAMES = 8, 4
# The most pictures that are considered without --max_images.
MOST_PICTURES = 32
# Pictures of a scene that is one of several: VGGT's protocols take ten.
DEFAULT_POSED = 10


@dataclass(frozen=True)
class Inputs:
    """What could be run: `amount` units (scenes, or pictures of the one scene) of `there`."""

    description: str
    unit: str
    amount: int
    there: int
    least: int  # fewer are of no use
    shape: Callable[[int], Shape]  # of a forward, when so many units are taken
    scenes: Callable[[int], int]  # how many scenes these units make
    take: Callable[[int], list[Sample]]
    layout: str | None = None
    synthetic: bool = False
    names: tuple[str, ...] = ()
    """Of all scenes or pictures that there are: the same wherever a folder is mounted."""

    @property
    def names_sha256(self) -> str:
        """Of the names, for identity."""
        return hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape")).hexdigest()


# ---- rendered, or given as arrays ----------------------------------------------------------------


def rendered(count: int, frames: int, seed: int, size: int) -> Inputs:
    """Rendered scenes that no training of ours has seen, with exact ground truth."""
    from ...data import scenes

    seeds = scenes.scene_seeds(count, seed)
    return Inputs(
        "rendered scenes of vggtquant",
        "scenes",
        count,
        count,
        1,
        lambda n: Shape(frames, size, size),
        lambda n: n,
        lambda n: [_rendered(scenes.make_scene(number, frames, size)) for number in seeds[:n]],
        synthetic=True,
    )


def _rendered(scene: Any) -> Sample:
    pixels = torch.from_numpy(np.ascontiguousarray(scene.images))
    images = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    return Sample(f"rendered_{scene.seed}", images, _frame_hashes(scene.images), scene)


def _frame_hashes(frames: Iterable[Any]) -> dict[str, str]:
    return {f"frame_{i:02d}": _sha256(np.asarray(frame)) for i, frame in enumerate(frames)}


def _sha256(pixels: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def given(items: Iterable[Any]) -> Inputs:
    """Scenes as they come: of vggtquant.data.scenes, or pairs of pictures and ground truth.

    Pictures are (S,3,H,W) or (1,S,3,H,W) in [0, 1]. Ground truth is None, an object or a mapping
    with extrinsics (S,3,4), and depth (S,H,W), world_points (S,H,W,3) and mask (S,H,W) where known.
    UserError for anything else, with its number.
    """
    samples = [_given(number, item) for number, item in enumerate(items)]
    if not samples:
        raise UserError("the data hold no scene; at least one is needed")

    def shape(_: int) -> Shape:
        frames, _, height, width = samples[0].images.shape
        return Shape(frames, height, width)

    count = len(samples)
    return Inputs(
        "scenes given in Python",
        "scenes",
        count,
        count,
        count,
        shape,
        lambda n: n,
        lambda n: samples[:n],
        names=tuple(sample.name for sample in samples),
    )


def _given(number: int, item: Any) -> Sample:
    if hasattr(item, "seed") and hasattr(item, "images"):
        return _rendered(item)
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(
            f"scene {number} of the data is {type(item).__name__}; wanted (pictures, ground truth "
            "or None)"
        )
    images, truth = item
    tensor = images if isinstance(images, torch.Tensor) else torch.as_tensor(images, device="cpu")
    tensor = tensor[0] if tensor.dim() == 5 and len(tensor) == 1 else tensor
    if tensor.dim() != 4 or tensor.shape[1] != 3 or not tensor.is_floating_point():
        raise UserError(
            f"the pictures of scene {number} are {tensor.dtype} {tuple(tensor.shape)}; wanted "
            "floats in [0, 1] of shape (frames, 3, height, width)"
        )
    if not tensor.numel() or tensor.is_meta:
        what = "have no values (meta)" if tensor.is_meta else f"are empty: {tuple(tensor.shape)}"
        raise UserError(f"the pictures of scene {number} {what}; wanted at least one picture")
    low, high = float(tensor.min()), float(tensor.max())
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"the pictures of scene {number} go from {low:g} to {high:g}; wanted 0 to 1"
        )
    tensor = tensor.detach().cpu().float().contiguous()
    return Sample(f"scene_{number}", tensor, _frame_hashes(tensor.numpy()), _truth(number, truth))


def _truth(number: int, truth: Any) -> Any:
    if truth is None:
        return None
    if isinstance(truth, Mapping):
        truth = SimpleNamespace(**truth)
    known = {name: getattr(truth, name, None) for name in ("extrinsics", "depth", "world_points")}
    if all(value is None for value in known.values()):
        raise UserError(
            f"the ground truth of scene {number} has none of {', '.join(known)}; wanted None, or "
            "one of them"
        )
    arrays = {k: None if v is None else np.asarray(v, np.float64) for k, v in known.items()}
    depth, points = arrays.get("depth"), arrays.get("world_points")
    mask = getattr(truth, "mask", None)
    if mask is None and depth is not None:
        mask = np.isfinite(depth) & (depth > 0)
    elif mask is None and points is not None:
        mask = np.isfinite(points).all(axis=-1)
    return SimpleNamespace(**arrays, mask=mask)


# ---- folders with ground truth -------------------------------------------------------------------


def posed(
    source: Sequence[str],
    layout: str | None,
    mode: str,
    scenes: int | None,
    most: int | None,
    size: int,
    patch: int = PATCH,
) -> Inputs | None:
    """One folder in a layout of vggtquant.data.datasets; None for pictures alone.

    Of each scene `most` pictures are taken, spread evenly (by default DEFAULT_POSED). Raises
    UserError for what is wrong in the folder, a layout that it has not, a picture that cannot be
    read.
    """
    if len(source) != 1:
        if layout is not None:
            raise UserError(f"--layout {layout} wants one folder; {len(source)} were given")
        return None
    from ...data import datasets

    found = datasets.find(source[0], layout)
    if found is None:
        return None
    chosen = [
        replace(scene, views=datasets.spread(scene.views, most or DEFAULT_POSED))
        for scene in found[1]
    ]
    return _several(
        f"scenes with ground truth ({found[0]})",
        [lambda scene=scene: _load_posed(scene, mode, size, patch) for scene in chosen],  # type: ignore[misc]
        scenes,
        names=[scene.name for scene in found[1]],
        layout=found[0],
    )


def _several(
    description: str,
    loads: Sequence[Callable[[], Sample]],
    scenes: int | None,
    *,
    names: Iterable[str],
    layout: str | None = None,
    all_of_them: bool = False,
) -> Inputs:
    """Several scenes, of which the first is loaded now, to know its size."""
    first = loads[0]()
    frames, _, height, width = first.images.shape
    amount = min(scenes or len(loads), len(loads))
    return Inputs(
        description,
        "scenes",
        amount,
        len(loads),
        amount if all_of_them else 1,
        lambda n: Shape(frames, height, width),
        lambda n: n,
        lambda n: [first, *(load() for load in loads[1:n])],
        layout=layout,
        names=tuple(names),
    )


def _load_posed(scene: PosedScene, mode: str, size: int, patch: int) -> Sample:
    from ...data import datasets, images, picture

    paths = [view.image for view in scene.views]
    frames = images.load_frames(paths, images.check_mode(mode), size=size, patch=patch)
    height, width = frames.images.shape[-2:]
    truth = datasets.truth(scene.views, frames.placements, (height, width))
    return Sample(picture.shown(scene.name), frames.images, images.image_hashes(paths), truth)


# ---- pictures alone ------------------------------------------------------------------------------


def pictures(
    source: Sequence[str],
    mode: str,
    most: int | None,
    size: int,
    *,
    scenes: int | None = None,
    groups: int | None = None,
    patch: int = PATCH,
) -> Inputs:
    """A user's pictures: one scene, a scene for each folder in a folder, or overlapping groups.

    Of one scene at most `most` pictures are taken (by default MOST_PICTURES), of each of several
    `most` spread evenly (by default DEFAULT_POSED). Raises UserError for a picture that cannot be
    read, and for fewer pictures than groups.
    """
    folders = _folders(source)
    if folders:
        if groups is not None:
            raise UserError(f"--groups {groups} wants one folder of pictures; {source[0]} has some")
        return _several(
            "pictures, a folder a scene",
            [
                lambda name=name, paths=paths: _load(  # type: ignore[misc]
                    name, _spread(paths, most or DEFAULT_POSED), mode, size, patch
                )
                for name, paths in folders.items()
            ],
            scenes,
            names=folders,
        )
    paths = _paths(source)
    name = paths[0].resolve().parent.name
    if groups is not None:
        return _groups(name, paths[: most or MOST_PICTURES], groups, mode, size, patch)
    whole = _load(name, paths[: most or MOST_PICTURES], mode, size, patch)
    height, width = whole.images.shape[-2:]

    def take(n: int) -> list[Sample]:
        hashes = dict(list(whole.sha256.items())[:n])
        return [Sample(whole.name, whole.images[:n], hashes)]

    return Inputs(
        "pictures",
        "pictures",
        len(whole.images),
        len(paths),
        2,  # one picture is no multi-view input
        lambda n: Shape(n, height, width),
        lambda n: 1,
        take,
        names=tuple(path.name for path in paths),
    )


def _paths(source: Sequence[str]) -> list[Path]:
    """The pictures of a folder, or those named; UserError when there is none."""
    from ...data import images

    return images.find_images(source[0]) if len(source) == 1 else [Path(path) for path in source]


def _folders(source: Sequence[str]) -> dict[str, list[Path]]:
    """The pictures of each folder in a folder that has none itself; {} for anything else."""
    from ...data import images

    if len(source) != 1 or images.pictures_in(Path(source[0])):
        return {}
    below = sorted(path for path in Path(source[0]).glob("*/") if path.is_dir())
    found = {path.name: images.pictures_in(path) for path in below}
    usual = found.keys() & {"images", "dslr_images_undistorted"}  # of a scene, not scenes
    return {} if usual else {name: paths for name, paths in found.items() if paths}


def _groups(
    name: str, paths: Sequence[Path], groups: int, mode: str, size: int, patch: int
) -> Inputs:
    """Groups of neighbours, each of which shares half of its pictures with the next."""
    chosen = overlapping(len(paths), groups)
    return _several(
        f"pictures in {groups} overlapping groups",
        [
            lambda i=i, part=part: _load(  # type: ignore[misc]
                f"{name}_{i}", [paths[at] for at in part], mode, size, patch
            )
            for i, part in enumerate(chosen, 1)
        ],
        None,
        names=[path.name for path in paths],
        all_of_them=True,
    )


def overlapping(count: int, groups: int) -> list[range]:
    """Groups of 0 .. count-1, as large as each other, that share half with the next one.

    Raises UserError for groups of less than two pictures.

    >>> overlapping(12, 5)
    [range(0, 4), range(2, 6), range(4, 8), range(6, 10), range(8, 12)]
    """
    size = -(-2 * count // (groups + 1)) if groups > 1 else count
    if groups < 1 or size < 2 or (groups > 1 and count - size < groups - 1):
        raise UserError(
            f"--groups is {groups}; {count} pictures make 1 to {max(1, count - 1)} different "
            "groups of two or more"
        )
    last = count - size
    starts = [round(i * last / max(1, groups - 1)) for i in range(groups)]
    return [range(start, start + size) for start in starts]


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    if len(paths) <= most:
        return list(paths)
    steps = max(1, most - 1)
    return [paths[round(i * (len(paths) - 1) / steps)] for i in range(most)]


def _load(name: str, paths: Sequence[Path], mode: str, size: int, patch: int) -> Sample:
    from ...data import images, picture

    tensor, used = images.load_images(paths, images.check_mode(mode), size=size, patch=patch)
    return Sample(picture.shown(name), tensor, images.image_hashes(used))
