import copy

import pytest
import torch
from modelopt.torch.quantization import quantize as mtq_quantize
from torch import nn

from modelopt_nb import ACTIVATION_SCALES, SCHEMES, input_amax, make_config, plan, quantize
from modelopt_nb.upstream.layers import make_linear

STATIC = [(kind, scale) for kind in ("FP8", "INT8") for scale in ACTIVATION_SCALES if "static" in scale]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(128, 128, 3), nn.SiLU(), nn.Conv2d(128, 128, 1), nn.Flatten(2), nn.Linear(256, 128))


@pytest.fixture(scope="module")
def batches():
    return [torch.randn(2, 128, 18, 18) * scale for scale in (1, 3, 2)]


@pytest.mark.parametrize("scheme", ["INT8 channel", "INT4", "FP8"])
@pytest.mark.parametrize(("kind", "scale"), [*STATIC, ("NVFP4", None)])
def test_the_amax_is_what_modelopt_finds(model, batches, scheme, kind, scale):
    quant_type, blocks = SCHEMES[scheme]
    config = make_config(f"{quant_type}_{kind}", activation_scale=scale, pointwise_as_linear="4" in scheme, **blocks)
    ours, reference = copy.deepcopy(model), copy.deepcopy(model)
    quantize(ours, config, lambda model: [model(x) for x in batches])
    planned = plan(reference, config)
    for name in planned.pointwise:
        make_linear(reference, name)
    mtq_quantize(reference, {"quant_cfg": planned.entries, "algorithm": "max"}, lambda m: [m(x) for x in batches])
    found, expected = (
        {name: buffer for name, buffer in m.named_buffers() if name.endswith("input_quantizer._amax")}
        for m in (ours, reference)
    )
    assert found and found.keys() == expected.keys()
    for name, amax in expected.items():
        assert found[name].shape == amax.shape and torch.equal(found[name], amax)


def test_one_value_per_channel_over_all_calls(model, batches):
    with input_amax(model, ["0", "4"]) as found:
        for x in batches:
            model(x)
    expected = torch.stack([x.abs().amax((0, 2, 3)) for x in batches]).amax(0)
    assert torch.equal(found["0"], expected.reshape(1, 128, 1, 1))
    assert found["4"].shape == (1, 1, 256)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nan_names_the_layer_and_the_argument(model, batches):
    with (
        pytest.raises(FloatingPointError, match="calls: 0 gets NaN or infinity"),
        input_amax(model, ["0", "4"], "calls"),
    ):
        model(batches[0] * float("nan"))
    broken = copy.deepcopy(model)
    broken[4].bias.data.fill_(float("inf"))  # behind the input of the last layer
    with pytest.raises(FloatingPointError, match="calls: 4 returns NaN"), input_amax(broken, ["0", "4"], "calls"):
        broken(batches[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in broken.modules())
