"""Small random pipelines of Diffusers' classes whose schedulers, calls or images are unlike the embedded one's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tests.architectures import build


def _words() -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "cat": 3, "dog": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


def _characters() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as name:
        folder, characters = Path(name), [chr(i) for i in range(33, 127)]
        tokens = ["<|startoftext|>", "!", "<|endoftext|>", *(c + end for c in characters for end in ("", "</w>"))]
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=77)


def _t5() -> transformers.T5EncoderModel:
    config = transformers.T5Config(vocab_size=1000, d_model=32, d_ff=64, num_layers=1, num_heads=4, d_kv=8)
    return transformers.T5EncoderModel(config).eval()


def _vae(channels: int = 4, **options: float) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64), in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=8, **options,
    ).eval()  # fmt: skip


def stable_diffusion(scheduler: Any = None, unet: Any = None) -> Any:
    """Stable Diffusion; by default with PNDM and its prk steps, which needs four steps."""
    torch.manual_seed(0)
    tokenizer = _characters()
    config = transformers.CLIPTextConfig(
        bos_token_id=0, eos_token_id=2, hidden_size=32, intermediate_size=37, num_attention_heads=4,
        num_hidden_layers=1, pad_token_id=1, vocab_size=1000,
    )  # fmt: skip
    unet = unet or diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, norm_num_groups=8, attention_head_dim=4,
    ).eval()  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=_vae(), text_encoder=transformers.CLIPTextModel(config).eval(), tokenizer=tokenizer, unet=unet,
        scheduler=scheduler or diffusers.PNDMScheduler(skip_prk_steps=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def smallest_unet() -> diffusers.UNet2DConditionModel:
    """A UNet with the fewest layers: attention in its middle block only."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(64,), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), cross_attention_dim=32, norm_num_groups=8,
        attention_head_dim=4,
    ).eval()  # fmt: skip


def ltx() -> Any:
    """LTX-Video, whose scheduler's shift divides 0 by 0 in one step."""
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip
    return diffusers.LTXPipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=_t5(), tokenizer=_words()
    )


def pixart() -> Any:
    """PixArt Sigma, which swallows ``callback_on_step_end``."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    ).eval()  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        tokenizer=_words(), text_encoder=_t5(), vae=_vae(), transformer=transformer,
        scheduler=diffusers.DDIMScheduler(),
    )  # fmt: skip


def deepfloyd() -> Any:
    """DeepFloyd IF, which has no ``callback_on_step_end``."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=[32, 64], cross_attention_dim=32, encoder_hid_dim=32,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"], attention_head_dim=8,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", in_channels=3, out_channels=6, act_fn="gelu",
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"], addition_embed_type="text",
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift",
    ).eval()  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.0,
        variance_type="learned_range",
    )  # fmt: skip
    return diffusers.IFPipeline(
        tokenizer=_words(), text_encoder=_t5(), unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def z_image() -> Any:
    """Z-Image, whose transformer takes and returns lists of tensors, and has names such as all_x_embedder.2-1."""
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    config = transformers.Qwen3Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=1000, max_position_embeddings=512, head_dim=8,
    )  # fmt: skip
    tokenizer = _words()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(16, shift_factor=0.1), tokenizer=tokenizer,
        text_encoder=transformers.Qwen3Model(config).eval(), transformer=transformer,
    )  # fmt: skip


def mochi() -> Any:
    """Mochi, whose sigmas are a line and then a parabola."""
    torch.manual_seed(0)
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, out_channels=None, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4,
        activation_fn="swiglu", max_sequence_length=16,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=_t5(), tokenizer=_words()
    )


def qwen_image() -> Any:
    """Qwen-Image, whose scheduler's shift divides 0 by 0 in one step."""
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "rope_theta": 1000000.0, "vocab_size": 1000,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        },
        hidden_size=16, vocab_size=1000, vision_end_token_id=5, vision_start_token_id=6, vision_token_id=7,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
        shift_terminal=0.02, time_shift_type="exponential",
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, tokenizer=_words(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
    )  # fmt: skip


#: Pipelines, the steps to run them with, and further arguments of their calls.
SMALL = {
    "PNDM": (stable_diffusion, 4, {}),
    "LTX": (ltx, 3, {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}),
    "PixArt": (pixart, 3, {"height": 16, "width": 16, "use_resolution_binning": False, "clean_caption": False,
                           "max_sequence_length": 8}),
    "IF": (deepfloyd, 2, {"height": 16, "width": 16, "clean_caption": False}),
    "Z-Image": (z_image, 3, {"height": 32, "width": 32, "guidance_scale": 3.0, "max_sequence_length": 16}),
    "Mochi": (mochi, 4, {"height": 16, "width": 16, "num_frames": 7, "max_sequence_length": 16}),
    "Qwen-Image": (qwen_image, 3, {"height": 32, "width": 32, "max_sequence_length": 16}),
}  # fmt: skip


def _clip(tokenizer: CLIPTokenizer, kind: Any = transformers.CLIPTextModel) -> Any:
    config = transformers.CLIPTextConfig(
        bos_token_id=0, eos_token_id=2, hidden_size=64, intermediate_size=128, num_attention_heads=4, pad_token_id=1,
        num_hidden_layers=2, projection_dim=64, vocab_size=len(tokenizer), hidden_act="gelu",
    )  # fmt: skip
    return kind(config).eval()


def sd3() -> Any:
    """Stable Diffusion 3."""
    torch.manual_seed(0)
    tokenizer, t5 = _characters(), transformers.T5Config(vocab_size=1000, d_model=128, d_ff=128, num_layers=1, d_kv=32)
    encoder = transformers.CLIPTextModelWithProjection
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, joint_attention_dim=128,
        caption_projection_dim=128, pooled_projection_dim=128, pos_embed_max_size=16, num_attention_heads=4,
        attention_head_dim=32,
    ).eval()  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(shift_factor=0.1),
        text_encoder=_clip(tokenizer, encoder), tokenizer=tokenizer, text_encoder_2=_clip(tokenizer, encoder),
        tokenizer_2=tokenizer, text_encoder_3=transformers.T5EncoderModel(t5).eval(), tokenizer_3=_words(),
    )  # fmt: skip


def flux() -> Any:
    """FLUX.1."""
    torch.manual_seed(0)
    tokenizer, t5 = _characters(), transformers.T5Config(vocab_size=1000, d_model=128, d_ff=128, num_layers=1, d_kv=32)
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(shift_factor=0.0, scaling_factor=1.0),
        text_encoder=_clip(tokenizer), tokenizer=tokenizer, text_encoder_2=transformers.T5EncoderModel(t5).eval(),
        tokenizer_2=_words(), transformer=build("FLUX")[0].eval(),
    )  # fmt: skip


def sdxl() -> Any:
    """Stable Diffusion XL."""
    torch.manual_seed(0)
    tokenizer = _characters()
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64,),
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=128, attention_head_dim=4, use_linear_projection=True, norm_num_groups=8,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64 + 6 * 8,
    ).eval()  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(tokenizer), tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        text_encoder_2=_clip(tokenizer, transformers.CLIPTextModelWithProjection),
        scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def wan() -> Any:
    """Wan 2.1, text to video."""
    torch.manual_seed(0)
    config = transformers.UMT5Config(vocab_size=1000, d_model=128, d_ff=128, num_layers=1, num_heads=4, d_kv=32)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    return diffusers.WanPipeline(
        transformer=build("Wan")[0].eval(), vae=vae, scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True
        ), text_encoder=transformers.UMT5EncoderModel(config).eval(), tokenizer=_words(),
    )  # fmt: skip
