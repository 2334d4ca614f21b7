# SPDX-License-Identifier: Apache-2.0
"""What can be asked for: number formats, model configurations, and the table of named ones."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .errors import UserError
from .files import write_bytes

Granularity = Literal["per_tensor", "per_channel", "per_group"]


@dataclass(frozen=True)
class QuantizationSpec:
    """How an array is coded: bits, symmetry, and which values share a scale.

    two_level is for INT4 groups: a group's scale is an integer factor (1..15, asymmetric 1..8)
    times one float a channel, so that all arithmetic before the epilogue is in integers
    (docs/conventions.md, "Two-level scales"). Without it each group has a float scale.

    >>> QuantizationSpec(bits=8, granularity="per_group", group_size=64).zero_points
    False
    """

    bits: Literal[4, 8] = 8
    symmetric: bool = True
    granularity: Granularity = "per_channel"
    group_size: int = 128
    two_level: bool = False
    number: Literal["int", "float8_e4m3fn"] = "int"
    """What a code is. float8_e4m3fn: 8 bits, symmetric, a scale a channel."""

    def __post_init__(self) -> None:
        _one_of("bits", self.bits, (4, 8))
        _one_of("granularity", self.granularity, ("per_tensor", "per_channel", "per_group"))
        _positive("group_size", self.group_size)
        if self.two_level and (self.bits != 4 or self.granularity != "per_group"):
            raise UserError("two_level scales are for bits=4 with granularity='per_group'")
        _one_of("number", self.number, ("int", "float8_e4m3fn"))
        ways = (self.bits, self.symmetric, self.granularity)
        if self.is_float8 and ways != (8, True, "per_channel"):
            raise UserError("float8_e4m3fn is for bits=8, symmetric, granularity='per_channel'")

    @property
    def zero_points(self) -> bool:
        """Whether each scale has a zero point beside it."""
        return not self.symmetric

    @property
    def is_float8(self) -> bool:
        """Whether codes are FP8 numbers."""
        return self.number == "float8_e4m3fn"

    @property
    def label(self) -> str:
        """What a report calls the codes.

        >>> QuantizationSpec(4, granularity="per_group").label
        'INT4'
        """
        return "FP8" if self.is_float8 else f"INT{self.bits}"


class _Kind(NamedTuple):
    """What a quant_type fixes; None: the field is free."""

    bits: int | None
    symmetric: bool | None
    per_channel: bool | None


QUANT_TYPES: dict[str, _Kind] = {
    "fp32": _Kind(32, None, None),
    "bf16": _Kind(16, None, None),
    "int8_per_tensor_sym": _Kind(8, True, False),
    "int8_per_tensor_asym": _Kind(8, False, False),
    "int8_per_channel_sym": _Kind(8, True, True),
    "int8_per_channel_asym": _Kind(8, False, True),
    "int4_group": _Kind(4, None, True),
    "mixed_precision": _Kind(None, None, True),
    "fp8_per_channel": _Kind(8, True, True),
}


CALIBRATIONS = (
    "rtn",
    "folds",
    "clip",
    "hqq",
    "hadamard",
    "bias",
    "smoothquant",
    "awq",
    "gptq",
    "best",
)
ACTIVATION_RANGES = ("dynamic", "minmax", "percentile", "mse")
"""Where the range of a layer's activations comes from."""

LONGEST_NAME = 100
"""Characters of a config's name, which is a label in tables and charts."""
_DERIVED: Any = None
"""Default of the fields that a quant_type may fix: its value where it does, else _FREE's."""
_FREE = {"bits": 8, "symmetric": True, "per_channel": True}


_LATER = {
    "activation_bits": 8,
    "attention": "float",
    "fuse": False,
    "wide_layers": (),
    "convolutions": "float",
    "attention_values": "bf16",
    "kv_cache": "float",
    "activation_range": "dynamic",
    "calibration": "rtn",
    "calibration_seed": 0,
    "autocast": False,
}
"""Default of the fields that the first version of the file format did not know."""


