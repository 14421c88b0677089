"""Measure the peak memory while a block of code runs."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

CLEAR_REFS = Path("/proc/self/clear_refs")  # exists on Linux


@dataclass
class PeakMemory:
    """Peaks in bytes; None where the machine cannot measure them.

    ``tensors``: the tensors made inside the block, the same in every run. ``resident``: the process's resident set (the
    kernel's figure on Linux, sampled elsewhere); ``anonymous``: its part that no file backs, sampled, on Linux.
    ``cuda_allocated``, ``cuda_reserved``: PyTorch's allocator, the sum over all CUDA devices; ``cuda_grown``: what it
    allocated above that of before the block. ``missing`` says why ``resident`` is None.
    """

    tensors: int | None = None
    resident: int | None = None
    anonymous: int | None = None
    cuda_allocated: int | None = None
    cuda_reserved: int | None = None
    cuda_grown: int | None = None
    missing: str = ""


class tensor_memory(TorchDispatchMode):  # noqa: N801
    """Count the bytes of the tensors made in a ``with`` block: ``now``, and the most so far, ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def _freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {s.data_ptr() for s in _storages((*args, *(kwargs or {}).values()))}
        result = func(*args, **(kwargs or {}))
        for storage in {s.data_ptr(): s for s in _storages(result)}.values():
            if storage.data_ptr() not in given:  # neither a view nor in place
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(tree, torch.Tensor):
        yield tree.untyped_storage()
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _storages(item)


@contextlib.contextmanager
def peak_memory(interval: float = 0.005) -> Iterator[PeakMemory]:
    """Measure the peak memory while the block runs. Code is slower inside, so time nothing there.

    Yields a :class:`PeakMemory`, filled in when the block ends. What the system does not report is sampled every
    ``interval`` seconds. A resident peak depends on what the process freed before; ``tensors`` does not.

    Source: ``VmHWM`` and ``RssAnon`` of ``/proc/self/status``, reset through ``/proc/self/clear_refs``.
    """
    peak, stop, samples = PeakMemory(), threading.Event(), [_resident()]
    if CLEAR_REFS.exists():
        try:
            CLEAR_REFS.write_text("5")
        except OSError as error:
            peak.missing = f"resident: VmHWM has the peak of before, since {CLEAR_REFS} cannot be written: {error}"
    devices = range(torch.cuda.device_count())
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    before = sum(map(torch.cuda.memory_allocated, devices))

    def sample() -> None:
        while not stop.wait(interval):
            samples.append(_resident())

    sampler, tensors = threading.Thread(target=sample, daemon=True), tensor_memory()
    sampler.start()
    try:
        with tensors:
            yield peak
    finally:
        stop.set()
        sampler.join()
        samples.append(_resident())
        peak.tensors = tensors.peak
        sampled = max(resident for resident, _ in samples)
        peak.resident = None if peak.missing else _status("VmHWM") or sampled
        peak.anonymous = max((size for _, size in samples if size is not None), default=None)
        if devices:
            peak.cuda_allocated = sum(map(torch.cuda.max_memory_allocated, devices))
            peak.cuda_reserved = sum(map(torch.cuda.max_memory_reserved, devices))
            peak.cuda_grown = peak.cuda_allocated - before


def _resident() -> tuple[int, int | None]:
    """Return the resident bytes of the process, and those that no file backs."""
    return psutil.Process().memory_info().rss, _status("RssAnon")


def _status(key: str) -> int | None:
    """Return one figure of ``/proc/self/status`` in bytes, or None if there is no such file."""
    lines = path.read_text().splitlines() if (path := Path("/proc/self/status")).exists() else ()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
