"""Generate images with a pipeline."""

import contextlib
import functools
import inspect
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from modelopt_nb.lab.pipelines.load import with_attribute
from modelopt_nb.lab.pipelines.prompts import prompts_and_seeds


def generate(
    pipeline: DiffusionPipeline, prompts: Sequence[str] | pd.DataFrame, seeds: int | Sequence[int] | None = None, *,
    steps: int = 20, batch_size: int = 4, decode: bool = True, **call: Any,
) -> list[np.ndarray]:  # fmt: skip
    """Generate one image per prompt, each from the noise of its own CPU generator; no progress bars.

    Args:
        pipeline: Any text-to-image or text-to-video pipeline.
        prompts: One or more prompts in a list, or a frame with a column ``prompt`` (and ``seed``).
        seeds: One per prompt, or the first of consecutive ones. None: the frame's own, or 0, 1, 2 and so on.
        steps: Denoising steps.
        batch_size: Images per call of the pipeline.
        decode: False skips decoding if the pipeline can return latents, and returns an empty list.
        call: Further arguments of the pipeline, such as ``guidance_scale`` or ``callback_on_step_end``. Without
            ``height`` and ``width``, images have the size that the model was trained for (:func:`native_size`).

    Returns:
        uint8 arrays (height, width, 3), for videos (frames, height, width, 3), in the order of the prompts.

    Raises:
        ValueError: No prompts, seeds that do not fit, more steps than the scheduler has, a batch size below 1.
        FloatingPointError: An image holds NaN or infinity.
    """
    texts, numbers = prompts_and_seeds(prompts, seeds)
    check_counts(pipeline, steps, batch_size)
    pipe: Any = pipeline  # Diffusers' base class has no __call__
    options: dict[str, Any] = {} if call.keys() & {"height", "width"} else {**native_size(pipe)}
    if decode or "output_type" in inspect.signature(pipe.__call__).parameters:
        options["output_type"] = "np" if decode else "latent"
    images: list[np.ndarray] = []
    bars = {**getattr(pipeline, "_progress_bar_config", {}), "disable": True}
    with with_attribute(pipeline, "_progress_bar_config", bars):
        pipe.set_progress_bar_config(**bars)  # of the pipelines inside a combined one, too
        for i in range(0, len(texts), batch_size):
            batch = texts[i : i + batch_size]
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in numbers[i : i + batch_size]]
            result = pipe(prompt=batch, generator=generators, num_inference_steps=steps, **options, **call)
            if decode:
                images += _as_uint8(result, f"{type(pipeline).__name__} with steps={steps}, {call}")
    return images


def _as_uint8(result: Any, source: str) -> list[np.ndarray]:
    """Convert a pipeline's output in 0..1 to uint8; ``source`` is named in the error."""
    values = np.asarray(result.images if hasattr(result, "images") else result.frames)
    if not np.isfinite(values).all():
        raise FloatingPointError(f"{source} generated NaN: the model's outputs are not finite")
    return list((values * 255).round().astype(np.uint8))


def check_counts(pipeline: DiffusionPipeline, steps: int, batch_size: int = 1) -> None:
    """Raise ValueError for a number of steps that the scheduler does not have, or a batch size below 1."""
    longest = getattr(getattr(getattr(pipeline, "scheduler", None), "config", None), "num_train_timesteps", None)
    if not isinstance(steps, int) or steps < 1 or (longest and steps > longest):
        raise ValueError(f"steps={steps!r} is not allowed. Allowed: 1 to {longest or 'as many as the scheduler has'}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} is not allowed. Allowed: a whole number of 1 or more")


def native_size(pipeline: Any) -> dict[str, int]:
    """Return ``height`` and ``width`` in px of the transformer's training, if the pipeline may default to other values.

    ``SanaPipeline`` defaults to 1024 px for every transformer and enlarges the images of a smaller one. Empty for a
    pipeline that takes the size from its model, and for a model that does not state its size.
    """
    height = inspect.signature(pipeline.__call__).parameters.get("height")
    model = getattr(pipeline, "transformer", None)
    cells = getattr(getattr(model, "config", None), "sample_size", None)
    factor = getattr(pipeline, "vae_scale_factor", None)
    if height is None or height.default is None or not isinstance(cells, int) or not isinstance(factor, int):
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

    with with_attribute(pipeline, "encode_prompt", encode_prompt):
        yield


@contextlib.contextmanager
def uncached_prompt_embeddings(pipeline: Any) -> Generator[None]:
    """Encode prompts as usual inside the block, within :func:`cached_prompt_embeddings` too."""
    cached = vars(pipeline).pop("encode_prompt", None)
    try:
        yield
    finally:
        if cached is not None:
            pipeline.encode_prompt = cached
