"""Record a model's calls while a pipeline runs; save, load and replay them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelopt_nb.lab.pipelines.generate import _check_steps, _draw_latents
from modelopt_nb.lab.pipelines.load import component_name
from modelopt_nb.lab.pipelines.prompts import prompts_and_seeds

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


@dataclass(frozen=True)
class ModelCall:
    """One call of a model while a pipeline was drawing: its arguments, and in which denoising step of how many.

    ``method`` is what was called: the model itself, or an autoencoder's ``decode`` or ``encode``.
    """

    step: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    steps: int = 1
    method: str = "forward"

    @property
    def weight(self) -> float:
        """How much an error in this call counts: the square of the share of the denoising that is still to come.

        What is wrong early moves all that follows; what is wrong late is scaled by the little noise that is left.
        """
        return (1 - self.step / self.steps) ** 2

    def __call__(self, model: nn.Module) -> torch.Tensor:
        """Make the call again; returns the model's output, without gradients."""
        import torch

        with torch.no_grad():
            return self.output(model)

    def output(self, model: nn.Module) -> torch.Tensor:
        """The same, with gradients."""
        output = (model if self.method == "forward" else getattr(model, self.method))(*self.args, **self.kwargs)
        if isinstance(output, Mapping):  # diffusers' and transformers' outputs
            return next(iter(output.values()))
        return output[0] if isinstance(output, tuple) else output


@contextlib.contextmanager
def watched(
    pipeline: DiffusionPipeline,
    component: str | None,
    kept: Callable[[ModelCall], None],
    done: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Give every call of a component to ``kept``, with the denoising step that its scheduler is in, before it is made.

    ``done`` is called after it.
    """
    part = component_name(pipeline, component)
    model, scheduler = getattr(pipeline, part), getattr(pipeline, "scheduler", None)
    step, steps = 0, 1
    with contextlib.ExitStack() as stack:

        def replaced(owner: Any, name: str, after: Callable[[], None]) -> None:
            original = getattr(owner, name)

            @functools.wraps(original)  # pipelines look at its signature
            def called(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                after()
                return result

            setattr(owner, name, called)
            stack.callback(delattr, owner, name)

        def begin() -> None:
            nonlocal step, steps
            step, steps = 0, max(len(scheduler.timesteps), 1)

        def advance() -> None:
            nonlocal step
            step += 1

        if scheduler is not None:
            replaced(scheduler, "set_timesteps", begin)
            replaced(scheduler, "step", advance)

        def seen(method: str) -> Callable[..., None]:
            return lambda args, kwargs: kept(ModelCall(min(step, steps - 1), args, kwargs, steps, method))

        stack.callback(
            model.register_forward_pre_hook(lambda m, *call: seen("forward")(*call), with_kwargs=True).remove
        )
        stack.callback(model.register_forward_hook(lambda *call: done()).remove)
        for method in ("decode", "encode"):
            if hasattr(model, method) and not hasattr(model, "get_input_embeddings"):
                original = getattr(model, method)

                def coded(*args: Any, _original: Any = original, _method: str = method, **kwargs: Any) -> Any:
                    seen(_method)(args, kwargs)
                    result = _original(*args, **kwargs)
                    done()
                    return result

                setattr(model, method, functools.wraps(original)(coded))
                stack.callback(delattr, model, method)
        yield


@contextlib.contextmanager
def record_calls(
    pipeline: DiffusionPipeline,
    keep: int | None = 32,
    *,
    component: str | None = None,
    path: str | os.PathLike | None = None,
) -> Iterator[list[ModelCall]]:
    """Keep the calls of a component while the pipeline draws inside the block, as often as one likes.

    Args:
        pipeline: Any pipeline.
        keep: How many calls, spread evenly over all that are made, the first and the last among them; None: every one.
        component: A model of the pipeline; the transformer or UNet by default. An autoencoder's calls are those of
            ``decode`` and ``encode``.
        path: A file to keep them in too when the block ends, for :func:`load_calls`; written whole or not at all.

    Yields:
        The list; complete when the block ends.

    Raises:
        ValueError: An unknown component, a ``keep`` below 1.
    """
    if keep is not None and (not isinstance(keep, int) or keep < 1):
        raise ValueError(f"keep={keep!r} is not allowed. Allowed: a whole number of 1 or more, or None for every call")
    calls: list[ModelCall] = []
    every, made, newest = 1, 0, None

    def kept(call: ModelCall) -> None:
        nonlocal every, made, newest
        newest = call
        if made % every == 0:
            calls.append(call)
            if keep is not None and len(calls) > 4 * keep:  # every second one goes, and from now on half as many come
                del calls[1::2]
                every *= 2
        made += 1

    with watched(pipeline, component, kept):
        yield calls
    if newest is not None and calls[-1] is not newest:
        calls.append(newest)
    if keep is not None and len(calls) > keep:
        last = len(calls) - 1
        calls[:] = [calls[round(i * last / max(keep - 1, 1))] for i in range(keep)]
    if path is not None:
        save_calls(calls, path)


def save_calls(calls: Sequence[ModelCall], path: str | os.PathLike) -> None:
    """Keep calls in a file, which is replaced whole or not at all."""
    import torch

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save([vars(call) for call in calls], beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_calls(path: str | os.PathLike, device: str | torch.device | None = None) -> list[ModelCall]:
    """The calls that :func:`record_calls` kept in a file. Nothing but tensors and plain values is ever unpickled."""
    import torch

    return [ModelCall(**call) for call in torch.load(path, weights_only=True, map_location=device)]


def capture(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str] | pd.DataFrame,
    seeds: int | Sequence[int] | None = None,
    *,
    steps: int = 20,
    at: Sequence[float] = (0, 0.5, 0.9),
    component: str | None = None,
    **call: Any,
) -> list[ModelCall]:
    """Draw the prompts in one batch, and keep the calls of the component that were made in some denoising steps.

    Args:
        pipeline: Any text-to-image or text-to-video pipeline.
        prompts: As for :func:`modelopt_nb.compare`.
        seeds: As for :func:`modelopt_nb.compare`.
        steps: Denoising steps.
        at: Which steps, as shares of the way from the first, 0, to the last, 1: early, middle and late by default.
        component: The transformer or UNet by default.
        call: Passed on to the pipeline.

    Raises:
        ValueError: No prompts, seeds that do not fit, a share outside 0 to 1, more steps than the schedule has, an unknown
            component.
    """
    prompts, seeds = prompts_and_seeds(prompts, seeds)
    _check_steps(pipeline, steps)
    if not at or not all(0 <= share <= 1 for share in at):
        raise ValueError(f"at={at!r} is not allowed. Allowed: one or more shares of the way, each from 0 to 1")
    wanted = {round(share * (steps - 1)) for share in at}
    calls: list[ModelCall] = []
    with watched(pipeline, component, calls.append):
        _draw_latents(pipeline, prompts, seeds, steps, call)
    return [call for call in calls if call.step in wanted]
