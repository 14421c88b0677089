"""Record a model's calls while a pipeline runs; save, load and replay them."""

import contextlib
import functools
import os
import pickle
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from modelopt_nb.lab.pipelines.load import component_name, method_hook, step_hook


@dataclass(frozen=True)
class ModelCall:
    """One call of a model by a pipeline: its arguments, and in which of how many denoising steps it was made.

    ``method`` is what was called: the model itself (``forward``), or an autoencoder's ``decode`` or ``encode``.
    """

    step: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    steps: int = 1
    method: str = "forward"

    @property
    def weight(self) -> float:
        """The weight of an error in this call: the squared share of the denoising that is still to come.

        An early error changes all later steps; a late one is scaled by the little noise that is left.
        """
        return (1 - self.step / self.steps) ** 2

    def __call__(self, model: nn.Module) -> torch.Tensor:
        """Repeat the call without gradients; returns the model's output."""
        with torch.no_grad():
            return self.output(model)

    def output(self, model: nn.Module) -> torch.Tensor:
        """Repeat the call with gradients; returns the model's output, of a list of tensors their elements."""
        output = (model if self.method == "forward" else getattr(model, self.method))(*self.args, **self.kwargs)
        output = tuple(output.values()) if isinstance(output, Mapping) else output  # Diffusers' or Transformers' class
        output = output[0] if isinstance(output, tuple) else output
        return torch.cat([tensor.flatten() for tensor in output]) if isinstance(output, list) else output


@contextlib.contextmanager
def record_calls(
    pipeline: DiffusionPipeline, keep: int | None = 32, *, at: Sequence[float] | None = None,
    component: str | None = None, path: str | os.PathLike[str] | None = None,
) -> Generator[list[ModelCall]]:  # fmt: skip
    """Record the calls of a component while the pipeline generates images inside the block.

    Args:
        keep: How many calls to keep, spread evenly over all, the first and the last among them. None keeps all.
        at: Keep only calls of some denoising steps, named as shares of the way from the first (0) to the last (1).
            ``keep`` then counts among these.
        component: A model of the pipeline; the transformer or UNet by default. An autoencoder's calls are those of
            ``decode`` and ``encode``.
        path: Also save the calls in this file when the block ends, for :func:`load_calls`; the write is atomic.

    Yields:
        The list of calls; complete when the block ends.

    Raises:
        ValueError: An unknown component, a ``keep`` below 1, a share outside 0 to 1.
    """
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ValueError(f"keep={keep!r} is not allowed. Allowed: a whole number of 1 or more, or None for all calls")
    shares = list(at) if isinstance(at, Iterable) else []
    if at is not None and (not shares or not all(isinstance(share, Real) and 0 <= share <= 1 for share in shares)):
        raise ValueError(f"at={at!r} is not allowed. Allowed: one or more shares of the denoising, each from 0 to 1")
    kept = _EvenlySpread(keep)

    def record(call: ModelCall) -> None:
        if at is None or call.step in {round(share * (call.steps - 1)) for share in shares}:
            kept.add(call)

    with _call_hooks(pipeline, component, record):
        yield kept.calls
    kept.finish()
    if path is not None:
        save_calls(kept.calls, path)


class _EvenlySpread:
    """A list of at most ``keep`` calls out of any number, spread evenly; holds at most ``4 * keep`` meanwhile."""

    def __init__(self, keep: int | None) -> None:
        self.keep, self.calls = keep, []
        self._every, self._count, self._newest = 1, 0, None

    def add(self, call: ModelCall) -> None:
        """Keep every n-th call; each time the list is full, drop every second one and double n."""
        self._newest = call
        if self._count % self._every == 0:
            self.calls.append(call)
            if self.keep is not None and len(self.calls) > 4 * self.keep:
                del self.calls[1::2]
                self._every *= 2
        self._count += 1

    def finish(self) -> None:
        """Append the last call and thin the list to ``keep``."""
        if self._newest is not None and self.calls[-1] is not self._newest:
            self.calls.append(self._newest)
        if self.keep is not None and len(self.calls) > self.keep:
            last = len(self.calls) - 1
            self.calls[:] = [self.calls[round(i * last / max(self.keep - 1, 1))] for i in range(self.keep)]


@contextlib.contextmanager
def _call_hooks(pipeline: Any, component: str | None, record: Callable[[ModelCall], None]) -> Generator[None]:
    """Call ``record`` before each call of a component, with the denoising step that the scheduler is in."""
    model = getattr(pipeline, component_name(pipeline, component))
    scheduler: Any = getattr(pipeline, "scheduler", None)
    done: dict[str, int] = {}  # "steps" since the last set_timesteps

    def called(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        steps = max(len(scheduler.timesteps), 1) if done and scheduler.timesteps is not None else 1
        record(ModelCall(min(done.get("steps", 0), steps - 1), args, kwargs, steps, method))

    with contextlib.ExitStack() as stack:
        if scheduler is not None:
            stack.enter_context(method_hook(scheduler, "set_timesteps", lambda *_: done.update(steps=0)))
            stack.enter_context(step_hook(pipeline, lambda: done.update(steps=done.get("steps", 0) + 1)))
        hook = model.register_forward_pre_hook(
            lambda _, args, kwargs: called("forward", args, kwargs), with_kwargs=True
        )
        stack.callback(hook.remove)
        for method in ("decode", "encode"):
            if hasattr(model, method) and not hasattr(model, "get_input_embeddings"):
                stack.enter_context(method_hook(model, method, functools.partial(called, method)))
        yield


def save_calls(calls: Sequence[ModelCall], path: str | os.PathLike[str]) -> None:
    """Save calls in a file with ``torch.save``; the write is atomic."""
    path = Path(path)
    check_calls(calls, fewest=0)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder. Allowed: the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save([vars(call) for call in calls], temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_calls(path: str | os.PathLike[str], device: str | torch.device | None = None) -> list[ModelCall]:
    """Load calls that :func:`save_calls` or :func:`record_calls` saved; unpickles only tensors and plain values."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"path={str(path)!r} is not there. Allowed: a file that save_calls wrote")
    try:
        return [ModelCall(**call) for call in torch.load(path, weights_only=True, map_location=device)]
    except (pickle.UnpicklingError, EOFError, RuntimeError, TypeError) as error:
        raise ValueError(f"path={str(path)!r} has no calls. Allowed: a file that save_calls wrote") from error


def check_calls(calls: Sequence[ModelCall], fewest: int = 1) -> None:
    """Raise TypeError or ValueError unless these are calls of a model."""
    if not isinstance(calls, Sequence) or len(calls) < fewest:
        wrong = "is empty" if isinstance(calls, Sequence) else f"is a {type(calls).__name__}"
        raise ValueError(f"calls {wrong}. Allowed: calls of the model, from record_calls(pipeline)")
    if other := [call for call in calls if not callable(call)]:
        raise TypeError(f"calls holds {other[0]!r}. Allowed: calls of the model, from record_calls(pipeline)")
