import csv
import functools

import numpy as np
import pytest
from PIL import Image

from modelopt_nb import classify, load_classifier
from modelopt_nb.lab.pipelines.prompts import DATA

COLOURS = {"white": (255, 255, 255), "blue": (72, 126, 238), "black": (32, 32, 36)}


@functools.cache
def emoji() -> dict[str, Image.Image]:
    """Every emoji, 200 px, by its subject."""
    with open(DATA / "emoji" / "subjects.csv", encoding="utf-8", newline="") as file:
        paths = {row["subject"]: DATA / "emoji" / f"{row['codepoint']}.webp" for row in csv.DictReader(file)}
    return {subject: Image.open(path).convert("RGBA").resize((200, 200)) for subject, path in paths.items()}


def on_background(image: Image.Image, background: str) -> np.ndarray:
    """uint8 (256, 256, 3)."""
    canvas = Image.new("RGB", (256, 256), COLOURS[background])
    canvas.paste(image, (28, 28), image)
    return np.asarray(canvas)


@pytest.mark.parametrize("background", COLOURS)
def test_it_recognizes_the_originals(background):
    labels = classify([on_background(image, background) for image in emoji().values()])
    assert (labels["subject"] == list(emoji())).mean() >= 0.99
    assert (labels["background"] == background).mean() >= 0.99


def test_it_does_not_recognize_noise():
    noise = list(np.random.default_rng(0).integers(0, 256, (64, 96, 96, 3), np.uint8))
    assert (classify(noise)["subject"] == list(emoji())[:64]).mean() < 0.1


def test_a_folder_without_a_classifier(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a classifier's folder"):
        load_classifier(tmp_path)
