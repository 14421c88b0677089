import copy
import itertools

import pytest
import torch
from tests.architectures import build

import modelopt_nb
from modelopt_nb import Call, fit_budget, make_config, quantize, weight_bytes
from modelopt_nb.budget import _cover, _solve

TWO = ["dense", "INT8 channel", "INT4"]


@pytest.fixture
def call(inputs) -> Call:
    return Call(0, (), inputs)


def same(config, other) -> bool:
    return config.to_dict() == other.to_dict()


def test_the_solver_finds_the_best_of_all_choices():
    torch.manual_seed(3)
    groups, schemes = [f"g{i}" for i in range(6)], ["a", "b", "c"]
    sizes = {s: {g: int(torch.randint(10, 1000, ()) * 1000) for g in groups} for s in schemes}
    errors = {s: {g: float(torch.rand(())) for g in groups} for s in schemes}
    limit = 0.45 * sum(max(sizes[s][g] for s in schemes) for g in groups)
    every = [dict(zip(groups, c, strict=True)) for c in itertools.product(schemes, repeat=len(groups))]
    fitting = [c for c in every if sum(sizes[s][g] for g, s in c.items()) <= limit]
    best = min(fitting, key=lambda c: sum(errors[s][g] for g, s in c.items()))
    assert _solve(sizes, errors, limit) == best


@pytest.mark.parametrize("name", ["Sana", "SD3", "FLUX", "UNet2DCondition", "Wan"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_bytes_are_those_that_are_measured(name, share, tmp_path):
    modelopt_nb.enable()
    model, inputs = build(name)
    smallest = quantize(copy.deepcopy(model), make_config("NF4", pointwise_as_linear=True)).after.mib
    mib = smallest + share * (weight_bytes(model).mib - smallest)
    call = Call(0, (), inputs)
    budget = fit_budget(model, [call], mib=mib, groups="kind", progress=False)
    assert budget.mib <= mib
    model.save_pretrained(tmp_path / "dense")
    packed = copy.deepcopy(model)
    report = quantize(packed, budget.config)
    assert report.after.total == budget.bytes
    # what the code says, loads, saves and computes is the same
    again = eval(budget.code, {"make_config": make_config})
    assert same(again, budget.config)
    loaded = type(model).from_pretrained(tmp_path / "dense", quantization_config=again, dtype=torch.float32)
    loaded.save_pretrained(tmp_path / "packed")
    restored = type(model).from_pretrained(tmp_path / "packed")
    for other in (loaded, restored):
        assert weight_bytes(other).total == budget.bytes
        assert torch.equal(call(other), call(packed))


def test_it_is_better_than_one_type_of_the_same_bytes(pipeline):
    calls = modelopt_nb.capture(pipeline, ["a lemon on a blue background"], steps=6, at=(0.2, 0.8))
    uniform = copy.deepcopy(pipeline.transformer)
    size = quantize(uniform, make_config("INT4", pointwise_as_linear=True)).after.total
    budget = fit_budget(
        pipeline.transformer, calls, mib=size / 2**20, candidates=["INT8 channel", "NF4", "INT4"], progress=False
    )
    assert 0.99 * size < budget.bytes <= size
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
    calls = modelopt_nb.capture(pipeline, ["a lemon on a blue background"], steps=4, at=(0.5,))
    budgets = [
        fit_budget(pipeline.transformer, calls, bits_per_weight=6, candidates=TWO, method=method, progress=False)
        for method in ("output", "auto_quantize")
    ]
    assert budgets[1].bytes <= 6 * weight_bytes(pipeline.transformer).weights / 8
    assert budgets[1].error == pytest.approx(budgets[0].error, rel=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mib": 0.1}, r"mib=0.1 cannot be met .*Allowed: 0\.\d+ MiB \(\d+\.\d+ bits a weight\) to \d\.\d+ MiB \(32"),
        ({"mib": 99}, r"mib=99 cannot be met"),
        ({"bits_per_weight": 2}, r"bits_per_weight=2 cannot be met"),
        ({}, "give one of them"),
        ({"mib": 1, "bits_per_weight": 8}, "give one of them"),
        ({"mib": 1, "candidates": ["dense"]}, "holds no quant type"),
        ({"mib": 1, "candidates": ["INT5"]}, "quant_type='INT5' is not known"),
        ({"mib": 1, "method": "guess"}, "method='guess' is not known. Allowed: 'output', 'auto_quantize'"),
        ({"mib": 1, "groups": {"a": "attn1", "b": "to_q"}}, "twice"),
        ({"mib": 1, "candidates": ["NVFP4"], "method": "auto_quantize"}, "cannot try NVFP4"),
    ],
)
def test_wrong_input_is_refused_before_any_work(transformer, arguments, message):
    def never(model):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match=message):
        fit_budget(transformer, [never], **{"candidates": TWO, "progress": False} | arguments)


def test_covering_names():
    layers = ["a.0.q", "a.0.k", "a.1.q", "a.10.q", "b"]
    assert _cover({"a.0.q", "a.0.k"}, layers) == ["a.0"]
    assert _cover({"a.0.q", "a.1.q", "b"}, layers) == ["a.0.q", "a.1", "b"]
    assert _cover(set(layers), layers) == ["a", "b"]
    assert _cover(set(), layers) == []
