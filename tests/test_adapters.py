# SPDX-License-Identifier: Apache-2.0
"""Adapters: models are told by their class or by name, their outputs become VGGT's, and what their
classes can and cannot have swapped. The models are stand-ins (family.py)."""

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import family
import pytest
import torch
from everywhere import by_default
from family import DIM, Holder, far, grid, masked, sin_cos
from torch import Tensor, nn

import vggtquant as vq
from vggtquant import QuantizedLinear, UserError, adapter, adapters, models
from vggtquant.blocks import QuantizedAttention, QuantizedBlock
from vggtquant.commands import cli
from vggtquant.model import restore_model
from vggtquant.scoring import geometry

LINEARS = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
FUSED = replace(LINEARS, name="fused", fuse=True, skip_first_last=False)
FAST = replace(vq.CONFIGS["INT8_Fast"], name="fast", skip_first_last=False)
TOKENS = 13


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- attentions and blocks of the family ---------------------------------------------------------

BLOCKS: dict[str, Any] = {
    "pi3": lambda: family.BlockRope(family.FlashAttentionRope(family.RoPE2D())),
    "streamvggt": lambda: family.CachedBlock(family.Cached(family.RotaryPositionEmbedding2D())),
    "depth-anything-3": lambda: family.MaskedBlock(family.Masked()),
    "depth-anything-3, turned": lambda: family.MaskedBlock(
        family.Masked(family.RotaryPositionEmbedding2D())
    ),
    "fastvggt": lambda: family.MergingBlock(family.Merging(family.RotaryPositionEmbedding2D())),
    "mapanything": lambda: family.ScaledBlock(family.Scaled()),
    "vggt-omega": lambda: masked(family.OmegaBlock(family.SelfAttention())),
}
WHERE: dict[str, Any] = {
    "vggt-omega": lambda: {"rope_or_rope_list": sin_cos(TOKENS - 4)},
    "mapanything": dict,
    "depth-anything-3": dict,
    "pi3": lambda: {"xpos": grid(2, TOKENS)},
}


def call_of(name: str) -> dict[str, Any]:
    return WHERE.get(name, lambda: {"pos": grid(2, TOKENS)})()


def tokens() -> Tensor:
    return torch.randn(2, TOKENS, DIM)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("config", [FUSED, FAST], ids=["float", "int8"])
def test_the_blocks_of_the_family_are_fused(name: str, config: vq.QuantizationConfig) -> None:
    model, x, where = Holder(BLOCKS[name]()), tokens(), call_of(name)
    want = model.block(x, **where)
    linears = copy.deepcopy(model)
    vq.quantize_model(linears, replace(LINEARS, name="linears", skip_first_last=False))
    report = vq.quantize_model(model, config, keep_originals=True)[1]
    assert [row.skipped for row in report.modules] == [None, None]
    assert isinstance(model.block, QuantizedBlock)
    model.block.original._forward_pre_hooks.clear()
    with pytest.MonkeyPatch.context() as patch:  # a call of the original would show
        patch.setattr(type(model.block.original), "forward", None)
        got = model.block(x, **where)
    share = 0.0 if config is FUSED else 0.5
    rounding = far(linears.block(x, **where) - x, want - x)
    assert far(got - x, want - x) <= rounding * (1.25 + share)
    restore_model(model, report)
    assert torch.equal(model.block(x, **where), want)


def test_rotation_that_the_last_tokens_have_is_served_without_any_too() -> None:
    model, x = Holder(BLOCKS["vggt-omega"]()), tokens()
    want = model.block(x, None)
    vq.quantize_model(model, FUSED)
    assert far(model.block(x, None) - x, want - x) < 0.03


