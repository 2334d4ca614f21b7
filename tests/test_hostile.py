# SPDX-License-Identifier: Apache-2.0
"""Every public function against hostile arguments: a right result, or an error of one line.

Memory safety of the binding's own checks is test_binding.py's; here are values that other
libraries make, leaks, failing allocations and sub-interpreters.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_binding
import torch
from torch._subclasses import FakeTensorMode

import vggtquant as vq
from vggtquant import UserError, _cpu, _render

GOOD = np.random.default_rng(0).normal(0, 1, (12, 16)).astype(np.float32)
TENSOR = torch.from_numpy(GOOD)
LAYER = vq.QuantizedLinear.from_linear(torch.nn.Linear(16, 8), "INT4_Group_32_A8")


class Lying:
    """Says that it is GOOD; what it hands out is something else."""

    dtype, shape, ndim, size = GOOD.dtype, GOOD.shape, GOOD.ndim, GOOD.size

    def __init__(self, told: Callable[[], Any]) -> None:
        self.told = told

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.told()


class Quantity(np.ndarray):
    """With a unit, as astropy has it."""

    def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
        return NotImplemented


class LyingShape(np.ndarray):
    shape = property(lambda self: (1000, 1000))  # type: ignore[assignment]


def raising() -> Any:
    raise ValueError("no array today")


def freed(keep: int = 0, view: Callable[[Any], Any] = lambda x: x) -> torch.Tensor:
    """A tensor whose storage is gone but for so many bytes."""
    base = view(TENSOR).contiguous() if view(TENSOR) is not TENSOR else TENSOR.clone()
    x = view(base)
    base.untyped_storage().resize_(keep)
    return x


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.zeros(12, 16)


# Values that are GOOD in another form: the result must be the same.
SAME: dict[str, Callable[[], Any]] = {
    "negative strides": lambda: np.ascontiguousarray(GOOD[::-1, ::-1])[::-1, ::-1],
    "a slice": lambda: np.repeat(GOOD, 2, axis=1)[:, ::2],
    "column-major": lambda: np.asfortranarray(GOOD),
    "byte-swapped": lambda: GOOD.astype(">f4"),
    "misaligned": lambda: np.frombuffer(b"\0" + GOOD.tobytes(), "f4", offset=1).reshape(12, 16),
    "read-only": lambda: np.frombuffer(GOOD.tobytes(), np.float32).reshape(12, 16),
    "a matrix": lambda: np.asmatrix(GOOD),
    "masked": lambda: np.ma.masked_array(GOOD, np.zeros_like(GOOD, bool)),
    "a tensor": lambda: TENSOR,
    "with gradient": lambda: TENSOR.clone().requires_grad_(),
    "a parameter": lambda: torch.nn.Parameter(TENSOR.clone()),
    "a transposed tensor": lambda: TENSOR.T.contiguous().T,
    "negated in name only": lambda: torch._neg_view(-TENSOR),
    "of a conjugate": lambda: torch.complex(TENSOR, -TENSOR).conj().imag,
    "an expanded tensor": lambda: TENSOR.unsqueeze(0).expand(1, 12, 16)[0],
    "inference": lambda: torch.inference_mode()(TENSOR.clone)(),
}  # fmt: skip

# Values that no function takes where it wants GOOD.
REFUSED: dict[str, Callable[[], Any]] = {
    **{f"of {d}": lambda d=d: GOOD.astype(d) for d in ("f8", "i4", "c8", "O", "U4", "?")},
    "masked values": lambda: np.ma.masked_less(GOOD, -1),
    "a quantity": lambda: GOOD.view(Quantity),
    "dates": lambda: np.zeros((12, 16), "M8[s]"),
    "structures": lambda: np.zeros((12, 16), [("a", "f4")]),
    "raw bytes": lambda: np.zeros((12, 16), "V4"),
    "None": lambda: None,
    "a number": lambda: 3.5,
    "text": lambda: "abc",
    "bytes": lambda: b"abc",
    "a list": lambda: GOOD.tolist(),
    "a buffer": lambda: memoryview(GOOD),
    "lying about its shape": lambda: Lying(lambda: GOOD[:3, :2]),
    "raising": lambda: Lying(raising),
    "meta": lambda: torch.zeros(12, 16, device="meta"),
    "sparse": lambda: TENSOR.to_sparse(),
    "sparse rows": lambda: TENSOR.to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, 3)]),
    "masked tensor": lambda: torch.masked.masked_tensor(TENSOR, TENSOR > 0),
    "quantized": lambda: torch.quantize_per_tensor(TENSOR, 0.1, 0, torch.qint8),
    "float64 tensor": lambda: TENSOR.double(),
    "complex tensor": lambda: TENSOR.cfloat(),
    "float8": lambda: TENSOR.to(torch.float8_e4m3fn),
    "fake": fake,
    "freed": freed,
    "cut short": lambda: freed(GOOD.nbytes - 4),
    "freed, transposed": lambda: freed(view=lambda x: x.T),
}
# Too large for any memory; its elements are one and the same.
HUGE = {
    "huge": lambda: np.broadcast_to(np.float32(1), (2**30, 2**30)),
    "huge tensor": lambda: torch.ones(1).expand(2**30, 2**30),
}


def codes(x: Any) -> bytes:
    return vq.quantize(x, "INT4_Group_32").packed.tobytes()


def output(x: Any) -> bytes:
    with torch.no_grad():
        return LAYER(x).numpy().tobytes()


def scored(**metrics: Any) -> str:
    return repr(metrics)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "quantize": codes,
    "dequantize": lambda x: (
        vq.quantize(x, "INT8_Per_Channel_Symmetric").dequantize().tobytes()
        if isinstance(x, np.ndarray)
        else vq.quantize(x, "INT8_Per_Channel_Symmetric").dequantize().numpy().tobytes()
    ),
    "compare, reference": lambda x: scored(**vq.compare(x, GOOD)),
    "compare, candidate": lambda x: scored(**vq.compare(GOOD, x)),
    "ssim": lambda x: vq.ssim(x, GOOD, image_axes=(0, 1)),
    "QuantizedLinear": output,
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse and nested tensors: prototypes
        yield


def good(name: str) -> Any:
    return TENSOR if name == "QuantizedLinear" else GOOD


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("form", SAME)
def test_other_forms_give_the_same(name: str, form: str) -> None:
    function, x = FUNCTIONS[name], SAME[form]()
    if name == "QuantizedLinear" and not isinstance(x, torch.Tensor):
        with pytest.raises(TypeError):
            function(x)
    else:
        assert function(x) == function(good(name))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_array_of_floats_is_refused(name: str, kind: str) -> None:
    with pytest.raises((UserError, TypeError, ValueError)) as raised:
        FUNCTIONS[name](REFUSED[kind]())
    assert str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "QuantizedLinear"])
@pytest.mark.parametrize("kind", HUGE)
def test_what_no_memory_holds(name: str, kind: str) -> None:
    with pytest.raises((UserError, MemoryError, RuntimeError, ValueError)):
        FUNCTIONS[name](HUGE[kind]())


@pytest.mark.parametrize("what", ["scale", "zero_point"])
@pytest.mark.parametrize("kind", [*REFUSED, *HUGE])
def test_parameters_that_are_none(what: str, kind: str) -> None:
    given = {"scale": np.ones(12), what: (REFUSED | HUGE)[kind]()}
    if given["scale"] is None:
        return
    with pytest.raises((UserError, TypeError, ValueError, MemoryError, RuntimeError)) as raised:
        vq.quantize(GOOD, "INT8_Per_Channel_Asymmetric", **given)
        assert given["zero_point"] is None
        raise UserError("a zero point of None is none")
    assert not isinstance(raised.value, AttributeError)


def test_parameters_as_tensors() -> None:
    scale = np.linspace(0.01, 0.1, 12, dtype=np.float32)
    want = vq.quantize(GOOD, "INT8_Per_Channel_Symmetric", scale=scale)
    for form in (torch.from_numpy(scale), torch.nn.Parameter(torch.from_numpy(scale))):
        q = vq.quantize(GOOD, "INT8_Per_Channel_Symmetric", scale=form)
        np.testing.assert_array_equal(q.codes, want.codes)


def test_a_layer_whose_bias_was_freed() -> None:
    """As sharding does with parameters that it has gathered before."""
    layer = vq.QuantizedLinear.from_linear(torch.nn.Linear(16, 8), "INT8_Per_Channel_Symmetric")
    layer.bias.untyped_storage().resize_(0)
    with pytest.raises(UserError, match="storage has been freed"), torch.no_grad():
        layer(TENSOR)


def test_an_array_that_lies_about_its_shape() -> None:
    """NumPy's own shape counts; the core never sees another."""
    lying = GOOD.view(LyingShape)
    with pytest.raises(ValueError):
        vq.quantize(lying, "INT4_Group_32")
    for name in ("compare, reference", "compare, candidate", "ssim"):
        try:
            assert FUNCTIONS[name](lying) == FUNCTIONS[name](GOOD)
        except (UserError, ValueError) as error:
            assert str(error)


