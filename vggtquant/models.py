# SPDX-License-Identifier: Apache-2.0
"""From a name to a model in eval mode, with one copy of its weights, float or packed.

VGGT's own code is never bundled: checkpoints are read into the user's installed `vggt` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import adapters, ops, selection
from .adapter import FRAME_SIZE, PATCH, Adapter
from .adapters.vggt import FILE_LICENCE
from .checkpoint.document import Checkpoint, is_checkpoint
from .checkpoint.storage import load
from .weights import tensors
from .weights.names import Place, resolve
from .weights.tensors import Weights


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and what a report says about it.

    `sha256` is that of the weights file (of shards: see weights.tensors.file_hash), or of the state
    dict where there is no file; `image_size` is the width in pixels that pictures are scaled to for
    this model.
    """

    model: nn.Module
    name: str
    sha256: str
    source: str
    licence: str
    image_size: int = FRAME_SIZE
    patch: int = PATCH


def load_model(
    address: str | Path,
    device: str | torch.device = "cpu",
    *,
    adapter: str | Path | None = None,
) -> LoadedModel:
    """The model that `address` names, in eval mode on `device`.

    address: any name that weights.names.resolve takes, or a packed checkpoint. Files stay
    memory-mapped and are not copied. Half-precision weights are widened: what is measured as FP32
    computes in float32, whatever the file holds. adapter: the model's name in
    vggtquant.adapters, or a file with one; None: the one of its class. Linear layers of a subclass
    that the adapter knows become plain ones with the same outputs.

    Raises:
        UserError: nothing of that name, a file that cannot be read or does not fit.

    >>> load_model("torch.nn:Identity").name
    'torch.nn:Identity'
    """
    target = ops.check_device(device)
    chosen = adapters.get(adapter) if adapter is not None else None
    place = resolve(address)
    if place.build is not None:
        loaded = _of_code(place)
    elif len(place.files) == 1 and is_checkpoint(place.files[0]):
        loaded = _packed(place)
    else:
        loaded = _of_files(tensors.read(place), chosen)
    kind = adapters.use(loaded.model, adapter)
    selection.make_plain(loaded.model)
    loaded.model.to(target).eval()
    size = loaded.image_size or getattr(loaded.model, "image_size", kind.image_size)
    return replace(loaded, image_size=int(size), patch=kind.patch)


def release_file(model: nn.Module) -> None:
    """Copies the float tensors that a model still shares with a mapped file, which can then go.

    For a model whose Linear layers were quantized: one remaining bias keeps a whole 5 GB mapping.

    >>> release_file(torch.nn.Linear(2, 2))
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    for module in model.modules():
        for name, tensor in module._buffers.items():
            if tensor is not None and tensor.is_floating_point():
                module._buffers[name] = tensor.clone()  # the old object itself holds the mapping


def _of_code(place: Place) -> LoadedModel:
    assert place.build is not None
    model = place.build()
    tensors.to_float32(model)
    sha256 = tensors.state_hash(model)
    return LoadedModel(model, place.name, sha256, place.source, place.licence, 0)


def _packed(place: Place) -> LoadedModel:
    """A model that is quantized already."""
    document = Checkpoint(place.files[0]).document
    model = load(place.files[0])
    size = _image_size(document.settings)
    licence = document.source.licence or FILE_LICENCE
    sha256 = tensors.file_hash(place.files)
    return LoadedModel(model, place.name, sha256, place.source, licence, size)


def _of_files(found: Weights, chosen: Adapter | None) -> LoadedModel:
    place = found.place
    model = tensors.instantiate(found, chosen)
    source = place.source
    if found.prefix:
        source += f", whose names all begin with {found.prefix}, which is left out"
    size = _image_size(place.settings)
    return LoadedModel(model, place.name, found.sha256(), source, place.licence, size)


def _image_size(settings: Mapping[str, Any]) -> int:
    """The width that a model's settings state; 0: they state none."""
    return int(settings.get("img_size") or 0)
