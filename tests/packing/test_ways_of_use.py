"""Use packed models as Diffusers, Transformers, accelerate and PyTorch do."""

import copy
import json

import accelerate
import modelopt.torch.opt as mto
import modelopt.torch.quantization as mtq
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.loaders import FluxLoraLoaderMixin
from modelopt.torch.quantization.backends import fp8_per_tensor_gemm
from torch import nn

from modelopt_nb import ModelOptConfig, dequantized, make_config, plan, quantize, quiet
from modelopt_nb.upstream.layers import has_packed_layers
from tests.architectures import build, run
from tests.conftest import ALL_TYPES

every_type = pytest.mark.parametrize("quant_type", ALL_TYPES)


def packed(name, quant_type, **options):
    model, inputs = build(name)
    quantize(model, make_config(quant_type, **options))
    return model, inputs, run(model, inputs)


@every_type
@pytest.mark.parametrize("buffers", [False, True])
def test_sequential_offload(quant_type, buffers):
    model, inputs, expected = packed("Sana", quant_type)
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=buffers)
    assert all(p.is_meta for p in model.parameters())
    for _ in range(2):
        assert torch.equal(run(model, inputs), expected)
        assert all(p.is_meta for p in model.parameters())
    accelerate.hooks.remove_hook_from_submodules(model)
    assert torch.equal(run(model, inputs), expected) and not any(p.is_meta for p in model.parameters())


@every_type
def test_offload_of_whole_blocks(quant_type):
    model, inputs, expected = packed("Sana", quant_type)
    accelerate.cpu_offload(model, execution_device="cpu", preload_module_classes=["SanaTransformerBlock"])
    assert torch.equal(run(model, inputs), expected) and all(p.is_meta for p in model.parameters())


@every_type
@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offload(quant_type, offload_type):
    model, inputs, expected = packed("Sana", quant_type)
    cpu = torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, offload_type, num_blocks_per_group=1)
    assert torch.equal(run(model, inputs), expected)


@every_type
def test_distributed_data_parallel(quant_type, tmp_path):
    model, x = nn.Sequential(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.Linear(128, 4)), torch.randn(3, 256)
    quantize(model, make_config(quant_type, modules_to_not_convert="2"))
    expected, state = model(x), copy.deepcopy(model[0].state_dict())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        output = nn.parallel.DistributedDataParallel(model)(x)
    finally:
        torch.distributed.destroy_process_group()
    output.sum().backward()
    assert torch.equal(output, expected) and model[2].weight.grad is not None
    assert all(torch.equal(t, state[name]) for name, t in model[0].state_dict().items())


@every_type
def test_a_float16_autoencoder_upcasts(quant_type):
    model, inputs = build("AutoencoderKL")
    quantize(model.half(), make_config(quant_type))
    model.register_to_config(force_upcast=True)
    with dequantized(copy.deepcopy(model)) as dense:
        expected = run(dense.float(), inputs)
    upcast = run(model.to(torch.float32), inputs)
    assert model.dtype == upcast.dtype == torch.float32
    assert (upcast - expected).norm() / expected.norm() < 2e-3  # float16 rounds the dense weights


@pytest.mark.parametrize(("name", "quant_type"), [("SD3", "FP8"), ("FLUX", "NF4"), ("UNet2DCondition", "INT8")])
def test_fusing_projections_is_refused(name, quant_type):
    model, inputs, expected = packed(name, quant_type)
    keys = model.state_dict().keys()
    with pytest.raises(ValueError, match=r"fuse_qkv_projections\(\) cannot join packed weights. Call it on the dense"):
        copy.deepcopy(model).fuse_qkv_projections()
    assert model.state_dict().keys() == keys and torch.equal(run(model, inputs), expected)


def test_fusing_an_adapter_is_refused():
    model, _, _ = packed("FLUX", "INT4")
    with pytest.raises(ValueError, match=r"fuse_lora\(\) cannot change packed weights. Use the adapter without"):
        model.fuse_lora(lora_scale=0.5)


@every_type
def test_adapters(quant_type):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k"], init_lora_weights=False)
    model, inputs, expected = packed("FLUX", quant_type)
    model.add_adapter(config)
    assert not torch.equal(run(model, inputs), expected)
    model.disable_adapters()
    assert torch.equal(run(model, inputs), expected)


@every_type
def test_control_adapters_expand_packed_layers(quant_type):
    model, _, _ = packed("FLUX", quant_type, modules_to_not_convert="proj_out")
    names, layer = ("context_embedder", "transformer_blocks.0.attn.to_q"), model.context_embedder
    shapes = [FluxLoraLoaderMixin._calculate_module_shape(model, base_weight_param_name=f"{n}.weight") for n in names]
    assert shapes == [(128, 128), (128, 128)]
    x = torch.randn(2, 128)
    expected = layer(x)
    lora = {
        "context_embedder.lora_A.weight": torch.zeros(4, 256),
        "context_embedder.lora_B.weight": torch.zeros(128, 4),
    }
    assert FluxLoraLoaderMixin._maybe_expand_transformer_param_shape_or_error_(model, lora_state_dict=lora)
    assert type(model.context_embedder) is nn.Linear
    torch.testing.assert_close(model.context_embedder(torch.cat([x, x], -1)), expected)


