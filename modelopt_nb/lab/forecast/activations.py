"""Estimate the memory of activations from sizes in the configurations."""

from collections.abc import Mapping

import torch

from modelopt_nb.lab.forecast.meta import ComponentForecast

RULE = (
    "The activations are an estimate, the larger of two. Denoising: batch x tokens x (6 x usual width + 2 x widest "
    "layer) x bytes, with 512 tokens of text, and no matrix of attention scores. Decoding: 8 x pixels x channels of "
    "the decoder's last convolution x bytes, for one image or latent frame at a time, as with tiling."
)


def activations(
    main: ComponentForecast, codec: ComponentForecast | None, size: Mapping[str, int], dtype: torch.dtype
) -> tuple[int, str]:
    """Estimate bytes by :data:`RULE`; also returns the size as text. ``size`` may have height, width, ..., batch."""
    config, latents = main.sizes, codec.sizes if codec else {}
    levels = latents.get("block_out_channels") or latents.get("encoder_block_out_channels") or (1,) * 4
    scale = latents.get("scale_factor_spatial") or latents.get("spatial_compression_ratio") or 2 ** (len(levels) - 1)
    every = latents.get("scale_factor_temporal") or latents.get("temporal_compression_ratio") or 4
    patch = config.get("patch_size") or config.get("all_patch_size") or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    channels = latents.get("latent_channels") or latents.get("z_dim") or 0
    if patch == 1 and config.get("in_channels") == 4 * channels:
        patch = 2  # FLUX packs 2 x 2 latents
    side = sample * scale if isinstance(sample := config.get("sample_size"), int) else 1024
    height, width, frames = size.get("height", side), size.get("width", side), size.get("num_frames", 1)
    batch = size.get("batch", 2)
    tokens = (height // (scale * patch)) * (width // (scale * patch)) * ((frames - 1) // every + 1) + 512
    first = config.get("block_out_channels")  # of a UNet
    usual, widest = (first[0], 4 * first[0]) if first else main.widths
    outputs, inputs = codec.last if codec else (3, 0)
    decoding = 8 * height * width * 3 // max(outputs, 3) * inputs * (every if frames > 1 else 1)
    text = f"{height} x {width}" + (f", {frames} frames" if frames > 1 else "") + f", batch of {batch}"
    return max(batch * tokens * (6 * usual + 2 * widest), decoding) * dtype.itemsize, text
