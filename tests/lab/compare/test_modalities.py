"""Videos, image-to-image, lists with an entry per prompt, and components that begin late."""

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoPipelineForImage2Image, DDIMScheduler
from PIL import Image

from modelopt_nb import compare, generate, psnr
from tests.architectures import build
from tests.lab.small_pipelines import _words, stable_diffusion

SIZE = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
VIDEO = {"steps": 2, "progress": False} | SIZE


@pytest.fixture(scope="module")
def wan():
    """Wan 2.2, whose second transformer denoises below nine tenths of the noise."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    config = transformers.T5Config(vocab_size=1000, d_model=128, d_ff=256, num_layers=1, num_heads=4, d_kv=32)
    return diffusers.WanPipeline(
        transformer=build("Wan")[0], transformer_2=build("Wan")[0], boundary_ratio=0.9, vae=vae.eval(),
        text_encoder=transformers.T5EncoderModel(config).eval(), tokenizer=_words(),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return stable_diffusion(DDIMScheduler())


def test_the_second_transformer_of_wan_is_compared(wan, tmp_path):
    comparison = compare(wan, ["INT8"], ["a cat"], component="transformer_2", **VIDEO)
    assert comparison.frame["PSNR dB"]["INT8"] > 20
    assert "means over the frames" in comparison.caption
    (path,) = comparison.save_videos(tmp_path / "new")
    assert path.stat().st_size > 0


def test_a_component_that_is_never_called_is_named(wan):
    with pytest.raises(ValueError, match="component='transformer_2' is not called in 1 steps of WanPipeline. Allowed"):
        compare(wan, ["INT8"], ["a cat"], component="transformer_2", **VIDEO | {"steps": 1})


def test_psnr_of_a_video_is_the_mean_over_its_frames():
    dense, other = np.full((3, 8, 8, 3), 100, np.uint8), np.full((3, 8, 8, 3), 100, np.uint8)
    other[1] += 1
    other[2] += 10
    assert psnr(other, dense) == pytest.approx((48.1308 + 28.1308) / 2)


def test_an_image_for_each_prompt(small):
    pipeline = AutoPipelineForImage2Image.from_pipe(small)
    images = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (20, 120, 220)]
    call = {"strength": 0.5, "guidance_scale": 1.0, "steps": 4}
    together = generate(pipeline, ["cat"] * 3, 0, image=images, batch_size=2, **call)
    alone = [generate(pipeline, ["cat"], seed, image=image, **call)[0] for seed, image in enumerate(images)]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(together, alone, strict=True))
    comparison = compare(pipeline, ["INT8"], ["cat"] * 3, image=images, progress=False, **call)
    assert comparison.frame["PSNR dB"]["INT8"] > 20
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(comparison.images["dense"], alone, strict=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"negative_prompt": ["a", "b", "c"]}, ValueError, "negative_prompt has 3 entries for 2 prompts. Allowed"),
        ({"image": None}, TypeError, "image is no argument of StableDiffusionPipeline. Allowed: .*guidance_scale"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_generated(small, monkeypatch, call, error, message):
    monkeypatch.setattr(small.unet, "forward", lambda *a, **k: pytest.fail("it was generated"))
    for verb in (
        lambda: generate(small, ["cat", "dog"], **call),
        lambda: compare(small, ["INT8"], ["cat", "dog"], **call),
    ):
        with pytest.raises(error, match=message):
            verb()


def test_sound_is_refused():
    class Audio:
        def __call__(self, prompt, audio_length_in_s=None, num_inference_steps=7):
            pytest.fail("it was generated")

    with pytest.raises(TypeError, match=r"pipeline=Audio makes sound \(audio_length_in_s\). Allowed: pipelines that"):
        generate(Audio(), ["a bell"])