def test_shapes_of_nothing_and_of_one() -> None:
    for shape in ((0,), (0, 16), (16, 0), (1,), (), (1, 1, 1, 1)):
        x = np.ones(shape, np.float32)
        back = vq.quantize(x, "INT4_Group_32").dequantize()
        assert back.shape == shape
        if x.size:
            assert vq.compare(x, x)["mae"] == 0


NOT_Q = [*REFUSED, *SAME]


@pytest.mark.parametrize("kind", NOT_Q)
def test_only_a_qtensor_is_dequantized(kind: str) -> None:
    with pytest.raises(TypeError, match="a QTensor is wanted"):
        vq.dequantize((REFUSED | SAME)[kind]())


MODEL = torch.nn.Linear(16, 8)
INT8 = "INT8_Per_Channel_Symmetric"
WRONG_TYPES: dict[str, Callable[[], Any]] = {
    "model is NoneType; wanted a torch.nn.Module": lambda: vq.model_bytes(None),
    "model is OrderedDict; wanted a torch.nn.Module": lambda: vq.model_bytes(MODEL.state_dict()),
    "the model is NoneType; wanted a torch.nn.Module": lambda: vq.fit(None, "8 GB"),
    "memory is NoneType; wanted a size such as '8 GB', or bytes": lambda: vq.fit(MODEL, None),
    "linear is NoneType; wanted a torch.nn.Linear": lambda: vq.QuantizedLinear.from_linear(
        None, INT8
    ),
    "linear is Conv2d; wanted a torch.nn.Linear": lambda: vq.QuantizedLinear.from_linear(
        torch.nn.Conv2d(3, 3, 1), INT8
    ),
    "source is NoneType; wanted the name of a model or file": lambda: vq.quantize_file(
        None, INT8, "x.safetensors"
    ),
    "out is NoneType; wanted the path of a file": lambda: vq.quantize_file(
        "builtin:tiny", INT8, None
    ),
    "source is NoneType; wanted a packed file, a directory or a hub id": lambda: vq.load(None),
    "model is NoneType; wanted a module, or the name of one": lambda: vq.export(None, "x"),
    "out is NoneType; wanted a folder": lambda: vq.export(MODEL, None),
    "path is NoneType; wanted a file of results or its folder": lambda: vq.Report.read(None),
}


