"""One check for every verb of the laboratory: the process, the pipeline and the model are afterwards as before."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import tqdm
import tqdm.auto
from diffusers import DDIMScheduler
from modelopt.torch.quantization import model_calib
from torch import nn

from tests.lab.small_pipelines import smallest_unet, stable_diffusion


def state(pipeline: Any) -> dict[str, Any]:
    """What a verb must leave alone, in the order in which a difference is best reported."""
    modules = {f"{part}.{name}": m for part, model in pipeline.components.items() if isinstance(model, nn.Module)
               for name, m in model.named_modules()}  # fmt: skip
    hooks = {name: {k: list(v) for k, v in vars(m).items() if k.endswith("_hooks")} for name, m in modules.items()}
    return {
        "streams": (sys.stdout, sys.stderr),
        "filters": list(warnings.filters),
        "ModelOpt's switch": model_calib._ENABLE_FOLDING_PQS_TO_WEIGHTS,
        "bars": (tqdm.tqdm, tqdm.auto.tqdm, model_calib.tqdm),
        "environment": dict(os.environ),
        "garbage collection": (gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()),
        "matplotlib": dict(matplotlib.rcParams),
        "Python's RNG": random.getstate(),
        "RNG": torch.random.get_rng_state().tolist(),
        "NumPy's RNG": repr(np.random.get_state()),  # noqa: NPY002
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "hooks": hooks,
        "modules": {name: (id(m), type(m), m.training, sorted(vars(m))) for name, m in modules.items()},
        "weights": {
            name: (p.data_ptr(), p._version, p.requires_grad, p.dtype, p.device) for name, p in parameters(modules)
        },
        "pipeline": {name: repr(value) for name, value in vars(pipeline).items()},
        "scheduler": {name: repr(value) for name, value in vars(pipeline.scheduler).items()},
    }


def parameters(modules: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules.items():
        yield from ((f"{name}.{key}", p) for key, p in module._parameters.items() if p is not None)


@pytest.fixture(scope="session")
def used() -> Any:
    """A small pipeline that has generated before, so that its scheduler has a state to lose."""
    pipeline = stable_diffusion(DDIMScheduler(), smallest_unet())
    pipeline.set_progress_bar_config(disable=True, leave=False)
    pipeline(["cat"], num_inference_steps=3, output_type="latent", generator=torch.Generator().manual_seed(0))
    return pipeline


@pytest.fixture
def nothing_else_changes(used: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A block around a verb that yields the pipeline; anything that the block raises is expected."""

    @contextlib.contextmanager
    def block() -> Iterator[Any]:
        before = state(used)
        with contextlib.suppress(Exception, KeyboardInterrupt):
            yield used
        after = state(used)
        for name, value in before.items():
            assert after[name] == value, name

    return block


@contextlib.contextmanager
def interrupting(module: nn.Module, call: int, error: type[BaseException]) -> Iterator[list[int]]:
    """Raise ``error`` at the given call of ``module`` or of a copy of it; yield the number of calls so far."""
    count = [0]

    def hook(*_: Any) -> None:
        count[0] += 1
        if count[0] == call:
            raise error("on purpose")

    handle = module.register_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


@contextlib.contextmanager
def interrupting_all(chosen: Callable[[nn.Module], bool], call: int) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the given call of all modules that are ``chosen``, whichever model they are in."""
    count = [0]

    def hook(module: nn.Module, *_: Any) -> None:
        count[0] += chosen(module)
        if count[0] == call and chosen(module):
            raise KeyboardInterrupt("on purpose")

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()
