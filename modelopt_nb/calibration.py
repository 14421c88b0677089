"""What a model is shown: real denoising, or calls kept from it, to measure and to calibrate with."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelopt_nb import upstream
from modelopt_nb.pipeline import component_name, native_size, prompts_and_seeds, swapped

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

ForwardLoop = Callable[["nn.Module"], None]


@dataclass(frozen=True)
class Call:
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


def _draw_latents(
    pipeline: DiffusionPipeline, prompts: list[str], seeds: list[int], steps: int, call: Mapping[str, Any]
) -> None:
    """Denoise without bars; nothing is decoded where the pipeline can leave it, unless ``call`` asks for an output."""
    import torch

    parameters = inspect.signature(pipeline.__call__).parameters
    size = {} if call.keys() & {"height", "width"} else native_size(pipeline)
    latent = {"output_type": "latent"} if "output_type" in parameters else {}
    bars = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**bars | {"disable": True})
    try:
        generator = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        pipeline(prompt=prompts, generator=generator, num_inference_steps=steps, **latent | size | dict(call))
    finally:
        pipeline._progress_bar_config = bars


def _check_steps(pipeline: DiffusionPipeline, steps: int) -> None:
    longest = getattr(getattr(pipeline.scheduler, "config", None), "num_train_timesteps", None)
    if not isinstance(steps, int) or steps < 1 or (longest and steps > longest):
        raise ValueError(f"steps={steps!r} is not allowed. Allowed: 1 to {longest or 'as many as the scheduler has'}")


@contextlib.contextmanager
def watched(
    pipeline: DiffusionPipeline,
    component: str | None,
    kept: Callable[[Call], None],
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
            return lambda args, kwargs: kept(Call(min(step, steps - 1), args, kwargs, steps, method))

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
def recorded(
    pipeline: DiffusionPipeline,
    keep: int | None = 32,
    *,
    component: str | None = None,
    path: str | os.PathLike | None = None,
) -> Iterator[list[Call]]:
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
    calls: list[Call] = []
    every, made, newest = 1, 0, None

    def kept(call: Call) -> None:
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


def save_calls(calls: Sequence[Call], path: str | os.PathLike) -> None:
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


def load_calls(path: str | os.PathLike, device: str | torch.device | None = None) -> list[Call]:
    """The calls that :func:`recorded` kept in a file. Nothing but tensors and plain values is ever unpickled."""
    import torch

    return [Call(**call) for call in torch.load(path, weights_only=True, map_location=device)]


def capture(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str] | pd.DataFrame,
    seeds: int | Sequence[int] | None = None,
    *,
    steps: int = 20,
    at: Sequence[float] = (0, 0.5, 0.9),
    component: str | None = None,
    **call: Any,
) -> list[Call]:
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
    calls: list[Call] = []
    with watched(pipeline, component, calls.append):
        _draw_latents(pipeline, prompts, seeds, steps, call)
    return [call for call in calls if call.step in wanted]


def denoising_loop(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str] | pd.DataFrame,
    seeds: int | Sequence[int] | None = None,
    *,
    steps: int = 20,
    component: str | None = None,
    batch_size: int = 4,
    **call: Any,
) -> ForwardLoop:
    """A forward loop that draws the prompts with the model it is given in the component's place.

    Args:
        pipeline: Any text-to-image or text-to-video pipeline.
        prompts: As for :func:`modelopt_nb.compare`.
        seeds: As for :func:`modelopt_nb.compare`.
        steps: Denoising steps.
        component: What the loop will be given: the transformer or UNet by default, or a text encoder, or an autoencoder.
        batch_size: Pictures drawn in one call.
        call: Passed on to the pipeline, such as ``guidance_scale``.

    Raises:
        ValueError: No prompts, seeds that do not fit, more steps than the schedule has, an unknown component.
    """
    prompts, seeds = prompts_and_seeds(prompts, seeds)
    _check_steps(pipeline, steps)
    part = component_name(pipeline, component)
    options = {"output_type": "np"} | call if hasattr(getattr(pipeline, part), "decode") else call

    def forward_loop(model: nn.Module) -> None:
        with swapped(pipeline, part, model):
            for i in range(0, len(prompts), batch_size):
                _draw_latents(pipeline, prompts[i : i + batch_size], seeds[i : i + batch_size], steps, options)

    return forward_loop


def replay_loop(inputs: Iterable[Any]) -> ForwardLoop:
    """A forward loop that calls the model with each of ``inputs``, again each time that an algorithm runs it.

    An input is a :class:`Call`, a dict of keyword arguments, a tuple or list of positional ones, or a single tensor. A
    generator is read to its end at once.

    Raises:
        ValueError: No inputs.
    """
    inputs = list(inputs) if iter(inputs) is inputs else inputs

    def forward_loop(model: nn.Module) -> None:
        import torch

        with torch.no_grad():
            for given in inputs:
                if isinstance(given, Call):
                    given(model)
                elif isinstance(given, Mapping):
                    model(**given)
                else:
                    model(*(given if isinstance(given, (tuple, list)) else (given,)))

    if next(iter(inputs), None) is None:
        raise ValueError("inputs is empty. Allowed: calls from capture or recorded, or inputs of the model")
    return forward_loop


@contextlib.contextmanager
def largest_inputs(
    model: nn.Module, layers: Iterable[str], argument: str = "forward_loop"
) -> Iterator[dict[str, torch.Tensor]]:
    """Keep the largest absolute value of each channel that each of the ``layers`` is given while a block of code runs.

    Yields:
        By layer, for those that were reached: a tensor of the input's dtype, whose axes are the input's, all but that of
        the channels of length 1. This is all that max calibration asks of the inputs.

    Raises:
        FloatingPointError: A layer is given NaN or infinity, or the model or one of its parts gives it; ``argument`` is
            what is to blame for it.
    """
    import torch

    found: dict[str, torch.Tensor] = {}

    giving: list[str] = []

    def check() -> None:
        getting = [name for name, largest in found.items() if not largest.isfinite().all()]
        if getting or giving:
            which = f"{getting[0]} gets" if getting else f"{giving[0]} gives"
            raise FloatingPointError(f"{argument}: {which} NaN or infinity on what the model is shown")

    def watch(name: str, layer: nn.Module) -> Any:
        axis = 1 if isinstance(layer, torch.nn.modules.conv._ConvNd) else -1

        def before(module: nn.Module, args: tuple) -> None:
            given = torch.atleast_2d(args[0].detach())
            others = [i for i in range(given.ndim) if i != axis % given.ndim]
            largest = torch.maximum(given.amax(others, keepdim=True), -given.amin(others, keepdim=True))
            found[name] = torch.maximum(found[name], largest) if name in found else largest

        return layer.register_forward_pre_hook(before)

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            outputs = output.values() if isinstance(output, Mapping) else output
            for tensor in outputs if isinstance(output, (tuple, list, Mapping)) else [output]:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                    giving.append(name)

        return hook

    parts = {type(model).__name__: model, **dict(model.named_children())}
    hooks = [part.register_forward_hook(after(name)) for name, part in parts.items()]
    hooks += [watch(name, model.get_submodule(name)) for name in layers]
    try:
        yield found
    except Exception:
        check()  # ModelOpt's own error, of NaN, names no layer
        raise
    else:
        check()
    finally:
        for hook in hooks:
            hook.remove()


def activation_ranges(model: nn.Module, calls: Sequence[Call]) -> pd.DataFrame:
    """The largest absolute value that each layer is given, a row a layer, a column a denoising step of ``calls``.

    The layers are those that can be quantized, in the order of the model; one that is never reached has no number.

    Raises:
        FloatingPointError: NaN or infinity in the model.
    """
    import pandas as pd

    layers = upstream.quantizable_layers(model)
    frame = pd.DataFrame(index=pd.Index(layers, name="layer"), dtype=float)
    for step in sorted({call.step for call in calls}):
        with largest_inputs(model, layers, "calls") as found:
            for call in calls:
                if call.step == step:
                    call(model)
        frame[step] = pd.Series({name: largest.max().item() for name, largest in found.items()}, dtype=float)
    return frame.rename_axis("step", axis="columns")


def run_checked(loop: ForwardLoop, model: nn.Module, layers: Iterable[str]) -> dict[str, torch.Tensor]:
    """Run ``loop``, which has to reach all of the ``layers`` with finite numbers, or an error says what it did instead.

    Upstream goes on where a loop never calls the model, and leaves what it did not reach without a scale. Returns what
    :func:`largest_inputs` kept.
    """
    layers = list(layers)
    with largest_inputs(model, layers) as found:
        loop(model)
    missed = [name for name in layers if name not in found]
    if len(missed) == len(layers):
        raise ValueError(
            f"forward_loop={loop!r} did not call the {type(model).__name__} that it was given. Needed: a function that "
            "runs its argument on inputs, such as denoising_loop or replay_loop makes"
        )
    if missed:
        raise ValueError(
            f"forward_loop={loop!r} never reached {', '.join(missed[:3])}{f' and {len(missed) - 3} more' * (len(missed) > 3)}. "
            "Needed: inputs that use them, or modules_to_not_convert"
        )
    return found
