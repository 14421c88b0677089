import copy

import pytest
import torch
from tests.architectures import run
from diffusers import NVIDIAModelOptConfig

from modelopt_nb import (
    ACTIVATION_SCALES,
    ALGORITHMS,
    SCHEMES,
    Call,
    activation_ranges,
    capture,
    compare,
    config_code,
    denoising_loop,
    enable,
    load_calls,
    make_config,
    quantize,
    recorded,
    replay_loop,
    upstream,
)
from modelopt_nb.config import CALIBRATORS
from modelopt_nb.pipeline import EMBEDDED
from modelopt_nb.quantization import plan

PROMPTS = ["a lemon on a blue background", "an owl on a red background", "a crab on a white background"]


@pytest.fixture(autouse=True)
def enabled():
    enable()


def scales(model) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("input_quantizer._amax")}


def test_replaying_every_call_gives_the_amax_of_the_pipeline(pipeline, tmp_path):
    loop = denoising_loop(pipeline, PROMPTS, 3, steps=4, batch_size=2, guidance_scale=3.0)
    with recorded(pipeline, None, path=tmp_path / "calls.pt") as calls:
        loop(pipeline.transformer)
    assert [call.step for call in calls] == [0, 1, 2, 3] * 2
    config = make_config("INT8", weight_only=False)
    found = []
    for forward_loop in (loop, replay_loop(calls), replay_loop(load_calls(tmp_path / "calls.pt"))):
        model = copy.deepcopy(pipeline.transformer)
        quantize(model, config, forward_loop)
        found.append(scales(model))
    assert len(found[0]) > 50
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


@pytest.mark.parametrize(
    ("keep", "steps"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))]
)
def test_what_is_kept_is_spread_over_the_steps(pipeline, keep, steps):
    with recorded(pipeline, keep) as calls:
        denoising_loop(pipeline, PROMPTS[:1], steps=10)(pipeline.transformer)
    assert [call.step for call in calls] == steps


def test_many_calls_are_thinned_as_they_come(pipeline):
    model = pipeline.vae.decoder
    pipe = type("Pipe", (), {"components": {"transformer": model}, "transformer": model})()
    longest = 0
    with recorded(pipe, 5) as calls:
        for i in range(1000):
            for hook in list(model._forward_pre_hooks.values()):
                hook(model, (i,), {})
            longest = max(longest, len(calls))
    kept = [call.args[0] for call in calls]
    assert longest <= 21
    assert kept[0] == 0 and kept[-1] == 999
    assert all(200 <= b - a <= 300 for a, b in zip(kept, kept[1:], strict=False))


@pytest.mark.parametrize("component", ["text_encoder", "vae"])
def test_other_parts_of_a_pipeline(pipeline, component):
    part = getattr(pipeline, component)
    loop = denoising_loop(pipeline, PROMPTS[:1], steps=2, component=component)
    with recorded(pipeline, None, component=component) as calls:
        loop(part)
    assert {call.method for call in calls} == {"forward" if component == "text_encoder" else "decode"}
    assert not {"decode", "encode"} & vars(part).keys()  # it is as it was
    config = make_config("INT8", weight_only=False, modules_to_not_convert=["encoder"] if component == "vae" else None)
    found = []
    for forward_loop in (loop, replay_loop(calls)):
        model = copy.deepcopy(part)
        quantize(model, config, forward_loop)
        found.append(scales(model))
    assert found[0] and all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_loop_in_the_config_calibrates_once_after_loading(transformer, inputs, tmp_path):
    transformer.save_pretrained(tmp_path)
    shown = []

    def loop(model):
        shown.append(type(model).__name__)
        model(**inputs)

    config = make_config("INT8", weight_only=False, forward_loop=loop)
    loaded = type(transformer).from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    assert shown == ["SanaTransformer2DModel"]
    quantize(transformer, config)
    assert torch.equal(run(loaded, inputs), run(transformer, inputs))


def test_a_pipelines_loop_calibrates_while_loading(pipeline):
    loop = denoising_loop(pipeline, PROMPTS[:1], steps=2)
    config = NVIDIAModelOptConfig("INT8", weight_only=False, forward_loop=loop)
    folder = EMBEDDED / "transformer"
    loaded = type(pipeline.transformer).from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    packed = copy.deepcopy(pipeline.transformer)
    quantize(packed, config)
    found, expected = scales(loaded), scales(packed)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    "given",
    [lambda x: [x], lambda x: ({**x} for _ in range(2)), lambda x: [Call(0, (), x)], lambda x: [tuple(x.values())]],
)
def test_any_inputs_can_be_replayed(transformer, inputs, given):
    ordered = {name: inputs[name] for name in ("hidden_states", "encoder_hidden_states", "timestep")}
    loop = replay_loop(given(ordered))
    quantize(transformer, make_config("INT4 block", algorithm="awq_lite"), loop)  # runs it twice


