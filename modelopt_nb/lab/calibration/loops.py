"""Forward loops for calibration."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from modelopt_nb.lab.calibration.model_calls import ModelCall
from modelopt_nb.lab.pipelines.generate import check_counts, generate
from modelopt_nb.lab.pipelines.load import component_name, is_codec, with_component
from modelopt_nb.lab.pipelines.prompts import Prompts, Seeds, prompts_and_seeds

ForwardLoop = Callable[["nn.Module"], None]


def denoising_loop(
    pipeline: DiffusionPipeline, prompts: Prompts, seeds: Seeds = None, *, steps: int | None = None,
    component: str | None = None, batch_size: int = 4, **call: Any,
) -> ForwardLoop:  # fmt: skip
    """Return a forward loop that generates the prompts' images with the model it is called with.

    Args:
        pipeline, prompts, seeds, steps, batch_size, call: As for :func:`modelopt_nb.generate`.
        component: The component that the model replaces: the transformer or UNet by default, or a text encoder or an
            autoencoder. Images are decoded only if it is an autoencoder.

    Raises:
        ValueError: No prompts, seeds that do not fit, more steps than the scheduler has, an unknown component.
    """
    texts, numbers = prompts_and_seeds(prompts, seeds)
    number = check_counts(pipeline, steps, call, batch_size)
    part = component_name(pipeline, component)
    decode = is_codec(pipeline, part)

    def forward_loop(model: nn.Module) -> None:
        with with_component(pipeline, part, model):
            generate(pipeline, texts, numbers, steps=number, batch_size=batch_size, decode=decode, **call)

    return forward_loop


def replay_loop(inputs: Iterable[Any]) -> ForwardLoop:
    """Return a forward loop that calls the model with each of ``inputs``; an algorithm may run it several times.

    An input is a :class:`ModelCall`, a dict of keyword arguments, a tuple or list of positional arguments, or one
    tensor. A generator is consumed at once.

    Raises:
        ValueError: No inputs.
    """
    if not isinstance(inputs, Iterable):
        raise TypeError(f"inputs={inputs!r} is not a list. Allowed: calls from record_calls, or inputs of the model")
    inputs = list(inputs) if iter(inputs) is inputs else inputs

    def forward_loop(model: nn.Module) -> None:
        with torch.no_grad():
            for entry in inputs:
                if isinstance(entry, ModelCall):
                    entry(model)
                elif isinstance(entry, Mapping):
                    model(**entry)
                elif isinstance(entry, (tuple, list)):
                    model(*entry)
                else:
                    model(entry)

    if next(iter(inputs), None) is None:
        raise ValueError("inputs is empty. Allowed: calls from record_calls, or inputs of the model")
    return forward_loop
