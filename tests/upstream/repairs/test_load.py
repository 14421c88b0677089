"""Packing while loading, and loading what was packed."""

import copy

import pytest
import torch
from diffusers import AutoModel, NVIDIAModelOptConfig
from diffusers.quantizers.base import DiffusersQuantizer
from modelopt.torch.quantization.nn import TensorQuantizer

from modelopt_nb import SCHEMES, enable, make_config, quantize, weight_bytes
from modelopt_nb.upstream.layers import is_packed
from tests.architectures import run


@pytest.fixture(autouse=True)
def enabled():
    enable()


@pytest.fixture
def folder(transformer, tmp_path):
    transformer.save_pretrained(tmp_path / "dense")
    return str(tmp_path / "dense")  # AutoModel takes no Path


@pytest.mark.parametrize("scheme", [*SCHEMES, "FP8_INT8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_while_loading_after_loading_and_restored_are_the_same(
    scheme, dtype, folder, transformer, inputs, tmp_path
):
    inputs = {name: x.to(dtype) if name != "timestep" else x for name, x in inputs.items()}
    quant_type, arguments = SCHEMES.get(scheme, (scheme, {}))
    loop = (lambda model: model(**inputs)) if "_" in scheme else None
    config = NVIDIAModelOptConfig(quant_type, quant_method="modelopt", forward_loop=loop, **arguments)
    model = AutoModel.from_pretrained(folder, quantization_config=config, dtype=dtype)
    after = type(model).from_pretrained(folder, dtype=dtype)
    report, output = quantize(after, make_config(scheme, pointwise_as_linear=False), loop), run(model, inputs)
    assert model.hf_quantizer.report == report
    assert report.after == weight_bytes(model) == weight_bytes(after)
    assert torch.equal(run(after, inputs), output)
    for name, packed in (("while", model), ("after", after)):
        packed.save_pretrained(tmp_path / name)
        restored = AutoModel.from_pretrained(str(tmp_path / name))
        assert restored.dtype == dtype
        assert weight_bytes(restored) == report.after
        assert torch.equal(run(restored, inputs), output)
    size = sum(f.stat().st_size for f in (tmp_path / "while").glob("*.safetensors"))
    assert size == pytest.approx(report.after.total, rel=0.3)  # the header counts in so small a model


def test_the_dense_model_never_exists(folder, monkeypatch):
    dense, models = [], []
    preprocess, pack = DiffusersQuantizer.preprocess_model, TensorQuantizer._real_quantize

    def remember(self, model, **kwargs):
        models.append(model)
        return preprocess(self, model, **kwargs)

    def count(self, weight):
        layers = [m for m in models[0].modules() if hasattr(m, "weight_quantizer") and m.weight_quantizer.is_enabled]
        dense.append(sum(not is_packed(m) and not m.weight.is_meta for m in layers))
        return pack(self, weight)

    monkeypatch.setattr(DiffusersQuantizer, "preprocess_model", remember)
    monkeypatch.setattr(TensorQuantizer, "_real_quantize", count)
    AutoModel.from_pretrained(folder, quantization_config=make_config("FP8"), dtype=torch.float32)
    assert dense == [1] * 17


def test_sharded_checkpoints(transformer, inputs, tmp_path):
    transformer.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = AutoModel.from_pretrained(str(tmp_path), quantization_config=make_config("NVFP4"), dtype=torch.float32)
    quantize(transformer, make_config("NVFP4"))
    assert torch.equal(run(model, inputs), run(transformer, inputs))


@pytest.mark.parametrize("config_class", [make_config, NVIDIAModelOptConfig])
def test_a_forward_loop_calibrates_the_whole_model_once(config_class, folder, transformer, inputs):
    calls = []

    def loop(model):
        calls.append(type(model).__name__)
        model(**inputs)

    config = config_class("INT8", weight_only=False, forward_loop=loop)
    model = AutoModel.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    assert calls == ["SanaTransformer2DModel"]
    quantize(transformer, make_config("INT8_INT8"), loop)
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
    ("arguments", "message"),
    [
        ({"modules_to_not_convert": "attn7"}, "'attn7'.*matches no layer"),
        ({"channel_quantize": -1, "block_quantize": 999}, "block_quantize=999 would pack no layer"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_load(folder, monkeypatch, arguments, message):
    from diffusers.models import modeling_utils

    monkeypatch.setattr(
        modeling_utils.ModelMixin, "_load_pretrained_model", lambda *a, **k: pytest.fail("weights were loaded")
    )
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(folder, quantization_config=make_config("INT8", **arguments))


def test_device_map(transformer, inputs, tmp_path):
    packed = copy.deepcopy(transformer)
    quantize(packed, make_config("NVFP4"))
    packed.save_pretrained(tmp_path, max_shard_size="100KB")
    loaded = AutoModel.from_pretrained(str(tmp_path), device_map={"": "cpu"})
    assert torch.equal(run(loaded, inputs), run(packed, inputs))
    with pytest.raises(ValueError, match="device_map=.*offloaded to disk"):
        AutoModel.from_pretrained(str(tmp_path), device_map={"": "disk"}, offload_folder=str(tmp_path))
