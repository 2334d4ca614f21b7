# SPDX-License-Identifier: Apache-2.0
"""calibrate on builtin:tiny and on small models: what it keeps, refuses, resumes and repeats."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from everywhere import by_default, using_threads
from torch import nn

import vggtquant as vq
from vggtquant import configs, tiny
from vggtquant.calibration import METHODS, Method, capture, data, sequential
from vggtquant.calibration.capture import Replay, Store
from vggtquant.calibration.statistics import Statistics

CONFIG = "INT4_Group_128"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 2, 3, 28, 42, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def by_gptq(images: torch.Tensor, tmp_path_factory) -> tuple[nn.Module, Path]:
    """builtin:tiny as the default method calibrates it to CONFIG on one thread, for all tests of
    this process, and the folder of that calibration: both stay as they are."""
    folder = tmp_path_factory.mktemp("by_gptq")
    net = tiny.build()
    vq.calibrate(net, images, config=CONFIG, folder=folder)
    return net, folder


def codes(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if "weight_" in k or k.endswith("bias")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Blocks(nn.Module):
    """Elements of a ModuleList, one that is called twice, one that no sample reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(3)
        )
        self.head = nn.ModuleDict({"twice": nn.Sequential(nn.Linear(16, 16), nn.ReLU())})
        self.lost = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        twice = self.head["twice"]
        out: torch.Tensor = twice(twice(x))
        return out


def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def whole(name: str) -> vq.QuantizationConfig:
    return replace(vq.get_config(name), name="whole", skip_first_last=False)


def test_segments_are_what_a_forward_calls_once() -> None:
    model = blocks()
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    plan = capture.segments(model, names, torch.ones(1, 16))
    assert [s.name for s in plan] == [""]  # the head is called twice: all belongs to the model
    net = tiny.build()
    names = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    plan = capture.segments(net, names, torch.rand(1, 2, 3, 28, 28))
    assert [s.name for s in plan][:4] == [
        "aggregator.patch_embed.blocks.0",
        "aggregator.patch_embed.blocks.1",
        "aggregator.frame_blocks.0",
        "aggregator.global_blocks.0",
    ]
    assert plan[-1].name == "camera_head" and plan[-1].calls["camera_head.embed_pose"] == 4
    assert sum(len(s.layers) for s in plan) == len(names)


@pytest.mark.parametrize("folder", [False, True], ids=["memory", "folder"])
def test_replayed_outputs_are_those_of_whole_forwards(
    images: torch.Tensor, tmp_path: Path, folder: bool
) -> None:
    net = tiny.build()
    names = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    plan = capture.segments(net, names, images)
    replay = Replay(net, plan, [images], Store(tmp_path if folder else None))
    for index in range(len(plan)):
        (arguments,) = replay.arguments(index, "float")
        replay.store.put(replay.key(index, "float", 0), replay.outputs(index, arguments))
    with torch.no_grad():
        wanted = net(images)["pose_enc_list"]
    got = replay.store.get(replay.key(len(plan) - 1, "float", 0))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.slow  # calibrates twice
