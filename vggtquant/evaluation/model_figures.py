# SPDX-License-Identifier: Apache-2.0
"""Figures that need the model of an evaluation again: a layer's weights, pictures of each scheme.

The model and the pictures are loaded as the results name them, and must have the same SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from msgspec import structs
from numpy.typing import NDArray
from torch import nn

from .. import models
from ..errors import UserError
from ..model import restore_model
from ..qtensor import quantize
from .evaluate import inputs_of
from .measure import plan, variants
from .measure.bench import Sample
from .measure.forward import Outputs, forward, linears
from .measure.pictures import ERRORS
from .present import charts
from .present.paper.blocks import Drawing
from .schema import Document, Kind, Row

_COLUMNS = 4
_PANEL = 2.3  # inches, of the width of a picture
_CLOUD = (270, 320)  # pixels, height and width, of a cloud
_TURN = np.radians((25.0, 20.0))  # about the vertical and the horizontal axis, of a cloud
Say = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """The float model of the results, and how wide its pictures are."""

    model: nn.Module
    image_size: int


@dataclass(frozen=True)
class Wish:
    """What is asked for: the name of a Linear layer, pictures as SCENE or SCENE:PICTURE."""

    layer: str | None = None
    pictures: Sequence[str] = ()

    def flags(self) -> list[str]:
        """The same as options of `vggtquant report`."""
        found = [] if self.layer is None else ["--layer", self.layer]
        return [*found, "--pictures", *self.pictures] if self.pictures else found

    def drawings(self, document: Document, say: Say = lambda words: None) -> list[Drawing]:
        """The figures, in the order of the flags; the model is loaded where there are any.

        Raises UserError for what is not there, and for another model or pictures.
        """
        places = list(dict.fromkeys(map(Place.read, self.pictures)))
        if self.layer is None and not places:
            return []
        loaded = load(document)
        found = [] if self.layer is None else [layer(document, loaded, self.layer)]
        return found + (panels(document, loaded, places, say) if places else [])


def load(document: Document) -> Loaded:
    """The model that the results name.

    Raises UserError where it cannot be loaded, is packed, or has other weights.
    """
    name = document.settings.model
    try:
        found = models.load_model(name)
    except UserError as error:
        raise UserError(f"figures of layers and pictures need the model {name}: {error}") from error
    if found.sha256 != document.model.sha256:
        raise UserError(
            f"{name} has other weights than the evaluated model: SHA-256 {found.sha256[:16]}... "
            f"here, {document.model.sha256[:16]}... in the results"
        )
    return Loaded(found.model, found.image_size)


def _schemes(document: Document) -> list[Row]:
    return [row for row in document.schemes if row.ok and row.kind is Kind.QUANTIZED]


# ---- a layer -------------------------------------------------------------------------------------


def layer(document: Document, loaded: Loaded, name: str) -> Drawing:
    """The histogram of a Linear layer's weights, and the distribution of its scales by scheme.

    Raises UserError for a name that no Linear layer has.
    """
    there = linears(loaded.model)
    if name not in there:
        raise UserError(f"no Linear layer {name!r}; the first ones are {', '.join([*there][:3])}")
    weight = there[name].weight.detach()
    scales: dict[str, NDArray[Any]] = {}
    for row in _schemes(document):
        own = next((one for one in row.layers if one.name == name), None)
        if own is not None and own.skipped is None:
            found = np.sort(np.asarray(quantize(weight, row.config.layer_spec(name)).scale).ravel())
            if not any(np.array_equal(found, other) for other in scales.values()):
                scales[row.name] = found
    if not scales:
        raise UserError(f"no scheme of the results quantizes the layer {name}")
    file = f"layer_{name.replace('.', '_')}"
    draw = partial(_layer, weight.float().numpy().ravel(), scales)
    return Drawing(file, draw, "figure_layer", {"layer": name})


def _layer(weight: NDArray[Any], scales: Mapping[str, NDArray[Any]]) -> Figure:
    figure = charts.blank(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    left.hist(weight, bins=201, color="#0072b2")
    left.set_yscale("log")
    left.set_xlabel("weight (FP32)")
    left.set_ylabel("number of weights")
    for i, (scheme, own) in enumerate(scales.items()):
        share = np.arange(1, own.size + 1) / own.size
        right.plot(
            np.repeat(own, 2) if own.size == 1 else own,
            [0.0, 1.0] if own.size == 1 else share,
            label=charts.label(scheme),
            color=charts.OUTPUT_COLOURS[i % len(charts.OUTPUT_COLOURS)],
            linestyle="--" if i >= len(charts.OUTPUT_COLOURS) else "-",
        )
    right.set_xscale("log")
    right.set_xlabel("scale")
    right.set_ylabel("share of scales that are no larger")
    for axis in (left, right):
        axis.grid(linewidth=0.4, color="#dddddd")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    return figure


# ---- pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A picture of the evaluation: numbers of its scene and within the scene, from 1."""

    scene: int
    frame: int = 1

    @classmethod
    def read(cls, text: str) -> Place:
        """From SCENE or SCENE:PICTURE; UserError for anything else.

        >>> Place.read("2:3")
        Place(scene=2, frame=3)
        """
        parts = text.split(":")
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UserError(f"no picture {text!r}; wanted SCENE or SCENE:PICTURE, from 1, as 1:2")
        return cls(*map(int, parts))


