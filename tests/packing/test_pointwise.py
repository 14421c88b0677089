"""1x1 convolutions packed as linear layers."""

import copy

import pytest
import torch

from modelopt_nb import (
    SCHEMES,
    dequantized,
    enable,
    layer_frame,
    make_config,
    plan,
    quantize,
    round_weight,
    weight_bytes,
)
from tests.architectures import build, run
from tests.conftest import ALL_TYPES


@pytest.fixture(autouse=True)
def enabled():
    enable()


@pytest.mark.parametrize(
    ("name", "scheme"),
    [*(("Sana", scheme) for scheme in SCHEMES), ("UNet2DCondition", "INT8"), ("UNet2DCondition", "NF4")],
)
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
    assert list(frame["packed bytes"]) == [layer.packed_bytes for layer in report.layers]
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
    config = make_config(scheme, pointwise_as_linear=True, algorithm=algorithm, **options)
    quantize(transformer, config, lambda model: model(**inputs))
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


def test_disable_conv_quantization_does_not_mean_them(transformer):
    layers = plan(transformer, make_config("INT8", disable_conv_quantization=True, pointwise_as_linear=True)).layers
    found = {layer.name: layer for layer in layers}
    point = found["transformer_blocks.0.ff.conv_point"]
    assert point.packed and point.as_linear and point.shape == (128, 384)
    assert found["transformer_blocks.0.ff.conv_depth"].reason == "disable_conv_quantization"


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_they_are_rounded_as_linear_weights(quant_type, transformer):
    layer = "transformer_blocks.0.ff.conv_point"
    config = make_config("INT4", pointwise_as_linear=True, per_layer={quant_type: "conv_point"})
    planned = next(x for x in plan(transformer, config).layers if x.name == layer)
    weight = transformer.get_submodule(layer).weight.detach().reshape(planned.shape)
    quantize(transformer, config)
    packed = transformer.get_submodule(layer)
    assert planned.layout.type.name == quant_type
    assert torch.equal(round_weight(weight, planned.layout.cfg), packed.weight_quantizer.dequantize(packed.weight))
