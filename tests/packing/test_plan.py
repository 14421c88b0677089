import time

import accelerate
import pytest
import torch
from diffusers import FluxTransformer2DModel, NVIDIAModelOptConfig

from modelopt_nb import (
    SCHEMES,
    ModelCall,
    describe_layers,
    enable,
    fit_budget,
    make_config,
    plan,
    quantize,
    weight_bytes,
)
from tests.architectures import build, run
from tests.conftest import ALL_TYPES


def reasons(model, config) -> dict[str, str]:
    return {layer.name: layer.reason for layer in plan(model, config).layers}


@pytest.mark.parametrize("scheme", [*SCHEMES, "INT8_FP8"])
@pytest.mark.parametrize("name", ["Sana", "UNet2DCondition"])
def test_a_meta_model_has_the_plan_of_the_real_one(name, scheme):
    model = build(name)[0]
    with accelerate.init_empty_weights():
        meta = type(model).from_config(model.config)
    assert next(meta.parameters()).is_meta
    config = make_config(scheme, pointwise_as_linear=True, modules_to_not_convert="attn2", per_layer={"NF4": "to_q"})
    planned = plan(meta, config)
    assert planned == plan(model, config) == plan(describe_layers(meta), config)
    assert 0 < len(planned.layouts) < len(planned.layers)


def test_a_plan_of_flux_takes_less_than_a_second():
    with accelerate.init_empty_weights():  # FLUX.1-dev, as published
        model = FluxTransformer2DModel(
            in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128, num_attention_heads=24,
            joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True,
        )  # fmt: skip
    start = time.perf_counter()
    planned = plan(describe_layers(model), make_config("NVFP4"))
    duration = time.perf_counter() - start
    assert duration < 1
    assert all(parameter.is_meta for parameter in model.parameters())  # no weight to read
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_901_408_320
    assert len(planned.layers) == 504
    packed = [layer for layer in planned.layers if layer.packed]
    assert len(packed) == 465  # ModelOpt leaves *proj_out.* dense by default, and so 15 % of the weights of FLUX
    assert sum(x.packed_bytes for x in packed) / sum(x.dense_bytes for x in packed) == pytest.approx(4.5 / 32, rel=1e-4)
    assert len(planned.entries) < 20  # ModelOpt walks through the model for each


