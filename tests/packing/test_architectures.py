"""Every promised architecture in every type: packed after loading, and while loading."""

import pytest
import torch

from modelopt_nb import dequantized, enable, make_config, quantize
from tests.architectures import BUILDERS, build, run
from tests.conftest import ALL_TYPES


@pytest.fixture(scope="module", autouse=True)
def enabled():
    enable()


@pytest.fixture(scope="module", params=BUILDERS)
def built(request, tmp_path_factory):
    """Build and save one architecture: model, inputs, dense output, folder."""
    model, inputs = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, inputs, run(model, inputs), folder


@pytest.mark.parametrize("quant_type", ALL_TYPES)
def test_packed_after_and_while_loading(built, quant_type):
    model, inputs, dense, folder = built
    config, eight_bits = make_config(quant_type), quant_type in ("FP8", "INT8")
    loaded = type(model).from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    packed, report = run(loaded, inputs), loaded.hf_quantizer.report
    assert packed.isfinite().all()
    assert 0 < (packed - dense).norm() / dense.norm() < (0.25 if eight_bits else 0.4)
    with dequantized(loaded):
        assert torch.equal(run(loaded, inputs), packed)
    assert report.packed_of_bf16 < (0.6 if eight_bits else 0.32)
    assert all(x.packed or len(x.reason) > 10 for x in report.layers)  # every dense layer has its reason
    after = type(model).from_pretrained(folder, dtype=torch.float32)
    for tensor in (*after.parameters(), *after.buffers()):
        tensor.data = tensor.data.clone()  # mapped from the file they lie unaligned, where some CPUs round differently
    assert quantize(after, config).layers == report.layers
    assert torch.equal(run(after, inputs), packed)
