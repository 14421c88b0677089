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
    kept = torch.ones(8 * MIB, device="cuda")
    with peak_memory() as peak:
        torch.ones(MIB, device=f"cuda:{torch.cuda.device_count() - 1}")
    assert peak.cuda_grown == 4 * MIB  # without what was there before
    assert peak.cuda_allocated >= peak.cuda_grown + kept.nbytes
    assert peak.cuda_reserved >= peak.cuda_allocated


def test_every_cuda_device_is_asked(monkeypatch):
    reset, before = [], {0: 100, 1: 10}
    after = {0: 130, 1: 50}
    for name, value in {
        "device_count": lambda: 2, "reset_peak_memory_stats": reset.append, "memory_allocated": before.__getitem__,
        "max_memory_allocated": after.__getitem__, "max_memory_reserved": lambda device: 200,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    with peak_memory() as peak:
        pass
    assert (reset, peak.cuda_allocated, peak.cuda_reserved, peak.cuda_grown) == ([0, 1], 180, 400, 70)


def test_a_peak_of_before_is_not_reported(monkeypatch, tmp_path):
    monkeypatch.setattr("modelopt_nb.memory.peak.CLEAR_REFS", tmp_path)  # a folder cannot be written
    with peak_memory() as peak:
        torch.ones(MIB)
    assert peak.resident is None and peak.tensors == 4 * MIB
    assert f"resident: VmHWM has the peak of before, since {tmp_path} cannot be written" in peak.missing
    monkeypatch.setattr("modelopt_nb.memory.peak.CLEAR_REFS", tmp_path / "nothing")  # not Linux: sampled
    with peak_memory() as peak:
        pass
    assert peak.resident and peak.missing == ""
