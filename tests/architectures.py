"""Small random models of every kind that the kit promises, with the inputs of one call each."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch
import transformers

HEADS = {"num_attention_heads": 4, "attention_head_dim": 32}


def text(length: int = 6, width: int = 128) -> torch.Tensor:
    return torch.randn(1, length, width)


def time() -> torch.Tensor:
    return torch.tensor([500.0])


def sd3() -> tuple:
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, joint_attention_dim=128,
        caption_projection_dim=128, pooled_projection_dim=64, pos_embed_max_size=16, **HEADS,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(1, 64),
        "timestep": time(),
    }


def flux() -> tuple:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, joint_attention_dim=128,
        pooled_projection_dim=64, axes_dims_rope=(8, 12, 12), **HEADS,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(1, 64),
        "timestep": time() / 1000,
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
    }


def sana() -> tuple:
    model = diffusers.SanaTransformer2DModel(
        in_channels=32, out_channels=32, num_layers=1, num_cross_attention_heads=4, cross_attention_head_dim=32,
        cross_attention_dim=128, caption_channels=128, mlp_ratio=3.0, sample_size=16, **HEADS,
    )  # fmt: skip
    return model, {"hidden_states": torch.randn(1, 32, 8, 8), "encoder_hidden_states": text(), "timestep": time()}


def pixart() -> tuple:
    model = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, in_channels=4, out_channels=8, cross_attention_dim=128,
        caption_channels=128, use_additional_conditions=False, **HEADS,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": text(),
        "timestep": time(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def dit() -> tuple:
    model = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, in_channels=4, out_channels=8, num_embeds_ada_norm=10, **HEADS
    )
    return model, {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([5]),
        "class_labels": torch.tensor([1]),
    }


def unet() -> tuple:
    model = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4,
    )  # fmt: skip
    return model, {"sample": torch.randn(1, 4, 16, 16), "timestep": time(), "encoder_hidden_states": text()}


def wan() -> tuple:
    model = diffusers.WanTransformer3DModel(
        in_channels=4, out_channels=4, text_dim=128, freq_dim=128, ffn_dim=256, num_layers=1, **HEADS
    )
    return model, {"hidden_states": torch.randn(1, 4, 2, 8, 8), "timestep": time(), "encoder_hidden_states": text()}


def ltx() -> tuple:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=16, out_channels=16, cross_attention_dim=128, num_layers=1, caption_channels=128, **HEADS
    )
    return model, {
        "hidden_states": torch.randn(1, 2 * 4 * 4, 16),
        "encoder_hidden_states": text(),
        "timestep": time(),
        "encoder_attention_mask": torch.ones(1, 6),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def cogvideox() -> tuple:
    model = diffusers.CogVideoXTransformer3DModel(
        in_channels=4, out_channels=4, time_embed_dim=128, text_embed_dim=128, num_layers=1, sample_width=8,
        sample_height=8, sample_frames=8, temporal_compression_ratio=4, max_text_seq_length=6, **HEADS,
    )  # fmt: skip
    return model, {"hidden_states": torch.randn(1, 2, 4, 8, 8), "encoder_hidden_states": text(), "timestep": time()}


def stable_audio() -> tuple:
    model = diffusers.StableAudioDiTModel(
        sample_size=16, in_channels=16, out_channels=16, num_layers=1, num_key_value_attention_heads=2,
        cross_attention_dim=128, time_proj_dim=128, global_states_input_dim=128, cross_attention_input_dim=128, **HEADS,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 16, 16),
        "timestep": time(),
        "encoder_hidden_states": text(),
        "global_hidden_states": torch.randn(1, 1, 128),
    }


def autoencoder_kl() -> tuple:
    model = diffusers.AutoencoderKL(
        block_out_channels=(64, 128), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=32,
    )  # fmt: skip
    return model, {"sample": torch.randn(1, 3, 32, 32)}


def t5() -> tuple:
    config = transformers.T5Config(
        vocab_size=99, d_model=128, d_ff=256, num_layers=1, num_heads=4, d_kv=32, tie_word_embeddings=False
    )
    return transformers.T5EncoderModel(config), {"input_ids": torch.tensor([[3, 5, 7, 1]])}


def clip() -> tuple:
    config = transformers.CLIPTextConfig(
        vocab_size=99, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return transformers.CLIPTextModel(config), {"input_ids": torch.tensor([[0, 5, 7, 2]])}


BUILDERS: dict[str, Callable[[], tuple[torch.nn.Module, dict]]] = {
    "SD3": sd3,
    "FLUX": flux,
    "Sana": sana,
    "PixArt": pixart,
    "DiT": dit,
    "UNet2DCondition": unet,
    "Wan": wan,
    "LTX": ltx,
    "CogVideoX": cogvideox,
    "StableAudioDiT": stable_audio,
    "AutoencoderKL": autoencoder_kl,
    "T5": t5,
    "CLIP": clip,
}


def build(name: str) -> tuple[torch.nn.Module, dict]:
    torch.manual_seed(0)
    model, inputs = BUILDERS[name]()
    # some start with layers of zeros (AdaLN-zero), which would hide what quantization does
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval(), inputs


def run(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs)[0]
