# SPDX-License-Identifier: Apache-2.0
"""Models whose parameters have no memory yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


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
