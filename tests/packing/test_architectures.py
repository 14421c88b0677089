import copy

import pytest
import torch
from tests.architectures import BUILDERS, build, run
from tests.conftest import ALL_TYPES

from modelopt_nb import dequantized, enable, make_config, quantize


@pytest.fixture(scope="module", autouse=True)
def enabled():
    enable()


@pytest.mark.parametrize("quant_type", ALL_TYPES)
@pytest.mark.parametrize("name", BUILDERS)
def test_packed_after_loading(name, quant_type):
    model, inputs = build(name)
    dense = run(model, inputs)
    report = quantize(model, make_config(quant_type))
    packed = run(model, inputs)
    assert packed.isfinite().all()
    assert 0 < (packed - dense).norm() / dense.norm() < (0.25 if quant_type in ("FP8", "INT8") else 0.4)
    with dequantized(model):
        assert torch.equal(run(model, inputs), packed)
    assert report.packed_of_bf16 < (0.6 if quant_type in ("FP8", "INT8") else 0.32)
    # every layer that stays dense says why
    assert all(x.packed or len(x.reason) > 10 for x in report.layers)


@pytest.mark.parametrize("quant_type", ALL_TYPES)
@pytest.mark.parametrize("name", BUILDERS)
def test_packed_while_loading_is_the_same(name, quant_type, tmp_path):
    model, inputs = build(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, quantization_config=make_config(quant_type), dtype=torch.float32)
    after = copy.deepcopy(model)
    report = quantize(after, make_config(quant_type))
    assert loaded.hf_quantizer.report.layers == report.layers
    assert torch.equal(run(loaded, inputs), run(after, inputs))
