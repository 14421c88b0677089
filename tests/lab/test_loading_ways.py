"""Ways in which people load and use a model, by families: each works, or is refused with a way out."""

import copy
import subprocess
import sys

import accelerate
import peft
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading
from safetensors.torch import save_file

from modelopt_nb import enable, load_pipeline, make_config, quantize
from tests.architectures import build, run
from tests.lab.small_pipelines import stable_diffusion

FAMILIES = ["SD3", "FLUX", "UNet2DCondition", "Wan"]
INT8 = make_config("INT8 channel")
LORA = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k"], init_lora_weights=False)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def enabled():
    enable()


def packed(family):
    """Return a packed model, the inputs of a call, and its output."""
    model, inputs = build(family)
    quantize(model, INT8)
    return model, inputs, run(model, inputs)


def adapter(family, folder, seed=0):
    """Save a LoRA adapter of a dense model; return how to load it."""
    model, _ = build(family)
    torch.manual_seed(seed)
    model.add_adapter(LORA)
    model.save_lora_adapter(folder / f"lora{seed}")
    where = {"pretrained_model_name_or_path_or_dict": folder / f"lora{seed}", "prefix": None}
    return where | {"weight_name": "pytorch_lora_weights.safetensors"}


def load_plain(family, folder):
    model, _ = build(family)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, quantization_config=INT8)


def load_packed(family, folder):
    model, _, _ = packed(family)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def load_dense_variant(family, folder):
    model, _ = build(family)
    model.save_pretrained(folder, variant="fp16")
    return type(model).from_pretrained(folder, variant="fp16", quantization_config=INT8)


def load_packed_variant(family, folder):
    model, _, _ = packed(family)
    model.save_pretrained(folder, variant="fp16")
    return type(model).from_pretrained(folder, variant="fp16")


def load_single_file(family, folder):
    model, _ = build(family)
    model.save_config(folder)
    save_file(model.state_dict(), folder / "all.safetensors")
    return type(model).from_single_file(folder / "all.safetensors", config=str(folder), quantization_config=INT8)


def load_on_a_map(family, folder):
    model, _ = build(family)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, device_map={"": "cpu"}, quantization_config=INT8)


def load_packed_on_a_map(family, folder):
    model, _, _ = packed(family)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, device_map={"": "cpu"})


def fuse_before(family, folder):
    model, _ = build(family)
    model.load_lora_adapter(**adapter(family, folder))
    model.fuse_lora()
    model.unload_lora()
    quantize(model, INT8)
    return model


LOADS = {
    "plain folder": load_plain,
    "packed folder": load_packed,
    "variant": load_dense_variant,
    "packed variant": load_packed_variant,
    "single file": load_single_file,
    "device_map": load_on_a_map,
    "packed device_map": load_packed_on_a_map,
}


@every_family
@pytest.mark.parametrize("way", LOADS)
def test_ways_to_load(way, family, tmp_path):
    _, inputs, expected = packed(family)
    model = LOADS[way](family, tmp_path)
    assert model.hf_quantizer.report.packed and torch.equal(run(model, inputs), expected)


def offload_groups(model):
    apply_group_offloading(model, torch.device("cpu"), torch.device("cpu"), "leaf_level")


USES = {
    "group offload": offload_groups,
    "sequential offload": lambda model: accelerate.cpu_offload(model, execution_device="cpu"),
}


@every_family
@pytest.mark.parametrize("way", USES)
def test_ways_to_run(way, family):
    model, inputs, expected = packed(family)
    USES[way](model)
    assert torch.equal(run(model, inputs), expected)


@pytest.mark.parametrize("family", ["UNet2DCondition", "Wan"])
def test_compiled_blocks(family):
    model, inputs, expected = packed(family)
    model.compile_repeated_blocks(backend="eager")
    assert torch.equal(run(model, inputs), expected)


