import pytest

from modelopt_nb import ACTIVATION_SCALES, make_config


def input_cfgs(quant_type: str, **options) -> dict[str | None, dict]:
    """Return the ``cfg`` of the input quantizers by ``parent_class``."""
    entries = make_config(quant_type, weight_only=False, **options).modelopt_config["quant_cfg"]
    return {
        e.get("parent_class"): e["cfg"] for e in entries if e["quantizer_name"] == "*input_quantizer" and "cfg" in e
    }


@pytest.mark.parametrize("scale", ACTIVATION_SCALES)
def test_linear_layers_and_convolutions_have_their_own_axes(scale):
    linear, convolution = ACTIVATION_SCALES[scale]
    found = input_cfgs("INT8", activation_scale=scale)
    assert found.pop(None) == {"num_bits": 8} | linear
    if convolution == linear:
        assert not found
    else:
        expected = {"num_bits": 8} | convolution
        assert found == dict.fromkeys(("nn.Conv1d", "nn.Conv2d", "nn.Conv3d"), expected)


@pytest.mark.parametrize(("scheme", "scale"), [("INT8", "static tensor"), ("INT8 channel", "dynamic token"),
                                               ("FP8 block", "dynamic token"), ("INT4_FP8", "static tensor")])  # fmt: skip
def test_the_default_scale_follows_the_axes_that_were_asked_for(scheme, scale):
    cfg = input_cfgs(scheme)[None]
    assert {k: v for k, v in cfg.items() if k != "num_bits"} == ACTIVATION_SCALES[scale][0]


def test_blocks_of_activations_are_scaled_dynamically():
    assert input_cfgs("INT8_NVFP4") == {
        None: {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    }


def test_a_calibrator_other_than_max_makes_a_histogram():
    assert input_cfgs("INT8", activation_calibrator="mse") == {None: {"num_bits": 8, "calibrator": "histogram"}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation_scale": "static"}, "activation_scale='static' is not known. Allowed: static tensor, "),
        ({"activation_calibrator": "mean"}, "activation_calibrator='mean' is not known. Allowed: max, percentile"),
        (
            {"activation_calibrator": "entropy", "activation_scale": "dynamic tensor"},
            "activation_calibrator='entropy' makes a histogram",
        ),
        ({"quant_type": "INT8_NVFP4", "activation_calibrator": "mse"}, "activation_calibrator='mse' makes a histogram"),
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
