# SPDX-License-Identifier: Apache-2.0
"""Torch devices "cuda:0" and "cuda:1" that are this CPU, so that what needs a GPU runs without one.

Tensors there are wrappers of CPU tensors; `_cuda` is the module on the host shim, at the path in
VGGTQUANT_PRETENDED. `python -m pytest -p pretended_gpu tests/test_cuda_gpu.py` runs the tests of a
GPU, `python tests/pretended_gpu.py` the bench, on sizes that the shim can bear. What is checked is
that they run and ask for the right things, not what a GPU would answer. A graph that is captured
notes the calls of `_cuda` and of torch, and refuses what a capture cannot hold: bringing a value
home.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

GPUS = (torch.device("cuda:0"), torch.device("cuda:1"))
current = [0]
"""The last is the number of the current GPU."""
capturing: list[Any] = []


class Pretended(torch.Tensor):
    """A tensor that says it is on a GPU; `inner` has its values."""

    inner: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: torch.Tensor, place: torch.device) -> Pretended:
        wrapper: Pretended = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=place,
        )
        wrapper.inner, wrapper.place = inner, place
        return wrapper

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})


OF_A_DEVICE: dict[Any, Any] = {
    torch.Tensor.device.__get__: lambda x: x.place,  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__: lambda x: True,  # type: ignore[attr-defined]
}
BETWEEN = ("to", "copy_", "_to_copy", "set_", "data")
"""What takes tensors on two GPUs."""
HOME = ("_local_scalar_dense", "item", "tolist", "__int__", "__float__", "__bool__", "cpu")
TO, TO_CUDA = torch.Tensor.to, torch.Tensor.cuda


def is_device(x: Any) -> bool:
    """The GPU or the CPU; torch's meta device is itself."""
    kind = x.type if isinstance(x, torch.device) else x.split(":")[0] if isinstance(x, str) else ""
    return kind in ("cuda", "cpu")


def called(func: Any, args: Any, kwargs: Any) -> Any:
    """func with the tensors' values; what it gives lies where torch would have put it."""
    if func in OF_A_DEVICE:
        return OF_A_DEVICE[func](args[0])
    if getattr(func, "namespace", "") == "vggtquant" and func._opname == "linear":
        # A real GPU's tensors reach the operator's own code, which looks at their device.
        return sys.modules["vggtquant.linear"]._linear(*args, **kwargs)
    given: list[Pretended] = []
    devices: list[torch.device] = []

    def inner(x: Any) -> Any:
        if isinstance(x, Pretended):
            given.append(x)
            return x.inner
        if is_device(x):
            devices.append(torch.device(x))
            return torch.device("cpu")
        return x

    args, kwargs = tree_map(inner, args), tree_map(inner, kwargs)
    cast = torch.autocast(
        "cpu", torch.get_autocast_dtype("cuda"), enabled=torch.is_autocast_enabled("cuda")
    )
    name = getattr(func, "__name__", str(func))
    home = name in HOME or (devices != [] and devices[0].type == "cpu")
    if capturing and given and home:
        raise RuntimeError(f"{name} brings a value home, which a capture cannot hold")
    if func is TO_CUDA:
        func, args, kwargs = torch.clone, args[:1], {}
        devices.append(GPUS[current[-1]])
    places = {x.place for x in given if x.inner.dim()}
    if len(places) > 1 and name not in BETWEEN:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    wanted = devices[0] if devices else None
    place = GPUS[current[-1]] if wanted is None or wanted.index is None else wanted
    if given and wanted is None:
        place = given[0].place
    with cast:
        result = func(*args, **kwargs)
    if given and result is given[0].inner and place != given[0].place:
        result = result.clone()
    if capturing and given:
        capturing[-1].calls.append((again, (func, args, kwargs, result)))
    if home or not (given or devices):
        return result

    def outer(x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, Pretended):
            return x
        if capturing:
            capturing[-1].pool.append(x)
        own = [wrapper for wrapper in given if wrapper.inner is x]
        return own[0] if own else Pretended(x, place)

    return tree_map_only(torch.Tensor, outer, result)


