# SPDX-License-Identifier: Apache-2.0
"""vggtquant._cpu refuses what would read or write elsewhere, and writes nothing when it does."""

import ast
import gc
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vggtquant
from vggtquant import (
    _cpu,  # the exception to "only vggtquant/ops imports _cpu": this is its test
    _render,
)

Array = NDArray[Any]

N, K, G = 3, 40, 8
SHAPE = (N, K, G)
GROUPS = N * K // G


def arguments() -> dict[str, list[Any]]:
    """Good arguments for every function that takes arrays; outputs by their names in OUTPUTS."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (N, K)).astype(np.float32)
    y = np.empty((N, N), np.float32)
    scale, factor = np.ones(N, np.float32), np.ones(GROUPS, np.uint8)
    q = rng.integers(0, 255, (N, K // 2), dtype=np.uint8)
    packed = np.empty(_cpu.packed_nbytes("i4", "two_level", SHAPE, False), np.uint8)
    _cpu.pack("i4", "two_level", SHAPE, q, scale, factor, None, packed)
    lo, hi = -np.ones(GROUPS, np.float32), np.ones(GROUPS, np.float32)
    floats = np.full(GROUPS, 0.1, np.float32)
    zero, wide = np.zeros(GROUPS, np.int8), np.empty((N, K), np.uint8)
    return {
        "range": [SHAPE, x, lo.copy(), hi.copy(), np.empty(N, np.uint64)],
        "parameters": ["i8", lo, hi, floats.copy(), zero.copy()],
        "quantize": ["i8", SHAPE, x, floats, zero, wide],
        "dequantize": ["i8", SHAPE, wide, floats, zero, x.copy()],
        "two_level": [SHAPE, x, scale, factor, zero, np.empty((N, 2))],
        "pack": ["i4", "two_level", SHAPE, q, scale, factor, None, packed.copy()],
        "packed_weight": [packed],
        "unpack": [packed, q.copy(), scale.copy(), factor.copy(), None],
        "linear": [
            packed,
            "int8",
            x,
            (None, None, 0.0),
            (None, None, 0.0),
            floats[:N].copy(),
            False,
            floats[:N].copy(),
            y.copy(),
            y,
        ],  # fmt: skip
    }


OUTPUTS = {
    "range": [2, 3, 4],
    "parameters": [3, 4],
    "quantize": [5],
    "dequantize": [5],
    "two_level": [2, 3, 4, 5],
    "pack": [7],
    "unpack": [1, 2, 3],
    "linear": [9],
}
ARRAYS = [
    (name, at)
    for name, values in arguments().items()
    for at, value in enumerate(values)
    if isinstance(value, np.ndarray)
]
each_array = pytest.mark.parametrize("name, at", ARRAYS)
each_output = pytest.mark.parametrize(
    "name, at", [(n, at) for n, ats in OUTPUTS.items() for at in ats]
)


@pytest.mark.parametrize("name", arguments())
def test_good_arguments_are_taken(name: str) -> None:
    getattr(_cpu, name)(*arguments()[name])


def refused(name: str, at: int, value: object, error: type[Exception], message: str) -> None:
    given = arguments()[name]
    given[at] = value
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in given]
    with pytest.raises(error, match=message):
        getattr(_cpu, name)(*given)
    for old, new in zip(before, given, strict=True):
        if isinstance(old, np.ndarray):
            np.testing.assert_array_equal(old, new)


@each_array
def test_other_dtypes(name: str, at: int) -> None:
    a = arguments()[name][at]
    refused(
        name, at, a.astype(np.complex64), TypeError, "an array of .* is wanted, not of complex64"
    )
    refused(
        name, at, a.astype(np.float64 if a.dtype != np.float64 else "f4"), TypeError, "is wanted"
    )


@each_array
def test_what_is_no_array(name: str, at: int) -> None:
    for value in (1.5, "abc", [1.0], b"abc"):
        refused(name, at, value, TypeError, f"array of .* is wanted, not {type(value).__name__}")


@each_array
def test_wrong_sizes(name: str, at: int) -> None:
    a = arguments()[name][at].ravel()
    shorter, longer = a[:-1].copy(), np.concatenate([a, a[:1]])
    for value in (shorter, longer, a[:0].copy()):
        refused(name, at, value, ValueError, "sizes|packed weights")


@each_array
def test_arrays_that_are_not_contiguous(name: str, at: int) -> None:
    a = arguments()[name][at]
    if a.size < 2:
        return
    value = np.repeat(a.ravel(), 2)[::2]
    refused(name, at, value, ValueError, "C-contiguous.*, not a non-contiguous one")


@each_array
def test_arrays_that_are_misaligned_or_swapped(name: str, at: int) -> None:
    a = arguments()[name][at]
    if a.itemsize == 1:
        return
    misaligned = np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:].view(a.dtype).reshape(a.shape)
    misaligned[...] = a
    refused(name, at, misaligned, ValueError, "not a misaligned one")
    refused(name, at, a.astype(a.dtype.newbyteorder()), ValueError, "not a byte-swapped one")


@each_output
def test_outputs_that_are_read_only(name: str, at: int) -> None:
    value = arguments()[name][at]
    if value is None:
        return
    value.flags.writeable = False
    refused(
        name, at, value, ValueError, "C-contiguous writable array of .* is wanted, not a read-only"
    )


@pytest.mark.parametrize("name", ["range", "quantize", "dequantize", "two_level"])
@pytest.mark.parametrize(
    "shape",
    [(N, K, 0), (N, K, K + 1), (N, K, -1), (-1, -K, 8), (N + 1, K, G), (2**62, 2**62, 8)],
)
def test_shapes_that_do_not_fit(name: str, shape: tuple[int, int, int]) -> None:
    at = 1 if name in ("quantize", "dequantize") else 0
    refused(name, at, shape, ValueError, "size")


@pytest.mark.parametrize("shape", [(N, K, 12), (N, K, 0), (0, K, G), (N, 0, G), (2**62, K, G)])
def test_weights_that_cannot_be_packed(shape: tuple[int, int, int]) -> None:
    assert _cpu.packed_nbytes("i4", "two_level", shape, False) == 0
    refused("pack", 2, shape, ValueError, "sizes|32-bit")


def test_rows_too_deep() -> None:
    assert _cpu.packed_nbytes("i4", "two_level", (N, 65537, G), False) == 0
    refused("pack", 2, (N, 65537, G), ValueError, "a row too long for exact 32-bit sums")


def test_names_that_are_unknown() -> None:
    refused("quantize", 0, "i3", ValueError, "unknown number format 'i3'")
    refused("quantize", 0, 8, ValueError, "unknown number format 8")
    refused("pack", 1, "per_tensor", ValueError, "unknown kind of scales 'per_tensor'")
    for name in ("avx", "AVX2", ""):
        with pytest.raises(
            RuntimeError, match="an instruction set that is unknown or does not run"
        ):
            _cpu.use(name)
    assert _cpu.isa() in _cpu.isas()


def test_kinds_of_scales_that_do_not_go_with_the_format() -> None:
    assert _cpu.packed_nbytes("i8", "two_level", SHAPE, False) == 0
    assert _cpu.packed_nbytes("i8", "per_group", SHAPE, False) == 0
    assert _cpu.packed_nbytes("i4", "per_row", SHAPE, False) == 0


def test_factors_and_zero_points_come_where_they_belong() -> None:
    refused("pack", 5, None, ValueError, "sizes")  # two_level without factors
    given = arguments()["pack"]
    refused("pack", 6, np.zeros(GROUPS, np.int8), ValueError, "do not fit")  # packed is too short
    assert len(given[7]) < _cpu.packed_nbytes("i4", "two_level", SHAPE, True)
    refused("unpack", 3, None, ValueError, "sizes")
    refused("unpack", 4, np.zeros(GROUPS, np.int8), ValueError, "sizes")


@pytest.mark.parametrize("name", arguments())
def test_too_few_and_too_many_arguments(name: str) -> None:
    given = arguments()[name]
    with pytest.raises(TypeError):
        getattr(_cpu, name)(*given[:-1])
    with pytest.raises(TypeError):
        getattr(_cpu, name)(*given, None)


def test_nothing_is_leaked() -> None:
    """Wrappers borrow: arrays refused or taken 200 times keep their reference counts."""
    for name, given in arguments().items():
        function = getattr(_cpu, name)
        before = [sys.getrefcount(value) for value in given]
        for _ in range(200):
            function(*given)
            with pytest.raises(TypeError):
                function(*given[:-1], object())
        gc.collect()
        assert [sys.getrefcount(value) for value in given] == before


def test_the_interpreter_runs_meanwhile() -> None:
    """The GIL is released: another thread advances during one long call."""
    x = np.ones((1, 4_000_000), np.float32)
    shape, q = (1, x.size, x.size), np.empty(x.shape, np.uint8)
    scale, done, ticks = np.ones(1, np.float32), threading.Event(), 0

    def work() -> None:
        for _ in range(10):
            _cpu.quantize("i8", shape, x, scale, None, q)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not done.is_set():
        ticks += 1
        time.sleep(0.0005)
    worker.join()
    assert ticks > 3


def test_the_stub_lists_the_module() -> None:
    """Every public name of the module stands in _cpu.pyi, and nothing else does."""
    stub = Path(vggtquant.__file__).with_name("_cpu.pyi").read_text()
    listed = {node.name for node in ast.parse(stub).body if isinstance(node, ast.FunctionDef)}
    module = {name for name in dir(_cpu) if not name.startswith("_")}
    assert listed == module


@pytest.mark.parametrize(
    "name",
    ["use", "set_threads", "packed_nbytes", "linear_isa", "attention_isa", "ssim_parts",
     "compare_parts", "cuda_packed_nbytes", "cuda_pack", "cuda_unpack"],
)  # fmt: skip
def test_arguments_of_another_kind(name: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        getattr(_cpu, name)(object())


def test_read_only_pictures() -> None:
    from test_hostile import more_arguments

    function, given = more_arguments()["render"]
    for at in (8, 9, 10):
        pictures = [a.copy() if isinstance(a, np.ndarray) else a for a in given]
        pictures[at].flags.writeable = False
        with pytest.raises(ValueError, match="must be writeable"):
            function(*pictures)


@pytest.mark.parametrize("layout", ["", "cuda_"])
@pytest.mark.parametrize("has_zero", [False, True])
@pytest.mark.parametrize("kind", ["two_level", "per_group"])
def test_packed_weights_come_back(layout: str, has_zero: bool, kind: str) -> None:
    shape, rng = (64, 128, 32), np.random.default_rng(0)
    groups = 64 * 128 // 32
    q = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    scale = rng.random(groups if kind == "per_group" else 64, dtype=np.float32)
    largest = 8 if has_zero else 15
    factor = rng.integers(1, largest + 1, groups, np.uint8) if kind == "two_level" else None
    zero = rng.integers(-8, 8, groups, dtype=np.int8) if has_zero else None
    nbytes = getattr(_cpu, f"{layout}packed_nbytes")("i4", kind, shape, has_zero)
    packed = np.empty(nbytes, np.uint8)
    getattr(_cpu, f"{layout}pack")("i4", kind, shape, q, scale, factor, zero, packed)
    if not layout:
        assert _cpu.packed_weight(packed) == (4, kind, shape, has_zero)
    given = [q, scale, factor, zero]
    back = [a if a is None else np.zeros_like(a) for a in given]
    getattr(_cpu, f"{layout}unpack")(packed, *back)
    for a, b in zip(given, back, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("x", "y"), [((N + 1, K), (N, N)), ((N, K + 1), (N, N)), ((N, K), (N, N + 1)),
                 ((N, K), (N * N,)), ((N * K,), (N, N))]
)  # fmt: skip
def test_operands_of_one_wrong_size(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    given = arguments()["linear"]
    given[2] = np.zeros(x, np.float32)
    given[-1] = np.zeros(y, np.float32)
    with pytest.raises(ValueError, match=re.escape(f"x {x} and y {y} are given; (m, {K})")):
        _cpu.linear(*given)


@pytest.mark.parametrize("sizes", [(-1, 64, 8), (64, -1, 8), (64, 64, -1), (64, 64, -(2**63))])
def test_negative_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    """A negative group once wrapped to a huge one, and a pack read past its arrays."""
    q, scale, none = np.zeros((64, 32), np.uint8), np.ones(64, np.float32), np.empty(0, np.uint8)
    packed, x, count = (
        np.zeros(1 << 16, np.uint8),
        np.zeros((64, 64), np.float32),
        np.empty(64, "u8"),
    )
    calls: list[tuple[Any, list[Any]]] = [
        (_cpu.pack, ["i4", "two_level", sizes, q, scale, none, None, packed]),
        (_cpu.cuda_pack, ["i4", "two_level", sizes, q, scale, none, None, packed]),
        (_cpu.pack, ["i4", "per_group", sizes, q, scale, None, None, packed]),
        (_cpu.cuda_pack, ["i4", "per_group", sizes, q, scale, None, None, packed]),
        (_cpu.packed_nbytes, ["i4", "per_group", sizes, False]),
        (_cpu.cuda_packed_nbytes, ["i4", "per_group", sizes, False]),
        (_cpu.range, [sizes, x, scale, scale.copy(), count]),
        (_cpu.quantize, ["i4", sizes, x, scale, None, q]),
        (_cpu.dequantize, ["i4", sizes, q, scale, None, x]),
        (_cpu.two_level, [sizes, x, scale, none, None, np.zeros((64, 2))]),
        (_cpu.ssim_parts, [1, *sizes]),
        (_cpu.ssim_parts, [*sizes, 1]),
        (_cpu.compare_parts, [min(sizes)]),
        (_cpu.cross_entropy_parts, [min(sizes)]),
    ]
    for call, given in calls:
        with pytest.raises(
            ValueError, match=f"a size of {min(sizes)} is given; 0 or more is wanted"
        ):
            call(*given)


def test_a_negative_width_of_the_rotation_is_refused() -> None:
    qkv, table, y = (np.ones(s, np.float32) for s in ((1, 2, 3, 1, 32), (2, 8), (1, 2, 32)))
    norm = (None, None, 0.0)
    with pytest.raises(ValueError, match="a size of -16 is given; 0 or more is wanted"):
        _cpu.attention("float", "float", qkv, norm, norm, (table, table, -16), 0.2, y)


def test_a_refused_instruction_set_is_warned_of() -> None:
    """Kernels that selfcheck.c found wrong are named, when the first of ours is needed."""
    code = f"""
