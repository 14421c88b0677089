"""After every public verb, finished, failed or interrupted, nothing else has changed."""

import ast
import contextlib
import copy
import functools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from modelopt.torch.quantization.nn import TensorQuantizer

import modelopt_nb as nb
from modelopt_nb import compare, fit_budget, generate, make_config, record_calls
from modelopt_nb.upstream.layers import is_packed
from tests.lab.conftest import interrupting, interrupting_all

CALL = {"steps": 2}
NF4, INT8, INT8_INT8 = make_config("NF4"), make_config("INT8"), make_config("INT8_INT8")
LINEAR = make_config("INT8", disable_conv_quantization=True)
IMAGE = np.zeros((8, 8, 3), np.uint8)
STUB = Path(nb.__file__).with_suffix(".pyi")
#: Public classes that hold values, and an error.
DATA_CLASSES = {
    "Budget", "CheckpointError", "Choice", "Comparison", "Forecast", "LayerPlan", "LayerRow", "ModelCall", "ModelRows", "PeakMemory",
    "Plan", "QuantType", "Report", "Variant", "WeightBytes", "WeightLayout",
}  # fmt: skip
#: Lower-level verbs, and the one that calls them here.
WITHIN = {
    "auto_quantize_scores": "fit_budget", "calibrate": "export", "export_quantized": "export",
    "ModelOptConfig": "make_config",
}  # fmt: skip


def calls_of(pipeline, **options) -> list:
    with record_calls(pipeline, **options) as calls:
        generate(pipeline, ["cat", "dog"], **CALL, decode=options.get("component") == "vae")
    return calls


def in_folder(verb):
    def run(pipeline):
        with tempfile.TemporaryDirectory() as folder:
            return verb(pipeline, Path(folder))

    return run


def inside(pipeline, context):
    with context:
        return pipeline.unet(torch.ones(1, 4, 8, 8), 1, torch.ones(1, 4, 32))


def packed(pipeline, config=INT8, *loop):
    model = copy.deepcopy(pipeline.unet)
    return model, nb.quantize(model, config, *loop)


def saved_and_loaded(pipeline, folder):
    nb.save_calls(calls_of(pipeline), folder / "calls.pt")
    return nb.load_calls(folder / "calls.pt")


@functools.cache
def comparison():
    from tests.lab.small_pipelines import stable_diffusion

    result = compare(stable_diffusion(), ["INT8"], ["cat"], steps=4, progress=False)
    for variant in result.variants:
        object.__setattr__(variant, "correct", pd.DataFrame({"subject_ok": [True], "background_ok": [True]}))
    return result


def loop(pipeline):
    return nb.replay_loop(calls_of(pipeline))


