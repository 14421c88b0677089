"""What is compared: configurations by name, and the measurements of each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelopt_nb import ModelOptConfig, Report, WeightBytes, make_config
from modelopt_nb.lab.compare.columns import COLUMNS, DENSE

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Variant:
    """The measurements of one variant; a row of a comparison.

    ``weights`` are the bytes of the quantized component, ``peak`` is in bytes (:meth:`Runner.peak`), ``step`` in seconds.
    ``images`` are uint8 (height, width, 3), in the order of the prompts; ``psnr`` (dB), ``ssim`` and ``measures`` have one
    value per image, ``psnr`` and ``ssim`` none for dense. ``correct`` holds the classifier's hits: boolean columns
    ``subject_ok`` and ``background_ok``, one row per image.
    """

    name: str
    weights: WeightBytes
    peak: int
    step: float
    images: list[np.ndarray]
    psnr: list[float]
    ssim: list[float]
    report: Report | None = None
    correct: pd.DataFrame | None = None
    measures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, Any]:
        """The row of :attr:`Comparison.frame`: values by the names of :data:`COLUMNS`, then the means of ``measures``."""
        values = {column.name: column.value(self) for column in COLUMNS if column.value}
        means = {name: statistics.fmean(values) for name, values in self.measures.items()}
        return {name: value for name, value in values.items() if value is not None} | means


def configs_by_name(variants: Any) -> dict[str, ModelOptConfig]:
    """Return ``variants`` as configurations by name, without dense.

    Raises:
        TypeError: Neither a list of quant types nor a dict of configurations by name.
        ValueError: A name twice, an unknown quant type.
    """
    if isinstance(variants, str) or not isinstance(variants, (Mapping, Sequence)):
        raise TypeError(f"variants={variants!r} is neither a list of quant types nor a dict of configurations by name")
    items = variants.items() if isinstance(variants, Mapping) else [(str(v), v) for v in variants]
    configs: dict[str, ModelOptConfig] = {}
    for name, config in items:
        if name == DENSE and config == DENSE:
            continue  # dense is always generated
        if name in configs or name == DENSE:
            raise ValueError(f"variants contains {name!r} twice; {DENSE!r} is always generated first")
        configs[name] = make_config(config) if isinstance(config, str) else config
        if not hasattr(configs[name], "modelopt_config"):
            raise TypeError(f"variants[{name!r}]={config!r} is not a configuration. Build one with make_config('FP8')")
    return configs