def test_ranges_of_a_model_with_nan(transformer, inputs):
    call = Call(0, (), inputs | {"hidden_states": inputs["hidden_states"] * float("nan")})
    with pytest.raises(FloatingPointError, match="calls: .* gets NaN"):
        activation_ranges(transformer, [call])
    with torch.no_grad():
        transformer.proj_out.bias.fill_(float("inf"))  # after the last layer that is given anything
    with pytest.raises(FloatingPointError, match="calls: .* gives NaN"):
        activation_ranges(transformer, [Call(0, (), inputs)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in transformer.modules())


def unharmed(model, before) -> bool:
    state = model.state_dict()
    same = state.keys() == before[0].keys() and all(
        torch.equal(state[name], value) for name, value in before[0].items()
    )
    return (
        same and [type(m) for m in model.modules()] == before[1] and not any(m._forward_hooks for m in model.modules())
    )


BAD_LOOPS = [
    (lambda model, x: None, ValueError, "did not call the SanaTransformer2DModel"),
    (lambda model, x: torch.nn.Linear(2, 2)(torch.ones(1, 2)), ValueError, "did not call the SanaTransformer2DModel"),
    (lambda model, x: model.caption_projection(x["encoder_hidden_states"]), ValueError, r"never reached .* and \d+ more"),
    (lambda model, x: (model(**x), 1 / 0), ZeroDivisionError, "division by zero"),
    (lambda model, x: model(**x | {"hidden_states": x["hidden_states"] * float("nan")}), FloatingPointError,
     "forward_loop: .* gets NaN"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "algorithm"),
    [("INT8", "max"), ("INT8", "smoothquant"), ("INT4 block", "awq_lite"), ("INT4 block", "svdquant")],
)
@pytest.mark.parametrize(("loop", "error", "message"), BAD_LOOPS)
def test_bad_loops_leave_the_model_as_it_was(transformer, inputs, scheme, algorithm, loop, error, message):
    config = make_config(scheme, weight_only=scheme != "INT8", algorithm=algorithm, pointwise_as_linear=True)
    before = (
        {name: value.clone() for name, value in transformer.state_dict().items()},
        [type(m) for m in transformer.modules()],
    )
    with pytest.raises(error, match=message):
        quantize(transformer, config, lambda model: loop(model, inputs))
    assert unharmed(transformer, before)
    quantize(transformer, config, lambda model: model(**inputs))  # and can still be quantized


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "smoothquant", "weight_only": False}, "algorithm='smoothquant' needs a forward_loop"),
        ({"algorithm": "awq_lite"}, "algorithm='awq_lite' needs a forward_loop"),
        (
            {"algorithm": "smoothquant", "forward_loop": print},
            "algorithm='smoothquant' moves .* quant_type='INT8', weight_only=True",
        ),
    ],
)
def test_algorithms_without_what_they_need(transformer, tmp_path, arguments, message):
    config = make_config("INT8", **arguments)
    with pytest.raises(ValueError, match=message):
        quantize(transformer, config)
    transformer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        type(transformer).from_pretrained(tmp_path, quantization_config=config)


ACTIVATIONS = [("", ""), *((kind, scale) for kind in ("FP8", "INT8") for scale in ACTIVATION_SCALES)]


def listed(scheme: str, kind: str, scale: str, algorithm: str) -> str:
    """Why a triple does not run on a CPU, or "": found by trying."""
    if algorithm == "smoothquant" and not (scheme.startswith("INT8") and kind == "INT8"):
        return "moves what is hard to round from INT8 activations to INT8 weights"
    if algorithm not in ("max", "mse") and scale == "dynamic token":
        return "cannot be scaled by token too"
    if algorithm == "smoothquant" and scale == "dynamic tensor":
        return "changes nothing with"
    if algorithm == "mse" and scheme.startswith("NF4"):
        return "changes nothing in NF4"
    if scheme.startswith("NVFP4") and algorithm in ("mse", "awq_lite", "svdquant"):
        return "amax must be a CUDA tensor"
    return ""


@pytest.fixture(scope="module")
def feed_forward(pipeline):
    """The feed-forward of the embedded transformer's first block, and two calls that were made to it in a drawing."""
    model, calls = pipeline.transformer.transformer_blocks[0].ff, []
    hook = model.register_forward_pre_hook(lambda module, args: calls.append(Call(len(calls), args, {}, 4)))
    try:
        denoising_loop(pipeline, PROMPTS[:1], steps=4)(pipeline.transformer)
    finally:
        hook.remove()
    return model, calls[::3]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_activation_and_algorithm(feed_forward, scheme, algorithm):
    dense, calls = feed_forward
    quant_type, chosen = SCHEMES[scheme]
    chosen = chosen | {"pointwise_as_linear": True}
    for kind, scale in ACTIVATIONS:
        options = chosen | ({"activation_scale": scale} if kind else {})
        config = make_config(f"{quant_type}_{kind}" if kind else quant_type, algorithm=algorithm, **options)
        config.forward_loop, model = replay_loop(calls), copy.deepcopy(dense)
        if reason := listed(scheme, kind, scale, algorithm):
            with pytest.raises((ValueError, AssertionError), match=reason):
                quantize(model, config)
            continue
        report = quantize(model, config)
        assert report.precision == f"W{4 if '4' in scheme else 8}" + (f"A8 {scale}" if kind else "")
        for call in calls:
            assert (call(model) - call(dense)).norm() / call(dense).norm() < 0.3


