"""After every verb, finished, failed or interrupted, nothing else has changed."""

import pytest
import torch

from modelopt_nb import (
    activation_ranges,
    check_scheme,
    compare,
    denoising_loop,
    doctor,
    fit_budget,
    generate,
    layer_frame,
    make_config,
    record_calls,
    sensitivity,
    weight_errors,
)
from tests.lab.conftest import interrupting

CALL = {"steps": 2}


def calls_of(pipeline, **options) -> list:
    with record_calls(pipeline, **options) as calls:
        generate(pipeline, ["cat", "dog"], **CALL, decode=options.get("component") == "vae")
    return calls


VERBS = {
    "generate": lambda p: generate(p, ["cat", "dog"], **CALL),
    "compare": lambda p: compare(p, ["INT8", "NF4"], ["cat", "dog"], **CALL, progress=False),
    "compare the VAE": lambda p: compare(p, ["FP8"], ["cat"], **CALL, component="vae", progress=False),
    "compare the text encoder": lambda p: compare(p, ["FP8"], ["cat"], **CALL, component="text_encoder"),
    "record_calls": calls_of,
    "record_calls of the VAE": lambda p: calls_of(p, component="vae"),
    "denoising_loop": lambda p: denoising_loop(p, ["cat"], **CALL)(p.unet),
    "sensitivity": lambda p: sensitivity(p.unet, make_config("INT8"), calls_of(p), "kind", without=True),
    "fit_budget": lambda p: fit_budget(p.unet, calls_of(p), bits_per_weight=10, candidates=["INT8", "dense"]),
    "fit_budget by gradients": lambda p: fit_budget(
        p.unet, calls_of(p), bits_per_weight=20, candidates=["INT8", "dense"], method="auto_quantize", progress=False
    ),
    "activation_ranges": lambda p: activation_ranges(p.unet, calls_of(p)),
    "weight_errors": lambda p: weight_errors(p.unet, make_config("NF4")),
    "layer_frame": lambda p: layer_frame(p.unet, make_config("NF4")),
    "check_scheme": lambda p: [check_scheme("INT4", algorithm=a) for a in ("max", "awq_lite", "svdquant")],
}


@pytest.mark.parametrize("verb", VERBS)
def test_after_a_verb_that_finishes(nothing_else_changes, verb):
    results = []
    with nothing_else_changes() as pipeline:
        results.append(VERBS[verb](pipeline))
    assert results, "it raised"


@pytest.mark.filterwarnings("ignore:interrupted", "ignore:variant .* failed")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("call", [1, 4, 7])
@pytest.mark.parametrize(
    "verb", ["generate", "compare", "record_calls", "sensitivity", "fit_budget", "fit_budget by gradients"]
)
def test_after_a_verb_that_is_interrupted_or_raises(nothing_else_changes, verb, call, error):
    with nothing_else_changes() as pipeline, interrupting(pipeline.unet, call, error):
        VERBS[verb](pipeline)


def test_after_the_doctor(nothing_else_changes, monkeypatch, capsys):
    monkeypatch.setattr("modelopt_nb.lab.search.algorithms.check_scheme", lambda name: "not tried")
    with nothing_else_changes():
        doctor()
        assert "not tried" in capsys.readouterr().out


def test_recordings_inside_recordings(used):
    with record_calls(used, None) as outer, record_calls(used, None, component="vae") as inner:
        generate(used, ["cat"], steps=2)
        with record_calls(used, None, at=(1,)) as last:
            generate(used, ["cat"], steps=3)
    assert [call.step for call in outer] == [0, 1, 0, 1, 2]
    assert [call.step for call in last] == [2]
    assert [call.method for call in inner] == ["decode", "decode"]


def test_a_copied_scheduler_steps_itself(used):
    """LTX-2 denoises its sound with a deep copy of the scheduler, made while the calls are recorded."""
    import copy

    with record_calls(used):
        used.scheduler.set_timesteps(4)
        twin = copy.deepcopy(used.scheduler)
        twin.set_timesteps(2)
        assert (len(used.scheduler.timesteps), len(twin.timesteps)) == (4, 2)
        twin.step(torch.zeros(1, 4, 8, 8), twin.timesteps[0], torch.zeros(1, 4, 8, 8), generator=None)
