"""Saving touches no file that is not the checkpoint's."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, DDPMScheduler, DiTPipeline
from safetensors.torch import save_file

from modelopt_nb import enable, make_config, quantize
from tests.architectures import build, run


@pytest.fixture(autouse=True)
def enabled():
    enable()


def tree(folder: Path) -> dict[str, tuple]:
    """Return type, mode, inode, time and content of everything in a folder, by name."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        stat = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ()
        times = () if path.is_dir() and not path.is_symlink() else (stat.st_ino, stat.st_mtime_ns)
        found[path.relative_to(folder).as_posix()] = (stat.st_mode, times, content)
    return found


def add_users_files(folder: Path, elsewhere: Path) -> None:
    folder.mkdir(exist_ok=True)
    elsewhere.mkdir()
    (elsewhere / "big.safetensors").write_text("elsewhere")
    for name in (
        "pytorch_lora_weights.safetensors", "my_lora.safetensors", "embeddings.bin", "optimizer.pth", "README.md",
        "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json", "model.fp16.safetensors", ".gitattributes",
        "lora/adapter_model.safetensors", "controlnet/diffusion_pytorch_model.safetensors", "controlnet/config.json",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
        os.utime(folder / name, (1, 2))
    (folder / "README.md").chmod(0o640)
    (folder / "link.safetensors").symlink_to(elsewhere / "big.safetensors")
    (folder / "elsewhere").symlink_to(elsewhere)
    (folder / "dangling").symlink_to("nowhere")


def small_pipeline() -> DiTPipeline:
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=1, sample_size=8
    )
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=32)
    return DiTPipeline(transformer.eval(), vae.eval(), DDPMScheduler())


@pytest.mark.parametrize("kind", ["Sana", "T5", "pipeline"])
def test_no_other_file_changes(kind, tmp_path):
    model = small_pipeline() if kind == "pipeline" else build(kind)[0]
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    add_users_files(folder, elsewhere)
    before, outside, inode = tree(folder), tree(elsewhere), folder.stat().st_ino
    quantize(model.transformer if kind == "pipeline" else model, make_config("INT8 channel"))
    for size in ("100KB", "10GB", "50KB"):
        model.save_pretrained(folder, max_shard_size=size)
        after = tree(folder)
        assert {name: after.get(name) for name in before} == before
        assert tree(elsewhere) == outside
    assert folder.stat().st_ino == inode  # a mount point or working directory cannot be replaced
    assert not [name for name in after if ".modelopt_nb." in name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to mount in a namespace of its own")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_saving_into_a_mount_point(transformer, inputs, tmp_path):
    """A folder that is a mount point cannot be renamed: only its files are replaced."""
    models = [transformer, build("Sana")[0]]
    for model, scheme in zip(models, ("FP8", "INT8"), strict=True):
        quantize(model, make_config(scheme))
    outputs = [run(model, inputs) for model in models]
    child = os.fork()
    if child == 0:
        status = 1  # an error
        try:
            private = ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: no other process sees the mount
            mounts = ["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
            if not private or any(subprocess.run(mount, capture_output=True).returncode for mount in mounts):
                os._exit(77)
            (tmp_path / "mine.safetensors").write_text("mine")
            for model, output in zip(models, outputs, strict=True):
                model.save_pretrained(tmp_path)
                assert tmp_path.is_mount()
                assert torch.equal(run(AutoModel.from_pretrained(str(tmp_path)), inputs), output)
                assert (tmp_path / "mine.safetensors").read_text() == "mine"
            status = 0
        finally:
            os._exit(status)
    if (status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) == 77:
        pytest.skip("mounting is not allowed here: needs root and Linux")
    assert status == 0
    assert not any(tmp_path.iterdir())


def test_stale_shards_are_removed(transformer, inputs, tmp_path):
    def weights():
        return sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".safetensors", ".bin") or "index" in p.name)

    transformer.save_pretrained(tmp_path, max_shard_size="500KB")  # dense
    assert len(weights()) > 3
    dense = run(transformer, inputs)
    packed, _ = build("Sana")
    quantize(packed, make_config("NVFP4"))
    for size, count in (("10GB", 1), ("50KB", None), ("10GB", 1)):
        packed.save_pretrained(tmp_path, max_shard_size=size)
        assert (len(weights()) == count) if count else (len(weights()) > 3)
        AutoModel.from_pretrained(str(tmp_path))
    packed.save_pretrained(tmp_path, safe_serialization=False)
    assert weights() == ["diffusion_pytorch_model.bin"]
    AutoModel.from_pretrained(str(tmp_path))
    transformer.save_pretrained(tmp_path)  # dense again: the manifest goes
    assert not (tmp_path / "modelopt_nb.json").exists()
    assert torch.equal(run(AutoModel.from_pretrained(str(tmp_path)), inputs), dense)


