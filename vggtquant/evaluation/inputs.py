# SPDX-License-Identifier: Apache-2.0
"""The scenes of an evaluation: rendered ones with ground truth, or a user's pictures.

Says how much there is before it is made or read, so that a plan can choose how much to take.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .forecast import Shape
from .measure import Sample

DEFAULT_SCENES, DEFAULT_FRAMES = 8, 4
# The most pictures that are considered without --max_images.
MOST_PICTURES = 32


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
    from .. import scenes

    return list(scenes.scene_seeds(count, seed))


def _render(seed: int, frames: int, size: int) -> Sample:
    from .. import scenes

    scene = scenes.make_scene(seed, frames, size)
    pixels = torch.from_numpy(np.ascontiguousarray(scene.images))
    images = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    hashes = {f"frame_{i:02d}": _sha256(picture) for i, picture in enumerate(scene.images)}
    return Sample(f"rendered_{seed}", images, hashes, scene)


def _sha256(pixels: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def find(source: Sequence[str]) -> list[Path]:
    """The pictures of a folder, or those named; UserError when there is none."""
    from .. import images

    return images.find_images(source[0]) if len(source) == 1 else [Path(path) for path in source]


def pictures(paths: Sequence[Path], mode: str, most: int | None, size: int) -> Inputs:
    """A user's pictures as one scene, at most `most` of them (by default MOST_PICTURES).

    Raises UserError for a picture that cannot be read.
    """
    from .. import images

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tensor, used = images.load_images(
            paths, images.check_mode(mode), most or MOST_PICTURES, size=size
        )
    hashes = images.image_hashes(used)
    name = Path(paths[0]).resolve().parent.name

    def take(n: int) -> list[Sample]:
        return [Sample(name, tensor[:n], {path.name: hashes[path.name] for path in used[:n]})]

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
