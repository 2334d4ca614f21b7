# SPDX-License-Identifier: Apache-2.0
"""Makes the golden checkpoints of the present format version, never again those of an older one.

    python tests/data/make_checkpoints.py

A file that exists stays: a reader that cannot read it any more is wrong, whatever the file holds.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from checkpoints import Zoo, small  # noqa: E402

import vggtquant as vq  # noqa: E402
from vggtquant.checkpoint.document import FORMAT_VERSION  # noqa: E402

MIXED = vq.QuantizationConfig(
    "mixed", "mixed_precision", group_size=32, symmetric=False, sensitive_layers=("wide",)
)
FILES: dict[str, tuple[str | vq.QuantizationConfig, str]] = {
    "int4": ("INT4_Group_32_A8", "bfloat16"),
    "int8-tensor": ("INT8_Per_Tensor_Asymmetric", "bfloat16"),
    "int8-channel": ("INT8_Per_Channel_Asymmetric_A8", "bfloat16"),
    "mixed": (MIXED, "bfloat16"),
}


ALL = {"group_size": 8, "skip_first_last": False}
FUZZ = {
    "int4": vq.QuantizationConfig("small", "int4_group", bits=4, symmetric=False, **ALL),
    "int8": vq.QuantizationConfig(
        "small", "int8_per_tensor_asym", symmetric=False, per_channel=False, **ALL
    ),
    "mixed": vq.QuantizationConfig("small", "mixed_precision", sensitive_layers=("0",), **ALL),
}
"""What fuzz_checkpoint.py begins with."""


def digests(path: Path) -> dict[str, object]:
    """What a reader must find: the state dict and the values of the codes, as SHA-256."""
    model = vq.load(path, model=Zoo)
    state, values = hashlib.sha256(), hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        state.update(name.encode() + x.reshape(-1).view(torch.uint8).numpy().tobytes())
    for module in model.modules():
        if isinstance(module, vq.QuantizedLinear):
            values.update(module.weight.numpy().tobytes())
    return {"format": FORMAT_VERSION, "state": state.hexdigest(), "values": values.hexdigest()}


def main() -> None:
    index = HERE / "checkpoints.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    for name, (config, float_dtype) in FILES.items():
        path = HERE / f"checkpoint-v{FORMAT_VERSION}-{name}.safetensors"
        if not path.exists():
            model = Zoo().eval()
            vq.quantize_model(model, config)
            vq.save(model, path, float_dtype=float_dtype)
            known[path.name] = digests(path)
    for name, config in FUZZ.items():
        path = HERE / "fuzz" / f"seed-v{FORMAT_VERSION}-{name}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            model, _ = vq.quantize_model(small(), config)
            vq.save(model, path)
    index.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
