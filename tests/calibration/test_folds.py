# SPDX-License-Identifier: Apache-2.0
"""Folds change what a quantizer sees, and not what the model computes."""

from collections.abc import Callable

import pytest
import torch

import vggtquant as vq
from vggtquant import tiny
from vggtquant.calibration import folds, hadamard, smoothquant
from vggtquant.calibration.statistics import Ranges
from vggtquant.tiny.outliers import build_outliers

MODELS = {"tiny": tiny.build, "outliers": build_outliers}
FOLDS: dict[str, Callable[[folds.Edits, folds.Branch], None]] = {
    "F1": folds.fold_norm,
    "F2": lambda edits, branch: folds.smooth_inputs(edits, branch, ramp(edits, branch.first)),
    "F3": folds.fold_layer_scale,
    "F4": folds.balance_values,
    "F4 smoothed": lambda edits, branch: folds.smooth_values(
        edits, branch, ramp(edits, branch.last)
    ),
    "F4 rotated": hadamard.rotate_values,
}


def ramp(edits: folds.Edits, name: str) -> folds.Smoothing:
    """A scale and a shift of another size for each input of a layer."""
    k = edits.model.get_submodule(name).in_features
    return folds.Smoothing(torch.linspace(0.1, 10, k), torch.linspace(-1, 1, k))


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_each_fold_is_exact(model: Callable[[], torch.nn.Module], name: str) -> None:
    net = model()
    images = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = net(images)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    edits = folds.Edits(net)
    found = list(folds.branches(net))
    assert len(found) == 24  # two a block: 2 of the patches, 4 + 4 of the aggregator, 2 of the head
    for branch in found:
        FOLDS[name](edits, branch)
    changed = [k for k, value in net.state_dict().items() if not torch.equal(value, state[k])]
    # F4 balances in powers of two, and the plain model is balanced well enough already.
    assert changed or (name == "F4" and model is tiny.build)
    with torch.inference_mode():
        got = net(images)
    for key in ("pose_enc", "depth", "world_points"):
        torch.testing.assert_close(got[key], wanted[key], rtol=2e-4, atol=2e-5)
    edits.undo()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_folds_undo_planted_outliers() -> None:
    """The hard twin differs from the plain one by pairs that cancel; folds find most of them."""
    images = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    errors = {}
    for name, build in MODELS.items():
        net = build()
        with torch.inference_mode():
            wanted = net(images)["depth"]
        folds.fold(folds.Edits(net, keep=False), 128)
        vq.quantize_model(net, "INT4_Group_128")
        with torch.inference_mode():
            errors[name] = float((net(images)["depth"] - wanted).norm() / wanted.norm())
    assert errors["outliers"] < 2 * errors["tiny"]


def test_a_fold_that_does_not_lower_the_cost_is_left_out() -> None:
    net = tiny.build()
    branch = next(folds.branches(net))
    norm = net.get_submodule(branch.norm)
    with torch.no_grad():
        norm.weight.fill_(1.0)  # nothing to gain
    edits = folds.Edits(net)
    folds.fold_norm(edits, branch, 128)
    assert not edits.originals


def test_other_models_have_no_branches() -> None:
    assert not list(folds.branches(torch.nn.Sequential(torch.nn.Linear(4, 4))))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_smoothing_is_exact_and_evens_the_ranges(model: Callable[[], torch.nn.Module]) -> None:
    net = model()
    images = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = net(images)["depth"]
    edits = folds.Edits(net)
    for branch in folds.branches(net):
        for name in (branch.first, branch.last) if branch.attention else (branch.first,):
            layer = net.get_submodule(name)
            reach = torch.linspace(0.1, 20, layer.in_features)
            reach[3] = 0
            found = smoothquant.factors(ranges(-reach, 2 * reach), layer.weight)
            assert found.scale[3] == 1
            assert torch.equal(found.shift, reach / 2)
            fold = folds.smooth_inputs if name == branch.first else folds.smooth_values
            fold(edits, branch, found)
    with torch.inference_mode():
        torch.testing.assert_close(net(images)["depth"], wanted, rtol=2e-4, atol=2e-5)


def ranges(lowest: torch.Tensor, highest: torch.Tensor) -> Ranges:
    seen = Ranges(len(lowest))
    seen.add(torch.stack([lowest, highest]))
    return seen


def test_factors_undo_a_channel_that_was_rescaled() -> None:
    weight, reach = torch.ones(4, 8), torch.ones(8)
    weight[:, 2] /= 256
    reach[2] *= 256
    s = smoothquant.factors(ranges(-reach, reach), weight).scale
    assert float(s[2] / s[0]) == pytest.approx(256)


def test_a_hadamard_matrix_is_orthogonal() -> None:
    h = hadamard.hadamard(64)
    torch.testing.assert_close(h @ h.T, torch.eye(64, dtype=torch.float64))
    assert torch.equal(h.abs() * 8, torch.ones(64, 64, dtype=torch.float64))
