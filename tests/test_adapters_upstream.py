# SPDX-License-Identifier: Apache-2.0
"""The packages of the family themselves, where they are installed: `pytest -m upstream`.

Models are built at their own size without memory for parameters, and each attention and block in
them is looked up in the adapters' tables: a change upstream shows here.
"""

import importlib
from collections import Counter
from collections.abc import Callable

import pytest
from torch import nn

from vggtquant import adapters, recognition, selection
from vggtquant.adapter import Swappable
from vggtquant.meta import parameters_without_memory

pytestmark = [pytest.mark.upstream, pytest.mark.filterwarnings("ignore")]


def of_files(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        adapter = adapters.get(name)
        assert adapter.files is not None
        heads = ("camera_head", "dense_head", "depth_head", "point_head")
        return adapter.files.build({}, [f"{head}.x" for head in heads])

    return build


def depth_anything() -> nn.Module:
    config = importlib.import_module("depth_anything_3.cfg")
    registry = importlib.import_module("depth_anything_3.registry")
    return config.create_object(config.load_config(registry.MODEL_REGISTRY["da3-large"]))


def dinov2() -> nn.Module:
    vit = importlib.import_module("dinov2.models.vision_transformer")
    return vit.vit_large(patch_size=14, img_size=518, init_values=1.0, block_chunks=0)


# The package, what builds the model, and how many blocks it has.
MODELS = {
    "vggt": ("vggt", of_files("vggt"), 76),
    "fastvggt": ("vggt", of_files("fastvggt"), 76),
    "vggt-omega": ("vggt_omega", of_files("vggt-omega"), 76),
    "pi3": ("pi3", of_files("pi3"), 75),
    "streamvggt": ("streamvggt", of_files("streamvggt"), 76),
    "depth-anything-3": ("depth_anything_3", depth_anything, 28),
    "dinov2": ("dinov2", dinov2, 24),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_attention_and_block_is_known(name: str) -> None:
    package, build, blocks = MODELS[name]
    pytest.importorskip(package)
    with parameters_without_memory():
        model = build()
    if package == "vggt" and adapters.of_model(model).name != name:
        pytest.skip(f"the vggt that is installed is {adapters.of_model(model).name}'s")
    assert adapters.of_model(model).name == name
    counts = Counter()
    unknown = []
    for path, module in model.named_modules():
        if "track_head" in path:
            continue
        for kind in (recognition._ATTENTION, recognition._BLOCK):
            if kind.is_like(module):
                row = recognition._row_of(module, kind.rows())
                counts[kind.name] += 1
                if not isinstance(row, Swappable):
                    unknown.append((path, row))
    assert unknown == [] and counts["block"] == counts["attention"] == blocks


def test_omegas_linear_with_a_mask_is_known() -> None:
    attention = pytest.importorskip("vggt_omega.models.layers.attention")
    linear = attention.LinearKMaskedBias(8, 24)
    assert "NaN" in str(adapters.plain_linear(linear))
    linear.bias_mask.fill_(1.0)
    holder = nn.Sequential(linear)
    selection.make_plain(holder)
    assert type(holder[0]) is nn.Linear
