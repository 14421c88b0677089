import json

import pytest
import torch
from diffusers import AutoModel, NVIDIAModelOptConfig

from modelopt_nb import SCHEMES, enable, make_config, quantize, weight_bytes
from modelopt_nb.upstream import is_packed


@pytest.fixture(autouse=True)
def enabled():
    enable()


@pytest.fixture
def folder(transformer, tmp_path):
    transformer.save_pretrained(tmp_path / "dense")
    return str(tmp_path / "dense")  # AutoModel takes no Path


def run(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).sample


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_while_loading_is_packed_after_loading(scheme, folder, transformer, inputs):
    quant_type, arguments = SCHEMES[scheme]
    config = NVIDIAModelOptConfig(quant_type=quant_type, quant_method="modelopt", **arguments)
    model = AutoModel.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    report = quantize(transformer, make_config(scheme))
    assert model.hf_quantizer.report == report
    assert weight_bytes(model) == weight_bytes(transformer)
    assert torch.equal(run(model, inputs), run(transformer, inputs))
    expected = sum(x.spec.packed_bytes(x.shape) for x in report.layers if x.packed)
    assert sum(x.after for x in report.layers if x.packed) == pytest.approx(expected, rel=0.02)


def test_the_dense_model_never_exists(folder, monkeypatch):
    from modelopt_nb import upstream

    dense = []
    pack_layer = upstream.pack_layer

    def watched(layer, algorithm):
        model = watched.model
        dense.append(sum(not is_packed(m) and not m.weight.is_meta for m in model.modules() if hasattr(m, "weight_quantizer") and m.weight_quantizer.is_enabled))  # fmt: skip
        pack_layer(layer, algorithm)

    insert = upstream.insert_quantizers

    def remembered(model, *args):
        watched.model = model
        insert(model, *args)

    monkeypatch.setattr(upstream, "pack_layer", watched)
    monkeypatch.setattr(upstream, "insert_quantizers", remembered)
    AutoModel.from_pretrained(folder, quantization_config=make_config("FP8"), dtype=torch.float32)
    assert len(dense) == 17
    assert set(dense) == {1}


def test_sharded_checkpoints(transformer, inputs, tmp_path):
    transformer.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = AutoModel.from_pretrained(str(tmp_path), quantization_config=make_config("NVFP4"), dtype=torch.float32)
    quantize(transformer, make_config("NVFP4"))
    assert torch.equal(run(model, inputs), run(transformer, inputs))


def test_a_forward_loop_calibrates_the_whole_model_once(folder, transformer, inputs):
    calls = []

    def loop(model):
        calls.append(type(model).__name__)
        model(**inputs)

    config = NVIDIAModelOptConfig(quant_type="FP8_INT8", forward_loop=loop)
    model = AutoModel.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    assert calls == ["SanaTransformer2DModel"]
    quantize(transformer, make_config("FP8_INT8"), loop)
    assert torch.equal(run(model, inputs), run(transformer, inputs))


def test_exclusions_by_full_and_partial_name(folder):
    names = ["patch_embed.proj.weight", "attn2"]
    config = NVIDIAModelOptConfig("INT8", modules_to_not_convert=names, disable_conv_quantization=True)
    model = AutoModel.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    reasons = model.hf_quantizer.report.frame["reason"]
    assert names == ["patch_embed.proj.weight", "attn2"]
    assert reasons["patch_embed.proj"] == "modules_to_not_convert: patch_embed.proj.weight"
    assert reasons["transformer_blocks.0.attn2.to_k"] == "modules_to_not_convert: attn2"
    assert reasons["transformer_blocks.0.ff.conv_point"] == "disable_conv_quantization"
    assert model.get_submodule("transformer_blocks.0.attn2.to_k").weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"modules_to_not_convert": "attn7"}, "'attn7'.*matches no layer"),
        ({"channel_quantize": -1, "block_quantize": 999}, "block_quantize=999 would pack no layer"),
    ],
)
def test_what_does_not_fit_the_model_is_named_before_weights_load(folder, monkeypatch, arguments, said):
    from diffusers.models import modeling_utils

    monkeypatch.setattr(
        modeling_utils.ModelMixin, "_load_pretrained_model", lambda *a, **k: pytest.fail("weights were loaded")
    )
    with pytest.raises(ValueError, match=said):
        AutoModel.from_pretrained(folder, quantization_config=NVIDIAModelOptConfig("INT8", **arguments))


@pytest.mark.parametrize("scheme", [*SCHEMES, "FP8_INT8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(scheme, dtype, folder, inputs, tmp_path):
    inputs = {name: x.to(dtype) if name != "timestep" else x for name, x in inputs.items()}
    quant_type, arguments = SCHEMES.get(scheme, (scheme, {}))
    loop = (lambda m: m(**inputs)) if "_" in scheme else None
    config = NVIDIAModelOptConfig(quant_type, forward_loop=loop, **arguments)
    model = AutoModel.from_pretrained(folder, quantization_config=config, dtype=dtype)
    model.save_pretrained(tmp_path / "packed")
    again = AutoModel.from_pretrained(str(tmp_path / "packed"))
    assert again.dtype == dtype
    assert weight_bytes(again) == weight_bytes(model)
    assert torch.equal(run(again, inputs), run(model, inputs))


@pytest.mark.parametrize("quant_type", ["FP8", "NF4", "NVFP4_INT8"])
def test_config_survives_json(quant_type):
    config = NVIDIAModelOptConfig(quant_type, modules_to_not_convert="proj_out")
    again = NVIDIAModelOptConfig.from_dict(json.loads(json.dumps(config.to_dict(), sort_keys=True)))
    assert again.modelopt_config == config.modelopt_config
    assert again.modules_to_not_convert == ["proj_out"]
    assert again.weight_only == config.weight_only
