"""Undo changes of a model when an error interrupts them."""

import contextlib
import copy
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def rollback_on_error(model: nn.Module) -> Iterator[None]:
    """Restore the modules, weights and hooks of ``model`` if the block raises; not weights changed in place."""
    before = [
        (m, m.__class__, {k: copy.copy(v) if isinstance(v, (dict, list, set)) else v for k, v in vars(m).items()})
        for m in model.modules()
    ]
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, state in before:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(state)
        for parameter, data in weights:
            parameter.data = data
        raise
