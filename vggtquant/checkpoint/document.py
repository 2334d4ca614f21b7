# SPDX-License-Identifier: Apache-2.0
"""What a packed checkpoint says of itself; docs/checkpoint-format.md is the definition.

A checkpoint is one safetensors file: the state dict of the quantized model, and a JSON document in
the metadata with the layers, their specs, a checksum a tensor, and where the weights came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import ops
from ..configs import QuantizationConfig, QuantizationSpec
from ..errors import UserError
from ..qtensor import QTensor
from ..weights.container import SEAL, Container, Entry, Planned, header_bound
from ..weights.tensors import PACKED_KEY as KEY

FORMAT_VERSION = 1
FLOAT_DTYPES = ("bfloat16", "float32")
"""How the tensors that stay float are stored: narrowed to bfloat16, or as they were."""
_FLOATS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

PARTS = {
    "weight_codes": torch.uint8,
    "weight_scale": torch.float32,
    "weight_factor": torch.uint8,
    "weight_zero_point": torch.int8,
}
"""A quantized weight's tensors: what QuantizedLinear puts into a state dict."""
INPUT_PARTS = ("input_weight", "input_bias")
"""What a layer's input is multiplied by, and what is added, before it is coded."""


@dataclass(frozen=True)
class Layer:
    """A quantized Linear of a checkpoint."""

    name: str
    shape: tuple[int, int]
    """(out_features, in_features)"""
    spec: QuantizationSpec
    """As it was coded: two_level is False where float group scales were taken instead."""
    config: int = 0
    """Which of the document's configs."""
    sqnr_db: float | None = None
    """Of the weight and what its codes stand for; None where it was not measured or has none."""
    input_scale: float = 0.0
    """Of all tokens; 0: each token has its own."""
    input_parts: tuple[str, ...] = ()
    """Which of INPUT_PARTS the layer has."""

    def parts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Names, dtypes and shapes of the weight's tensors, by the spec and the shape alone."""
        spec, (n, k) = self.spec, self.shape
        rows, cols = (1, n * k) if spec.granularity == "per_tensor" else (n, k)
        groups = -(-k // min(spec.group_size, k)) if spec.granularity == "per_group" else 1
        scales = rows if spec.two_level else rows * groups
        shapes: dict[str, tuple[int, ...]] = {
            "weight_codes": (rows, ops.row_nbytes(spec.bits, cols)),
            "weight_scale": (scales,),
        }
        if spec.two_level:
            shapes["weight_factor"] = (rows * groups,)
        if spec.zero_points:
            shapes["weight_zero_point"] = (rows * groups,)
        parts = {f"{self.name}.{key}": (PARTS[key], shape) for key, shape in shapes.items()}
        return parts | {f"{self.name}.{key}": (torch.float32, (k,)) for key in self.input_parts}

    @property
    def bytes(self) -> int:
        """Of the weight's tensors in the file."""
        parts = self.parts().values()
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in parts)


def tensors_of(name: str, q: QTensor) -> dict[str, torch.Tensor]:
    """A weight's tensors as a file and a state dict name them."""
    parts = zip(PARTS, (q.packed, q.stored_scale, q.factor, q.stored_zero), strict=True)
    return {f"{name}.{key}": torch.from_numpy(x) for key, x in parts if x is not None}


class Narrowed(NamedTuple):
    """What storing float tensors as bfloat16 cost, over all of them."""

    tensors: int
    relative_l2: float
    """sqrt(sum (x - x')^2 / sum x^2)"""
    worst_relative_l2: float
    """The same of the tensor that it cost most."""
    worst: str
    """That tensor."""


@dataclass(frozen=True)
class Source:
    """Where the float weights came from; "" where it is not known."""

    name: str = ""
    sha256: str = ""
    """Of the file (of shards: of their digests, in order of the names), or of the state dict."""
    licence: str = ""
    nbytes: int = 0


