"""Undo changes of a model when an error interrupts them."""

import contextlib
import copy
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def rollback_on_error(model: nn.Module, in_place: bool = False) -> Iterator[None]:
    """Restore ``model`` if the block raises. Weights that it changes ``in_place`` are copied first."""
    before = [
        (m, m.__class__, {k: copy.copy(v) if isinstance(v, (dict, list, set)) else v for k, v in vars(m).items()})
        for m in model.modules()
    ]
    weights = [(p, p.data, p.data.clone() if in_place else p.data) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, state in before:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(state)
        for parameter, data, saved in weights:
            parameter.data = data.copy_(saved) if in_place else data
        raise
