"""Write data/prompts.csv: the splits show, measure and calibrate.

python data/emoji-sana/train/write_prompts.py
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

import emoji

SHOW = [
    ("fox face", "blue", 0), ("strawberry", "yellow", 0), ("owl", "purple", 1), ("hamburger", "green", 0),
    ("penguin", "orange", 0), ("panda face", "red", 0), ("sunflower", "black", 0), ("crab", "white", 0),
    ("carrot", "purple", 0), ("butterfly", "yellow", 0), ("cupcake", "blue", 0), ("palm tree", "orange", 0),
]  # fmt: skip
SIZES = {"measure": 256, "calibrate": 128}


def rows() -> list[dict[str, str | int]]:
    """Return all prompts. The measure split names every subject; no pair (subject, background) is in two splits."""
    by_name = {s.name: s for s in emoji.subjects()}
    rng = random.Random(0)
    chosen = [("show", name, background, template) for name, background, template in SHOW]
    used = {(name, background) for _, name, background, _ in chosen}
    for split, size in SIZES.items():
        names = rng.sample(sorted(by_name), len(by_name)) * -(-size // len(by_name))
        for name in names[:size]:
            background = rng.choice([b for b in emoji.BACKGROUNDS if (name, b) not in used])
            used.add((name, background))
            chosen.append((split, name, background, rng.randrange(len(emoji.TEMPLATES))))
    return [
        {
            "prompt": by_name[name].prompt(background, emoji.TEMPLATES[template]),
            "seed": seed,
            "subject": name,
            "background": background,
            "split": split,
        }
        for seed, (split, name, background, template) in enumerate(chosen)
    ]


if __name__ == "__main__":
    table = rows()
    with open(Path(emoji.EMOJI).parent / "prompts.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
