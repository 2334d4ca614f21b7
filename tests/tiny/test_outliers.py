# SPDX-License-Identifier: Apache-2.0
"""The hard twin computes the same function and is hard."""

import copy

import pytest
import torch

import vggtquant as vq
from vggtquant.adapter import split_outputs
from vggtquant.tiny.model import TinyVGGT
from vggtquant.tiny.outliers import CHANNELS, FACTOR, add_outliers
from vggtquant.weights import names


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    plain = TinyVGGT().eval()
    for parameter in plain.parameters():
        if parameter.ndim == 1:  # norms and scales that are not all alike
            parameter.data += 0.1 * torch.randn_like(parameter)
    return plain, add_outliers(copy.deepcopy(plain))


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def outputs(model, images):
    with torch.inference_mode():
        return split_outputs(model(images))


def test_same_bits(pair, images):
    plain, hard = (outputs(model, images) for model in pair)
    for name, reference in plain.items():
        assert torch.equal(reference, hard[name]), name


def test_activations_have_outliers(pair, images):
    seen = {}
    block = pair[1].aggregator.frame_blocks[0]
    handle = block.norm1.register_forward_hook(lambda m, i, y: seen.update(y=y))
    outputs(pair[1], images)
    handle.remove()
    largest = seen["y"].abs().amax(dim=(0, 1))
    assert (largest > FACTOR / 4 * largest.median()).sum() == CHANNELS


def test_naive_int8_breaks_on_it(pair, images):
    plain, hard = pair

    def error(model, scheme):
        model = copy.deepcopy(model)
        vq.quantize_model(model, scheme)
        reference, candidate = outputs(plain, images)["depth"], outputs(model, images)["depth"]
        return vq.compare(reference, candidate)["relative_l2"]

    naive = "INT8_Per_Tensor_Symmetric"
    assert error(hard, naive) > 10 * error(plain, naive)
    assert error(hard, naive) > error(plain, "INT4_Group_128")


def test_is_a_built_in_model():
    assert "builtin:tiny-outliers" in names.BUILTIN