def test_saving_into_the_working_directory(transformer, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quantize(transformer, make_config("FP8"))
    for _ in range(2):
        transformer.save_pretrained(".")
    assert Path.cwd() == tmp_path
    assert torch.equal(run(AutoModel.from_pretrained("."), inputs), run(transformer, inputs))


@pytest.mark.parametrize("name", ["Sana", "T5"])
def test_another_process_than_the_main_one_writes_nothing(name, tmp_path):
    model, _ = build(name)
    quantize(model, make_config("INT8"))
    model.save_pretrained(tmp_path / "packed", is_main_process=True)
    before = tree(tmp_path)
    model.save_pretrained(tmp_path / "packed", is_main_process=False)
    model.save_pretrained(tmp_path / "packed", False, max_shard_size="50KB")
    model.save_pretrained(tmp_path / "new", is_main_process=False)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["Sana", "CLIP", "pipeline"])
def test_a_model_of_which_a_part_was_quantized_is_refused(name, tmp_path):
    model = small_pipeline() if name == "pipeline" else build(name)[0]
    owner = model.transformer if name == "pipeline" else model
    part = next(m for m in owner.modules() if isinstance(m, torch.nn.ModuleList) and len(m))
    quantize(part, make_config("INT8"))
    add_users_files(tmp_path / "folder", tmp_path / "elsewhere")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"is not packed as its quantization_config says.*Allowed: quantize\(\)"):
        model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="would load as garbage"):
        model.save_pretrained(tmp_path / "new")
    assert tree(tmp_path) == before


def test_a_layer_that_was_packed_after_the_model_is_refused(transformer, tmp_path):
    quantize(transformer, make_config("INT8", modules_to_not_convert=["attn1"]))
    other, _ = build("Sana")
    quantize(other, make_config("INT8"))
    transformer.transformer_blocks[0].attn1 = other.transformer_blocks[0].attn1
    with pytest.raises(ValueError, match=r"'transformer_blocks.0.attn1.to_k' is not packed as its"):
        transformer.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wrong", ["link", "file", "folder"])
def test_what_cannot_be_replaced_at_once_is_refused(wrong, tmp_path):
    """A component that is a link to a shared folder, or something else in the place of a file."""
    pipeline = small_pipeline()
    quantize(pipeline.transformer, make_config("INT8"))
    pipeline.save_pretrained(tmp_path / "one")
    pipeline.save_pretrained(tmp_path / "two")
    shutil.rmtree(tmp_path / "two/vae")
    if wrong == "link":
        (tmp_path / "two/vae").symlink_to(tmp_path / "one/vae")
    elif wrong == "file":
        (tmp_path / "two/vae").write_text("mine")
    else:
        (tmp_path / "two/vae/config.json").mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"two/vae.* cannot be replaced.*Allowed: a"):
        pipeline.save_pretrained(tmp_path / "two")
    assert tree(tmp_path) == before


def test_leftovers_of_a_killed_save_are_removed(transformer, tmp_path):
    quantize(transformer, make_config("INT8"))
    (tmp_path / ".modelopt_nb.saving-0").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / ".modelopt_nb.saving-0/x.safetensors")
    transformer.save_pretrained(tmp_path)
    assert not list(tmp_path.glob(".modelopt_nb.*"))
