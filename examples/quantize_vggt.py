# SPDX-License-Identifier: Apache-2.0
"""Quantize your own VGGT: load it, run it on your pictures, quantize, compare, save, load again.

    python examples/quantize_vggt.py facebook/VGGT-1B photos vggt-int8.safetensors
    python examples/quantize_vggt.py builtin:tiny photos tiny-int8.safetensors  # needs no download

The first word is what `vggtquant evaluate --model` takes: a name on the Hugging Face hub, a
checkpoint file, or `module:function` for a model that your own code builds.
"""

import sys

import torch

import vggtquant as vq
from vggtquant.data.images import load_images
from vggtquant.models import load_model


def main(name: str, folder: str, out: str, scheme: str = "INT8_Per_Channel_Symmetric_A8") -> None:
    """name: of the model; folder: of pictures; out: the packed file to write."""
    loaded = load_model(name)
    images, _ = load_images(folder, max_images=4, size=loaded.image_size)
    with torch.inference_mode():
        before = loaded.model(images)
        model, report = vq.quantize_model(loaded.model, scheme)
        after = model(images)
    print(f"{report.bytes_before / 1e6:.2f} MB -> {report.bytes_after / 1e6:.2f} MB in {scheme}")
    for output in ("pose_enc", "depth", "world_points"):
        found = vq.compare(before[output], after[output])
        error, psnr = 100 * found["relative_l2"], found["psnr"]
        print(f"{output:13} relative L2 {error:.3f} %, PSNR {psnr:.1f} dB")
    vq.save(model, out)
    with torch.inference_mode():
        same = torch.equal(vq.load(out)(images)["depth"], after["depth"])
    print(f"wrote {out}; the loaded model gives the same depth: {same}")


if __name__ == "__main__":
    main(*sys.argv[1:])
