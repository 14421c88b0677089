"""Weights whose numbers are easily lost: zeros, and values at the ends of a dtype's range."""

import pytest
import torch

from modelopt_nb import SCHEMES, enable, make_config, plan, quantize, round_weight, weight_bytes
from modelopt_nb.lab.quality.weights import weight_errors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def relative_error(weight: torch.Tensor, scheme: str) -> float:
    model = torch.nn.Sequential(torch.nn.Linear(128, 128)).to(weight.dtype)
    rounded = round_weight(weight, plan(model, make_config(scheme)).layers[0].layout.cfg)
    assert torch.equal(rounded[weight == 0], weight[weight == 0])
    return ((rounded.double() - weight.double()).norm() / weight.double().norm()).item()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_small_weights_lose_no_more_in_float16_than_in_float32(scheme):
    enable()
    weight = torch.randn(128, 128)
    weight[3], weight[5, :64] = 0, 0
    weight /= weight.abs().max()
    for amax in (6e4, 1, 2e-3, 2e-4, 1e-5):  # below, float16 holds a weight in less than 8 bits
        expected = relative_error(weight * amax, scheme)
        for dtype in DTYPES[1:]:
            bound = 1.04 if dtype == torch.float16 else 1.15
            most = max(bound * expected, {"FP8": 0.028, "INT8": 0.015}.get(scheme.split()[0], 0) if amax == 1e-5 else 0)
            assert relative_error((weight * amax).to(dtype), scheme) <= most, (amax, dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_of_zeros_stays_zero(scheme, dtype):
    model = torch.nn.Sequential(torch.nn.Linear(128, 128, bias=False)).to(dtype)
    torch.nn.init.zeros_(model[0].weight)
    assert weight_errors(model, make_config(scheme)).tolist() == [0.0]
    quantize(model, make_config(scheme))
    assert model(torch.ones(1, 128, dtype=dtype)).tolist() == [[0.0] * 128]


def test_scales_of_float16_weights_are_float32():
    model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False)).half()
    planned = plan(model, make_config("INT8 channel")).layers[0].packed_bytes
    quantize(model, make_config("INT8 channel"))
    assert weight_bytes(model).by_dtype == {"int8": 128 * 64, "float32": 4 * 64}
    assert planned == 128 * 64 + 4 * 64
