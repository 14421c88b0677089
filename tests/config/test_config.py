import json

import numpy as np
import pytest
from diffusers import NVIDIAModelOptConfig

from modelopt_nb import ModelOptConfig, enable, make_config


@pytest.fixture(autouse=True)
def enabled():
    enable()


def weight_cfg(config: ModelOptConfig) -> dict:
    (entry,) = [e for e in config.modelopt_config["quant_cfg"] if e["quantizer_name"] == "*weight_quantizer"]
    return entry["cfg"]


@pytest.mark.parametrize(
    ("quant_type", "cfg"),
    [
        ("FP8", {"num_bits": (4, 3)}),
        ("INT8", {"num_bits": 8}),
        ("INT4", {"num_bits": 4, "block_sizes": {-1: 128}}),
        ("NF4", {"num_bits": 4, "block_sizes": {-1: 64, "scale_bits": 8, "scale_block_sizes": {-1: 256}}}),
        ("NVFP4", {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}),
    ],
)
def test_default_scheme(quant_type, cfg):
    assert weight_cfg(make_config(quant_type)) == cfg


def test_a_combined_type_quantizes_activations():
    config = make_config("FP8_INT8")
    assert config.input_cfg["num_bits"] == 8
    assert weight_cfg(config)["num_bits"] == (4, 3)
    assert config.weight_only is False


def test_the_callers_list_is_not_changed():
    names = ["proj_out"]
    make_config("FP8", modules_to_not_convert=names).modules_to_not_convert.append("x")
    assert names == ["proj_out"]


