# SPDX-License-Identifier: Apache-2.0
"""Mixed precision by bytes: the choice is the best one, and the harm is measured on the model."""

import itertools
import random

import pytest
import torch

import vggtquant as vq
from vggtquant import tiny
from vggtquant.calibration import data, mixed
from vggtquant.calibration.mixed import Way


def test_no_choice_of_so_many_bytes_has_less_harm() -> None:
    """Against all choices of four layers: exact at the budgets of the curve's own plans."""
    rng = random.Random(0)
    ways = {
        name: {
            way: Way(nbytes, harm)
            for (way, nbytes), harm in zip(
                (("4", 40), ("4 fine", 45), ("8", 80), ("float", 160)),
                sorted((rng.random() for _ in range(4)), reverse=True),
                strict=True,
            )
        }
        for name in "abcd"
    }
    every = [
        (
            sum(ways[n][w].nbytes for n, w in zip(ways, pick, strict=True)),
            sum(ways[n][w].harm for n, w in zip(ways, pick, strict=True)),
        )
        for pick in itertools.product(("4", "4 fine", "8", "float"), repeat=4)
    ]
    for plan in mixed.steps(ways):
        best = min(harm for nbytes, harm in every if nbytes <= plan.nbytes)
        assert plan.harm == pytest.approx(best)
    for budget in range(160, 641, 7):
        plan = mixed.within(ways, budget)
        best = min(harm for nbytes, harm in every if nbytes <= budget)
        assert plan.nbytes <= budget and best <= plan.harm + 1e-12
        assert plan.harm <= mixed.steps(ways)[0].harm
    with pytest.raises(vq.UserError, match="at 4 bits"):
        mixed.within(ways, 159)


def test_harm_is_measured_and_the_model_stays() -> None:
    net = tiny.build()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    config = vq.get_config("INT4_Group_128")
    images = torch.rand(3, 2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    shown = data.load(images[:2], 4, 0, 28)
    names = ["aggregator.frame_blocks.1.attn.qkv", "camera_head.embed_pose"]
    ways = mixed.measure(net, names, config, shown, [images[2:]])
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    for name in names:
        costs = ways[name]
        assert costs["float"].harm == 0 < costs["8"].harm < costs["4, groups of 128"].harm
        assert costs["4, groups of 128"].nbytes < costs["8"].nbytes < costs["float"].nbytes
    plan = mixed.within(ways, sum(ways[n]["4, groups of 128"].nbytes for n in names) + 10**6)
    assert set(plan.chosen.values()) == {"float"}
    plan = mixed.within(ways, sum(ways[n]["8"].nbytes for n in names))
    _, report = vq.calibrate(
        net, images, config=config, include=names, configs=plan.configs(config)
    )
    quantized = {layer.name for layer in report.quantized}
    assert quantized == {n for n in names if plan.chosen[n] != "float"}
    with pytest.raises(vq.UserError, match="INT4_Group"):
        mixed.options(vq.get_config("INT8_Per_Channel_Symmetric"))