@dataclass(frozen=True)
class QuantizationConfig:
    """What is wanted of a model's Linear layers; nothing here touches a tensor.

    Raises:
        UserError: for fields that contradict each other, with the value seen and the value wanted.

    >>> config = QuantizationConfig("mine", "int4_group", group_size=64)
    >>> config.bits, config.spec(4).two_level
    (4, True)
    """

    name: str
    """Key in CONFIGS and row label of every report."""
    quant_type: str
    """A key of QUANT_TYPES."""
    bits: int = _DERIVED
    """What quant_type fixes, else 8; another value than the fixed one is an error. So are the next
    two, which are True where they are free."""
    symmetric: bool = _DERIVED
    """False: a zero point beside each scale."""
    per_channel: bool = _DERIVED
    """A scale a row of the weight; False: one for the whole weight."""
    group_size: int = 128
    """Neighbours along a row that share a factor (INT4); the last group of a row may be shorter."""
    calibration_samples: int = 100
    """Pictures shown to a calibrated method (vq.calibrate)."""
    quantize_activations: bool = False
    """False: float activations. True: INT8, a scale a token, chosen as it comes (dynamic).
    fp8_per_channel codes them to FP8 always."""
    skip_first_last: bool = True
    """Leave the first and the last Linear of the model in float."""
    device: str = "cpu"
    """cpu: the model is quantized where it is. cuda, cuda:0, …: it is moved there first. A
    torch.device does too."""
    sensitive_layers: tuple[str, ...] = ()
    """fnmatch patterns of the layers that get sensitive_bits; mixed_precision only."""
    sensitive_bits: int = 8
    normal_bits: int = 4
    """Bits of the layers that no pattern of sensitive_layers names; mixed_precision only."""
    activation_bits: int = 8
    """What quantize_activations codes to: 8, or 16 with an error 256 times smaller at twice the
    cost; exact sums, so the same bits on every machine, either way."""
    attention: Literal["float", "bf16", "int8"] = "float"
    """How q, k and the softmax's products are computed in the attentions of VGGT and DINOv2 that
    hold a quantized layer. float: such an attention stays as it is. bf16, int8: it is swapped."""
    fuse: bool = False
    """Swap the whole transformer blocks of VGGT and DINOv2 that hold a quantized layer: LayerNorm,
    GELU, LayerScale and residual become part of the products beside them. VGGT's aggregator then
    keeps the outputs of the layers only that heads read, and None for the others."""
    wide_layers: tuple[str, ...] = ()
    """fnmatch patterns of the layers that code activations to 16 bits whatever activation_bits
    says, e.g. "*camera_head*": few tokens, which carry the poses."""
    convolutions: Literal["float", "int8"] = "float"
    """float: convolutions stay as they are. int8: INT8 weights and activations, but for the 1x1
    projections of tokens and the last convolution of each head; VGGT's dense heads then run as one
    module each."""
    attention_values: Literal["bf16", "int8"] = "bf16"
    """How attention="int8" multiplies the softmax by v: bf16 has the smaller error, int8 takes half
    the time where the CPU multiplies bfloat16 slowly (docs/performance.md)."""
    kv_cache: Literal["float", "int8"] = "float"
    """Keys and values that a streaming model (StreamVGGT) keeps between calls. int8: a scale a
    token and head, about a quarter of the bytes, in the attentions that are swapped."""
    activation_range: Literal["dynamic", "minmax", "percentile", "mse"] = "dynamic"
    """dynamic: each token's own largest magnitude. Otherwise one range a layer ("static"), which
    calibration finds (vq.calibrate): the largest input seen, a percentile, or the range with the
    least squared error of the codes."""
    calibration: str = "rtn"
    """How evaluate chooses the codes: rtn, or a method of docs/methods.md, with rendered pictures
    that no evaluation shows. quantize_model serves rtn alone; vq.calibrate takes its own method."""
    calibration_seed: int = 0
    """Which rendered pictures: 0 to 999."""
    autocast: bool = False
    """Whether evaluate and run compute what is not quantized in bfloat16: the forward runs under
    torch.autocast. In a script of yours write that around the call of the model."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise UserError(f"name is {self.name!r}; a line of text is wanted")
        if len(self.name) > LONGEST_NAME:
            raise UserError(
                f"name has {len(self.name)} characters ({self.name[:20]}…); at most {LONGEST_NAME} "
                "are wanted"
            )
        _one_of("activation_range", self.activation_range, ACTIVATION_RANGES)
        if self.activation_range != "dynamic" and not self.quantize_activations:
            raise UserError(
                f"activation_range is {self.activation_range!r}, but quantize_activations is False"
            )
        _one_of("calibration", self.calibration, CALIBRATIONS)
        _one_of("convolutions", self.convolutions, ("float", "int8"))
        for field in ("sensitive_layers", "wide_layers"):
            patterns = getattr(self, field)
            patterns = [patterns] if isinstance(patterns, str) else patterns
            if not isinstance(patterns, list | tuple) or not all(
                isinstance(pattern, str) for pattern in patterns
            ):
                raise UserError(f"{field} is {patterns!r}; patterns of names are wanted")
            object.__setattr__(self, field, tuple(patterns))
        object.__setattr__(self, "device", str(self.device))
        if self.is_float8:
            object.__setattr__(self, "quantize_activations", True)
            for field in ("activation_bits", "activation_range", "calibration", "wide_layers"):
                if getattr(self, field) != _LATER[field]:
                    raise UserError(
                        f"{field} is {getattr(self, field)!r}; FP8 rounds to nearest and takes "
                        f"{_LATER[field]!r} alone"
                    )
        if not isinstance(self.quant_type, str) or self.quant_type not in QUANT_TYPES:
            raise UserError(
                f"quant_type {self.quant_type!r} is unknown; one of: {', '.join(QUANT_TYPES)}"
            )
        for field, fixed in QUANT_TYPES[self.quant_type]._asdict().items():
            seen = getattr(self, field)
            if seen is None:
                object.__setattr__(self, field, _FREE[field] if fixed is None else fixed)
            elif fixed is not None and seen != fixed:
                raise UserError(f"{self.quant_type} has {field}={fixed}, not {seen}")
        for field in (
            "symmetric",
            "per_channel",
            "quantize_activations",
            "skip_first_last",
            "fuse",
            "autocast",
        ):
            _one_of(field, getattr(self, field), (True, False))
        if not re.fullmatch(r"(cpu|cuda)(:\d+)?", self.device):
            raise UserError(f"device is {self.device!r}; one of 'cpu', 'cuda' is wanted")
        _positive("group_size", self.group_size)
        mixed = self.quant_type == "mixed_precision"
        if self.group_size % 8 and (mixed or self.quant_type == "int4_group"):
            raise UserError(f"group_size is {self.group_size}; a Linear wants a multiple of 8")
        if not isinstance(self.calibration_samples, int) or self.calibration_samples < 0:
            raise UserError(
                f"calibration_samples is {self.calibration_samples}; 0 or more is wanted"
            )
        seed = self.calibration_seed
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1000:
            raise UserError(f"calibration_seed is {seed!r}; 0 to 999 is wanted")
        _one_of("bits", self.bits, (4, 8) if self.quantizes else (16, 32))
        for field, default in (("sensitive_bits", 8), ("normal_bits", 4)):
            _one_of(field, getattr(self, field), (4, 8))
            if not mixed and getattr(self, field) != default:
                raise UserError(f"{field} are for mixed_precision, not for {self.quant_type}")
        if self.sensitive_layers and not mixed:
            raise UserError(f"sensitive_layers are for mixed_precision, not for {self.quant_type}")
        _one_of("activation_bits", self.activation_bits, (8, 16))
        if self.activation_bits != 8 and not self.quantize_activations:
            raise UserError(
                f"activation_bits is {self.activation_bits}, but quantize_activations is False"
            )
        if self.wide_layers and not self.quantize_activations:
            raise UserError("wide_layers are given, but quantize_activations is False")
        if not self.quantizes and self.quantize_activations:
            raise UserError(f"{self.quant_type} quantizes nothing, so no activations either")
        _one_of("attention", self.attention, ("float", "bf16", "int8"))
        _one_of("attention_values", self.attention_values, ("bf16", "int8"))
        if self.attention_values != "bf16" and self.attention != "int8":
            raise UserError(
                f"attention_values is {self.attention_values!r}, but attention is "
                f"{self.attention!r}; 'int8' is wanted with it"
            )
        _one_of("kv_cache", self.kv_cache, ("float", "int8"))
        if self.kv_cache != "float" and self.attention == "float" and not self.fuse:
            raise UserError("kv_cache is 'int8', but attention is 'float' and fuse is False")
        for field in ("attention", "fuse", "convolutions", "calibration", "autocast"):
            if not self.quantizes and getattr(self, field) != _LATER[field]:
                raise UserError(f"{self.quant_type} quantizes nothing, so no {field} either")

    @property
    def quantizes(self) -> bool:
        """Whether any layer is swapped."""
        return self.quant_type not in ("fp32", "bf16")

    @property
    def is_bfloat16(self) -> bool:
        """Whether a forward runs under bfloat16 autocast."""
        return self.autocast or self.quant_type == "bf16"

    @property
    def is_float8(self) -> bool:
        """Whether weights and activations are FP8 numbers."""
        return self.quant_type == "fp8_per_channel"

    def spec(self, bits: int) -> QuantizationSpec:
        """How a weight is coded with that many bits."""
        if bits == 4:
            return QuantizationSpec(4, self.symmetric, "per_group", self.group_size, two_level=True)
        if self.is_float8:
            return QuantizationSpec(8, number="float8_e4m3fn", group_size=self.group_size)
        granularity: Granularity = "per_channel" if self.per_channel else "per_tensor"
        return QuantizationSpec(8, self.symmetric, granularity, self.group_size)

    @property
    def looks(self) -> bool:
        """Whether codes or ranges are found with pictures or by another method than rounding."""
        return self.calibration != "rtn" or self.activation_range != "dynamic"

    def layer_bits(self, name: str = "") -> int:
        """Bits of the weight of the layer of that name."""
        if self.quant_type != "mixed_precision":
            return self.bits
        sensitive = any(fnmatchcase(name, pattern) for pattern in self.sensitive_layers)
        return self.sensitive_bits if sensitive else self.normal_bits

    def layer_activation_bits(self, name: str = "") -> int:
        """Bits of the activations of the layer of that name, where activations are quantized."""
        wide = any(fnmatchcase(name, pattern) for pattern in self.wide_layers)
        return 16 if wide else self.activation_bits

    def layer_spec(self, name: str = "") -> QuantizationSpec:
        """How the weight of the layer of that name is coded.

        Raises:
            UserError: the config quantizes nothing.
        """
        if not self.quantizes:
            raise UserError(f"{self.name} quantizes nothing; an integer scheme is wanted")
        return self.spec(self.layer_bits(name))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able fields; from_dict is the inverse.

        Fields that came later (_LATER) stand there only where they are not the default, so that
        readers who do not know them go on reading what they can compute.
        """
        kept = {k: v for k, v in asdict(self).items() if k not in _LATER or v != _LATER[k]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizationConfig:
        """The config that to_dict described.

        Raises:
            UserError: unknown fields, missing ones, values that contradict each other.
        """
        known = {field.name: field.default for field in fields(cls)}
        unknown = sorted(set(values) - known.keys())
        if unknown:
            raise UserError(f"a config has no field {', '.join(unknown)}")
        missing = [name for name, value in known.items() if value is MISSING and name not in values]
        if missing:
            raise UserError(f"a config needs the field {', '.join(missing)}")
        return cls(**values)


def _one_of(field: str, seen: object, wanted: tuple[object, ...]) -> None:
    if seen not in wanted:
        raise UserError(f"{field} is {seen!r}; one of {', '.join(map(repr, wanted))} is wanted")


def _positive(field: str, seen: object) -> None:
    if not isinstance(seen, int) or isinstance(seen, bool) or seen <= 0:
        raise UserError(f"{field} is {seen!r}; a positive whole number is wanted")


# fmt: off
_TABLE = (
    # name                          quant_type              bits  symmetric  per_channel  group_size
    ("Baseline_FP32",               "fp32",                  32,   True,      True,        128),
    ("Baseline_BF16",               "bf16",                  16,   True,      True,        128),
    ("INT8_Per_Tensor_Symmetric",   "int8_per_tensor_sym",    8,   True,      False,       128),
    ("INT8_Per_Tensor_Asymmetric",  "int8_per_tensor_asym",   8,   False,     False,       128),
    ("INT8_Per_Channel_Symmetric",  "int8_per_channel_sym",   8,   True,      True,        128),
    ("INT8_Per_Channel_Asymmetric", "int8_per_channel_asym",  8,   False,     True,        128),
    ("INT4_Group_128",              "int4_group",             4,   True,      True,        128),
    ("INT4_Group_64",               "int4_group",             4,   True,      True,        64),
    ("INT4_Group_32",               "int4_group",             4,   True,      True,        32),
)
# fmt: on
CONFIGS: dict[str, QuantizationConfig] = {row[0]: QuantizationConfig(*row) for row in _TABLE}
CONFIGS |= {
    f"{config.name}_A8": replace(config, name=f"{config.name}_A8", quantize_activations=True)
    for config in CONFIGS.values()
    if config.quantizes
}
CONFIGS |= {  # everything in integers, not the Linear layers alone
    name: replace(
        CONFIGS[linears],
        name=name,
        attention="int8",
        attention_values="int8",
        fuse=True,
        convolutions="int8",
    )
    for name, linears in (
        ("INT8_Fast", "INT8_Per_Channel_Symmetric_A8"),
        ("INT4_Fast", "INT4_Group_128_A8"),
    )
}
DEFAULTS = tuple(CONFIGS.values())
"""What an evaluation runs if it is not told which: each of CONFIGS but those below. Few machines
compute FP8 quickly, and bfloat16 pays where the CPU multiplies it."""
CONFIGS["FP8_Per_Channel"] = QuantizationConfig("FP8_Per_Channel", "fp8_per_channel")
CONFIGS |= {  # the fastest: what is not quantized in bfloat16
    f"{name}_BF16": replace(CONFIGS[name], name=f"{name}_BF16", autocast=True)
    for name in ("INT8_Fast", "INT4_Fast")
}


CONFIG_SUFFIXES = (".toml", ".json")
"""Of the files that hold configs."""


def get_config(config: str | QuantizationConfig) -> QuantizationConfig:
    """The config itself, or the one of that name.

    Raises:
        UserError: an unknown name, with the nearest ones.

    >>> get_config("INT4_Group_64").bits
    4
    """
    if isinstance(config, QuantizationConfig):
        return config
    if isinstance(config, str) and config in CONFIGS:
        return CONFIGS[config]
    folded = {name.lower(): name for name in CONFIGS}
    wanted = str(config).lower()
    near = [name for name in folded if wanted and wanted in name][:4]
    near = near or difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    if near:
        hint = f"nearest: {', '.join(folded[name] for name in near)}"
    else:
        hint = f"known ones: {', '.join(name for name in CONFIGS if not name.endswith('_A8'))}"
        hint += ", each integer one with _A8 too"
    raise UserError(f"scheme {config!r} is unknown; {hint}")


def read_configs(path: str | Path) -> list[QuantizationConfig]:
    """The configs of a .toml or .json file.

    The file holds one config, or a list of them under "configs", or (JSON only) a list. Fields are
    those of QuantizationConfig; only name and quant_type are needed.

    Raises:
        UserError: no such file, another kind of file, a config with an error, a name twice.

    >>> read_configs("mine.toml")  # doctest: +SKIP
    [QuantizationConfig(name='Mine', quant_type='int4_group', ...)]
    """
    path = Path(path)
    if path.suffix not in CONFIG_SUFFIXES:
        raise UserError(f"{path} is no config file: {' or '.join(CONFIG_SUFFIXES)} is wanted")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if isinstance(values, dict):
        values = values["configs"] if "configs" in values else [values]
    if not isinstance(values, list) or not values or not all(isinstance(v, dict) for v in values):
        raise UserError(f"{path} holds no configs: objects with a name and a quant_type are wanted")
    found = {}
    for value in values:
        try:
            config = QuantizationConfig.from_dict(value)
        except (UserError, TypeError) as error:
            raise UserError(f"{path}, config {value.get('name', '?')}: {error}") from error
        if config.name in found:
            raise UserError(
                f"{path}: two configs are named {config.name!r}; wanted a name for each"
            )
        found[config.name] = config
    return list(found.values())


def write_config(path: str | Path, config: QuantizationConfig) -> None:
    """Write a config as a .json file that read_configs reads; UserError when it cannot be."""
    if Path(path).suffix != ".json":
        raise UserError(f"{path} is no .json file, which a config is written to")
    write_bytes(path, (json.dumps(config.to_dict(), indent=2) + "\n").encode())
