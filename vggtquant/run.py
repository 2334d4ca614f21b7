# SPDX-License-Identifier: Apache-2.0
"""Pictures in, a reconstruction out that can be looked at.

Importing this module is cheap; what computes is imported by `run`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import writable_folder
from .notes import told

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from .configs import QuantizationConfig
    from .data.images import Frames
    from .data.scenes import Scene
    from .model import ModelReport

CONF_PERCENTILE = 25.0
COLMAP_POINTS = (
    100_000  # a text model with every pixel is slow to open; VGGT's export stops here too
)
BUILTIN_FRAMES = 4

# Where the points come from: the outputs that hold them and their confidence.
POINT_SOURCES = {
    "depth": ("depth", "depth_conf"),  # depth seen through the cameras
    "map": ("world_points", "world_points_conf"),  # the point head
}


@dataclass
class Reconstruction:
    """What a run found and where it was written."""

    files: list[Path] = field(default_factory=list)
    frames: int = 0
    points: int = 0
    seconds: float = 0.0  # of the forward
    report: ModelReport | None = None  # of the quantization
    scores: dict[str, float] = field(default_factory=dict)  # against the truth of a built-in scene


def run(
    model: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    scheme: str | QuantizationConfig | None = None,
    mode: str = "crop",
    size: int | None = None,
    max_images: int | None = None,
    points: str = "depth",
    conf_percentile: float = CONF_PERCENTILE,
    device: str = "cpu",
    adapter: str | None = None,
    max_memory: str | None = None,
    autocast: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Reconstruction:
    """Reconstructs pictures with a (quantized) model and writes the result into `out`.

    UserError, one line, for bad input; what can be found before the model is loaded, is. Options:
    see `vggtquant run --help`. `say` is told what happens.

    >>> run("builtin:tiny", "builtin", "out", scheme="INT4_Group_128").frames   # doctest: +SKIP
    4
    """
    from . import adapters, memory, models, ops
    from .adapter import PATCH
    from .checkpoint.budget import parse_bytes
    from .configs import get_config
    from .data.images import check_mode, check_size, load_frames
    from .linear import QuantizedLinear
    from .model import quantize_model
    from .progress import Progress

    config = get_config(scheme) if scheme is not None else None
    if max_memory is not None:
        parse_bytes(max_memory)
    target = ops.check_served(device)
    check_mode(mode)
    if size is not None:
        check_size(size, PATCH if adapter is None else adapters.get(adapter).patch)
    if points not in POINT_SOURCES:
        raise UserError(f"unknown points {points!r}: wanted one of {', '.join(POINT_SOURCES)}")
    if not 0 <= conf_percentile <= 100:
        raise UserError(f"conf_percentile must be between 0 and 100, got {conf_percentile:g}")
    if max_images is not None and max_images < 1:
        raise UserError(f"max_images must be 1 or more, got {max_images}")
    scene_number = _scene_number(images)
    if scene_number is None:
        paths = _find(images, say)[:max_images]
        names = _file_names(paths)
        _keep_apart(paths, names, Path(out))
    else:
        names = [f"{i:03d}_rendered.png" for i in range(max_images or BUILTIN_FRAMES)]
        _keep_apart([], names, Path(out))
    folder = writable_folder(out)

    say(f"loading {model}")
    loaded = models.load_model(model, target, adapter=adapter)
    if config is not None and any(isinstance(m, QuantizedLinear) for m in loaded.model.modules()):
        raise UserError(f"{model} is quantized already; leave --scheme {config.name} out")
    say(f"licence of the weights: {loaded.licence}")
    width = size or loaded.image_size
    if scene_number is None:
        patch = loaded.patch
        frames = told(say, load_frames, paths, check_mode(mode), size=width, patch=patch)
        scene = None
    else:
        frames, scene = _rendered(scene_number, width, names)
    done = Reconstruction(frames=len(names))
    expected = _forecast(loaded.model, frames.images.shape, config)
    if config is not None and config.quant_type not in ("fp32", "bf16"):
        say(f"quantizing to {config.name}")
        _, done.report = quantize_model(loaded.model, config)
        models.release_file(loaded.model)

    shape = "x".join(map(str, frames.images.shape[:-3:-1]))
    if max_memory is not None:
        height, width = frames.images.shape[-2:]
        fits = memory.fit(loaded.model, max_memory, pictures=done.frames, size=(height, width))
        say(
            f"{count(done.frames)} should take {memory.gigabytes(fits.nbytes)} of memory; "
            f"{max_memory} has room for {fits.pictures}"
        )
    takes = f", {expected:.0f} s or more" if expected else ""
    say(f"reconstructing {count(done.frames)} of {shape}{takes}")
    start = time.perf_counter()
    held = [m.config for m in loaded.model.modules() if isinstance(m, QuantizedLinear)]
    used = held if config is None else [config]
    bf16 = autocast or any(one.is_bfloat16 for one in used)
    with Progress() as shown, shown.forward(loaded.model):
        outputs = _forward(loaded.model, frames.images.to(target), bf16=bf16)
    done.seconds = time.perf_counter() - start

    _write(done, folder, frames, names, outputs, points, conf_percentile)
    if scene is not None:
        done.scores = _scores(outputs, scene)
    return done


def count(frames: int) -> str:
    """How many frames, in words."""
    return "1 frame" if frames == 1 else f"{frames} frames"


def _scene_number(images: str | Path) -> int | None:
    """3 for `builtin:3`, 0 for `builtin`, None for a folder of pictures."""
    name, _, number = str(images).partition(":")
    if name != "builtin":
        return None
    if not (number or "0").isdecimal():
        raise UserError(f"unknown images {str(images)!r}: wanted a folder, builtin, builtin:1, …")
    return int(number or 0)


def _find(images: str | Path, say: Callable[[str], None]) -> list[Path]:
    """The pictures of a folder; UserError for a folder of rendered scenes, which is no scene."""
    from .data.datasets import rendered
    from .data.images import find_images

    folder = Path(images)
    if (
        os.path.isdir(folder)
        and rendered.detect(folder)
        and not (folder / rendered.TRUTH).is_file()
    ):
        first = min(path.parent for path in folder.glob(f"*/{rendered.TRUTH}"))
        raise UserError(f"{folder} holds several rendered scenes; wanted one, such as {first}")
    return told(say, find_images, folder)


def _file_names(pictures: list[Path]) -> list[str]:
    """Names for the files of each picture, without spaces, which COLMAP's text cannot hold."""
    from .data.picture import shown

    stems = [re.sub(r"[\s/\\]+", "_", shown(path.stem)) for path in pictures]
    return [f"{i:03d}_{stem}.png" for i, stem in enumerate(stems)]


