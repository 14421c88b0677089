import pytest
import torch

from modelopt_nb import ModelCall, activation_ranges, layer_frame


def test_ranges_are_the_amax_of_each_layers_input(transformer, inputs):
    calls = [ModelCall(step, (), inputs | {"hidden_states": scale * inputs["hidden_states"]}, 3)
             for step, scale in ((0, 1.0), (2, 4.0), (2, 0.5))]  # fmt: skip
    ranges = activation_ranges(transformer, calls)
    assert list(ranges.columns) == [0, 2]
    assert list(ranges.index) == list(layer_frame(transformer).index)
    first = ranges.loc["patch_embed.proj"]
    assert first[0] == inputs["hidden_states"].abs().max()
    assert first[2] == 4 * first[0]


def test_a_layer_that_is_not_reached_has_no_number(transformer, inputs):
    block = transformer.transformer_blocks[0]
    attention = block.attn1.forward
    block.attn1.forward = lambda hidden_states, *args, **kwargs: hidden_states
    ranges = activation_ranges(transformer, [ModelCall(0, (), inputs)])
    block.attn1.forward = attention
    assert ranges[0].isna().sum() == ranges.index.str.contains("attn1").sum() > 0


def test_a_model_with_nan(transformer, inputs):
    call = ModelCall(0, (), inputs | {"hidden_states": inputs["hidden_states"] * float("nan")})
    with pytest.raises(FloatingPointError, match=r"calls: .*NaN"):
        activation_ranges(transformer, [call])
    with torch.no_grad():
        transformer.proj_out.bias.fill_(float("inf"))  # after the input of the last layer
    with pytest.raises(FloatingPointError, match=r"calls: .*NaN"):
        activation_ranges(transformer, [ModelCall(0, (), inputs)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in transformer.modules())