# ---- traps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "base_models.vggt.", "models.external."])
def test_a_package_under_two_names(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (family.FlashAttentionRope, family.BlockRope):
        monkeypatch.setattr(kind, "__module__", prefix + kind.__module__)
    model = Holder(BLOCKS["pi3"]())
    vq.quantize_model(model, FUSED)
    assert isinstance(model.block, QuantizedBlock)


def test_attention_imported_by_name_makes_no_matrix_of_scores() -> None:
    model = nn.ModuleDict({"a": nn.Linear(DIM, DIM), "attn": family.FlashAttentionRope()}).eval()
    x = torch.randn(2, 300, DIM)

    def scores() -> bool:
        with torch.profiler.profile(record_shapes=True) as profile, torch.inference_mode():
            model["attn"](x)
        shapes = [shape for event in profile.events() for shape in event.input_shapes]
        return any(shape[-2:] == [300, 300] for shape in shapes)

    assert scores()
    with torch.inference_mode():
        want = model["attn"](x)
        vq.quantize_model(model, replace(FAST, fuse=False))
        assert far(model["attn"](x), want) < 0.05 and model["attn"].last_kernel
    assert isinstance(model["attn"], QuantizedAttention) and not scores()


def test_a_mask_that_is_nan_until_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    model = Holder(family.OmegaBlock(family.SelfAttention()))
    skipped = {r.name: r.skipped for r in vq.quantize_model(copy.deepcopy(model), FUSED)[1].skipped}
    assert list(skipped) == ["block.attn.qkv"] and "NaN" in str(skipped["block.attn.qkv"])
    masked(model.block)
    x = tokens()
    want = model.block(x)
    quantized = copy.deepcopy(model)
    report = vq.quantize_model(quantized, FUSED)[1]
    assert not report.skipped
    qkv = quantized.block.attn.qkv
    assert isinstance(qkv, QuantizedLinear) and not qkv.bias[DIM : 2 * DIM].any()
    got = quantized.block(x)
    assert far(got - x, want - x) < 0.03
    some = copy.deepcopy(model)
    vq.quantize_model(some, LINEARS, exclude="*.qkv")  # which stays float, without its mask
    for one, made in ((quantized, got), (some, some.block(x))):
        vq.save(one, tmp_path / "omega.safetensors")
        again = vq.load(
            tmp_path / "omega.safetensors",
            model=lambda: Holder(family.OmegaBlock(family.SelfAttention())),
        )
        assert torch.equal(again.block(x), made)


def test_a_forward_that_returns_keys_and_values() -> None:
    """With a cache the model's own attention is called, with quantized Linear layers in it."""
    model = Holder(BLOCKS["streamvggt"]())
    want_model = copy.deepcopy(model)
    vq.quantize_model(model, FAST)
    caches: list[Any] = [None, None]
    with torch.inference_mode():
        for _ in range(3):
            x, pos = torch.randn(1, TOKENS, DIM), grid(1, TOKENS)
            want, caches[0] = want_model.block(x, pos, past_key_values=caches[0], use_cache=True)
            got, caches[1] = model.block(x, pos, past_key_values=caches[1], use_cache=True)
            assert far(got - x, want - x) < 0.05
            for a, b in zip(caches[0], caches[1], strict=True):
                assert a.shape == b.shape and far(b, a) < 0.05
    assert caches[1][0].shape[2] == 3


def test_calls_with_a_mask_or_merging_go_to_the_original() -> None:
    for name, given in (
        ("depth-anything-3", {"attn_mask": torch.rand(2, 1, TOKENS, TOKENS)}),
        ("fastvggt", {"pos": grid(2, TOKENS), "global_merging": 0}),
    ):
        model, x = Holder(BLOCKS[name]()), tokens()
        want = model.block(x, **given)
        vq.quantize_model(model, FAST)
        assert far(model.block(x, **given) - x, want - x) < 0.03


def test_what_is_left_alone_says_why() -> None:
    model = nn.ModuleDict(
        {"a": nn.Linear(DIM, DIM), "prope": family.PRopeFlashAttention(), "scaled": family.Scaled()}
    )
    model["scaled"].use_entropy_scaling = True
    model["cross"] = family.CrossAttentionRope()
    report = vq.quantize_model(model, FAST)[1]
    why = {row.name: row.skipped for row in report.modules}
    assert "PRoPE" in str(why["prope"]) and why["scaled"] == "its use_entropy_scaling is on"
    assert "cross" not in why and isinstance(model["cross"].q_proj, QuantizedLinear)


# ---- outputs -------------------------------------------------------------------------------------


def cameras(n: int) -> tuple[Tensor, Tensor]:
    """Cameras from the world (1, n, 3, 4), and fields of view (1, n, 2)."""
    q = nn.functional.normalize(torch.randn(1, n, 4, dtype=torch.float64), dim=-1)
    rotation = torch.from_numpy(geometry.quaternion_to_matrix(q.numpy()))
    place = torch.randn(1, n, 3, 1, dtype=torch.float64)
    return torch.cat([rotation, place], -1), torch.rand(1, n, 2, dtype=torch.float64) + 0.5


def test_pose_encoding_is_the_inverse_of_decode_pose() -> None:
    extrinsics, fov = cameras(50)
    turn = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]).double())[:3]  # half a turn: w is 0
    extrinsics[0, 0, :, :3] = turn[:, :3]
    size = (60, 80)
    made = adapter.pose_encoding(extrinsics, fov)
    back, intrinsics = geometry.decode_pose(made.numpy(), size)
    assert torch.allclose(torch.from_numpy(back), extrinsics)
    assert torch.allclose(adapter.fov_of_intrinsics(torch.from_numpy(intrinsics), size), fov)
    place, conjugate = adapter.turned_back(
        extrinsics[..., 3], adapter.quaternion(extrinsics[..., :3])
    )
    inverse = adapter.pose_encoding(adapter.inverted(extrinsics), fov)
    assert torch.allclose(place, inverse[..., :3])
    signs = (conjugate * inverse[..., 3:7]).sum(-1).sign()[..., None]
    assert torch.allclose(conjugate * signs, inverse[..., 3:7])


