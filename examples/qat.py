# SPDX-License-Identifier: Apache-2.0
"""Train a quantized model to give the float model's outputs: QAT by distillation, no ground truth.

    python examples/qat.py builtin:tiny --scheme INT4_Group_128_A8 --steps 300 --out qat.safetensors

Starts from `--method` (GPTQ), trains codes, scales, biases and norms on rendered scenes or a folder
of pictures, and writes a packed file that vggtquant.load reads. With --work a run that was killed
goes on from its last checkpoint. VGGT-1B: `python examples/qat.py facebook/VGGT-1B` on a GPU of
80 GB with --device cuda; expect three forwards and a backward of the float model a step.
"""

import argparse
from pathlib import Path

import torch

import vggtquant as vq
from vggtquant import models
from vggtquant.calibration import data, qat

OUTPUTS = ("depth", "world_points", "pose_enc")


def loss_of(want: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum over outputs of the squared relative error."""
    parts = [(got[key] - want[key]).square().sum() / want[key].square().sum() for key in OUTPUTS]
    return torch.stack(parts).sum()


class Taps:
    """What every transformer block returns, while a forward runs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.found: list[torch.Tensor] = []
        self.hooks = [
            module.register_forward_hook(lambda _, __, y: self.found.append(y))
            for name, module in model.named_modules()
            if name.rpartition(".")[2].isdigit() and hasattr(module, "attn")
        ]

    def take(self) -> list[torch.Tensor]:
        found, self.found = self.found, []
        return found

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def train(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    scenes: list[torch.Tensor],
    args: argparse.Namespace,
) -> None:
    """Trains the student's quantized layers and packs them again; args: main's."""
    qat.trainable(student)
    groups = qat.parameter_groups(student, args.codes, args.rest)
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for model in (teacher, student):
        model.to(args.device)
    taps = [Taps(model) for model in (teacher, student)]
    first, saved = 0, args.work and args.work / "qat.pt"
    if saved and saved.exists():
        state = torch.load(saved, weights_only=True)
        first = state["step"]
        student.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    for step in range(first, args.steps):
        picked = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(step))[:2]
        images = torch.cat([scenes[i] for i in picked.tolist()]).to(args.device)
        with torch.no_grad():
            want = teacher(images)
        got = student(images)
        loss = loss_of(want, got)
        near = [
            (g - w).square().sum() / w.square().sum()
            for w, g in zip(*map(Taps.take, taps), strict=True)
        ]
        optimizer.zero_grad()
        (loss + args.taps * torch.stack(near).sum()).backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step + 1 == args.steps:
            print(f"step {step}: loss {loss.item():.3e}", flush=True)
        if saved and (step % 50 == 49 or step + 1 == args.steps):
            args.work.mkdir(parents=True, exist_ok=True)
            held = {
                "step": step + 1,
                "model": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            torch.save(held, saved.with_suffix(".part"))
            saved.with_suffix(".part").replace(saved)
    for tap in taps:
        tap.remove()
    student.to("cpu")
    qat.pack(student)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--scheme", default="INT4_Group_128_A8")
    parser.add_argument("--method", default="gptq", help="what training starts from")
    parser.add_argument("--data", type=Path, help="a folder of pictures (default: scenes)")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--codes", type=float, default=1e-3, help="rate, in steps of the grid")
    parser.add_argument("--rest", type=float, default=1e-4, help="rate of scales, biases, norms")
    parser.add_argument("--taps", type=float, default=0.1, help="weight of the blocks' outputs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, help="a folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    teacher = models.load_model(args.model)
    student = models.load_model(args.model).model
    vq.calibrate(student, args.data, config=args.scheme, method=args.method)
    shown = data.load(args.data, args.pictures, 400, teacher.image_size)
    train(teacher.model, student, [s for batch in shown.batches for s in batch.split(1)], args)
    print(f"wrote {vq.save(student.eval(), args.out, source=teacher)}")


if __name__ == "__main__":
    main()