@pytest.mark.parametrize("words", WRONG_TYPES)
def test_an_argument_of_another_type_is_named(words: str) -> None:
    """A UserError, as all bad input, and a TypeError for who looks for that."""
    with pytest.raises(TypeError) as error:
        WRONG_TYPES[words]()
    assert isinstance(error.value, UserError) and words in str(error.value)


# ---- the module itself ---------------------------------------------------------------------------


def more_arguments() -> dict[str, tuple[Any, list[Any]]]:
    """Function and good arguments of the rest of the binding (beside test_binding.arguments)."""
    x, parts = GOOD.ravel(), np.empty((1, 16))
    values = np.empty(len(_cpu.metric_rows()))
    moments = np.zeros(len(_cpu.moment_names()))
    image, doubles = GOOD.reshape(1, 12, 16, 1), np.ones(5)
    shapes = np.zeros((1, 17), np.float32)
    shapes[0, 14:] = 5
    textures, lights = np.zeros((6, 16), np.float32), np.zeros((1, 8), np.float32)
    cameras = np.ones((1, 14), np.float32)
    pictures = [np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.float32)]
    render = [shapes, textures, lights, np.ones(3, np.float32), cameras, True, 0, 4]
    return {
        "compare": (_cpu.compare, [x, x, parts]),
        "cross_entropy": (_cpu.cross_entropy, [GOOD, GOOD, np.empty((1, 2))]),
        "ssim": (_cpu.ssim, [image, image, 1.0, 0.0, np.empty(100)]),
        "metric_values": (_cpu.metric_values, [moments, 1.0, 0.0, 0.0, 1.0, values]),
        "exp": (_cpu.exp, [doubles, doubles.copy()]),
        "log": (_cpu.log, [doubles, doubles.copy()]),
        "render": (_render.render, [*render, *pictures, np.zeros((1, 4, 4, 3), np.float32)]),
        "mean_norm": (_render.mean_norm, [np.ones((5, 3), np.float32)]),
    }


