"""Classify the embedded pipeline's images by subject and background."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelopt_nb.lab.pipelines.load import no_loading_bars
from modelopt_nb.lab.pipelines.prompts import DATA

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CLASSIFIER = DATA / "emoji-classifier"


SIDE = 96  # px, what the reader sees


BACKGROUNDS = 8  # the last labels name backgrounds, the others subjects


@cache
def load_classifier(path: Path = CLASSIFIER) -> Any:
    """The reader: a ``transformers.ResNetForImageClassification`` whose labels are subjects, then backgrounds."""
    import torch
    from transformers import ResNetForImageClassification

    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"path={str(path)!r} is not a reader's folder. The repository has one in data/emoji-classifier"
        )
    with no_loading_bars():
        return ResNetForImageClassification.from_pretrained(path, dtype=torch.float32).eval()


def _seen(pictures: Sequence[np.ndarray]) -> Any:
    """Pictures as the reader takes them: float32 (n, 3, SIDE, SIDE) in -1..1, each made smaller by averaging."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return F.interpolate(frames, (SIDE, SIDE), mode="area") / 127.5 - 1


def classify(pictures: Sequence[np.ndarray], path: Path = CLASSIFIER) -> pd.DataFrame:
    """Name what is on each picture, uint8 (height, width, 3): columns ``subject`` and ``background``."""
    import pandas as pd
    import torch

    reader = load_classifier(path)
    with torch.inference_mode():
        logits = reader(_seen(pictures)).logits
    subjects, backgrounds = logits[:, :-BACKGROUNDS], logits[:, -BACKGROUNDS:]
    first, names = subjects.shape[1], reader.config.id2label
    return pd.DataFrame(
        {
            "subject": [names[i] for i in subjects.argmax(1).tolist()],
            "background": [names[first + i] for i in backgrounds.argmax(1).tolist()],
        }
    )
