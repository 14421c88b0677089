"""Generate images with a pipeline."""

import contextlib
import functools
import inspect
import re
from collections.abc import Generator
from numbers import Integral
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from modelopt_nb.lab.pipelines.load import check_pipeline, unchanged
from modelopt_nb.lab.pipelines.prompts import Prompts, Seeds, prompts_and_seeds

PER_PROMPT = re.compile(r"(^|_)(prompt|image|mask|video)(_|$)")  # arguments that can have one entry for each prompt
RESERVED = {"prompt", "generator", "output_type", "num_images_per_prompt"}  # arguments that generate() sets itself


def generate(
    pipeline: DiffusionPipeline, prompts: Prompts, seeds: Seeds = None, *, steps: int | None = None,
    batch_size: int = 4, decode: bool = True, **call: Any,
) -> list[np.ndarray]:  # fmt: skip
    """Generate one image per prompt, each from the noise of its own CPU generator; no progress bars.

    Args:
        pipeline: Any text-to-image or text-to-video pipeline.
        prompts: One or more prompts, in a list or array, or a frame with a column ``prompt`` (and ``seed``).
        seeds: One per prompt, or the first of consecutive ones. None: the frame's own, or 0, 1, 2 and so on.
        steps: Denoising steps, by default as many as the pipeline's own; Diffusers' name ``num_inference_steps`` is
            understood, too.
        batch_size: Images per call of the pipeline.
        decode: False skips decoding if the pipeline can return latents, and returns an empty list.
        call: Further arguments of the pipeline, such as ``guidance_scale``, ``image`` or ``callback_on_step_end``. A
            list of texts, images or masks that is as long as the prompts has one for each. Without
            ``height`` and ``width``, images have the size that the model was trained for (:func:`native_size`).

    Returns:
        uint8 arrays (height, width, 3), for videos (frames, height, width, 3), in the order of the prompts.

    Raises:
        ValueError: No prompts, seeds that do not fit, more steps than the scheduler has, a batch size below 1.
        FloatingPointError: An image, or its latents, hold NaN or infinity.
    """
    texts, numbers = prompts_and_seeds(prompts, seeds)
    steps = check_counts(pipeline, steps, call, batch_size)
    check_call(pipeline, call, len(texts))
    pipe: Any = pipeline  # Diffusers' base class has no __call__
    options: dict[str, Any] = {} if call.keys() & {"height", "width"} else {**native_size(pipe)}
    if decode or "output_type" in inspect.signature(pipe.__call__).parameters:
        options["output_type"] = "np" if decode else "latent"
    images: list[np.ndarray] = []
    bars = {**getattr(pipeline, "_progress_bar_config", {}), "disable": True}
    inside = [part for part in vars(pipeline).values() if isinstance(part, DiffusionPipeline)]  # a combined one
    with unchanged(*filter(None, (pipeline, getattr(pipeline, "scheduler", None), *inside))):
        pipe.set_progress_bar_config(**bars)
        for i in range(0, len(texts), batch_size):
            batch = texts[i : i + batch_size]
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in numbers[i : i + batch_size]]
            given = {**options, **part_of(call, i, i + len(batch), len(texts))}
            result = pipe(prompt=batch, generator=generators, num_inference_steps=steps, **given)
            values = next((getattr(result, kind) for kind in ("images", "frames") if hasattr(result, kind)), ())
            for prompt, value in zip(batch, values, strict=False):
                if not (value.isfinite() if isinstance(value, torch.Tensor) else np.isfinite(value)).all():
                    source = f"{type(pipeline).__name__} with steps={steps}, {call}"
                    raise FloatingPointError(f"{source} generated NaN for {prompt!r}: the outputs are not finite")
            if decode:
                images += list((np.asarray(values) * 255).round().astype(np.uint8))
    return images