def every_call() -> dict[str, tuple[Any, list[Any]]]:
    first = {n: (getattr(_cpu, n), a) for n, a in test_binding.arguments().items()}
    return first | more_arguments()


# Values for any place of any function: none may crash it, whatever comes out.
NASTY: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 0.5, float("nan"), "", "i8",
    "i9", "\0", b"", [], {}, (), (0, 0, 0), (1, 2, 3), (2**62, 4, 2), (-1, -1, -1), (1, 2),
    object(),
    np.empty(0, np.float32), np.empty((0, 3), np.float32), np.zeros(1, np.float32),
    np.full(10_000, np.nan, np.float32), np.full((12, 16), np.inf, np.float32),
    np.full((1, 17), np.nan, np.float32), np.full((6, 16), 1e38, np.float32),
    np.full((1, 14), np.inf, np.float32), np.full((5, 3), 1e38, np.float32),
    np.zeros(192, np.uint16), np.zeros(192, np.float16), np.zeros(100, np.int8),
    np.zeros(10_000, np.uint8), np.frombuffer(b"vgqpack1" + bytes(4096), np.uint8),
    np.zeros((2, 3), np.float64), np.zeros((3, 3, 3, 3, 3), np.float32), np.float32(1),
    np.zeros(5, ">f4"), np.zeros((4, 4), np.float32)[::2], np.zeros(4, [("a", "f4")]),
]  # fmt: skip


@pytest.mark.parametrize("name", every_call())
def test_any_value_in_any_place(name: str) -> None:
    function, arguments = every_call()[name]
    function(*arguments)
    for at in range(len(arguments)):
        for value in NASTY:
            given = [*arguments]
            given[at] = value.copy() if isinstance(value, np.ndarray) else value
            try:
                function(*given)
            except (TypeError, ValueError, OverflowError) as error:
                assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", every_call())
