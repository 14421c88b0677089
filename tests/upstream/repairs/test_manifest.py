"""Damaged checkpoints are refused, by file and tensor."""

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, DiTPipeline
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file

from modelopt_nb import CheckpointError, enable, make_config, quantize
from modelopt_nb.upstream.repairs.atomic_save.manifest import verify
from tests.architectures import build, run
from tests.upstream.repairs.test_users_files import small_pipeline

MANIFEST = "modelopt_nb.json"


@pytest.fixture(autouse=True)
def enabled():
    enable()


@pytest.fixture
def saved(transformer, tmp_path) -> Path:
    """A packed checkpoint of three shards."""
    quantize(transformer, make_config("NVFP4"))
    transformer.save_pretrained(tmp_path / "packed", max_shard_size="100KB")
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) >= 3
    return tmp_path / "packed"


def load(folder) -> torch.nn.Module:
    return AutoModel.from_pretrained(str(folder))


def rewrite(path: Path, change) -> None:
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


def test_a_manifest_that_is_none(saved):
    (saved / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="modelopt_nb.json is not a manifest"):
        load(saved)


def test_a_newer_format(saved):
    rewrite(saved / MANIFEST, lambda m: m.update(format=2))
    with pytest.raises(CheckpointError, match=r"format 2. Allowed: up to 1"):
        load(saved)