import importlib.machinery, importlib.util, sys, warnings
loader = importlib.machinery.ExtensionFileLoader("vggtquant._cpu", {_cpu.__file__!r})
spec = importlib.util.spec_from_loader("vggtquant._cpu", loader)
_cpu = sys.modules["vggtquant._cpu"] = importlib.util.module_from_spec(spec)
loader.exec_module(_cpu)
_cpu.isas_refused = lambda: ["neondot", "neoni8mm"]
warnings.simplefilter("error")
import vggtquant.ops
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "the kernels for neondot, neoni8mm gave other results" in told.stderr


@pytest.mark.parametrize("pair", range(4), ids=["size", "kernel", "stride", "padding"])
@pytest.mark.parametrize("axis", [0, 1])
def test_negative_sizes_of_a_convolution_are_refused(pair: int, axis: int) -> None:
    sizes = [[4, 4], [1, 1], [1, 1], [0, 0]]
    sizes[pair][axis] = -3
    packed = np.empty(_cpu.packed_nbytes("i8", "per_row", (8, 8, 8), False), np.uint8)
    q, scale = np.zeros((8, 8), np.uint8), np.ones(8, np.float32)
    _cpu.pack("i8", "per_row", (8, 8, 8), q, scale, None, None, packed)
    x, y, most = (np.zeros(s, np.float32) for s in ((1, 4, 4, 8), (1, 4, 4, 8), (1, 2)))
    given: list[Any] = [packed, x, *map(tuple, sizes), *[False] * 4, *[None] * 8, y, most, None]
    with pytest.raises(ValueError, match="a size of -3 is given; 0 or more is wanted"):
        _cpu.conv2d(*given)


