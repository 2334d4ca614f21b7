# SPDX-License-Identifier: Apache-2.0
"""The table of named configs, and configs that contradict themselves."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import vggtquant as vq
from vggtquant import QuantizationConfig, QuantizationSpec, UserError, configs

NAMED = [
    "Baseline_FP32", "Baseline_BF16", "INT8_Per_Tensor_Symmetric", "INT8_Per_Tensor_Asymmetric",
    "INT8_Per_Channel_Symmetric", "INT8_Per_Channel_Asymmetric", "INT4_Group_128", "INT4_Group_64",
    "INT4_Group_32",
]  # fmt: skip

every_config = pytest.mark.parametrize("config", vq.CONFIGS.values(), ids=vq.CONFIGS)


def test_the_names_are_the_public_ones() -> None:
    fast = ["INT8_Fast", "INT4_Fast", "FP8_Per_Channel", "INT8_Fast_BF16", "INT4_Fast_BF16"]
    assert list(vq.CONFIGS) == NAMED + [f"{name}_A8" for name in NAMED[2:]] + fast
    assert [config.name for config in configs.DEFAULTS] == list(vq.CONFIGS)[:-3]


def test_fields_and_defaults_are_the_public_ones() -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(QuantizationConfig)}
    required = [name for name, value in defaults.items() if value is dataclasses.MISSING]
    assert required == ["name", "quant_type"]
    config = QuantizationConfig("x", "mixed_precision")  # which fixes none of bits and symmetric
    assert {name: getattr(config, name) for name in defaults if name not in required} == {
        "bits": 8, "symmetric": True, "per_channel": True, "group_size": 128,
        "calibration_samples": 100, "quantize_activations": False, "skip_first_last": True,
        "device": "cpu", "sensitive_layers": (), "sensitive_bits": 8, "normal_bits": 4,
        "activation_bits": 8, "attention": "float", "fuse": False, "wide_layers": (),
        "convolutions": "float", "attention_values": "bf16",
        "kv_cache": "float",
        "activation_range": "dynamic", "calibration": "rtn", "calibration_seed": 0,
        "autocast": False,
    }  # fmt: skip
    assert list(configs.QUANT_TYPES) == [
        "fp32", "bf16", "int8_per_tensor_sym", "int8_per_tensor_asym", "int8_per_channel_sym",
        "int8_per_channel_asym", "int4_group", "mixed_precision", "fp8_per_channel",
    ]  # fmt: skip


@every_config
def test_a_name_says_what_its_config_does(config: QuantizationConfig) -> None:
    assert vq.CONFIGS[config.name] is config is vq.get_config(config.name)
    assert vq.get_config(config) is config
    assert config.quantize_activations == (
        config.name.endswith(("_A8", "_Fast", "FP8_Per_Channel", "_BF16"))
        and config.name != "Baseline_BF16"
    )
    assert config.quantizes == (not config.name.startswith("Baseline"))
    assert config.skip_first_last and config.device == "cpu"
    if not config.quantizes:
        return
    if config.autocast:
        fast = vq.CONFIGS[config.name.removesuffix("_BF16")]
        assert config == dataclasses.replace(fast, name=config.name, autocast=True)
        return
    if config.name.endswith("_Fast"):
        linears = "INT8_Per_Channel_Symmetric_A8" if config.bits == 8 else "INT4_Group_128_A8"
        everything = {
            "attention": "int8", "attention_values": "int8", "fuse": True, "convolutions": "int8",
        }  # fmt: skip
        assert config == dataclasses.replace(vq.CONFIGS[linears], name=config.name, **everything)
        return
    spec = config.layer_spec()
    assert spec.is_float8 == config.name.startswith("FP8")
    if spec.is_float8:
        assert spec == vq.QuantizationSpec(8, number="float8_e4m3fn") and spec.label == "FP8"
        return
    assert config.name.startswith(f"INT{spec.bits}_")
    assert spec.symmetric == ("Asymmetric" not in config.name)
    if spec.bits == 4:
        assert config.name.removesuffix("_A8").endswith(f"_{spec.group_size}")
        assert spec.granularity == "per_group" and spec.two_level
    else:
        assert spec.granularity == ("per_tensor" if "Tensor" in config.name else "per_channel")
    if config.quantize_activations:
        plain = vq.CONFIGS[config.name.removesuffix("_A8")]
        assert config == dataclasses.replace(plain, name=config.name, quantize_activations=True)


@every_config
def test_to_dict_and_back(config: QuantizationConfig) -> None:
    assert QuantizationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_mixed_precision_to_dict_and_back() -> None:
    config = QuantizationConfig("m", "mixed_precision", sensitive_layers=["a.*", "b"])  # type: ignore[arg-type]
    assert config.sensitive_layers == ("a.*", "b")
    assert QuantizationConfig.from_dict(config.to_dict()) == config
    assert hash(config) == hash(dataclasses.replace(config))
    assert [config.layer_bits(name) for name in ("a.0", "b", "c", "")] == [8, 8, 4, 4]
    assert config.layer_spec("b").granularity == "per_channel"


def test_wide_layers_code_activations_to_16_bits() -> None:
    plain = vq.CONFIGS["INT8_Per_Channel_Symmetric_A8"]
    config = dataclasses.replace(plain, name="poses", wide_layers="*camera_head*")
    assert config.wide_layers == ("*camera_head*",)
    assert config.layer_activation_bits("camera_head.trunk.0.attn.qkv") == 16
    assert config.layer_activation_bits("aggregator.frame_blocks.0.attn.qkv") == 8
    assert QuantizationConfig.from_dict(config.to_dict()) == config
    assert "wide_layers" not in plain.to_dict()
    with pytest.raises(vq.UserError, match="wide_layers are given, but quantize_activations"):
        QuantizationConfig("x", "int8_per_channel_sym", wide_layers="*")


def test_activation_bits_are_said_where_they_are_not_8() -> None:
    config = vq.CONFIGS["INT4_Group_64_A8"]
    fine = dataclasses.replace(config, name="fine", activation_bits=16)
    assert QuantizationConfig.from_dict(json.loads(json.dumps(fine.to_dict()))) == fine
    assert "activation_bits" in fine.to_dict() and "activation_bits" not in config.to_dict()


def test_from_dict_names_what_it_does_not_know() -> None:
    with pytest.raises(UserError, match="a config has no field colour, shape"):
        QuantizationConfig.from_dict({"name": "x", "quant_type": "fp32", "shape": 1, "colour": 2})
    with pytest.raises(UserError, match="a config needs the field name"):
        QuantizationConfig.from_dict({"quant_type": "fp32", "bits": 32})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"quant_type": "int3"}, "quant_type 'int3' is unknown; one of: fp32, bf16, int8"),
        ({"quant_type": "fp32", "bits": 8}, "fp32 has bits=32, not 8"),
        ({"quant_type": "bf16", "bits": 32}, "bf16 has bits=16, not 32"),
        ({"bits": 4}, "int8_per_channel_sym has bits=8, not 4"),
        ({"symmetric": False}, "int8_per_channel_sym has symmetric=True, not False"),
        ({"per_channel": False}, "int8_per_channel_sym has per_channel=True, not False"),
        ({"quant_type": "int8_per_tensor_sym", "per_channel": True}, "int8_per_tensor_sym has per"),
        ({"quant_type": "int4_group", "bits": 8}, "int4_group has bits=4, not 8"),
        ({"quant_type": "mixed_precision", "bits": 5}, "bits is 5; one of 4, 8 is wanted"),
        ({"symmetric": "no", "quant_type": "int4_group"}, "symmetric is 'no'; one of True, False"),
        ({"skip_first_last": "no"}, "skip_first_last is 'no'; one of True, False"),
        ({"sensitive_bits": 5}, "sensitive_bits is 5; one of 4, 8 is wanted"),
        ({"normal_bits": 16}, "normal_bits is 16; one of 4, 8 is wanted"),
        ({"sensitive_bits": 4}, "sensitive_bits are for mixed_precision, not for int8_per_channel"),
        ({"device": "cuda:x"}, "device is 'cuda:x'; one of 'cpu', 'cuda' is wanted"),
        ({"group_size": 0}, "group_size is 0; a positive whole number is wanted"),
        ({"group_size": -128}, "group_size is -128; a positive whole number is wanted"),
        ({"group_size": 64.0}, "group_size is 64.0; a positive whole number is wanted"),
        ({"group_size": True}, "group_size is True; a positive whole number is wanted"),
        ({"quant_type": "int4_group", "bits": 4, "group_size": 12}, "group_size is 12"),
        ({"calibration_samples": -1}, "calibration_samples is -1; 0 or more is wanted"),
        ({"device": "tpu"}, "device is 'tpu'; one of 'cpu', 'cuda' is wanted"),
        ({"sensitive_layers": ("a",)}, "sensitive_layers are for mixed_precision, not for"),
        ({"quant_type": "mixed_precision", "sensitive_bits": 5}, "sensitive_bits is 5; one"),
        ({"quant_type": "mixed_precision", "normal_bits": 16}, "normal_bits is 16; one of 4, 8"),
        ({"quant_type": "fp32", "bits": 32, "quantize_activations": True}, "fp32 quantizes"),
        ({"quantize_activations": True, "activation_bits": 12}, "activation_bits is 12; one of 8"),
        ({"activation_bits": 16}, "activation_bits is 16, but quantize_activations is False"),
    ],
)  # fmt: skip
def test_contradictions(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        QuantizationConfig(**{"name": "x", "quant_type": "int8_per_channel_sym", **fields})


@pytest.mark.parametrize("quant_type", configs.QUANT_TYPES)
def test_what_a_quant_type_fixes_need_not_be_given(quant_type: str) -> None:
    config = QuantizationConfig("m", quant_type)
    kind = configs.QUANT_TYPES[quant_type]
    assert config.bits == (kind.bits or 8)
    assert config.symmetric is (kind.symmetric is not False)
    assert config.per_channel is (kind.per_channel is not False)
    assert config == QuantizationConfig.from_dict(config.to_dict())


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_devices(device: str) -> None:
    for given in (device, torch.device(device)):
        config = QuantizationConfig("x", "int8_per_channel_sym", device=given)
        assert config.device == device and json.loads(json.dumps(config.to_dict()))


# ---- config files --------------------------------------------------------------------------------


TOML = """
[[configs]]
name = "Mine"
quant_type = "int4_group"
group_size = 64