def _keep_apart(pictures: list[Path], names: list[str], out: Path) -> None:
    """UserError when results would be written among the pictures, to be read by the next run, or
    among those of a run with other pictures."""
    if pictures and pictures[0].resolve().parent == out.resolve():
        raise UserError(f"--out {out} is the folder of the pictures: wanted another one")
    for name in ("images", "depth"):
        if pictures and pictures[0].resolve().parent == (out / name).resolve():
            raise UserError(f"--out {out} holds the pictures in {name}/: wanted another folder")
        there = {path.name for path in (out / name).iterdir()} if (out / name).is_dir() else set()
        if others := sorted(there - set(names)):
            raise UserError(
                f"--out {out} holds files of another run ({name}/{others[0]}, {len(others)} in "
                "all): wanted another folder, or that one removed"
            )


def _rendered(number: int, size: int, names: list[str]) -> tuple[Frames, Scene]:
    """A built-in scene that no training of ours has seen, with a frame for each name."""
    import torch

    from .data import scenes
    from .data.images import Frames

    scene = scenes.make_scene(scenes.HELD_OUT + number, len(names), size)
    pixels = torch.from_numpy(scene.images).permute(0, 3, 1, 2).contiguous().float() / 255
    frames = Frames(pixels, torch.from_numpy(scene.mask), [Path(name) for name in names])
    return frames, scene


