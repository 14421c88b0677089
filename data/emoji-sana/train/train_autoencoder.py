"""Train the autoencoder: 512 px images to 32x16x16 latents of about unit variance, and back.

python data/emoji-sana/train/train_autoencoder.py --steps 3000

Resumes from ``--work``/autoencoder.pt if it exists.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import emoji
import numpy as np
import torch
import torch.nn.functional as F
from checkpoint import load_checkpoint, save_checkpoint
from diffusers import AutoencoderDC

CROP = 256  # px; the model is convolutional, and crops train it four times as fast
LATENT_NOISE = 0.1  # standard deviation; makes the decoder robust to errors of the denoiser


def build() -> AutoencoderDC:
    widths, layers, n = (8, 32, 64, 128, 128, 256), (0, 1, 1, 1, 2, 1), 6
    return AutoencoderDC(
        in_channels=3,
        latent_channels=32,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((),) * n,
        decoder_qkv_multiscales=((),) * n,
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=1.0,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in -1..1, channels last."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def random_picture(sprites: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    colours = list(emoji.BACKGROUNDS.values())
    colour = colours[rng.integers(len(colours))] if rng.random() < 0.8 else tuple(rng.integers(0, 256, 3))
    shift = tuple(rng.integers(-emoji.SHIFT, emoji.SHIFT + 1, 2))
    return emoji.compose(sprites[rng.integers(len(sprites))], colour, mirror=rng.random() < 0.5, shift=shift)


def batch(sprites: np.ndarray, rng: np.random.Generator, size: int) -> torch.Tensor:
    crops = []
    for _ in range(size):
        y, x = rng.integers(0, emoji.SIZE - CROP + 1, 2)
        crops.append(random_picture(sprites, rng)[y : y + CROP, x : x + CROP])
    return to_tensor(np.stack(crops))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean PSNR in dB over a batch in -1..1."""
    mse = (a.clamp(-1, 1) - b.clamp(-1, 1)).pow(2).flatten(1).mean(1)
    return (10 * torch.log10(4 / mse)).mean().item()


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--work", type=Path, default=Path("output/train"))
    args.add_argument("--steps", type=int, default=3000)
    args.add_argument("--batch", type=int, default=8)
    args.add_argument("--lr", type=float, default=1.2e-3)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--minutes", type=float, default=1e9, help="end the schedule early, by the clock")
    args = args.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    model = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    path = args.work / "autoencoder.pt"
    first = load_checkpoint(path, model=model, optimizer=optimizer, average=average)
    encode = torch.compile(model.encoder, dynamic=False)
    decode = torch.compile(model.decoder, dynamic=False)

    sprites, start, progress = emoji.sprites(), time.time(), 0.0
    for step in range(first, args.steps):
        progress = max(step / args.steps, (time.time() - start) / 60 / args.minutes)
        if progress >= 1:
            break
        rng = np.random.default_rng((args.seed, step))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * (1 - progress) ** 1.5)
        pictures = batch(sprites, rng, args.batch).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = encode(pictures).float()
            noise = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
            decoded = decode(latents + noise).float()
        mean, var = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
        centre = mean.pow(2).mean() + var.clamp_min(1e-6).log().pow(2).mean()
        error = decoded - pictures
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        loss = F.mse_loss(decoded, pictures) * 4 + error.abs().mean() + edges + 0.02 * centre
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        if step % 25 == 0:
            db = psnr(decoded.detach(), pictures)
            print(
                f"step {step} {time.time() - start:.0f} s loss {loss.item():.4f} psnr {db:.2f} dB "
                f"latent std {latents.std().item():.3f}",
                flush=True,
            )
        if step % 250 == 249:
            save_checkpoint(path, step + 1, model=model, optimizer=optimizer, average=average)

    final = average.module.eval()
    rng = np.random.default_rng(1)
    with torch.inference_mode():
        whole = to_tensor(np.stack([random_picture(sprites, rng) for _ in range(32)]))
        latents = torch.cat([final.encode(p[None]).latent for p in whole])
        decoded = torch.cat([final.decode(z[None]).sample for z in latents])
    print(f"whole pictures: {psnr(decoded, whole):.2f} dB, latent std {latents.std().item():.3f}")
    final.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    final.save_pretrained(args.work / "vae")


if __name__ == "__main__":
    main()
