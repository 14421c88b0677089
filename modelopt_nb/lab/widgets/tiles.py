"""A generated image with its numbers: as an array, as text for a caption, as rows of a frame."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from modelopt_nb.lab.compare.table import as_text as number_as_text
from modelopt_nb.lab.compare.variants import COLUMNS
from modelopt_nb.lab.plots.style import frame_of
from modelopt_nb.lab.widgets.request import Request

#: Columns that a workbench fills itself.
OF_DENSE, CLASSIFIED = "of dense", "the classifier says"

#: Columns that a caption shows.
CAPTION = tuple(column.name for column in COLUMNS if column.explorer)


@dataclass(frozen=True)
class Tile:
    """An image as PNG, and the cost and quality of its variant; ``numbers`` is empty before they are measured."""

    name: str
    png: bytes
    numbers: dict[str, Any]
    frames: np.ndarray | None = field(default=None, repr=False, compare=False)  # of a video

    @classmethod
    def of(cls, name: str, image: np.ndarray, numbers: dict[str, Any]) -> "Tile":
        """Encode a uint8 image (height, width, 3), or the middle frame of a video."""
        file = io.BytesIO()
        Image.fromarray(frame_of(image)).save(file, "png", compress_level=1)
        return cls(name, file.getvalue(), numbers, image if image.ndim == 4 else None)

    @property
    def picture(self) -> np.ndarray:
        """The image, uint8 (height, width, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.png)))

    @property
    def whole(self) -> np.ndarray:
        """The image, or all frames of the video."""
        return self.picture if self.frames is None else self.frames

    def text(self, name: str) -> str:
        """Return a number as tables show it; empty if it was not measured."""
        return as_text(name, self.numbers.get(name))

    def as_view(self) -> dict[str, Any]:
        """Return what the view shows: the PNG, the numbers as text, and the share of the dense model's bytes."""
        captions = [[name, text] for name in CAPTION if (text := self.text(name))]
        return {"name": self.name, "png": self.png, "captions": captions, "share": self.numbers.get(OF_DENSE)}


def as_text(name: str, value: Any) -> str:
    """Return the value of a column as tables show it; ``of dense`` in percent."""
    if isinstance(value, str) or value is None:
        return value or ""
    if name == OF_DENSE:
        return f"{100 * value:.0f} %"
    if math.isnan(value):
        return ""
    return "same" if math.isinf(value) else number_as_text(name, value)


def runs_frame(runs: Sequence[tuple[Request, Sequence[Tile]]]) -> pd.DataFrame:
    """Return a row per run and image: the request and all numbers."""
    rows = []
    for i, (request, tiles) in enumerate(runs, 1):
        asked = {name: value for name, value in vars(request).items() if name != "choices"}
        rows += [{"run": i, **asked, "variant": tile.name, **tile.numbers} for tile in tiles]
    return pd.DataFrame(rows)
