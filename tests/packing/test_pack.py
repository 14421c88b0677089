import pytest
import torch
from modelopt.torch.quantization.nn import TensorQuantizer

from modelopt_nb import SCHEMES, make_config, plan, quantize, round_weight, weight_bytes
from tests.architectures import run
from tests.conftest import ALL_TYPES


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packs_runs_and_takes_the_planned_bytes(scheme, transformer, inputs):
    config, dense = make_config(scheme), run(transformer, inputs)
    planned, before = plan(transformer, config), weight_bytes(transformer)
    report = quantize(transformer, config)
    assert 0 < (run(transformer, inputs) - dense).norm() / dense.norm() < 0.1
    # measured bytes are the arithmetic's, layer by layer, and those that the model holds
    assert list(report.layers) == planned.layers
    whole = config.quant_type in ("FP8", "INT8") and "block" not in scheme  # convolutions too
    assert len(report.packed) == len(planned.layouts) == (17 if whole else 15)
    assert report.before == before
    assert report.after == weight_bytes(transformer)
    saved = sum(x.dense_bytes - x.packed_bytes for x in report.layers)
    assert report.before.total - report.after.total == saved > 0
    bound = 0.53 if scheme in ("FP8", "INT8") else 0.57 if config.quant_type in ("FP8", "INT8") else 0.32
    assert report.packed_of_bf16 <= bound


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rounded_weight_is_the_packed_one(scheme):
    model = torch.nn.Sequential(torch.nn.Linear(256, 128), torch.nn.Conv2d(4, 4, 3)).half()
    planned = plan(model, make_config(scheme))
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in planned.layouts}
    quantize(model, make_config(scheme))
    for name, layout in planned.layouts.items():
        rounded, layer = round_weight(weights[name], layout.cfg), model.get_submodule(name)
        assert rounded.shape == weights[name].shape and rounded.dtype == torch.float16
        assert torch.equal(rounded, layer.weight_quantizer.dequantize(layer.weight))


@pytest.mark.cuda
@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_packs_and_runs_on_cuda(quant_type, transformer, inputs):
    transformer.cuda()
    inputs = {name: x.cuda() for name, x in inputs.items()}
    dense = run(transformer, inputs)
    quantize(transformer, make_config(quant_type))
    assert (run(transformer, inputs) - dense).norm() / dense.norm() < 0.1


def test_activations_are_quantized_at_packed_layers_and_nowhere_else(transformer, inputs):
    config = make_config("INT8", weight_only=False, modules_to_not_convert="attn1")
    report = quantize(transformer, config, lambda model: model(**inputs))
    enabled = {n for n, m in transformer.named_modules() if isinstance(m, TensorQuantizer) and m.is_enabled}
    assert enabled == {f"{x.name}.{side}_quantizer" for x in report.packed for side in ("input", "weight")}


def test_schemes_per_layer(transformer, inputs, tmp_path):
    per_layer = {"INT8 channel": ["attn1", "proj_out"], "FP8_INT8": "transformer_blocks.0.attn2.to_q"}
    config = make_config("NF4", per_layer=per_layer, modules_to_not_convert="attn1.to_k")
    report = quantize(transformer, config, lambda model: model(**inputs))
    types = {layer.name: layer.layout.type.name for layer in report.packed}
    assert types["transformer_blocks.0.attn1.to_q"] == "INT8"
    assert types["transformer_blocks.0.attn2.to_q"] == "FP8"
    assert types["transformer_blocks.0.attn2.to_k"] == "NF4"
    assert types["proj_out"] == "INT8"  # named, so it wins over ModelOpt's default exclusion
    assert "transformer_blocks.0.attn1.to_k" not in types
    assert transformer.transformer_blocks[0].attn2.to_q.input_quantizer.is_enabled
    assert not transformer.transformer_blocks[0].attn1.to_q.input_quantizer.is_enabled
    assert report.quant_type == "per layer"
    assert report.precision == "W4-8"
    transformer.save_pretrained(tmp_path)
    assert torch.equal(run(type(transformer).from_pretrained(tmp_path), inputs), run(transformer, inputs))


def test_no_amax_next_to_a_packed_weight(transformer):
    quantize(transformer, make_config("INT4"))
    assert not [name for name, _ in transformer.named_buffers() if name.endswith("weight_quantizer._amax")]


def test_the_report_says_what_stayed_dense_and_why(transformer):
    report = quantize(transformer, make_config("INT4", modules_to_not_convert="attn2.to_k"))
    frame = report.frame
    assert list(frame.columns) == ["kind", "shape", "packed", "reason", "bytes before", "bytes after"]
    assert list(frame.index[frame["packed"]]) == [layer.name for layer in report.packed]
    assert frame["bytes before"].sum() - frame["bytes after"].sum() == report.before.total - report.after.total
    text = str(report)
    assert text.startswith(f"INT4 (W4): packed {len(report.packed)} of {len(report.layers)} layers, ")
    assert "\n  dense: transformer_blocks.0.attn2.to_k: modules_to_not_convert: attn2.to_k" in text


def test_modelopt_is_quiet(transformer, capsys):
    quantize(transformer, make_config("FP8"))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
