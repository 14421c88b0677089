"""What a model is shown: calls of a pipeline's component, kept from real denoising, to be made again."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelopt_nb.pipeline import component_name, native_size, prompts_and_seeds

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


@dataclass(frozen=True)
class Call:
    """One call of a model while a pipeline was drawing: its arguments, and in which denoising step of how many."""

    step: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    steps: int = 1

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
        output = model(*self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else next(iter(output.values()))


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
        ValueError: No prompts, seeds that do not fit, a share outside 0 to 1, an unknown component.
    """
    import torch

    prompts, seeds = prompts_and_seeds(prompts, seeds)
    if not at or not all(0 <= share <= 1 for share in at):
        raise ValueError(f"at={at!r} is not allowed. Allowed: one or more shares of the way, each from 0 to 1")
    model = getattr(pipeline, component_name(pipeline, component))
    wanted = {round(share * (steps - 1)) for share in at}
    calls: list[Call] = []
    now = 0

    def keep(model: nn.Module, args: tuple, kwargs: dict) -> None:
        if now in wanted:
            calls.append(Call(now, args, kwargs, steps))

    def next_step(pipe: Any, step: int, time: Any, kept: dict) -> dict:
        nonlocal now
        now = step + 1
        return kept

    size = {} if call.keys() & {"height", "width"} else native_size(pipeline)
    latent = {"output_type": "latent"} if "output_type" in inspect.signature(pipeline.__call__).parameters else {}
    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    bars = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**bars | {"disable": True})
    try:
        pipeline(
            prompt=prompts, generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            num_inference_steps=steps, callback_on_step_end=next_step, **latent, **size, **call,
        )  # fmt: skip
    finally:
        hook.remove()
        pipeline._progress_bar_config = bars
    return calls
