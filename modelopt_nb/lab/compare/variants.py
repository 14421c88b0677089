"""What is compared: configurations by name, and what was measured of each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelopt_nb import MIB, ModelOptConfig, Report, WeightBytes, make_config

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DENSE = "dense"


@dataclass(frozen=True)
class Variant:
    """One row of a comparison. Bytes are the quantized component's; ``peak`` is in bytes, ``step`` in seconds.

    ``read`` is what the reader named right: boolean columns ``subject_ok`` and ``background_ok``, a row a picture.
    """

    name: str
    weights: WeightBytes
    peak: int
    step: float
    images: list[np.ndarray]
    psnr: list[float]
    ssim: list[float]
    report: Report | None = None
    read: pd.DataFrame | None = None
    extra: dict[str, list[float]] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, Any]:
        """Cost and quality as :attr:`Comparison.frame` names them."""
        return {
            "precision": self.report.precision if self.report else DENSE,
            "weights MiB": self.weights.mib,
            "bits per weight": self.weights.bits_per_weight,
            "of bf16": self.weights.of_bf16,
            "peak MiB": self.peak / MIB,
            "s per step": self.step,
            "PSNR dB": statistics.fmean(self.psnr) if self.psnr else float("nan"),
            "SSIM": statistics.fmean(self.ssim) if self.ssim else float("nan"),
            **{name: statistics.fmean(values) for name, values in self.extra.items()},
        }


def _configs(variants: Any) -> dict[str, ModelOptConfig]:
    """``variants`` as configurations by name; raises before anything is drawn."""
    if isinstance(variants, str) or not isinstance(variants, (Mapping, Sequence)):
        raise TypeError(f"variants={variants!r} is neither a list of quant types nor a dict of configurations by name")
    items = variants.items() if isinstance(variants, Mapping) else [(str(v), v) for v in variants]
    configs: dict[str, ModelOptConfig] = {}
    for name, config in items:
        if name == DENSE and config == DENSE:
            continue  # dense is always drawn
        if name in configs or name == DENSE:
            raise ValueError(f"variants names {name!r} twice; {DENSE!r} is always drawn first")
        configs[name] = make_config(config) if isinstance(config, str) else config
        if not hasattr(configs[name], "modelopt_config"):
            raise TypeError(f"variants[{name!r}]={config!r} is not a configuration. Build one with make_config('FP8')")
    return configs
