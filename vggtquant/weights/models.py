# SPDX-License-Identifier: Apache-2.0
"""Turns a model's name, file or function into a model in eval mode, with one copy of its weights.

VGGT's own code is never bundled: checkpoints are read into the user's installed `vggt` package.
"""

import hashlib
import importlib
import inspect
import json
import operator
import os
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UserError

FRAME_SIZE = 518
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_BUILTIN = {  # name: (function, width of the pictures it was trained on)
    "builtin:tiny": ("vggtquant.tiny:build", 112),
    "builtin:tiny-outliers": ("vggtquant.tiny.outliers:build_outliers", 112),
}
_WEIGHTS = ("model.safetensors", "model.pt", "pytorch_model.bin")  # in a directory or repository
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_INSTALL_VGGT = (
    "the vggt package is not installed, and its checkpoints need it: "
    "pip install git+https://github.com/facebookresearch/vggt"
)
_LICENCES = {
    "facebook/VGGT-1B": "CC BY-NC 4.0, as tagged on the hub: non-commercial use only",
    "facebook/VGGT-1B-Commercial": "VGGT License: commercial use within its acceptable use policy",
}
_OWN_LICENCE = "Apache-2.0: our own weights, trained on our own scenes"
_FILE_LICENCE = (
    "not stated in the file: VGGT-1B is non-commercial (CC BY-NC 4.0), VGGT-1B-Commercial is under "
    "the VGGT License; a quantized copy stays under the licence of its source"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and what a report says about it.

    `sha256` is that of the weights file, or of the state dict where there is no file; `image_size`
    is the width in pixels that pictures are scaled to for this model.
    """

    model: nn.Module
    name: str
    sha256: str
    source: str
    licence: str
    image_size: int = FRAME_SIZE


def load_model(spec: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """The model that `spec` names, in eval mode on `device`.

    `builtin:tiny`; a weights file (.safetensors, .pt, .pth, .bin) or a directory with one, through
    the installed `vggt` package; `package.module:function`, called without arguments; a hub id such
    as `facebook/VGGT-1B`, through the local cache. Files stay memory-mapped and are not copied.
    UserError, one line, for anything that does not exist, cannot be read or does not fit.

    >>> load_model("torch.nn:Identity").name
    'torch.nn:Identity'
    """
    spec, target = str(spec), check_device(device)
    for matches, load in _LOADERS:
        if matches(spec):
            loaded = load(spec)
            loaded.model.to(target).eval()
            return loaded
    raise UserError(
        f"unknown model {spec!r}: wanted {', '.join(_BUILTIN)}, a hub id (facebook/VGGT-1B), "
        f"a directory, a {' or '.join(SUFFIXES[:2])} file, or module:function"
    )


def check_device(device: str | torch.device) -> torch.device:
    """The device itself; UserError for one that is unknown or not there.

    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {str(device)!r}: wanted cpu, cuda or cuda:0, cuda:1, …")
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if (found.index or 0) >= count:
        raise UserError(f"no device {str(device)!r} here: torch {torch.__version__} sees {count}")
    return found


def state_hash(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of a state dict, in the order of the names.

    >>> state_hash(torch.nn.Identity())[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):  # a layer may keep extra state that is no tensor
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


# One loader for each kind of spec --------------------------------------------------------------


def _load_builtin(spec: str) -> LoadedModel:
    if spec not in _BUILTIN:
        raise UserError(f"unknown built-in model {spec!r}: wanted {', '.join(_BUILTIN)}")
    function, size = _BUILTIN[spec]
    model = _call(function)
    return LoadedModel(model, spec, state_hash(model), "part of vggtquant", _OWN_LICENCE, size)


def _load_function(spec: str) -> LoadedModel:
    model = _widened(_call(spec))
    size = int(getattr(model, "image_size", FRAME_SIZE))
    licence = f"not known here: that of the model which {spec} returns"
    return LoadedModel(model, spec, state_hash(model), f"function {spec}", licence, size)


def _widened(model: nn.Module) -> nn.Module:
    """The model in float32 where it was in half precision: a reference of FP32 is measured, and
    values stay as they are."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()
    return model


def _load_file(spec: str) -> LoadedModel:
    from ..checkpoint.checkpoint import is_checkpoint

    path = Path(spec)
    if is_checkpoint(path):
        return _load_packed(path)
    return _load_vggt(path, {}, path.name, str(path), _FILE_LICENCE)


def _load_packed(path: Path) -> LoadedModel:
    """A model that is quantized already."""
    from ..checkpoint.checkpoint import Checkpoint
    from ..checkpoint.storage import load

    document = Checkpoint(path).document
    _, size = _BUILTIN.get(document.architecture, ("", FRAME_SIZE))
    size = int(document.settings.get("img_size", size))
    licence = document.source.licence or _FILE_LICENCE
    return LoadedModel(load(path), path.name, _file_sha256(path), str(path), licence, size)


def _load_directory(spec: str) -> LoadedModel:
    folder = Path(spec)
    paths = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not paths:
        raise UserError(f"no weights in {folder}: looked for {', '.join(_WEIGHTS)}")
    config = folder / "config.json"
    settings = _read_config(config) if config.is_file() else {}
    return _load_vggt(paths[0], settings, folder.resolve().name, str(paths[0]), _FILE_LICENCE)


def _load_hub(spec: str) -> LoadedModel:
    path = next(filter(None, (_cached(spec, name) for name in _WEIGHTS)), None) or _download(spec)
    config = _cached(spec, "config.json")
    licence = _LICENCES.get(spec, f"see https://huggingface.co/{spec}")
    settings = _read_config(config) if config else {}
    return _load_vggt(path, settings, spec, f"hub, {path.parent.name}/{path.name}", licence)


_LOADERS = (  # the first that matches
    (lambda spec: spec.startswith("builtin:"), _load_builtin),
    (lambda spec: Path(spec).is_dir(), _load_directory),
    (lambda spec: Path(spec).suffix.lower() in SUFFIXES or Path(spec).is_file(), _load_file),
    (_FUNCTION.fullmatch, _load_function),
    (_HUB_ID.fullmatch, _load_hub),
)


def is_code(spec: str) -> bool:
    """Whether code builds this model: no file holds it as it is."""
    return spec.startswith("builtin:") or bool(_FUNCTION.fullmatch(spec))


def is_hub_id(spec: str) -> bool:
    """Whether it looks like one: owner/name."""
    return bool(_HUB_ID.fullmatch(spec))


def _call(spec: str) -> nn.Module:
    """What `module:function` returns; the working directory counts as a place for modules."""
    module_name, _, attribute = spec.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        function = operator.attrgetter(attribute)(importlib.import_module(module_name))
        model = function()
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{spec}: no module named {error.name!r}") from error
    except AttributeError as error:
        raise UserError(f"{spec}: {_first_line(error)}") from error
    except Exception as error:  # the user's code: whatever it raises is told, not passed on
        raise UserError(f"{spec} failed: {type(error).__name__}: {_first_line(error)}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec} returned {type(model).__name__}, wanted a torch.nn.Module")
    return model


def _cached(repository: str, filename: str) -> Path | None:
    """A file of a hub repository in the local cache, without asking the network."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ModuleNotFoundError as error:
        raise UserError(
            "a hub id needs huggingface_hub: pip install 'vggtquant[hub]'; or give a file's path"
        ) from error
    try:
        return Path(hf_hub_download(repository, filename, local_files_only=True))
    except EntryNotFoundError:
        return None


def _download(repository: str) -> Path:
    """The weights of a hub repository, fetched into the local cache with their config.json."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        # This question is asked once; a download would try a dead network for half a minute.
        files = {
            file.rfilename for file in HfApi().model_info(repository, timeout=10).siblings or ()
        }
        if "config.json" in files:
            hf_hub_download(repository, "config.json")
        for name in _WEIGHTS:
            if name in files:
                return Path(hf_hub_download(repository, name))
    except RepositoryNotFoundError as error:  # a gated one is told so too
        raise UserError(
            f"the hub shows no {repository} to this user: misspelt, private, or gated (accept its "
            f"terms on its page, then log in with: hf auth login)"
        ) from error
    except Exception as error:  # the hub's client raises many kinds, of several libraries
        raise UserError(
            f"no directory {repository}, no copy in the hub cache, and the hub cannot be reached "
            f"({_first_line(error)}); give the path of the weights instead"
        ) from error
    raise UserError(f"{repository} on the hub holds none of {', '.join(_WEIGHTS)}")


# VGGT checkpoints ------------------------------------------------------------------------------


def _load_vggt(
    path: Path, config: Mapping[str, Any], name: str, source: str, licence: str
) -> LoadedModel:
    state = _read_state(path)
    model = _build_vggt(config, has_tracker=any(key.startswith("track_head.") for key in state))
    _fill(model, state, path)
    size = int(config.get("img_size", FRAME_SIZE))
    return LoadedModel(model, name, _file_sha256(path), source, licence, size)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds {type(config).__name__}, wanted a JSON object")
    return config


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, memory-mapped."""
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise UserError(f"{path} is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run git lfs pull there")
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors, or is no checkpoint: refused") from error
    except Exception as error:  # truncated and foreign files fail in many ways
        raise UserError(f"cannot read the weights {path}: {_first_line(error)}") from error
    for key in ("model", "state_dict"):  # training checkpoints keep the weights beside the rest
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{path} holds no state dict: wanted tensors by name")
    if state and all(key.startswith("module.") for key in state):  # saved under DataParallel
        state = {key.removeprefix("module."): x for key, x in state.items()}
    return state


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # Files of torch before 1.6 cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)


def _build_vggt(config: Mapping[str, Any], *, has_tracker: bool) -> nn.Module:
    """VGGT as the installed package defines it, its parameters still without memory."""
    try:
        vggt = importlib.import_module("vggt.models.vggt").VGGT
    except ModuleNotFoundError as error:
        missing = error.name or "vggt"
        if missing.split(".")[0] == "vggt":
            raise UserError(_INSTALL_VGGT) from error
        raise UserError(f"vggt needs {missing}, which is not installed") from error
    except (ImportError, AttributeError) as error:
        raise UserError(f"the installed vggt package does not work: {error}") from error
    accepted = inspect.signature(vggt.__init__).parameters
    settings = {key: value for key, value in config.items() if key in accepted}
    if not has_tracker and "enable_track" in accepted:
        settings["enable_track"] = False
    with parameters_without_memory():
        model: nn.Module = vggt(**settings)
    if not has_tracker:
        # Older copies know no enable_track, but check for None.
        model.track_head = None  # type: ignore[assignment]
    return model


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Within it, modules that are built get parameters on torch's meta device.

    Each is moved as it is registered, so that code which reads values while it builds (VGGT calls
    `.item()`) works, which it does not under `torch.device("meta")`. VGGT-1B is built in seconds
    and without its 5 GB. Buffers stay real, on the CPU whatever torch's default device is.

    >>> with parameters_without_memory():
    ...     torch.nn.Linear(2, 2).weight.device
    device(type='meta')
    """
    register = nn.Module.register_parameter

    class NothingToFill(TorchFunctionMode):
        # torch draws random numbers for a meta tensor by importing its whole compiler.
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if (
                func in (Tensor.normal_, Tensor.uniform_)
                or getattr(func, "__module__", "") == "torch.nn.init"
            ):
                x = args[0] if args else kwargs.get("tensor")
                if isinstance(x, Tensor) and x.is_meta:
                    return x
            return func(*args, **kwargs)

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None:
            empty = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
            module._parameters[name] = empty

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment,method-assign]
    try:
        with torch.device("cpu"), NothingToFill():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Puts a checkpoint's own tensors into the model; every name and shape has to fit.

    Half-precision checkpoints are widened: the heads compute in float32 whatever the file holds.
    """
    wanted = model.state_dict()
    shape = {key: tuple(x.shape) for key, x in wanted.items()}
    wrong = [
        f"{key} {tuple(x.shape)} for {shape[key]}"
        for key, x in state.items()
        if key in shape and tuple(x.shape) != shape[key]
    ]
    faults = [
        ("missing", [key for key in wanted if key not in state]),
        ("unexpected", [key for key in state if key not in wanted]),
        ("of another shape", wrong),
    ]
    told = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in faults if keys]
    if told:
        raise UserError(f"{path} does not fit the installed vggt: tensors {', '.join(told)}")
    fitting = {key: x.to(wanted[key].dtype) for key, x in state.items()}
    model.load_state_dict(fitting, strict=True, assign=True)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
