# SPDX-License-Identifier: Apache-2.0
"""From a name to the place of its weights: files, a hub repository, or code that builds a model.

Nothing is read here but config.json and the index of shards.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..adapters.vggt import FILE_LICENCE
from ..errors import UserError
from . import architectures

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model.pt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What is looked for in a directory or repository, the best first; an index names shards."""
CONFIG = "config.json"

BUILTIN = {
    "builtin:tiny": "vggtquant.tiny:build",
    "builtin:tiny-outliers": "vggtquant.tiny.outliers:build_outliers",
}
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_OWN_LICENCE = "Apache-2.0: our own weights, trained on our own scenes"


@dataclass(frozen=True)
class Place:
    """Where the weights of a name are: in files, or in the model that `build` returns."""

    name: str
    source: str
    """In words, for a report."""
    licence: str
    files: tuple[Path, ...] = ()
    """One, or shards."""
    weight_map: Mapping[str, str] = field(default_factory=dict)
    """Tensor to shard, where an index says it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The architecture's arguments, from config.json."""
    build: Callable[[], nn.Module] | None = None


def resolve(address: str | Path) -> Place:
    """The place that `address` names.

    address: `builtin:tiny`; a weights file (.safetensors, .pt, .pth, .bin) or the index of a
    sharded one (.index.json); a directory with one of them; `package.module:function`, which
    returns a model; a hub id such as `facebook/VGGT-1B`, through the local cache.

    Raises:
        UserError: nothing of that name.

    >>> resolve("builtin:tiny").licence[:10]
    'Apache-2.0'
    """
    words = os.fspath(address)
    for matches, place in _KINDS:
        if matches(words):
            return place(words)
    hub_id = next(iter(architectures.licences()))
    raise UserError(
        f"unknown model {words!r}: wanted {', '.join(BUILTIN)}, a hub id ({hub_id}), "
        f"a directory, a {' or '.join(SUFFIXES[:2])} file, or module:function"
    )


def _builtin(address: str) -> Place:
    if address not in BUILTIN:
        raise UserError(f"unknown built-in model {address!r}: wanted {', '.join(BUILTIN)}")
    return Place(address, "part of vggtquant", _OWN_LICENCE, build=lambda: call(BUILTIN[address]))


def _function(address: str) -> Place:
    licence = f"not known here: that of the model which {address} returns"
    return Place(address, f"function {address}", licence, build=lambda: call(address))


def _file(address: str) -> Place:
    path = Path(address)
    return _place(path, path.name, str(path), FILE_LICENCE, path.parent / CONFIG)


def _directory(address: str) -> Place:
    folder = Path(address)
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:  # a single file of another name is meant just as well
        found = [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and p.is_file()]
        if len(found) > 1:
            raise UserError(f"{folder} holds {len(found)} weights files; name the file")
    if not found:
        raise UserError(f"no weights in {folder}: looked for {', '.join(WEIGHTS)}")
    name = folder.resolve().name
    return _place(found[0], name, str(found[0]), FILE_LICENCE, folder / CONFIG)


def _hub(address: str) -> Place:
    path = next(filter(None, (_cached(address, name) for name in WEIGHTS)), None) or _download(
        address
    )
    if path.name.endswith(".index.json"):
        for shard in sorted(set(_weight_map(path).values())):
            if _cached(address, shard) is None:
                _download(address)
    licence = architectures.licences().get(address, f"see https://huggingface.co/{address}")
    source = f"hub, {path.parent.name}/{path.name}"
    return _place(path, address, source, licence, _cached(address, CONFIG))


_KINDS: tuple[tuple[Callable[[str], object], Callable[[str], Place]], ...] = (  # the first matches
    (lambda address: address.startswith("builtin:"), _builtin),
    (lambda address: Path(address).is_dir(), _directory),
    (lambda address: Path(address).suffix.lower() in SUFFIXES or Path(address).is_file(), _file),
    (lambda address: address.endswith(".index.json"), _file),
    (_FUNCTION.fullmatch, _function),
    (_HUB_ID.fullmatch, _hub),
)


def _place(path: Path, name: str, source: str, licence: str, config: Path | None) -> Place:
    settings = _settings(config) if config is not None and config.is_file() else {}
    if path.suffix != ".json":
        return Place(name, source, licence, (path,), {}, settings)
    weight_map = _weight_map(path)
    files = tuple(path.parent / shard for shard in sorted(set(weight_map.values())))
    return Place(name, source, licence, files, weight_map, settings)


def _settings(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds {type(config).__name__}, wanted a JSON object")
    settings = config.get("settings", config)  # ours keeps them apart; VGGT's holds nothing else
    return settings if isinstance(settings, dict) else {}


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if all(isinstance(v, str) and Path(v).name == v for v in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    raise UserError(f"{path}: weight_map names more than files beside it")


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def call(address: str) -> nn.Module:
    """What `module:function` returns; the working directory counts as a place for modules.

    Raises:
        UserError: it cannot be imported, fails, or returns no model.
    """
    module_name, _, attribute = address.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        function = operator.attrgetter(attribute)(importlib.import_module(module_name))
        model = function()
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{address}: no module named {error.name!r}") from error
    except AttributeError as error:
        raise UserError(f"{address}: {first_line(error)}") from error
    except SystemExit as error:
        raise UserError(f"{address} ended the program instead of returning a model") from error
    except Exception as error:  # the user's code: whatever it raises is told, not passed on
        raise UserError(f"{address} failed: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise UserError(f"{address} returned {type(model).__name__}, wanted a torch.nn.Module")
    return model


# ---- the hub -------------------------------------------------------------------------------------


def hub() -> Any:
    """The package huggingface_hub; UserError where it is not installed."""
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise UserError(
            "a hub id needs huggingface_hub: pip install 'vggtquant[hub]'; or give a file's path"
        ) from error


def _cached(repository: str, filename: str) -> Path | None:
    """A file of a hub repository in the local cache, without asking the network."""
    client = hub()
    try:
        return Path(client.hf_hub_download(repository, filename, local_files_only=True))
    except client.errors.EntryNotFoundError:
        return None


def _download(repository: str) -> Path:
    """The weights of a hub repository, fetched into the local cache with their config.json."""
    client = hub()
    try:
        # This question is asked once; a download would try a dead network for half a minute.
        about = client.HfApi().model_info(repository, timeout=10)
        files = {file.rfilename for file in about.siblings or ()}
        if CONFIG in files:
            client.hf_hub_download(repository, CONFIG)
        for name in WEIGHTS:
            if name in files:
                path = Path(client.hf_hub_download(repository, name))
                shards = set(_weight_map(path).values()) if name.endswith(".json") else ()
                for shard in sorted(shards):
                    client.hf_hub_download(repository, shard)
                return path
    except client.errors.RepositoryNotFoundError as error:  # a gated one is told so too
        raise UserError(
            f"the hub shows no {repository} to this user: misspelt, private, or gated (accept its "
            f"terms on its page, then log in with: hf auth login)"
        ) from error
    except Exception as error:  # the hub's client raises many kinds, of several libraries
        raise UserError(
            f"no directory {repository}, no copy in the hub cache, and the hub cannot be reached "
            f"({first_line(error)}); give the path of the weights instead"
        ) from error
    raise UserError(f"{repository} on the hub holds none of {', '.join(WEIGHTS)}")
