"""Training images and prompts of the embedded pipeline.

An image is one emoji on a plain background; its prompt names both. Needs only NumPy and PIL, so that the prompts can be
listed without torch.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

EMOJI = Path(__file__).resolve().parents[2] / "emoji"
SIZE = 512  # px, side of a training image
SPRITE = 400  # px, side of the emoji inside it
SHIFT = 24  # px, the most that an emoji is moved off the centre, each way

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (229, 62, 70),
    "orange": (246, 148, 60),
    "yellow": (255, 216, 70),
    "green": (82, 190, 104),
    "blue": (72, 126, 238),
    "purple": (156, 88, 206),
    "black": (32, 32, 36),
}

# The first is the plain form; the text encoder is trained to encode its paraphrases alike.
TEMPLATES = (
    "{a_subject} on {a_background} background",
    "{a_background} background with {a_subject}",
    "{subject} on {background}",
    "{a_subject} in front of {a_background} background",
    "a picture of {a_subject} on {a_background} background",
    "{subject}, {background} background",
)
_PLURAL = {"grapes", "cherries", "blueberries", "peanuts", "pancakes", "french fries"}
_MASS = {"bread", "bacon", "butter", "sushi", "spaghetti", "corn", "popcorn", "broccoli", "garlic", "coral",
         "cooked rice", "shaved ice", "ice cream", "green salad", "bubble tea", "canned food", "dango"}  # fmt: skip


def with_article(noun: str) -> str:
    vowel = noun[0] in "aeiou" and not noun.startswith("uni")
    return f"{'an' if vowel else 'a'} {noun}"


@dataclass(frozen=True)
class Subject:
    """One emoji: its name in prompts, its category and its file under ``data/emoji``.

    ``sitting`` is the first of the transformer's two trainings that used it; autoencoder and text encoder used all.
    """

    name: str
    category: str
    file: Path
    sitting: int

    @property
    def phrase(self) -> str:
        """The name with the article it takes in a sentence."""
        if self.name in _PLURAL | _MASS:
            return self.name
        return with_article(self.name)

    def prompt(self, background: str, template: str = TEMPLATES[0]) -> str:
        words = {"subject": self.name, "a_subject": self.phrase, "background": background}
        return template.format(**words, a_background=with_article(background))


def subjects() -> list[Subject]:
    """Load all subjects, in the order of ``data/emoji/subjects.csv``."""
    with open(EMOJI / "subjects.csv", encoding="utf-8", newline="") as file:
        return [
            Subject(r["subject"], r["category"], EMOJI / f"{r['codepoint']}.webp", int(r["sitting"]))
            for r in csv.DictReader(file)
        ]


def sprites(size: int = SPRITE) -> np.ndarray:
    """Load the emoji at ``size`` px, uint8 RGBA of shape (subjects, size, size, 4), alpha premultiplied."""
    out = []
    for subject in subjects():
        image = Image.open(subject.file).convert("RGBa").resize((size, size), Image.Resampling.LANCZOS)
        out.append(np.asarray(image))
    return np.stack(out)


def compose(
    sprite: np.ndarray, background: tuple[int, int, int], *, mirror: bool = False, shift: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Compose one image: uint8 RGB of shape (SIZE, SIZE, 3). ``sprite`` is one entry of :func:`sprites`."""
    if mirror:
        sprite = sprite[:, ::-1]
    picture = np.empty((SIZE, SIZE, 3), np.uint8)
    picture[:] = background
    top, left = ((SIZE - sprite.shape[0]) // 2 + s for s in shift)
    window = picture[top : top + sprite.shape[0], left : left + sprite.shape[1]]
    alpha = sprite[..., 3:].astype(np.uint16)
    window[:] = np.minimum(sprite[..., :3] + (window * (255 - alpha) + 127) // 255, 255)
    return picture