def panels(
    document: Document, loaded: Loaded, wanted: Sequence[Place], say: Say = lambda words: None
) -> list[Drawing]:
    """Depth, its error and the points of chosen pictures, a panel a scheme.

    Raises UserError for a scene or picture that is not there, changed pictures, no depth.
    """
    samples = {place: _sample(document, loaded, place) for place in wanted}
    outputs: dict[Place, dict[str, Outputs]] = {place: {} for place in wanted}
    rows = _schemes(document)
    configs = {"FP32": None} | {row.name: row.config for row in rows}
    with torch.inference_mode():
        for name, config in configs.items():
            say(f"running {name}")
            report = None
            if config is not None:
                report = variants.swap(loaded.model, config, [s.images for s in samples.values()])
            for place, sample in samples.items():
                outputs[place][name] = forward(loaded.model, sample.images)[0]
            if report is not None:
                restore_model(loaded.model, report)
    return [
        drawing
        for place, sample in samples.items()
        for drawing in _drawings(place, sample, outputs[place])
    ]


def _sample(document: Document, loaded: Loaded, place: Place) -> Sample:
    scenes = document.data.scenes
    if place.scene > len(scenes):
        raise UserError(f"no scene {place.scene}; the results have {len(scenes)}")
    scene = scenes[place.scene - 1]
    if place.frame > scene.frames:
        raise UserError(f"no picture {place.frame} in scene {place.scene}; it has {scene.frames}")
    kept = structs.asdict(document.settings)
    known = {field for field in plan.Settings.__dataclass_fields__ if field in kept}
    known -= {"shard", "images"}
    settings = plan.Settings(
        **{field: kept[field] for field in known}, images=tuple(document.settings.images)
    )
    available = inputs_of(settings, loaded.image_size)
    count = scene.frames if available.unit == "pictures" else available.amount
    sample = next((one for one in available.take(count) if one.name == scene.name), None)
    if sample is None or dict(sample.sha256) != scene.images_sha256:
        raise UserError(f"the pictures of scene {scene.name} are not those of the results any more")
    return sample


def _drawings(place: Place, sample: Sample, outputs: Mapping[str, Outputs]) -> list[Drawing]:
    if "depth" not in outputs["FP32"]:
        raise UserError("the model gives no depth, so there are no panels of pictures")
    frame = place.frame - 1
    facts = {"scene": place.scene, "frame": place.frame, "name": sample.name}
    end = f"{place.scene}_{place.frame}"
    pixels = sample.images[frame].permute(1, 2, 0).numpy()
    depth = {name: _frame(one["depth"], frame)[..., 0] for name, one in outputs.items()}
    found = [
        Drawing(f"depth_{end}", partial(_depth, pixels, depth), "figure_depth", facts),
        Drawing(f"deptherror_{end}", partial(_error, depth), "figure_deptherror", facts),
    ]
    if all("world_points" in one for one in outputs.values()):
        clouds = {name: one["world_points"].reshape(-1, 3).numpy() for name, one in outputs.items()}
        colours = sample.images.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
        draw = partial(_points, colours, clouds)
        found.append(Drawing(f"points_{place.scene}", draw, "figure_points", facts))
    return found


