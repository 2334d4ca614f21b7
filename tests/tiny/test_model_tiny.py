# SPDX-License-Identifier: Apache-2.0
"""The embedded model: VGGT's names and shapes, any number of frames, and that it has learned."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vggtquant import tiny
from vggtquant.data import scenes
from vggtquant.errors import UserError
from vggtquant.scoring import geometry, task_scores


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> tiny.TinyVGGT:
    return tiny.build()


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "train_tiny.py"
    spec = importlib.util.spec_from_file_location("train_tiny", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def pictures(scene: scenes.Scene) -> torch.Tensor:
    return torch.from_numpy(scene.images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("frames", range(1, 9))
def test_any_number_of_frames(model: tiny.TinyVGGT, frames: int) -> None:
    images = torch.rand(1, frames, 3, 28, 42)
    out = model(images)
    shapes = {name: tuple(value.shape) for name, value in out.items() if name != "pose_enc_list"}
    assert shapes == {
        "pose_enc": (1, frames, 9),
        "depth": (1, frames, 28, 42, 1),
        "depth_conf": (1, frames, 28, 42),
        "world_points": (1, frames, 28, 42, 3),
        "world_points_conf": (1, frames, 28, 42),
        "images": (1, frames, 3, 28, 42),
    }
    assert len(out["pose_enc_list"]) == 4
    assert torch.equal(out["pose_enc_list"][-1], out["pose_enc"])
    for name in shapes:
        assert out[name].isfinite().all() and out[name].dtype == torch.float32
    assert out["depth"].min() > 0
    assert out["depth_conf"].min() >= 1 and out["world_points_conf"].min() >= 1


@pytest.mark.parametrize("size", [(14, 14), (112, 112), (70, 126), (238, 154)])
def test_other_resolutions(model: tiny.TinyVGGT, size: tuple[int, int]) -> None:
    out = model(torch.rand(2, 3, *size))
    assert out["depth"].shape == (1, 2, *size, 1)
    assert out["depth"].isfinite().all()


@pytest.mark.parametrize("size", [(29, 41), (100, 112), (56, 55)])
def test_odd_sizes_are_padded_with_a_warning(model: tiny.TinyVGGT, size: tuple[int, int]) -> None:
    """Maps are cut back to the picture; the views keep their focal length in pixels."""
    height, width = size
    images = torch.rand(2, 3, height, width)
    with pytest.warns(UserWarning, match=f"{height}x{width} are padded"):
        out = model(images)
    whole = [-(-n // 14) * 14 for n in size]
    top, left = ((whole[i] - size[i]) // 2 for i in range(2))
    padded = torch.ones(2, 3, *whole)
    padded[:, :, top : top + height, left : left + width] = images
    full = model(padded)
    cut = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
    for name in ("depth", "depth_conf", "world_points", "world_points_conf"):
        assert torch.equal(out[name], full[name][cut])
    assert torch.equal(out["images"][0], images)
    assert torch.equal(out["pose_enc"][..., :7], full["pose_enc"][..., :7])
    assert torch.equal(out["pose_enc_list"][-1], out["pose_enc"])
    for axis in range(2):
        focal = size[axis] / (2 * torch.tan(out["pose_enc"][..., 7 + axis] / 2))
        wanted = whole[axis] / (2 * torch.tan(full["pose_enc"][..., 7 + axis] / 2))
        torch.testing.assert_close(focal, wanted)


def test_names_are_those_of_vggt(model: tiny.TinyVGGT) -> None:
    names = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    stacks = [f"aggregator.{kind}_blocks.{i}" for kind in ("frame", "global") for i in range(4)]
    stacks += [f"aggregator.patch_embed.blocks.{i}" for i in range(2)]
    stacks += [f"camera_head.trunk.{i}" for i in range(2)]
    head = ("poseLN_modulation.1", "embed_pose", "pose_branch.fc1", "pose_branch.fc2")
    assert names == {f"{s}.{p}" for s in stacks for p in parts} | {f"camera_head.{h}" for h in head}
    # every Linear but the one fed by nine pose numbers fills whole groups of 128
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "camera_head.embed_pose":
            assert module.in_features % 128 == 0
    assert sum(p.numel() for p in model.parameters()) < 5e6
    assert tiny.WEIGHTS.stat().st_size < 16e6


def test_batches_and_lone_scenes_agree(model: tiny.TinyVGGT) -> None:
    images = torch.rand(2, 3, 3, 28, 28)
    both, first = model(images), model(images[0])
    for name in ("pose_enc", "depth", "world_points"):
        torch.testing.assert_close(both[name][:1], first[name], rtol=1e-4, atol=1e-5)


def test_order_of_later_frames_only_reorders(model: tiny.TinyVGGT) -> None:
    """Frame 0 is the world; the others have no order, so permuting them permutes the outputs."""
    images = pictures(scenes.make_scene(scenes.HELD_OUT, 4))
    order = [0, 3, 1, 2]
    plain, moved = model(images), model(images[order])
    for name in ("pose_enc", "depth", "world_points"):
        torch.testing.assert_close(plain[name][:, order], moved[name], rtol=1e-3, atol=1e-4)
    swapped = model(images[[1, 0, 2, 3]])
    assert (swapped["pose_enc"][0, 1] - plain["pose_enc"][0, 1]).abs().max() > 0.01


def test_it_has_learned(model: tiny.TinyVGGT) -> None:
    """On held-out scenes clearly better than constant depth and identity poses (14 degrees)."""
    errors = []
    for seed in scenes.scene_seeds(8, 0):
        scene = scenes.make_scene(seed, 4)
        out = model(pictures(scene))
        out = {name: out[name].numpy() for name in ("depth", "pose_enc")}
        errors.append(task_scores.scene_errors(out, scene))
    found = task_scores.pooled_scores(errors)
    assert found["depth_abs_rel_median"] < 0.2
    assert found["depth_delta_1.25_median"] > 0.65
    assert found["rotation_median_deg"] < 10


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((0, 3, 112, 112), "at least 1 frame"),
        ((1, 3, 7, 14), "7x14 are smaller than a patch"),
        ((1, 3, 0, 14), "0x14 are smaller than a patch"),
        ((1, 4, 14, 14), r"got \(1, 1, 4, 14, 14\)"),
        ((14, 14), r"got \(14, 14\)"),
    ],
)
def test_bad_pictures_are_told_in_one_line(
    model: tiny.TinyVGGT, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        model(torch.zeros(shape))
    assert "\n" not in str(caught.value)


def test_bytes_for_pictures_are_refused(model: tiny.TinyVGGT) -> None:
    with pytest.raises(UserError, match="floats"):
        model(torch.zeros(1, 3, 14, 14, dtype=torch.uint8))


def test_bad_weights_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    whole = tiny.WEIGHTS.read_bytes()
    for damaged in (whole[:-1000], whole[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="no readable safetensors file") as caught:
            tiny.build(path)
        assert "\n" not in str(caught.value)
    state = load_file(tiny.WEIGHTS)
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"extra is \(1,\), wanted nothing"):
        tiny.build(path)
    state.pop("camera_head.embed_pose.bias")
    save_file(state, path)
    with pytest.raises(UserError, match=r"embed_pose.bias is nothing, wanted \(256,\)"):
        tiny.build(path)
    with pytest.raises(UserError, match="no readable safetensors file"):
        tiny.build(tmp_path / "missing.safetensors")


# ---- the training script


def test_patch_matches_are_the_true_ones(trainer: ModuleType) -> None:
    batch = trainer.collate([scenes.make_scene(seed, 3) for seed in range(2)])
    match = batch["match"]
    assert match.shape == (2, 3, 3, 64)
    # the exact places in frame 0 lie in the patches that match, but for rounding to pixels
    column, row = (8 * (batch["place"] + 0.5).clamp(0, 0.999)).long().unbind(-1)
    seen = match[:, :, 0] >= 0
    assert (row * 8 + column == match[:, :, 0])[seen].float().mean() > 0.9
    # a frame against itself: every patch is its own match
    for i in range(3):
        assert torch.equal(match[:, i, i], torch.arange(64).expand(2, -1))
    assert 0.3 < (match >= 0).float().mean() < 0.99
    assert np.allclose(batch["pose"][:, 0, :7], [0, 0, 0, 0, 0, 0, 1], atol=1e-6)
    turned = geometry.decode_pose(batch["pose"][0].numpy(), (112, 112))
    assert np.allclose(turned[0], batch["extrinsics"][0], atol=1e-5)
    assert np.allclose(turned[1], batch["intrinsics"][0], rtol=1e-4)


def test_training_goes_on_where_it_was_killed(
    trainer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps are the same whether a checkpoint lies between them or not."""
    monkeypatch.setattr(trainer, "IMAGES", 2)
    monkeypatch.setattr(trainer, "FRAMES", (2,))
    monkeypatch.setattr(trainer, "SIZE", 28)
    with torch.enable_grad():
        one = trainer.Trainer()
        for step in range(3):
            if step == 2:
                one.save(tmp_path / "last.pt")
            first = one.update(trainer.training_batch(step), 1e-3)
        two = trainer.Trainer()
        two.load(tmp_path / "last.pt")
        assert two.step == 2
        second = two.update(trainer.training_batch(2), 1e-3)
    assert first == second
    for name, value in one.average.items():
        assert torch.equal(value, two.average[name])


