"""Load a pipeline; find and exchange its components."""

import contextlib
import functools
import importlib
import inspect
import types
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from modelopt_nb import enable
from modelopt_nb.lab.pipelines.prompts import DATA

EMBEDDED = DATA / "emoji-sana"
COMPONENTS = ("transformer", "unet")  # the first that a pipeline has is quantized by default


def load_pipeline(
    name_or_path: str | Path | None = None, *, dtype: torch.dtype | None = None,
    device: str | torch.device | None = None, **options: Any,
) -> DiffusionPipeline:  # fmt: skip
    """Load a Diffusers pipeline, dense or packed; the embedded one by default. Calls :func:`enable`.

    Args:
        name_or_path: A pipeline folder, or a hub id such as ``Efficient-Large-Model/Sana_600M_1024px_diffusers``.
        dtype: Of the weights in memory. Default: bfloat16 on CUDA, float32 elsewhere (CPUs without bfloat16
            instructions take ten times longer in it).
        device: Default: CUDA if available, else the CPU.
        options: Passed to ``DiffusionPipeline.from_pretrained``.

    Raises:
        FileNotFoundError: A path that is not a pipeline folder.
        OSError: A hub id that cannot be read, or a damaged ``model_index.json``.
        ValueError: A class that the installed libraries do not have.
    """
    path = Path(EMBEDDED if name_or_path is None else name_or_path)
    hub_id = len(path.parts) == 2 and not path.is_absolute() and not str(name_or_path).startswith(".")
    if not (path / "model_index.json").is_file() and (path.exists() or not hub_id):
        wrong = f"name_or_path={str(path)!r} is not a pipeline folder: it has no model_index.json"
        allowed = "a folder saved by save_pretrained, a hub id 'owner/name', or None for the embedded pipeline"
        raise FileNotFoundError(f"{wrong}. Allowed: {allowed} (in the repository's data/)")
    check_classes(path if path.exists() else str(name_or_path), options)
    enable()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    with torch.random.fork_rng([]), no_loading_bars() if path.exists() else contextlib.nullcontext():
        source = path if path.exists() else str(name_or_path)
        return DiffusionPipeline.from_pretrained(source, dtype=dtype, **options).to(device)


def check_classes(source: str | Path, options: Mapping[str, Any]) -> None:
    """Raise ValueError if ``model_index.json`` of a folder or hub id names a class that is not installed."""
    hub = "cache_dir", "force_download", "local_files_only", "proxies", "revision", "token"
    index: Any = DiffusionPipeline.load_config(source, **{name: options[name] for name in hub if name in options})
    own = [] if "custom_pipeline" in options else [("the pipeline", ["diffusers", index.get("_class_name")])]
    for name, found in own + [item for item in index.items() if item[0] not in options]:
        library, cls = found if isinstance(found, list) and len(found) == 2 else (None, None)
        if library not in ("diffusers", "transformers") or not cls:
            continue  # a value, or a class in a file of the repository
        module = importlib.import_module(library)
        if not isinstance(cls, str) or not hasattr(module, cls):
            wrong = (
                f"name_or_path={str(source)!r}: {name} is a {cls!r}, which {library} {module.__version__} does not have"
            )
            raise ValueError(f"{wrong}. Allowed: its classes; upgrade {library}, or load another model")


def is_embedded(pipeline: DiffusionPipeline) -> bool:
    """Return whether ``pipeline`` is the embedded one."""
    path = getattr(pipeline, "name_or_path", None)
    return path is not None and Path(path).resolve() == EMBEDDED


@contextlib.contextmanager
def no_loading_bars() -> Generator[None]:
    """Hide the loading bars of Diffusers and Transformers: they differ between runs of a notebook."""
    libraries: list[Any] = [x for x in (diffusers_logging, transformers_logging) if x.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def component_name(pipeline: DiffusionPipeline, component: str | None = None) -> str:
    """Return the component to quantize, by default the transformer or UNet. Raises TypeError, ValueError."""
    check_pipeline(pipeline)
    models = [name for name, part in pipeline.components.items() if isinstance(part, nn.Module)]
    name = component or next((name for name in COMPONENTS if name in models), None)
    if name not in models:
        wrong = f"component={name!r} is not a model of {type(pipeline).__name__}"
        raise ValueError(f"{wrong}. Allowed: {', '.join(models)}")
    return name


def get_component(pipeline: DiffusionPipeline, component: str | None = None) -> nn.Module:
    """Return a model of a pipeline, by default the transformer or UNet. Raises TypeError, ValueError."""
    return getattr(pipeline, component_name(pipeline, component))


def check_pipeline(pipeline: object) -> None:
    """Raise TypeError for a model in the place of its pipeline, or something else."""
    if isinstance(pipeline, nn.Module) or not callable(pipeline):
        which = "the pipeline that it is a component of" if isinstance(pipeline, nn.Module) else "a Diffusers pipeline"
        raise TypeError(f"pipeline is a {type(pipeline).__name__}. Allowed: {which}")


def is_codec(pipeline: DiffusionPipeline, component: str) -> bool:
    """Return whether a component decodes latents: it is only called while images are decoded."""
    return hasattr(getattr(pipeline, component), "decode")


with_component = mock.patch.object  # a pipeline's components are its attributes


@contextlib.contextmanager
def unchanged(*owners: Any) -> Generator[None]:
    """Restore all attributes of ``owners`` when the block ends."""
    before = [(vars(owner), dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for attributes, values in before:
            for name in attributes.keys() - values.keys():
                del attributes[name]
            attributes.update(values)


def method_hook(owner: Any, name: str, before: Callable[..., Any]) -> contextlib.AbstractContextManager[Any]:
    """Call ``before(args, kwargs)`` ahead of each call of a method inside the block; a deep copy calls its own."""
    original = getattr(owner, name)
    bound = inspect.ismethod(original) and original.__self__ is owner
    function = original.__func__ if bound else original

    @functools.wraps(function)  # pipelines inspect the signature of the scheduler's methods
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        before(args[bound:], kwargs)
        return function(*args, **kwargs)

    return mock.patch.object(owner, name, types.MethodType(wrapper, owner) if bound else wrapper)


def step_hook(pipeline: Any, tick: Callable[[], Any]) -> contextlib.AbstractContextManager[Any]:
    """Call ``tick`` in each denoising step inside the block, after the model's call; for any pipeline."""
    scheduler = getattr(pipeline, "scheduler", None)
    return method_hook(scheduler, "step", lambda *call: tick()) if scheduler else contextlib.nullcontext()
