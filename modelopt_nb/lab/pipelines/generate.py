"""Generate images with a pipeline."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline


@contextlib.contextmanager
def cached_prompt_embeddings(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Keep what ``pipeline.encode_prompt`` returns, so that equal calls inside the block encode once."""
    encode, kept = getattr(pipeline, "encode_prompt", None), {}
    if encode is None:
        yield
        return

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items())))
        if key not in kept:
            kept[key] = encode(*args, **kwargs)
        return kept[key]

    pipeline.encode_prompt = encode_prompt
    try:
        yield
    finally:
        del pipeline.encode_prompt


def native_size(pipeline: DiffusionPipeline) -> dict[str, int]:
    """``height`` and ``width`` in px that the transformer was trained for, where the pipeline asks for others by default.

    ``SanaPipeline`` asks for 1024 px whatever its transformer, and enlarges what a smaller one drew. Empty for a pipeline
    that takes the size from its model, and for one whose model does not say.
    """
    height = inspect.signature(pipeline.__call__).parameters.get("height")
    model = getattr(pipeline, "transformer", None)
    cells = getattr(getattr(model, "config", None), "sample_size", None)
    if height is None or height.default is None or not isinstance(cells, int):
        return {}
    side = cells * pipeline.vae_scale_factor
    return {"height": side, "width": side}


def generate(
    pipeline: DiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], **call: Any
) -> list[np.ndarray]:
    """Draw a picture for each prompt from its own seed: uint8 (height, width, 3), videos (frames, height, width, 3).

    Without a size in ``call``, pictures have the size that the model was trained for (see :func:`native_size`).

    Raises:
        FloatingPointError: Where a picture holds NaN.
    """
    import numpy as np
    import torch

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    size = {} if call.keys() & {"height", "width"} else native_size(pipeline)
    result = pipeline(prompt=list(prompts), generator=generators, output_type="np", **size, **call)
    pictures = result.images if hasattr(result, "images") else result.frames
    pictures = np.asarray(pictures)
    if not np.isfinite(pictures).all():
        raise FloatingPointError(f"{type(pipeline).__name__} drew NaN with {call}: the model's outputs are not finite")
    return list((pictures * 255).round().astype(np.uint8))


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
