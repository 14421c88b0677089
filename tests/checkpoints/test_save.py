import contextlib
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import architectures
import pytest
import torch
from diffusers import AutoModel, NVIDIAModelOptConfig

from modelopt_nb import SCHEMES, enable, make_config, quantize, weight_bytes
from modelopt_nb.saving import MANIFEST, CheckpointError


@pytest.fixture(autouse=True)
def enabled():
    enable()


def run(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).sample


@pytest.fixture
def saved(transformer, tmp_path) -> Path:
    """A folder of three shards."""
    quantize(transformer, make_config("NVFP4"))
    transformer.save_pretrained(tmp_path / "packed", max_shard_size="100KB")
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) >= 3
    return tmp_path / "packed"


@pytest.mark.parametrize("scheme", [*SCHEMES, "FP8_INT8"])
def test_packed_after_loading_is_saved_and_loaded(scheme, transformer, inputs, tmp_path):
    quantize(transformer, make_config(scheme), lambda model: model(**inputs))
    transformer.save_pretrained(tmp_path / "packed")
    again = AutoModel.from_pretrained(str(tmp_path / "packed"))
    assert weight_bytes(again) == weight_bytes(transformer)
    assert torch.equal(run(again, inputs), run(transformer, inputs))
    packed = sum(f.stat().st_size for f in (tmp_path / "packed").glob("*.safetensors"))
    assert packed == pytest.approx(weight_bytes(transformer).total, rel=0.3)  # the header counts in so small a model


def test_no_pickle(saved):
    assert {f.suffix for f in saved.iterdir()} == {".safetensors", ".json"}


def test_other_files_stay(saved, transformer):
    (saved / "README.md").write_text("mine")
    (saved / "notes").mkdir()
    (saved / "notes" / "a.txt").write_text("mine too")
    (saved / "modelopt_state.pth").write_bytes(b"stale")
    transformer.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"
    assert (saved / "notes" / "a.txt").read_text() == "mine too"
    assert not (saved / "modelopt_state.pth").exists()
    assert len(list(saved.glob("*.safetensors"))) == 1
    assert not list(saved.parent.glob(".*"))


def load(folder) -> torch.nn.Module:
    return AutoModel.from_pretrained(str(folder))


def test_a_dense_model_is_saved_as_upstream_does(transformer, tmp_path):
    transformer.save_pretrained(tmp_path)
    assert not (tmp_path / MANIFEST).exists()
    load(tmp_path)


