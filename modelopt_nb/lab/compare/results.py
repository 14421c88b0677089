"""The results of a comparison as a frame and a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from modelopt_nb.lab.compare.variants import Variant
from modelopt_nb.lab.quality.statistics import percent

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn


@dataclass(frozen=True)
class Table:
    """A frame as a notebook shows it: rounded, with the machine under it."""

    frame: pd.DataFrame
    caption: str

    DIGITS = {
        "seed": 0,
        "steps": 0,
        "guidance": 1,
        "weights MiB": 2,
        "bits per weight": 2,
        "of bf16": 3,
        "peak MiB": 0,
        "s per step": 4,
        "PSNR dB": 1,
        "SSIM": 3,
        **{f"{what}_ok{end}": 1 for what in ("subject", "background") for end in ("", " low", " high")},
    }

    def _formats(self) -> dict[str, str]:
        numbers = self.frame.select_dtypes("number").columns
        return {name: f"{{:.{self.DIGITS.get(name, 2)}f}}" for name in numbers}

    def __repr__(self) -> str:
        formatters = {name: form.format for name, form in self._formats().items()}
        return f"{self.frame.to_string(formatters=formatters, na_rep='')}\n{self.caption}"

    def _repr_html_(self) -> str:
        style = self.frame.style.format(self._formats(), na_rep="")
        return style.set_caption(self.caption).set_uuid("comparison").to_html()


@dataclass
class Comparison:
    """What :func:`compare` measured. ``variants`` holds dense first, then the others in their order."""

    component: str
    prompts: list[str]
    seeds: list[int]
    steps: int
    machine: str
    variants: list[Variant] = field(default_factory=list)

    #: Columns of :attr:`frame` that change from run to run.
    COSTS = ("s per step",)

    @property
    def images(self) -> dict[str, list[np.ndarray]]:
        """The pictures of every variant in the order of the prompts, uint8 (height, width, 3)."""
        return {v.name: v.images for v in self.variants}

    @property
    def frame(self) -> pd.DataFrame:
        """A row a variant.

        ``precision`` is what weights and activations are rounded to. ``weights MiB``, ``bits per weight`` and ``of bf16``
        (bytes over those of the same weights in bfloat16) are the component's, scales and layers left dense included.
        ``peak MiB``: on CUDA what the allocator held at most, on a CPU the weights of the whole pipeline plus the peak of
        the tensors made while one picture is drawn, packed. ``s per step``: the component's time in one denoising step of
        one picture, packed; for a text encoder or an autoencoder, its time for one picture. ``PSNR dB`` and ``SSIM``: means
        over the pictures, against dense. For the embedded pipeline, where the prompts say what they show: ``subject_ok``
        and ``background_ok``, percent of the pictures that the reader names right, with the ends of the 95 % intervals.
        """
        import pandas as pd

        rows = {v.name: v.numbers | _named_right(v.read) for v in self.variants}
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")
        frame.attrs["caption"] = self.caption
        return frame

    @property
    def caption(self) -> str:
        """What the numbers were measured on."""
        return f"{self.component}, {len(self.prompts)} prompts, {self.steps} steps; {self.machine}"

    def table(self, *columns: str) -> Table:
        """The named columns of :attr:`frame`, rounded for reading and with its caption.

        Without names: all but the times, which change from run to run, and the ends of the intervals.
        """
        frame = self.frame
        shown = [c for c in frame.columns if c not in self.COSTS and not c.endswith((" low", " high"))]
        return Table(frame[list(columns) or shown], self.caption)


def _named_right(read: pd.DataFrame | None) -> dict[str, float]:
    columns = {}
    for name in [] if read is None else read.columns:
        columns[name], columns[f"{name} low"], columns[f"{name} high"] = percent(read[name])
    return columns


def machine(model: nn.Module) -> str:
    """Device, dtype and versions, as every table says them."""
    import torch

    parameter = next(model.parameters())
    device = torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else parameter.device.type.upper()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "nvidia-modelopt"))
    return f"{device}, {str(parameter.dtype).removeprefix('torch.')}, {packages}"
