# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the Python entry points with atheris: a right result or an error of one line.

    python tests/fuzz_python.py api|binding|checkpoint [libFuzzer's options] FOLDER

api: quantize, dequantize, compare, ssim and QuantizedLinear on arrays and tensors of any kind.
binding: every function of _cpu and _render, arguments of any kind in any place. checkpoint: all
readers of files, which fuzz_checkpoint.py's damage mutates. FOLDER holds the corpus; that of api
and binding is tests/data/fuzz/python.bin (corpus.py unpacks it), that of checkpoint lies beside it.
tests/test_fuzz.py replays both without atheris.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

if __name__ == "__main__":
    import atheris

    watching = atheris.instrument_imports(include=["vggtquant", "fuzz_checkpoint"])
else:
    watching = nullcontext()

with watching:
    import fuzz_checkpoint
    import test_hostile
    import torch

    import vggtquant as vq
    from vggtquant import UserError

DATA = Path(__file__).with_name("data") / "fuzz"
SCHEMES = [*vq.CONFIGS]
DTYPES = ["f4", "f2", "f8", "u2", "i1", "u1", "i4", "?", "c8", ">f4", "O", "M8[s]"]
WORDS = ["i8", "i4", "int8", "int16", "float", "bfloat16", "per_row", "two_level", "per_group", ""]


class Bytes:
    """The input, taken piece by piece; zeros once it is used up."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, n: int) -> bytes:
        taken, self.data = self.data[:n], self.data[n:]
        return taken.ljust(n, b"\0")

    def below(self, n: int) -> int:
        return int.from_bytes(self.take(1 + (n > 256)), "little") % n

    def one_of(self, values: Any) -> Any:
        return values[self.below(len(values))]

    def floats(self, n: int) -> np.ndarray:
        """Bits of the input, or numbers that are ordinary: else hardly a call gets far."""
        if self.below(3) == 0:
            return np.frombuffer(self.take(4 * n), np.float32).copy()
        rng = np.random.default_rng(self.below(65536))
        return (rng.normal(0, 1, n) * 2.0 ** (self.below(80) - 40)).astype(np.float32)


def shape(data: Bytes) -> tuple[int, ...]:
    sizes = tuple(data.below(20) for _ in range(data.below(5)))
    return (*sizes, data.below(300)) if data.below(2) else sizes


def array(data: Bytes) -> Any:
    """An array or a tensor of any kind."""
    dims = shape(data)
    n = int(np.prod(dims))
    if n > 20_000:
        dims, n = (3, 40), 120
    kind = data.below(12)
    x: Any = data.floats(n).reshape(dims)
    if kind < 4 or x.ndim == 0:
        return x
    if kind == 4:
        return torch.from_numpy(x).to(data.one_of([torch.bfloat16, torch.float16, torch.float64]))
    if kind == 5:
        return torch.from_numpy(x)[..., :: 1 + data.below(3)]
    if kind == 6:
        return torch.from_numpy(x).T if x.ndim == 2 else torch.from_numpy(x).requires_grad_()
    if kind == 7:
        return x[..., :: -1 - data.below(2)]
    if kind == 8:
        return np.broadcast_to(x, (1 + data.below(3), *x.shape))
    if kind == 9:
        return np.ma.masked_array(x)
    if kind == 10:
        return [*test_hostile.REFUSED.values(), *test_hostile.SAME.values()][data.below(40)]()
    with np.errstate(all="ignore"):
        return x.astype(data.one_of(DTYPES))


def spec(data: Bytes) -> Any:
    if data.below(2):
        return data.one_of(SCHEMES)
    kind = data.one_of(["per_tensor", "per_channel", "per_group", "per_block"])
    bits, group = data.one_of([8, 4, 3, 0]), data.below(300) - 1
    return vq.QuantizationSpec(bits, bool(data.below(2)), kind, *([group] if data.below(2) else []))


def quantized(data: Bytes) -> None:
    x, to = array(data), spec(data)
    given = {name: array(data) for name in ("scale", "zero_point") if data.below(4) == 0}
    q = vq.quantize(x, to, **given)
    back = vq.dequantize(q)
    assert tuple(back.shape) == tuple(x.shape) == tuple(q.shape)
    lowest, highest = (-128, 127) if q.spec.bits == 8 else (-8, 7)
    assert not q.codes.size or lowest <= q.codes.min() <= q.codes.max() <= highest


def compared(data: Bytes) -> None:
    r = array(data)
    c = r if data.below(4) == 0 else array(data)
    options: dict[str, Any] = {}
    if data.below(2):
        options["image_axes"] = (data.below(5) - 2, data.below(5) - 2)
    if data.below(2):
        options["data_range"] = float(data.floats(1)[0])
    scores = vq.compare(r, c, **options)
    if r is c and scores["mae"] is not None:
        assert scores["mae"] == scores["mse"] == 0


def similar(data: Bytes) -> None:
    value = vq.ssim(array(data), array(data), image_axes=(data.below(5) - 2, data.below(5) - 2))
    assert value is None or -1.0000001 <= value <= 1.0000001


def multiplied(data: Bytes) -> None:
    k, n = 1 + data.below(70), 1 + data.below(70)
    linear = torch.nn.Linear(k, n, bias=bool(data.below(2)))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(data.floats(n * k).reshape(n, k)))
        layer = vq.QuantizedLinear.from_linear(linear, spec(data))
        x = torch.from_numpy(data.floats((1 + data.below(9)) * k)).reshape(-1, k)
        x = x if data.below(4) else array(data)
        y = layer(x)
    assert y.shape == (*x.shape[:-1], n)


def api(raw: bytes) -> None:
    data = Bytes(raw)
    try:
        data.one_of([quantized, compared, similar, multiplied])(data)
    except (UserError, TypeError, ValueError, MemoryError, RuntimeError) as error:
        one_line(error, raw)


def one_line(error: Exception, raw: bytes) -> None:
    """A message is one line, and an error of torch's (RuntimeError) only where torch is asked."""
    if not str(error) or (isinstance(error, UserError) and "\n" in str(error)):
        raise AssertionError(f"not one line: {error!r}") from error


CALLS = test_hostile.every_call()


def argument(data: Bytes) -> Any:
    kind = data.below(8)
    if kind == 0:
        value = data.one_of(test_hostile.NASTY)
        return value.copy() if isinstance(value, np.ndarray) else value
    if kind == 1:
        return data.one_of(WORDS)
    if kind == 2:
        return int.from_bytes(data.take(8), "little", signed=True) >> data.below(64)
    if kind == 3:
        return tuple(int.from_bytes(data.take(2), "little") for _ in range(data.below(5)))
    if kind == 4:
        return float(data.floats(1)[0])
    dtype = data.one_of(["f4", "f2", "u2", "u1", "i1", "f8", "u8"])
    dims = shape(data)
    if np.prod(dims) > 20_000:
        dims = (3, 40)
    nbytes = int(np.prod(dims)) * np.dtype(dtype).itemsize
    start = data.take(min(nbytes, 256))
    return np.frombuffer(start.ljust(nbytes, b"\0")[:nbytes], dtype).reshape(dims).copy()


def binding(raw: bytes) -> None:
    data = Bytes(raw)
    function, good = CALLS[data.one_of([*CALLS])]
    given = [a.copy() if isinstance(a, np.ndarray) else a for a in good]
    for _ in range(1 + data.below(3)):
        at = data.below(len(given))
        a = given[at]
        plain = isinstance(a, np.ndarray) and a.size and a.flags.carray
        if plain and data.below(2):
            flat = a.reshape(-1).view(np.uint8)  # other bytes in an array that fits
            first = data.below(flat.size)
            new = np.frombuffer(data.take(min(16, flat.size - first)), np.uint8)
            flat[first : first + len(new)] = new
        else:
            given[at] = argument(data)
    try:
        function(*given)
    except (TypeError, ValueError, OverflowError) as error:
        if not str(error) or "\n" in str(error):
            raise AssertionError(f"not one line: {error!r}") from error


def checkpoint(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.safetensors"
        path.write_bytes(raw)
        fuzz_checkpoint.feed(path)


def damaged(raw: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's own mutation one time in four; else damage that knows the format."""
    if seed % 4 == 0:
        return atheris.Mutate(raw, most)
    return fuzz_checkpoint.mutated(random.Random(seed), raw)[:most]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "api": api, "binding": binding, "checkpoint": checkpoint
}  # fmt: skip


def main() -> None:
    target, *options = sys.argv[1:]
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    for function in [*globals().values(), Bytes.take, Bytes.below, Bytes.floats]:
        if isinstance(function, FunctionType) and function.__module__ == "__main__":
            atheris.instrument_func(function)  # what input a target makes guides it too
    custom = {"custom_mutator": damaged} if target == "checkpoint" else {}
    atheris.Setup([sys.argv[0], *options], TARGETS[target], **custom)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
