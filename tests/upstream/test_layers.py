import copy

import pytest
import torch
from torch import nn

from modelopt_nb import describe_layers, make_config, quantize, weight_bytes
from modelopt_nb.upstream.layers import has_packed_layers, is_pointwise, make_linear
from tests.architectures import build, run


def test_rows_say_what_a_plan_needs():
    model = nn.Sequential(nn.Linear(4, 2).half(), nn.Conv2d(4, 2, 1), nn.LayerNorm(2), nn.Embedding(2, 2))
    described = describe_layers(model)
    linear, convolution = described.rows
    assert (described.kind, described.modules) == ("Sequential", {"", "0", "1", "2", "3"})
    assert (linear.name, linear.kind, linear.shape, linear.dtype, linear.bytes) == (
        "0",
        "Linear",
        (2, 4),
        "float16",
        16,
    )
    assert "nn.Linear" in linear.classes and "nn.Conv2d" in convolution.classes
    assert not linear.is_convolution and convolution.is_convolution and convolution.is_pointwise
    quantize(model[:1], make_config("FP8"))
    (packed,) = describe_layers(model[:1]).rows
    assert packed.is_packed and (packed.shape, packed.dtype) == ((2, 4), "float16")


def test_a_packed_layer_is_found_in_any_object():
    model = nn.Sequential(nn.Sequential(nn.Linear(32, 8)))
    assert not has_packed_layers(model)
    quantize(model, make_config("INT8"))
    assert has_packed_layers(model)
    assert not has_packed_layers("a tokenizer")


def test_only_convolutions_over_one_pixel_are_pointwise():
    yes = [nn.Conv1d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv3d(8, 8, 1), nn.Conv2d(8, 8, 1, padding="valid")]
    no = [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 1, groups=2),
          nn.ConvTranspose2d(8, 8, 1), nn.Linear(8, 8)]  # fmt: skip
    assert all(map(is_pointwise, yes)) and not any(map(is_pointwise, no))


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("name", ["Sana", "UNet2DCondition", "AutoencoderKL", "StableAudioDiT"])
def test_a_dense_model_computes_the_same_with_linear_layers(name, wrap):
    model, inputs = build(name)
    linear = copy.deepcopy(model)
    names = [n for n, m in model.named_modules() if is_pointwise(m)]
    for layer in names:
        make_linear(linear, layer, wrap=wrap)
    assert names
    assert weight_bytes(linear) == weight_bytes(model)
    torch.testing.assert_close(run(linear, inputs), run(model, inputs), rtol=1e-4, atol=1e-5)