BLOCK = {"channel_quantize": -1, "block_quantize": 32}
SCALES = {"scale_channel_quantize": -1, "scale_block_quantize": 8}
WRONG = [
    # unknown types, and halves of combined ones
    ({"quant_type": "FP4"}, "quant_type='FP4'.*FP8, INT8, INT4, NF4, NVFP4"),
    ({"quant_type": "fp8"}, "quant_type='fp8'"),
    ({"quant_type": ""}, "quant_type=''"),
    ({"quant_type": "FP8_FP7"}, "'FP7' in it"),
    ({"quant_type": "FP7_FP8"}, "'FP7' in it"),
    ({"quant_type": "FP8_INT8_INT8"}, "quant_type='FP8_INT8_INT8'"),
    ({"quant_type": "FP8_"}, "'' in it"),
    ({"quant_type": "INT8 chanel"}, "quant_type='INT8 chanel' is not a scheme.*INT8 channel"),
    ({"quant_type": "INT4 channel"}, "quant_type='INT4 channel' is not a scheme"),
    ({"quant_type": "INT8 channel", "channel_quantize": 0}, "which sets the axes"),
    # activations
    ({"quant_type": "INT8_NF4"}, "NF4 is for weights only.*FP8, INT8, NVFP4"),
    ({"quant_type": "INT8_INT4"}, "INT4 is for weights only"),
    ({"quant_type": "INT4", "weight_only": False}, "INT4 is for weights only"),
    ({"quant_type": "NF4", "weight_only": False}, "NF4 is for weights only"),
    ({"quant_type": "FP8_INT8", "weight_only": True}, "weight_only=True contradicts"),
    # axes
    ({"quant_type": "NF4", "channel_quantize": 0, "block_quantize": 32}, "channel_quantize=0.*-1"),
    ({"quant_type": "INT4", "channel_quantize": 0, "block_quantize": 32}, "channel_quantize=0.*-1"),
    ({"quant_type": "NVFP4", "channel_quantize": 1, "block_quantize": 16}, "channel_quantize=1.*-1"),
    ({"quant_type": "INT4", "channel_quantize": 0}, "channel_quantize=0.*-1"),
    ({"quant_type": "INT8", "channel_quantize": 7}, "channel_quantize=7.*0, 1, -1"),
    ({"quant_type": "INT8", "channel_quantize": "0"}, "channel_quantize='0'"),
    ({"quant_type": "INT8", "channel_quantize": True}, "channel_quantize=True"),
    ({"quant_type": "FP8", "channel_quantize": 2, "block_quantize": 32}, "channel_quantize=2"),
    # blocks
    ({"quant_type": "INT8", "block_quantize": 32}, "block_quantize=32 needs channel_quantize"),
    ({"quant_type": "INT4", "block_quantize": 32}, "block_quantize=32 needs channel_quantize"),
    ({"quant_type": "INT8", "channel_quantize": -1, "block_quantize": 0}, "block_quantize=0"),
    ({"quant_type": "INT8", "channel_quantize": -1, "block_quantize": -32}, "block_quantize=-32"),
    ({"quant_type": "INT8", "channel_quantize": -1, "block_quantize": 1}, "block_quantize=1"),
    ({"quant_type": "INT8", "channel_quantize": -1, "block_quantize": 32.0}, "block_quantize=32.0"),
    ({"quant_type": "INT8", "channel_quantize": -1, "block_quantize": True}, "block_quantize=True"),
    ({"quant_type": "INT4", "channel_quantize": -1, "block_quantize": 33}, "block_quantize=33 is odd"),
    ({"quant_type": "NVFP4", "channel_quantize": -1, "block_quantize": 17}, "block_quantize=17 is odd"),
    # blocks of scales
    ({"quant_type": "NF4"} | SCALES, "scale_channel_quantize=-1 needs block_quantize"),
    ({"quant_type": "NF4", "scale_block_quantize": 8}, "scale_block_quantize=8 needs block_quantize"),
    ({"quant_type": "NF4", "scale_block_quantize": 8} | BLOCK, "scale_channel_quantize=None.*need each other"),
    ({"quant_type": "NF4", "scale_channel_quantize": -1} | BLOCK, "scale_block_quantize=None need each other"),
    ({"quant_type": "NF4"} | BLOCK | SCALES | {"scale_channel_quantize": 0}, "scale_channel_quantize=0.*-1"),
    ({"quant_type": "NF4"} | BLOCK | SCALES | {"scale_block_quantize": 0}, "scale_block_quantize=0"),
    ({"quant_type": "FP8"} | BLOCK | SCALES, "scale_channel_quantize=-1 does not apply to FP8.*NF4"),
    ({"quant_type": "INT4"} | BLOCK | SCALES, "does not apply to INT4.*NF4"),
    ({"quant_type": "NVFP4"} | BLOCK | SCALES, "does not apply to NVFP4.*NF4"),
    # algorithms and what they take
    ({"quant_type": "FP8", "algorithm": 3}, "algorithm=3"),
    ({"quant_type": "FP8", "algorithm": {"alpha": 1}}, "algorithm={'alpha': 1}"),
    ({"quant_type": "FP8", "algorithm": "maximum"}, "algorithm='maximum'.*awq_lite.*max"),
    ({"quant_type": "FP8", "alpha": 0.5}, "alpha=0.5 is not an argument of algorithm 'max'"),
    ({"quant_type": "FP8", "chanel_quantize": 0}, "chanel_quantize=0 is not an argument"),
    ({"quant_type": "INT8", "algorithm": "smoothquant", "alpha": "much"}, "'smoothquant' does not take"),
    # exclusions
    ({"quant_type": "FP8", "modules_to_not_convert": [3]}, "modules_to_not_convert holds 3"),
    ({"quant_type": "FP8", "modules_to_not_convert": ["a", ""]}, "modules_to_not_convert holds ''"),
    # schemes per layer
    ({"quant_type": "NF4", "per_layer": {"INT9": "attn1"}}, "quant_type='INT9' is not known"),
    ({"quant_type": "NF4", "per_layer": {"INT8": []}}, r"per_layer\['INT8'\] is empty"),
    ({"quant_type": "NF4", "per_layer": {"INT8": [3]}}, r"per_layer\['INT8'\] holds 3"),
    # another library's configuration
    ({"quant_type": "FP8", "quant_method": "gguf"}, "quant_method='gguf' is not 'modelopt'"),
]


def is_forgiven(arguments: dict) -> bool:
    """Return whether Diffusers' class warns of these, which its documented examples have."""
    scales = SCALES.items() <= arguments.items() and arguments["quant_type"] != "NF4"
    return scales or "" in (arguments.get("modules_to_not_convert") or ())


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments(arguments, message):
    for config_class in (make_config, ModelOptConfig, NVIDIAModelOptConfig):
        if config_class is NVIDIAModelOptConfig and is_forgiven(arguments):
            continue
        with pytest.raises(ValueError, match=message):
            config_class(**arguments)


@pytest.mark.parametrize("quant_type", ["FP8", "INT8", "INT4", "NVFP4"])
def test_diffusers_class_warns_of_what_its_examples_pass(quant_type):
    with pytest.warns(UserWarning, match=f"scale_block_quantize=8 does not apply to {quant_type} and is ignored.*NF4"):
        config = NVIDIAModelOptConfig(quant_type, ["conv"], True, **BLOCK, **SCALES)
    assert config.modelopt_config == make_config(quant_type, **BLOCK).modelopt_config
    assert (config.scale_channel_quantize, config.scale_block_quantize) == (None, None)
    for empty in ("", ["", "conv"]):
        with pytest.warns(UserWarning, match="modules_to_not_convert holds '', which names no layer"):
            assert NVIDIAModelOptConfig(quant_type, empty).modules_to_not_convert == ["conv"][: len(empty)]


