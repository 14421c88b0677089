"""What it costs: bytes of a model's weights, and the peak memory while a block of code runs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

MIB = 2**20


@dataclass(frozen=True)
class WeightBytes:
    """The bytes of a model's parameters and buffers.

    ``by_dtype`` maps a dtype's name to bytes; ``weights`` counts the numbers that the parameters stand for, so that a
    byte holding two 4-bit weights counts as two. Scales and other buffers add bytes but no weights.
    """

    by_dtype: dict[str, int]
    weights: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.by_dtype.values())

    @property
    def mib(self) -> float:
        """All bytes, in MiB."""
        return self.total / MIB

    @property
    def bits_per_weight(self) -> float:
        """Bits for each weight, scales and buffers included."""
        return 8 * self.total / self.weights if self.weights else 0.0

    @property
    def of_bf16(self) -> float:
        """The share of what the same weights would take in bfloat16."""
        return self.total / (2 * self.weights) if self.weights else 0.0

    def __add__(self, other: WeightBytes) -> WeightBytes:
        return WeightBytes(dict(Counter(self.by_dtype) + Counter(other.by_dtype)), self.weights + other.weights)


def logical_shape(weight: torch.Tensor) -> tuple[int, ...]:
    """The shape of a weight as the layer sees it: a packed one stores fewer elements than it stands for."""
    metadata = getattr(weight, "metadata", None)
    return tuple(metadata["shape"]) if metadata else tuple(weight.shape)


def stored_dtype(tensor: torch.Tensor) -> str:
    """The name of the dtype of a tensor's bytes; a packed weight's ``dtype`` is the one that it is read as."""
    import torch

    return str(torch.Tensor.dtype.__get__(tensor)).removeprefix("torch.")


def weight_bytes(model: nn.Module) -> WeightBytes:
    """Count the bytes of ``model``'s parameters and buffers by dtype; tensors that are shared count once."""
    by_dtype: Counter[str] = Counter()
    weights, seen = 0, set()
    parameters = {id(p): p for p in model.parameters()}
    for tensor in [*parameters.values(), *model.buffers()]:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        by_dtype[stored_dtype(tensor)] += tensor.numel() * tensor.element_size()
        if id(tensor) in parameters:
            count = 1
            for size in logical_shape(tensor):
                count *= size
            weights += count
    return WeightBytes(dict(by_dtype), weights)


@dataclass
class PeakMemory:
    """What :func:`peak_memory` saw, in bytes; None where the machine cannot tell.

    ``tensors`` is the peak of the tensors made inside the block, the same at every run. ``resident`` is the peak of the
    process's resident set (the kernel's own figure on Linux, sampled elsewhere), ``anonymous`` the sampled peak of its
    part that no file backs, on Linux. ``cuda_allocated`` and ``cuda_reserved`` are the peaks of PyTorch's allocator.
    """

    tensors: int | None = None
    resident: int | None = None
    anonymous: int | None = None
    cuda_allocated: int | None = None
    cuda_reserved: int | None = None


def _status(key: str) -> int | None:
    """One figure of ``/proc/self/status`` in bytes; None where there is no such file."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _resident() -> int:
    """Resident bytes now."""
    import psutil

    return psutil.Process().memory_info().rss


def tensor_bytes() -> Any:
    """A context manager that follows every tensor made inside it: ``now`` and ``peak`` are bytes of their storages."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    def storages(tree: Any) -> Iterator[Any]:
        if isinstance(tree, torch.Tensor):
            yield tree.untyped_storage()
        elif isinstance(tree, (tuple, list)):
            for item in tree:
                yield from storages(item)

    class TensorBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0

        def gone(self, size: int) -> None:
            self.now -= size

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {s.data_ptr() for s in storages((*args, *(kwargs or {}).values()))}
            result = func(*args, **(kwargs or {}))
            for storage in {s.data_ptr(): s for s in storages(result)}.values():
                if storage.data_ptr() not in given:  # neither a view nor in place
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage.nbytes())
            self.peak = max(self.peak, self.now)
            return result

    return TensorBytes()


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the next tensor have the memory of the last one while a block of code runs; for glibc, does nothing elsewhere.

    glibc gives a large tensor's memory back to the system as soon as it is freed, and the next one pays for the same
    pages again: some 200,000 page faults in a call of the embedded pipeline. A setting of the user's own is respected.

    Source: ``man 3 mallopt``. It has no way to ask what was set, so afterwards the thresholds are those that glibc
    itself arrives at once large tensors have been freed, and what was kept is given back. ``malloc_trim`` leaves out the
    end of a thread's own heap, which shrinks only when that thread frees something with the threshold below it.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if own or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc, trim, mmap = ctypes.CDLL(None), -1, -3
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.malloc_trim.argtypes = [ctypes.c_void_p], [ctypes.c_size_t]
    libc.mallopt(mmap, 256 * MIB)
    libc.mallopt(trim, 1024 * MIB)
    try:
        yield
    finally:
        libc.mallopt(mmap, 32 * MIB)
        libc.mallopt(trim, MIB)
        libc.free(libc.malloc(MIB))
        libc.malloc_trim(0)
        libc.mallopt(trim, 64 * MIB)


@contextlib.contextmanager
def peak_memory(interval: float = 0.005) -> Iterator[PeakMemory]:
    """Measure the peak memory while a block of code runs; code runs slower inside, so nothing should be timed there.

    Yields a :class:`PeakMemory` that is filled in when the block ends. On Linux the resident peak is the kernel's own
    (``VmHWM``, reset through ``/proc/self/clear_refs``); what has no such figure is sampled every ``interval`` seconds.
    The allocator keeps freed memory, so a resident peak depends on what the process did before; ``tensors`` does not.
    """
    import torch

    peak, stop = PeakMemory(), threading.Event()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    cuda = torch.cuda.is_available()
    if cuda:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    samples = [(_resident(), _status("RssAnon"))]

    def sample() -> None:
        while not stop.wait(interval):
            samples.append((_resident(), _status("RssAnon")))

    sampler, tensors = threading.Thread(target=sample, daemon=True), tensor_bytes()
    sampler.start()
    try:
        with tensors:
            yield peak
    finally:
        stop.set()
        sampler.join()
        samples.append((_resident(), _status("RssAnon")))
        resident, anonymous = zip(*samples, strict=True)
        peak.tensors = tensors.peak
        peak.resident = _status("VmHWM") or max(resident)
        peak.anonymous = None if None in anonymous else max(anonymous)
        if cuda:
            torch.cuda.synchronize()
            peak.cuda_allocated = torch.cuda.max_memory_allocated()
            peak.cuda_reserved = torch.cuda.max_memory_reserved()
