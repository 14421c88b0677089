"""What is compared: configurations by name, the measurements of each, and the columns that show them."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from modelopt_nb import MIB, ModelOptConfig, Report, WeightBytes, check_algorithm, make_config, plan, quantize
from modelopt_nb.lab.quality.statistics import median, median_interval, percent

#: The name of the model that is not quantized.
DENSE = "dense"


@dataclass(frozen=True)
class Variant:
    """The measurements of one variant; a row of a comparison.

    ``weights`` are the bytes of the quantized component, ``peak`` is in bytes (:meth:`Runner.peak`), ``step`` in
    seconds. ``images`` are uint8 (height, width, 3), in the order of the prompts; ``psnr`` (dB), ``ssim`` and
    ``measures`` have one value per image, ``psnr`` and ``ssim`` none for dense. ``correct`` holds the classifier's
    hits: boolean columns ``subject_ok`` and ``background_ok``, one row per image. PSNR and SSIM of two equal images of
    one colour are NaN: a safety checker's black ones, for example.
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
        """The row of :attr:`Comparison.frame`: values by the names of :data:`COLUMNS`, then means of ``measures``."""
        values = {column.name: column.value(self) for column in COLUMNS if column.value}
        means = {name: statistics.fmean(measure) for name, measure in self.measures.items()}
        return {name: value for name, value in values.items() if value is not None} | means


@dataclass(frozen=True)
class Column:
    """One column of a comparison.

    ``name`` contains the unit, ``digits`` are the decimals shown (None: text), ``source`` says what the number is.
    ``value`` computes it from a variant, None if that has none; the explorer fills columns without ``value``.
    """

    name: str
    digits: int | None
    source: str
    value: Callable[[Variant], Any] | None = None
    timing: bool = False  # changes from run to run, so that tables leave it out
    bound: bool = False  # end of an interval, so that tables leave it out
    explorer: bool = True  # shown by the explorer under each image


def _with_bounds(
    name: str, digits: int, source: str, find: Callable[[Variant], tuple[float | None, ...] | None], tables: bool
) -> tuple[Column, ...]:
    """Return a column and those of the bounds of its interval; ``find`` returns all three, or None."""

    def end(index: int) -> Callable[[Variant], float | None]:
        return lambda v: None if (found := find(v)) is None else found[index]

    low, high = (f"{source}: {bound} bound of the 95 % interval" for bound in ("lower", "upper"))
    return (
        Column(name, digits, source, end(0), explorer=tables),
        Column(f"{name} low", digits, low, end(1), bound=not tables, explorer=False),
        Column(f"{name} high", digits, high, end(2), bound=not tables, explorer=False),
    )


def _correct(name: str) -> tuple[Column, ...]:
    """Percent of images whose ``name`` the classifier recognizes, with the bounds of its interval."""

    def find(v: Variant) -> tuple[float, float, float] | None:
        return None if v.correct is None else percent(v.correct[f"{name}_ok"].tolist())

    return _with_bounds(f"{name}_ok", 1, f"images whose {name} the classifier recognizes, percent", find, False)


def _median(name: str, digits: int, source: str, values: Callable[[Variant], list[float]]) -> tuple[Column, ...]:
    """Median over the images, with the bounds of its interval."""
    return _with_bounds(name, digits, source, lambda v: (median(values(v)), *median_interval(values(v))), True)


#: The columns of :attr:`Comparison.frame`, of its tables and of the explorer, in their order.
COLUMNS: tuple[Column, ...] = (
    Column("precision", None, "types of weights and activations", lambda v: v.report.precision if v.report else DENSE),
    Column("weights MiB", 2, "bytes of the component's parameters and buffers", lambda v: v.weights.mib),
    Column("bits per weight", 2, "bits per weight, scales included", lambda v: v.weights.bits_per_weight),
    Column("of bf16", 3, "these bytes over those of bfloat16 weights", lambda v: v.weights.of_bf16, explorer=False),
    Column("of dense", 2, "these bytes over those of the dense component"),
    Column("peak MiB", 0, "peak memory of generating one image: see Runner.peak", lambda v: v.peak / MIB),
    Column("s per step", 4, "time of the component in one denoising step of one image", lambda v: v.step, timing=True),
    *_median("PSNR dB", 1, "median over the images that differ from dense: skimage", lambda v: v.psnr),
    *_median("SSIM", 3, "median over the images, against dense: skimage", lambda v: v.ssim),
    *_correct("subject"),
    *_correct("background"),
    Column("identical", 0, "images equal to dense, if any", lambda v: v.psnr.count(math.inf) or None, explorer=False),
    Column("the classifier says", None, "subject and background of the image, by the classifier"),
)  # fmt: skip


def configs_by_name(variants: Sequence[str] | Mapping[str, str | ModelOptConfig]) -> dict[str, ModelOptConfig]:
    """Return ``variants`` as configurations by name, without dense. Raises TypeError, ValueError."""
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


def check_config(model: nn.Module, config: ModelOptConfig) -> None:
    """Raise TypeError or ValueError if ``config`` cannot quantize ``model``, or cannot run on its device."""
    plan(model, config)
    check_algorithm(config, config.forward_loop)
    if not (config.input_cfg or {}).get("block_sizes", {}).get("scale_bits"):
        return
    device = next(model.parameters()).device
    layer, x = nn.Sequential(nn.Linear(256, 128, device=device)), torch.ones(1, 256, device=device)
    try:  # ModelOpt rounds blocks of activations on CUDA alone
        quantize(layer, make_config(config.quant_type, weight_only=config.weight_only), lambda m: m(x))
        layer(x)
    except Exception as error:
        wrong = f"quant_type={config.quant_type!r} has activations that cannot be rounded on {device}: {error}"
        raise ValueError(f"{wrong} Allowed here: activations in FP8 or INT8, or weights alone") from error
