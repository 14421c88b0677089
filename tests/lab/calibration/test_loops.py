import pytest

from modelopt_nb import ModelCall, denoising_loop, enable, make_config, quantize, replay_loop


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: denoising_loop(p, ["a lemon"], steps=1001), "steps=1001 is not allowed. Allowed: 1 to 1000"),
        (lambda p: denoising_loop(p, ["a lemon"], steps=0), "steps=0"),
        (lambda p: denoising_loop(p, ["a lemon"], batch_size=0), "batch_size=0"),
        (lambda p: denoising_loop(p, []), "prompts="),
        (lambda p: denoising_loop(p, ["a lemon"], component="unet"), "component='unet'"),
        (lambda p: replay_loop([]), "inputs is empty"),
    ],
)
def test_wrong_arguments(pipeline, make, message):
    with pytest.raises(ValueError, match=message):
        make(pipeline)