def again(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """torch's own call once more, into the memory of its first result."""
    for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(old, torch.Tensor) and old is not new:
            old.copy_(new)


class OnGpu(TorchDispatchMode):
    """Makes what is asked for on "cuda"; calls on tensors there come by Pretended."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})


class Graph:
    """Notes the calls of _cuda and of torch while it is captured, and makes them again.

    The calls hold addresses, so what was made in the capture stays: pool, as a real graph's.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []
        self.pool: list[torch.Tensor] = []

    def replay(self) -> None:
        for call, args in self.calls:
            call(*args)


@contextlib.contextmanager
def graph(captured: Graph, **_: Any) -> Iterator[None]:
    capturing.append(captured)
    yield
    capturing.pop()


class Event:
    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


class Stream(SimpleNamespace):
    cuda_stream = 0

    def synchronize(self) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...


class Noted:
    """_cuda, whose calls a captured graph notes."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.module, name)

        def noted(*args: Any) -> Any:
            if capturing and not name.endswith(("_nbytes", "_parts")):
                capturing[-1].calls.append((call, args))
            return call(*args)

        return noted


@contextlib.contextmanager
def made_current(device: Any) -> Iterator[None]:
    index = device if isinstance(device, int) else torch.device(device).index
    current.append(current[-1] if index is None else index)
    try:
        yield
    finally:
        current.pop()


PROPERTIES = SimpleNamespace(
    name="a pretended GPU",
    major=9,
    minor=0,
    multi_processor_count=2,
    total_memory=1 << 30,
)


def begin() -> None:
    """From here on there is a GPU in this process."""
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: len(GPUS)
    torch.cuda.get_device_name = lambda *_: "a pretended GPU"
    torch.cuda.get_device_capability = lambda *_: (PROPERTIES.major, PROPERTIES.minor)
    torch.cuda.get_device_properties = lambda *_: PROPERTIES
    torch.cuda.mem_get_info = lambda *_: (PROPERTIES.total_memory // 2, PROPERTIES.total_memory)
    torch.cuda.current_device = lambda: current[-1]
    torch.cuda.empty_cache = lambda: None
    torch.cuda.reset_peak_memory_stats = lambda *_: None
    torch.cuda.max_memory_allocated = lambda *_: 3 << 20
    torch.cuda.max_memory_reserved = lambda *_: 4 << 20
    torch.cuda.is_current_stream_capturing = lambda: bool(capturing)
    torch.cuda.synchronize = lambda *_: None
    torch.cuda._sleep = lambda _: None
    torch.cuda.device = made_current
    torch.cuda.stream = contextlib.nullcontext
    torch.cuda.current_stream = lambda *_: Stream()
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.CUDAGraph, torch.cuda.graph = Graph, graph
    torch.version.cuda = "pretended"
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Tensor.pin_memory = lambda x: x
    torch.Tensor.cuda = lambda x, *_: called(TO_CUDA, (x,), {})
    torch.Tensor.to = lambda x, *args, **kwargs: called(TO, (x, *args), kwargs)
    OnGpu().__enter__()

    from vggtquant import ops, selection

    selection.PLAIN_WEIGHTS += (Pretended,)
    path = os.environ["VGGTQUANT_PRETENDED"]
    loader = importlib.machinery.ExtensionFileLoader("vggtquant._cuda", path)
    spec = importlib.util.spec_from_loader("vggtquant._cuda", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    ops.native.cuda = Noted(module)  # type: ignore[assignment]
    assert ops.cuda_missing() is None


def bench() -> None:
    """tests/bench/cuda.py on small sizes."""
    script = Path(__file__).parent / "bench" / "cuda.py"
    names = runpy.run_path(str(script))
    names["main"].__globals__.update(
        WEIGHTS=[(64, 32)],
        MAPS=[(1, 1, 24, 24)],
        LINEARS=[(64, 32)],
        TOKENS=[9, 16],
        flush=lambda: torch.empty(16, dtype=torch.uint8, device="cuda"),
    )
    sys.argv = [str(script), "--quick"]
    names["main"]()


if __name__ == "__main__":
    begin()
    bench()
elif "VGGTQUANT_PRETENDED" in os.environ:  # as a plugin of pytest
    begin()
