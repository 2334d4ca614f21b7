# SPDX-License-Identifier: Apache-2.0
"""One forward of a model: its known outputs, its seconds, and what its layers did meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ... import adapters, devices
from ...adapter import split_outputs
from ...errors import UserError

Outputs = dict[str, torch.Tensor]
Runner = Callable[[nn.Module, torch.Tensor], Any]
"""Runs a model on pictures (S,3,H,W) and returns its outputs by name."""


plainly: Runner = adapters.run
"""The usual Runner: the model's adapter."""


def forward(
    model: nn.Module, images: torch.Tensor, runner: Runner = plainly
) -> tuple[Outputs, float]:
    """The known outputs of one forward, on the CPU, and its seconds where the model is.

    The way of the pictures to the model's device, and of the outputs back, is not timed. Raises
    UserError for a model that returns none, or that does not take the pictures.
    """
    device = devices.device_of(model)
    images = images.to(device)
    try:
        predictions, seconds = devices.timed(device, lambda: runner(model, images))
    except RuntimeError as error:
        if "dtype" not in str(error) and "type" not in str(error):
            raise
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
        if kinds == ["float32"]:
            raise
        raise UserError(
            f"the model has parameters of {', '.join(kinds)} and pictures are float32; "
            "wanted a float32 model: model.float()"
        ) from error
    if not isinstance(predictions, Mapping):
        raise UserError(
            f"the model returned {type(predictions).__name__}; wanted a dict of named outputs"
        )
    outputs = {name: value.detach().to("cpu") for name, value in split_outputs(predictions).items()}
    if not outputs:
        raise UserError(f"none of the model's outputs is known: {', '.join(map(str, predictions))}")
    return outputs, seconds


@contextlib.contextmanager
def watch(modules: Mapping[str, nn.Module], calls: Counter[str]) -> Iterator[None]:
    """Counts the executions of `modules` by name, through forward hooks."""

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: calls.update((name,))

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The model's Linear layers by name, subclasses too; UserError when there is none."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not found:
        raise UserError(f"{type(model).__name__} has no Linear layer; there is nothing to quantize")
    return found


def put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Sets modules into a model by their names, where they are not there already."""
    for name, layer in layers.items():
        if model.get_submodule(name) is not layer:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)


def same_bits(a: Outputs, b: Outputs) -> bool:
    """True when both hold the same outputs with the same bits (NaN counts as different)."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def sha256(outputs: Outputs) -> str:
    """SHA-256 over names, shapes and bytes of outputs."""
    digest = hashlib.sha256()
    for name, value in sorted(outputs.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
