import pytest
from diffusers import NVIDIAModelOptConfig

from modelopt_nb import QUANT_TYPES, SCHEMES, enable, make_config
from modelopt_nb.config import WeightSpec


def weights_of(config) -> dict:
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
    assert weights_of(make_config(quant_type)) == cfg


def test_defaults_are_modelopts_own():
    from modelopt.torch.quantization.config import INT4_BLOCKWISE_WEIGHT_ONLY_CFG, _nvfp4_cfg

    int4 = [e["cfg"] for e in INT4_BLOCKWISE_WEIGHT_ONLY_CFG["quant_cfg"] if e.get("cfg")]
    assert int4[0]["block_sizes"][-1] == QUANT_TYPES["INT4"].block
    assert _nvfp4_cfg["block_sizes"][-1] == QUANT_TYPES["NVFP4"].block
    assert tuple(_nvfp4_cfg["block_sizes"]["scale_bits"]) == QUANT_TYPES["NVFP4"].scale_bits


@pytest.mark.parametrize("quant_type", [*QUANT_TYPES, "FP8_INT8", "INT4_FP8"])
def test_valid_on_the_installed_modelopt(quant_type):
    from modelopt.torch.quantization.config import QuantizeConfig

    QuantizeConfig(**make_config(quant_type).modelopt_config)


def test_combined_type_quantizes_activations():
    config = make_config("FP8_INT8")
    (inputs,) = [e for e in config.modelopt_config["quant_cfg"] if e["quantizer_name"] == "*input_quantizer"]
    assert inputs["cfg"]["num_bits"] == 8
    assert weights_of(config)["num_bits"] == (4, 3)
    assert config.weight_only is False


def test_the_callers_list_is_left_alone():
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
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_wrong_input_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        make_config(**arguments)


@pytest.mark.parametrize(("arguments", "said"), [w for w in WRONG if " " not in w[0]["quant_type"]])
def test_wrong_input_is_named_by_diffusers_own_class_too(arguments, said):
    enable()
    with pytest.raises(ValueError, match=said):
        NVIDIAModelOptConfig(**arguments)


def test_further_arguments_reach_the_algorithm():
    enable()
    chosen = {"method": "smoothquant", "alpha": 0.7}
    assert make_config("INT8_INT8", algorithm="smoothquant", alpha=0.7).modelopt_config["algorithm"] == chosen
    assert make_config("INT8_INT8", algorithm=chosen).modelopt_config["algorithm"] == chosen
    for config in (
        NVIDIAModelOptConfig("INT8_INT8", algorithm="smoothquant", alpha=0.7),
        NVIDIAModelOptConfig("INT8_INT8", algorithm=chosen),
    ):
        assert config.modelopt_config["algorithm"] == chosen


def test_what_was_filled_in_is_in_the_configuration():
    enable()
    for config in (make_config("NF4"), NVIDIAModelOptConfig("NF4")):
        assert (config.channel_quantize, config.block_quantize) == (-1, 64)
        assert (config.scale_channel_quantize, config.scale_block_quantize) == (-1, 256)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_short_names_stand_for_their_arguments(scheme):
    quant_type, arguments = SCHEMES[scheme]
    assert make_config(scheme).modelopt_config == make_config(quant_type, **arguments).modelopt_config


def test_wrong_kinds_of_input():
    with pytest.raises(TypeError, match="quant_type must be a string"):
        make_config(8)
    with pytest.raises(TypeError, match="forward_loop=3"):
        make_config("FP8", forward_loop=3)


def test_packed_bytes_by_hand():
    shape = (64, 256)
    spec = {name: WeightSpec.from_cfg(weights_of(make_config(name))) for name in QUANT_TYPES}
    assert spec["FP8"].packed_bytes(shape) == 64 * 256 + 4
    assert spec["INT4"].packed_bytes(shape) == 64 * 256 // 2 + 4 * 64 * 2
    assert spec["NF4"].packed_bytes(shape) == 64 * 256 // 2 + 256 + 4 + 4
    assert spec["NVFP4"].packed_bytes(shape) == 64 * 256 // 2 + 64 * 16 + 4
