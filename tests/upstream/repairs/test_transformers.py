"""Text encoders, and whole pipelines with packed parts."""

import copy
import json

import pytest
import torch

from modelopt_nb import CheckpointError, enable, make_config, quantize, weight_bytes
from tests.architectures import build, run


@pytest.fixture(autouse=True)
def enabled():
    enable()


@pytest.mark.parametrize("name", ["T5", "CLIP"])
@pytest.mark.parametrize("quant_type", ["FP8", "NVFP4"])
def test_text_encoders(name, quant_type, tmp_path):
    model, inputs = build(name)
    quantize(model, make_config(quant_type))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert weight_bytes(again) == weight_bytes(model)
    assert torch.equal(run(again, inputs), run(model, inputs))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"more": 1}))
    with pytest.raises(CheckpointError, match="config.json was altered"):
        type(model).from_pretrained(tmp_path)


def test_a_pipeline_with_packed_components(pipeline, tmp_path):
    from diffusers import DiffusionPipeline, SanaPipeline

    parts = pipeline.components
    packed = SanaPipeline(**parts | {name: copy.deepcopy(parts[name]) for name in ("transformer", "text_encoder")})
    quantize(packed.transformer, make_config("NF4"))
    quantize(packed.text_encoder, make_config("FP8"))
    packed.save_pretrained(tmp_path / "pipeline")
    again = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    for name in ("transformer", "text_encoder", "vae"):
        assert weight_bytes(getattr(again, name)) == weight_bytes(getattr(packed, name))
    images = []
    for p in (packed, again):
        p.set_progress_bar_config(disable=True)
        size = {"height": 128, "width": 128, "use_resolution_binning": False}
        noise = torch.Generator().manual_seed(3)
        call = {"num_inference_steps": 2, "generator": noise, "output_type": "np"}
        images.append(p("an owl on a red background", **size, **call).images)
    assert images[0].std() > 0 and (images[0] == images[1]).all()
