"""Train the classifier: a small ResNet for the subject and background of an image.

python data/emoji-classifier/train/train_classifier.py --steps 1000

Trains on the emoji themselves and on no generated image, so that it judges the pipeline independently. Resumes from
``--work``/classifier.pt.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification

DATA = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(DATA / "emoji-sana" / "train"))
import emoji  # noqa: E402
from checkpoint import load_checkpoint, save_checkpoint  # noqa: E402

SIDE = 96  # px, the classifier's input


def build() -> ResNetForImageClassification:
    names = [s.name for s in emoji.subjects()] + list(emoji.BACKGROUNDS)
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def augmented(sprites: torch.Tensor, n: int, dice: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``n`` augmented originals, float32 (n, 3, SIDE, SIDE) in -1..1, with their subjects and backgrounds.

    Shifted by up to 8 % of the side, scaled by 0.8 to 1.15, mirrored half the time, half of them blurred by up to a pixel,
    with noise of up to 8 % and the background's colour off by up to 6 %.
    """
    colours = torch.tensor(list(emoji.BACKGROUNDS.values())).float() / 255

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=dice)

    subject = torch.randint(len(sprites), (n,), generator=dice)
    background = torch.randint(len(colours), (n,), generator=dice)
    scale = uniform(0.8, 1.15, n) * emoji.SPRITE / emoji.SIZE
    sign = torch.where(torch.rand(n, generator=dice) < 0.5, -1.0, 1.0)
    shift = uniform(-0.16, 0.16, n, 2)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = sign / scale, 1 / scale
    theta[:, :, 2] = shift / scale[:, None]
    grid = F.affine_grid(theta, (n, 4, SIDE, SIDE), align_corners=False)
    moved = F.grid_sample(sprites[subject], grid, align_corners=False)
    colour = (colours[background] + uniform(-0.06, 0.06, n, 3)).clamp(0, 1)
    image = moved[:, :3] + colour[:, :, None, None] * (1 - moved[:, 3:])
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    weight = (uniform(-1, 1, n).clamp_min(0))[:, None, None, None]
    image = image + weight * (blurred - image)
    noise = uniform(0, 0.08, n)[:, None, None, None] * torch.randn(image.shape, generator=dice)
    return (image + noise).clamp(0, 1) * 2 - 1, subject, background


def score(model: torch.nn.Module, sprites: torch.Tensor, seed: int, n: int = 4096) -> tuple[float, float]:
    """Return the shares of correct subjects and backgrounds on ``n`` augmentations that training did not use."""
    dice, right = torch.Generator().manual_seed(seed), torch.zeros(2)
    model.eval()
    with torch.inference_mode():
        for _ in range(n // 256):
            x, subject, background = augmented(sprites, 256, dice)
            logits = model(x).logits
            right[0] += (logits[:, : len(sprites)].argmax(1) == subject).sum()
            right[1] += (logits[:, len(sprites) :].argmax(1) == background).sum()
    model.train()
    return tuple((right / (n // 256 * 256)).tolist())


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--work", type=Path, default=Path("output/train"))
    args.add_argument("--out", type=Path, default=DATA / "emoji-classifier")
    args.add_argument("--steps", type=int, default=1000)
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--lr", type=float, default=3e-3)
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    sprites = torch.from_numpy(emoji.sprites(2 * SIDE)).permute(0, 3, 1, 2).float() / 255
    sprites = F.avg_pool2d(sprites, 2)  # SIDE px, downscaled by averaging like a generated image
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    path = args.work / "classifier.pt"
    first, start = load_checkpoint(path, model=model, optimizer=optimizer), time.time()
    for step in range(first, args.steps):
        dice = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 100) * (1 - step / args.steps)
        x, subject, background = augmented(sprites, args.batch, dice)
        logits = model(x).logits
        loss = F.cross_entropy(logits[:, : len(sprites)], subject, label_smoothing=0.05)
        loss = loss + F.cross_entropy(logits[:, len(sprites) :], background, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1} {time.time() - start:.0f} s loss {loss.item():.4f}", flush=True)
        if step % 250 == 249:
            save_checkpoint(path, step + 1, model=model, optimizer=optimizer)
    subjects, backgrounds = score(model, sprites, seed=12345)
    print(f"held-out augmentations: subject {subjects:.4f}, background {backgrounds:.4f}")
    model.eval().half().save_pretrained(args.out)


if __name__ == "__main__":
    main()