def test_entries_that_match_nothing_are_left_out(transformer):
    config = make_config("FP8")
    enabling = {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": (4, 3)}}
    given = [*config.modelopt_config["quant_cfg"], enabling]
    config.modelopt_config["quant_cfg"] = given
    entries = plan(transformer, config).entries
    names = [entry["quantizer_name"] for entry in entries]
    assert "*lm_head*" in [entry["quantizer_name"] for entry in given] and "*lm_head*" not in names
    assert enabling in entries and len(names) < len(given)


def test_reasons_for_staying_dense(transformer):
    dense = ["attn2.to_k", "patch_embed.proj.weight"]
    found = reasons(transformer, make_config("INT4", dense, pointwise_as_linear=False))
    assert found["transformer_blocks.0.attn2.to_k"] == "modules_to_not_convert: attn2.to_k"
    assert found["patch_embed.proj"] == "modules_to_not_convert: patch_embed.proj.weight"
    assert "kernel's width, 1" in found["transformer_blocks.0.ff.conv_inverted"]
    assert "*proj_out.*" in found["proj_out"]
    assert found["transformer_blocks.0.attn1.to_q"] == ""


def test_what_the_models_class_keeps_in_float32_stays_dense():
    model = build("Wan")[0]
    kept = {name: why for name, why in reasons(model, make_config("FP8")).items() if "keeps it in float32" in why}
    assert "condition_embedder.time_embedder.linear_1" in kept
    assert kept["condition_embedder.time_embedder.linear_1"].startswith("time_embedder: ")


def test_convolutions_are_packed_in_eight_bits_unless_disabled(transformer):
    assert plan(transformer, make_config("INT8")).layers[0].packed
    layers = plan(transformer, make_config("INT8", disable_conv_quantization=True)).layers
    dense = [layer for layer in layers if layer.reason == "disable_conv_quantization"]
    assert len(dense) == 4 and {layer.kind for layer in dense} == {"Conv2d"}


@pytest.mark.parametrize(
    "name", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
)
def test_every_convolution_class(name):
    convolution = getattr(torch.nn, name)(8, 8, 3)
    model = torch.nn.Sequential(torch.nn.Linear(128, 128), convolution)
    layers = plan(model, make_config("FP8", disable_conv_quantization=True)).layers
    assert [(layer.kind, layer.packed) for layer in layers] == [("Linear", True), (name, False)]
    x = torch.randn(2, 8, *[6] * (convolution.weight.dim() - 2))
    dense = convolution(x)
    assert all(layer.packed for layer in quantize(model, make_config("FP8")).layers)
    assert 0 < (model[1](x) - dense).norm() / dense.norm() < 0.05


def test_small_and_indivisible_layers_stay_dense():
    model = torch.nn.Sequential(torch.nn.Linear(64, 2), torch.nn.Linear(64, 256))
    sizes = {"channel_quantize": -1, "block_quantize": 64, "scale_channel_quantize": -1, "scale_block_quantize": 1024}
    report = quantize(model, make_config("NF4", **sizes))
    assert [layer.packed for layer in report.layers] == [False, True]
    assert "would not shrink" in report.layers[0].reason
    model = torch.nn.Sequential(torch.nn.Linear(100, 8), torch.nn.Linear(128, 8))
    report = quantize(model, make_config("INT4"))
    assert "100, is not a multiple of the block size 128" in report.layers[0].reason
    assert report.layers[1].packed


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_a_plan_reads_and_changes_nothing(quant_type, transformer):
    for parameter in transformer.parameters():
        parameter.data = parameter.data.clone().fill_(float("nan"))
    state, classes = transformer.state_dict(), [type(m) for m in transformer.modules()]
    plan(transformer, make_config(quant_type))
    assert all(value is transformer.get_parameter(name).data or value.isnan().all() for name, value in state.items())
    assert [type(m) for m in transformer.modules()] == classes


@pytest.mark.parametrize(
    ("model", "config", "error", "message"),
    [
        (None, "FP8", TypeError, "config='FP8' is not a ModelOpt configuration"),
        (None, make_config("FP8", modules_to_not_convert="attn9"), ValueError, "'attn9'.*matches no layer.*Nearest: attn"),
        (None, make_config("FP8", modules_to_not_convert=["transformer_blocks", "*"]), ValueError, "would pack no layer"),
        (None, make_config("INT8", channel_quantize=-1, block_quantize=999), ValueError, "block_quantize=999 would pack no"),
        (None, make_config("NF4", per_layer={"INT8": "atn1"}), ValueError,
         r"per_layer\['INT8'\] holds 'atn1', which matches no layer .*Nearest: attn1"),
        (None, make_config("NF4", per_layer={"INT8": "attn1", "FP8": "to_q"}), ValueError,
         r"per_layer names transformer_blocks.0.attn1.to_q twice: under 'INT8' and under 'FP8'"),
        (torch.nn.LayerNorm(4), make_config("FP8"), ValueError, "LayerNorm has nothing to quantize"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_work(transformer, model, config, error, message):
    model = model or transformer
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(error, match=message):
        plan(model, config)
    with pytest.raises(error, match=message):
        quantize(model, config)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_packed_model_is_not_quantized_again(transformer):
    quantize(transformer, make_config("FP8"))
    with pytest.raises(ValueError, match=r"quantized already \(.* is packed\). Load a dense one"):
        quantize(transformer, make_config("INT8"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_is_said_only_of_float32_weights(dtype):
    model = build("T5")[0].to(dtype)
    said = reasons(model, make_config("FP8"))["encoder.block.0.layer.1.DenseReluDense.wo"]
    expected = {torch.float32: "keeps it in float32", torch.float16: "asks for float32"}
    assert said == (f"wo: the model's class {expected[dtype]}" if dtype in expected else "")  # packed in bfloat16


class Shared(torch.nn.Module):
    """Two linear layers with one weight, an embedding with the weight of a third, and a layer of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.own, self.head = (torch.nn.Linear(128, 128, bias=False) for _ in range(4))
        self.embedding = torch.nn.Embedding(128, 128)
        self.b.weight, self.head.weight = self.a.weight, self.embedding.weight

    def forward(self, x):
        return self.b(self.own(self.a(x)))


def test_a_shared_weight_stays_dense_and_counts_once():
    model = Shared()
    before, total = weight_bytes(model), 4 * 128 * 128
    report = quantize(model, make_config("INT8"))
    assert {x.name: (x.reason, x.dense_bytes) for x in report.layers} == {
        "a": ("it shares its weight with b", total),
        "b": ("it shares its weight with a", 0),
        "own": ("", total),
        "head": ("it shares its weight with embedding", total),
    }
    assert report.before == before and before.total == 3 * total
    assert report.after == weight_bytes(model)
    assert model.a.weight is model.b.weight


def test_a_budget_holds_where_weights_are_shared():
    model, x = Shared(), torch.randn(4, 128)
    calls = [ModelCall(0, (x,), {})]
    budget = fit_budget(model, calls, bits_per_weight=25, candidates=("dense", "INT8 channel"), progress=False)
    quantize(model, budget.config)
    assert weight_bytes(model).total == budget.bytes <= 25 * weight_bytes(model).weights / 8
    with pytest.raises(ValueError, match=r"bits_per_weight=12 cannot be met .*Allowed: 0\.14 MiB"):
        fit_budget(Shared(), calls, bits_per_weight=12, candidates=("dense", "INT8 channel"), progress=False)


def test_a_pattern_that_matches_no_layer_is_an_error_or_with_diffusers_class_a_warning(tmp_path):
    enable()
    for name in ("Sana", "T5"):
        model, inputs = build(name)
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="'atn1'.*matches no layer"):
            plan(model, make_config("FP8", modules_to_not_convert=["atn1"]))
        config = NVIDIAModelOptConfig("FP8", modules_to_not_convert=["atn1"])
        with pytest.warns(UserWarning, match=f"'atn1', which matches no layer of {type(model).__name__}. Nearest: "):
            quantize(model, config)
        with pytest.warns(UserWarning, match="'atn1'"):
            loaded = type(model).from_pretrained(tmp_path / name, quantization_config=config)
        assert torch.equal(run(loaded, inputs), run(model, inputs))
        loaded.save_pretrained(tmp_path / f"{name} packed")
        with pytest.warns(UserWarning, match="'atn1'"):
            again = type(model).from_pretrained(tmp_path / f"{name} packed")
        assert torch.equal(run(again, inputs), run(model, inputs))
