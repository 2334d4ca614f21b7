# SPDX-License-Identifier: Apache-2.0
"""Damages files of every layout of ground truth: whatever is in them, a scene or one line.

PYTHONPATH=.:tests python tests/fuzz_datasets.py [--count N] [--seed N]
"""

import argparse
import gzip
import random
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import layouts

from vggtquant.data import datasets, images, scenes
from vggtquant.errors import UserError

SIZE = 14
WRITERS = [
    layouts.npz,
    layouts.colmap,
    layouts.colmap_binary,
    layouts.eth3d,
    layouts.sevenscenes,
    layouts.co3d,
    layouts.co3d_poses,
]
WORDS = b"nan inf -inf -1 1e400 0 99999999999999999999 # {} [] null ../../x".split()
WORDS += [b"", b" ", b"\n", b"\0", b'"x"', b"\xff" * 8, b"x" * 300]


def damaged(rng: random.Random, data: bytearray) -> bytearray:
    """The bytes after one to five changes."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(40)]
            case 2:
                data[at:at] = rng.choice(WORDS)
            case 3:
                del data[at:]
            case _:
                words = bytes(data).split(b" ")
                words[rng.randrange(len(words))] = rng.choice(WORDS)
                data = bytearray(b" ".join(words))
    return data


def outcome(folder: Path) -> str:
    """What became of a folder that is read whole; only a UserError is caught."""
    try:
        found = datasets.find(folder)
        for scene in found[1] if found else []:
            frames = images.load_frames([view.image for view in scene.views], size=SIZE)
            datasets.truth(scene.views, frames.placements, frames.images.shape[-2:])
    except UserError as error:
        assert "\n" not in str(error), error
        return "refused"
    return "read" if found else "pictures alone"


def run(folder: Path, seed: int, count: int) -> Counter[str]:
    """How often each outcome came of so many damaged files."""
    rng = random.Random(seed)
    scene = scenes.make_scene(scenes.HELD_OUT + 3, frames=2, size=SIZE)
    places = [(folder / write.__name__, write(scene, folder / write.__name__)) for write in WRITERS]
    told: Counter[str] = Counter()
    for number in range(count):
        top, place = rng.choice(places)
        path = rng.choice(sorted(path for path in top.rglob("*") if path.is_file()))
        raw = path.read_bytes()
        zipped = raw.startswith(b"\x1f\x8b")
        path.write_bytes(damaged(rng, bytearray(gzip.decompress(raw) if zipped else raw)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                told[outcome(place)] += 1
        except BaseException:
            print(f"input {number} of seed {seed}: {path}")
            raise
        path.write_bytes(raw)
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(dict(run(Path(name), args.seed, args.count)))
