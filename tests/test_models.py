# SPDX-License-Identifier: Apache-2.0
"""Loading models: every kind of spec, a stand-in `vggt` package, and checkpoints that fail."""

import doctest
import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vggtquant import models
from vggtquant.errors import UserError
from vggtquant.weights import architectures, names, tensors

# The parts of VGGT that the loader touches, with `.item()` on a fresh parameter's sibling, as in
# the original, and a buffer that no state dict holds.
STAND_IN = """
import torch
from torch import nn

class Trunk(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        rates = [x.item() for x in torch.linspace(0, 0.1, depth)]
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, dim))
        self.blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in rates)
        nn.init.normal_(self.camera_token, std=1e-6)
        self.register_buffer("_mean", torch.ones(3), persistent=False)
        self.register_buffer("kept", torch.zeros(2))

class VGGT(nn.Module):
    def __init__(self, img_size=518, embed_dim=8{extra}):
        super().__init__()
        self.aggregator = Trunk(embed_dim, 3)
        self.camera_head = nn.Linear(embed_dim, 9)
        self.track_head = nn.Linear(embed_dim, 2){condition}

    def forward(self, images):
        x = images.mean() * self.aggregator.camera_token
        for block in self.aggregator.blocks:
            x = block(x)
        return self.camera_head(x) + self.aggregator._mean[0] - 1
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, with_switch: bool = True) -> None:
    source = STAND_IN.replace("{extra}", ", enable_track=True" if with_switch else "")
    source = source.replace("{condition}", " if enable_track else None" if with_switch else "")
    package = folder / "site" / "vggt" / "models"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "vggt.py").write_text(source)
    forget_vggt(monkeypatch)
    monkeypatch.syspath_prepend(str(folder / "site"))


def forget_vggt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "vggt"]:
        monkeypatch.delitem(sys.modules, name)


def original(**kwargs: object) -> nn.Module:
    from vggt.models.vggt import VGGT

    torch.manual_seed(0)
    model: nn.Module = VGGT(**kwargs)
    model.aggregator.kept += 3
    return model.eval()


@pytest.fixture
def vggt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path, monkeypatch)
    return tmp_path


def save(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def same_outputs(a: nn.Module, b: nn.Module) -> bool:
    x = torch.rand(2, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    return torch.equal(a(x), b(x))


def test_docstring_examples() -> None:
    assert doctest.testmod(models).failed == 0


@pytest.mark.parametrize("suffix", names.SUFFIXES)
def test_a_checkpoint_is_loaded_whole(vggt: Path, suffix: str) -> None:
    model = original()
    path = save(model.state_dict(), vggt / f"weights{suffix}")
    loaded = models.load_model(path)
    assert same_outputs(loaded.model, model)
    assert not loaded.model.training
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.name, loaded.source) == (path.name, str(path))
    assert "non-commercial" in loaded.licence
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert loaded.image_size == 518


def test_the_model_is_built_without_memory_for_its_parameters(
    vggt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters of the result are the file's tensors, and were nothing before."""
    path = save(original().state_dict(), vggt / "w.safetensors")
    seen = []
    before = nn.Module.register_parameter
    build = architectures.built
    devices = []

    def built(*args: object, **kwargs: object) -> nn.Module:
        model = build(*args, **kwargs)
        devices.extend(p.device.type for p in model.parameters())
        seen.append(model)
        return model

    monkeypatch.setattr(architectures, "built", built)
    model = models.load_model(path).model
    assert set(devices) == {"meta"}
    assert seen == [model]
    assert not any(p.is_meta for p in model.parameters())
    assert nn.Module.register_parameter is before


@pytest.mark.parametrize("with_switch", [True, False])
def test_a_checkpoint_without_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_switch: bool
) -> None:
    install(tmp_path, monkeypatch, with_switch=with_switch)
    model = original()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("track_head.")}
    loaded = models.load_model(save(state, tmp_path / "w.pt"))
    assert loaded.model.track_head is None
    assert same_outputs(loaded.model, model)


@pytest.mark.parametrize("wrapped", ["model", "state_dict", "parallel"])
def test_training_checkpoints(vggt: Path, wrapped: str) -> None:
    model = original()
    state = model.state_dict()
    if wrapped == "parallel":
        torch.save({f"module.{k}": v for k, v in state.items()}, vggt / "w.pt")
    else:
        torch.save({wrapped: state, "epoch": 3}, vggt / "w.pt")
    assert same_outputs(models.load_model(vggt / "w.pt").model, model)


