"""The results of a comparison as a frame and a table."""

import os
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers.utils import export_to_video
from torch import nn

from modelopt_nb.lab.compare.table import Table
from modelopt_nb.lab.compare.variants import COLUMNS, Variant

#: Columns that change from run to run.
TIMINGS = tuple(column.name for column in COLUMNS if column.timing)


@dataclass(repr=False)
class Comparison:
    """The results of :func:`modelopt_nb.compare`; notebooks show its table.

    ``variants`` holds dense first, then the others in their order.
    """

    component: str
    prompts: list[str]
    seeds: list[int]
    steps: int
    machine: str
    variants: list[Variant] = field(default_factory=list)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    @property
    def images(self) -> dict[str, list[np.ndarray]]:
        """Each variant's images in the order of the prompts, uint8 (height, width, 3)."""
        return {v.name: v.images for v in self.variants}

    @property
    def frame(self) -> pd.DataFrame:
        """One row per variant; ``source`` in :data:`COLUMNS` says what each column measures, its name has the unit.

        Memory and time are measured with packed weights; the time of an encoder or an autoencoder is that for one
        image. ``subject_ok`` and ``background_ok`` exist if :func:`modelopt_nb.compare` knows what the images show,
        ``identical`` if some images equal those of dense, which are not in the median PSNR.
        """
        rows = {v.name: v.numbers for v in self.variants}
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")
        known = [column.name for column in COLUMNS if column.name in frame]
        frame = frame[[*known, *frame.columns.difference(known, sort=False)]]
        if "identical" in frame:
            frame["identical"] = frame["identical"].fillna(0).astype(int)
        frame.attrs["caption"] = self.caption
        return frame

    @property
    def caption(self) -> str:
        """Component, prompts, steps and machine of the results."""
        video = any(image.ndim == 4 for v in self.variants for image in v.images)
        metrics = "; PSNR and SSIM are means over the frames" if video else ""
        return f"{self.component}, {len(self.prompts)} prompts, {self.steps} steps{metrics}; {self.machine}"

    def save_videos(self, folder: str | os.PathLike[str], fps: int = 16) -> list[Path]:
        """Write an mp4 per prompt with the variants side by side, dense first; return the paths.

        Needs the packages imageio and imageio-ffmpeg.

        Raises:
            ValueError: The results are images.
            ModuleNotFoundError: A package is missing.
        """
        if any(image.ndim != 4 for v in self.variants for image in v.images):
            raise ValueError("save_videos: the results are images. Allowed: videos, of a text-to-video pipeline")
        if missing := [name for name in ("imageio", "imageio_ffmpeg") if find_spec(name) is None]:
            raise ModuleNotFoundError(f"save_videos needs {', '.join(missing)}: pip install imageio imageio-ffmpeg")
        paths = [Path(folder) / f"{row}.mp4" for row in range(len(self.prompts))]
        Path(folder).mkdir(parents=True, exist_ok=True)
        for row, path in enumerate(paths):
            wide = np.concatenate([v.images[row] for v in self.variants], axis=2)
            export_to_video(list(wide.astype(np.float32) / 255), str(path), fps=fps)
        return paths

    def table(self, *columns: str) -> Table:
        """Round columns of :attr:`frame`, with the caption; by default all but timings and interval bounds."""
        frame = self.frame
        hidden = {column.name for column in COLUMNS if column.timing or column.bound}
        return Table(frame[list(columns) or [name for name in frame.columns if name not in hidden]], self.caption)


def machine(model: nn.Module) -> str:
    """Return devices, dtypes (most weights first) and versions, for captions."""
    devices, dtypes = Counter[str](), Counter[str]()
    for p in model.parameters():
        devices[torch.cuda.get_device_name(p.device) if p.is_cuda else p.device.type.upper()] += p.numel()
        dtypes[str(p.dtype).removeprefix("torch.")] += p.numel()
    names = [" and ".join(name for name, _ in counted.most_common()) for counted in (devices, dtypes)]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "nvidia-modelopt"))
    return f"{', '.join(names)}, {packages}"