#: What runs the pipeline's UNet or a copy of it, by the name of the verb and what it is about.
RUNNING = {
    "generate": lambda p: generate(p, ["cat", "dog"], **CALL),
    "compare": lambda p: compare(p, ["INT8", "NF4"], ["cat", "dog"], **CALL, progress=False),
    "record_calls": calls_of,
    "denoising_loop": lambda p: nb.denoising_loop(p, ["cat"], **CALL)(p.unet),
    "replay_loop": lambda p: loop(p)(p.unet),
    "save_calls": in_folder(saved_and_loaded),
    "sensitivity": lambda p: nb.sensitivity(p.unet, INT8, calls_of(p), "kind", without=True, progress=False),
    "fit_budget": lambda p: fit_budget(
        p.unet, calls_of(p), bits_per_weight=10, candidates=["INT8", "dense"], groups="kind", progress=False
    ),
    "fit_budget: by gradients": lambda p: fit_budget(
        p.unet, calls_of(p, keep=1), bits_per_weight=20, candidates=["INT8", "dense"], method="auto_quantize", progress=False
    ),
    "activation_ranges": lambda p: nb.activation_ranges(p.unet, calls_of(p)),
    "quantize: static": lambda p: packed(p, INT8_INT8, loop(p)),
    "quantize: smoothquant": lambda p: packed(p, make_config("INT8_INT8", algorithm="smoothquant"), loop(p)),
    "quantize: svdquant": lambda p: packed(p, make_config("INT4 block", algorithm="svdquant"), loop(p)),
    "export": in_folder(lambda p, folder: nb.export(p.unet, LINEAR, folder / "new")),
    "input_amax": lambda p: inside(p, nb.input_amax(p.unet, ["conv_in"])),
    "peak_memory": lambda p: inside(p, nb.peak_memory()),
    "tensor_memory": lambda p: inside(p, nb.tensor_memory()),
    "quiet": lambda p: inside(p, nb.quiet()),
    "dequantized": lambda p: inside(p, nb.dequantized(p.unet)),
    "atomic_folder": in_folder(lambda p, folder: inside(p, nb.atomic_folder(folder / "new"))),
}  # fmt: skip
#: What does not run it.
STILL = {
    "compare: the VAE": lambda p: compare(p, ["FP8"], ["cat"], **CALL, component="vae", progress=False),
    "compare: the text encoder": lambda p: compare(p, ["FP8"], ["cat"], **CALL, component="text_encoder", progress=False),
    "record_calls: of the VAE": lambda p: calls_of(p, component="vae"),
    "load_calls": in_folder(saved_and_loaded),
    "quantize": packed,
    "enable": lambda p: nb.enable(),
    "repair_states": lambda p: nb.repair_states(),
    "make_config": lambda p: make_config("NF4", per_layer={"INT8": "attn1"}),
    "as_patterns": lambda p: nb.as_patterns("x", "attn1"),
    "matching_layers": lambda p: nb.matching_layers("Model", "x", "a", ["a"], ["a"]),
    "plan": lambda p: nb.plan(p.unet, NF4),
    "describe_layers": lambda p: nb.describe_layers(p.unet),
    "check_algorithm": lambda p: nb.check_algorithm(INT8, None),
    "weight_bytes": lambda p: nb.weight_bytes(p.unet),
    "round_weight": lambda p: nb.round_weight(p.unet.conv_in.weight, {"num_bits": 8}),
    "weight_errors": lambda p: nb.weight_errors(p.unet, NF4),
    "representable_values": lambda p: nb.representable_values("INT4"),
    "packed_bytes": lambda p: nb.packed_bytes(packed(p)[1]),
    "layer_frame": lambda p: nb.layer_frame(p.unet, NF4),
    "layer_groups": lambda p: nb.layer_groups(p.unet),
    "select": lambda p: nb.select(p.unet, "attn1"),
    "config_code": lambda p: nb.config_code(NF4),
    "check_scheme": lambda p: [nb.check_scheme("INT4", algorithm=a) for a in ("max", "awq_lite", "svdquant")],
    "algorithm_table": lambda p: nb.algorithm_table(["INT8"], []),
    "forecast": lambda p: nb.forecast(p, ["INT8"]),
    "afford": lambda p: nb.afford([p.unet], ["8 GiB"]),
    "architectures": lambda p: nb.architectures(),
    "plot_afford": lambda p: nb.plot_afford(pd.DataFrame({"8 GiB": ["FP8, offloaded", "no"]})),
    "get_component": lambda p: nb.get_component(p, "vae"),
    "load_pipeline": lambda p: nb.load_pipeline(device="cpu"),
    "load_prompts": lambda p: nb.load_prompts("show"),
    "load_classifier": lambda p: nb.load_classifier(),
    "classify": lambda p: nb.classify([IMAGE]),
    "psnr": lambda p: nb.psnr(IMAGE, IMAGE),
    "ssim": lambda p: nb.ssim(IMAGE, IMAGE),
    "plot_errors": lambda p: nb.plot_errors(pd.DataFrame({"a": [1.0, 2.0]}), "INT8"),
    "plot_format": lambda p: nb.plot_format("INT8", np.array([0.0, 1.0]), np.ones((2, 2))),
    "plot_layers": lambda p: nb.plot_layers({"a": nb.layer_frame(p.unet, INT8)}),
    "plot_ranges": lambda p: nb.plot_ranges(pd.DataFrame({0: [1.0]}, index=["a"])),
    "plot_sensitivity": lambda p: nb.plot_sensitivity(pd.DataFrame({"error alone": [1.0], "error per MiB saved": [1.0]})),
    "plot_difference": lambda p: nb.plot_difference(comparison()),
    "plot_grid": lambda p: nb.plot_grid(comparison()),
    "plot_pictures": lambda p: nb.plot_pictures({"a": IMAGE}),
    "plot_frontier": lambda p: nb.plot_frontier(comparison(), {"a": ["INT8"]}),
    "plot_quality": lambda p: nb.plot_quality(comparison()),
    "plot_schemes": lambda p: nb.plot_schemes(comparison()),
    "Explorer": lambda p: nb.Explorer(p, ["INT8"], "cat", steps=2),
    "BlindTest": lambda p: nb.BlindTest(p, ["INT8"], ["cat"], steps=2),
}  # fmt: skip
#: What needs files that are not here, or is tested apart.
MISSING = {"lpips": lambda p: nb.lpips(), "clip_score": lambda p: nb.clip_score("no/clip")}
NO_VERB = {"doctor"}  # test_after_the_doctor
VERBS = RUNNING | STILL
BROKEN = [
    lambda p, v=verb, a=arguments: getattr(nb, v)(torch.nn.LayerNorm(4), *a)
        for verb, arguments in {
            "quantize": (INT8,), "plan": (INT8,), "weight_errors": (INT8,), "sensitivity": (INT8, [print]),
            "layer_frame": (INT8,), "select": ("a",), "export": (INT8, "no"),
        }.items()
]  # fmt: skip


