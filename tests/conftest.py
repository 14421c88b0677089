from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterator

import pytest
import torch
from diffusers import SanaTransformer2DModel
from diffusers.models.modeling_utils import ModelMixin
from transformers import PreTrainedModel

ALL_TYPES = ["FP8", "INT8", "INT4", "NF4", "NVFP4"]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


#: The files that take longest, which start first, so that two workers end together.
LONGEST = (
    "00_start_here", "07_calibration", "06_layer_exclusion", "test_browser", "09_explorer", "08_save_and_load", "test_any_model",
    "test_loading_ways", "test_runner", "test_workbench", "test_explorer", "test_unchanged", "test_calibrate", "test_dtypes",
    "test_ways_of_use", "test_bit_allocation", "test_architectures", "test_seed", "test_atomic_folder",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first. Skip what this machine cannot run, and say why."""
    ranks = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks) + (item.path.suffix != ".ipynb")))
    missing = {
        "cuda": pytest.mark.skip(reason="needs CUDA") if not torch.cuda.is_available() else None,
        "browser": pytest.mark.skip(reason="needs Chromium: apt-get install chromium") if CHROMIUM is None else None,
    }
    for item in items:
        for name, skip in missing.items():
            if skip is not None and item.get_closest_marker(name):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def modelopt_checkpointing_off() -> Iterator[None]:
    """Undo ModelOpt's enable_huggingface_checkpointing() after a test that calls it; ModelOpt cannot."""
    yield
    huggingface = sys.modules.get("modelopt.torch.opt.plugins.huggingface")
    for cls in (ModelMixin, PreTrainedModel) if huggingface else ():
        for name, method in vars(cls).get("_modelopt_cache", {}).items():
            setattr(cls, name, classmethod(method.__func__) if inspect.ismethod(method) else method)
        if "_modelopt_cache" in vars(cls):
            del cls._modelopt_cache
            huggingface._PATCHED_CLASSES.clear()


@pytest.fixture
def transformer() -> SanaTransformer2DModel:
    """A Sana transformer of one block, random weights, every width a multiple of 128."""
    return SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=1,
        num_cross_attention_heads=4,
        cross_attention_head_dim=32,
        cross_attention_dim=128,
        caption_channels=128,
        mlp_ratio=3.0,
        sample_size=16,
        patch_size=2,
        interpolation_scale=1.0,
    ).eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """The arguments of one call of :func:`transformer`."""
    return {
        "hidden_states": torch.randn(2, 32, 16, 16),
        "encoder_hidden_states": torch.randn(2, 7, 128),
        "timestep": torch.tensor([900.0, 100.0]),
    }


@pytest.fixture(scope="session")
def pipeline():
    """The embedded pipeline, in float32 on the CPU: the recorded numbers are a CPU's."""
    from modelopt_nb import load_pipeline

    return load_pipeline(device="cpu", dtype=torch.float32)
