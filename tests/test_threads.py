# SPDX-License-Identifier: Apache-2.0
"""One OpenMP runtime in the process, forks, concurrent callers, and VGGTQUANT_ISA.

What changes a process for good runs in one of its own.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vggtquant as vq
from vggtquant import _cpu, ops

SETUP = """
import hashlib, os, sys, threading
import numpy as np, torch
from torch import nn
torch.set_num_threads(2)

def work(vq, seed=0):  # large enough for several threads; a digest of all the bits
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 1, (256, 512)).astype(np.float32)
    x = torch.from_numpy(rng.normal(0, 1, (70, 512)).astype(np.float32))
    digest = hashlib.sha256()
    for name in ("INT8_Per_Tensor_Asymmetric", "INT4_Group_32", "INT4_Group_128_A8"):
        q = vq.quantize(w, name)
        layer = vq.QuantizedLinear(q, None, vq.CONFIGS[name])
        for part in (q.packed, q.scale, vq.dequantize(q), layer(x).detach().numpy()):
            digest.update(part.tobytes())
    return digest.hexdigest()

def in_child(task):  # what the child printed; a hang is an error after 60 s
    import select
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(task()).encode())
        os._exit(0)
    assert select.select([reader], [], [], 60)[0], "the child hangs"
    answer = os.read(reader, 1000).decode()
    assert os.waitpid(child, 0)[1] == 0
    return answer
"""


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script in a new interpreter, after SETUP."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SETUP + script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def output(script: str, **environment: str) -> str:
    done = run(script, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_openmp_runtime_is_mapped_and_it_is_torch_s() -> None:
    mapped, ours = output("""
import vggtquant as vq
from vggtquant import ops
work(vq)
paths = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
names = ("libgomp", "libomp", "libiomp")
print(sorted(p for p in paths if os.path.basename(p).startswith(names)), ops.openmp())
""").rsplit(" ", 1)
    if ours == "none":
        pytest.skip("this process has no OpenMP runtime")
    assert len(mapped.split(",")) == 1 and ours in mapped
    if list(Path(torch.__file__).parent.glob("lib/libgomp*")):
        assert str(Path(torch.__file__).parent) in mapped


def test_thread_counts_are_torch_s(threads: int) -> None:
    if ops.openmp() == "none":
        pytest.skip("this process has no OpenMP runtime")
    assert ops.threads() == threads


def test_a_forked_child_computes_the_same_serially() -> None:
    child, parent, after, count = output("""
import vggtquant as vq
from vggtquant import ops
parent = work(vq)
child = in_child(lambda: work(vq))
count = in_child(lambda: ops.threads())
print(child, parent, work(vq), count)
""").split()
    assert child == parent == after and count == "1"


def test_a_child_that_loads_a_checkpoint_stays_alone() -> None:
    """The fork is remembered whatever sets the number of threads afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        child, parent, counts = output(f"""
import vggtquant as vq
path = {folder!r} + "/model.safetensors"
def layers():
    return nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)])
model = layers()
vq.quantize_model(model, "INT4_Group_32")
vq.save(model, path)
model = layers()
parent = work(vq)
torch.exp(torch.randn(1000, 1000))  # torch's pool, which the child lacks
def load_and_work():
    vq.load(path, model=model)
    return work(vq)
child = in_child(load_and_work)
def counts():
    from vggtquant import ops
    seen = [ops.threads()]
    for n in (0, 3):
        ops.set_threads(n)
        seen.append(ops.threads())
    return seen
print(child, parent, str(in_child(counts)).replace(" ", ""))
""").split()
    assert child == parent and counts == "[1,1,1]"


def test_a_load_keeps_the_caller_s_number_of_threads() -> None:
    with tempfile.TemporaryDirectory() as folder:
        told = output(f"""
import vggtquant as vq
from vggtquant import ops
model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)])
vq.quantize_model(model, "INT4_Group_32")
vq.save(model, {folder!r} + "/model.safetensors")
ops.set_threads(3)
vq.load({folder!r} + "/model.safetensors",
        model=nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)]))
print(ops.threads())
""")
    assert told == "3"


def test_a_thread_s_limit_is_its_own() -> None:
    told = output("""
from vggtquant import ops
ops.set_threads(4)
seen = []
def other():
    seen.append(ops.limit_threads(1))
    seen.append(ops.threads())
t = threading.Thread(target=other)
t.start(), t.join()
print(seen, ops.threads(), ops.limit_threads(2), ops.threads(), ops.limit_threads(0), ops.threads())
""")
    assert told == "[0, 1] 4 0 2 2 4"


def test_linear_while_others_choose_instruction_sets_and_thread_counts() -> None:
    """A call keeps what it began with: no crash, no refusal for scratch, the same bits."""
    assert (
        output("""
import vggtquant as vq
from vggtquant import ops
w, x = torch.randn(256, 512), torch.randn(70, 512)
layers = []
for name in ("INT8_Per_Channel_Symmetric_A8", "INT4_Group_32_A8"):
    layers.append(vq.QuantizedLinear(vq.quantize(w, name), None, vq.CONFIGS[name]))
want = [layer(x) for layer in layers]
stop = threading.Event()
def others():
    while not stop.is_set():
        for name in ops.isas():
            ops.use_isa(name)
            ops.set_threads(1)
            ops.set_threads(4)
t = threading.Thread(target=others)
t.start()
try:
    same = all(torch.equal(layer(x), y) for _ in range(300) for layer, y in zip(layers, want))
finally:
    stop.set()
    t.join()
print(same)
""")
        == "True"
    )


