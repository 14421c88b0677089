import pytest
import torch

from modelopt_nb import dequantized, make_config, packed_bytes, quantize, representable_values, weight_errors


def test_weight_errors_are_those_of_the_packed_model(transformer):
    config = make_config("INT4")
    dense = {name: p.detach().clone() for name, p in transformer.named_parameters() if name.endswith(".weight")}
    errors = weight_errors(transformer, config)
    assert torch.equal(dense["proj_out.weight"], transformer.proj_out.weight)
    report = quantize(transformer, config)
    assert list(errors.index) == [layer.name for layer in report.packed]
    with dequantized(transformer):
        for name, error in errors.items():
            rounded = transformer.get_parameter(f"{name}.weight")
            weight = dense[f"{name}.weight"].reshape(rounded.shape)
            change = rounded - weight
            assert error == pytest.approx((change.norm() / weight.norm()).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("quant_type", "count"), [("FP8", 253), ("INT8", 255), ("INT4", 15), ("NF4", 16), ("NVFP4", 15)]
)
def test_representable_values(quant_type, count):
    values = representable_values(quant_type)
    assert len(values) == count
    assert values[0] == -1
    assert values[-1] == 1
    assert 0 in values


def test_measured_bytes_are_the_expected_ones(transformer):
    report = quantize(transformer, make_config("NVFP4"))
    found = packed_bytes(report)
    assert found["layers packed"] == 15 and found["layers dense"] == 3
    assert found["measured bytes"] == found["expected bytes"] == sum(layer.packed_bytes for layer in report.packed)
    assert found["measured/expected"] == 1
    assert found["bits per packed weight"] == pytest.approx(4.5, abs=0.01)
