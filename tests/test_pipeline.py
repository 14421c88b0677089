import numpy as np
import pytest
import torch

from modelopt_nb import load_pipeline
from modelopt_nb.pipeline import component_name, draw, native_size, prompts_encoded_once, swapped


def test_the_embedded_pipeline_is_a_whole_sana_pipeline(pipeline):
    assert type(pipeline).__name__ == "SanaPipeline"
    kinds = {name: type(part).__name__ for name, part in pipeline.components.items()}
    assert kinds["transformer"] == "SanaTransformer2DModel"
    assert kinds["vae"] == "AutoencoderDC"
    assert kinds["text_encoder"].startswith("Gemma2")
    assert kinds["tokenizer"].startswith("Gemma")
    assert pipeline.transformer.dtype == torch.float32


@pytest.mark.parametrize("path", ["data/nothing", "./nothing", "/nowhere/at/all", "notebooks"])
def test_a_missing_folder_is_named(path):
    if path == "data/nothing":
        path = "data/nothing/here"
    with pytest.raises(FileNotFoundError, match=r"name_or_path='.*' is not a pipeline folder"):
        load_pipeline(path)


def test_same_seed_same_picture(pipeline):
    first, again, other = (
        draw(pipeline, ["a lemon on a blue background"], [seed], num_inference_steps=2)[0] for seed in (3, 3, 4)
    )
    assert first.dtype == np.uint8
    assert first.shape == (512, 512, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_size_is_passed_on(pipeline):
    assert native_size(pipeline) == {"height": 512, "width": 512}
    (picture,) = draw(
        pipeline, ["a lemon"], [0], num_inference_steps=1, height=256, width=256, use_resolution_binning=False
    )
    assert picture.shape == (256, 256, 3)


def test_nan_is_not_drawn(pipeline):
    class Broken(torch.nn.Module):
        config, dtype, device = pipeline.transformer.config, torch.float32, torch.device("cpu")

        def forward(self, hidden_states, **_):
            return (hidden_states * float("nan"),)

    with swapped(pipeline, "transformer", Broken()), pytest.raises(FloatingPointError, match="drew NaN"):
        draw(pipeline, ["a lemon"], [0], num_inference_steps=1)


def test_prompts_are_encoded_once(pipeline, monkeypatch):
    calls = []
    forward = pipeline.text_encoder.forward
    monkeypatch.setattr(pipeline.text_encoder, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    with prompts_encoded_once(pipeline):
        for _ in range(2):
            draw(pipeline, ["a lemon"], [0], num_inference_steps=1)
        once = len(calls)
        draw(pipeline, ["a pear"], [0], num_inference_steps=1)
    assert once == 2  # the prompt and the empty one
    assert len(calls) == 4
    assert "encode_prompt" not in vars(pipeline)


@pytest.mark.parametrize("on", [True, False])
def test_loading_leaves_the_garbage_collector_as_it_was(on):
    import gc

    (gc.enable if on else gc.disable)()
    try:
        load_pipeline()
        assert gc.isenabled() == on
    finally:
        gc.enable()


def test_component(pipeline):
    assert component_name(pipeline) == "transformer"
    assert component_name(pipeline, "text_encoder") == "text_encoder"
    with pytest.raises(ValueError, match="component='unet' is not a model.*transformer"):
        component_name(pipeline, "unet")
