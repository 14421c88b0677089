"""Train the transformer on cached latents and cached prompt embeddings, then write the pipeline folder.

python data/emoji-sana/train/train_transformer.py --steps 5000

Needs the results of train_autoencoder.py and train_text_encoder.py in ``--work``; without an autoencoder there, starts from
all components of the written pipeline. Resumes from ``--work``/transformer.pt;
``--write FOLDER`` writes the pipeline from the newest checkpoint and stops.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import emoji
import numpy as np
import torch
from checkpoint import load_checkpoint, save_checkpoint
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_autoencoder import to_tensor
from transformers import Gemma2Model, GemmaTokenizer

WRITTEN = Path(__file__).resolve().parents[1]  # the pipeline's folder, data/emoji-sana
CELL = 32  # px of one latent; images move by whole ones, so that a moved subject has the same latents
MOVED = 0.2  # share of images moved off the centre
TOKENS = 24  # longest prompt that is cached, with its first token
DROP = 0.1  # share of images trained without their prompt, for classifier-free guidance


def build() -> SanaTransformer2DModel:
    return SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_attention_heads=8,
        attention_head_dim=32,
        num_layers=8,
        num_cross_attention_heads=8,
        cross_attention_head_dim=32,
        cross_attention_dim=256,
        caption_channels=256,
        mlp_ratio=2.5,
        sample_size=16,
        patch_size=2,
        interpolation_scale=1.0,
    )


def load_pipeline(work: Path, transformer: SanaTransformer2DModel | None = None) -> SanaPipeline:
    work = work if (work / "vae").is_dir() else WRITTEN
    return SanaPipeline(
        tokenizer=GemmaTokenizer.from_pretrained(work / "tokenizer"),
        text_encoder=Gemma2Model.from_pretrained(work / "text_encoder", dtype=torch.float32).eval(),
        vae=AutoencoderDC.from_pretrained(work / "vae").eval(),
        transformer=transformer or build(),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0),
    )


@torch.inference_mode()
def cache_latents(pipeline: SanaPipeline, path: Path, learned: list[int], seed: int) -> torch.Tensor:
    """Scaled latents, float16 of shape (learned, backgrounds, mirrored, moved, 32, 16, 16)."""
    if not path.exists():
        sprites, vae = emoji.sprites()[learned], pipeline.vae.to(memory_format=torch.channels_last)
        rng, out = np.random.default_rng(seed), []
        moves = [(y, x) for y in (-CELL, 0, CELL) for x in (-CELL, 0, CELL) if (y, x) != (0, 0)]
        for i, sprite in enumerate(sprites):
            pictures = [
                emoji.compose(sprite, colour, mirror=mirror, shift=moves[rng.integers(len(moves))] if moved else (0, 0))
                for colour in emoji.BACKGROUNDS.values()
                for mirror in (False, True)
                for moved in (False, True)
            ]
            with torch.autocast("cpu", torch.bfloat16):
                latents = vae.encode(to_tensor(np.stack(pictures)).contiguous(memory_format=torch.channels_last)).latent
            out.append((latents.float() * vae.config.scaling_factor).half().contiguous())
            if i % 20 == 0:
                print(f"latents of {i + 1} of {len(sprites)} subjects", flush=True)
        torch.save(torch.stack(out).unflatten(1, (len(emoji.BACKGROUNDS), 2, 2)), path)
    return torch.load(path, weights_only=True)


@torch.inference_mode()
def cache_prompts(pipeline: SanaPipeline, path: Path) -> dict[str, torch.Tensor]:
    """Return the outputs of the pipeline's `encode_prompt`, with and without its instruction in front.

    ``embeds`` is float16 of shape (instruction, subjects, backgrounds, templates, TOKENS, 256), ``mask`` the same
    without the last axis; ``null_embeds`` and ``null_mask`` are those of the empty prompt.
    """
    if not path.exists():
        from train_text_encoder import PREFIX

        embeds, mask = [], []
        prompts = [s.prompt(b, t) for s in emoji.subjects() for b in emoji.BACKGROUNDS for t in emoji.TEMPLATES]
        for instruction in ([PREFIX], None):
            for i in range(0, len(prompts), 96):
                e, m, *_ = pipeline.encode_prompt(
                    prompts[i : i + 96],
                    do_classifier_free_guidance=False,
                    max_sequence_length=TOKENS,
                    complex_human_instruction=instruction,
                )
                embeds.append(e.half())
                mask.append(m.bool())
        shape = (2, len(emoji.subjects()), len(emoji.BACKGROUNDS), len(emoji.TEMPLATES))
        null, null_mask, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=TOKENS)
        cached = {"embeds": torch.cat(embeds).unflatten(0, shape), "mask": torch.cat(mask).unflatten(0, shape)}
        torch.save(cached | {"null_embeds": null[0].half(), "null_mask": null_mask[0].bool()}, path)
    return torch.load(path, weights_only=True)


class MuonAndAdamW:
    """Muon for the matrices inside the blocks (a 1x1 convolution is one too), AdamW for the rest."""

    def __init__(self, model: torch.nn.Module, lr: float) -> None:
        self.pairs, rest = [], []
        for name, p in model.named_parameters():
            inside = "transformer_blocks" in name and p.ndim in (2, 4) and "table" not in name
            if inside and p[0].numel() == p.shape[1]:
                self.pairs.append((p, torch.nn.Parameter(p.data.view(p.shape[0], -1))))  # shares memory
            else:
                rest.append(p)
        self.muon = torch.optim.Muon(
            [flat for _, flat in self.pairs], lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, lr: float) -> None:
        for p, flat in self.pairs:
            flat.grad = None if p.grad is None else p.grad.view_as(flat)
        for optimizer in (self.muon, self.adamw):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def rate(progress: float) -> float:
    """Share of the peak rate: constant, then a linear fall over the last 40 %."""
    return 1.0 if progress < 0.6 else max(0.0, (1 - progress) / 0.4)


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--work", type=Path, default=Path("output/train"))
    args.add_argument("--write", type=Path, help="write the pipeline folder from the newest checkpoint")
    args.add_argument("--steps", type=int, default=5000)
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--sitting", type=int, default=1, help="learn the subjects of this sitting and of earlier ones")
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()

    torch.manual_seed(args.seed)
    trained_here = (args.work / "vae").is_dir()
    model = build() if trained_here else SanaTransformer2DModel.from_pretrained(WRITTEN / "transformer")
    optimizer = MuonAndAdamW(model, args.lr)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    path = args.work / "transformer.pt"
    first = load_checkpoint(path, model=model, optimizer=optimizer, average=average)
    if args.write:
        print(f"writing the pipeline after {first} steps to {args.write}")
        pipeline = load_pipeline(args.work, average.module.eval())
        for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            part.half()
        for part in (pipeline.transformer, pipeline.vae):
            part.register_to_config(_name_or_path="")  # else a path of this machine
        pipeline.save_pretrained(args.write)
        return

    pipeline = load_pipeline(args.work)
    learned = [i for i, s in enumerate(emoji.subjects()) if s.sitting <= args.sitting]
    latents = cache_latents(pipeline, args.work / f"latents-{args.sitting}.pt", learned, args.seed)
    prompts = cache_prompts(pipeline, args.work / "prompts.pt")
    learned = torch.tensor(learned)
    sizes = (len(learned), len(emoji.BACKGROUNDS), 2, len(emoji.TEMPLATES))
    start, losses = time.time(), []
    for step in range(first, args.steps):
        dice = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        n = args.batch
        s, b, m, t = (torch.randint(size, (n,), generator=dice) for size in sizes)
        k = (torch.rand(n, generator=dice) < MOVED).long()
        instruction = (torch.rand(n, generator=dice) < 0.1).long()  # 0: with the pipeline's instruction in front
        clean = latents[s, b, m, k].float()
        words = (instruction, learned[s], b, t)
        embeds, mask = prompts["embeds"][words].float(), prompts["mask"][words]
        dropped = torch.rand(n, generator=dice) < DROP
        embeds[dropped], mask[dropped] = prompts["null_embeds"].float(), prompts["null_mask"]
        noise = torch.randn(clean.shape, generator=dice)
        sigma = torch.sigmoid(torch.randn(n, generator=dice) * 1.1 + 0.2)
        level = sigma.view(-1, 1, 1, 1)
        # the plain kernel: for this few tokens the fused one's backward pass takes three times as long on a CPU
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            predicted = model(
                (1 - level) * clean + level * noise,
                encoder_hidden_states=embeds,
                encoder_attention_mask=mask.float(),
                timestep=sigma * 1000,
            ).sample
        loss = (predicted.float() - (noise - clean)).pow(2).mean()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(args.lr * min(1, (step + 1) / 100) * rate(step / args.steps))
        average.update_parameters(model)
        losses.append(loss.item())
        if step % 50 == 49:
            speed = (step + 1 - first) * n / (time.time() - start)
            print(
                f"step {step + 1} {time.time() - start:.0f} s loss {np.mean(losses[-50:]):.4f} {speed:.1f}/s",
                flush=True,
            )
        if step % 250 == 249 or step + 1 == args.steps:
            save_checkpoint(path, step + 1, model=model, optimizer=optimizer, average=average)


if __name__ == "__main__":
    main()
