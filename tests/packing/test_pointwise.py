import copy

import pytest
import torch
from tests.architectures import build, run
from tests.conftest import ALL_TYPES
from torch import nn

from modelopt_nb import SCHEMES, dequantized, enable, layer_frame, make_config, quantize, weight_bytes, weight_errors
from modelopt_nb.upstream import is_pointwise, make_linear

WITH_POINTWISE = ["Sana", "UNet2DCondition", "AutoencoderKL", "StableAudioDiT"]


@pytest.fixture(autouse=True)
def enabled():
    enable()


@pytest.mark.parametrize("name", WITH_POINTWISE)
def test_a_dense_model_computes_the_same_with_linear_layers(name):
    model, inputs = build(name)
    linear = copy.deepcopy(model)
    names = [n for n, m in model.named_modules() if is_pointwise(m)]
    for layer in names:
        make_linear(linear, layer)
    assert names
    assert weight_bytes(linear) == weight_bytes(model)
    torch.testing.assert_close(run(linear, inputs), run(model, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", WITH_POINTWISE[:2])
def test_every_scheme_packs_saves_and_loads(name, scheme, tmp_path):
    model, inputs = build(name)
    dense = run(model, inputs)
    model.save_pretrained(tmp_path / "dense")
    config = make_config(scheme, pointwise_as_linear=True)
    frame = layer_frame(model, config)
    pointwise = frame[(frame["kind"] == "pointwise convolution") & ~frame["reason"].str.contains("proj_out")]
    wide = [name for name, shape in pointwise["shape"].items() if not shape[1] % 128]
    assert frame.loc[wide, "packed"].all() and wide
    report = quantize(model, config)
    packed = run(model, inputs)
    assert 0 < (packed - dense).norm() / dense.norm() < 0.4
    assert list(frame["packed bytes"]) == [x.after for x in report.layers]
    with dequantized(model):
        assert torch.equal(run(model, inputs), packed)
    loaded = type(model).from_pretrained(tmp_path / "dense", quantization_config=config, dtype=torch.float32)
    assert loaded.hf_quantizer.report.layers == report.layers
    loaded.save_pretrained(tmp_path / "packed")
    restored = type(model).from_pretrained(tmp_path / "packed")
    for other in (loaded, restored):
        assert torch.equal(run(other, inputs), packed)
        assert weight_bytes(other) == weight_bytes(model)


@pytest.mark.parametrize("algorithm", ["max", "smoothquant", "awq_lite", "svdquant"])
def test_they_are_calibrated_like_other_linear_layers(algorithm, transformer, inputs, tmp_path):
    dense = run(transformer, inputs)
    scheme = "INT4 block" if algorithm in ("awq_lite", "svdquant") else "INT8"
    options = {"weight_only": False} if scheme == "INT8" else {}
    loop = lambda model: model(**inputs)  # noqa: E731
    config = make_config(scheme, pointwise_as_linear=True, algorithm=algorithm, forward_loop=loop, **options)
    quantize(transformer, config)
    packed = run(transformer, inputs)
    assert 0 < (packed - dense).norm() / dense.norm() < 0.1
    transformer.save_pretrained(tmp_path)
    assert torch.equal(run(type(transformer).from_pretrained(tmp_path), inputs), packed)


def test_four_bits_reach_the_pointwise_convolutions(transformer):
    without, with_ = copy.deepcopy(transformer), copy.deepcopy(transformer)
    frames = [
        quantize(model, make_config("NF4", pointwise_as_linear=as_linear)).frame
        for model, as_linear in ((without, False), (with_, True))
    ]
    layer = "transformer_blocks.0.ff.conv_inverted"
    assert "kernel's width" in frames[0].loc[layer, "reason"]
    assert frames[1].loc[layer, "packed"]
    assert weight_bytes(with_).total < 0.6 * weight_bytes(without).total


def test_only_what_is_one_pixel_wide_is_pointwise():
    yes = [nn.Conv1d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv3d(8, 8, 1), nn.Conv2d(8, 8, 1, padding="valid")]
    no = [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 1, groups=2),
          nn.ConvTranspose2d(8, 8, 1), nn.Linear(8, 8)]  # fmt: skip
    assert all(map(is_pointwise, yes)) and not any(map(is_pointwise, no))


def test_disable_conv_quantization_does_not_mean_them(transformer):
    config = make_config("INT8", disable_conv_quantization=True, pointwise_as_linear=True)
    frame = layer_frame(transformer, config)
    assert frame.loc["transformer_blocks.0.ff.conv_point", "packed"]
    assert frame.loc["transformer_blocks.0.ff.conv_depth", "reason"] == "disable_conv_quantization"


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_errors_of_mixed_and_pointwise_layers_are_their_own(quant_type, transformer):
    layer = "transformer_blocks.0.ff.conv_point"
    config = make_config("INT4", pointwise_as_linear=True, mixed={quant_type: "conv_point"})
    errors = weight_errors(transformer, config)
    weight = transformer.get_submodule(layer).weight.detach().flatten(1)
    quantize(transformer, config)
    packed = transformer.get_submodule(layer)
    change = packed.weight_quantizer.dequantize(packed.weight) - weight
    assert errors[layer] == pytest.approx((change.norm() / weight.norm()).item(), rel=1e-5)


def test_mixed_types(transformer, inputs, tmp_path):
    mixed = {"INT8 channel": ["attn1", "proj_out"], "FP8_INT8": "transformer_blocks.0.attn2.to_q"}
    config = make_config("NF4", mixed=mixed, modules_to_not_convert="attn1.to_k")
    report = quantize(transformer, config)
    bits = {x.name: x.spec.num_bits for x in report.packed}
    assert bits["transformer_blocks.0.attn1.to_q"] == 8
    assert bits["transformer_blocks.0.attn2.to_q"] == (4, 3)
    assert bits["transformer_blocks.0.attn2.to_k"] == 4
    assert bits["proj_out"] == 8  # named, so it wins over what ModelOpt leaves dense by default
    assert "transformer_blocks.0.attn1.to_k" not in bits
    assert transformer.transformer_blocks[0].attn2.to_q.input_quantizer.is_enabled
    assert not transformer.transformer_blocks[0].attn1.to_q.input_quantizer.is_enabled
    assert report.quant_type == "mixed"
    transformer.save_pretrained(tmp_path)
    assert torch.equal(run(type(transformer).from_pretrained(tmp_path), inputs), run(transformer, inputs))


@pytest.mark.parametrize(
    ("mixed", "message"),
    [
        (
            {"INT8": "attn1", "FP8": "to_q"},
            r"mixed names transformer_blocks.0.attn1.to_q twice: under 'INT8' and under 'FP8'",
        ),
        ({"INT9": "attn1"}, "quant_type='INT9' is not known"),
        ({"INT8": []}, r"mixed\['INT8'\] is empty"),
        ({"INT8": "atn1"}, r"mixed\['INT8'\] holds 'atn1', which matches no layer .*Nearest: attn1"),
    ],
)
def test_wrong_mixtures(transformer, mixed, message):
    with pytest.raises(ValueError, match=message):
        quantize(transformer, make_config("NF4", mixed=mixed))
