from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the recorded numbers are a CPU's

import pytest
import torch
from diffusers import SanaTransformer2DModel

ALL_TYPES = ["FP8", "INT8", "INT4", "NF4", "NVFP4"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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
    """One call of :func:`transformer`."""
    return {
        "hidden_states": torch.randn(2, 32, 16, 16),
        "encoder_hidden_states": torch.randn(2, 7, 128),
        "timestep": torch.tensor([900.0, 100.0]),
    }


@pytest.fixture(scope="session")
def pipeline():
    """The embedded pipeline."""
    from modelopt_nb import load_pipeline

    return load_pipeline(device="cpu")
