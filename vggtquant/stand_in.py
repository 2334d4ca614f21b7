# SPDX-License-Identifier: Apache-2.0
"""StandIn: a module in the place of another one, whose parts it keeps."""

from __future__ import annotations

from typing import Any

from torch import nn


class StandIn(nn.Module):
    """Holds the original's children under their names, so that a state_dict has the same keys, and
    has the original's other attributes."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        # One dictionary for both, so that a child that is replaced is so in both. In a tuple, the
        # original is no child itself.
        self._modules = original._modules
        self._original = (original,)
        self.training = original.training

    @property
    def original(self) -> nn.Module:
        """The module that was replaced; it shares the children."""
        return self._original[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self.original, name)


def is_of(module: nn.Module, path: str) -> bool:
    """Whether the path of its class is that one, or ends with it after a dot."""
    return f".{type(module).__module__}.{type(module).__qualname__}".endswith(f".{path}")
