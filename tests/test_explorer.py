"""The explorer without a browser: what a click does is a method, what is shown is a traitlet."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch

from modelopt_nb import Explorer, compare, studio, upstream
from modelopt_nb.comparison import Runner
from modelopt_nb.config import SCHEMES
from modelopt_nb.studio import Choice, Studio, options_of, why_not

PROMPT = "a fox face on a blue background"


@pytest.fixture
def explorer(pipeline):
    made = Explorer(pipeline, ["INT8", "INT4"], PROMPT, steps=2)
    yield made
    made.close()


def drawn(explorer) -> Explorer:
    explorer.run()
    explorer.wait(120)
    return explorer


def test_draws_what_compare_draws(explorer, pipeline):
    explorer.run()
    assert explorer.status == "running"  # and has returned
    explorer.wait(120)
    comparison = compare(pipeline, ["INT8", "INT4"], [PROMPT], 0, steps=2, progress=False)
    assert [p["name"] for p in explorer.pictures] == list(comparison.images) == explorer.frame["variant"].tolist()
    for tile, images in zip(explorer._shown, comparison.images.values(), strict=True):
        assert np.array_equal(tile.picture, images[0])
    for column in ("weights MiB", "bits per weight", "peak MiB", "SSIM", "precision"):
        assert explorer.frame[column].tolist()[1:] == comparison.frame[column].tolist()[1:], column
    assert explorer.status == "idle"
    assert explorer.message.startswith("Drawn in")
    assert explorer.frame["the reader sees"].str.contains(" on ").all()


def test_the_same_again_comes_from_memory(explorer, monkeypatch):
    drawn(explorer)
    monkeypatch.setattr(Runner, "run", lambda *args: pytest.fail("drawn again"))
    start = time.perf_counter()
    explorer.run()
    assert time.perf_counter() - start < 1
    assert explorer.message == "From memory."
    assert len(explorer.history) == 3  # nor told twice


def test_only_what_is_missing_is_drawn(explorer):
    drawn(explorer)
    begun = []
    explorer.observe(lambda change: begun.append(change["new"]), "message")
    explorer.select(variants=["INT8", "NF4"])
    drawn(explorer)
    assert [m for m in begun if m.startswith("Drawing")] == ["Drawing NF4 …"]
    assert [p["name"] for p in explorer.pictures] == ["dense", "INT8", "NF4"]


def test_pictures_come_before_they_are_measured(explorer):
    seen = []
    explorer.observe(lambda change: seen.append([(p["name"], bool(p["captions"])) for p in change["new"]]), "pictures")
    drawn(explorer)
    assert seen[0] == [("dense", False)]
    assert [("dense", True), ("INT8", False)] in seen


def wait_for_step(explorer) -> None:
    end = time.monotonic() + 60
    while not explorer.progress.get("done"):
        assert time.monotonic() < end, explorer.message
        time.sleep(0.01)


def test_stop_ends_within_a_step_and_keeps_what_is_done(explorer, pipeline):
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    explorer.select(steps=3)
    drawn(explorer)
    explorer.select(variants=["INT8", "INT4", "NF4"], steps=3)
    explorer.run()
    wait_for_step(explorer)
    calls = []
    hook = pipeline.transformer.register_forward_hook(lambda *args: calls.append(1))
    explorer.stop()
    assert explorer.status == "stopping"
    explorer.wait(60)
    hook.remove()
    assert len(calls) <= 1
    assert explorer.status == "idle"
    assert "Stopped" in explorer.message
    assert [p["name"] for p in explorer.pictures][:3] == ["dense", "INT8", "INT4"]
    assert pipeline.transformer is transformer
    assert pipeline.scheduler is scheduler
    drawn(explorer)
    assert [p["name"] for p in explorer.pictures] == ["dense", "INT8", "INT4", "NF4"]


def test_stop_before_the_first_step_counts(explorer):
    explorer.select(steps=300)
    explorer.run()
    explorer.stop()
    start = time.monotonic()
    explorer.wait(60)
    assert time.monotonic() - start < 20  # 900 steps would take minutes
    assert "Stopped" in explorer.message


def test_calibration_is_recorded_once_a_prompt(pipeline, monkeypatch):
    recordings, recorded = [], studio.recorded
    monkeypatch.setattr(studio, "recorded", lambda *args, **kwargs: recordings.append(1) or recorded(*args, **kwargs))
    monkeypatch.setattr(studio, "is_embedded", lambda pipeline: False)
    monkeypatch.setattr(Studio, "STEPS", 2)
    own = Explorer(
        pipeline, [{"scheme": "INT4", "algorithm": "awq_lite"}, {"scheme": "INT8", "activations": "INT8"}], steps=1
    )
    drawn(own)
    assert own.message.startswith("Drawn in")
    assert len(recordings) == 1
    own.close()


def test_stop_within_a_calibration(explorer):
    explorer.select(variants=[{"scheme": "INT4", "algorithm": "awq_lite"}], steps=1)
    explorer.run()
    end = time.monotonic() + 60
    while explorer.message != "Drawing INT4 awq_lite …":
        assert time.monotonic() < end, explorer.message
        time.sleep(0.01)
    explorer.stop()
    explorer.wait(60)
    assert "Stopped" in explorer.message


def test_an_error_is_told_and_the_widget_still_works(explorer, monkeypatch):
    monkeypatch.setattr(Runner, "_draw_all", lambda self: 1 / 0)
    drawn(explorer)
    assert explorer.message == "ZeroDivisionError: division by zero"
    assert isinstance(explorer.error, ZeroDivisionError)
    assert explorer.status == "idle"
    monkeypatch.undo()
    drawn(explorer)
    assert explorer.error is None
    assert len(explorer.pictures) == 3


WRONG = {
    "prompt": ["", "   ", None, 3, "x" * 2001],
    "seed": [-1, 1.5, "abc", True, 2**32, None],
    "steps": [0, -3, 1001, 2.5, "ten", None],
    "guidance": [-0.1, math.nan, math.inf, "high", None],
    "variants": [
        [],
        None,
        [Choice().as_dict()] * 2,
        [{"kind": "INT8"}],
        [7],
        [{"excluded": [3]}],
        [{"scheme": f"x{i}"} for i in range(13)],
    ],
    "0.scheme": [{"scheme": "INT5"}, {"scheme": None}],
    "0.block": [{"scheme": "INT4", "block": 7}, {"block": "wide"}, {"block": 1}, {"scheme": "NVFP4", "block": [16]}],
    "0.activations": [{"activations": "NF4"}, {"activations": "FP4"}, {"activations": 8}],
    "0.scale": [{"scale": "static tensor"}, {"activations": "INT8", "scale": "by hand"}],
    "0.algorithm": [{"algorithm": "best"}, {"algorithm": "smoothquant"}, {"scheme": "NF4", "algorithm": "mse"}],
    "0.excluded": [{"excluded": ["nothing_like_it"]}, {"excluded": ["*"]}, {"excluded": [" "]}],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_wrong_input_is_told_beside_its_field(explorer, field, value):
    changes = {"variants": [{**Choice().as_dict(), **value}]} if field.startswith("0.") else {field: value}
    explorer.request = {**explorer.request, **changes}  # as a front end sends it
    assert field in explorer.errors
    assert len(explorer.errors[field]) > 15
    explorer.run()
    assert explorer.status == "idle"
    assert explorer.message.startswith("Not drawn: ")
    assert explorer.pictures == []


def test_constructor_refuses(pipeline):
    for wrong in (
        {"variants": ["INT5"]},
        {"prompt": " "},
        {"steps": 0},
        {"seed": -1},
        {"guidance": math.nan},
        {"variants": []},
    ):
        with pytest.raises(ValueError, match="Allowed|not known"):
            Explorer(pipeline, **wrong)


def test_what_the_view_sends_never_raises(explorer):
    for sent in ({"do": "restore", "with": [9]}, {"do": "restore", "with": ["x"]}, {"do": "remove", "with": []},
                 {"do": "export", "with": ["exe"]}, {"do": "close"}, {"do": "__init__"}, "text", {}):  # fmt: skip
        explorer._told(explorer, sent, [])
    assert explorer.status == "idle"


def test_options_say_why_not():
    options = options_of(Choice("INT8"))
    reasons = {name: {value: reason for value, _, reason in values} for name, values in options.items()}
    assert all(reason == "" for reason in reasons["scheme"].values())
    assert reasons["algorithm"]["mse"] == ""
    assert "smoothquant" in reasons["algorithm"]["smoothquant"]
    assert "activations" in reasons["scale"]["static tensor"]
    if not torch.cuda.is_available():
        assert "CUDA" in reasons["activations"]["NVFP4"]
    w8a8 = {value: reason for value, _, reason in options_of(Choice("INT8", activations="INT8"))["algorithm"]}
    assert w8a8["smoothquant"] == ""


@pytest.mark.parametrize("choice", [Choice("INT8 channel", activations="INT8", scale="static tensor", algorithm="smoothquant"),
                                    Choice("INT4 block", algorithm="awq_lite"), Choice("NF4", block=128, pointwise=True),
                                    Choice("FP8", activations="FP8", excluded=("attn1",))])  # fmt: skip
def test_what_is_not_refused_draws(explorer, choice):
    assert why_not(choice) == ""
    explorer.select(variants=[choice], steps=1)
    assert explorer.errors == {}
    drawn(explorer)
    assert [p["name"] for p in explorer.pictures] == ["dense", choice.name], explorer.message


def test_names_tell_choices_apart():
    choices = [Choice(s, b, a, c, m, p, e) for s in SCHEMES for b in (None, 32) for a in ("", "INT8") for c in ("", "static tensor")
               for m in ("max", "mse") for p in (False, True) for e in ((), ("a",), ("a", "b")) if a or not c]  # fmt: skip
    assert len({c.name for c in choices}) == len(choices)
    assert all(Choice.of(c.as_dict()) == c for c in choices)


def test_restore(explorer):
    drawn(explorer)
    explorer.select(prompt="an owl on a green background", variants=["NF4"])
    drawn(explorer)
    explorer.restore(1)
    assert explorer.request["prompt"] == PROMPT
    assert [p["name"] for p in explorer.pictures] == ["dense", "INT8", "INT4"]
    assert explorer.message == "Run 1, from memory."
    explorer.studio.pictures.clear()
    explorer.restore(2)
    explorer.wait(120)
    assert [p["name"] for p in explorer.pictures] == ["dense", "NF4"]


def test_oldest_pictures_go_first(pipeline):
    kept = Studio(pipeline, remember=3)
    for seed in range(3):
        request, errors = kept.checked(
            {"prompt": PROMPT, "seed": seed, "steps": 1, "guidance": 4.5, "variants": ["INT8"]}
        )
        assert errors == {}
        assert [d.name for d in kept.draw(request)] == ["dense", "INT8"]
        assert len(kept.remembered(request)) == 2
    assert len(kept.pictures) == 3
    again, _ = kept.checked(
        {"prompt": PROMPT, "seed": 2, "steps": 1, "guidance": 4.5, "variants": ["INT8", "INT4", "FP8"]}
    )
    assert [d.name for d in kept.draw(again)] == ["INT4", "FP8"]  # its dense picture is the oldest, and stays
    assert len(kept.remembered(again)) == 4


def test_export_and_figure(explorer, monkeypatch):
    with pytest.raises(ValueError, match="Nothing to export"):
        explorer.export("csv")
    assert explorer.png() is None
    drawn(explorer)
    sent = []
    monkeypatch.setattr(explorer, "send", lambda content, buffers: sent.append((content, buffers[0])))
    explorer.export("csv")
    explorer.export("png")
    assert [content["save"] for content, _ in sent] == ["runs.csv", "pictures.png"]
    assert sent[0][1].decode().splitlines()[0].startswith("run,prompt,seed,steps,guidance,variant")
    assert len(sent[0][1].decode().splitlines()) == 4
    assert sent[1][1].startswith(b"\x89PNG")
    assert [ax.get_title().split("\n")[0] for ax in explorer.figure().axes] == ["dense", "INT8", "INT4"]


def test_without_a_front_end_it_is_a_picture(explorer):
    assert "image/png" not in explorer._repr_mimebundle_()[0]
    data, _ = drawn(explorer)._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == "Explorer(SanaPipeline, 1 runs, idle)"


SCRIPT = """
import sys
import numpy as np
for i, code in enumerate({codes!r}):
    scope = {{}}
    exec(code, scope)
    scope["pipeline"].set_progress_bar_config(disable=True)
    np.save(f"{folder}/{{i}}.npy", np.asarray(scope["image"]))
    print("modelopt_nb" in sys.modules)