def test_a_configuration_shows_all_of_itself():
    config = NVIDIAModelOptConfig("INT8", forward_loop=print)
    assert json.loads(repr(config).removeprefix("ModelOptConfig ")) == config.to_dict() == config.to_diff_dict()
    assert json.loads(config.to_json_string()) == json.loads(config.to_json_string(use_diff=False)) == config.to_dict()


def test_arguments_of_the_wrong_class():
    with pytest.raises(TypeError, match="quant_type must be a string"):
        make_config(8)
    with pytest.raises(TypeError, match="forward_loop=3"):
        make_config("FP8", forward_loop=3)


@pytest.mark.parametrize("config_class", [make_config, NVIDIAModelOptConfig])
def test_further_arguments_reach_the_algorithm(config_class):
    chosen = {"method": "smoothquant", "alpha": 0.7}
    assert config_class("INT8_INT8", algorithm="smoothquant", alpha=0.7).algorithm == chosen
    assert config_class("INT8_INT8", algorithm=chosen).algorithm == chosen


@pytest.mark.parametrize("config_class", [make_config, NVIDIAModelOptConfig])
def test_defaults_are_filled_in(config_class):
    config = config_class("NF4")
    assert (config.channel_quantize, config.block_quantize) == (-1, 64)
    assert (config.scale_channel_quantize, config.scale_block_quantize) == (-1, 256)


def test_diffusers_class_makes_this_one():
    config = NVIDIAModelOptConfig(quant_type="FP8", quant_method="modelopt")
    assert isinstance(config, ModelOptConfig)
    assert config.to_dict() == make_config("FP8", pointwise_as_linear=False).to_dict()


def test_the_kit_packs_1x1_convolutions_as_linear_layers_and_the_documents_class_does_not():
    old = {k: v for k, v in make_config("INT4").to_dict().items() if k != "pointwise_as_linear"}
    assert make_config("INT4").pointwise_as_linear and make_config("INT4", None, None, -1, 32).pointwise_as_linear
    for config in (
        NVIDIAModelOptConfig("INT4"),
        NVIDIAModelOptConfig.from_dict(old),
        ModelOptConfig.from_dict(old),  # which Transformers calls
        make_config("INT4", disable_conv_quantization=True),
        make_config("INT4", modelopt_config=make_config("INT4").modelopt_config),
    ):
        assert config.pointwise_as_linear is False
    for asked in (True, False):
        for config in (
            make_config("INT4", pointwise_as_linear=asked),
            NVIDIAModelOptConfig("INT4", pointwise_as_linear=asked),
        ):
            assert config.pointwise_as_linear is asked
            assert ModelOptConfig.from_dict(config.to_dict()).pointwise_as_linear is asked


@pytest.mark.parametrize(
    ("quant_type", "options"),
    [
        ("FP8", {}),
        ("NF4", {}),
        ("NVFP4_INT8", {}),
        ("INT8 block", {}),
        ("INT8", {"weight_only": False, "algorithm": "smoothquant", "alpha": 0.7}),
        ("INT8", {"weight_only": False, "activation_calibrator": "entropy", "percentile": 99}),
        ("INT4", {"per_layer": {"INT8 channel": ["attn1"]}, "pointwise_as_linear": True, "packed_dtype": "float16"}),
        ("FP8", {"modelopt_config": {"quant_cfg": [{"quantizer_name": "*", "cfg": {"block_sizes": {-1: 32}}}]}}),
    ],
)
def test_json_loses_nothing_but_the_loop(quant_type, options):
    config = NVIDIAModelOptConfig(quant_type, modules_to_not_convert="proj_out", forward_loop=print, **options)
    again = NVIDIAModelOptConfig.from_dict(json.loads(json.dumps(config.to_dict(), sort_keys=True)))
    config.forward_loop = None
    assert vars(again) == vars(config)
    assert again.to_dict() == json.loads(config.to_json_string()) == config.to_dict()


@pytest.mark.parametrize("flag", ["weight_only", "disable_conv_quantization", "pointwise_as_linear"])
def test_numpys_truth_values_are_refused_as_json_has_none(flag):
    with pytest.raises(TypeError, match=f"{flag}=.* is not a truth value. Allowed: True, False or None"):
        make_config("FP8", **{flag: np.True_})
