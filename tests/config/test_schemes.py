import pytest

from modelopt_nb import QUANT_TYPES, SCHEMES, make_config


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_its_type_and_arguments(scheme):
    quant_type, arguments = SCHEMES[scheme]
    assert make_config(scheme).to_dict() == make_config(quant_type, **arguments).to_dict()


def test_default_blocks_are_modelopts():
    from modelopt.torch.quantization.config import INT4_BLOCKWISE_WEIGHT_ONLY_CFG, _nvfp4_cfg

    int4 = [e["cfg"] for e in INT4_BLOCKWISE_WEIGHT_ONLY_CFG["quant_cfg"] if e.get("cfg")]
    assert int4[0]["block_sizes"][-1] == QUANT_TYPES["INT4"].block
    assert _nvfp4_cfg["block_sizes"][-1] == QUANT_TYPES["NVFP4"].block
    assert tuple(_nvfp4_cfg["block_sizes"]["scale_bits"]) == QUANT_TYPES["NVFP4"].scale_bits


@pytest.mark.parametrize("quant_type", [*SCHEMES, "FP8_INT8", "INT4_FP8", "INT8_NVFP4"])
def test_modelopt_accepts_the_configuration(quant_type):
    from modelopt.torch.quantization.config import QuantizeConfig

    QuantizeConfig(**make_config(quant_type).modelopt_config)