def check_counts(pipeline: Any, steps: int | None, call: dict[str, Any], batch_size: int = 1) -> int:
    """Return the number of steps: ``steps``, or ``num_inference_steps``, which is taken out of ``call``.

    By default the pipeline's own, or 20.

    Raises TypeError for a model in the place of a pipeline, ValueError for a number of steps that the scheduler does
    not have, a batch size below 1, arguments that :func:`generate` sets, a scheduler whose noise cannot be seeded.
    """
    check_pipeline(pipeline)
    own = inspect.signature(pipeline.__call__).parameters.get("num_inference_steps")
    default = own.default if own and isinstance(own.default, int) else 20
    given = [n for n in (steps, call.pop("num_inference_steps", None)) if n is not None] or [default]
    if len(given) > 1:
        raise ValueError(f"steps={given[0]!r} and num_inference_steps={given[1]!r} mean the same. Allowed: one of them")
    if taken := sorted(call.keys() & RESERVED):
        raise ValueError(f"{', '.join(taken)} cannot be passed on. Allowed: prompts and seeds, one image each")
    scheduler: Any = getattr(pipeline, "scheduler", None)
    if type(scheduler).__name__ == "DPMSolverSDEScheduler" and scheduler.config.noise_sampler_seed is None:
        wrong = "DPMSolverSDEScheduler takes no generator, so no two images have the same noise"
        raise ValueError(f"{wrong}. Allowed: its argument noise_sampler_seed=0, or another scheduler")
    longest = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    for name, value, most in (("steps", given[0], longest), ("batch_size", batch_size, None)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= (most or int(value)):
            raise ValueError(f"{name}={value!r} is not allowed. Allowed: 1 to {most or 'any whole number'}")
    return int(given[0])


def part_of(call: dict[str, Any], start: int, end: int, prompts: int) -> dict[str, Any]:
    """Return ``call`` for the prompts from ``start`` to ``end``, of lists with an entry per prompt those entries."""
    own = {name for name, value in call.items() if PER_PROMPT.search(name) and isinstance(value, list)}
    return {n: v[start:end] if n in own and len(v) == prompts else v for n, v in call.items()}


def check_call(pipeline: Any, call: dict[str, Any], prompts: int) -> None:
    """Raise TypeError for arguments that the pipeline lacks, or sound; ValueError for lists of another length."""
    parameters = inspect.signature(pipeline.__call__).parameters
    name, taken = type(pipeline).__name__, {p.name for p in parameters.values() if p.kind != p.VAR_KEYWORD}
    if sound := sorted(n for n in taken if n.startswith("audio_") and not taken & {"height", "num_frames"}):
        raise TypeError(f"pipeline={name} makes sound ({sound[0]}). Allowed: pipelines that make images or videos")
    if (passes_on := len(taken) < len(parameters)) and "prompt" in taken:
        taken |= {"callback", "callback_steps"}  # all that Diffusers' pipelines take by **kwargs; others they ignore
    if ("prompt" in taken or not passes_on) and (unknown := sorted({"prompt", *call} - taken)):
        raise TypeError(f"{', '.join(unknown)} is no argument of {name}. Allowed: {', '.join(sorted(taken))}")
    for key, value in call.items():
        if PER_PROMPT.search(key) and isinstance(value, list) and "prompt" in key and len(value) != prompts:
            raise ValueError(
                f"{key} has {len(value)} entries for {prompts} prompts. Allowed: one text, or one for each"
            )


def native_size(pipeline: Any) -> dict[str, int]:
    """Return ``height`` and ``width`` in px of the transformer's training, if the pipeline may default to other values.

    ``SanaPipeline`` defaults to 1024 px for every transformer and enlarges the images of a smaller one. Empty for all
    pipelines that do not move sizes to the bins of a square: their own default is the right one.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    sides = {parameters[name].default for name in ("height", "width") if name in parameters}
    model = getattr(pipeline, "transformer", None)
    cells = getattr(getattr(model, "config", None), "sample_size", None)
    factor = getattr(pipeline, "vae_scale_factor", None)
    to_bins = "use_resolution_binning" in parameters and len(sides) == 1 and None not in sides
    if not to_bins or not isinstance(cells, int) or not isinstance(factor, int):
        return {}
    return {"height": cells * factor, "width": cells * factor}


@contextlib.contextmanager
def cached_prompt_embeddings(pipeline: Any) -> Generator[None]:
    """Cache what ``pipeline.encode_prompt`` returns: equal calls inside the block encode once."""
    encode, cache = getattr(pipeline, "encode_prompt", None), {}
    if encode is None:
        yield
        return

    @functools.wraps(encode)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items())))
        if key not in cache:
            cache[key] = encode(*args, **kwargs)
        return cache[key]

    with mock.patch.object(pipeline, "encode_prompt", encode_prompt):
        yield