@every_family
def test_the_first_block_cache(family):
    model, inputs = build(family)
    if family in ("SD3", "UNet2DCondition"):
        assert not hasattr(model, "enable_cache")  # Diffusers has no caches for them
        return
    model = type(model).from_config(dict(model.config) | {"num_layers": 2}).eval()
    quantize(model, INT8)
    expected = run(model, inputs)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    with model.cache_context("cond"):
        assert torch.equal(run(model, inputs), expected)
        cached = run(model, inputs)
    torch.testing.assert_close(cached, expected)


@every_family
def test_an_adapter_is_loaded_saved_and_hot_swapped(family, tmp_path):
    model, inputs, expected = packed(family)
    model.load_lora_adapter(**adapter(family, tmp_path), adapter_name="one")
    first = run(model, inputs)
    assert not torch.equal(first, expected)
    model.save_lora_adapter(tmp_path / "again", adapter_name="one")
    other, _, _ = packed(family)
    other.load_lora_adapter(tmp_path / "again", prefix=None, weight_name="pytorch_lora_weights.safetensors")
    assert torch.equal(run(other, inputs), first)
    model.load_lora_adapter(**adapter(family, tmp_path, 1), adapter_name="one", hotswap=True)
    assert not torch.equal(run(model, inputs), first)
    with pytest.raises(ValueError, match=r"has an adapter in .*save_lora_adapter\(\)"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.unload_lora()
    assert torch.equal(run(model, inputs), expected)
    model.save_pretrained(tmp_path / "model")


@every_family
def test_an_adapter_is_fused_before_quantizing(family, tmp_path):
    model = fuse_before(family, tmp_path)
    inputs = build(family)[1]
    assert not torch.equal(run(model, inputs), packed(family)[2])
    model.save_pretrained(tmp_path / "packed")
    assert torch.equal(run(type(model).from_pretrained(tmp_path / "packed"), inputs), run(model, inputs))


@every_family
def test_adapters_that_are_refused(family, tmp_path):
    dense, _ = build(family)
    dense.load_lora_adapter(**adapter(family, tmp_path))
    with pytest.raises(ValueError, match="has an adapter in .*Load adapters after quantizing, or fuse and unload them"):
        quantize(dense, INT8)
    model, inputs, expected = packed(family)
    with pytest.raises(ValueError, match=r"fuse_lora\(\) cannot change packed weights"):
        model.fuse_lora()
    assert torch.equal(run(model, inputs), expected)


@every_family
def test_an_adapter_is_trained_on_packed_weights(family):
    """QLoRA: gradients reach the adapter, and the packed weights do not change."""
    model, inputs, expected = packed(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.add_adapter(copy.copy(LORA))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    model(**inputs)[0].square().mean().backward()
    assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    optimizer.step()
    model.delete_adapters("default")
    assert torch.equal(run(model, inputs), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name in before)


def test_single_files_that_are_refused(tmp_path):
    model, _, _ = packed("SD3")
    model.save_pretrained(tmp_path)
    options = {"config": str(tmp_path), "quantization_config": INT8}
    with pytest.raises(ValueError, match=r"the file is of a packed model.*Allowed: from_pretrained of its folder"):
        type(model).from_single_file(next(tmp_path.glob("*.safetensors")), **options)
    save_file(build("SD3")[0].state_dict(), tmp_path / "dense.safetensors")
    with pytest.raises(ValueError, match="`low_cpu_mem_usage` cannot be False when using quantization"):
        type(model).from_single_file(tmp_path / "dense.safetensors", low_cpu_mem_usage=False, **options)


def test_a_packed_pipeline_loads_in_a_fresh_process(tmp_path):
    pipeline = stable_diffusion()
    quantize(pipeline.unet, INT8)
    pipeline.save_pretrained(tmp_path)
    x = torch.ones(1, 4, 8, 8), 1, torch.ones(1, 4, 32)
    code = "import sys, torch; from modelopt_nb import load_pipeline; p = load_pipeline(sys.argv[1], device='cpu');"
    code += "x = torch.ones(1, 4, 8, 8), 1, torch.ones(1, 4, 32); torch.save(p.unet(*x)[0].detach(), sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, tmp_path, tmp_path / "out.pt"], check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt"), pipeline.unet(*x)[0])
    assert load_pipeline(tmp_path, device="cpu").unet.hf_quantizer.report.packed
