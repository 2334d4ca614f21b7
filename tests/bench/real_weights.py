# SPDX-License-Identifier: Apache-2.0
"""What calibration gains on a trained transformer that is not ours: RXNMapper's ALBERT.

    pip install --no-deps rxnmapper && pip install transformers
    python tests/bench/real_weights.py

The package rxnmapper (MIT licence; Schwaller et al., Science Advances 7, 2021) ships the weights:
12 layers that share one set of Linear layers, 256 channels. Inputs are chemical reactions, written
here from lists of acids, alcohols and amines; those that are measured are not those of the
calibration. A line a Linear: the relative error of its output on the float model's inputs, rounded
to nearest and by GPTQ. Then the relative error of the whole model's output.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
from pathlib import Path

import torch
from torch import nn

import vggtquant as vq
from vggtquant.calibration.methods import to_float_output
from vggtquant.calibration.statistics import Statistics

ACIDS = (
    *("CC(=O)O", "CCC(=O)O", "CCCC(=O)O", "CC(C)C(=O)O", "OC(=O)c1ccccc1", "OC(=O)c1ccncc1"),
    *("OC(=O)Cc1ccccc1", "OC(=O)c1ccc(F)cc1", "OC(=O)c1ccc(Cl)cc1", "OC(=O)C1CCCCC1"),
    *("OC(=O)c1ccoc1", "OC(=O)c1cccs1", "OC(=O)C=Cc1ccccc1", "COc1ccc(C(=O)O)cc1"),
)
PARTNERS = (
    *("CO", "CCO", "CCCO", "CC(C)O", "OCc1ccccc1", "Oc1ccccc1", "OC1CCCCC1", "OCCOC", "CN", "CCN"),
    *(
        "NCc1ccccc1",
        "Nc1ccccc1",
        "C1CCNCC1",
        "C1COCCN1",
        "CC(C)(C)N",
        "NCCc1ccccc1",
        "CNC",
        "OCC=C",
    ),
)


def reactions(count: int, seed: int) -> list[str]:
    """Different reactants each; SMILES of the acid, its partner and what leaves, in some order."""
    pairs = [(a, b) for a in ACIDS for b in PARTNERS]
    random.Random(seed).shuffle(pairs)
    return [f"{a}.{b}.CN(C)C=O>>{a}{b}.O" for a, b in pairs[:count]]


def tokens(text: str, vocabulary: dict[str, int]) -> torch.Tensor:
    """(1, n) numbers of the longest tokens from the left, between [CLS] and [SEP]."""
    found, at = [vocabulary["[CLS]"]], 0
    while at < len(text):
        size = next(n for n in (2, 1) if text[at : at + n] in vocabulary)
        found.append(vocabulary[text[at : at + size]])
        at += size
    return torch.tensor([[*found, vocabulary["[SEP]"]]])


def load() -> tuple[nn.Module, dict[str, int]]:
    """The trained model and its vocabulary, from the installed package, which is not imported."""
    from transformers import AlbertConfig, AlbertModel

    spec = importlib.util.find_spec("rxnmapper")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("rxnmapper is not installed: pip install --no-deps rxnmapper")
    models = Path(spec.submodule_search_locations[0], "models", "transformers")
    (folder,) = (path.parent for path in models.glob("*/config.json"))
    model = AlbertModel(AlbertConfig.from_json_file(folder / "config.json")).eval()
    state = torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")
    own = {k.removeprefix("albert."): v for k, v in state.items() if k.startswith("albert.")}
    lost = model.load_state_dict(own, strict=False)
    if any("encoder" in name for name in lost.missing_keys):
        raise SystemExit(f"the weights lack {lost.missing_keys}")
    words = (folder / "vocab.txt").read_text().splitlines()
    return model, {word: i for i, word in enumerate(words)}


def inputs_of(model: nn.Module, samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows that each Linear of the encoder reads, all samples and layers."""
    found: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, x, name=name: found.setdefault(name, []).append(x[0].flatten(0, -2))
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "albert_layers" in name
    ]
    with torch.inference_mode():
        for sample in samples:
            model(sample)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


def miss(wanted: torch.Tensor, got: torch.Tensor) -> float:
    return 100 * float((wanted - got).norm() / wanted.norm())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=64, help="reactions, of each kind")
    parser.add_argument("--schemes", nargs="+", default=["INT4_Group_128", "INT4_Group_32"])
    args = parser.parse_args()
    model, vocabulary = load()
    samples = [tokens(text, vocabulary) for text in reactions(2 * args.samples, 0)]
    shown, other = samples[: args.samples], samples[args.samples :]
    seen, held_out = inputs_of(model, shown), inputs_of(model, other)
    with torch.inference_mode():
        wanted = torch.cat([model(x).last_hidden_state[0] for x in other])
    print("| scheme | layer | rtn, % | gptq, % | gptq / rtn |")
    print("|---|---|---|---|---|")
    for scheme in args.schemes:
        spec = vq.get_config(scheme).layer_spec()
        for name, x in seen.items():
            layer = model.get_submodule(name)
            s = Statistics(x.shape[1])
            s.add(x, x)
            y, weight = held_out[name], layer.weight.detach()
            coded = (vq.quantize(weight, spec), to_float_output(weight, s, spec))
            rtn, gptq = (miss(y @ weight.T, y @ q.dequantize().float().T) for q in coded)
            print(f"| {scheme} | {name} | {rtn:.2f} | {gptq:.2f} | {gptq / rtn:.2f} |", flush=True)
        error = {}
        for method in ("rtn", "gptq"):
            _, report = vq.calibrate(
                model, shown, config=scheme, method=method, samples=args.samples,
                include="*albert_layers*", keep_originals=True,
            )  # fmt: skip
            with torch.inference_mode():
                got = torch.cat([model(x).last_hidden_state[0] for x in other])
            error[method] = miss(wanted, got)
            vq.restore_model(model, report)
        ratio = error["gptq"] / error["rtn"]
        print(f"| {scheme} | output | {error['rtn']:.2f} | {error['gptq']:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
