import copy

import pytest
import torch
from tests.conftest import ALL_TYPES

from modelopt_nb import SCHEMES, dequantized, make_config, quantize, representable_values, weight_bytes, weight_errors
from modelopt_nb.quantization import plan
from modelopt_nb.upstream import is_packed, read_packed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packs_runs_and_agrees(scheme, transformer, inputs):
    config = make_config(scheme)
    with torch.no_grad():
        dense = transformer(**inputs).sample
    expected, _ = plan(transformer, config)
    before = weight_bytes(transformer)
    report = quantize(transformer, config)
    with torch.no_grad():
        packed = transformer(**inputs).sample
    assert 0 < (packed - dense).norm() / dense.norm() < 0.1
    # what it takes is what the arithmetic says, layer by layer, and what the model really holds
    assert [x.after for x in report.layers] == [x.after for x in expected]
    assert report.before == before
    assert report.after == weight_bytes(transformer)
    assert report.after.total < report.before.total
    saved = sum(x.before - x.after for x in report.layers)
    assert report.before.total - report.after.total == saved
    assert report.packed_of_bf16 <= (0.57 if config.quant_type in ("FP8", "INT8") else 0.32)


def test_entries_that_mean_nothing_here_are_left_out(transformer):
    config = make_config("FP8")
    enabling = {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": (4, 3)}}
    given = [*config.modelopt_config["quant_cfg"], enabling]
    config.modelopt_config["quant_cfg"] = given
    _, entries = plan(transformer, config)
    names = [entry["quantizer_name"] for entry in entries]
    assert "*lm_head*" in [entry["quantizer_name"] for entry in given] and "*lm_head*" not in names
    assert enabling in entries and len(names) < len(given)


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_default_schemes_are_small(quant_type, transformer):
    report = quantize(transformer, make_config(quant_type))
    assert report.packed_of_bf16 <= (0.53 if quant_type in ("FP8", "INT8") else 0.32)


def classes(model) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


@pytest.mark.parametrize("quant_type", [*ALL_TYPES, "INT8_INT8"])
def test_packed_and_dequantized_once_are_bit_identical(quant_type, transformer, inputs):
    plain = classes(transformer)
    quantize(transformer, make_config(quant_type), lambda model: model(**inputs))
    before, quantized = weight_bytes(transformer), classes(transformer)
    with torch.no_grad():
        packed = transformer(**inputs).sample
        with dequantized(transformer) as dense:
            assert not any(is_packed(m) for m in dense.modules())
            # ModelOpt's classes cost time at every call, also where they quantize nothing
            changed = {name for name, cls in plain.items() if classes(dense)[name] is not cls}
            rounding = {
                n for n, m in dense.named_modules() if hasattr(m, "input_quantizer") and m.input_quantizer.is_enabled
            }
            assert changed == rounding and bool(rounding) == (quant_type == "INT8_INT8")
            assert torch.equal(dense(**inputs).sample, packed)
        assert torch.equal(transformer(**inputs).sample, packed)
    assert weight_bytes(transformer) == before and classes(transformer) == quantized


@pytest.mark.parametrize("quant_type", ["FP8_INT8", "INT8_FP8", "INT8_INT8", "INT4_INT8"])
def test_activations_are_calibrated_by_the_loop(quant_type, transformer, inputs):
    calls = []
    config = make_config(quant_type, forward_loop=lambda model: calls.append(model(**inputs)))
    with torch.no_grad():
        dense = transformer(**inputs).sample
        quantize(transformer, config)
        error = (transformer(**inputs).sample - dense).norm() / dense.norm()
    assert len(calls) == 1
    assert 0 < error < 0.15
    assert transformer.get_submodule("transformer_blocks.0.attn1.to_q").input_quantizer.amax is not None


def test_reasons_for_staying_dense(transformer):
    report = quantize(transformer, make_config("INT4", modules_to_not_convert="attn2.to_k"))
    reasons = report.frame["reason"]
    assert reasons["transformer_blocks.0.attn2.to_k"] == "modules_to_not_convert: attn2.to_k"
    assert "kernel's width, 1" in reasons["transformer_blocks.0.ff.conv_inverted"]
    assert "*proj_out.*" in reasons["proj_out"]
    assert reasons["transformer_blocks.0.attn1.to_q"] == ""
    assert "attn2.to_k" in str(report)


def test_convolutions_pack_in_eight_bits_unless_disabled(transformer):
    assert plan(transformer, make_config("INT8"))[0][0].packed
    layers, _ = plan(transformer, make_config("INT8", disable_conv_quantization=True))
    dense = [x for x in layers if x.reason == "disable_conv_quantization"]
    assert {x.kind for x in dense} == {"Conv2d"}
    assert len(dense) == 4


@pytest.mark.parametrize(
    "convolution",
    [
        torch.nn.Conv1d(8, 8, 3),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.Conv3d(8, 8, 3),
        torch.nn.ConvTranspose1d(8, 8, 3),
        torch.nn.ConvTranspose2d(8, 8, 3),
        torch.nn.ConvTranspose3d(8, 8, 3),
    ],
    ids=lambda c: type(c).__name__,
)
def test_every_convolution_class(convolution):
    model = torch.nn.Sequential(torch.nn.Linear(128, 128), convolution)
    layers, _ = plan(model, make_config("FP8", disable_conv_quantization=True))
    assert [x.packed for x in layers] == [True, False]
    x = torch.randn(2, 8, *[6] * (convolution.weight.dim() - 2))
    dense = convolution(x)
    report = quantize(model, make_config("FP8"))
    assert all(x.packed for x in report.layers)
    assert (model[1](x) - dense).norm() / dense.norm() < 0.05


def test_a_layer_that_would_grow_stays_dense():
    model = torch.nn.Sequential(torch.nn.Linear(64, 2), torch.nn.Linear(64, 256))
    config = make_config(
        "NF4", channel_quantize=-1, block_quantize=64, scale_channel_quantize=-1, scale_block_quantize=1024
    )
    report = quantize(model, config)
    assert [x.packed for x in report.layers] == [False, True]
    assert "would not shrink" in report.layers[0].reason


def test_a_layer_that_blocks_do_not_divide_stays_dense():
    model = torch.nn.Sequential(torch.nn.Linear(100, 8), torch.nn.Linear(128, 8))
    report = quantize(model, make_config("INT4"))
    assert "100, is not a multiple of the block size 128" in report.layers[0].reason
    assert report.layers[1].packed


def test_bad_input_leaves_the_model_alone(transformer):
    before = {name: p.clone() for name, p in transformer.named_parameters()}
    with pytest.raises(ValueError, match="'attn9'.*matches no layer.*Nearest: attn"):
        quantize(transformer, make_config("FP8", modules_to_not_convert="attn9"))
    with pytest.raises(ValueError, match="would pack no layer"):
        quantize(transformer, make_config("FP8", modules_to_not_convert=["transformer_blocks", "*"]))
    with pytest.raises(TypeError, match="config='FP8'"):
        quantize(transformer, "FP8")
    assert all(torch.equal(before[name], p) for name, p in transformer.named_parameters())


def test_nothing_to_quantize():
    with pytest.raises(ValueError, match="LayerNorm has nothing to quantize"):
        quantize(torch.nn.LayerNorm(4), make_config("FP8"))


def test_not_twice(transformer):
    quantize(transformer, make_config("FP8"))
    with pytest.raises(ValueError, match="quantized already"):
        quantize(transformer, make_config("INT8"))


def test_modelopt_is_quiet(transformer, capsys):
    quantize(transformer, make_config("FP8"))
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_packs_and_runs_on_cuda(quant_type, transformer, inputs):
    transformer.cuda()
    inputs = {name: x.cuda() for name, x in inputs.items()}
    with torch.no_grad():
        dense = transformer(**inputs).sample
        quantize(transformer, make_config(quant_type))
        assert (transformer(**inputs).sample - dense).norm() / dense.norm() < 0.1


def test_weight_errors_are_those_of_the_packed_model(transformer):
    config = make_config("INT4")
    dense = {
        name: m.weight.detach().clone()
        for name, m in transformer.named_modules()
        if getattr(m, "weight", None) is not None
    }
    errors = weight_errors(transformer, config)
    assert torch.equal(dense["proj_out"], transformer.proj_out.weight)
    report = quantize(transformer, config)
    assert list(errors.index) == [x.name for x in report.packed]
    for name, error in errors.items():
        change = read_packed(transformer.get_submodule(name)) - dense[name]
        assert error == pytest.approx((change.norm() / dense[name].norm()).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("quant_type", "count"), [("FP8", 253), ("INT8", 255), ("INT4", 15), ("NF4", 16), ("NVFP4", 15)]
)
def test_representable_values(quant_type, count):
    values = representable_values(quant_type)
    assert len(values) == count
    assert values[0] == -1
    assert values[-1] == 1
    assert 0 in values


def test_bytes_measured_against_the_arithmetic(transformer):
    for scheme in SCHEMES:
        bytes_ = quantize(copy.deepcopy(transformer), make_config(scheme)).bytes
        assert bytes_["measured/expected"] == pytest.approx(1, abs=0.02)
        assert bytes_["layers packed"] in (13, 17)


def test_activations_are_quantized_where_weights_are_packed_and_nowhere_else(transformer, inputs):
    from modelopt.torch.quantization.nn import TensorQuantizer

    config = make_config("INT8", weight_only=False, modules_to_not_convert="attn1")
    report = quantize(transformer, config, lambda model: model(**inputs))
    enabled = {n for n, m in transformer.named_modules() if isinstance(m, TensorQuantizer) and m.is_enabled}
    assert enabled == {f"{x.name}.{side}_quantizer" for x in report.packed for side in ("input", "weight")}
