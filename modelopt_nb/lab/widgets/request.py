"""What a widget is asked for: one image, dense and with each chosen variant."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from modelopt_nb.lab.widgets.choices import Choice, problems

MAX_VARIANTS = 12
MAX_PROMPT = 2000  # characters


@dataclass(frozen=True)
class Request:
    """One comparison: an image from a prompt and a seed, dense and with each choice."""

    prompt: str
    seed: int
    steps: int
    guidance: float | None
    choices: tuple[Choice, ...]

    def key(self, choice: Choice | None) -> tuple[Any, ...]:
        """Return the cache key of one image; None is the dense one."""
        return (self.prompt, self.seed, self.steps, self.guidance, choice)

    def as_dict(self) -> dict[str, Any]:
        """Return the request as a front end has it; :func:`validate` takes it back."""
        asked = {"prompt": self.prompt, "seed": self.seed, "steps": self.steps, "guidance": self.guidance}
        return {**asked, "variants": [choice.as_dict() for choice in self.choices], "selected": 0}


def default_guidance(pipeline: DiffusionPipeline) -> float | None:
    """Return the pipeline's default guidance scale; None if it takes none."""
    parameter = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")
    return None if parameter is None else parameter.default


def validate(
    asked: Mapping[str, Any], pipeline: DiffusionPipeline, model: nn.Module
) -> tuple[Request | None, dict[str, str]]:
    """Return the request that a front end's fields make, and an error per field; None if there are any.

    Fields are ``prompt``, ``seed``, ``steps``, ``guidance`` and ``variants``. The errors of the third variant have keys
    such as ``"2.block"``.
    """
    errors: dict[str, str] = {}
    prompt, seed, steps, guidance = (asked.get(name) for name in ("prompt", "seed", "steps", "guidance"))
    if not isinstance(prompt, str) or not prompt.strip():
        errors["prompt"] = f"prompt={prompt!r} is empty. Allowed: words"
    elif len(prompt) > MAX_PROMPT:
        errors["prompt"] = f"prompt has {len(prompt)} characters. Allowed: up to {MAX_PROMPT}"
    schedule = getattr(getattr(pipeline, "scheduler", None), "config", None)
    max_steps = getattr(schedule, "num_train_timesteps", 1000)
    for name, value, low, high in (("seed", seed, 0, 2**32 - 1), ("steps", steps, 1, max_steps)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            errors[name] = f"{name}={value!r} is not allowed. Allowed: a whole number from {low} to {high}"
    if default_guidance(pipeline) is None:
        guidance = None
    elif isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not 0 <= guidance <= 100:
        errors["guidance"] = f"guidance={guidance!r} is not allowed. Allowed: a number from 0 to 100; 1 is without"
    choices, wrong = _choices(asked.get("variants"), model)
    errors |= wrong
    if errors or not (isinstance(prompt, str) and isinstance(seed, int) and isinstance(steps, int)):
        return None, errors
    return Request(prompt.strip(), seed, steps, None if guidance is None else float(guidance), choices), {}


def _choices(variants: Any, model: nn.Module) -> tuple[tuple[Choice, ...], dict[str, str]]:
    """Return the choices that ``variants`` makes, and an error per field."""
    if not isinstance(variants, (list, tuple)) or not 1 <= len(variants) <= MAX_VARIANTS:
        return (), {"variants": f"variants={variants!r} is not allowed. Allowed: 1 to {MAX_VARIANTS} variants"}
    choices: list[Choice] = []
    errors: dict[str, str] = {}
    for i, variant in enumerate(variants):
        try:
            choice = Choice.of(variant)
        except (TypeError, ValueError) as error:
            errors["variants"] = str(error)
            continue
        if choice in choices:
            errors["variants"] = f"variants holds {choice.name!r} twice. Allowed: each once"
        choices.append(choice)
        errors |= {f"{i}.{name}": reason for name, reason in problems(choice, model).items()}
    return tuple(choices), errors
