"""Classify the embedded pipeline's images by subject and background."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from transformers import ResNetForImageClassification

from modelopt_nb.lab.pipelines.load import no_loading_bars
from modelopt_nb.lab.pipelines.prompts import DATA

CLASSIFIER = DATA / "emoji-classifier"
SIDE = 96  # px, the classifier's input
BACKGROUNDS = 8  # the last labels are backgrounds, the others subjects


@cache
def load_classifier(path: Path = CLASSIFIER) -> ResNetForImageClassification:
    """Load the classifier in float32; its labels are subjects, then backgrounds.

    Raises:
        FileNotFoundError: ``path`` is not a classifier's folder.
    """
    if not (path / "config.json").is_file():
        wrong = f"path={str(path)!r} is not a classifier's folder"
        raise FileNotFoundError(f"{wrong}. Allowed: a folder like the repository's data/emoji-classifier")
    with no_loading_bars():
        return ResNetForImageClassification.from_pretrained(path, dtype=torch.float32).eval()


def classify(images: Sequence[np.ndarray], path: Path = CLASSIFIER) -> pd.DataFrame:
    """Classify images, uint8 (height, width, 3): columns ``subject`` and ``background``, one row per image."""
    classifier = load_classifier(path)
    frames = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        logits = classifier(F.interpolate(frames, (SIDE, SIDE), mode="area") / 127.5 - 1).logits
    names = list((classifier.config.id2label or {}).values())
    subjects, backgrounds = logits[:, :-BACKGROUNDS].argmax(1), logits[:, -BACKGROUNDS:].argmax(1) - BACKGROUNDS
    return pd.DataFrame({"subject": [names[i] for i in subjects], "background": [names[i] for i in backgrounds]})