"""


def test_code_draws_the_same_picture_in_a_script_of_its_own(explorer, tmp_path):
    plain = ["INT8 channel", "INT4", "FP8"]
    with_kit = [
        Choice("NF4"),
        Choice("INT4", pointwise=True),
        Choice("INT8", activations="INT8", algorithm="smoothquant"),
    ]
    explorer.select(variants=[*plain, *with_kit])
    drawn(explorer)
    codes = [explorer.code(i) for i in range(6)]
    script = SCRIPT.format(codes=codes, folder=tmp_path)
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    with_it = [line for line in run.stdout.splitlines() if line in ("True", "False")]
    assert with_it == ["False"] * 3 + ["True"] * 3
    for i, tile in enumerate(explorer._shown[1:]):
        assert np.array_equal(np.load(tmp_path / f"{i}.npy"), tile.picture), tile.name


def test_add_remove_select(explorer):
    explorer.add()
    assert explorer.names == ["INT8", "INT4", "FP8"]
    assert explorer.request["selected"] == 2
    explorer.remove(0)
    assert explorer.names == ["INT4", "FP8"]
    assert explorer.request["selected"] == 1
    with pytest.raises(TypeError, match="colour is not known"):
        explorer.select(colour="red")


def test_fifty_runs_do_not_grow(explorer):
    process, sizes = psutil.Process(), []
    explorer.select(steps=1, variants=["INT8"])
    for seed in range(50):
        explorer.select(seed=seed)
        drawn(explorer)
        assert explorer.message.startswith("Drawn in")
        sizes.append(process.memory_info().rss)
    assert sizes[49] < 1.05 * sizes[4], [s // 2**20 for s in sizes[4::5]]
    assert len(explorer.frame) == 100


def test_what_other_threads_print_is_not_held_back(monkeypatch):
    out, inside, printed = io.StringIO(), threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "stdout", out)

    def held_back() -> None:
        with upstream.quiet():
            print("from ModelOpt")
            inside.set()
            printed.wait(10)

    thread = threading.Thread(target=held_back)
    thread.start()
    inside.wait(10)
    print("from a cell")
    printed.set()
    thread.join()
    assert out.getvalue() == "from a cell\n"


def test_a_pipeline_of_ones_own_gets_no_invented_columns(pipeline, monkeypatch):
    monkeypatch.setattr(studio, "is_embedded", lambda pipeline: False)
    with_prompt = Explorer(pipeline, ["INT8"], steps=1)
    assert "the reader sees" not in drawn(with_prompt).frame
    with_prompt.close()
