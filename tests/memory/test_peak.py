import pytest
import torch

from modelopt_nb import MIB, peak_memory, tensor_memory


def test_memory_that_is_freed_inside_counts():
    with peak_memory() as peak:
        block = torch.ones(64 * MIB)  # 256 MiB
        half = block[:MIB].mul(2).view(-1, 2).add_(1)  # 4 MiB, then a view and an operation in place
        del block, half
        torch.ones(MIB)
    assert peak.tensors == 260 * MIB
    assert peak.resident > 256 * MIB
    assert peak.anonymous is None or peak.resident >= peak.anonymous > 256 * MIB


def test_memory_from_before_does_not_count():
    weight = torch.ones(MIB)
    with peak_memory() as peak:
        weight.t()
        weight.add_(1)
    assert peak.tensors == 0


def test_peak_is_filled_in_after_an_error():
    with pytest.raises(KeyError), peak_memory() as peak:
        raise KeyError
    assert peak.resident


def test_tensors_now_and_at_most():
    with tensor_memory() as memory:
        first = torch.ones(MIB)
        assert memory.now == memory.peak == 4 * MIB
        second = first.chunk(2)[0].clone()
        del first
        assert (memory.now, memory.peak) == (2 * MIB, 6 * MIB)
        del second
    assert (memory.now, memory.peak) == (0, 6 * MIB)


@pytest.mark.cuda
def test_cuda_peaks():
    with peak_memory() as peak:
        torch.ones(MIB, device="cuda")
    assert peak.cuda_allocated >= 4 * MIB
    assert peak.cuda_reserved >= peak.cuda_allocated