def test_workers_share_a_batch(trainer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scene goes to one worker, and all end with the mean of the gradients."""
    monkeypatch.setattr(trainer, "IMAGES", 6)
    monkeypatch.setattr(trainer, "FRAMES", (2,))
    monkeypatch.setattr(trainer, "SIZE", 28)
    whole = trainer.training_batch(5)["images"]
    monkeypatch.setattr(trainer, "WORKERS", 2)
    parts = []
    for worker in (0, 1):
        monkeypatch.setattr(trainer, "WORKER", worker)
        parts.append(trainer.training_batch(5)["images"])
    assert torch.equal(whole[0::2], parts[0]) and torch.equal(whole[1::2], parts[1])

    others = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    monkeypatch.setattr(trainer.dist, "all_reduce", lambda flat: flat.add_(others))
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.tensor([[2.0, 4.0], [6.0, 8.0]])  # the other one was not used here
    trainer.average_gradients(parameters)
    assert parameters[0].grad.tolist() == [[6.0, 12.0], [18.0, 24.0]]
    assert parameters[1].grad is not None and parameters[1].grad.tolist() == [25.0]


def test_training_can_begin_from_the_shipped_weights(
    trainer: ModuleType, model: tiny.TinyVGGT
) -> None:
    run = trainer.Trainer()
    run.start_from(tiny.WEIGHTS)
    for name, value in model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value)
        assert torch.equal(run.average[name], value)


def test_losses_fall(trainer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe itself: a few steps on one small batch lower each loss."""
    monkeypatch.setattr(trainer, "IMAGES", 4)
    monkeypatch.setattr(trainer, "FRAMES", (2,))
    batch = trainer.training_batch(0)
    with torch.enable_grad():
        run = trainer.Trainer()
        seen = [run.update(batch, 1e-3) for _ in range(12)]
    for name in ("depth", "points", "pose"):
        assert seen[-1][name] < seen[0][name]
