# SPDX-License-Identifier: Apache-2.0
"""From a name to a model in eval mode, with one copy of its weights, float or packed.

VGGT's own code is never bundled: checkpoints are read into the user's installed `vggt` package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import ops
from .checkpoint.document import Checkpoint, is_checkpoint
from .checkpoint.storage import load
from .vggt import FILE_LICENCE, FRAME_SIZE
from .weights import architectures, tensors
from .weights.architectures import Architecture
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


def load_model(address: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """The model that `address` names, in eval mode on `device`.

    address: any name that weights.names.resolve takes, or a packed checkpoint. Files stay
    memory-mapped and are not copied. Half-precision weights are widened: what is measured as FP32
    computes in float32, whatever the file holds.

    Raises:
        UserError: nothing of that name, a file that cannot be read or does not fit.

    >>> load_model("torch.nn:Identity").name
    'torch.nn:Identity'
    """
    target = ops.check_device(device)
    place = resolve(address)
    if place.build is not None:
        loaded = _of_code(place)
    elif len(place.files) == 1 and is_checkpoint(place.files[0]):
        loaded = _packed(place)
    else:
        loaded = _of_files(tensors.read(place))
    loaded.model.to(target).eval()
    return loaded


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
    kind = architectures.BY_NAME.get(architectures.of_model(model)[0])
    size = int(getattr(model, "image_size", kind.image_size if kind else FRAME_SIZE))
    sha256 = tensors.state_hash(model)
    return LoadedModel(model, place.name, sha256, place.source, place.licence, size)


def _packed(place: Place) -> LoadedModel:
    """A model that is quantized already."""
    document = Checkpoint(place.files[0]).document
    size = _image_size(architectures.BY_NAME.get(document.architecture), document.settings)
    licence = document.source.licence or FILE_LICENCE
    sha256 = tensors.file_hash(place.files)
    return LoadedModel(load(place.files[0]), place.name, sha256, place.source, licence, size)


def _of_files(found: Weights) -> LoadedModel:
    place = found.place
    model = tensors.instantiate(found)
    kind = architectures.BY_NAME[architectures.of_model(model)[0] or "vggt"]
    source = place.source
    if found.prefix:
        source += f", whose names all begin with {found.prefix}, which is left out"
    size = _image_size(kind, place.settings)
    return LoadedModel(model, place.name, found.sha256(), source, place.licence, size)


def _image_size(kind: Architecture | None, settings: object) -> int:
    said = settings.get("img_size") if isinstance(settings, dict) else None
    return int(said or (kind.image_size if kind else FRAME_SIZE))
