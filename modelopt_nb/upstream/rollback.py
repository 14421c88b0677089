"""Undo changes of a model when an error interrupts them."""

import contextlib
import copy
import traceback
from collections.abc import Iterator

import torch
from torch import nn


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is full, of a GPU or a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def note_if_full(model: nn.Module, where: str = "a part", then: str = "") -> Iterator[None]:
    """Note in an error of the block, if memory is full, in which layer of ``model`` it was raised."""
    try:
        yield
    except BaseException as error:
        if is_out_of_memory(error):
            names = {id(module): name for name, module in model.named_modules() if name}
            for frame, _ in traceback.walk_tb(error.__traceback__):
                where = next((names[id(value)] for value in frame.f_locals.values() if id(value) in names), where)
            error.add_note(f"memory is full in {where} of {type(model).__name__}{then}")
        raise


@contextlib.contextmanager
def rollback_on_error(model: nn.Module, in_place: bool = False) -> Iterator[None]:
    """Restore ``model`` if the block raises. Weights that it changes ``in_place`` are copied first."""
    before = [
        (m, m.__class__, {k: copy.copy(v) if isinstance(v, (dict, list, set)) else v for k, v in vars(m).items()})
        for m in model.modules()
    ]
    weights = [(p, p.data, p.data.clone() if in_place else p.data) for p in model.parameters()]
    try:
        with note_if_full(model, then=", which is dense again"):
            yield
    except BaseException:
        for module, cls, state in before:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(state)
        for parameter, data, saved in weights:
            parameter.data = data.copy_(saved) if in_place else data
        raise
