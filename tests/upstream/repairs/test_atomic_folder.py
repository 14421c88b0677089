"""A process that dies while saving leaves the old checkpoint or the new one; loads meanwhile see one of the two."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, ConfigMixin, DiTPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from modelopt_nb import CheckpointError, atomic_folder, enable, make_config, quantize
from tests.architectures import run
from tests.upstream.repairs.test_users_files import small_pipeline, tree

ROUNDS = 200  # loads in the stress test
JOURNAL = ".modelopt_nb.journal"
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to kill many processes in seconds")


def write(folder, text: str) -> None:
    with atomic_folder(folder) as new:
        (new / "config.json").write_text(text)
        (new / f"{text}.safetensors").write_text(text)


def names(folder) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


class TwoLayers(ModelMixin, ConfigMixin):
    """A model of several files that saves and loads in milliseconds: these tests do so hundreds of times."""

    config_name = "config.json"

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 128), nn.Linear(128, 256)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.second(torch.tanh(self.first(x))),)


#: The inputs of one call of :class:`TwoLayers`.
INPUTS = {"x": torch.linspace(-1, 1, 768).reshape(3, 256)}


def packed_twice() -> tuple[TwoLayers, TwoLayers]:
    """Return two packed models, which differ in every tensor."""
    enable()
    models = TwoLayers().eval(), TwoLayers().eval()
    for model, quant_type in zip(models, ("FP8", "NF4"), strict=True):
        quantize(model, make_config(quant_type))
    return models


def bits(model: nn.Module) -> dict[str, tuple]:
    """Return the dtype and the bytes of every tensor."""
    found = {name: (t.dtype, t.untyped_storage()) for name, t in model.state_dict().items()}
    data = torch.empty(0, dtype=torch.uint8)
    return {name: (dtype, data.set_(s).numpy().tobytes()) for name, (dtype, s) in found.items()}


def fork(work) -> int:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    return child


def kill_at_call(count: int, work) -> bool:
    """Run ``work`` in a process that ends, without cleaning up, at its call ``count`` of a function that writes."""

    def counted(original, calls):
        def function(*args, **kwargs):
            if next(calls) == count:
                os._exit(9)
            return original(*args, **kwargs)

        return function

    def patched():
        calls = iter(range(10_000))
        for owner, name in ((os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (shutil, "rmtree")):
            setattr(owner, name, counted(getattr(owner, name), calls))
        work()

    return os.waitstatus_to_exitcode(os.waitpid(fork(patched), 0)[1]) == 9


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_leaves_the_old_checkpoint(tmp_path, error):
    write(tmp_path / "packed", "old")
    before = tree(tmp_path)
    with pytest.raises(error), atomic_folder(tmp_path / "packed") as new:
        (new / "config.json").write_text("new")
        raise error
    assert tree(tmp_path) == before


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "config.json").read_text() == "new"


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork")
def test_killed_at_every_step(tmp_path):
    """A model over another one: after each step that writes, the old or the new model loads, never a mixture."""
    old, new = packed_twice()
    expected = [bits(old), bits(new)]
    old.save_pretrained(tmp_path / "old", max_shard_size="10KB")
    (tmp_path / "old" / "lora.safetensors").write_text("mine")
    seen, step, folder = [], 0, tmp_path / "packed"
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
        killed = kill_at_call(step, lambda: new.save_pretrained(folder, max_shard_size="10GB"))
        seen.append(expected.index(bits(TwoLayers.from_pretrained(folder))))
        assert not (folder / JOURNAL).exists()
        assert (folder / "lora.safetensors").read_text() == "mine"
        if not killed:
            break
        step += 1
    assert seen == sorted(seen) and set(seen) == {0, 1}  # old, then new, and not old again
    assert step > 10


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_pipeline_killed_at_every_step(tmp_path):
    """All components are the old ones or all are the new ones, also if one of them is loaded first."""
    enable()

    def weights(loaded):
        tensors = loaded.transformer.pos_embed.proj.bias, loaded.vae.quant_conv.bias
        return tuple(tensor.tolist() for tensor in tensors)

    pipelines = [small_pipeline(), small_pipeline()]
    for pipeline, quant_type in zip(pipelines, ("INT8", "FP8"), strict=True):
        quantize(pipeline.transformer, make_config(quant_type))
    expected = [weights(pipeline) for pipeline in pipelines]
    pipelines[0].save_pretrained(tmp_path / "old")
    seen, killed, folder = [], True, tmp_path / "packed"
    for step in range(0, 99, 2):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
        killed = kill_at_call(step, lambda: pipelines[1].save_pretrained(folder))
        if step % 4:
            AutoModel.from_pretrained(str(folder), subfolder="transformer")
        seen.append(expected.index(weights(DiTPipeline.from_pretrained(folder))))
        if not killed:
            break
    assert not killed
    assert seen == sorted(seen) and set(seen) == {0, 1}


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork")
def test_killed_at_a_random_moment(tmp_path):
    """Two models save into one folder in turns; the process is killed, 6 times."""
    models = packed_twice()
    expected = [bits(model) for model in models]
    folder, dice = tmp_path / "packed", random.Random(0)
    models[0].save_pretrained(folder)
    for i in range(6):
        child = fork(
            lambda i=i: [m.save_pretrained(folder, max_shard_size="10KB") for m in models[:: 1 - i % 2 * 2] * 99]
        )
        time.sleep(dice.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert bits(TwoLayers.from_pretrained(folder)) in expected
    models[0].save_pretrained(folder)
    assert names(folder) == ["config.json", "diffusion_pytorch_model.safetensors", "modelopt_nb.json"]


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork")
def test_two_processes_save_while_a_third_loads(tmp_path):
    """Every load is one of the two models, bit for bit: all tensors, and the dtype of each."""

    models, folder, seen = packed_twice(), tmp_path / "packed", []
    expected = [bits(model) for model in models]
    models[0].save_pretrained(folder)

    def save(model, size):
        while True:
            model.save_pretrained(folder, max_shard_size=size)
            time.sleep(0.05)  # several loads a save

    children = [fork(lambda m=m, s=s: save(m, s)) for m, s in zip(models, ("10KB", "10GB"), strict=True)]
    try:
        for _ in range(ROUNDS):
            seen.append(expected.index(bits(TwoLayers.from_pretrained(folder))))
        assert all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children)  # no save has failed
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert set(seen) == {0, 1}


def test_threads_save_into_one_folder(tmp_path):
    def save(text):
        for _ in range(10):
            write(tmp_path, text)
            time.sleep(0.001)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, "abcd"))
    (text,) = {(tmp_path / "config.json").read_text()} & set("abcd")
    assert f"{text}.safetensors" in names(tmp_path)
    assert not list(tmp_path.glob(".modelopt_nb*"))


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_folder_that_cannot_be_written(tmp_path):
    """A checkpoint loads; one whose save is unfinished is refused, and loads once it can be written."""
    old, new = packed_twice()
    folder = tmp_path / "packed"
    old.save_pretrained(folder)
    assert torch.equal(run(read_only(folder), INPUTS), run(old, INPUTS))
    fsyncs = next(
        i for i in range(99) if kill_at_call(i, lambda: new.save_pretrained(folder)) and (folder / JOURNAL).exists()
    )
    assert fsyncs > 3
    before = tree(folder)
    with pytest.raises(CheckpointError, match="to complete an unfinished save.*Allowed: a folder that can be written"):
        read_only(folder)
    assert tree(folder) == before
    assert torch.equal(run(TwoLayers.from_pretrained(folder), INPUTS), run(new, INPUTS))


def read_only(folder: Path):
    with pytest.MonkeyPatch.context() as patch:

        def refuse(path, flags, *args, original=os.open, **kwargs):
            if str(folder) in str(path) and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, flags, *args, **kwargs)

        patch.setattr(os, "open", refuse)
        return TwoLayers.from_pretrained(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"new": ".modelopt_nb.saving-0", "files": [], "stale": ["../precious"]},
        {"new": ".modelopt_nb.saving-0", "files": [], "stale": ["link/precious"]},
        {"new": ".modelopt_nb.saving-0", "files": ["link/precious"], "stale": []},
        {"new": "link/.modelopt_nb.saving-0", "files": [], "stale": ["precious"]},
        {"new": "../disk/.modelopt_nb.saving-0", "files": [], "stale": ["precious"]},
        {"new": "link", "files": [], "stale": []},
        {"new": ".modelopt_nb.saving-1", "files": ["precious"], "stale": []},
        {"files": []},
        [],
    ],
)
def test_a_downloaded_journal_reaches_no_other_folder(entry, transformer, tmp_path):
    enable()
    folder, disk = tmp_path / "packed", tmp_path / "disk"
    transformer.save_pretrained(folder)
    disk.mkdir()
    for path in (tmp_path / "precious", disk / "precious"):
        path.write_text("mine")
    (folder / "link").symlink_to(disk)
    (folder / ".modelopt_nb.saving-1").symlink_to(disk)
    (folder / ".modelopt_nb.saving-0" / "link").mkdir(parents=True)
    (folder / ".modelopt_nb.saving-0" / "link" / "precious").write_text("theirs")
    (folder / JOURNAL).write_text(json.dumps(entry))
    with pytest.raises(CheckpointError, match="journal is not the journal of a save in this folder.*delete it"):
        AutoModel.from_pretrained(str(folder))
    assert (tmp_path / "precious").read_text() == (disk / "precious").read_text() == "mine"