[[configs]]
name = "Mixed"
quant_type = "mixed_precision"
sensitive_layers = ["*.qkv"]
"""


def test_config_files(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(TOML)
    mine, mixed = configs.read_configs(tmp_path / "my.toml")
    assert mine == QuantizationConfig("Mine", "int4_group", group_size=64)
    assert mixed.layer_bits("a.qkv") == 8 and mixed.layer_bits("a.proj") == 4
    both = [mine.to_dict(), mixed.to_dict()]
    for values in (both, {"configs": both}):
        (tmp_path / "my.json").write_text(json.dumps(values))
        assert configs.read_configs(tmp_path / "my.json") == [mine, mixed]
    (tmp_path / "one.json").write_text(json.dumps(mine.to_dict()))
    assert configs.read_configs(str(tmp_path / "one.json")) == [mine]
    (tmp_path / "one.toml").write_text('name = "A"\nquant_type = "int8_per_channel_sym"\n')
    assert configs.read_configs(tmp_path / "one.toml")[0].name == "A"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.yaml", "", "is no config file: .toml or .json is wanted"),
        ("a.json", "{", "cannot read"),
        ("a.json", "[" * 100_000, "cannot read"),
        ("a.toml", "a", "cannot read"),
        ("a.json", "[]", "holds no configs"),
        ("a.json", "3", "holds no configs"),
        ("a.json", '{"configs": {"a": 1}}', "holds no configs"),
        ("a.json", '{"name": "x"}', "config x: a config needs the field quant_type"),
        ("a.json", '{"name": "x", "quant_type": "int3"}', "config x: quant_type 'int3' is unknown"),
        ("a.json", '{"name": 3, "quant_type": "bf16"}', "name is 3; a line of text"),
        ("a.json", '[{"name": "x", "quant_type": "bf16"}, {"name": "x", "quant_type": "bf16"}]',
         "two configs are named 'x'"),
        ("a.json", '{"name": "x", "quant_type": "mixed_precision", "sensitive_layers": 3}',
         "config x: "),
        ("a.json", '{"name": "x", "quant_type": []}', "config x: "),
    ],
)  # fmt: skip
def test_config_files_with_errors(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        configs.read_configs(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_config_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*no.toml: No such file"):
        configs.read_configs(tmp_path / "no.toml")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"bits": 3}, "bits is 3; one of 4, 8 is wanted"),
        ({"granularity": "per_row"}, "granularity is 'per_row'; one of 'per_tensor'"),
        ({"group_size": 0}, "group_size is 0; a positive whole number"),
        ({"two_level": True}, "two_level scales are for bits=4 with granularity='per_group'"),
        ({"bits": 4, "two_level": True}, "two_level scales are for bits=4"),
    ],
)
def test_schemes_that_do_not_exist(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        QuantizationSpec(**fields)


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("int4_group_64", "INT4_Group_64"),
        ("INT8_Per_Chanel_Symmetric", "INT8_Per_Channel_Symmetric"),
        ("fp32", "Baseline_FP32"),
    ],
)
def test_unknown_names_show_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"scheme '{name}' is unknown; nearest: .*{nearest}"):
        vq.get_config(name)


def test_names_far_from_all_show_all() -> None:
    with pytest.raises(UserError) as error:
        vq.get_config("zzzz")
    assert all(name in str(error.value) for name in NAMED)


# ---- in use --------------------------------------------------------------------------------------


def test_sensitive_layers_hold_for_one_layer_too() -> None:
    config = QuantizationConfig("m", "mixed_precision", sensitive_layers=("*.qkv",))
    linear = torch.nn.Linear(64, 8)
    bits = {
        name: vq.QuantizedLinear.from_linear(linear, config, name=name).spec.bits
        for name in ("blocks.0.qkv", "blocks.0.proj")
    }
    assert bits == {"blocks.0.qkv": 8, "blocks.0.proj": 4}


def test_quantize_is_not_for_models() -> None:
    model: Any = torch.nn.Linear(64, 8)
    for keywords in ({"config": "INT4_Group_32"}, {"weights": torch.qint8}):
        with pytest.raises(UserError, match=r"quantize_model\(model, config\) is for models"):
            vq.quantize(model, **keywords)