@pytest.mark.parametrize("scheme", ["INT8 channel", "INT4 block", "FP8"])
@pytest.mark.parametrize(("kind", "scale"), [x for x in ACTIVATIONS if "static" in x[1]] + [("NVFP4", None)])
def test_the_largest_inputs_alone_give_the_amax_that_modelopt_finds(feed_forward, scheme, kind, scale):
    dense, calls = feed_forward
    quant_type, chosen = SCHEMES[scheme]
    config = make_config(f"{quant_type}_{kind}", activation_scale=scale, pointwise_as_linear="4" in scheme, **chosen)
    model, reference = copy.deepcopy(dense), copy.deepcopy(dense)
    quantize(model, config, replay_loop(calls))
    layers, entries = plan(reference, config)
    for layer in layers:
        if layer.as_linear:
            upstream.make_linear(reference, layer.name)
    upstream.insert_quantizers(reference, entries, {"method": "max"})
    upstream.calibrate(reference, {"method": "max"}, replay_loop(calls))
    found, expected = scales(model), scales(reference)
    assert found and found.keys() == expected.keys()
    for name, amax in expected.items():
        assert found[name].shape == amax.shape and torch.equal(found[name], amax)


def test_calibrators_find_smaller_scales_than_the_largest_value(feed_forward):
    dense, calls = feed_forward
    found = {}
    for calibrator in CALIBRATORS:
        config = make_config("INT8", weight_only=False, activation_calibrator=calibrator, percentile=99)
        model = copy.deepcopy(dense)
        quantize(model, config, replay_loop(calls))
        found[calibrator] = torch.stack(list(scales(model).values()))
        assert "99" in config_code(config)
    for calibrator in CALIBRATORS[1:]:
        assert (found[calibrator] <= found["max"] * 1.01).all()
        assert (found[calibrator] < 0.99 * found["max"]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation_scale": "static"}, "activation_scale='static' is not known. Allowed: static tensor, "),
        ({"activation_calibrator": "mean"}, "activation_calibrator='mean' is not known. Allowed: max, percentile"),
        (
            {"activation_calibrator": "entropy", "activation_scale": "dynamic tensor"},
            "activation_calibrator='entropy' makes a histogram",
        ),
        ({"percentile": 0}, "percentile=0 is not allowed. Allowed: above 0, up to 100"),
        (
            {"weight_only": None, "activation_scale": "dynamic token"},
            "are for quantized activations, and quant_type='INT8' has none",
        ),
        ({"quant_type": "INT8_NVFP4", "activation_scale": "dynamic token"}, "does not apply to NVFP4"),
    ],
)
def test_wrong_activations(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_config(**{"quant_type": "INT8", "weight_only": False} | arguments)


@pytest.mark.parametrize("scale", ACTIVATION_SCALES)
def test_activations_survive_saving(transformer, inputs, tmp_path, scale):
    config = make_config("INT8_FP8", activation_scale=scale, pointwise_as_linear=True)
    quantize(transformer, config, replay_loop([inputs]))
    transformer.save_pretrained(tmp_path)
    again = type(transformer).from_pretrained(tmp_path)
    assert torch.equal(run(again, inputs), run(transformer, inputs))
    assert again.hf_quantizer.report.precision == f"W8A8 {scale}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: denoising_loop(p, PROMPTS, steps=1001), "steps=1001 is not allowed. Allowed: 1 to 1000"),
        (lambda p: denoising_loop(p, PROMPTS, steps=0), "steps=0"),
        (lambda p: denoising_loop(p, []), "prompts="),
        (lambda p: denoising_loop(p, PROMPTS, component="unet"), "component='unet'"),
        (lambda p: capture(p, PROMPTS, steps=1001), "steps=1001"),
        (lambda p: replay_loop([]), "inputs is empty"),
        (lambda p: recorded(p, 0).__enter__(), "keep=0 is not allowed"),
        (lambda p: recorded(p, component="unet").__enter__(), "component='unet'"),
    ],
)
def test_wrong_input(pipeline, make, message):
    with pytest.raises(ValueError, match=message):
        make(pipeline)


def test_an_interrupted_recording_leaves_no_file(pipeline, tmp_path):
    path = tmp_path / "calls.pt"
    with pytest.raises(KeyboardInterrupt), recorded(pipeline, path=path):
        denoising_loop(pipeline, PROMPTS[:1], steps=2)(pipeline.transformer)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert not {"step", "set_timesteps"} & vars(pipeline.scheduler).keys()


def test_calibrated_variants_in_a_comparison(pipeline):
    loop = replay_loop(capture(pipeline, PROMPTS, steps=4))
    variants = {
        "static": make_config("INT8", weight_only=False, forward_loop=loop),
        "smooth": make_config("INT8", weight_only=False, algorithm="smoothquant", forward_loop=loop),
    }
    frame = compare(pipeline, variants, PROMPTS[:1], steps=4, progress=False).frame
    assert (frame["PSNR dB"].drop("dense") > 15).all()
