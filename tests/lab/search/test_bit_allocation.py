import copy

import pytest

from modelopt_nb import ModelCall, enable, fit_budget, generate, make_config, quantize, record_calls, weight_bytes
from modelopt_nb.lab.search import sensitivity
from tests.architectures import build

TWO = ["dense", "INT8 channel", "INT4"]


@pytest.fixture
def call(inputs) -> ModelCall:
    return ModelCall(0, (), inputs)


def same(config, other) -> bool:
    return config.to_dict() == other.to_dict()


@pytest.mark.parametrize(
    ("name", "share"),
    [("Sana", 0.3), ("Sana", 0.6), ("SD3", 0.3), ("FLUX", 0.6), ("UNet2DCondition", 0.3), ("Wan", 0.6)],
)
def test_the_bytes_are_those_that_are_measured(name, share, tmp_path):
    enable()
    model, inputs = build(name)
    smallest = quantize(copy.deepcopy(model), make_config("NF4", pointwise_as_linear=True)).after.mib
    mib = smallest + share * (weight_bytes(model).mib - smallest)
    call = ModelCall(0, (), inputs)
    budget = fit_budget(model, [call], mib=mib, groups="kind", progress=False)
    assert budget.mib <= mib
    model.save_pretrained(tmp_path / "dense")
    packed = copy.deepcopy(model)
    report = quantize(packed, budget.config)
    assert report.after.total == budget.bytes
    # the code builds the same configuration, which loads, saves and computes the same
    again = eval(budget.code, {"make_config": make_config})
    assert same(again, budget.config)
    loaded = type(model).from_pretrained(
        tmp_path / "dense", quantization_config=again, dtype=next(model.parameters()).dtype
    )
    loaded.save_pretrained(tmp_path / "packed")
    restored = type(model).from_pretrained(tmp_path / "packed")
    for other in (loaded, restored):
        assert weight_bytes(other).total == budget.bytes
        assert call(other).equal(call(packed))


def test_it_is_better_than_one_type_of_the_same_bytes(pipeline):
    with record_calls(pipeline, None, at=(0.5,)) as calls:
        generate(pipeline, ["a lemon on a blue background"], steps=3, decode=False)
    uniform = copy.deepcopy(pipeline.transformer)
    size = quantize(uniform, make_config("INT4", pointwise_as_linear=True)).after.total
    candidates = ["INT8 channel", "NF4", "INT4"]
    budget = fit_budget(
        pipeline.transformer, calls, mib=size / 2**20, candidates=candidates, groups="kind", progress=False
    )
    assert 0.97 * size < budget.bytes <= size
    best = copy.deepcopy(pipeline.transformer)
    quantize(best, budget.config)

    def error(model) -> float:
        return sum(float((call(model) - call(pipeline.transformer)).square().mean()) for call in calls)

    assert error(best) < 0.8 * error(uniform)


def test_a_second_choice_from_the_same_errors_measures_nothing(transformer, call):
    first = fit_budget(transformer, [call], bits_per_weight=12, candidates=TWO, progress=False)

    def never(model):
        raise AssertionError("the model was called")

    again = fit_budget(transformer, [never], bits_per_weight=12, candidates=TWO, errors=first.errors, progress=False)
    assert again.code == first.code
    assert again.errors.equals(first.errors)
    with pytest.raises(ValueError, match="errors are of groups and candidates other than"):
        fit_budget(transformer, [never], bits_per_weight=12, errors=first.errors, progress=False)


def test_auto_quantize_is_the_second_method(pipeline):
    with record_calls(pipeline, None, at=(0.5,)) as calls:
        generate(pipeline, ["a lemon on a blue background"], steps=3, decode=False)
    options = {"bits_per_weight": 12, "candidates": ["dense", "INT4"], "groups": "kind", "progress": False}
    budgets = [
        fit_budget(pipeline.transformer, calls, method=method, **options) for method in ("output", "auto_quantize")
    ]
    assert budgets[1].bytes <= 12 * weight_bytes(pipeline.transformer).weights / 8
    assert budgets[1].error == pytest.approx(budgets[0].error, rel=0.5)


def test_an_interrupted_budget_is_not_solved(transformer, call, monkeypatch):
    """Unlike a sensitivity run, which keeps the finished groups."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sensitivity, "output_error", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_budget(transformer, [call], bits_per_weight=12, candidates=TWO, progress=False)
