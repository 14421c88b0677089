import pytest
import torch

from modelopt_nb import make_config, peak_memory, quantize, weight_bytes


def test_counts_by_dtype():
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 4, bias=False).half())
    counted = weight_bytes(model)
    assert counted.by_dtype == {"float32": 4 * (32 + 4), "float16": 2 * 16}
    assert counted.weights == 52
    assert counted.bits_per_weight == pytest.approx(8 * counted.total / 52)


def test_shared_tensors_count_once():
    layer = torch.nn.Linear(8, 8, bias=False)
    assert weight_bytes(torch.nn.Sequential(layer, layer)).weights == 64


def test_two_packed_weights_share_a_byte():
    model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False))
    quantize(model, make_config("INT4"))
    counted = weight_bytes(model)
    assert counted.weights == 128 * 64
    assert counted.by_dtype == {"uint8": 128 * 64 // 2, "float32": 4 * 64}
    assert counted.bits_per_weight == 4 + 32 / 128


def test_peak_sees_memory_that_is_gone_at_the_end():
    with peak_memory() as peak:
        block = torch.ones(64 * 2**20)  # 256 MiB
        half = block[: 2**20].mul(2).view(-1, 2).add_(1)  # 4 MiB, then a view and an operation in place
        del block, half
        torch.ones(2**20)
    assert peak.tensors == 260 * 2**20
    assert peak.resident > 256 * 2**20
    assert peak.anonymous is None or peak.resident >= peak.anonymous > 256 * 2**20


def test_what_was_there_before_does_not_count():
    weight = torch.ones(2**20)
    with peak_memory() as peak:
        weight.t()
        weight.add_(1)
    assert peak.tensors == 0


def test_peak_is_filled_in_after_an_error():
    with pytest.raises(KeyError), peak_memory() as peak:
        raise KeyError
    assert peak.resident


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_peaks():
    with peak_memory() as peak:
        torch.ones(2**20, device="cuda")
    assert peak.cuda_allocated >= 4 * 2**20
    assert peak.cuda_reserved >= peak.cuda_allocated
