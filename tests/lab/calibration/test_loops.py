import pytest

from modelopt_nb import ModelCall, enable, make_config, quantize, replay_loop


@pytest.fixture(autouse=True)
def enabled():
    enable()


@pytest.mark.parametrize(
    "as_inputs",
    [
        lambda x: [x],
        lambda x: ({**x} for _ in range(2)),
        lambda x: [ModelCall(0, (), x)],
        lambda x: [tuple(x.values())],
    ],
)
def test_any_inputs_can_be_replayed(transformer, inputs, as_inputs):
    ordered = {name: inputs[name] for name in ("hidden_states", "encoder_hidden_states", "timestep")}
    loop = replay_loop(as_inputs(ordered))
    quantize(transformer, make_config("INT4 block", algorithm="awq_lite"), loop)  # runs it twice


def test_a_single_tensor_is_one_argument():
    found = []
    replay_loop(["a tensor", ["first", "second"]])(lambda *args: found.append(args))
    assert found == [("a tensor",), ("first", "second")]
