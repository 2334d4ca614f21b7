# SPDX-License-Identifier: Apache-2.0
"""The scenes of an evaluation: rendered ones with ground truth, or a user's pictures.

Says how much there is before it is made or read, so that a plan can choose how much to take.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import UserError
from .forecast import Shape
from .measure import Sample

if TYPE_CHECKING:
    from ...data.datasets import PosedScene

DEFAULT_SCENES, DEFAULT_FRAMES = 8, 4
# The most pictures that are considered without --max_images.
MOST_PICTURES = 32
# Pictures of a scene with ground truth: VGGT's protocols take ten.
DEFAULT_POSED = 10


@dataclass(frozen=True)
class Inputs:
    """What could be run: `amount` units (scenes, or pictures of the one scene) of `there`."""

    unit: str
    amount: int
    there: int
    least: int  # fewer are of no use
    shape: Callable[[int], Shape]  # of a forward, when so many units are taken
    scenes: Callable[[int], int]  # how many scenes these units make
    take: Callable[[int], list[Sample]]
    warnings: tuple[str, ...] = ()


def rendered(count: int, frames: int, seed: int, size: int) -> Inputs:
    """Rendered scenes that no training of ours has seen, with exact ground truth."""
    return Inputs(
        "scenes",
        count,
        count,
        1,
        lambda n: Shape(frames, size, size),
        lambda n: n,
        lambda n: [_render(scene_seed, frames, size) for scene_seed in _seeds(n, seed)],
    )


def _seeds(count: int, seed: int) -> Sequence[int]:
    from ...data import scenes

    return list(scenes.scene_seeds(count, seed))


def _render(seed: int, frames: int, size: int) -> Sample:
    from ...data import scenes

    scene = scenes.make_scene(seed, frames, size)
    pixels = torch.from_numpy(np.ascontiguousarray(scene.images))
    images = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    hashes = {f"frame_{i:02d}": _sha256(picture) for i, picture in enumerate(scene.images)}
    return Sample(f"rendered_{seed}", images, hashes, scene)


def _sha256(pixels: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


@dataclass(frozen=True)
class Posed:
    """A folder with ground truth, read but for its pictures."""

    layout: str
    scenes: list[PosedScene]
    warnings: tuple[str, ...]


def posed(source: Sequence[str], layout: str | None) -> Posed | None:
    """What is known of one folder in a layout of vggtquant.data.datasets; None for pictures alone.

    Raises UserError for what is wrong in the folder, and for a layout that it has not.
    """
    if len(source) != 1:
        if layout is not None:
            raise UserError(f"--layout {layout} wants one folder; {len(source)} were given")
        return None
    from ...data import datasets

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = datasets.find(source[0], layout)
    if found is None:
        for warning in caught:  # of what looks like ground truth and is none
            warnings.warn(warning.message, stacklevel=2)
        return None
    words = dict.fromkeys(str(warning.message) for warning in caught)
    return Posed(found[0], found[1], tuple(words))


def posed_scenes(
    there: Posed, mode: str, scenes: int | None, most: int | None, size: int
) -> Inputs:
    """Scenes with ground truth: of each, `most` pictures spread evenly (by default DEFAULT_POSED).

    Raises UserError for a picture that cannot be read.
    """
    from ...data import datasets

    chosen = [
        replace(scene, views=datasets.spread(scene.views, most or DEFAULT_POSED))
        for scene in there.scenes
    ]
    first = _load_posed(chosen[0], mode, size)
    frames, _, height, width = first.images.shape
    return Inputs(
        "scenes",
        min(scenes or len(chosen), len(chosen)),
        len(chosen),
        1,
        lambda n: Shape(frames, height, width),
        lambda n: n,
        lambda n: [first, *(_load_posed(scene, mode, size) for scene in chosen[1:n])],
        there.warnings,
    )


def _load_posed(scene: PosedScene, mode: str, size: int) -> Sample:
    from ...data import datasets, images

    paths = [view.image for view in scene.views]
    frames = images.load_frames(paths, images.check_mode(mode), size=size)
    height, width = frames.images.shape[-2:]
    truth = datasets.truth(scene.views, frames.placements, (height, width))
    return Sample(scene.name, frames.images, images.image_hashes(paths), truth)


def find(source: Sequence[str]) -> list[Path]:
    """The pictures of a folder, or those named; UserError when there is none."""
    from ...data import images

    return images.find_images(source[0]) if len(source) == 1 else [Path(path) for path in source]


def pictures(paths: Sequence[Path], mode: str, most: int | None, size: int) -> Inputs:
    """A user's pictures as one scene, at most `most` of them (by default MOST_PICTURES).

    Raises UserError for a picture that cannot be read.
    """
    from ...data import images

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tensor, used = images.load_images(
            paths, images.check_mode(mode), most or MOST_PICTURES, size=size
        )
    hashes = images.image_hashes(used)
    name = Path(paths[0]).resolve().parent.name

    def take(n: int) -> list[Sample]:
        return [Sample(name, tensor[:n], dict(list(hashes.items())[:n]))]

    height, width = tensor.shape[-2:]
    return Inputs(
        "pictures",
        len(used),
        len(paths),
        2,  # one picture is no multi-view input
        lambda n: Shape(n, height, width),
        lambda n: 1,
        take,
        tuple(str(warning.message) for warning in caught),
    )
