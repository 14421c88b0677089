"""A process that dies while saving leaves the old checkpoint or the new one."""

import contextlib
import copy
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
from diffusers import AutoModel

from modelopt_nb import atomic_folder, enable, make_config, quantize
from tests.architectures import run


def write(folder, text: str) -> None:
    with atomic_folder(folder) as new:
        (new / "config.json").write_text(text)
        (new / f"{text}.safetensors").write_text(text)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced(tmp_path, monkeypatch, can_exchange):
    folder = tmp_path / "packed"
    write(folder, "old")
    (folder / "README.md").write_text("mine")
    with monkeypatch.context() as patch:
        if not can_exchange:
            patch.setattr(sys, "platform", "another")
        write(folder, "new")
    assert sorted(f.name for f in folder.iterdir()) == ["README.md", "config.json", "new.safetensors"]
    assert (folder / "config.json").read_text() == "new"
    assert [f.name for f in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder(tmp_path, error):
    write(tmp_path / "packed", "old")
    with pytest.raises(error), atomic_folder(tmp_path / "packed") as new:
        (new / "config.json").write_text("new")
        raise error
    assert (tmp_path / "packed" / "config.json").read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["packed"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "config.json").read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to kill many processes in seconds")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_killed_while_saving(transformer, inputs, tmp_path):
    """Two models save into one folder in turns; the process is killed at a random moment, 20 times."""
    enable()
    other = copy.deepcopy(transformer)
    for model, quant_type in ((transformer, "FP8"), (other, "NF4")):
        quantize(model, make_config(quant_type))
    outputs = [run(model, inputs) for model in (transformer, other)]
    folder, dice, seen = tmp_path / "packed", random.Random(0), set()
    transformer.save_pretrained(folder)
    start = time.perf_counter()
    other.save_pretrained(folder)
    duration = time.perf_counter() - start
    for i in range(20):
        child = os.fork()
        if child == 0:
            for model in ((transformer, other) if i % 2 else (other, transformer)) * 100:
                model.save_pretrained(folder, max_shard_size="100KB")
            os._exit(0)
        time.sleep(dice.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = run(AutoModel.from_pretrained(str(folder)), inputs)
        right = [torch.equal(loaded, output) for output in outputs]
        assert any(right)
        seen.add(right.index(True))
        for left in tmp_path.glob(".packed.*"):
            with contextlib.suppress(ValueError, OSError):  # partly written, and refused
                model = AutoModel.from_pretrained(str(left))
                assert any(torch.equal(run(model, inputs), output) for output in outputs)
            shutil.rmtree(left)
    assert seen == {0, 1}