def test_fields_of_view_from_points() -> None:
    depth = torch.rand(1, 2, 30, 40, dtype=torch.float64) + 1
    focal = torch.tensor([50.0, 35.0], dtype=torch.float64)[:, None, None]
    rows = (torch.arange(30) - 14.5)[:, None] / focal * depth[0]
    columns = (torch.arange(40) - 19.5) / focal * depth[0]
    points = torch.stack([columns, rows, depth[0]], -1)[None]
    want = 2 * torch.atan(torch.tensor([30.0, 40.0]) / 2 / focal[:, 0])
    assert torch.allclose(adapter.fov_of_points(points), want[None].double())


class Net(nn.Module):
    """Returns what it was given at the start."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.fc, self.returned, self.seen = nn.Linear(2, 2), returned, None

    def forward(self, images: Any) -> Any:
        self.seen = images
        return self.returned


def placed(path: str, returned: Any) -> Any:
    kind = family.at(path)(type("Net", (Net,), {}))
    return kind(returned)


IMAGES = torch.rand(2, 3, 28, 42)


def run(model: nn.Module) -> dict[str, Tensor]:
    return adapter.split_outputs(adapters.run(model, IMAGES))


def test_pi3_has_points_and_cameras_to_the_world() -> None:
    extrinsics, _ = cameras(2)
    to_world = torch.cat([adapter.inverted(extrinsics), torch.zeros(1, 2, 1, 4)], -2)
    local = torch.rand(1, 2, 28, 42, 3) + 1
    conf = torch.randn(1, 2, 28, 42, 1)
    model = placed(
        "pi3.models.pi3.Pi3",
        {"local_points": local, "points": local + 1, "conf": conf, "camera_poses": to_world},
    )
    found = run(model)
    assert model.seen.shape == (1, 2, 3, 28, 42) and found.keys() >= {"depth", "world_points_conf"}
    assert torch.equal(found["depth"], local[..., 2:])
    assert torch.allclose(found["pose_translation"], extrinsics[..., 3])


def test_depth_anything_has_intrinsics() -> None:
    extrinsics, fov = cameras(2)
    intrinsics = torch.from_numpy(
        geometry.decode_pose(adapter.pose_encoding(extrinsics, fov).numpy(), (28, 42))[1]
    )
    depth = torch.rand(1, 2, 28, 42)
    net = "depth_anything_3.model.da3.DepthAnything3Net"
    model = placed(net, {"depth": depth, "extrinsics": extrinsics, "intrinsics": intrinsics})
    found = run(model)
    assert torch.allclose(found["pose_fov"], fov) and found["depth"].shape == (1, 2, 28, 42, 1)
    assert abs(float(model.seen.mean())) < 1  # normalized
    api = placed("depth_anything_3.api.DepthAnything3", None)
    api.model = model
    assert torch.equal(run(api)["depth"], found["depth"])


def test_mapanything_takes_and_gives_a_dict_a_picture() -> None:
    extrinsics, _ = cameras(2)
    to_world = adapter.inverted(extrinsics)
    quats = adapter.quaternion(to_world[..., :3])
    views = [
        {
            "pts3d": torch.rand(1, 28, 42, 3),
            "pts3d_cam": torch.rand(1, 28, 42, 3) + 1,
            "conf": torch.rand(1, 28, 42),
            "cam_trans": to_world[:, i, :, 3],
            "cam_quats": quats[:, i],
        }
        for i in range(2)
    ]
    model = placed("mapanything.models.mapanything.model.MapAnything", views)
    model.encoder = nn.Identity()
    model.encoder.data_norm_type = "dinov2"
    found = run(model)
    assert [view["img"].shape for view in model.seen] == [(1, 3, 28, 42)] * 2
    assert torch.allclose(found["pose_translation"].double(), extrinsics[..., 3])


def test_streamvggt_gives_a_dict_a_picture() -> None:
    view = {
        "camera_pose": torch.rand(1, 9),
        "depth": torch.rand(1, 28, 42, 1),
        "depth_conf": torch.rand(1, 28, 42),
        "pts3d_in_other_view": torch.rand(1, 28, 42, 3),
        "conf": torch.rand(1, 28, 42),
    }
    model = placed("streamvggt.models.streamvggt.StreamVGGT", None)
    model.inference = lambda frames: type("Output", (), {"ress": [view for _ in frames]})()
    assert {k: v.shape[:2] for k, v in run(model).items()} == dict.fromkeys(
        set(adapter.IMAGE_AXES) - {"features"}, (1, 2)
    )


def test_dinov2_gives_features() -> None:
    path = "dinov2.models.vision_transformer.DinoVisionTransformer"
    model = placed(path, None)
    model.forward_features = lambda x: {"x_norm_patchtokens": x.new_ones(len(x), 6, 8)}
    assert run(model)["features"].shape == (1, 2, 2, 3, 8)


def test_fastvggt_is_told_from_vggt_and_runs_where_there_is_no_cuda() -> None:
    class Fast(Net):
        def update_patch_dimensions(self, width: int, height: int) -> None:
            self.patches = width, height

        def forward(self, images: Tensor) -> Any:
            torch.cuda.synchronize()
            assert torch.is_autocast_enabled("cpu")
            return {"depth": torch.zeros(images.shape[:2], device="cuda")}

    kind = family.at(adapters.get("vggt").models[0])(Fast)
    model = kind(None)
    model.aggregator = nn.Identity()
    model.aggregator.patch_size = 14
    assert adapters.of_model(model).name == "fastvggt"
    assert run(model)["depth"].device.type == "cpu" and model.patches == (3, 2)
    assert adapters.of_model(placed(adapters.get("vggt").models[0], None)).name == "vggt"


# ---- which adapter -------------------------------------------------------------------------------

INVENTED = """
from vggtquant.adapter import Adapter, Swappable

