# SPDX-License-Identifier: Apache-2.0
"""Calibration data: pictures without ground truth, or rendered scenes, as batches for a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError

FRAMES = 4
"""Pictures of a scene where the data do not say."""
_FIRST_SEED = 900_000_000  # below scenes.HELD_OUT: no evaluation draws these scenes
_PIXELS = 2**20  # of a batch: scenes of one size are run together while they are small

Data = torch.Tensor | Iterable[torch.Tensor] | str | Path | None


@dataclass(frozen=True)
class Calibration:
    """What the model is shown."""

    batches: list[torch.Tensor]
    pictures: int
    source: str
    """In words, for reports."""

    @property
    def sha256(self) -> str:
        """Of all values and shapes."""
        digest = hashlib.sha256()
        for batch in self.batches:
            digest.update(f"{tuple(batch.shape)} {batch.dtype}\n".encode())
            digest.update(batch.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def check_unseen(shown: Calibration, unseen: Iterable[torch.Tensor]) -> None:
    """Refuses pictures, (…, 3, H, W), that are among those of the calibration: UserError."""
    known: set[bytes] = set()
    for number, images in enumerate(unseen):
        known = known or {key for batch in shown.batches for key in _hashes(batch)}
        if known & _hashes(images):
            raise UserError(
                f"pictures of scene {number} are among those of the calibration ({shown.source}); "
                "an evaluation wants others"
            )


def _hashes(images: torch.Tensor) -> set[bytes]:
    """Of each picture of (…, 3, H, W)."""
    pictures = images.float().reshape(-1, *images.shape[-3:])
    return {hashlib.sha256(picture.numpy().tobytes()).digest() for picture in pictures}


NOTHING = Calibration([], 0, "none")


def load(data: Data, pictures: int, seed: int, size: int) -> Calibration:
    """At most so many pictures of the data.

    data: a tensor (S, 3, H, W) or (B, S, 3, H, W), several of them, a folder of pictures, which are
    taken in scenes of FRAMES neighbours, or None: rendered scenes, drawn by `seed`, that are in no
    evaluation. size: of a picture, where it is not given by the data.

    Raises:
        UserError: no picture, a NaN or an infinite value (the sample is named), fewer than 1 asked.
    """
    if pictures < 1:
        raise UserError(f"samples is {pictures}; 1 picture or more is wanted")
    if data is None:
        samples, source = _rendered(pictures, seed, size), f"rendered scenes, seed {seed}"
    elif isinstance(data, str | Path):
        samples, source = _folder(Path(data), pictures, size), f"pictures of {Path(data).name}"
    else:
        given = [data] if isinstance(data, torch.Tensor) else list(data)
        samples, source = [part for sample in given for part in _scenes(sample)], "tensors given"
    chosen = _first(samples, pictures)
    if not chosen:
        raise UserError("no calibration sample is given; 1 or more is wanted")
    for i, sample in enumerate(chosen):
        if not torch.isfinite(sample).all():
            count = int((~torch.isfinite(sample)).sum())
            raise UserError(f"calibration sample {i}: {count} values are NaN or infinite")
    return Calibration(_batches(chosen), sum(map(len, chosen)), source)


def _scenes(sample: object) -> list[torch.Tensor]:
    """A tensor of several scenes, cut into these."""
    if not isinstance(sample, torch.Tensor):
        raise TypeError(f"calibration data are tensors, not {type(sample).__name__}")
    return list(sample) if sample.ndim == 5 else [sample]


def _first(samples: Iterable[torch.Tensor], pictures: int) -> list[torch.Tensor]:
    """The first samples whose pictures sum up to the number; the last one may be cut."""
    chosen: list[torch.Tensor] = []
    left = pictures
    for sample in samples:
        if left <= 0:
            break
        if len(sample):
            chosen.append(sample[:left].float() if sample.is_floating_point() else sample[:left])
            left -= len(sample)
    return chosen


def _batches(samples: list[torch.Tensor]) -> list[torch.Tensor]:
    """Scenes (S, 3, H, W) of one shape side by side, (B, S, 3, H, W); other samples as they are."""
    out: list[torch.Tensor] = []
    group: list[torch.Tensor] = []
    for sample in [*samples, None]:
        if group and (
            sample is None
            or sample.shape != group[0].shape
            or sample.ndim != 4
            or (len(group) + 1) * sample[:, 0].numel() > _PIXELS
        ):
            out.append(torch.stack(group) if group[0].ndim == 4 else group[0])
            group = []
        if sample is not None:
            group.append(sample)
    return out


def _rendered(pictures: int, seed: int, size: int) -> Iterable[torch.Tensor]:
    from ..data import scenes

    count = -(-pictures // FRAMES)
    if not 0 <= seed < 1000:
        raise UserError(f"seed is {seed}; 0 to 999 is wanted for rendered scenes")
    for i in range(count):
        scene = scenes.make_scene(_FIRST_SEED + 100_000 * seed + i, FRAMES, size)
        pixels = torch.from_numpy(np.ascontiguousarray(scene.images))
        yield pixels.permute(0, 3, 1, 2).contiguous().float() / 255


def _folder(folder: Path, pictures: int, size: int) -> Iterable[torch.Tensor]:
    from ..data import images

    paths = images.find_images(folder)
    if len(paths) > pictures:  # spread over the folder, FRAMES neighbours at a time
        starts = np.linspace(0, len(paths) - FRAMES, -(-pictures // FRAMES)).round().astype(int)
        paths = [path for start in starts for path in paths[max(0, start) : start + FRAMES]]
    for start in range(0, len(paths), FRAMES):
        yield images.load_images(paths[start : start + FRAMES], "crop", size=size)[0]