def _forecast(model: Any, shape: torch.Size, config: QuantizationConfig | None) -> float:
    """Seconds that a forward of (S,3,H,W) should take, from the speed of one layer; 0: unknown."""
    from torch import nn

    from .configs import get_config
    from .evaluation.measure import forecast

    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not layers:
        return 0.0
    size = forecast.Shape(shape[0], shape[2], shape[3])
    try:
        work = forecast.count(model, layers, size, really=False)
    except forecast.Uncounted:
        return 0.0
    scheme = config or get_config("Baseline_FP32")
    return forecast.costs(model, layers, work, [scheme])[0].forward_s


def _forward(model: Any, images: torch.Tensor, *, bf16: bool) -> dict[str, NDArray[np.float32]]:
    """The model's outputs for one scene (S,3,H,W), without their batch axis.

    UserError for a model that returns no dict, or values that are no numbers.
    """
    import torch

    from . import adapters

    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        predictions = adapters.run(model, images[None])
    if not isinstance(predictions, Mapping):
        raise UserError(f"the model returned {type(predictions).__name__}, wanted VGGT's dict")
    tensors = {name: x for name, x in predictions.items() if isinstance(x, torch.Tensor)}
    outputs = {name: x[0].float().cpu().numpy() for name, x in tensors.items()}
    for name, x in tensors.items():
        bad = int((~torch.isfinite(x)).sum())
        if bad:
            raise UserError(f"the model's output {name} has {bad} values that are NaN or infinite")
    return outputs


def _write(
    done: Reconstruction,
    folder: Path,
    frames: Frames,
    names: list[str],
    outputs: dict[str, NDArray[np.float32]],
    source: str,
    percentile: float,
) -> None:
    """All files of a reconstruction; their paths go into `done`."""
    from . import reconstruction
    from .scoring import geometry

    where, confidence = POINT_SOURCES[source]
    missing = [name for name in ("pose_enc", where) if name not in outputs]
    if missing:
        raise UserError(
            f"the model gives no {' and no '.join(missing)}, which points from {source} need; "
            f"it gives {', '.join(outputs)}"
        )
    images, mask = frames.images.numpy(), frames.mask.numpy()
    size = (images.shape[-2], images.shape[-1])
    extrinsics, intrinsics = geometry.decode_pose(outputs["pose_enc"], size)
    arrays: dict[str, Any] = {  # the names of VGGT's own demos
        "images": images,
        **outputs,
        "extrinsic": extrinsics,
        "intrinsic": intrinsics,
        "mask": mask,
        "image_names": names,
    }
    if "depth" in outputs:
        unprojected = geometry.unproject(outputs["depth"], extrinsics, intrinsics)
        arrays["world_points_from_depth"] = unprojected.astype("float32")
    xyz = arrays["world_points_from_depth" if source == "depth" else where]
    points = reconstruction.select_points(xyz, images, outputs.get(confidence), mask, percentile)
    done.points = len(points)

    done.files.append(reconstruction.write_ply(folder / "reconstruction.ply", points))
    some = points.thinned(COLMAP_POINTS)
    done.files += reconstruction.write_colmap(
        folder / "sparse", names, extrinsics, intrinsics, size, some
    )
    pictures = writable_folder(folder / "images")
    for name, image in zip(names, images, strict=True):
        reconstruction.write_picture(pictures / name, reconstruction.to_picture(image))
    done.files.append(pictures)
    if "depth" in outputs:
        previews = writable_folder(folder / "depth")
        shown = reconstruction.depth_previews(images, outputs["depth"][..., 0], mask)
        for name, picture in zip(names, shown, strict=True):
            reconstruction.write_picture(previews / name, picture)
        done.files.append(previews)
    else:  # of an earlier run, whose model had depth
        for name in names:
            (folder / "depth" / name).unlink(missing_ok=True)
    done.files.append(reconstruction.write_npz(folder / "predictions.npz", arrays))


def _scores(outputs: dict[str, NDArray[np.float32]], scene: Scene) -> dict[str, float]:
    from .scoring import task_scores

    return task_scores.pooled_scores([task_scores.scene_errors(outputs, scene)])