def test_an_altered_tensor_is_named(saved):
    shard = sorted(saved.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    name, entry = next((n, e) for n, e in json.loads(data[8:start]).items() if n != "__metadata__")
    data[start + entry["data_offsets"][0]] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{shard.name} was altered.*in {name}"):
        load(saved)


def test_a_config_that_does_not_say_it_is_packed(saved):
    rewrite(saved / "config.json", lambda c: c.pop("quantization_config"))
    with pytest.raises(CheckpointError, match="config.json was altered"):
        load(saved)


def test_a_file_from_elsewhere(saved):
    index = next(saved.glob("*.index.json"))
    shard = sorted(saved.glob("*.safetensors"))[0]
    shard.rename(saved / "other.safetensors")
    index.write_text(index.read_text().replace(shard.name, "other.safetensors"))
    with pytest.raises(
        CheckpointError, match=f"{index.name} was altered|other.safetensors is not a file|{shard.name} is"
    ):
        load(saved)


def test_a_model_of_another_class(saved, tmp_path):
    other, _ = build("PixArt")
    quantize(other, make_config("NVFP4"))
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", saved)
    with pytest.raises(CheckpointError, match="config.json was altered"):
        load(saved)
    with pytest.raises(CheckpointError, match="the weights are of class SanaTransformer2DModel, and not PixArt"):
        verify(sorted(saved.glob("*.safetensors")), "PixArtTransformer2DModel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("proj_out.bias"), "proj_out.bias is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more is not of this model"),
        (lambda t: t.update({"proj_out.bias": torch.zeros(3)}), r"proj_out.bias has shape \(3,\)"),
        (lambda t: t.update({"patch_embed.proj.weight": t["patch_embed.proj.weight"].int()}),
         "patch_embed.proj.weight takes .* bytes. Allowed by config.json: "),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_without_a_manifest(transformer, tmp_path, change, message):
    quantize(transformer, make_config("INT8"))
    transformer.save_pretrained(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_flipped_bit_or_a_cut_anywhere_is_refused(saved, inputs):
    expected = run(load(saved), inputs)
    files, dice, refused, count = sorted(saved.glob("[!.]*")), random.Random(0), 0, 40
    sizes = [f.stat().st_size for f in files]
    for i in range(count):
        file = dice.choices(files, sizes)[0] if i % 2 else dice.choice(files)
        good = file.read_bytes()
        at = dice.randrange(len(good))
        bad = good[:at] if i % 4 == 3 else good[:at] + bytes([good[at] ^ (1 << dice.randrange(8))]) + good[at + 1 :]
        file.write_bytes(bad)
        try:
            model = load(saved)
        except Exception:  # which error depends on who reads the damage first
            refused += 1
        else:
            assert torch.equal(run(model, inputs), expected), f"{file.name} at {at}"
        file.write_bytes(good)
    assert refused >= 0.95 * count
    assert torch.equal(run(load(saved), inputs), expected)


@pytest.mark.parametrize("name", ["Sana", "T5"])
def test_a_flipped_bit_in_the_configuration_names_the_file(name, tmp_path):
    model, inputs = build(name)
    quantize(model, make_config("NF4"))
    model.save_pretrained(tmp_path)
    file, dice, expected = tmp_path / "config.json", random.Random(0), run(model, inputs)
    good = file.read_bytes()
    for _ in range(200):
        at = dice.randrange(len(good))
        file.write_bytes(good[:at] + bytes([good[at] ^ (1 << dice.randrange(8))]) + good[at + 1 :])
        with pytest.raises(CheckpointError, match="config.json was altered"):
            type(model).from_pretrained(tmp_path)
    file.write_bytes(good)
    assert torch.equal(run(type(model).from_pretrained(tmp_path), inputs), expected)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_a_hub_id_works_as_a_folder_does(saved, inputs, transformer, tmp_path):
    """From the hub's cache, as a download leaves it: no network is needed."""
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


@pytest.fixture
def asked(monkeypatch):
    """What the hub is asked for, which has it not."""
    calls = []

    def download(repo, name, **arguments):
        calls.append((repo, name, arguments))
        raise errors.get(len(calls), LocalEntryNotFoundError("not in the cache"))

    errors = {}
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return calls, errors


def in_the_cache(folder: Path, tmp_path: Path) -> dict:
    repo, commit = tmp_path / "hub" / "models--someone--model", "0123456789" * 4
    shutil.copytree(folder, repo / "snapshots" / commit, ignore=lambda *_: [MANIFEST])
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    return {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
@pytest.mark.parametrize("safe", [True, False])
def test_a_dense_model_asks_the_hub_for_nothing_more(safe, asked, transformer, inputs, tmp_path):
    transformer.save_pretrained(tmp_path / "dense", safe_serialization=safe)
    loaded = AutoModel.from_pretrained("someone/model", **in_the_cache(tmp_path / "dense", tmp_path))
    assert torch.equal(run(loaded, inputs), run(transformer, inputs))
    assert asked[0] == []


def response(status: int):
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/someone/model"))


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("not in the cache"),
        RemoteEntryNotFoundError("404", response=response(404)),
        RepositoryNotFoundError("404", response=response(404)),
        GatedRepoError("403", response=response(403)),
        HfHubHTTPError("401 Unauthorized", response=response(401)),
        OfflineModeIsEnabled("offline"),
        ConnectionError("no network"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_manifest_that_the_hub_does_not_give(error, asked, saved, tmp_path):
    """It is asked for once, with the commit, the token and the offline mode of the load; no other error escapes."""
    calls, errors = asked
    errors[1] = error
    with pytest.raises(CheckpointError, match="modelopt_nb.json is missing; cannot verify"):
        AutoModel.from_pretrained("someone/model", token="hf_mine", **in_the_cache(saved, tmp_path))
    cache = {"revision": "0123456789" * 4, "cache_dir": tmp_path / "hub"}
    assert calls == [("someone/model", MANIFEST, cache | {"token": "hf_mine", "local_files_only": True})]


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_a_component_asks_the_hub_as_its_pipeline_does(asked, tmp_path):
    pipeline = small_pipeline()
    quantize(pipeline.transformer, make_config("INT8"))
    pipeline.save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="modelopt_nb.json is missing"):
        DiTPipeline.from_pretrained("someone/model", token="hf_mine", **in_the_cache(tmp_path / "saved", tmp_path))
    ((_, name, arguments),) = asked[0]
    assert name == f"transformer/{MANIFEST}"
    assert (arguments["token"], arguments["local_files_only"]) == ("hf_mine", True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_refused_and_not_run(saved, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for write in (pickle.dump, torch.save):
        with open(saved / "modelopt_state.pth", "wb") as file:
            write(Payload(), file)
        with pytest.raises(CheckpointError, match="modelopt_state.pth is refused, and not run"):
            load(saved)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload()))  # the payload works where it is run
    assert (tmp_path / "ran").exists()