def test_parts_that_are_not_run_again_change_nothing(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs of finished parts of a block are stored; running them again gives the same codes."""
    net, again, whole_plan = tiny.build(), tiny.build(), sequential.segments
    vq.calibrate(net, images, config=CONFIG, folder=tmp_path)
    assert not list(tmp_path.glob("part.*"))
    names = [name for name, m in again.named_modules() if isinstance(m, nn.Linear)]
    (block, *_, head) = whole_plan(again, names, images)
    dot = f"{block.name}."
    assert set(block.parts) == {
        dot + part for part in ("attn", "attn.qkv", "attn.proj", "mlp", "mlp.fc1", "mlp.fc2")
    }
    assert head.parts == ()  # it iterates: another call of a part has other inputs

    def without_parts(*given: Any) -> list[capture.Segment]:
        return [replace(segment, parts=()) for segment in whole_plan(*given)]

    monkeypatch.setattr(sequential, "segments", without_parts)
    vq.calibrate(again, images, config=CONFIG)
    assert same(codes(net), codes(again))


@pytest.mark.parametrize(
    "method", by_default(METHODS, *(set(METHODS) - {"awq", "best", "gptq", "smoothquant"}))
)
def test_every_method_is_repeatable_and_restorable(method: str, images: torch.Tensor) -> None:
    """On any default device, too."""
    nets = [tiny.build() for _ in range(2)]
    with torch.inference_mode():
        wanted = nets[0](images)["depth"]
    reports = []
    for net, default in zip(nets, ("cpu", "meta"), strict=True):
        with torch.device(default):
            how: dict[str, Any] = {"config": CONFIG, "method": method, "keep_originals": True}
            reports.append(vq.calibrate(net, images, **how)[1])
    assert same(codes(nets[0]), codes(nets[1]))
    assert len(reports[0].quantized) == 50
    assert method in reports[0].notes[0]
    with torch.inference_mode():
        assert not torch.equal(nets[0](images)["depth"], wanted)
        vq.restore_model(nets[0], reports[0])
        assert torch.equal(nets[0](images)["depth"], wanted)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ("INT4_Group_64", 0.7),
        pytest.param("INT8_Per_Channel_Asymmetric", 1.0, marks=pytest.mark.slow),
    ],
)
def test_gptq_is_nearer_to_the_float_model(config: str, most: float, images: torch.Tensor) -> None:
    """On other pictures than those of the calibration, whose 44 tokens are fewer than inputs."""
    other = torch.rand(2, 2, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    errors = {}
    for method in ("rtn", "gptq"):
        net = tiny.build()
        with torch.inference_mode():
            wanted = net(other)["world_points"]
            vq.calibrate(net, images, config=config, method=method)
            errors[method] = float((net(other)["world_points"] - wanted).norm())
    assert errors["gptq"] < most * errors["rtn"]


def test_rtn_is_quantize_model(images: torch.Tensor) -> None:
    a, b = tiny.build(), tiny.build()
    vq.calibrate(a, config=CONFIG, method="rtn")
    vq.quantize_model(b, CONFIG)
    assert same(codes(a), codes(b))


def test_a_method_that_is_no_better_leaves_nearest_codes(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No layer has a larger error on the calibration pictures than round to nearest has."""

    def worse(weight: torch.Tensor, _: Statistics, spec: vq.QuantizationSpec) -> vq.QTensor:
        return vq.quantize(1.5 * weight, spec)

    monkeypatch.setitem(METHODS, "worse", Method("worse", False, {"worse": worse}, bias=False))
    net, plain = tiny.build(), tiny.build()
    _, report = vq.calibrate(net, images, config=CONFIG, method="worse")
    vq.quantize_model(plain, CONFIG)
    assert same(codes(net), codes(plain))
    notes = {layer.note for layer in report.quantized}
    assert notes == {"round to nearest: the method is no better"}


def test_one_picture_is_enough() -> None:
    net = tiny.build()
    picture = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    _, report = vq.calibrate(net, picture, config=CONFIG)
    with torch.inference_mode():
        assert torch.isfinite(net(picture)["depth"]).all()
    assert "1 pictures" in report.notes[0]


def test_layers_that_no_sample_reaches_are_named_and_rounded_to_nearest() -> None:
    model, plain = blocks(), blocks()
    config = whole("INT4_Group_32")
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    _, report = vq.calibrate(model, [x], config=config)
    vq.quantize_model(plain, config)
    assert same(codes(model.lost), codes(plain.lost))
    assert any("lost" in note and "no sample reaches" in note for note in report.notes)
    row = next(layer for layer in report.layers if layer.name == "lost")
    assert row.note == "round to nearest: no sample reaches it"


def test_layers_without_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    x = torch.randn(64, 16)
    vq.calibrate(model, [x], config=whole("INT8_Per_Channel_Symmetric"))
    assert model[0].bias is None and model(x).shape == (64, 4)


def test_a_saved_file_is_the_model_bit_for_bit(
    images: torch.Tensor, by_gptq: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    net, _ = by_gptq
    vq.save(net, tmp_path / "packed.safetensors", float_dtype="float32")
    loaded = vq.load(tmp_path / "packed.safetensors")
    with torch.inference_mode():
        wanted, got = net(images), loaded(images)
    assert all(torch.equal(got[k], wanted[k]) for k in ("depth", "world_points", "pose_enc"))


def test_a_killed_calibration_goes_on(
    images: torch.Tensor, by_gptq: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    def kill(done: int, of: int, name: str) -> None:
        if done == 30:
            raise KeyboardInterrupt

    def run(progress: Any = None) -> nn.Module:
        net = tiny.build()
        vq.calibrate(net, images, config=CONFIG, folder=tmp_path, progress=progress)
        return net

    with pytest.raises(KeyboardInterrupt):
        run(kill)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.done.pt")}
    assert len(done) == 7  # 30 layers: the first is skipped, seven blocks are complete
    resumed = run()
    assert same(codes(resumed), codes(by_gptq[0]))
    assert all(path.stat().st_mtime_ns == at for path, at in done.items())


def test_a_folder_of_another_calibration_is_refused(
    images: torch.Tensor, by_gptq: tuple[nn.Module, Path]
) -> None:
    _, folder = by_gptq
    with pytest.raises(vq.UserError, match="another config"):
        vq.calibrate(tiny.build(), images, config="INT4_Group_64", folder=folder)
    with pytest.raises(vq.UserError, match="another pictures"):
        vq.calibrate(tiny.build(), images / 2, config=CONFIG, folder=folder)


def test_an_error_leaves_the_model_as_it_was_where_originals_are_kept(
    images: torch.Tensor,
) -> None:
    def fail(done: int, of: int, name: str) -> None:
        if done == 20:
            raise RuntimeError("here")

    net = tiny.build()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="here"):
        vq.calibrate(net, images, config=CONFIG, keep_originals=True, progress=fail)
    assert same(net.state_dict(), state)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": torch.full((2, 3, 28, 28), torch.nan)}, "sample 0: 4704 values are NaN"),
        ({"data": []}, "no calibration sample"),
        ({"data": torch.rand(1, 3, 28, 28), "samples": 0}, "samples is 0"),
        ({"data": torch.rand(1, 3, 28, 28), "method": "magic"}, "method 'magic' is unknown"),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"data": None, "seed": -1}, "seed is -1"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(given: Any, words: str) -> None:
    net = tiny.build()
    with pytest.raises(vq.UserError, match=words):
        vq.calibrate(net, given.pop("data"), config=CONFIG, **given)
    assert all(not isinstance(m, vq.QuantizedLinear) for m in net.modules())


@pytest.mark.parametrize(
    ("size", "words"), [(1e30, "squares overflow"), (3e38, "inputs are NaN or infinite")]
)
def test_activations_out_of_range_name_the_layer(size: float, words: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.fill_(size)
        model[0].bias.fill_(0)
    with pytest.raises(vq.UserError, match=f"layer 2, sample 0: .*{words}"):
        vq.calibrate(model, [torch.ones(4, 8)], config=whole("INT8_Per_Channel_Symmetric"))


def test_rendered_scenes_are_in_no_evaluation() -> None:
    from vggtquant.data import scenes

    assert data._FIRST_SEED + 1000 * 100_000 <= scenes.HELD_OUT
    first, again = (data.load(None, 6, 0, 56) for _ in range(2))
    assert first.pictures == 6 and first.sha256 == again.sha256
    assert data.load(None, 6, 1, 56).sha256 != first.sha256


def test_pictures_of_an_evaluation_are_refused(images: torch.Tensor) -> None:
    other = torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    net = tiny.build()
    with pytest.raises(vq.UserError, match="pictures of scene 1 are among those of the calibrat"):
        vq.calibrate(net, images, unseen=[other, images[1, 1:]])
    assert not any(isinstance(m, vq.QuantizedLinear) for m in net.modules())
    data.check_unseen(data.load(images, 100, 0, 28), [other])


def test_the_names_of_methods_are_those_of_configs() -> None:
    assert configs.CALIBRATIONS == tuple(METHODS)


def test_quantize_model_refuses_a_method() -> None:
    config = replace(vq.get_config(CONFIG), calibration="gptq")
    with pytest.raises(vq.UserError, match=r"calibration 'gptq' wants vq\.calibrate"):
        vq.quantize_model(tiny.build(), config)
    with pytest.raises(vq.UserError, match="calibration_seed is 1000; 0 to 999"):
        replace(config, calibration_seed=1000)


def test_a_folder_is_read_in_scenes_of_neighbours(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for i in range(10):
        Image.fromarray(np.full((56, 56, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    shown = data.load(tmp_path, 8, 0, 56)
    assert shown.pictures == 8
    assert [tuple(b.shape) for b in shown.batches] == [(2, 4, 3, 56, 56)]


def test_threads_give_the_same_codes(images: torch.Tensor, by_gptq: tuple[nn.Module, Path]) -> None:
    """torch's products may be summed otherwise; then few codes differ, by one step."""
    nets = [by_gptq[0], tiny.build()]
    with using_threads(2):
        vq.calibrate(nets[1], images, config=CONFIG)
    a, b = (
        torch.cat(
            [
                m.qtensor().codes.reshape(-1)
                if isinstance(m.qtensor().codes, torch.Tensor)
                else torch.from_numpy(m.qtensor().codes.reshape(-1))
                for m in net.modules()
                if isinstance(m, vq.QuantizedLinear)
            ]
        )
        for net in nets
    )
    assert (a != b).float().mean() < 0.02
