"""Forward loops for calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelopt_nb.lab.calibration.model_calls import ModelCall
from modelopt_nb.lab.pipelines.generate import _check_steps, _draw_latents
from modelopt_nb.lab.pipelines.load import component_name, with_component
from modelopt_nb.lab.pipelines.prompts import prompts_and_seeds

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import DiffusionPipeline
    from torch import nn

ForwardLoop = Callable[["nn.Module"], None]


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
        with with_component(pipeline, part, model):
            for i in range(0, len(prompts), batch_size):
                _draw_latents(pipeline, prompts[i : i + batch_size], seeds[i : i + batch_size], steps, options)

    return forward_loop


def replay_loop(inputs: Iterable[Any]) -> ForwardLoop:
    """A forward loop that calls the model with each of ``inputs``, again each time that an algorithm runs it.

    An input is a :class:`ModelCall`, a dict of keyword arguments, a tuple or list of positional ones, or a single tensor. A
    generator is read to its end at once.

    Raises:
        ValueError: No inputs.
    """
    inputs = list(inputs) if iter(inputs) is inputs else inputs

    def forward_loop(model: nn.Module) -> None:
        import torch

        with torch.no_grad():
            for given in inputs:
                if isinstance(given, ModelCall):
                    given(model)
                elif isinstance(given, Mapping):
                    model(**given)
                else:
                    model(*(given if isinstance(given, (tuple, list)) else (given,)))

    if next(iter(inputs), None) is None:
        raise ValueError("inputs is empty. Allowed: calls from capture or record_calls, or inputs of the model")
    return forward_loop