def test_overlapping_arrays(name: str) -> None:
    """Results are unspecified where an output lies over another array; nothing else is touched."""
    function, arguments = every_call()[name]
    arrays = [i for i, a in enumerate(arguments) if isinstance(a, np.ndarray)]
    nbytes = sum(arguments[i].nbytes for i in arrays)
    for offset in (0, 8, 64):
        pool = np.full(nbytes + 4096, 0xA5, np.uint8)
        given = [*arguments]
        for k, i in enumerate(arrays):
            a = arguments[i]
            start = 1024 + k * offset
            given[i] = pool[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
            given[i][...] = a
        end = max(1024 + k * offset + arguments[i].nbytes for k, i in enumerate(arrays))
        try:
            function(*given)
        except (TypeError, ValueError) as error:  # packed bytes were written over
            assert str(error)
        assert (pool[:1024] == 0xA5).all() and (pool[end:] == 0xA5).all()


def run(script: str, seconds: int = 300) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
def test_a_million_calls_leak_nothing() -> None:
    """Resident memory over a million calls, of which every second one is an error."""
    curve = run("""
import resource, sys
import test_hostile
calls = list(test_hostile.every_call().values())
bad = [(f, [*a[:-1], object()]) for f, a in calls]
arrays = [v for _, a in calls for v in a if hasattr(v, "nbytes")]
before = [sys.getrefcount(v) for v in arrays]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024
def rounds(n):
    for _ in range(n):
        for good, wrong in zip(calls, bad, strict=True):
            good[0](*good[1])
            try:
                wrong[0](*wrong[1])
            except TypeError:
                pass
rounds(500)
per = 1_000_000 // 10 // (2 * len(calls))
curve = [resident()]
for _ in range(10):
    rounds(per)
    curve.append(resident())
assert [sys.getrefcount(v) for v in arrays] == before
print("kilobytes after each 100,000 calls:", *curve)
""")
    print(curve)
    kilobytes = [int(word) for word in curve.split(":")[1].split()]
    assert kilobytes[-1] - kilobytes[0] < 500


def test_failing_allocations() -> None:
    """The n-th allocation of a call fails, for every n until the call succeeds: MemoryError, and
    once memory is there again the same call works."""
    pytest.importorskip("_testcapi", reason="this Python has no _testcapi")
    told = run("""
import _testcapi
import test_hostile
from vggtquant import _cpu

def attempt(function, arguments, n, forever):
    taken = [[] for _ in range(100)]  # the lists that Python keeps, so that new ones want memory
    _testcapi.set_nomemory(n, 0 if forever else n + 1)
    try:
        function(*arguments)
        return True
    except MemoryError:
        return False
    finally:
        _testcapi.remove_mem_hooks()

calls = [*test_hostile.every_call().values()]
calls += [(getattr(_cpu, n), []) for n in ("isa", "isas", "openmp", "metric_rows", "moment_names",
                                           "ssim_limits", "threads")]
calls += [(_cpu.compare_parts, [10**6]), (_cpu.ssim_parts, [3, 40, 40, 3])]
errors = [(f, [*a[:-1], object()]) for f, a in calls if a]
linear, (packed, kind, x, *others) = test_hostile.every_call()["linear"]
errors.append((linear, [packed, kind, x.ravel(), *others]))
failed = 0
for number, (function, arguments) in enumerate(calls + errors):
    for forever in (True, False):
        for n in range(500):
            try:
                if attempt(function, arguments, n, forever):
                    break
            except (TypeError, ValueError):  # the errors' own: there was memory for it
                break
            failed += 1
        else:
            raise AssertionError(function)
    if number < len(calls):
        function(*arguments)
print(failed)
""")
    print(f"{told.strip()} allocations failed")
    assert int(told) > 100


def test_modules_without_numpy() -> None:
    told = run("""
import importlib.machinery, importlib.util, sys
for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
    sys.modules[name] = None
folder = importlib.util.find_spec("vggtquant").submodule_search_locations
for name in ("_cpu", "_render"):
    spec = importlib.machinery.PathFinder.find_spec(name, folder)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except ImportError as error:
        print(name, "multiarray" in str(error))
""")
    assert told.splitlines() == ["_cpu True", "_render True"]


def test_sub_interpreters() -> None:
    """NumPy itself may refuse to be there; what must not happen is a crash."""
    told = run("""
import sys
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
from vggtquant import _cpu
script = '''
try:
    import numpy as np
    from vggtquant import _cpu, _render
    q = np.empty((1, 4), np.uint8)
    _cpu.quantize("i8", (1, 4, 4), np.float32([[1, 2, 3, 4]]), np.float32([1]), None, q)
    assert q.tolist() == [[1, 2, 3, 4]]
except ImportError:
    pass
'''
for _ in range(3):
    one = interpreters.create()
    interpreters.run_string(one, "import sys; sys.path[:] = " + repr(sys.path))
    interpreters.run_string(one, script)
    interpreters.destroy(one)
print(_cpu.isa())
""")
    assert told.strip() in _cpu.isas()
