"""Every scheme, activation and algorithm on one feed-forward; forward loops that fail."""

import copy
import functools

import modelopt.torch.quantization as mtq
import pytest
import torch
from diffusers.models.transformers.sana_transformer import GLUMBConv
from modelopt.torch.quantization.nn import TensorQuantizer

from modelopt_nb import ACTIVATION_SCALES, NEED_LOOP, SCHEMES, config_code, make_config, quantize
from modelopt_nb.config.activations import CALIBRATORS

ALGORITHMS = ("max", "mse", "smoothquant", "awq_lite", "svdquant")
ACTIVATIONS = [("", ""), *((kind, scale) for kind in ("FP8", "INT8") for scale in ACTIVATION_SCALES)]


@pytest.fixture(scope="module")
def feed_forward():
    """A Sana feed-forward, and inputs with channels that differ in scale."""
    torch.manual_seed(0)
    model = GLUMBConv(128, 128, expand_ratio=1).eval().requires_grad_(False)
    scales = torch.linspace(-2, 2, 128).exp()[torch.randperm(128)].reshape(1, 128, 1, 1)
    return model, [torch.randn(1, 128, 4, 4) * scales for _ in range(2)]


def why_not(scheme: str, kind: str, scale: str, algorithm: str) -> str:
    """Return why a combination does not run on a CPU, or ""."""
    if algorithm == "smoothquant" and not (scheme.startswith("INT8") and kind == "INT8"):
        return "algorithm='smoothquant' .*INT8 weights"
    if algorithm in NEED_LOOP and scale == "dynamic token":
        return "scale per token"
    if algorithm == "smoothquant" and scale == "dynamic tensor":
        return "changes nothing with"
    if algorithm == "mse" and scheme.startswith("NF4"):
        return "changes nothing in NF4"
    if scheme.startswith("NVFP4") and algorithm in ("mse", "awq_lite", "svdquant"):
        return "amax must be a CUDA tensor"
    return ""


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_activation_and_algorithm(feed_forward, scheme, algorithm):
    dense, inputs = feed_forward
    quant_type, blocks = SCHEMES[scheme]
    for kind, scale in ACTIVATIONS:
        name, options = f"{quant_type}_{kind}" if kind else quant_type, blocks | {"activation_scale": scale or None}
        config = make_config(name, algorithm=algorithm, pointwise_as_linear=True, **options)
        passes, model = [], copy.deepcopy(dense)

        def loop(model, passes=passes):
            passes.append([model(x) for x in inputs])

        if reason := why_not(scheme, kind, scale, algorithm):
            with pytest.raises((ValueError, AssertionError), match=reason):
                quantize(model, config, loop)
            continue
        report = quantize(model, config, loop)
        assert report.precision == f"W{4 if '4' in scheme else 8}" + (f"A8 {scale}" if kind else "")
        assert len(passes) == 1 or algorithm not in ("max", "mse")
        for x in inputs:
            assert 0 < (model(x) - dense(x)).norm() / dense(x).norm() < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "smoothquant", "weight_only": False}, "algorithm='smoothquant' needs a forward_loop"),
        ({"algorithm": "awq_lite"}, "algorithm='awq_lite' needs a forward_loop"),
        (
            {"algorithm": "smoothquant", "forward_loop": print},
            "algorithm='smoothquant' .* quant_type='INT8', weight_only=True",
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


def snapshot(model) -> tuple:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, [type(m) for m in model.modules()], [len(m._forward_hooks) for m in model.modules()]


def is_unchanged(model, before: tuple) -> bool:
    state, *rest = snapshot(model)
    same = state.keys() == before[0].keys() and all(torch.equal(state[n], value) for n, value in before[0].items())
    return same and rest == [*before[1:]]


BAD_LOOPS = {
    "does nothing": (lambda model, x: None, ValueError, "did not call the SanaTransformer2DModel"),
    "runs another model": (
        lambda model, x: torch.nn.Linear(2, 2)(torch.ones(1, 2)), ValueError, "did not call the SanaTransformer2DModel"
    ),
    "runs a part": (
        lambda model, x: model.caption_projection(x["encoder_hidden_states"]), ValueError, r"never reached .* and \d+ more"
    ),
    "raises": (lambda model, x: (model(**x), 1 / 0), ZeroDivisionError, "division by zero"),
    "has NaN": (
        lambda model, x: model(**x | {"hidden_states": x["hidden_states"] * float("nan")}),
        FloatingPointError, "forward_loop: .* gets NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "algorithm"),
    [("INT8", "max"), ("INT8", "smoothquant"), ("INT4 block", "awq_lite"), ("INT4 block", "svdquant")],
)
def test_bad_loops_leave_the_model_unchanged(transformer, inputs, scheme, algorithm):
    config = make_config(scheme, weight_only=scheme != "INT8", algorithm=algorithm, pointwise_as_linear=True)
    before = snapshot(transformer)
    for name, (loop, error, message) in BAD_LOOPS.items():
        with pytest.raises(error, match=message):
            quantize(transformer, config, lambda model, loop=loop: loop(model, inputs))
        assert is_unchanged(transformer, before), name
    quantize(transformer, config, lambda model: model(**inputs))  # and it can still be quantized


@pytest.mark.parametrize("when", ["calibration", "the loop", "packing"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["CUDA", "CPU"],
)
def test_full_memory_is_not_blamed_on_the_algorithm(transformer, inputs, monkeypatch, when, error):
    layer, before = "transformer_blocks.0.attn1.to_v", snapshot(transformer)
    wanted = transformer.get_submodule(layer)

    def full(module, *args):
        if module is wanted or module is getattr(wanted, "weight_quantizer", None):
            raise error

    if when == "calibration":
        forward = TensorQuantizer.forward
        monkeypatch.setattr(TensorQuantizer, "forward", lambda m, *a: (full(m), forward(m, *a))[1])
    elif when == "the loop":
        monkeypatch.setitem(vars(wanted), "forward", functools.partial(full, wanted))
    else:
        compress = TensorQuantizer._real_quantize
        monkeypatch.setattr(TensorQuantizer, "_real_quantize", lambda m, *a: (full(m), compress(m, *a))[1])
    with pytest.raises(type(error)) as raised:
        quantize(transformer, make_config("INT8_INT8"), lambda model: model(**inputs))
    assert raised.value is error and layer in error.__notes__.pop()
    assert is_unchanged(transformer, before)


def presets() -> dict[str, dict]:
    return {name: getattr(mtq, name) for name in sorted(mtq.config.choices)}


@pytest.mark.parametrize("name", presets())
def test_modelopts_own_configurations_pack_or_are_refused_by_name(name):
    x, model = torch.randn(4, 256), torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 256))
    quant_type = "INT8" if "INT8" in name else "FP8"
    config = make_config(quant_type, modelopt_config=presets()[name], weight_only=False)
    before = copy.deepcopy(presets()[name]), snapshot(model)
    refusals = {
        "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG": "blocks along 2 axes, which cannot be packed here",
        "W4A8_AWQ_BETA_CFG": "several quantizers, which cannot be packed here",
        "FP8_DEFAULT_CFG": "", "FP8_PER_CHANNEL_PER_TOKEN_CFG": "", "INT4_AWQ_CFG": "", "INT8_SMOOTHQUANT_CFG": "",
        "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": "", "INT8_DEFAULT_CFG": "", "INT8_WEIGHT_ONLY_CFG": "", "W4A16_NVFP4_CFG": "",
        "W4A8_NVFP4_FP8_CFG": "", "MAMBA_MOE_FP8_AGGRESSIVE_CFG": "", "MAMBA_MOE_FP8_CONSERVATIVE_CFG": "",
    }  # fmt: skip
    refusal = refusals.get(name, "another format, which|would pack no layer|amax must be a CUDA tensor|requires triton")
    if not refusal:
        report = quantize(model, config, lambda model: model(x))
        assert len(report.packed) == 2 and model(x).isfinite().all()
        if name in ("FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG"):
            assert report.precision == "W8A8 static tensor"
        return
    with pytest.raises((ValueError, AssertionError), match=refusal):
        quantize(model, config, lambda model: model(x))
        pytest.skip("packs, and its activations run on CUDA only")
    assert presets()[name] == before[0] and is_unchanged(model, before[1])


STATIC = [
    make_config("INT8", weight_only=False),
    make_config("INT8 channel", weight_only=False, activation_scale="static channel"),
    make_config("INT4_FP8"),
    make_config("NF4", per_layer={"FP8_INT8": "attn1"}),
    make_config("FP8", modelopt_config=mtq.FP8_DEFAULT_CFG),
]


@pytest.mark.parametrize("config", STATIC)
def test_static_activations_ask_for_a_loop(transformer, tmp_path, config):
    before = snapshot(transformer)
    message = "static activation scales need a forward_loop.*Allowed without: activation_scale='dynamic tensor'"
    with pytest.raises(ValueError, match=message):
        quantize(transformer, config)
    assert is_unchanged(transformer, before)
    transformer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        type(transformer).from_pretrained(tmp_path, quantization_config=config)


@pytest.mark.parametrize("quant_type", ["INT8", "FP8"])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_finds_a_smaller_scale_and_is_nearly_as_good_as_max_or_refused(quant_type, calibrator):
    if (quant_type, calibrator) == ("FP8", "entropy"):
        with pytest.raises(ValueError, match="activation_calibrator='entropy' counts the steps of integers, which FP8"):
            make_config(quant_type, weight_only=False, activation_calibrator=calibrator)
        return
    x, model = torch.randn(64, 128), torch.nn.Sequential(torch.nn.Linear(128, 32))
    dense, largest = model(x).detach(), x.abs().max().item()
    config = make_config(quant_type, weight_only=False, activation_calibrator=calibrator)
    quantize(model, config, lambda m: m(x))
    assert (model(x) - dense).norm() / dense.norm() < (0.02 if quant_type == "INT8" else 0.05)
    amax = model[0].input_quantizer.amax.item()
    assert amax == pytest.approx(largest) if calibrator == "max" else amax < 0.99 * largest or quant_type == "FP8"


def test_the_percentile_is_that_of_the_inputs():
    x, model = torch.randn(64, 128), torch.nn.Sequential(torch.nn.Linear(128, 8))
    config = make_config("INT8", weight_only=False, activation_calibrator="percentile", percentile=99)
    assert "99" in config_code(config)
    quantize(model, config, lambda m: m(x))
    assert model[0].input_quantizer.amax.item() == pytest.approx(x.abs().flatten().quantile(0.99).item(), rel=0.05)
