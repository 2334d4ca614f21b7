# SPDX-License-Identifier: Apache-2.0
"""Fixtures over the tables: instruction sets that run here, thread counts, configs, dtypes."""

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# pytest-xdist keeps every core busy with a process of its own: one thread in each, and in what they
# start, and no spinning. A test of threads says how many it wants. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Programs that tests start would compile the whole package anew, each for most of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from everywhere import THREADS, using_isa, using_threads  # noqa: E402
from linears import INTEGER_CONFIGS  # noqa: E402

import vggtquant as vq  # noqa: E402

# A shell that puts the tests in the background has them ignore Ctrl-C, and so the programs that
# they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


QUICK = ("configs", "metrics", "qtensor", "linear", "layout", "files")
"""Files test_*.py that `-m quick` runs: arrays, layers, metrics, configs, rules of the source."""
LONG = ("core", "cuda_shim", "evaluate_command", "supply_chain")
"""Files whose tests take long, and come first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is quick; a slow test is not, wherever it stands. Each process of pytest-xdist
    begins with an equal share of the list, and so with its share of what takes long, of which
    nothing is left for the end."""
    names = [item.path.stem.removeprefix("test_") for item in items]
    for name, item in zip(names, items, strict=True):
        if name in QUICK and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.quick)
    of = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for name, item in zip(names, items, strict=True) if name in LONG]
    rest = [item for name, item in zip(names, items, strict=True) if name not in LONG]
    each = -(-len(rest) // of)
    shares = ((long[i::of], rest[i * each : (i + 1) * each]) for i in range(of))
    items[:] = [item for share in shares for part in share for item in part]


@pytest.fixture(params=vq.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine can run, in use while the test runs."""
    with using_isa(request.param) as name:
        yield name


@pytest.fixture(params=THREADS, ids=lambda n: f"{n}threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each thread count, in use while the test runs."""
    with using_threads(request.param) as count:
        yield count


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, common to all processes of pytest-xdist: for what once.py makes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


SKETCHED = {"commands", "evaluation", "calibration", "test_cuda_gpu_main.py"}
"""Folders and files of tests whose evaluations do not draw."""


@pytest.fixture(autouse=True)
def sketched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are empty, but for tests marked `charts` and those of charts.py: an evaluation of a
    toy model draws for three seconds and measures for one."""
    inside = SKETCHED.intersection(request.path.parts)
    if not inside or request.path.stem == "test_charts" or _marked(request, "charts"):
        return
    from vggtquant.evaluation.present import charts

    monkeypatch.setattr(charts, "png", lambda document: EMPTY_PNG)
    monkeypatch.setattr(charts, "svg", lambda document, name: EMPTY_SVG)


TIMED = {"test_timing", "test_evidence", "test_docstring_examples"}
"""Files and tests whose evaluations time as many passes as a user's do."""


@pytest.fixture(autouse=True)
def timed_briefly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs of forwards give a row its times, instead of 24 to 72 until they agree."""
    if {request.path.stem, getattr(request.node, "originalname", None)} & TIMED:
        return
    from vggtquant.evaluation.measure import timing

    monkeypatch.setattr(timing, "PAIRS", 2)
    monkeypatch.setattr(timing, "ROUNDS", 1)


def _marked(request: pytest.FixtureRequest, name: str) -> bool:
    return request.node.get_closest_marker(name) is not None


EMPTY_SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
EMPTY_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh seed a test, printed with a failure."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(params=INTEGER_CONFIGS.values(), ids=INTEGER_CONFIGS)
def config(request: pytest.FixtureRequest) -> vq.QuantizationConfig:
    """Each config of CONFIGS that quantizes."""
    return request.param


def _bfloat16(x: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16)


SOURCES: dict[str, Callable[[np.ndarray], np.ndarray | torch.Tensor]] = {
    "numpy-float32": lambda x: x,
    "numpy-float16": lambda x: x.astype(np.float16),
    "numpy-bfloat16": _bfloat16,
    "torch-float32": torch.from_numpy,
    "torch-float16": lambda x: torch.from_numpy(x).half(),
    "torch-bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Callable[[np.ndarray], np.ndarray | torch.Tensor]:
    """Makes a source of one library and dtype from float32."""
    if request.param == "numpy-bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
        pytest.skip("ml_dtypes, which gives NumPy a bfloat16, is not installed")
    return SOURCES[request.param]