@dataclass(frozen=True)
class Document:
    """The JSON document of a checkpoint."""

    writer: str
    architecture: str
    """"vggt", "builtin:tiny", …: what load can build; "" for other models."""
    settings: dict[str, int | bool]
    """Arguments of the architecture, such as VGGT's img_size."""
    configs: list[QuantizationConfig]
    layers: list[Layer]
    skipped: dict[str, str]
    """Linear layers that stay float, and why."""
    source: Source
    sha256: dict[str, str] = field(default_factory=dict, repr=False)
    """Of every tensor's bytes."""
    dtypes: dict[str, str] = field(default_factory=dict, repr=False)
    """What the tensors were that are stored narrower than they were."""
    narrowed: Narrowed | None = None

    @property
    def bits_per_weight(self) -> float:
        """Of the quantized layers, without their biases; NaN where there are none."""
        weights = sum(math.prod(layer.shape) for layer in self.layers)
        return 8 * sum(layer.bytes for layer in self.layers) / weights if weights else math.nan

    def to_metadata(self) -> dict[str, str]:
        """The file's metadata; the seal is still to be filled in."""
        values = {
            "format_version": FORMAT_VERSION,
            **asdict(self),
            "configs": [config.to_dict() for config in self.configs],
            "layers": [_row(layer) for layer in self.layers],
            "narrowed": self.narrowed._asdict() if self.narrowed else None,
        }
        text = json.dumps(values, separators=(",", ":"), allow_nan=False)
        return {"format": "pt", SEAL: "0" * 64, KEY: text}


