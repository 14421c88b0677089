"""The workbench: choices that cannot work are refused, images are generated once, their code generates the same ones."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from modelopt_nb import SCHEMES, Choice
from modelopt_nb.lab.widgets import calibration_calls
from modelopt_nb.lab.widgets.calibration_calls import CalibrationCalls
from modelopt_nb.lab.widgets.choices import alternatives, why_not
from modelopt_nb.lab.widgets.tiles import CAPTION, CLASSIFIED, OF_DENSE
from modelopt_nb.lab.widgets.workbench import Workbench

PROMPT = "a fox face on a blue background"
ASKED = {"prompt": PROMPT, "seed": 0, "steps": 2, "guidance": 4.5, "variants": ["INT8"]}


@pytest.fixture
def workbench(pipeline):
    return Workbench(pipeline)


@pytest.fixture
def quick_calibration(monkeypatch):
    monkeypatch.setattr(CalibrationCalls, "STEPS", 2)
    monkeypatch.setattr(CalibrationCalls, "COUNT", 2)
    monkeypatch.setattr(calibration_calls, "EMBEDDED_PROMPTS", 2)


WRONG = {
    "prompt": ["", "   ", None, 3, "x" * 2001],
    "seed": [-1, 1.5, "abc", True, 2**32, None],
    "steps": [0, -3, 1001, 2.5, "ten", None],
    "guidance": [-0.1, math.nan, math.inf, "high", None],
    "variants": [[], None, [Choice().as_dict()] * 2, [{"kind": "INT8"}], [7], [{"excluded": [3]}],
                 [{"scheme": f"x{i}"} for i in range(13)]],
    "0.scheme": [{"scheme": "INT5"}, {"scheme": None}],
    "0.block": [{"scheme": "INT4", "block": 7}, {"block": "wide"}, {"block": 1}, {"scheme": "NVFP4", "block": [16]}],
    "0.activations": [{"activations": "NF4"}, {"activations": "FP4"}, {"activations": 8}],
    "0.scale": [{"scale": "static tensor"}, {"activations": "INT8", "scale": "by hand"}],
    "0.algorithm": [{"algorithm": "best"}, {"algorithm": "smoothquant"}, {"scheme": "NF4", "algorithm": "mse"}],
    "0.excluded": [{"excluded": ["nothing_like_it"]}, {"excluded": ["*"]}, {"excluded": [" "]}],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_wrong_input_has_an_error_at_its_field(workbench, field, value):
    changes = {"variants": [{**Choice().as_dict(), **value}]} if field.startswith("0.") else {field: value}
    request, errors = workbench.validate(ASKED | changes)  # as a front end sends it
    assert request is None
    assert list(errors) == [field]
    assert len(errors[field]) > 15
    with pytest.raises(ValueError):
        workbench.request(ASKED | changes)


def test_alternatives_say_why_not():
    options = alternatives(Choice("INT8"))
    reasons = {name: {value: reason for value, _, reason in values} for name, values in options.items()}
    assert all(reason == "" for reason in reasons["scheme"].values())
    assert reasons["algorithm"]["mse"] == ""
    assert "smoothquant" in reasons["algorithm"]["smoothquant"]
    assert "activations" in reasons["scale"]["static tensor"]
    if not torch.cuda.is_available():
        assert "CUDA" in reasons["activations"]["NVFP4"]
    w8a8 = {value: reason for value, _, reason in alternatives(Choice("INT8", activations="INT8"))["algorithm"]}
    assert w8a8["smoothquant"] == ""


def test_what_is_not_refused_generates(quick_calibration, workbench):
    choices = [
        Choice("INT8 channel", activations="INT8", scale="static tensor", algorithm="smoothquant"),
        Choice("INT4 block", algorithm="awq_lite", excluded=tuple(f"transformer_blocks.{i}" for i in range(2, 8))),
        Choice("NF4", block=128, pointwise=True),
        Choice("FP8", activations="FP8", excluded=("attn1",)),
    ]
    assert [why_not(choice) for choice in choices] == [""] * 4
    request = workbench.request(ASKED | {"variants": choices, "steps": 1})
    assert [tile.name for tile in workbench.generate(request)] == ["dense", *(choice.name for choice in choices)]


def test_names_are_different_for_different_choices():
    choices = [Choice(s, b, a, c, m, p, e) for s in SCHEMES for b in (None, 32) for a in ("", "INT8") for c in ("", "static tensor")
               for m in ("max", "mse") for p in (False, True) for e in ((), ("a",), ("a", "b")) if a or not c]  # fmt: skip
    assert len({c.name for c in choices}) == len(choices)
    assert all(Choice.of(c.as_dict()) == c for c in choices)


def test_oldest_images_are_dropped_first(pipeline, instant):
    small = Workbench(pipeline, cached=3)
    for seed in range(3):
        request = small.request(ASKED | {"seed": seed})
        assert [tile.name for tile in small.generate(request)] == ["dense", "INT8"]
        assert len(small.cached_tiles(request)) == 2
    assert len(small.pictures) == 3
    more = small.request(ASKED | {"seed": 2, "variants": ["INT8", "INT4", "FP8"]})
    assert [tile.name for tile in small.generate(more)] == ["INT4", "FP8"]  # its dense image is the oldest, and stays
    assert len(small.cached_tiles(more)) == 4


def test_calls_are_recorded_once_per_prompt(pipeline, monkeypatch):
    recordings, generate = [], calibration_calls.generate
    monkeypatch.setattr(calibration_calls, "is_embedded", lambda pipeline: False)
    monkeypatch.setattr(calibration_calls, "generate", lambda *a, **k: recordings.append(a[1]) or generate(*a, **k))
    monkeypatch.setattr(CalibrationCalls, "STEPS", 2)
    calls = CalibrationCalls(pipeline, "transformer", None)
    steps = []
    first = calls.get("a fox", lambda: steps.append(1))
    assert len(steps) == 2
    assert calls.get("a fox", lambda: None) is first
    calls.get("an owl", lambda: None)
    assert recordings == [["a fox"], ["an owl"]]


def test_code_of_another_component_records_its_calls(pipeline):
    code = CalibrationCalls(pipeline, "text_encoder", ["a fox"]).code("an owl")
    assert code[0] == "with modelopt_nb.record_calls(pipeline, 8, component='text_encoder') as calls:"
    assert "['a fox']" in code[1]


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


def test_code_generates_the_same_image_without_the_widget(quick_calibration, workbench, tmp_path):
    plain = [Choice("INT8 channel", pointwise=False), Choice("INT4", pointwise=False)]
    with_package = [Choice("NF4", pointwise=True), Choice("INT8", activations="INT8", algorithm="smoothquant")]
    request = workbench.request(ASKED | {"variants": [*plain, *with_package], "steps": 1})
    tiles = list(workbench.generate(request))
    codes = [workbench.code(request, choice) for choice in (None, *request.choices)]
    script = SCRIPT.format(codes=codes, folder=tmp_path)
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    imported = [line for line in run.stdout.splitlines() if line in ("True", "False")]
    assert imported == ["False"] * 3 + ["True"] * 2
    for i, tile in enumerate(tiles):
        assert np.array_equal(np.load(tmp_path / f"{i}.npy"), tile.picture), tile.name


def test_captions_show_the_numbers_that_the_workbench_adds():
    assert {OF_DENSE, CLASSIFIED} <= set(CAPTION)


@pytest.mark.parametrize("prompts", ["a fox", ("a fox",), np.array(["a fox"])])
def test_code_of_prompts_however_they_are_given(pipeline, prompts):
    assert "generate(pipeline, ['a fox']" in CalibrationCalls(pipeline, "transformer", prompts).code("an owl")[1]