def test_parts_of_any_count() -> None:
    most = 2**63 - 1
    assert _cpu.compare_parts(most) > _cpu.compare_parts(most // 2) > 0
    with pytest.raises(OverflowError):
        _cpu.compare_parts(most + 1)


@pytest.mark.parametrize("kind", [0.5, 1.5, 3.75, -0.0001, 4, float("nan")])
def test_a_shape_or_texture_between_two_kinds(kind: float) -> None:
    """0.5 once passed for a box and was drawn as a room, whose six textures were not there."""
    from test_hostile import more_arguments

    function, given = more_arguments()["render"]
    shapes = np.concatenate([given[0][:1], given[0][:1]])
    shapes[1, 0] = kind
    with pytest.raises(ValueError, match="shape 0 is a room, all others are boxes"):
        function(shapes, *given[1:])
    textures = given[1].copy()
    textures[0, 0] = kind if kind != 4 else 9
    if not float(textures[0, 0]).is_integer() or kind == 4:
        with pytest.raises(ValueError, match="a texture is of no known kind"):
            function(given[0], textures, *given[2:])


def test_pictures_of_other_shapes_and_layouts() -> None:
    from test_hostile import more_arguments

    function, given = more_arguments()["render"]
    for at, shape in ((3, (4,)), (9, (4, 4)), (9, (2, 4, 4)), (8, (1, 4, 4)), (10, (1, 4, 4))):
        pictures = [*given]
        pictures[at] = np.zeros(shape, given[at].dtype)
        with pytest.raises(ValueError, match="rgb and points"):
            function(*pictures)
    for at in (0, 9):
        pictures = [*given]
        pictures[at] = np.repeat(given[at], 2, axis=-1)[..., ::2]
        with pytest.raises(TypeError, match="C-contiguous"):
            function(*pictures)
    for points in (np.array(1, np.float32), np.zeros((3, 2), np.float32)):
        with pytest.raises(ValueError, match=re.escape("(..., 3)")):
            _render.mean_norm(points)
