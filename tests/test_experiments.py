import copy

import pytest
import torch
from tests.architectures import build

from modelopt_nb import Call, capture, layer_groups, make_config, quantize, sensitivity
from modelopt_nb.experiments import gradient_scores
from modelopt_nb.quantization import plan


def relative_error(model, dense, call) -> float:
    reference = call(dense)
    return float((call(model) - reference).double().square().sum() / reference.double().square().sum())


@pytest.fixture
def call(inputs) -> Call:
    return Call(0, (), inputs)


@pytest.mark.parametrize("config", [make_config("INT4"), make_config("INT4", pointwise_as_linear=True),
                                    make_config("INT8", channel_quantize=0, weight_only=False)])  # fmt: skip
def test_errors_are_those_of_really_quantizing(transformer, call, config):
    if not config.weight_only:
        config.forward_loop = call
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    frame = sensitivity(transformer, config, [call], "part", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())
    groups = layer_groups(transformer, "part", [x.name for x in plan(transformer, config)[0] if x.packed])
    for group, names in groups.items():
        others = [name for other, theirs in groups.items() if other != group for name in theirs]
        for spared, column in ((others, "error alone"), (names, "error without")):
            config.modules_to_not_convert = spared
            model = copy.deepcopy(transformer)
            quantize(model, config)
            error = relative_error(model, transformer, call)
            assert frame.loc[group, column] == pytest.approx(error, rel=1e-4)
            assert error > 0
        config.modules_to_not_convert = []


def test_rows_are_sorted_by_error_for_their_bytes(transformer, call):
    frame = sensitivity(transformer, make_config("FP8"), [call], {"q": "to_q", "rest of attention": ["to_k", "to_v"]})
    assert frame["error per MiB saved"].is_monotonic_decreasing
    saved = (frame["dense bytes"] - frame["packed bytes"]) / 2**20
    assert frame["error per MiB saved"].to_list() == pytest.approx((frame["error alone"] / saved).to_list())
    assert frame.loc["rest of attention", "layers"] == 4


def test_an_interrupted_run_keeps_what_it_finished(transformer, inputs):
    class Interrupted(Call):
        made = 0

        def __call__(self, model):
            Interrupted.made += 1
            if Interrupted.made == 6:  # one dense, two groups of two, and one more
                raise KeyboardInterrupt
            return super().__call__(model)

    before = dict(transformer.named_modules())
    with pytest.warns(UserWarning, match="interrupted: 2 of 6 groups are finished"):
        frame = sensitivity(transformer, make_config("FP8"), [Interrupted(0, (), inputs)], progress=False)
    assert len(frame) == 2
    assert dict(transformer.named_modules()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calls": []}, "calls is empty"),
        ({"groups": {"a": "conv_depth"}}, "holds no layer that quant_type='INT4' packs"),
        ({"groups": {"a": "no_such"}}, r"groups\['a'\] holds 'no_such'"),
    ],
)
def test_wrong_input(transformer, call, arguments, message):
    given = {"config": make_config("INT4"), "calls": [call]} | arguments
    with pytest.raises(ValueError, match=message):
        sensitivity(transformer, **given)


@pytest.mark.parametrize("pointwise", [False, True])
def test_auto_quantize_scores_stand_for_the_measured_errors(pipeline, pointwise):
    calls = capture(pipeline, ["a lemon on a blue background"], steps=4, at=(0.5,))
    model, config = pipeline.transformer, make_config("INT4", pointwise_as_linear=pointwise)
    groups = layer_groups(model, "part", [x.name for x in plan(model, config)[0] if x.packed])
    measured = sensitivity(model, config, calls, groups, without=False, progress=False)["error alone"]
    scores = gradient_scores(model, config, calls, groups, progress=False)
    ratio = measured / measured.index.map(scores)
    assert ratio.between(0.3, 3).all()
    assert measured.corr(ratio.index.to_series().map(scores), method="spearman") > 0.8
    with pytest.raises(ValueError, match="cannot try NF4"):
        gradient_scores(model, make_config("NF4"), calls, groups)


def test_captured_calls_are_the_pipelines_own(pipeline):
    outputs = []
    hook = pipeline.transformer.register_forward_hook(lambda model, args, output: outputs.append(output[0].clone()))
    try:
        calls = capture(pipeline, ["a lemon on a blue background"], 3, steps=5, at=(0, 0.5, 1))
    finally:
        hook.remove()
    assert [(call.step, call.steps) for call in calls] == [(0, 5), (2, 5), (4, 5)]
    assert [call.weight for call in calls] == pytest.approx([1, 0.36, 0.04])
    for call in calls:
        assert torch.equal(call(pipeline.transformer), outputs[call.step])


@pytest.mark.parametrize(("arguments", "message"), [({"at": (1.5,)}, "at="), ({"at": ()}, "at="), ({"prompts": []}, "prompts="),
                                                    ({"component": "unet"}, "component='unet'")])  # fmt: skip
def test_wrong_captures(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        capture(pipeline, **{"prompts": ["a lemon on a blue background"]} | arguments)


@pytest.mark.parametrize("name", ["SD3", "FLUX", "UNet2DCondition", "Wan"])
def test_other_models(name):
    model, inputs = build(name)
    frame = sensitivity(model, make_config("NVFP4", pointwise_as_linear=True), [Call(0, (), inputs)], progress=False)
    assert (frame["error alone"] > 0).all() and (frame["error alone"] < 1).all()
    assert len(frame) >= 5