def test_a_model_with_an_adapter_is_refused():
    model = nn.Sequential(nn.ModuleDict({"base_layer": nn.Linear(256, 128), "lora_A": nn.Linear(256, 4)}))
    for verb in (plan, quantize):
        with pytest.raises(ValueError, match="model=Sequential has an adapter in 0. Load adapters after quantizing"):
            verb(model, make_config("FP8"))
    assert type(model[0]["base_layer"]) is nn.Linear


@every_type
@pytest.mark.parametrize(
    ("name", "loaded"), [("Sana", False), ("Sana", True), ("T5", False), ("T5", True), ("UNet2DCondition", False)]
)
def test_dequantizing_gives_a_dense_model(quant_type, name, loaded, tmp_path):
    model, inputs = build(name)
    state, classes = model.state_dict(), [type(m) for m in model.modules()]
    quantize(model.bfloat16(), make_config(quant_type, pointwise_as_linear=True))
    if loaded:
        model.save_pretrained(tmp_path / "packed")
        model = type(model).from_pretrained(tmp_path / "packed")
    with dequantized(copy.deepcopy(model)) as twin:
        expected = run(nn.Module.float(twin), inputs)
    model.dequantize()
    assert [type(m) for m in model.modules()] == classes and not has_packed_layers(model)
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in state.items()}
    assert {t.dtype for t in model.state_dict().values()} <= {torch.bfloat16, torch.float32, torch.int64}
    assert not hasattr(model, "hf_quantizer") and not getattr(model, "is_quantized", False)
    torch.testing.assert_close(run(model.float(), inputs), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    again = type(model).from_pretrained(tmp_path / "dense", dtype=torch.float32) if name == "T5" else None
    again = again or type(model).from_pretrained(tmp_path / "dense", torch_dtype=torch.float32)
    assert torch.equal(run(again, inputs), run(model, inputs))


@pytest.mark.parametrize(("quant_type", "algorithm"), [("INT4", "awq_lite"), ("INT4", "svdquant")])
def test_dequantizing_folds_what_calibration_found(quant_type, algorithm, transformer, inputs):
    quantize(transformer, make_config(quant_type, algorithm=algorithm), lambda m: m(**inputs))
    expected = run(transformer, inputs)
    torch.testing.assert_close(run(transformer.dequantize(), inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "W4A8_AWQ_BETA_CFG"])
def test_formats_that_cannot_be_packed_are_refused_by_name(name):
    what = {"F": "blocks along 2 axes", "W": "several quantizers"}[name[0]]
    model = nn.Sequential(nn.Linear(256, 128))
    with pytest.raises(ValueError, match=f"modelopt_config has the weight quantizer .*{what}, which cannot be packed"):
        quantize(model, ModelOptConfig("FP8", modelopt_config=getattr(mtq, name)), lambda m: m(torch.ones(1, 256)))
    assert type(model[0]) is nn.Linear


@every_type
def test_modelopts_own_save_and_restore(quant_type, tmp_path):
    def dense():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(256, 128))

    model, x = dense(), torch.randn(2, 256)
    quantize(model, make_config(quant_type))
    with quiet():
        mto.save(model, tmp_path / "model.pt")
        restored = mto.restore(dense(), tmp_path / "model.pt")
    assert torch.equal(restored(x), model(x))


@pytest.mark.parametrize("scheme", ["FP8", "FP8 channel", "INT8", "INT8 channel"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
def test_modelopts_own_save_and_restore_of_a_convolution(scheme, kind, tmp_path):
    model, x = nn.Sequential(kind(16, 16, 3), nn.Conv2d(16, 16, 1)), torch.randn(1, 16, 8, 8)
    x = x[:, :, 0] if kind is nn.Conv1d else x
    dense = copy.deepcopy(model)
    quantize(model, make_config(scheme, pointwise_as_linear=False))
    with quiet():
        mto.save(model, tmp_path / "model.pt")
        restored = mto.restore(dense, tmp_path / "model.pt")
    assert has_packed_layers(restored[:1])
    assert torch.equal(restored[0](x), model[0](x))


def multiplied(device="cpu"):
    """Return the outputs of a layer by ModelOpt's FP8 product, and by its fallback."""
    layer, x = nn.Sequential(nn.Linear(256, 128)).to(device).bfloat16(), torch.randn(64, 256).to(device).bfloat16()
    layer[0].weight.data *= 0.01
    quantize(layer, make_config("FP8_FP8"), lambda m: m(x))
    expected, given = layer(x), (layer[0], x, layer[0].weight, layer[0].bias)
    return fp8_per_tensor_gemm.Fp8PerTensorLinear.apply(*given), expected


def test_the_fp8_product_multiplies_what_is_packed(monkeypatch):
    def multiply(input, weight, scale_a, scale_b, bias):
        assert weight.dtype == torch.float8_e4m3fn
        rounded = (input / scale_a).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale_a
        return (rounded @ (weight.float() * scale_b).T + bias).to(input.dtype)

    monkeypatch.setattr(fp8_per_tensor_gemm, "_fp8_gemm_impl", multiply)
    output, expected = multiplied()
    assert (output - expected).norm() / expected.norm() < 0.01


@pytest.mark.cuda
def test_the_fp8_product_on_cuda():
    output, expected = multiplied("cuda")
    assert (output - expected).norm() / expected.norm() < 0.01