class Checkpoint:
    """A packed checkpoint, mapped and checked, all but the tensors' bytes (see `verify`).

    Raises:
        UserError: another kind of file, a newer format, a damaged header, tensors that do not fit
            the layers.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = Container(path)
        self.path = self.file.path
        if KEY not in self.file.metadata:
            raise UserError(
                f"{self.path} is no packed checkpoint of vggtquant; make one with: "
                f"vggtquant quantize {self.path} --scheme INT4_Group_128 --out packed.safetensors"
            )
        self.document = self._document()
        self.floats = self._check_tensors()

    @property
    def entries(self) -> dict[str, Entry]:
        return self.file.entries

    def verify(self, name: str) -> None:
        """Compare a tensor's bytes with their checksum; UserError where they differ."""
        if self.file.sha256(name) != self.document.sha256[name]:
            raise UserError(f"{self.path} is damaged: the bytes of {name} do not fit their SHA-256")

    def qtensor(self, layer: Layer) -> QTensor:
        """The layer's weight on the file's pages, its scales and factors checked for sense."""
        given = {part: self.file.tensor(part).numpy() for part in layer.parts()}
        codes, scale, factor, zero = (given.get(f"{layer.name}.{key}") for key in PARTS)
        assert codes is not None and scale is not None  # parts() always has them
        spec = layer.spec
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise self._wrong(layer, "scales that are not positive and finite")
        if factor is not None and not (1 <= factor.min() and factor.max() <= _most_factor(spec)):
            raise self._wrong(layer, f"factors outside 1..{_most_factor(spec)}")
        if zero is not None and spec.bits == 4 and not (-8 <= zero.min() and zero.max() <= 7):
            raise self._wrong(layer, "zero points outside -8..7")
        return QTensor(spec, layer.shape, "float32", True, codes, scale, factor, zero)

    def inputs(self, layer: Layer) -> ops.Inputs:
        """How the layer codes its input."""
        weight, bias = (
            self.file.tensor(f"{layer.name}.{key}").clone() if key in layer.input_parts else None
            for key in INPUT_PARTS
        )
        if not all(x is None or torch.isfinite(x).all() for x in (weight, bias)):
            raise self._wrong(layer, "an input weight or bias that is not finite")
        return ops.Inputs(weight, bias, layer.input_scale)

    def dtype(self, name: str) -> torch.dtype:
        """What a float tensor was before it was stored."""
        said = self.document.dtypes.get(name)
        return _FLOATS[said] if said else self.entries[name].dtype

    def _wrong(self, layer: Layer, what: str) -> UserError:
        return UserError(f"{self.path}: layer {layer.name} has {what}")

    def _document(self) -> Document:
        try:
            values = json.loads(self.file.metadata[KEY])
            version = values["format_version"]
            if type(version) is not int or version < 1:
                raise ValueError(f"format_version is {version!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(error) from error
        if version not in _READERS:
            raise UserError(
                f"{self.path} is of format {version}, this vggtquant reads up to "
                f"{FORMAT_VERSION}: pip install --upgrade vggtquant"
            )
        if self.file.header_sha256() != self.file.metadata.get(SEAL):
            raise UserError(f"{self.path} is damaged: the header does not fit its SHA-256")
        try:
            return _READERS[version](values)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        words = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return UserError(f"{self.path}: the metadata make no sense ({words})")

    def _check_tensors(self) -> list[str]:
        """Every tensor fits its layer and has a checksum; the names of those of no layer."""
        parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for layer in self.document.layers:
            parts |= layer.parts()
        if sum(len(layer.parts()) for layer in self.document.layers) != len(parts):
            raise UserError(f"{self.path}: a layer stands there twice")
        for name, (dtype, shape) in parts.items():
            seen = self.entries.get(name)
            if seen is None:
                raise UserError(f"{self.path}: tensor {name} is missing")
            if (seen.dtype, seen.shape) != (dtype, shape):
                raise UserError(
                    f"{self.path}: tensor {name} is {_short(seen.dtype)} {seen.shape}; "
                    f"{_short(dtype)} {shape} is wanted"
                )
        if self.document.sha256.keys() != self.entries.keys():
            name = min(self.document.sha256.keys() ^ self.entries.keys())
            raise UserError(f"{self.path}: tensor {name} is missing, or its checksum is")
        floats = [name for name in self.entries if name not in parts]
        for name, was in self.document.dtypes.items():
            if name not in floats or was not in _FLOATS:
                raise UserError(f"{self.path}: tensor {name} cannot have been {was!r}")
        return floats


def _most_factor(spec: QuantizationSpec) -> int:
    return 15 if spec.symmetric else 8


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def is_checkpoint(path: str | Path) -> bool:
    """Whether the file is a packed checkpoint, whole or not so."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return f'"{KEY}":'.encode() in file.read(min(length, 4096))
    except OSError:
        return False


# ---- readers: one for each version, for ever -----------------------------------------------------


def _read_1(values: Mapping[str, Any]) -> Document:
    layers = [
        Layer(
            _str(row["name"]),
            _pair(row["shape"]),
            _spec(row["scheme"]),
            _index(row["config"], len(values["configs"])),
            None if row["sqnr_db"] is None else _number(row["sqnr_db"]),
            _input_scale(row.get("input_scale", 0.0)),
            _input_parts(row.get("input_parts", [])),
        )
        for row in values["layers"]
    ]
    source = values["source"]
    narrowed = values["narrowed"]
    return Document(
        writer=_str(values["writer"]),
        architecture=_str(values["architecture"]),
        settings=_settings(values["settings"]),
        configs=[_config(config) for config in values["configs"]],
        layers=layers,
        skipped=_strings(values["skipped"]),
        source=Source(
            _str(source["name"]),
            _str(source["sha256"]),
            _str(source["licence"]),
            int(_number(source["nbytes"])),
        ),
        sha256=_strings(values["sha256"]),
        dtypes=_strings(values["dtypes"]),
        narrowed=None if narrowed is None else _narrowed(**narrowed),
    )


def _input_scale(value: Any) -> float:
    if _number(value) != 0 and not 2.0**-112 <= value <= 2.0**127:
        raise ValueError(f"an input scale of {value!r}")
    return float(value)


def _input_parts(values: Any) -> tuple[str, ...]:
    if values not in ([], ["input_weight"], ["input_weight", "input_bias"]):
        raise ValueError(f"input parts {values!r}")
    return tuple(values)


_READERS = {1: _read_1}


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value


def _strings(values: Any) -> dict[str, str]:
    return {_str(key): _str(value) for key, value in values.items()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise TypeError(f"{value!r} is no number")
    return value


def _narrowed(tensors: Any, relative_l2: Any, worst_relative_l2: Any, worst: Any) -> Narrowed:
    numbers = (int(_number(tensors)), _number(relative_l2), _number(worst_relative_l2))
    return Narrowed(*numbers, _str(worst))


def _settings(values: Any) -> dict[str, int | bool]:
    for name, value in values.items():
        if not isinstance(value, int) or not 0 <= value <= 65536:
            raise ValueError(f"{name} is {value!r}")
    return dict(values)


def _pair(value: Any) -> tuple[int, int]:
    n, k = value
    if type(n) is not int or type(k) is not int or not 0 < n < 2**31 or not 0 < k <= 65536:
        raise ValueError(f"{value!r} is no shape of a Linear")
    return n, k


def _index(value: Any, count: int) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"config {value!r} of {count}")
    return value


def _row(layer: Layer) -> dict[str, Any]:
    """A layer as the file has it, which calls its spec a scheme.

    Fields that came after the first files stand there only where they say something.
    """
    row = asdict(layer)
    row = {k: v for k, v in row.items() if v or k not in ("input_scale", "input_parts")}
    if not layer.spec.is_float8:
        del row["spec"]["number"]
    return {
        ("scheme" if k == "spec" else k): list(v) if isinstance(v, tuple) else v
        for k, v in row.items()
    }


def _spec(values: Any) -> QuantizationSpec:
    spec = QuantizationSpec(**values)
    if type(spec.symmetric) is not bool or type(spec.two_level) is not bool:
        raise TypeError("symmetric and two_level are true or false")
    if (spec.bits == 4) != (spec.granularity == "per_group") or spec.group_size % 8:
        raise ValueError(f"{spec} is no spec of a Linear")
    return spec


def _config(values: Any) -> QuantizationConfig:
    # Written before contradictions were errors, they had no effect.
    inert = () if values["quant_type"] == "mixed_precision" else ("sensitive_bits", "normal_bits")
    config = QuantizationConfig.from_dict({k: v for k, v in values.items() if k not in inert})
    _str(config.name)
    for pattern in config.sensitive_layers:
        _str(pattern)
    return config


# ---- what stays float ----------------------------------------------------------------------------


class Cost(NamedTuple):
    """What storing a float tensor changed."""

    was: str = ""
    """Its dtype before, where it was narrowed."""
    error: float = 0.0
    """sum (x - x')^2"""
    power: float = 0.0
    """sum x^2"""


def stored(x: torch.Tensor, float_dtype: str) -> tuple[torch.Tensor, Cost]:
    """The tensor as bfloat16, or as it is, and what that changed.

    float16 stays, for it would lose digits and save nothing; so does a tensor with values that
    bfloat16 rounds to infinity.
    """
    if float_dtype != "bfloat16" or x.dtype not in (torch.float32, torch.float64):
        return x, Cost()
    narrow = x.bfloat16()
    m = ops.moments(ops.values(x.float()), ops.values(narrow))
    if m["nonfinite_c"] > m["nonfinite_r"]:
        return x, Cost()
    if m["nonfinite_r"]:  # a mask of infinities, say: nothing to measure
        return narrow, Cost(_short(x.dtype))
    return narrow, Cost(_short(x.dtype), m["dd"], m["rr"])


def check_float_dtype(name: str) -> str:
    """The name itself; UserError for another one."""
    if name not in FLOAT_DTYPES:
        raise UserError(f"float_dtype is {name!r}; one of {', '.join(FLOAT_DTYPES)} is wanted")
    return name


def narrowing(costs: Mapping[str, Cost]) -> Narrowed | None:
    """What storing these tensors cost together; None where none was narrowed."""
    changed = {name: cost for name, cost in costs.items() if cost.was}
    if not changed:
        return None
    worst = max(changed, key=lambda name: _relative(changed[name].error, changed[name].power))
    return Narrowed(
        len(changed),
        _relative(sum(c.error for c in changed.values()), sum(c.power for c in changed.values())),
        _relative(changed[worst].error, changed[worst].power),
        worst,
    )


def _relative(error: float, power: float) -> float:
    return math.sqrt(error / power) if power else 0.0


def room(document: Document, tensors: Iterable[Planned]) -> int:
    """Bytes that the header of such a document needs at most, whatever is still to be found out.

    tensors: all that may come, more of them than will where a layer's scales are not chosen yet.
    """
    tensors = list(tensors)
    names = [t.name for t in tensors]
    parts = {f"{layer.name}.{key}" for layer in document.layers for key in PARTS}
    # Numbers and words as long as they get.
    number = -1.2345678901234567e-100
    most = replace(
        document,
        layers=[replace(layer, sqnr_db=number) for layer in document.layers],
        sha256=dict.fromkeys(names, "0" * 64),
        dtypes=dict.fromkeys((name for name in names if name not in parts), "bfloat16"),
        source=replace(document.source, sha256="0" * 64, nbytes=10**18),
        narrowed=Narrowed(10**9, number, number, max(names, key=len, default="")),
    )
    return header_bound(tensors, most.to_metadata()) + len(document.layers)  # true, or false