def _frame(values: torch.Tensor, frame: int) -> NDArray[Any]:
    """(1,S,H,W,C) or (S,H,W,C), to (H,W,C) of a frame."""
    found: NDArray[Any] = values.reshape(-1, *values.shape[-3:])[frame].float().numpy()
    return found


def _grid(count: int, ratio: float) -> tuple[Figure, list[Axes]]:
    """Axes without frames for so many pictures, whose height is `ratio` of their width."""
    lines = -(-count // _COLUMNS)
    figure = charts.blank(_COLUMNS * _PANEL + 0.6, lines * (ratio * _PANEL + 0.25))
    axes = list(figure.subplots(lines, _COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _bar(figure: Figure, drawn: Any, axes: Sequence[Axes], words: str) -> None:
    """A bar of the colours beside all pictures."""
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9, aspect=40, extend="both")
    bar.set_label(words, fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _depth(pixels: NDArray[Any], depth: Mapping[str, NDArray[Any]]) -> Figure:
    figure, axes = _grid(1 + len(depth), pixels.shape[0] / pixels.shape[1])
    axes[0].imshow(pixels, interpolation="none")
    axes[0].set_title("picture", fontsize=7)
    near, far = np.percentile(depth["FP32"], [2, 98])
    scale = Normalize(near, max(far, 1.01 * near))
    for axis, (name, values) in zip(axes[1:], depth.items(), strict=False):
        drawn = axis.imshow(values, norm=scale, cmap="viridis_r", interpolation="none")
        axis.set_title(charts.label(name), fontsize=7)
    _bar(figure, drawn, axes, "depth, in the unit of the model")
    return figure


def _error(depth: Mapping[str, NDArray[Any]]) -> Figure:
    reference = depth["FP32"]
    floor = np.finfo(np.float32).tiny
    errors = {
        name: np.abs(values - reference) / np.maximum(np.abs(reference), floor)
        for name, values in depth.items()
        if name != "FP32"
    }
    figure, axes = _grid(len(errors), reference.shape[0] / reference.shape[1])
    scale = LogNorm(*ERRORS, clip=True)
    for axis, (name, values) in zip(axes, errors.items(), strict=False):
        drawn = axis.imshow(
            np.maximum(values, ERRORS[0]), norm=scale, cmap="magma", interpolation="none"
        )
        axis.set_title(f"{charts.label(name)}\n{100 * np.median(values):.2g} %", fontsize=7)
    _bar(figure, drawn, axes, "relative error of depth; under each name: its median")
    return figure


def _points(colours: NDArray[Any], clouds: Mapping[str, NDArray[Any]]) -> Figure:
    """All points of a scene, seen from the side and above."""
    height, width = _CLOUD
    figure, axes = _grid(len(clouds), height / width)
    (cos_y, cos_x), (sin_y, sin_x) = np.cos(_TURN), np.sin(_TURN)
    turn = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    turn = np.array([[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]]) @ turn
    seen = {name: cloud @ turn.T for name, cloud in clouds.items()}
    low, high = np.percentile(seen["FP32"][:, :2], [1, 99], axis=0)
    scale = 0.9 * min(width / max(high[0] - low[0], 1e-9), height / max(high[1] - low[1], 1e-9))
    for axis, (name, cloud) in zip(axes, seen.items(), strict=False):
        at = (cloud[:, :2] - (low + high) / 2) * scale + (width / 2, height / 2)
        axis.imshow(_painted(at, cloud[:, 2], colours), interpolation="none")
        axis.set_title(charts.label(name), fontsize=7)
    return figure


def _painted(at: NDArray[Any], depth: NDArray[Any], colours: NDArray[Any]) -> NDArray[Any]:
    """Points of 2 x 2 pixels on white, near ones over far ones."""
    height, width = _CLOUD
    found = np.ones((height, width, 3), np.float32)
    order = np.argsort(-depth)
    columns, lines = np.nan_to_num(at[order], nan=-9.0).clip(-9, 1e6).astype(int).T
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = columns + right, lines + down
        there = (0 <= x) & (x < width) & (0 <= y) & (y < height)
        found[y[there], x[there]] = colours[order][there]
    return found
