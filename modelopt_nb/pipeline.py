"""The pipeline that is compared: load it, find the part to quantize, draw with it."""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

EMBEDDED = Path(__file__).resolve().parents[1] / "data" / "emoji-sana"
COMPONENTS = ("transformer", "unet")


def load_pipeline(
    name_or_path: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """Load a Diffusers pipeline; the embedded one by default.

    Args:
        name_or_path: A pipeline folder, or a hub id such as ``Efficient-Large-Model/Sana_600M_1024px_diffusers``.
        dtype: Of the weights in memory; bfloat16 on CUDA and float32 elsewhere by default (many CPUs have no bfloat16
            instructions, and are ten times slower for it).
        device: CUDA by default where there is one.
        options: Passed to ``DiffusionPipeline.from_pretrained``.

    Raises:
        FileNotFoundError: For a path that is no pipeline folder.
    """
    path = Path(EMBEDDED if name_or_path is None else name_or_path)
    hub_id = len(path.parts) == 2 and not path.is_absolute() and not str(name_or_path).startswith(".")
    if not (path / "model_index.json").is_file() and (path.exists() or not hub_id):
        raise FileNotFoundError(
            f"name_or_path={str(path)!r} is not a pipeline folder: it has no model_index.json. Allowed: a folder saved by "
            "save_pretrained, a hub id 'owner/name', or nothing for the embedded pipeline (in the repository's data/)"
        )
    with garbage_kept():
        import torch
        from diffusers import DiffusionPipeline

        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        if not path.exists():
            return DiffusionPipeline.from_pretrained(str(name_or_path), dtype=dtype, **options).to(device)
        with no_loading_bars():
            return DiffusionPipeline.from_pretrained(path, dtype=dtype, **options).to(device)


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Leave garbage where it is while a block of code runs.

    The first use of Diffusers imports thousands of modules, which are all there to stay; looking through them again and
    again for garbage is a sixth of that time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def is_embedded(pipeline: DiffusionPipeline) -> bool:
    """Whether ``pipeline`` is the embedded one."""
    path = getattr(pipeline, "name_or_path", None)
    return path is not None and Path(path).resolve() == EMBEDDED


@contextlib.contextmanager
def no_loading_bars() -> Iterator[None]:
    """A folder on disk loads in seconds, and its bars would differ at every run of a notebook."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [m for m in (diffusers_logging, transformers_logging) if m.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def component_name(pipeline: DiffusionPipeline, component: str | None = None) -> str:
    """The name of the part that is quantized: the transformer or the UNet unless ``component`` says otherwise."""
    from torch import nn

    parts = [name for name, part in pipeline.components.items() if isinstance(part, nn.Module)]
    if component is None:
        component = next((name for name in COMPONENTS if name in parts), None)
    if component not in parts:
        raise ValueError(
            f"component={component!r} is not a model of {type(pipeline).__name__}. Allowed: {', '.join(parts)}"
        )
    return component


def prompts_and_seeds(
    prompts: Sequence[str] | pd.DataFrame, seeds: int | Sequence[int] | None
) -> tuple[list[str], list[int]]:
    """Prompts as a list, from a frame's column ``prompt`` too, and a seed for each.

    ``seeds`` is one a prompt, or the first of consecutive ones; where it is None the frame's own, or 0 and on.

    Raises:
        ValueError: No prompts, or seeds that do not fit.
    """
    if hasattr(prompts, "columns"):
        if seeds is None and "seed" in prompts.columns:
            seeds = prompts["seed"].tolist()
        prompts = prompts["prompt"].tolist()
    if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompts={prompts!r} is not a list of prompts. Allowed: one or more strings in a list")
    if seeds is None or isinstance(seeds, int):
        seeds = range(seeds or 0, (seeds or 0) + len(prompts))
    if len(seeds) != len(prompts):
        raise ValueError(
            f"seeds has {len(seeds)} entries for {len(prompts)} prompts. Allowed: one number, or one a prompt"
        )
    return list(prompts), list(seeds)


@contextlib.contextmanager
def swapped(pipeline: DiffusionPipeline, component: str, model: nn.Module) -> Iterator[None]:
    """Let ``pipeline`` draw with ``model`` as its ``component`` while a block of code runs."""
    original = getattr(pipeline, component)
    setattr(pipeline, component, model)
    try:
        yield
    finally:
        setattr(pipeline, component, original)


@contextlib.contextmanager
def prompts_encoded_once(pipeline: DiffusionPipeline) -> Iterator[None]:
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


def draw(pipeline: DiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], **call: Any) -> list[np.ndarray]:
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
