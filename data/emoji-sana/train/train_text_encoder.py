"""Train the tokenizer and the text encoder: a prompt's last token must tell subject and background.

python data/emoji-sana/train/train_text_encoder.py

`SanaPipeline` puts a long instruction before every prompt and keeps only the prompt's own embeddings, so the
encoder learns with that prefix in place on some steps and without it on the others.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import time
from pathlib import Path

import emoji
import torch
import torch.nn.functional as F
from checkpoint import load_checkpoint, save_checkpoint
from diffusers import SanaPipeline
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaTokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
PREFIX = "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def build_tokenizer() -> GemmaTokenizer:
    """Gemma's kind of tokenizer (BPE with byte fallback), its merges learned from the prompts and the prefix."""
    trainer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trainer.normalizer = normalizers.Replace(" ", "▁")
    trainer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    corpus = [s.prompt(b, t) for s in emoji.subjects() for b in emoji.BACKGROUNDS for t in emoji.TEMPLATES]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer.train_from_iterator(
        corpus + [PREFIX] * 100, trainers.BpeTrainer(vocab_size=1536, special_tokens=SPECIAL + bytes_)
    )
    model = json.loads(trainer.to_str())["model"]
    return GemmaTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], add_bos_token=True)


def build_model(vocab_size: int) -> Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=4096,
    )
    return Gemma2ForCausalLM(config)


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--work", type=Path, default=Path("output/train"))
    args.add_argument("--steps", type=int, default=900)
    args.add_argument("--batch", type=int, default=48)
    args.add_argument("--lr", type=float, default=2e-3)
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    model = build_model(len(tokenizer))
    subjects, backgrounds = emoji.subjects(), list(emoji.BACKGROUNDS)
    heads = torch.nn.Linear(model.config.hidden_size, len(subjects) + len(backgrounds))
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=args.lr, weight_decay=0.01)
    path = args.work / "text_encoder.pt"
    first, start = load_checkpoint(path, model=model, heads=heads, optimizer=optimizer), time.time()
    for step in range(first, args.steps):
        rng = random.Random(f"{args.seed}-{step}")
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 50) * (1 - step / args.steps)
        pairs = [(rng.randrange(len(subjects)), rng.randrange(len(backgrounds))) for _ in range(args.batch)]
        prompts = [subjects[s].prompt(backgrounds[b], rng.choice(emoji.TEMPLATES)) for s, b in pairs]
        prefix = PREFIX if step % 3 == 0 else ""
        tokens = tokenizer([prefix + p for p in prompts], padding=True, return_tensors="pt")
        skip = len(tokenizer(prefix).input_ids) - 1  # the prefix is not worth learning to predict
        hidden = model.model(**tokens).last_hidden_state
        last = hidden[torch.arange(len(hidden)), tokens.attention_mask.sum(1) - 1]
        subject, background = heads(last).split([len(subjects), len(backgrounds)], 1)
        labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)[:, skip + 1 :]
        words = F.cross_entropy(model.lm_head(hidden[:, skip:-1]).flatten(0, 1), labels.flatten())
        target = torch.tensor(pairs)
        named = F.cross_entropy(subject, target[:, 0]) + F.cross_entropy(background, target[:, 1])
        optimizer.zero_grad(set_to_none=True)
        (named + 0.3 * words).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0:
            right = (subject.argmax(1) == target[:, 0]).float().mean().item()
            print(
                f"step {step} {time.time() - start:.0f} s named {named.item():.4f} words {words.item():.3f} "
                f"subjects right {right:.2f}",
                flush=True,
            )
        if step % 150 == 149:
            save_checkpoint(path, step + 1, model=model, heads=heads, optimizer=optimizer)
    model.model.eval().save_pretrained(args.work / "text_encoder")
    tokenizer.save_pretrained(args.work / "tokenizer")


if __name__ == "__main__":
    main()
