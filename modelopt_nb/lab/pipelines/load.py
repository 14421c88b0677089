"""Load a pipeline; find and exchange its components."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

EMBEDDED = Path(__file__).resolve().parents[3] / "data" / "emoji-sana"


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


@contextlib.contextmanager
def with_component(pipeline: DiffusionPipeline, component: str, model: nn.Module) -> Iterator[None]:
    """Let ``pipeline`` draw with ``model`` as its ``component`` while a block of code runs."""
    original = getattr(pipeline, component)
    setattr(pipeline, component, model)
    try:
        yield
    finally:
        setattr(pipeline, component, original)
