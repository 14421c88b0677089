"""Pipelines of other families: schedulers that forbid one step, calls without callbacks, lists of tensors."""

import numpy as np
import pytest
import torch

from modelopt_nb import (
    compare,
    generate,
    layer_frame,
    make_config,
    peak_memory,
    record_calls,
    sensitivity,
    weight_bytes,
)
from modelopt_nb.lab.compare.runner import Runner
from modelopt_nb.lab.widgets.workbench import Stopped, Workbench
from tests.lab.small_pipelines import SMALL, ltx, pixart, qwen_image, stable_diffusion, z_image


@pytest.mark.filterwarnings("ignore:In CPU autocast")  # of Mochi
@pytest.mark.parametrize("name", SMALL)
def test_every_family_can_be_compared(name):
    build, steps, call = SMALL[name]
    pipeline = build()
    alone = generate(pipeline, ["cat", "dog"], steps=steps, **call)
    comparison = compare(pipeline, ["INT8 channel"], ["cat", "dog"], steps=steps, progress=False, **call)
    assert all(np.array_equal(a, b) for a, b in zip(alone, comparison.images["dense"], strict=True))
    row = comparison.frame.loc["INT8 channel"]
    assert 20 < row["PSNR dB"] < 80
    assert row["s per step"] > 0 and row["peak MiB"] > 0


@pytest.mark.parametrize(
    ("build", "steps", "fewest"), [(stable_diffusion, 6, 4), (ltx, 3, 2), (pixart, 3, 1), (qwen_image, 3, 2)]
)
def test_the_probe_takes_as_few_steps_as_the_scheduler_can_do(build, steps, fewest):
    call = next(call for function, _, call in SMALL.values() if function is build)
    runner = Runner(build(), "unet" if build is stable_diffusion else "transformer", ["cat"], [0], steps, 1, call, int)
    dense = runner.run("dense", None)
    assert runner._fewest == fewest
    assert {call.step for call in runner._calls} == {0}
    with peak_memory() as memory:
        generate(runner.pipeline, ["cat"], [0], steps=fewest, **call)
    models = [part for part in runner.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert dense.peak == pytest.approx(memory.tensors + sum(weight_bytes(model).total for model in models), rel=0.01)


@pytest.mark.parametrize("name", ["PixArt", "IF"])
def test_each_step_is_counted_without_a_callback(name):
    build, steps, call = SMALL[name]
    ticks, pipeline = [], build()
    part = "unet" if name == "IF" else "transformer"
    runner = Runner(pipeline, part, ["cat", "dog"], [0, 1], steps, 1, call, lambda: ticks.append(1))
    runner.run("dense", None)
    assert len(ticks) == 2 * steps + 1
    assert "step" not in vars(pipeline.scheduler)


def test_stop_ends_a_pipeline_without_callbacks():
    pipeline, steps = pixart(), []
    pipeline.transformer.register_to_config(sample_size=32)
    workbench = Workbench(pipeline)
    request = workbench.request({"prompt": "cat", "seed": 0, "steps": 50, "guidance": 1.0, "variants": ["INT8"]})

    def third() -> None:
        steps.append(1)
        if len(steps) == 3:
            workbench.stop()

    with pytest.raises(Stopped):
        list(workbench.generate(request, third))
    assert len(steps) == 3


def test_lists_of_tensors_are_one_output():
    pipeline = z_image()
    _, steps, call = SMALL["Z-Image"]
    with record_calls(pipeline, None) as calls:
        generate(pipeline, ["cat", "dog"], steps=steps, decode=False, **call)
    output = calls[0](pipeline.transformer)
    with torch.no_grad():
        tensors = pipeline.transformer(*calls[0].args, **calls[0].kwargs)[0]
    assert isinstance(tensors, list)
    assert torch.equal(output, torch.cat([tensor.flatten() for tensor in tensors]))
    errors = sensitivity(pipeline.transformer, make_config("INT8 channel"), calls, "kind", progress=False)
    assert (errors["error alone"] > 0).any()


def test_layers_have_any_name():
    assert "all_x_embedder.2-1" in layer_frame(z_image().transformer).index
    model = torch.nn.ModuleDict({n: torch.nn.Linear(8, 8) for n in ("1x", "a b", "c[0]", "d-1", "é", "x2-")})
    model["to_out"] = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
    assert layer_frame(torch.nn.ModuleDict({"attn": model}))["kind"]["attn.to_out.0"] == "attention out"


def test_a_shared_module_has_one_row():
    layer = torch.nn.Linear(8, 8)
    assert list(layer_frame(torch.nn.Sequential(layer, layer, torch.nn.Sequential(layer))).index) == ["0"]
