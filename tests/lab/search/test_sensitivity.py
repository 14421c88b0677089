import copy

import pytest

from modelopt_nb import ModelCall, generate, layer_groups, make_config, plan, quantize, record_calls, sensitivity
from modelopt_nb.lab.search.gradient_scores import gradient_scores
from tests.architectures import build


def relative_error(model, dense, call) -> float:
    reference = call(dense)
    return float((call(model) - reference).double().square().sum() / reference.double().square().sum())


@pytest.fixture
def call(inputs) -> ModelCall:
    return ModelCall(0, (), inputs)


@pytest.mark.parametrize("config", [make_config("INT4"), make_config("INT4", pointwise_as_linear=True),
                                    make_config("INT8", channel_quantize=0, weight_only=False)])  # fmt: skip
def test_errors_are_those_of_quantizing_the_group(transformer, call, config):
    if not config.weight_only:
        config.forward_loop = call
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    frame = sensitivity(transformer, config, [call], "part", without=True, progress=False)
    assert all(value.equal(before[name]) for name, value in transformer.state_dict().items())
    groups = layer_groups(transformer, "part", [x.name for x in plan(transformer, config).layers if x.packed])
    for group, names in groups.items():
        others = [name for other, theirs in groups.items() if other != group for name in theirs]
        for excluded, column in ((others, "error alone"), (names, "error without")):
            config.modules_to_not_convert = excluded
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
    class Interrupted(ModelCall):
        made = 0

        def __call__(self, model):
            Interrupted.made += 1
            if Interrupted.made == 4:  # one dense, two groups, and one more
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
def test_gradient_scores_estimate_the_measured_errors(pipeline, pointwise):
    with record_calls(pipeline, None, at=(0.5,)) as calls:
        generate(pipeline, ["a lemon on a blue background"], steps=3, decode=False)
    model, config = pipeline.transformer, make_config("INT4", pointwise_as_linear=pointwise)
    groups = layer_groups(model, "part", [x.name for x in plan(model, config).layers if x.packed])
    groups = dict(list(groups.items())[::2])  # every second one, of all parts and blocks
    assert len(groups) >= 9
    measured = sensitivity(model, config, calls, groups, progress=False)["error alone"]
    scores = measured.index.to_series().map(gradient_scores(model, config, calls, groups, progress=False))
    assert (measured / scores).between(0.3, 3).all()
    assert measured.corr(scores, method="spearman") > 0.8


def test_gradients_need_types_that_modelopt_rounds(transformer, call):
    with pytest.raises(ValueError, match="cannot try NF4"):
        gradient_scores(transformer, make_config("NF4"), [call], {"q": ["transformer_blocks.0.attn1.to_q"]})


@pytest.mark.parametrize("name", ["SD3", "FLUX", "UNet2DCondition", "Wan"])
def test_other_models(name):
    model, inputs = build(name)
    frame = sensitivity(
        model, make_config("NVFP4", pointwise_as_linear=True), [ModelCall(0, (), inputs)], progress=False
    )
    assert (frame["error alone"] > 0).all() and (frame["error alone"] < 1).all()
    assert len(frame) >= 5
