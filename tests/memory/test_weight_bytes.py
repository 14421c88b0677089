import ctypes
import os
import subprocess
import sys

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


needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later"
)


def printed_numbers(script: str, own: dict[str, str]) -> list[int]:
    """What a script prints in a process of its own: what other tests left on the heap decides where a block goes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", script], env=clean | own, check=True, capture_output=True, text=True)
    return [int(word) for word in run.stdout.split()]


KEPT = """
import ctypes
from modelopt_nb.memory import MIB, freed_memory_kept

class Malloc(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Malloc

def mapped_and_kept(size):
    block = bytearray(size)
    mapped = libc.mallinfo2().hblkhd
    del block
    return mapped // MIB, libc.mallinfo2().fordblks // MIB

with freed_memory_kept():
    print(*mapped_and_kept(64 * MIB))
print(*mapped_and_kept(128 * MIB))
"""


@needs_glibc
@pytest.mark.parametrize("own", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_freed_memory_is_kept_for_the_next_tensor(own):
    mapped_inside, kept_inside, mapped_after, _ = printed_numbers(KEPT, own)
    assert mapped_after >= 128
    if own:  # who set something keeps it
        assert mapped_inside >= 64 > kept_inside
    else:
        assert kept_inside >= 64 > mapped_inside


GIVEN_BACK = """
import ctypes, threading
import psutil
from modelopt_nb.memory import MIB, freed_memory_kept

libc, process, sizes = ctypes.CDLL(None), psutil.Process(), []
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]

def work():
    with freed_memory_kept():
        sizes.append(process.memory_info().rss)
        blocks = [libc.malloc(5 * MIB) for _ in range(10)]
        for block in blocks:
            ctypes.memset(block, 1, 5 * MIB)
        for block in blocks:
            libc.free(block)
        sizes.append(process.memory_info().rss)
    sizes.append(process.memory_info().rss)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(*(size // MIB for size in sizes))
"""


@needs_glibc
def test_what_a_thread_kept_is_given_back():
    before, kept, after = printed_numbers(GIVEN_BACK, {})
    assert kept >= before + 40
    assert after <= before + 10
