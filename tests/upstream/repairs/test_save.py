"""Saving what was packed: every kind of configuration, restored bit for bit."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, NVIDIAModelOptConfig
from safetensors.torch import load_file, save_file

from modelopt_nb import ACTIVATION_SCALES, SCHEMES, enable, make_config, quantize, weight_bytes
from tests.architectures import run

MANIFEST = "modelopt_nb.json"
MODELOPT_CONFIG = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*attn1*weight_quantizer", "enable": True, "cfg": {"num_bits": (4, 3)}},
        {"quantizer_name": "*attn2*weight_quantizer", "enable": True, "cfg": {"num_bits": 4, "block_sizes": {-1: 32}}},
    ],
    "algorithm": {"method": "max"},
}


@pytest.fixture(autouse=True)
def enabled():
    enable()


def assert_restored(folder, model, inputs) -> torch.nn.Module:
    again = AutoModel.from_pretrained(str(folder))
    assert weight_bytes(again) == weight_bytes(model)
    assert torch.equal(run(again, inputs), run(model, inputs))
    return again


@pytest.mark.parametrize(
    ("quant_type", "options"),
    [
        ("INT8", {"algorithm": "smoothquant", "weight_only": False}),
        ("INT4", {"algorithm": "awq_lite"}),
        ("INT4", {"algorithm": "svdquant"}),
        ("INT8", {"algorithm": "mse"}),
        *(("INT8_FP8", {"activation_scale": scale, "pointwise_as_linear": True}) for scale in ACTIVATION_SCALES),
    ],
)
def test_what_calibration_found_is_saved(quant_type, options, transformer, inputs, tmp_path):
    report = quantize(transformer, make_config(quant_type, **options), lambda model: model(**inputs))
    transformer.save_pretrained(tmp_path)
    again = assert_restored(tmp_path, transformer, inputs)
    assert weight_bytes(again) == report.after
    assert again.hf_quantizer.report.precision == report.precision
    if "activation_scale" in options:
        assert report.precision == f"W8A8 {options['activation_scale']}"


def test_modelopts_own_configuration(transformer, inputs, tmp_path):
    report = quantize(transformer, NVIDIAModelOptConfig("FP8", modelopt_config=MODELOPT_CONFIG))
    assert {layer.layout.type.name for layer in report.packed} == {"FP8", "INT4"}
    transformer.save_pretrained(tmp_path)
    assert_restored(tmp_path, transformer, inputs)


def test_a_dense_model_is_saved_as_upstream_does(transformer, inputs, tmp_path):
    transformer.save_pretrained(tmp_path)
    assert not (tmp_path / MANIFEST).exists()
    assert_restored(tmp_path, transformer, inputs)


def test_no_pickle_and_other_files_stay(transformer, tmp_path):
    quantize(transformer, make_config("NVFP4"))
    folder = tmp_path / "packed"
    transformer.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    assert {f.suffix for f in folder.iterdir()} == {".safetensors", ".json"}
    (folder / "notes").mkdir()
    for name in ("README.md", "notes/a.txt"):
        (folder / name).write_text(f"mine: {name}")
    (folder / "modelopt_state.pth").write_bytes(b"stale")
    transformer.save_pretrained(folder)
    for name in ("README.md", "notes/a.txt"):
        assert (folder / name).read_text() == f"mine: {name}"
    assert not (folder / "modelopt_state.pth").exists()
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["packed"]


def test_in_a_fresh_process(transformer, inputs, tmp_path):
    """All schemes, W8A8, ModelOpt's own configuration, a calibrated algorithm and a pickle, each bit for bit."""
    configs = {scheme: make_config(scheme) for scheme in SCHEMES}
    configs |= {
        "W8A8": make_config("INT8", weight_only=False),
        "modelopt_config": NVIDIAModelOptConfig("FP8", modelopt_config=MODELOPT_CONFIG),
        "calibrated": make_config("INT8", weight_only=False, algorithm="smoothquant"),
    }
    torch.save(inputs, tmp_path / "inputs.pt")
    for name, config in configs.items():
        model = copy.deepcopy(transformer)
        quantize(model, config, lambda m: m(**inputs))
        model.save_pretrained(tmp_path / name)
        torch.save(run(model, inputs), tmp_path / f"{name}.pt")
    quantize(transformer, make_config("INT4", algorithm="svdquant", forward_loop=lambda m: m(**inputs)))
    torch.save((transformer, run(transformer, inputs)), tmp_path / "pickle.pt")
    code = (
        "import sys, torch, modelopt_nb; modelopt_nb.enable()\n"
        "from diffusers import AutoModel\n"
        "folder, names = sys.argv[1], sys.argv[2:]\n"
        "inputs = torch.load(f'{folder}/inputs.pt')\n"
        "for name in names:\n"
        "    model = AutoModel.from_pretrained(f'{folder}/{name}')\n"
        "    with torch.no_grad(): output = model(**inputs).sample\n"
        "    print(name, torch.equal(output, torch.load(f'{folder}/{name}.pt')), sep='=')\n"
        "model, output = torch.load(f'{folder}/pickle.pt', weights_only=False)\n"
        "with torch.no_grad(): print(torch.equal(model(**inputs).sample, output))\n"
    )
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-c", code, str(tmp_path), *configs]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=root).stdout
    assert printed.splitlines() == [*(f"{name}=True" for name in configs), "True"]


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_that_diffusers_and_modelopt_wrote_alone(safe, transformer, inputs, tmp_path):
    """It has no manifest, no dtype, and amax tensors that are not read."""
    quantize(transformer, make_config("INT4"))
    transformer.save_pretrained(tmp_path, safe_serialization=safe)
    (tmp_path / MANIFEST).unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]["packed_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (path,) = (p for p in tmp_path.iterdir() if p.suffix in (".safetensors", ".bin"))
    tensors = load_file(path) if safe else torch.load(path)
    tensors["transformer_blocks.0.attn1.to_q.weight_quantizer._amax"] = torch.ones(1)
    save_file(tensors, path) if safe else torch.save(tensors, path)
    assert_restored(tmp_path, transformer, inputs)
