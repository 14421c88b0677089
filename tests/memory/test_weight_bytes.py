import pytest
import torch

from modelopt_nb import MIB, make_config, quantize, weight_bytes


def test_counts_by_dtype():
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 4, bias=False).half())
    counted = weight_bytes(model)
    assert counted.by_dtype == {"float32": 4 * (32 + 4), "float16": 2 * 16}
    assert counted.weights == 52
    assert counted.total == counted.mib * MIB == 4 * 36 + 2 * 16
    assert counted.bits_per_weight == pytest.approx(8 * counted.total / 52)
    assert counted.of_bf16 == counted.total / (2 * 52)


def test_shared_tensors_count_once():
    layer = torch.nn.Linear(8, 8, bias=False)
    assert weight_bytes(torch.nn.Sequential(layer, layer)).weights == 64


def test_buffers_add_bytes_and_no_weights():
    counted = weight_bytes(torch.nn.BatchNorm1d(4, affine=False))
    assert counted.by_dtype == {"float32": 2 * 16, "int64": 8}
    assert counted.weights == counted.bits_per_weight == counted.of_bf16 == 0


def test_two_packed_weights_share_a_byte():
    model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False))
    quantize(model, make_config("INT4"))
    counted = weight_bytes(model)
    assert counted.weights == 128 * 64
    assert counted.by_dtype == {"uint8": 128 * 64 // 2, "float32": 4 * 64}
    assert counted.bits_per_weight == 4 + 32 / 128
