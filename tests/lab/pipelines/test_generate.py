from types import SimpleNamespace

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch

from modelopt_nb import generate
from modelopt_nb.lab.pipelines.generate import cached_prompt_embeddings, native_size
from modelopt_nb.lab.pipelines.load import with_component


class VideoPipeline:
    """Returns videos of noise from the generators; counts its calls."""

    def __init__(self) -> None:
        self.calls, self.set_progress_bar_config = [], lambda **config: setattr(self, "_progress_bar_config", config)
        self._progress_bar_config = {"leave": False}

    def __call__(self, prompt, generator, num_inference_steps, output_type="pil", callback_on_step_end=None):
        assert self._progress_bar_config == {"leave": False, "disable": True}
        self.calls.append((prompt, num_inference_steps, output_type))
        if callback_on_step_end:
            callback_on_step_end(self, 0, 0, {})
        return SimpleNamespace(frames=np.stack([torch.rand(3, 8, 8, 3, generator=g).numpy() for g in generator]))


def test_same_seed_same_image(pipeline):
    first, again, other = generate(pipeline, ["a lemon on a blue background"] * 3, [3, 3, 4], steps=1)
    assert first.dtype == np.uint8
    assert first.shape == (512, 512, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_batches_of_videos():
    pipeline, ticks = VideoPipeline(), []
    videos = generate(
        pipeline, ["a", "b", "c"], 5, steps=7, batch_size=2, callback_on_step_end=lambda *step: ticks.append(step)
    )
    assert pipeline.calls == [(["a", "b"], 7, "np"), (["c"], 7, "np")]
    assert pipeline._progress_bar_config == {"leave": False}
    assert len(ticks) == 2
    for seed, video in enumerate(videos, 5):
        noise = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(seed)).numpy()
        assert np.array_equal(video, (noise * 255).round().astype(np.uint8))


def test_without_decoding(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.vae, "decode", lambda *a, **k: pytest.fail("it was decoded"))
    assert generate(pipeline, ["a lemon"], steps=1, decode=False) == []


def test_a_size_is_passed_on(pipeline):
    assert native_size(pipeline) == {"height": 512, "width": 512}
    (image,) = generate(pipeline, ["a lemon"], steps=1, height=256, width=256, use_resolution_binning=False)
    assert image.shape == (256, 256, 3)


def test_nan_is_refused(pipeline):
    class Broken(torch.nn.Module):
        config, dtype, device = pipeline.transformer.config, torch.float32, torch.device("cpu")

        def forward(self, hidden_states, **_):
            return (hidden_states * float("nan"),)

    with with_component(pipeline, "transformer", Broken()), pytest.raises(FloatingPointError, match="generated NaN"):
        generate(pipeline, ["a lemon"], steps=1)
    assert getattr(pipeline, "_progress_bar_config", {}).get("disable") is not True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1001}, "steps=1001 is not allowed. Allowed: 1 to 1000"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"prompts": ()}, r"prompts=\(\)"),
        ({"seeds": [1, 2]}, r"seeds=\[1, 2\] has 2 entries for 1 prompts"),
    ],
)
def test_wrong_arguments(pipeline, monkeypatch, arguments, message):
    monkeypatch.setattr(pipeline.transformer, "forward", lambda *a, **k: pytest.fail("it was generated"))
    with pytest.raises(ValueError, match=message):
        generate(**{"pipeline": pipeline, "prompts": ["a lemon"]} | arguments)


def test_prompts_are_encoded_once(pipeline, monkeypatch):
    calls = []
    forward = pipeline.text_encoder.forward
    monkeypatch.setattr(pipeline.text_encoder, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    monkeypatch.setattr(pipeline.transformer, "forward", lambda hidden_states, *a, **k: (hidden_states,))

    def encodings(prompt):
        calls.clear()
        generate(pipeline, [prompt], steps=1, decode=False)
        return len(calls)

    with cached_prompt_embeddings(pipeline):
        assert encodings("a lemon") == 2  # the prompt and the empty one
        assert encodings("a lemon") == 0
        assert encodings("a pear") == 2
    assert "encode_prompt" not in vars(pipeline)


def sized(name: str, cells: object) -> dict[str, int]:
    """The native size of a pipeline of Diffusers whose model has ``cells``."""
    pipeline = SimpleNamespace(
        transformer=SimpleNamespace(config=SimpleNamespace(sample_size=cells)), vae_scale_factor=8
    )
    pipeline.__call__ = getattr(diffusers, name).__call__
    return native_size(pipeline)


@pytest.mark.parametrize(
    ("name", "cells", "expected"),
    [
        ("SanaPipeline", 16, {"height": 128, "width": 128}),
        ("SanaPipeline", None, {}),
        ("SanaVideoPipeline", 30, {}),  # its own 480 x 832
        ("AuraFlowPipeline", 64, {}),  # its own 1024
        ("WanPipeline", 30, {}),
        ("StableDiffusionPipeline", 64, {}),
        ("PixArtSigmaPipeline", 64, {}),
        ("FluxPipeline", 64, {}),
    ],
)
def test_a_size_is_given_only_where_the_pipelines_own_is_not_the_models(name, cells, expected):
    assert sized(name, cells) == expected


def test_a_scheduler_whose_noise_has_no_seed_is_refused(pipeline):
    config = SimpleNamespace(noise_sampler_seed=None, num_train_timesteps=1000)
    scheduler = type("DPMSolverSDEScheduler", (), {"config": config})()
    with with_component(pipeline, "scheduler", scheduler):
        with pytest.raises(ValueError, match="DPMSolverSDEScheduler takes no generator.*noise_sampler_seed=0"):
            generate(pipeline, ["a lemon"])
        config.noise_sampler_seed = 0
        with pytest.raises(ValueError, match="steps=0"):  # past that check
            generate(pipeline, ["a lemon"], steps=0)


@pytest.mark.parametrize("prompts", ["a", ["a"], ("a",), pd.Series(["a"], [7]), np.array(["a"]), np.array("a")])
@pytest.mark.parametrize(
    ("seeds", "steps"), [(np.int64(5), {"steps": np.int64(7)}), ((5,), {"num_inference_steps": 7})]
)
def test_what_people_pass(prompts, seeds, steps):
    pipeline = VideoPipeline()
    (video,) = generate(pipeline, prompts, seeds, **steps)
    assert pipeline.calls == [(["a"], 7, "np")]
    noise = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(5)).numpy()
    assert np.array_equal(video, (noise * 255).round().astype(np.uint8))
