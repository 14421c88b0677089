"""The columns of a comparison: name, digits and source of each, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

from modelopt_nb import MIB
from modelopt_nb.lab.quality.statistics import percent

if TYPE_CHECKING:
    import pandas as pd

    from modelopt_nb.lab.compare.variants import Variant

DENSE = "dense"


@dataclass(frozen=True)
class Column:
    """One column of a comparison.

    ``name`` contains the unit, ``digits`` are the decimals shown (None: text), ``source`` says what the number is. ``value``
    computes it from a variant, or returns None for a variant without it; a column without ``value`` is filled by the explorer.
    """

    name: str
    digits: int | None
    source: str
    value: Callable[[Variant], Any] | None = None
    timing: bool = False  # changes from run to run, so that tables leave it out
    bound: bool = False  # end of an interval, so that tables leave it out
    explorer: bool = True  # shown by the explorer under each image


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


def _correct(name: str) -> tuple[Column, ...]:
    """Percent of images whose ``name`` the classifier recognizes, with the bounds of its interval."""

    def end(index: int) -> Callable[[Variant], float | None]:
        return lambda v: None if v.correct is None else percent(v.correct[f"{name}_ok"].tolist())[index]

    source = f"images whose {name} the classifier recognizes, percent"
    return (
        Column(f"{name}_ok", 1, source, end(0), explorer=False),
        Column(f"{name}_ok low", 1, f"{source}: lower bound of the 95 % interval", end(1), bound=True, explorer=False),
        Column(f"{name}_ok high", 1, f"{source}: upper bound of the 95 % interval", end(2), bound=True, explorer=False),
    )


COLUMNS: tuple[Column, ...] = (
    Column("precision", None, "what weights and activations are rounded to", lambda v: v.report.precision if v.report else DENSE),
    Column("weights MiB", 2, "bytes of the component's parameters and buffers", lambda v: v.weights.mib),
    Column("bits per weight", 2, "these bytes per weight, scales and dense layers included", lambda v: v.weights.bits_per_weight),
    Column("of bf16", 3, "these bytes over those of the same weights in bfloat16", lambda v: v.weights.of_bf16, explorer=False),
    Column("of dense", 2, "these bytes over those of the dense component"),
    Column("peak MiB", 0, "peak memory of generating one image: see Runner.peak", lambda v: v.peak / MIB),
    Column("s per step", 4, "time of the component in one denoising step of one image", lambda v: v.step, timing=True),
    Column("PSNR dB", 1, "mean over the images, against dense: skimage", lambda v: _mean(v.psnr)),
    Column("SSIM", 3, "mean over the images, against dense: skimage", lambda v: _mean(v.ssim)),
    *_correct("subject"),
    *_correct("background"),
    Column("the classifier says", None, "subject and background of the image, by the classifier"),
)  # fmt: skip

#: Decimals of a number by the name of its column; ``guidance`` is a column of the explorer's history.
DIGITS: dict[str, int] = {c.name: c.digits for c in COLUMNS if c.digits is not None} | {"guidance": 1}


def as_text(name: str, value: float) -> str:
    """Format a number with the digits of the column ``name``; of an unknown column, integers with none, others with two."""
    return f"{value:.{DIGITS.get(name, 0 if isinstance(value, Integral) else 2)}f}"


@dataclass(frozen=True, repr=False)
class Table:
    """A frame as notebooks show it: with the digits of :data:`COLUMNS`, and the machine in its caption."""

    frame: pd.DataFrame
    caption: str

    def _formats(self) -> dict[Any, Callable[[Any], str]]:
        return {name: partial(as_text, name) for name in self.frame.select_dtypes("number").columns}

    def __repr__(self) -> str:
        return f"{self.frame.to_string(formatters=self._formats(), na_rep='')}\n{self.caption}"

    def _repr_html_(self) -> str:
        style: Any = self.frame.style.set_caption(self.caption).set_uuid("comparison")
        return style.format(self._formats(), na_rep="").to_html()