def test_every_public_verb_is_in_the_table():
    names = {alias.asname for node in ast.walk(ast.parse(STUB.read_text())) if isinstance(node, ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    public = {name for name in names if callable(getattr(nb, name)) and name not in DATA_CLASSES}
    assert {name for name in names if name in DATA_CLASSES} == DATA_CLASSES
    assert public == {name.split(":")[0] for name in VERBS} | set(MISSING) | NO_VERB | set(WITHIN)


#: How often a verb calls the UNet, by its name.
COUNTS: dict[str, int] = {}


@pytest.mark.parametrize("verb", VERBS)
def test_after_a_verb_that_finishes(nothing_else_changes, used, verb):
    comparison() if verb.startswith("plot_") else None
    results = []
    with interrupting(used.unet, 0, RuntimeError) as count, nothing_else_changes() as pipeline:
        results.append(VERBS[verb](pipeline))
    assert results, "it raised"
    COUNTS[verb] = count[0]


@pytest.mark.filterwarnings("ignore:interrupted", "ignore:variant .* failed")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("verb", RUNNING)
def test_after_a_verb_that_is_interrupted_or_raises(nothing_else_changes, used, verb, error):
    """Interrupt at each call of a hook of the UNet, of many calls at the first, middle and last; raise at the last."""
    if verb not in COUNTS:  # the test above was left out
        with interrupting(used.unet, 0, error) as count:
            RUNNING[verb](used)
        COUNTS[verb] = count[0]
    most = COUNTS[verb]
    assert most
    calls = range(1, most + 1) if most <= 4 else (1, most // 2, most)
    for call in calls if error is KeyboardInterrupt else (most,):
        with nothing_else_changes() as pipeline, interrupting(pipeline.unet, call, error) as count:
            RUNNING[verb](pipeline)
        assert count[0] >= call


#: What is interrupted inside a model, of this pipeline or of another, and at which of its calls.
INNER = [
    (lambda m: isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) and not is_packed(m), lambda most: {most // 2}),
    (is_packed, lambda most: {1, most}),
    (lambda m: isinstance(m, TensorQuantizer), lambda most: {most // 2, most}),
]


@pytest.mark.filterwarnings("ignore:interrupted", "ignore:variant .* failed")
@pytest.mark.parametrize("verb", RUNNING)
def test_after_a_verb_that_is_interrupted_in_a_layer(nothing_else_changes, used, verb):
    """Interrupt at the first, a middle or the last call of all dense layers, packed layers and quantizers."""
    nb.enable()  # whose probes quantize layers, too
    with contextlib.ExitStack() as stack:
        counts = [stack.enter_context(interrupting_all(chosen, 0)) for chosen, _ in INNER]
        RUNNING[verb](used)
    for (chosen, calls), (most,) in zip(INNER, counts, strict=True):
        for call in calls(most) if most else ():
            with nothing_else_changes() as pipeline, interrupting_all(chosen, call) as count:
                RUNNING[verb](pipeline)
            assert count[0] >= call


@pytest.mark.parametrize("call", [*MISSING.values(), *BROKEN])
def test_after_a_verb_that_refuses_what_it_gets(nothing_else_changes, call):
    finished = []
    with nothing_else_changes() as pipeline:
        finished.append(call(pipeline))
    assert not finished


def test_after_the_doctor(nothing_else_changes, monkeypatch, capsys):
    monkeypatch.setattr("modelopt_nb.lab.search.algorithms.check_scheme", lambda name: "not tried")
    with nothing_else_changes():
        nb.doctor()
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
