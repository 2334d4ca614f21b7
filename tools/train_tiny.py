# SPDX-License-Identifier: Apache-2.0
"""Train the embedded model `builtin:tiny` on rendered rooms, from nothing, on a CPU.

    python tools/train_tiny.py --out runs/tiny --minutes 60              # train, or train on
    python tools/train_tiny.py --out runs/tiny --minutes 0 --decay 1200  # anneal and export
    torchrun --nproc-per-node 2 tools/train_tiny.py --out runs/tiny      # a worker on each core
    python tools/train_tiny.py --evaluate                                # scores of the shipped
    python tools/train_tiny.py --evaluate --weights runs/tiny/weights.safetensors

The learning rate warms up, stays, and falls only in the annealing that --decay asks for (WSD). The
annealing starts from a copy: `last.pt`, from before it, stays, so that a later day can train on
and anneal again. A checkpoint is written every few minutes to a new file that then replaces the
old one: kill the process at any time, the same command goes on. Data is a function of the step.
Workers of one thread, each with its part of the batch, use the cores better than one process with
as many threads: many operations are too small to be shared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vggtquant import tiny
from vggtquant.data import scenes
from vggtquant.scoring import task_scores
from vggtquant.tiny.layers import rope_tables, rotate
from vggtquant.tiny.model import PATCH, Aggregator, TinyVGGT

SIZE = 112
FRAMES = (
    4,
    4,
    4,
    4,
    4,
    4,
    2,
    3,
    6,
    8,
)  # drawn for each batch, so that any number from 1 to 8 works
IMAGES = 32  # in a batch: 8 scenes of 4 frames
RATE, WARMUP, BETAS, WEIGHT_DECAY, CLIP = 1e-3, 300, (0.9, 0.95), 0.02, 1.0
HEAD_RATE = 0.4  # of the rate for the camera head, whose gradients are the noisiest
EMA = 0.998
VALIDATION = scenes.HELD_OUT + 900_000_000  # for the curve; not the scenes of the final table
WORKER, WORKERS = (int(os.environ.get(name, i)) for i, name in enumerate(("RANK", "WORLD_SIZE")))
HAS_BF16 = torch.cpu._is_avx512_bf16_supported()  # the products of the blocks, then, in bfloat16
MATCH_AFTER, PLACE_AFTER = 1, 2  # the pairs of blocks (from 0) that the helper losses read
LOOKING_HEADS = 2  # attention heads that are taught to look at the match in frame 0
# Weights of the losses. In the annealing, pose counts more and what only helped to learn it less.
WEIGHTS = {"depth": 1.0, "points": 1.0, "pose": 3.0}
WEIGHTS |= {"match": 1.0, "place": 1.0, "look": 0.5, "camera": 1.0}
ANNEALING_WEIGHTS = WEIGHTS | {"pose": 5.0, "match": 0.5, "look": 0.25, "camera": 0.5}

Batch = dict[str, Any]  # tensors, and the scenes themselves


# ---- data


def quaternion(rotation: Tensor) -> Tensor:
    """Quaternions XYZW with w >= 0 of rotations (..., 3, 3) of less than 120 degrees."""
    m = rotation
    w = 0.5 * (1 + m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]).clamp(min=1e-8).sqrt()
    x = m[..., 2, 1] - m[..., 1, 2]
    y = m[..., 0, 2] - m[..., 2, 0]
    z = m[..., 1, 0] - m[..., 0, 1]
    return torch.cat([torch.stack([x, y, z], -1) / (4 * w[..., None]), w[..., None]], -1)


def collate(items: list[scenes.Scene]) -> Batch:
    """Tensors of a batch of scenes, with pose encodings and patch matches."""

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(item, name) for item in items]))

    extrinsics, intrinsics = stack("extrinsics"), stack("intrinsics")
    images = stack("images").permute(0, 1, 4, 2, 3).float() / 255
    height, width = images.shape[-2:]
    fov = [
        2 * torch.atan(0.5 * size / intrinsics[..., axis, axis])
        for axis, size in ((1, height), (0, width))
    ]
    pose = torch.cat(
        [extrinsics[..., 3], quaternion(extrinsics[..., :3]), torch.stack(fov, -1)], dim=-1
    )
    batch: Batch = {
        "scenes": items,
        "images": images,
        "depth": stack("depth"),
        "points": stack("world_points"),
        "extrinsics": extrinsics,
        "intrinsics": intrinsics,
        "pose": pose,
    }
    batch["match"], batch["place"] = matches(batch)
    return batch


def matches(batch: Batch) -> tuple[Tensor, Tensor]:
    """For each patch centre of frame i the patch of frame j that shows the same point, else -1.

    Returns (B, S, S, patches): [b, i, j, p]; and the centre's exact place in frame 0, from its
    middle in shares of width and height, (B, S, patches, 2): valid where [b, i, 0, p] is not -1.
    """
    depth, points = batch["depth"], batch["points"]
    height, width = depth.shape[-2:]
    centre = points[:, :, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].flatten(2, 3)  # (B, S, P, 3)
    rotation, shift = batch["extrinsics"][..., :3], batch["extrinsics"][..., 3]
    seen = torch.einsum("bjxy,bipy->bijpx", rotation, centre) + shift[:, None, :, None]
    z = seen[..., 2]
    focal = batch["intrinsics"][:, None, :, None, 0, 0]
    exact = focal[..., None] * seen[..., :2] / z.clamp(min=0.01)[..., None]
    u = (exact[..., 0] + width / 2).round().long()
    v = (exact[..., 1] + height / 2).round().long()
    inside = (z > 0.05) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    index = torch.where(inside, v * width + u, 0)
    found = depth.flatten(2)[:, None].expand(-1, index.shape[1], -1, -1).gather(3, index)
    visible = inside & ((found - z).abs() < 0.05 * z)
    match = torch.where(visible, v // PATCH * (width // PATCH) + u // PATCH, -1)
    return match, exact[:, :, 0] / torch.tensor([width, height])


def training_batch(step: int) -> Batch:
    """This worker's scenes of a step's batch; their seeds lie below the held-out ones."""
    frames = FRAMES[int(random.Random(step).random() * len(FRAMES))]
    seeds = range(step * IMAGES, step * IMAGES + IMAGES // frames)[WORKER::WORKERS]
    return collate([scenes.make_scene(seed, frames, SIZE) for seed in seeds])


# ---- losses


class Helper(nn.Module):
    """Training only: losses that teach what pose needs, which is matches and where they lie.

    Without the first, pose stays at the trivial level; the others make it leave that level sooner.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, 64)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.place_norm = nn.LayerNorm(dim)
        self.place = nn.Linear(dim, 2)
        self.gist_norm = nn.LayerNorm(dim)
        self.gist = nn.Linear(dim, 2 * 16)
        self.pose_norm = nn.LayerNorm(2 * dim)
        self.pose = nn.Linear(2 * dim, 7)

    def match_loss(self, tokens: Tensor, match: Tensor) -> tuple[Tensor, Tensor]:
        """InfoNCE loss and share of right matches; tokens (B, S, P, dim), match as matches()."""
        d = F.normalize(self.proj(self.norm(tokens)), dim=-1)
        logits = torch.einsum("bipc,bjqc->bijpq", d, d) * self.log_scale.exp().clamp(max=100)
        frames = torch.arange(match.shape[1])
        wanted = (match >= 0) & (frames[:, None] != frames)[None, :, :, None]
        logits, target = logits[wanted], match[wanted]
        if not len(target):
            return logits.sum(), torch.tensor(0.0)
        return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean()

    def place_loss(self, tokens: Tensor, match: Tensor, place: Tensor) -> Tensor:
        """L1 error of each later frame's patches' places in frame 0, where they are seen there."""
        error = (self.place(self.place_norm(tokens)) - place).abs().sum(-1)[:, 1:]
        wanted = match[:, 1:, 0] >= 0
        return (error * wanted).sum() / wanted.sum().clamp(min=1)

    def camera_loss(self, tokens: Tensor, batch: Batch) -> Tensor:
        """What the last camera tokens (B, S, 2 dim) should hold for a Linear to read.

        From the frame half: how patches moved against frame 0, mean of each of 4x4 parts of the
        picture; from both: translation and quaternion.  In shares of their spread.
        """
        tokens = tokens[:, 1:]
        side = math.isqrt(batch["place"].shape[2])
        centre = (torch.arange(side) + 0.5) / side - 0.5
        home = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1).flatten(0, 1)
        seen = (batch["match"][:, 1:, 0] >= 0).float()[..., None]  # (B, S-1, P, 1)
        moved = torch.cat([(batch["place"][:, 1:] - home) * seen, seen], -1)
        moved = moved.flatten(0, 1).mT.unflatten(2, (side, side))
        parts = F.adaptive_avg_pool2d(moved, 4).flatten(2)  # (frames, 3, 16)
        guess = self.gist(self.gist_norm(tokens[..., : tokens.shape[-1] // 2]))
        off = guess.flatten(0, 1).unflatten(1, (2, 16)) * parts[:, 2:] - parts[:, :2]
        pose = self.pose(self.pose_norm(tokens)) - batch["pose"][:, 1:, :7]
        return 5 * off.abs().mean() + 5 * pose.abs().mean()

    def look_loss(self, aggregator: Aggregator, tokens: Tensor, match: Tensor) -> Tensor:
        """Cross entropy of some heads' attention against the true match in frame 0.

        tokens (B, S, 5 + P, dim) are what the pair's global block takes, match as matches().
        """
        batch, frames, n, dim = tokens.shape
        start, side = aggregator.patch_start_idx, math.isqrt(n - aggregator.patch_start_idx)
        block = aggregator.global_blocks[PLACE_AFTER]
        width = aggregator.head_dim
        x = block.norm1(tokens).flatten(1, 2)
        rows = LOOKING_HEADS * width
        rope = rope_tables(aggregator.positions(side, side).repeat(frames, 1), width)
        q, k = (
            F.linear(x, block.attn.qkv.weight[at : at + rows], block.attn.qkv.bias[at : at + rows])
            .unflatten(-1, (LOOKING_HEADS, width))
            .transpose(1, 2)
            for at in (0, dim)
        )
        q, k = rotate(block.attn.q_norm(q), rope), rotate(block.attn.k_norm(k), rope)
        q = q.unflatten(2, (frames, n))[:, :, 1:, start:].flatten(2, 3)
        logits = q @ k.mT / math.sqrt(width)  # (B, heads, later patches, all tokens)
        target = match[:, 1:, 0].flatten(1)[:, None].expand(-1, LOOKING_HEADS, -1)
        wanted = target >= 0
        if not wanted.any():
            return logits.sum() * 0
        return F.cross_entropy(logits[wanted], target[wanted] + start)


def confident(error: Tensor, confidence: Tensor) -> Tensor:
    """VGGT's confidence-weighted loss: unsure places cost less, but being unsure costs too."""
    return (confidence * error - 0.2 * confidence.log()).mean()


def losses(out: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
    """Depth in log space with a gradient term, points, and the pose of every iteration.

    The plain errors beside the weighted ones keep small things in sight: where the model is unsure,
    which is where it has missed something, the confidence gives a wall up to ten times the weight.
    """
    error = out["depth"][..., 0].log() - batch["depth"].log()
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    points = (out["world_points"] - batch["points"]).norm(dim=-1)
    pose = error.new_zeros(())
    steps = len(out["pose_enc_list"])
    for i, guess in enumerate(out["pose_enc_list"]):
        off = (guess - batch["pose"]).abs()
        # a quaternion's numbers differ by less than a translation's for as bad a pose
        parts = off[..., :3].mean() + 3 * off[..., 3:7].mean() + 0.5 * off[..., 7:].mean()
        pose = pose + 0.6 ** (steps - 1 - i) * parts / steps
    return {
        "depth": confident(error.abs(), out["depth_conf"])
        + 4 * error.abs().mean()
        + 0.5 * gradient,
        "points": confident(points, out["world_points_conf"]) + points.mean(),
        "pose": pose,
    }


# ---- scores against the truth, and two predictors that look at nothing

SCORES = {
    "absrel": "depth_abs_rel_median",
    "delta": "depth_delta_1.25_median",
    "rotation": "rotation_median_deg",
    "translation": "translation_median_deg",
    "direction": "direction_median_deg",
    "auc30": "auc_30",
}


def scores(depth: Tensor, pose: Tensor, batch: Batch) -> dict[str, float]:
    """Means over scenes of depth scores after median alignment, medians over all pairs of poses.

    depth (B, S, H, W), pose encodings (B, S, 9); see vggtquant.scoring.task_scores for definitions.
    """
    errors = []
    for i in range(len(depth)):
        predicted = {"depth": depth[i, ..., None].numpy(), "pose_enc": pose[i].numpy()}
        errors.append(task_scores.scene_errors(predicted, batch["scenes"][i]))
    found = task_scores.pooled_scores(errors)
    return {short: found[name] for short, name in SCORES.items()}


def held_out(first: int, count: int) -> Batch:
    return collate([scenes.make_scene(seed, 4, SIZE) for seed in range(first, first + count)])


@torch.no_grad()
def predict(model: TinyVGGT, batch: Batch) -> dict[str, Tensor]:
    parts = [model.eval()(images) for images in batch["images"].split(8)]
    names = ("depth", "depth_conf", "pose_enc", "world_points")
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def trivial_scores(batch: Batch) -> dict[str, dict[str, float]]:
    """Constant depth with all cameras at the origin, and the mean of 512 training scenes."""
    still = torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 1.1, 1.1]).expand_as(batch["pose"])
    train = collate([scenes.make_scene(seed, 4, SIZE) for seed in range(512)])
    mean_depth = train["depth"].mean(0).expand_as(batch["depth"])
    mean_pose = train["pose"].mean(0).expand_as(batch["pose"])
    return {
        "constant depth, identity pose": scores(torch.ones_like(batch["depth"]), still, batch),
        "training mean": scores(mean_depth, mean_pose, batch),
    }


# ---- training


@contextmanager
def float_attention() -> Iterator[None]:
    """Attention in float32 under autocast: on CPUs the backward pass in bfloat16 is slower."""
    attention = F.scaled_dot_product_attention

    def in_float(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return attention(q.float(), k.float(), v.float(), **options)

    F.scaled_dot_product_attention = in_float
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attention


def in_bfloat16(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The dense heads' convolutions in bfloat16 while they train: in half the time."""

    def autocast(*inputs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BF16):
            return forward(*inputs).float()

    return autocast


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Over the workers, each of which has its part of the batch."""
    if WORKERS > 1:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / WORKERS).split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


def of_first_worker(value: float) -> float:
    """Worker 0's value, for all of them: they have to stop at the same step."""
    if WORKERS == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


class Trainer:
    """Model, optimiser, averaged weights, history; everything that a checkpoint holds."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = TinyVGGT()
        for head in (self.model.depth_head, self.model.point_head):
            head.forward = in_bfloat16(head.forward)  # type: ignore[method-assign]
        self.helper = Helper(self.model.aggregator.camera_token.shape[-1])
        both = nn.ModuleList([self.model, self.helper])
        self.parameters = list(both.parameters())
        head = {id(p) for p in self.model.camera_head.parameters()}
        self.others = [p for p in self.parameters if id(p) not in head]
        groups = [
            {
                "params": [p for p in some if (p.ndim >= 2) == matrix],
                "weight_decay": WEIGHT_DECAY if matrix else 0.0,
                "share": share,
            }
            for some, share in (
                (self.others, 1.0),
                (list(self.model.camera_head.parameters()), HEAD_RATE),
            )
            for matrix in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(groups, RATE, BETAS, fused=True)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.step = self.first = 0  # steps made, and those before the optimiser's state began
        self.seconds = 0.0
        self.decay_from = -1  # the step at which annealing began
        self.history: list[dict[str, float]] = []

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "helper": self.helper.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "first": self.first,
            "seconds": self.seconds,
            "decay_from": self.decay_from,
            "history": self.history,
        }

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name in ("model", "helper", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("average", "step", "first", "seconds", "decay_from", "history"):
            setattr(self, name, state[name])

    def start_from(self, weights: Path, step: int = 0) -> None:
        """Take exported weights where no checkpoint is left: the helpers learn anew, quickly.

        step is the first to make, so that scenes of the stretch before are not seen again.
        """
        self.step = self.first = step
        state = tiny.build(weights).state_dict()
        self.model.load_state_dict(state)
        self.average = {name: value.clone() for name, value in state.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint that is whole or not there: a new file, flushed, then renamed."""
        new = path.with_suffix(".new")
        with open(new, "wb") as file:
            torch.save(self.state(), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def rate(self, decay: int) -> float:
        if self.decay_from >= 0:
            left = 1 - (self.step - self.decay_from) / max(decay, 1)
            return RATE * max(left, 0.01)
        return RATE * min(1.0, (self.step - self.first + 1) / WARMUP)

    def update(self, batch: Batch, rate: float) -> dict[str, float]:
        """One optimiser step; returns the losses and the share of right patch matches."""
        model = self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BF16), float_attention():
            tokens, start = model.aggregator(batch["images"])
        tokens = [part.float() for part in tokens]
        out = model.heads(tokens, batch["images"], start)
        parts = losses(out, batch)

        def patches(pair: int) -> Tensor:  # after the pair's global block
            return tokens[pair][:, :, start:, tokens[pair].shape[-1] // 2 :]

        matching, share = self.helper.match_loss(patches(MATCH_AFTER), batch["match"])
        parts["match"] = matching
        parts["place"] = self.helper.place_loss(
            patches(PLACE_AFTER), batch["match"], batch["place"]
        )
        alone = tokens[PLACE_AFTER][..., : tokens[PLACE_AFTER].shape[-1] // 2]
        if alone.shape[1] > 1:
            parts["look"] = self.helper.look_loss(model.aggregator, alone, batch["match"])
            parts["camera"] = self.helper.camera_loss(tokens[-1][:, :, 0], batch)
        weights = WEIGHTS if self.decay_from < 0 else ANNEALING_WEIGHTS
        parts = {name: weights[name] * part for name, part in parts.items()}
        total = torch.stack(list(parts.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        average_gradients(self.parameters)
        # the camera head's gradients are far larger: clipped with the others they would rule
        norm = nn.utils.clip_grad_norm_(self.model.camera_head.parameters(), CLIP)
        norm = norm + nn.utils.clip_grad_norm_(self.others, CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        if math.isfinite(norm.item()):
            self.optimizer.step()
        longest = EMA if self.decay_from < 0 else 0.98  # annealed weights need little averaging
        made = self.step - self.first + 1
        keep = min(longest, made / (made + 9))
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, list(model.state_dict().values()), 1 - keep)
        self.step += 1
        shown = {name: value.item() for name, value in parts.items()}
        return shown | {"matched": share.item(), "norm": norm.item()}

    def averaged(self) -> TinyVGGT:
        model = TinyVGGT()
        model.load_state_dict(self.average)
        return model.eval()


def draw_curve(history: list[dict[str, float]], path: Path) -> None:
    """Validation scores over minutes of training, one panel a score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {
        "absrel": "depth AbsRel",
        "delta": "depth, share within 1.25",
        "rotation": "rotation error, median (degrees)",
        "translation": "translation direction error, median (degrees)",
        "auc30": "pose AUC@30",
        "matched": "patches matched in training",
    }
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for axis, (name, title) in zip(axes.flat, panels.items(), strict=True):
        axis.plot([h["minutes"] for h in history], [h[name] for h in history], ".-")
        axis.set(title=title, xlabel="minutes")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def export(state: dict[str, Tensor], path: Path) -> None:
    """Write the weights in float16: half the file, and the outputs move by less than 0.1 %."""
    half = {name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}
    new = path.with_suffix(".new")
    save_file(half, new, {"licence": "Apache-2.0", "model": "vggtquant builtin:tiny"})
    new.chmod(0o644)
    new.replace(path)


def validate(trainer: Trainer, batch: Batch, recent: dict[str, float], out: Path) -> None:
    guess = predict(trainer.averaged(), batch)
    row = scores(guess["depth"][..., 0], guess["pose_enc"], batch)
    row |= {"step": trainer.step, "minutes": trainer.seconds / 60, "matched": recent["matched"]}
    trainer.history.append(row)
    text = " ".join(f"{name} {value:.4g}" for name, value in row.items())
    print(f"\nvalidation: {text}", flush=True)
    draw_curve(trainer.history, out / "curve.png")
    (out / "history.json").write_text(json.dumps(trainer.history, indent=1))
    export(trainer.average, out / "weights.safetensors")


def bar(done: float) -> str:
    return "#" * int(20 * min(done, 1.0)) + "." * (20 - int(20 * min(done, 1.0)))


def train(args: argparse.Namespace) -> None:
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    last, annealed = out / "last.pt", out / "annealed.pt"
    trainer = Trainer()
    # an annealing that was killed goes on; a finished one starts again from the plateau
    if args.decay and annealed.exists():
        trainer.load(annealed)
    if trainer.decay_from < 0 or trainer.step >= trainer.decay_from + args.decay:
        trainer = Trainer()
        if last.exists():
            trainer.load(last)
        elif args.start:
            trainer.start_from(args.start, args.first)
    if trainer.decay_from < 0:
        plateau(trainer, args, last)
        trainer.decay_from = trainer.step if args.decay else -1
    if args.decay:
        steps(trainer, trainer.decay_from + args.decay, math.inf, args, annealed)


def plateau(trainer: Trainer, args: argparse.Namespace, path: Path) -> None:
    limit = args.minutes * 60 if args.minutes is not None else math.inf
    if limit > 0:
        steps(trainer, args.steps if args.steps is not None else 10**9, limit, args, path)


def steps(trainer: Trainer, last: int, limit: float, args: argparse.Namespace, path: Path) -> None:
    """Train to step last, or for limit seconds; save to path every few minutes and at the end."""
    batch = held_out(VALIDATION, 32)
    began, saved, first = time.time(), time.time(), trainer.step
    before = trainer.seconds
    recent: dict[str, float] = {}
    while trainer.step < last:
        now = trainer.update(training_batch(trainer.step), trainer.rate(args.decay))
        recent = {k: 0.95 * recent.get(k, v) + 0.05 * v for k, v in now.items()}
        spent = of_first_worker(time.time() - began)
        trainer.seconds = before + spent
        if trainer.step % 20 == 0 and WORKER == 0:
            done = max(spent / limit, (trainer.step - first) / max(last - first, 1))
            text = " ".join(f"{name} {value:.3f}" for name, value in recent.items())
            end = "" if sys.stdout.isatty() else "\n"
            speed = (trainer.step - first) / spent
            line = f"[{bar(done)}] step {trainer.step} {speed:.2f}/s {text}"
            print(f"\r{line}" if not end else line, end=end, flush=True)
        if time.time() - saved > 120 and WORKER == 0:
            trainer.save(path)
            saved = time.time()
        if trainer.step % args.validate == 0 and WORKER == 0:
            validate(trainer, batch, recent, args.out)
        if spent > limit:
            break
    if WORKER > 0:
        return
    trainer.save(path)
    if recent:
        validate(trainer, batch, recent, args.out)


TARGETS = {"absrel": 0.09, "delta": 0.91, "rotation": 3.0, "translation": 25.0, "auc30": 0.35}


def evaluate(args: argparse.Namespace) -> None:
    """Print the scores of weights on 64 held-out scenes beside trivial predictors and targets."""
    batch = held_out(scenes.HELD_OUT, 64)
    guess = predict(tiny.build(args.weights or tiny.WEIGHTS), batch)
    rows: dict[str, Mapping[str, float]] = dict(trivial_scores(batch))
    rows["builtin:tiny"] = scores(guess["depth"][..., 0], guess["pose_enc"], batch)
    rows["target"] = TARGETS
    print("| predictor | " + " | ".join(SCORES) + " |")
    print("|---|" + "---|" * len(SCORES))
    for name, row in rows.items():
        cells = (f"{row[n]:.3f}" if n in row else "" for n in SCORES)
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the run's files")
    parser.add_argument("--minutes", type=float, help="stop the plateau after these minutes")
    parser.add_argument("--steps", type=int, help="stop the plateau at this step in all")
    parser.add_argument("--decay", type=int, default=0, help="then anneal for so many steps")
    parser.add_argument("--start", type=Path, help="without a checkpoint: begin from these weights")
    parser.add_argument("--first", type=int, default=0, help="with --start: the steps already made")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--validate", type=int, default=250, help="steps between validations")
    parser.add_argument("--evaluate", action="store_true", help="only score exported weights")
    parser.add_argument("--weights", type=Path, help="with --evaluate: these (the shipped)")
    args = parser.parse_args()
    if not args.out and not args.evaluate:
        parser.error("--out DIR is wanted: where checkpoints and the curve go")
    torch.set_num_threads(args.threads)
    if WORKERS > 1:
        dist.init_process_group("gloo")
    evaluate(args) if args.evaluate else train(args)


if __name__ == "__main__":
    main()