def test_a_fork_after_torch_s_own_work_only() -> None:
    """The pool that a child lacks may be one that vggtquant never used."""
    child, parent = output("""
torch.exp(torch.randn(1000, 1000))
import vggtquant as vq
child = in_child(lambda: work(vq))
print(child, work(vq))
""").split()
    assert child == parent


def test_a_fork_while_others_compute() -> None:
    """Locks that another thread holds at that moment do not stop the child."""
    assert (
        output("""
import vggtquant as vq
want, stop = work(vq), threading.Event()
def others():
    while not stop.is_set():
        work(vq)
workers = [threading.Thread(target=others) for _ in range(3)]
for w in workers:
    w.start()
children = {in_child(lambda: work(vq)) for _ in range(5)}
stop.set()
for w in workers:
    w.join()
print(children == {want})
""")
        == "True"
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers_compute_the_same(method: str) -> None:
    """Workers of a DataLoader, after the parent has computed itself."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "quantized_data.py").write_text(
            "import vggtquant as vq, torch\n"
            "class Data(torch.utils.data.Dataset):\n"
            "    def __len__(self): return 6\n"
            "    def __getitem__(self, i):\n"
            "        x = torch.linspace(-1, i + 1, 70_000).reshape(70, 1000)\n"
            "        return vq.quantize(x, 'INT4_Group_32').dequantize()\n"
        )
        script = f"""
import sys
sys.path.insert(0, {folder!r})
if __name__ == "__main__":
    from quantized_data import Data
    want = [Data()[i] for i in range(6)]
    loader = torch.utils.data.DataLoader(
        Data(), batch_size=None, num_workers=2, multiprocessing_context={method!r})
    print(all(torch.equal(a, b) for a, b in zip(want, loader, strict=True)))
"""
        environment = {"PYTHONPATH": os.pathsep.join([folder, *sys.path])}
        assert output(script, **environment) == "True"


def test_the_package_is_imported_without_torch_and_numpy() -> None:
    script = "import sys, vggtquant; print({'torch', 'numpy'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_torch_may_come_after_the_core_and_while_it_works() -> None:
    """_cpu alone opens the system's OpenMP; torch's is taken when it appears: the same bits."""
    script = """
import importlib.machinery, importlib.util, sys, threading
import numpy as np
loader = importlib.machinery.ExtensionFileLoader("_cpu", sys.argv[1])
cpu = importlib.util.module_from_spec(importlib.util.spec_from_loader("_cpu", loader))
loader.exec_module(cpu)
x = np.random.default_rng(0).normal(0, 1, (1, 1_000_000)).astype(np.float32)
def codes():
    q = np.empty(x.shape, np.uint8)
    cpu.quantize("i8", (1, x.size, x.size), x, np.float32([0.03]), None, q)
    return q
cpu.set_threads(2)
want, wrong, stop = codes(), [], threading.Event()
def others():
    while not stop.is_set():
        if not (codes() == want).all():
            wrong.append(1)
workers = [threading.Thread(target=others) for _ in range(4)]
for w in workers:
    w.start()
import torch
for _ in range(20):
    assert (codes() == want).all()
stop.set()
for w in workers:
    w.join()
print(len(wrong))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, _cpu.__file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "0", done.stderr


def test_sixteen_python_threads_get_the_same_bits(isa: str) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(512, 256), torch.randn(70, 512)
    layers = [
        vq.QuantizedLinear.from_linear(linear, name)
        for name in ("INT8_Per_Tensor_Asymmetric_A8", "INT4_Group_32", "INT4_Group_128_A8")
    ]
    w = linear.weight.detach().numpy()

    def work(_: int) -> bytes:
        with torch.no_grad():
            parts = [layer(x).numpy().tobytes() for layer in layers]
        for name in ("INT4_Group_32", "INT8_Per_Tensor_Symmetric"):
            q = vq.quantize(w, name)
            parts += [q.packed.tobytes(), vq.dequantize(q).tobytes()]
        return b"".join(parts)

    want = work(0)
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(work, range(64))) == {want}


def test_threads_keep_the_caller_s_rounding(isa: str) -> None:
    """The floating-point mode is reset inside, and given back."""
    x = np.array([[1e-40, 1.0]], np.float32)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU does not flush denormals")
    try:
        tiny = torch.tensor([1e-40])
        vq.dequantize(vq.quantize(np.tile(x, (300, 100)), "INT8_Per_Channel_Symmetric"))
        assert (tiny * 1).item() == 0
    finally:
        torch.set_flush_denormal(False)
    assert (torch.tensor([1e-40]) * 1).item() != 0


# ---- VGGTQUANT_ISA -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [vq.isas()[0], vq.isas()[len(vq.isas()) // 2]])
def test_the_environment_lowers_the_instruction_set(name: str) -> None:
    script = "import vggtquant as vq; print(vq.isa(), work(vq)[:0])"
    assert output(script, VGGTQUANT_ISA=name) == name


def test_the_best_one_is_taken_otherwise() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "VGGTQUANT_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", "import vggtquant as vq; print(vq.isa())"],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == vq.isas()[-1]


@pytest.mark.parametrize("name", ["AVX2", ""])
def test_unknown_instruction_sets_are_errors(name: str) -> None:
    done = run("import vggtquant as vq; vq.isa()", VGGTQUANT_ISA=name)
    assert done.returncode != 0
    assert f"instruction set '{name}' is unknown or does not run here" in done.stderr
    assert ", ".join(vq.isas()) in done.stderr


def test_use_isa_keeps_the_old_choice_after_an_error() -> None:
    before = vq.isa()
    with pytest.raises(
        vq.UserError, match="instruction set 'sse9' is unknown or does not run here"
    ):
        vq.use_isa("sse9")
    assert vq.isa() == before
