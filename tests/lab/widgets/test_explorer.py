"""The explorer without a browser: a click calls a method, a traitlet holds what is shown."""

from __future__ import annotations

import gc
import io
import math
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from diffusers import DDIMScheduler

from modelopt_nb import Explorer, compare, quiet
from modelopt_nb.lab.compare.runner import Runner
from modelopt_nb.lab.widgets import workbench
from modelopt_nb.lab.widgets.calibration_calls import CalibrationCalls
from tests.lab.small_pipelines import smallest_unet, stable_diffusion

PROMPT = "a fox face on a blue background"


@pytest.fixture
def explorer(pipeline):
    made = Explorer(pipeline, ["INT8", "INT4"], PROMPT, steps=2)
    yield made
    made.close()


def run(explorer) -> Explorer:
    explorer.run()
    explorer.wait(120)
    return explorer


def names(explorer) -> list[str]:
    return [picture["name"] for picture in explorer.pictures]


def wait_for(explorer, condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, explorer.message
        time.sleep(0.01)


def test_generates_what_compare_generates(explorer, pipeline):
    seen = []
    explorer.observe(lambda change: seen.append([(p["name"], bool(p["captions"])) for p in change["new"]]), "pictures")
    explorer.run()
    assert explorer.status == "running"  # and has returned
    explorer.wait(120)
    comparison = compare(pipeline, ["INT8", "INT4"], [PROMPT], 0, steps=2, progress=False)
    assert names(explorer) == list(comparison.images) == explorer.frame["variant"].tolist()
    for tile, images in zip(explorer._shown, comparison.images.values(), strict=True):
        assert np.array_equal(tile.picture, images[0])
    for column in ("weights MiB", "bits per weight", "peak MiB", "SSIM", "precision"):
        assert explorer.frame[column].tolist()[1:] == comparison.frame[column].tolist()[1:], column
    assert explorer.status == "idle"
    assert explorer.message.startswith("Generated in")
    assert explorer.frame["the classifier says"].str.contains(" on ").all()
    assert seen[0] == [("dense", False)]  # images are shown before they are measured
    assert [("dense", True), ("INT8", False)] in seen


def test_the_same_again_comes_from_the_cache(explorer, instant):
    run(explorer)
    start = time.perf_counter()
    explorer.run()
    assert time.perf_counter() - start < 1
    assert explorer.message == "From the cache."
    assert instant == ["dense", "INT8", "INT4"]
    assert len(explorer.history) == 3  # nor listed twice


def test_only_missing_images_are_generated(explorer, instant):
    run(explorer)
    messages = []
    explorer.observe(lambda change: messages.append(change["new"]), "message")
    explorer.select(variants=["INT8", "NF4"])
    run(explorer)
    assert [m for m in messages if m.startswith("Generating")] == ["Generating NF4 …"]
    assert names(explorer) == ["dense", "INT8", "NF4"]


def test_stop_ends_within_a_step_and_keeps_what_is_finished(explorer, pipeline):
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    explorer.select(variants=["INT8"])
    run(explorer)
    explorer.select(variants=["INT8", "INT4"])
    explorer.run()
    wait_for(explorer, lambda: explorer.progress.get("done"))
    calls = []
    hook = pipeline.transformer.register_forward_hook(lambda *args: calls.append(1))
    explorer.stop()
    assert explorer.status == "stopping"
    explorer.wait(60)
    hook.remove()
    assert len(calls) <= 1
    assert explorer.status == "idle"
    assert "Stopped" in explorer.message
    assert names(explorer) == ["dense", "INT8"]
    assert pipeline.transformer is transformer
    assert pipeline.scheduler is scheduler
    run(explorer)
    assert names(explorer) == ["dense", "INT8", "INT4"]


def test_stop_before_the_first_step_counts(explorer):
    explorer.select(steps=300)
    explorer.run()
    explorer.stop()
    start = time.monotonic()
    explorer.wait(60)
    assert time.monotonic() - start < 20  # 900 steps would take minutes
    assert "Stopped" in explorer.message


def test_stop_within_a_calibration(explorer, monkeypatch):
    monkeypatch.setattr(CalibrationCalls, "STEPS", 300)
    explorer.select(variants=[{"scheme": "INT4", "algorithm": "awq_lite"}], steps=1)
    explorer.run()
    wait_for(explorer, lambda: explorer.message == "Generating INT4 awq_lite …")
    explorer.stop()
    explorer.wait(20)  # 300 steps of four prompts would take minutes
    assert "Stopped" in explorer.message


def test_an_error_is_shown_and_the_widget_still_works(explorer, instant, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(Runner, "run", lambda *args: 1 / 0)
        run(explorer)
    assert explorer.message == "ZeroDivisionError: division by zero"
    assert isinstance(explorer.error, ZeroDivisionError)
    assert explorer.status == "idle"
    run(explorer)
    assert explorer.error is None
    assert len(explorer.pictures) == 3


def test_wrong_input_is_shown_and_does_not_run(explorer):
    explorer.request = {**explorer.request, "steps": 0}  # as a front end sends it
    assert "Allowed: a whole number from 1" in explorer.errors["steps"]
    explorer.run()
    assert explorer.status == "idle"
    assert explorer.message.startswith("Cannot run: steps=0")
    assert explorer.pictures == []


@pytest.mark.parametrize("wrong", [{"variants": ["INT5"]}, {"prompt": " "}, {"steps": 0}, {"seed": -1},
                                   {"guidance": math.nan}, {"variants": []}])  # fmt: skip
def test_constructor_refuses(pipeline, wrong):
    with pytest.raises(ValueError, match="Allowed|not known"):
        Explorer(pipeline, **wrong)


def test_what_the_view_sends_never_raises(explorer):
    for sent in ({"do": "restore", "with": [9]}, {"do": "restore", "with": ["x"]}, {"do": "remove", "with": []},
                 {"do": "export", "with": ["exe"]}, {"do": "close"}, {"do": "__init__"}, "text", {}):  # fmt: skip
        explorer._receive(explorer, sent, [])
    assert explorer.status == "idle"


def test_restore(explorer, instant):
    run(explorer)
    explorer.select(prompt="an owl on a green background", variants=["NF4"])
    run(explorer)
    explorer.restore(1)
    assert explorer.request["prompt"] == PROMPT
    assert names(explorer) == ["dense", "INT8", "INT4"]
    assert explorer.message == "Run 1, from the cache."
    explorer.workbench.pictures.clear()
    explorer.restore(2)
    explorer.wait(120)
    assert names(explorer) == ["dense", "NF4"]


def test_export_figure_and_table(explorer, instant, monkeypatch):
    with pytest.raises(ValueError, match="Nothing to export"):
        explorer.export("csv")
    assert explorer.png() is None
    run(explorer)
    sent = []
    monkeypatch.setattr(explorer, "send", lambda content, buffers: sent.append((content, buffers[0])))
    explorer.export("csv")
    explorer.export("png")
    assert [content["save"] for content, _ in sent] == ["runs.csv", "pictures.png"]
    assert sent[0][1].decode().splitlines()[0].startswith("run,prompt,seed,steps,guidance,variant")
    assert len(sent[0][1].decode().splitlines()) == 4
    assert sent[1][1].startswith(b"\x89PNG")
    assert [ax.get_title().split("\n")[0] for ax in explorer.figure().axes] == ["dense", "INT8", "INT4"]
    assert "30.0 dB" in explorer.figure().axes[1].get_title()
    assert "s per step" not in explorer.table().frame
    assert list(explorer.table().frame.columns[:5]) == ["prompt", "seed", "steps", "guidance", "variant"]


def test_without_a_front_end_it_is_an_image(explorer, instant):
    assert "image/png" not in explorer._repr_mimebundle_()[0]
    data, _ = run(explorer)._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == "Explorer(SanaPipeline, 1 runs, idle)"


def test_add_remove_select(explorer):
    explorer.add()
    assert explorer.names == ["INT8", "INT4", "FP8"]
    assert explorer.request["selected"] == 2
    explorer.remove(0)
    assert explorer.names == ["INT4", "FP8"]
    assert explorer.request["selected"] == 1
    explorer.show_code()
    assert "modelopt_nb.quantize" in explorer.code_shown
    with pytest.raises(TypeError, match="colour is not known"):
        explorer.select(colour="red")


def tensor_bytes() -> int:
    """The bytes of all tensors that are alive."""
    gc.collect()
    return sum(t.nbytes for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and not t.is_meta)


def test_memory_of_fifteen_runs_does_not_grow():
    """Of the process nearly, of the tensors not by a byte, which shows a small model's too."""
    explorer = Explorer(stable_diffusion(DDIMScheduler(), smallest_unet()), ["INT8"], "cat", steps=1)
    process, sizes, tensors = psutil.Process(), [], {}
    for seed in range(15):
        explorer.select(seed=seed)
        run(explorer)
        assert explorer.message.startswith("Generated in")
        sizes.append(process.memory_info().rss)
        if seed in (1, 14):
            tensors[seed] = tensor_bytes()
    assert sizes[14] < 1.05 * sizes[4], [s // 2**20 for s in sizes]
    assert tensors[14] == tensors[1], tensors
    assert len(explorer.frame) == 30
    explorer.close()


def test_images_of_other_pipelines_are_not_classified(pipeline, instant, monkeypatch):
    monkeypatch.setattr(workbench, "is_embedded", lambda pipeline: False)
    explorer = Explorer(pipeline, ["INT8"], steps=1)
    assert "the classifier says" not in run(explorer).frame
    explorer.close()


def test_quiet_does_not_hold_back_what_other_threads_print(monkeypatch):
    out, inside, printed = io.StringIO(), threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "stdout", out)

    def hold_back() -> None:
        with quiet():
            print("from ModelOpt")
            inside.set()
            printed.wait(10)

    thread = threading.Thread(target=hold_back)
    thread.start()
    inside.wait(10)
    print("from a cell")
    printed.set()
    thread.join()
    assert out.getvalue() == "from a cell\n"
