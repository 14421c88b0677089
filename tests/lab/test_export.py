import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from modelopt_nb import ModelOptConfig, export, make_config, quantize
from modelopt_nb.upstream.layers import has_packed_layers

LAYER = "transformer_blocks.0.attn1.to_q"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:modelopt")


def of_linear(scheme: str, **options) -> ModelOptConfig:
    return make_config(scheme, disable_conv_quantization=True, **options)


@pytest.mark.parametrize("scheme", ["FP8", "FP8 channel", "INT8", "INT8 channel", "FP8_FP8", "INT8_INT8"])
def test_exported_weights_are_the_packed_ones(scheme, transformer, inputs, tmp_path):
    def loop(model):
        model(**inputs)

    export(transformer, of_linear(scheme), tmp_path / "exported", loop)
    assert not has_packed_layers(transformer)
    tensors = load_file(tmp_path / "exported" / "diffusion_pytorch_model.safetensors")
    scale = tensors[f"{LAYER}.weight_scale"]
    weight = tensors[f"{LAYER}.weight"].float() * (scale[:, None] if scale.numel() > 1 else scale)
    quantize(transformer, of_linear(scheme), loop)
    layer = transformer.get_submodule(LAYER)
    packed = layer.weight_quantizer.dequantize(layer.weight)
    assert (weight - packed).norm() < 0.02 * packed.norm()
    assert (f"{LAYER}.input_scale" in tensors) == ("_" in scheme)


@pytest.mark.parametrize("scheme", ["INT4", "INT4 block", "NVFP4"])
def test_four_bits(scheme, transformer, tmp_path):
    export(transformer, of_linear(scheme), tmp_path)
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert tensors[f"{LAYER}.weight"].dtype == torch.uint8
    assert tensors[f"{LAYER}.weight"].numel() == 128 * 64
    assert f"{LAYER}.weight_scale" in tensors
    assert "quantization_config" in json.loads((tmp_path / "config.json").read_text())


def test_it_replaces_a_checkpoint_and_no_other_file(transformer, tmp_path):
    packed = copy.deepcopy(transformer)
    quantize(packed, make_config("INT8"))
    packed.save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "lora.safetensors").write_text("mine")
    export(transformer, of_linear("FP8"), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors", "lora.safetensors"}


@pytest.mark.parametrize("scheme", ["NF4", "NF4 double block", "FP8 block", "INT8 block"])
def test_what_cannot_be_exported_is_refused_before_any_work(scheme, transformer, tmp_path):
    with pytest.raises(ValueError, match=rf"config='{scheme.split()[0]}'.*cannot export"):
        export(transformer, make_config(scheme), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_packed_model_is_not_exported(transformer, tmp_path):
    quantize(transformer, make_config("FP8"))
    with pytest.raises((TypeError, ValueError), match="already"):
        export(transformer, make_config("FP8"), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("options", [{}, {"pointwise_as_linear": True, "disable_conv_quantization": True}])
@pytest.mark.parametrize("scheme", ["INT8", "FP8 channel"])
def test_convolutions_are_refused(scheme, options, transformer, tmp_path):
    with pytest.raises(ValueError, match=r"config packs \d convolutions.*Allowed: disable_conv_quantization=True"):
        export(transformer, make_config(scheme, **options), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_percentile_finds_the_scales_that_quantize_finds(transformer, inputs, tmp_path):
    config = of_linear("INT8_INT8", activation_calibrator="percentile", percentile=90)
    export(transformer, config, tmp_path, lambda model: model(**inputs))
    scale = load_file(tmp_path / "diffusion_pytorch_model.safetensors")[f"{LAYER}.input_scale"]
    quantize(transformer, config, lambda model: model(**inputs))
    assert scale.item() == pytest.approx(transformer.get_submodule(LAYER).input_quantizer.amax.item() / 127)


@pytest.mark.parametrize(
    ("scheme", "options", "loop", "message"),
    [
        ("INT8_INT8", {}, None, "static activation scales need a forward_loop"),
        ("INT4", {"algorithm": "awq_lite"}, None, "algorithm='awq_lite' needs a forward_loop"),
        ("INT8", {"algorithm": "smoothquant"}, lambda model: None, "is for INT8 weights and activations"),
        ("INT8_INT8", {}, lambda model: None, "did not call the SanaTransformer2DModel"),
        ("INT8_INT8", {}, lambda model: model.time_embed(torch.ones(1), hidden_dtype=torch.float32), "never reached"),
        ("INT4", {"algorithm": "awq_lite"}, lambda model: None, "did not call the SanaTransformer2DModel"),
    ],
)
def test_it_checks_what_quantize_checks(scheme, options, loop, message, transformer, tmp_path):
    for verb in (quantize, lambda *given: export(*given[:2], tmp_path / "exported", *given[2:])):
        with pytest.raises(ValueError, match=message):
            verb(transformer, of_linear(scheme, **options), loop)
    assert not (tmp_path / "exported").exists()