def rewritten(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_missing_shard(saved):
    shard = sorted(saved.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises((CheckpointError, OSError), match=shard.name):
        load(saved)


def test_a_missing_manifest(saved):
    (saved / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="modelopt_nb.json is missing"):
        load(saved)


def test_a_newer_format(saved):
    rewritten(saved / MANIFEST, lambda m: m.update(format=2))
    with pytest.raises(CheckpointError, match=r"format 2. Allowed: up to 1"):
        load(saved)


def test_an_altered_tensor_is_named(saved):
    from modelopt_nb.saving import header

    shard = sorted(saved.glob("*.safetensors"))[0]
    described, start = header(shard)
    name = "patch_embed.proj.weight" if "patch_embed.proj.weight" in described else list(described)[1]
    data = bytearray(shard.read_bytes())
    data[start + described[name]["data_offsets"][0]] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{shard.name} was altered.*in {name}"):
        load(saved)


def test_a_config_that_does_not_say_it_is_packed(saved):
    rewritten(saved / "config.json", lambda c: c.pop("quantization_config"))
    with pytest.raises(CheckpointError, match="config.json was altered"):
        load(saved)


def test_a_model_of_another_class(saved, tmp_path):
    other, _ = architectures.build("PixArt")
    quantize(other, make_config("NVFP4"))
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", saved)
    with pytest.raises(CheckpointError):
        load(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("proj_out.bias"), "proj_out.bias is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more is not of this model"),
        (lambda t: t.update({"proj_out.bias": torch.zeros(3)}), r"proj_out.bias has shape \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit_without_a_manifest(transformer, tmp_path, change, said):
    from safetensors.torch import load_file, save_file

    quantize(transformer, make_config("INT8"))
    transformer.save_pretrained(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path)


def test_a_flipped_byte_or_a_cut_anywhere_is_refused(saved, inputs):
    expected = run(load(saved), inputs)
    files, dice = sorted(saved.iterdir()), random.Random(0)
    sizes = [f.stat().st_size for f in files]
    refused = 0
    for i in range(100):
        file = dice.choices(files, sizes)[0] if i % 2 else dice.choice(files)
        good = file.read_bytes()
        at = dice.randrange(len(good))
        bad = good[:at] if i % 4 == 3 else good[:at] + bytes([good[at] ^ (1 << dice.randrange(8))]) + good[at + 1 :]
        file.write_bytes(bad)
        try:
            model = load(saved)
        except Exception:  # whatever the damage looks like to whoever reads it first
            refused += 1
        else:
            assert torch.equal(run(model, inputs), expected), f"{file.name} at {at}"
        file.write_bytes(good)
    assert refused >= 95
    assert torch.equal(run(load(saved), inputs), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to kill 50 processes in seconds")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_killed_while_saving(transformer, inputs, tmp_path):
    """Two models save into one folder in turns; the process is killed at a random moment, 50 times."""
    other = copy.deepcopy(transformer)
    for model, quant_type in ((transformer, "FP8"), (other, "NF4")):
        quantize(model, make_config(quant_type))
    outputs = [run(model, inputs) for model in (transformer, other)]
    folder, dice = tmp_path / "packed", random.Random(0)
    transformer.save_pretrained(folder)
    start = time.perf_counter()
    other.save_pretrained(folder)
    duration = time.perf_counter() - start
    seen = set()
    for i in range(50):
        child = os.fork()
        if child == 0:
            for model in ((transformer, other) if i % 2 else (other, transformer)) * 100:
                model.save_pretrained(folder, max_shard_size="100KB")
            os._exit(0)
        time.sleep(dice.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = run(load(folder), inputs)
        right = [torch.equal(loaded, output) for output in outputs]
        assert any(right)
        seen.add(right.index(True))
        for left in tmp_path.glob(".packed.*"):
            with contextlib.suppress(ValueError, OSError):  # half written, and refused
                model = load(left)
                assert any(torch.equal(run(model, inputs), output) for output in outputs)
            shutil.rmtree(left)
    assert seen == {0, 1}


def test_device_map(saved, inputs, transformer):
    loaded = AutoModel.from_pretrained(str(saved), device_map={"": "cpu"})
    assert torch.equal(run(loaded, inputs), run(transformer, inputs))
    with pytest.raises(ValueError, match="device_map=.*offloaded to disk"):
        AutoModel.from_pretrained(str(saved), device_map={"": "disk"}, offload_folder=str(saved))


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_a_hub_id_works_as_a_folder_does(saved, inputs, transformer, tmp_path):
    """From the hub's cache, as a download leaves it: there is no network here."""
    repo, commit = tmp_path / "hub" / "models--someone--packed", "0123456789" * 4
    shutil.copytree(saved, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    hub = {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}
    loaded = AutoModel.from_pretrained("someone/packed", **hub)
    assert torch.equal(run(loaded, inputs), run(transformer, inputs))
    shard = sorted((repo / "snapshots" / commit).glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=shard.name):
        AutoModel.from_pretrained("someone/packed", **hub)


MIXED = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*attn1*weight_quantizer", "enable": True, "cfg": {"num_bits": (4, 3)}},
        {"quantizer_name": "*attn2*weight_quantizer", "enable": True, "cfg": {"num_bits": 4, "block_sizes": {-1: 32}}},
    ],
    "algorithm": {"method": "max"},
}


def test_in_a_fresh_process(transformer, inputs, tmp_path):
    """All schemes, W8A8, a mixed configuration and a calibrated algorithm, each bit for bit."""
    configs = {scheme: make_config(scheme) for scheme in SCHEMES}
    configs |= {
        "W8A8": make_config("INT8", weight_only=False),
        "mixed": NVIDIAModelOptConfig("FP8", modelopt_config=MIXED),
    }
    configs["calibrated"] = make_config("INT8", weight_only=False, algorithm="smoothquant")
    torch.save(inputs, tmp_path / "inputs.pt")
    for name, config in configs.items():
        model = copy.deepcopy(transformer)
        quantize(model, config, lambda m: m(**inputs))
        model.save_pretrained(tmp_path / name)
        torch.save(run(model, inputs), tmp_path / f"{name}.pt")
    code = (
        "import sys, torch, modelopt_nb; modelopt_nb.enable()\n"
        "from diffusers import AutoModel\n"
        "folder, names = sys.argv[1], sys.argv[2:]\n"
        "inputs = torch.load(f'{folder}/inputs.pt')\n"
        "for name in names:\n"
        "    model = AutoModel.from_pretrained(f'{folder}/{name}')\n"
        "    with torch.no_grad(): output = model(**inputs).sample\n"
        "    print(name, torch.equal(output, torch.load(f'{folder}/{name}.pt')), sep='=')\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), *configs]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == [f"{name}=True" for name in configs]


@pytest.mark.parametrize("name", ["T5", "CLIP"])
@pytest.mark.parametrize("quant_type", ["FP8", "NVFP4"])
def test_text_encoders(name, quant_type, tmp_path):
    model, inputs = architectures.build(name)
    model.save_pretrained(tmp_path / "dense")
    config = make_config(quant_type)
    quantize(model, config)
    model.save_pretrained(tmp_path / "packed")
    again = type(model).from_pretrained(tmp_path / "packed")
    assert weight_bytes(again) == weight_bytes(model)
    assert torch.equal(architectures.run(again, inputs), architectures.run(model, inputs))
    rewritten(tmp_path / "packed" / "config.json", lambda c: c.update(more=1))
    with pytest.raises(CheckpointError, match="config.json was altered"):
        type(model).from_pretrained(tmp_path / "packed")


def test_a_whole_pipeline(pipeline, tmp_path):
    from diffusers import DiffusionPipeline, SanaPipeline

    from modelopt_nb.pipeline import draw

    parts = pipeline.components
    packed = SanaPipeline(**parts | {name: copy.deepcopy(parts[name]) for name in ("transformer", "text_encoder")})
    quantize(packed.transformer, make_config("NF4"))
    quantize(packed.text_encoder, make_config("FP8"))
    packed.save_pretrained(tmp_path / "pipeline")
    again = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    for name in ("transformer", "text_encoder", "vae"):
        assert weight_bytes(getattr(again, name)) == weight_bytes(getattr(packed, name))
    call = (["an owl on a red background"], [3])
    pictures = [draw(p, *call, num_inference_steps=2)[0] for p in (packed, again)]
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize(
    ("quant_type", "arguments"),
    [
        ("INT8", {"algorithm": "smoothquant", "weight_only": False}),
        ("INT4", {"algorithm": "awq_lite"}),
        ("INT4", {"algorithm": "svdquant"}),
    ],
)
def test_calibrated_algorithms(quant_type, arguments, transformer, inputs, tmp_path):
    report = quantize(transformer, make_config(quant_type, **arguments), lambda model: model(**inputs))
    transformer.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed")
    assert weight_bytes(again) == weight_bytes(transformer) == report.after
    assert torch.equal(run(again, inputs), run(transformer, inputs))


def test_a_mixed_config(transformer, inputs, tmp_path):
    report = quantize(transformer, NVIDIAModelOptConfig("FP8", modelopt_config=MIXED))
    assert {x.spec.num_bits for x in report.packed} == {(4, 3), 4}
    transformer.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed")
    assert weight_bytes(again) == weight_bytes(transformer)
    assert torch.equal(run(again, inputs), run(transformer, inputs))


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_of_the_docs_recipe_without_the_kit(safe, transformer, inputs, tmp_path):
    """What ModelOpt and Diffusers write alone: no manifest, no dtype, and amax tensors that no one reads."""
    from safetensors.torch import load_file, save_file

    quantize(transformer, make_config("INT4"))
    transformer.save_pretrained(tmp_path, safe_serialization=safe)
    (tmp_path / MANIFEST).unlink()
    rewritten(tmp_path / "config.json", lambda c: c["quantization_config"].pop("packed_dtype"))
    (path,) = (p for p in tmp_path.iterdir() if p.suffix in (".safetensors", ".bin"))
    tensors = load_file(path) if safe else torch.load(path)
    tensors["transformer_blocks.0.attn1.to_q.weight_quantizer._amax"] = torch.ones(1)
    save_file(tensors, path) if safe else torch.save(tensors, path)
    assert torch.equal(run(load(tmp_path), inputs), run(transformer, inputs))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_refused_and_not_run(saved, tmp_path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for write in (pickle.dump, torch.save):
        with open(saved / "modelopt_state.pth", "wb") as file:
            write(Payload(), file)
        with pytest.raises(CheckpointError, match="modelopt_state.pth is refused, and nothing in it was run"):
            load(saved)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload()))  # the payload does what it should, where it is run
    assert (tmp_path / "ran").exists()
