# SPDX-License-Identifier: Apache-2.0
"""The original VGGT, narrow, shallow and with random weights, for any number of pictures."""

import numpy as np
import onnxruntime as ort
import original
import pytest
import torch
from torch import nn

import vggtquant as vq

WIDTH = 64


def shallow() -> nn.Module:
    """Two pairs of blocks, one of the camera head, one dense head of 16 features."""
    from vggt.heads.camera_head import CameraHead
    from vggt.heads.dpt_head import DPTHead
    from vggt.models.vggt import VGGT

    torch.manual_seed(0)
    none = {f"enable_{head}": False for head in ("camera", "depth", "point", "track")}
    with original.encoder(WIDTH, depth=1, heads=2):
        model = VGGT(embed_dim=WIDTH, **none)
        model.aggregator = original.aggregator.Aggregator(
            embed_dim=WIDTH, depth=2, num_heads=2, retained_layer_idx=[0, 1]
        )
    model.camera_head = CameraHead(dim_in=2 * WIDTH, trunk_depth=1, num_heads=2)
    model.depth_head = DPTHead(
        dim_in=2 * WIDTH,
        output_dim=2,
        activation="exp",
        conf_activation="expp1",
        features=16,
        out_channels=[8, 16, 24, 32],
        intermediate_layer_idx=[0, 1, 1, 1],
    )
    model.eval().requires_grad_(False)
    original.stir(model)
    return model


@pytest.mark.slow
def test_any_number_of_pictures_of_any_size(tmp_path):
    """Its heads take eight pictures at a time; the first picture has tokens of its own."""
    model, size = shallow(), (28, 42)
    result = vq.export(model, tmp_path, size=size, dynamic_frames=True, check=False)
    session = ort.InferenceSession(str(result.path))
    names = [output.name for output in session.get_outputs()]
    assert names == ["pose_enc", "depth", "depth_conf"]
    for frames in (1, 2, 9):
        images = torch.rand(1, frames, 3, *size)
        with torch.inference_mode():
            ours = model(images)
        for name, value in zip(names, session.run(names, {"images": images.numpy()}), strict=True):
            wanted = ours[name].numpy()
            np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-4 * wanted.std())