def test_half_precision_checkpoints_are_widened(vggt: Path) -> None:
    model = original().to(torch.bfloat16)
    path = save(model.state_dict(), vggt / "w.safetensors")
    loaded = models.load_model(path).model
    assert {x.dtype for x in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.camera_head.weight, model.camera_head.weight.float())


def test_files_of_old_torch(vggt: Path) -> None:
    model = original()
    torch.save(model.state_dict(), vggt / "w.pt", _use_new_zipfile_serialization=False)
    assert same_outputs(models.load_model(vggt / "w.pt").model, model)


def test_a_directory_with_its_config(vggt: Path) -> None:
    model = original(embed_dim=16)
    folder = vggt / "my-vggt"
    folder.mkdir()
    save(model.state_dict(), folder / "model.safetensors")
    config = '{"img_size": 224, "embed_dim": 16, "something_else": 1}'
    (folder / "config.json").write_text(config)
    loaded = models.load_model(folder)
    assert same_outputs(loaded.model, model)
    assert (loaded.name, loaded.image_size) == ("my-vggt", 224)


def test_a_hub_id_from_the_local_cache(vggt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(vggt / "hub"))
    with pytest.raises(UserError, match="no copy in the hub cache.*offline mode is enabled"):
        models.load_model("facebook/VGGT-1B")
    model = original()
    for repository in ("facebook/VGGT-1B", "someone/else"):
        cache = vggt / "hub" / f"models--{repository.replace('/', '--')}"
        snapshot = cache / "snapshots" / "0123456789012345678901234567890123456789"
        snapshot.mkdir(parents=True)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(snapshot.name)
        save(model.state_dict(), snapshot / "model.pt")
    loaded = models.load_model("facebook/VGGT-1B")
    assert same_outputs(loaded.model, model)
    assert loaded.name == "facebook/VGGT-1B"
    assert loaded.licence.startswith("CC BY-NC 4.0")
    assert "huggingface.co/someone/else" in models.load_model("someone/else").licence


