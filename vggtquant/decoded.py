# SPDX-License-Identifier: Apache-2.0
"""DecodedWeight: what QuantizedLinear.weight returns, a float view of packed codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

READ_ONLY = (
    "the weight of a QuantizedLinear is packed and cannot be written: change the float layer "
    "before it is quantized (restore_model brings it back), or load packed values with "
    "load_state_dict"
)


class DecodedWeight(Tensor):
    """The float32 values that a packed weight stands for; read only.

    Values are decoded when an operator reads them; shape, dtype and device cost nothing. Results of
    operators are plain tensors, but views stay read only. torch's fast paths, which take a layer's
    weight without calling the layer, do not accept a tensor of a subclass, so they call the layer.
    """

    _decode: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, like: Tensor, device: torch.device, decode: Callable[[], Tensor]
    ) -> DecodedWeight:
        """like: a tensor of the shape, strides and dtype that decode() has."""
        return Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )

    def __init__(self, like: Tensor, device: torch.device, decode: Callable[[], Tensor]) -> None:
        self._decode = decode

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WRITE:
            raise RuntimeError(READ_ONLY)
        if func in _NEED_MEMORY:
            args = _plain(args)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if isinstance(result, np.ndarray):
            result.flags.writeable = False
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes and isinstance(given, DecodedWeight):
                raise RuntimeError(READ_ONLY)
        result = func(*_plain(args), **_plain(kwargs))
        if func.is_view:
            return tree_map_only(Tensor, _held, result)
        return result


_WRITE = (Tensor.__setitem__, Tensor.data.__set__)  # type: ignore[attr-defined]
_NEED_MEMORY = (
    Tensor.numpy,
    Tensor.__array__,
    Tensor.tolist,
    Tensor.data_ptr,
    Tensor.untyped_storage,
    Tensor.__deepcopy__,
    Tensor.__reduce_ex__,
    Tensor.__repr__,
)


def _plain(arguments: Any) -> Any:
    return tree_map_only(DecodedWeight, lambda weight: weight._decode(), arguments)


def _held(view: Tensor) -> DecodedWeight:
    return DecodedWeight(view, view.device, lambda: view)