ADAPTER = Adapter(
    "invented",
    models=("invented.Model",),
    image_size=32,
    patch=16,
    run=lambda model, images: model.look(images),
    outputs=lambda found, images: {"depth": found[None, ..., None]},
    attentions=(Swappable("invented.Attention", ("tokens", "xpos"), ("xpos", "grid")),),
)
"""
MODEL = """
import torch
from torch import nn
from torch.nn import functional as F

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.rope = 2, None
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
    def forward(self, tokens, xpos=None):
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.attn, self.head = nn.Conv2d(3, 32, 16, 16), Attention(), nn.Linear(32, 1)
        self.first = nn.Linear(32, 32)
    def look(self, images):
        x = self.first(self.patch(images).flatten(2).mT)
        depth = self.head(x + self.attn(x)).exp().unflatten(1, (images.shape[-2] // 16, -1))
        return F.interpolate(depth[..., 0][:, None], images.shape[-2:])[:, 0]
"""


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model of which nobody has heard, and the one file that tells of it."""
    (tmp_path / "invented.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    file = tmp_path / "more" / "of_invented.py"
    file.write_text(INVENTED)
    yield file
    sys.modules.pop("invented", None)


@pytest.mark.parametrize("way", by_default(["folder", "flag"], "flag"))
def test_an_adapter_is_one_file(
    invented: Path, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    flag = ["--adapter", str(invented)] if way == "flag" else []
    if way == "folder":
        monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(invented.parent)])
    adapters.known.cache_clear()
    try:
        out = tmp_path / "out"
        words = ["--runs", "1", "--warmup", "0", "--scenes", "1", "--output_dir", str(out)]
        schemes = ["--schemes", "INT8_Fast"]
        code = cli.main(["evaluate", "--model", "invented:Model", *words, *schemes, *flag])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        assert "INT8_Fast" in shown.out and (out / "comprehensive_results.json").is_file()
        loaded = models.load_model("invented:Model", adapter=flag[1] if flag else None)
        assert (loaded.image_size, loaded.patch) == (32, 16)
        if way == "folder":
            vq.quantize_model(loaded.model, FAST)
            assert isinstance(loaded.model.attn, QuantizedAttention)
    finally:
        sys.modules.pop(f"{adapters.__name__}.of_invented", None)
        monkeypatch.undo()
        adapters.known.cache_clear()


def test_an_entry_point_is_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def load(self) -> Any:
            return adapter.Adapter("of another package", ("other.Model",))

    monkeypatch.setattr(adapters, "entry_points", lambda group: [Point()])
    adapters.known.cache_clear()
    try:
        assert adapters.of_model(placed("other.Model", None)).name == "of another package"
    finally:
        monkeypatch.undo()
        adapters.known.cache_clear()


def test_an_adapter_is_forced_by_name() -> None:
    model = placed("nobody.knows.It", {"depth": torch.zeros(1, 2, 28, 42)})
    assert adapters.of_model(model).name == ""
    assert adapters.use(model, "depth-anything-3").name == "depth-anything-3"
    assert run(model)["depth"].shape == (1, 2, 28, 42, 1)


@pytest.mark.parametrize(
    "name, words",
    [("vgt", "wanted "), ("none.py", "no such"), ("bad.py", "holds no"), ("worse.py", "KeyError")],
)
def test_a_wrong_adapter(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("ADAPTER = 1")
    (tmp_path / "worse.py").write_text("{}['a']")
    with pytest.raises(UserError, match=words):
        adapters.get(tmp_path / name if name.endswith(".py") else name)


def test_every_adapter_stands_in_the_page() -> None:
    page = Path(__file__).parents[1] / "docs" / "family.md"
    assert [n for n in adapters.known() if f"| `{n}` |" not in page.read_text("utf-8")] == []