def test_a_function_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_model_of_a_test.py").write_text(
        textwrap.dedent(
            """
            import torch
            def build():
                torch.manual_seed(0)
                model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
                model.image_size = 56
                return model
            def fails():
                raise RuntimeError("out of ideas\\nsecond line")
            def number():
                return 7
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    loaded = models.load_model("own_model_of_a_test:build")
    assert sys.path == path
    assert not loaded.model.training
    assert loaded.image_size == 56
    assert loaded.sha256 == tensors.state_hash(loaded.model)
    for name, message in [
        ("own_model_of_a_test:fails", "failed: RuntimeError: out of ideas$"),
        ("own_model_of_a_test:number", "returned int, wanted a torch.nn.Module"),
        ("own_model_of_a_test:absent", "no attribute 'absent'"),
        ("no_such_module_of_a_test:build", "no module named 'no_such_module_of_a_test'"),
    ]:
        with pytest.raises(UserError, match=message):
            models.load_model(name)


def test_the_state_hash_sees_names_types_shapes_and_values() -> None:
    def hashed(**state: Tensor) -> str:
        model = nn.Module()
        for name, tensor in state.items():
            model.register_buffer(name, tensor)
        return tensors.state_hash(model)

    x = torch.arange(6.0)
    variants = [
        hashed(x=x),
        hashed(y=x),
        hashed(x=x.reshape(2, 3)),
        hashed(x=x.to(torch.bfloat16)),
        hashed(x=x + 1),
        hashed(x=x, y=torch.tensor(1)),
    ]
    assert len(set(variants)) == len(variants)
    assert hashed(x=x.reshape(2, 3).T) == hashed(x=x.reshape(2, 3).T.contiguous())
    assert hashed(a=x, b=x) == hashed(b=x, a=x)


def test_checkpoints_that_do_not_fit(vggt: Path) -> None:
    state = original().state_dict()

    def without(name: str) -> dict[str, Tensor]:
        return {k: v for k, v in state.items() if k != name}

    cases = {
        "missing": (without("camera_head.bias"), r"1 missing \(camera_head.bias\)"),
        "unexpected": (state | {"extra.x": torch.ones(1)}, r"1 unexpected \(extra.x\)"),
        "shape": (
            state | {"camera_head.bias": torch.ones(4)},
            r"1 of another shape \(camera_head.bias \(4,\) for \(9,\)\)",
        ),
        "foreign": ({"a": torch.ones(1)}, r"missing \(.*, …\), 1 unexpected \(a\)"),
    }
    for name, (wrong, message) in cases.items():
        path = save(wrong, vggt / f"{name}.safetensors")
        with pytest.raises(UserError, match=f"{name}.safetensors does not fit.*{message}"):
            models.load_model(path)


def broken_files(folder: Path) -> dict[str, Path]:
    state = {"x": torch.rand(2000)}
    safe = save(state, folder / "good.safetensors").read_bytes()
    pickled = save(state, folder / "good.pt").read_bytes()
    contents = {
        "empty.pt": b"",
        "empty.safetensors": b"",
        "cut.pt": pickled[: len(pickled) // 2],
        "cut.safetensors": safe[: len(safe) // 2],
        "header.safetensors": b"\xff" * 64,
        "text.pt": b"not a checkpoint at all",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save({"x": folder}, folder / "object.pt")  # a pickled object that is no tensor
    torch.save([torch.ones(1)], folder / "list.pt")
    torch.save({"x": 3}, folder / "number.pt")
    return {path.name: path for path in folder.iterdir() if not path.name.startswith("good")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.pt", "0 bytes"),
        ("empty.safetensors", "0 bytes"),
        ("cut.pt", "cannot read the weights"),
        ("cut.safetensors", "cut off"),
        ("header.safetensors", "no safetensors file"),
        ("text.pt", "refused"),
        ("pointer.safetensors", "Git LFS pointer"),
        ("object.pt", "more than tensors"),
        ("list.pt", "no state dict"),
        ("number.pt", "no state dict"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    path = broken_files(tmp_path)[name]
    with pytest.raises(UserError, match=message) as caught:
        models.load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_specs_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "model.pt").write_bytes(b"x")
    (bad / "config.json").write_text("{")
    good = save({"x": torch.ones(1)}, tmp_path / "w.pt")
    forget_vggt(monkeypatch)
    monkeypatch.setitem(sys.modules, "vggt", None)  # as if it were not installed
    cases = [
        (("builtin:huge",), "'builtin:huge': wanted builtin:tiny"),
        (("nonsense",), "unknown model 'nonsense': wanted"),
        ((tmp_path / "gone.pt",), "gone.pt: No such file"),
        ((tmp_path / "empty",), "no weights in .*empty: looked for model.safetensors"),
        ((bad,), "cannot read .*config.json"),
        ((good,), "pip install git"),
        ((good, "abacus"), "unknown device 'abacus': wanted cpu, cuda"),
        ((good, "meta"), "unknown device 'meta'"),
        ((good, "cuda:99"), "no device 'cuda:99' here"),
    ]
    for args, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            models.load_model(*args)
        assert "\n" not in str(caught.value)


def test_a_dependency_that_vggt_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    source = tmp_path / "site" / "vggt" / "models" / "vggt.py"
    source.write_text("import a_library_nobody_has\n")
    path = save({"x": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="vggt needs a_library_nobody_has"):
        models.load_model(path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_released_file_is_no_longer_mapped(vggt: Path, suffix: str) -> None:
    path = save(original().state_dict(), vggt / f"weights{suffix}")

    def mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text()

    model = models.load_model(path).model
    assert mapped()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    models.release_file(model)
    assert not mapped()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_loading_holds_one_copy(vggt: Path) -> None:
    """Peak memory of a fresh process, over one that loads nothing, stays below the file's size."""
    width, megabytes = 2000, 48  # three Linears of 16 MB
    state = {
        key: torch.zeros([width if n == 8 else n for n in x.shape])
        for key, x in original().state_dict().items()
    }
    folder = vggt / "wide"
    folder.mkdir()
    save(state, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"embed_dim": {width}}}')
    script = (
        "import resource, sys; from vggtquant import models, errors\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "import safetensors.torch, vggt.models.vggt; before = peak()\n"
        "model = models.load_model(sys.argv[1]).model; print(peak() - before)\n"
    )
    paths = [str(Path(models.__file__).parents[2]), str(vggt / "site")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(folder)]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert float(result.stdout) < megabytes * 0.75  # two copies would be 2; one Linear is 0.33


def test_a_user_s_half_model_is_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured as FP32 computes in float32; the values stay those of the half model."""
    (tmp_path / "half_model.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).half()\n"
    )
    monkeypatch.chdir(tmp_path)
    model = models.load_model("half_model:build").model
    floats = [t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()]
    assert len(floats) == 6 and all(t.dtype == torch.float32 for t in floats)
    assert all(torch.equal(t, t.half().float()) for t in floats)
    assert model(torch.ones(2, 4)).dtype == torch.float32
