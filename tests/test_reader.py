import csv

import numpy as np
import pytest
from diffusers import SanaPipeline
from PIL import Image

from modelopt_nb import compare, load_prompts, load_reader, read, reader_distance
from modelopt_nb.reader import DATA, percent

COLOURS = {"white": (255, 255, 255), "blue": (72, 126, 238), "black": (32, 32, 36)}


def originals(background: str) -> tuple[list[np.ndarray], list[str]]:
    """Every emoji on a background, 512 px, and what it is called."""
    pictures, names = [], []
    with open(DATA / "emoji" / "subjects.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            emoji = Image.open(DATA / "emoji" / f"{row['codepoint']}.webp").convert("RGBA").resize((400, 400))
            picture = Image.new("RGB", (512, 512), COLOURS[background])
            picture.paste(emoji, (56, 56), emoji)
            pictures.append(np.asarray(picture))
            names.append(row["subject"])
    return pictures, names


@pytest.mark.parametrize("background", COLOURS)
def test_it_names_the_originals(background):
    pictures, names = originals(background)
    seen = read(pictures)
    assert (seen["subject"] == names).mean() >= 0.99
    assert (seen["background"] == background).mean() >= 0.99


def test_it_can_say_no():
    noise = list(np.random.default_rng(0).integers(0, 256, (64, 512, 512, 3), np.uint8))
    _, names = originals("white")
    assert (read(noise)["subject"] == names[:64]).mean() < 0.1


def test_distance_is_small_between_halves_and_grows():
    pictures, _ = originals("white")
    other, _ = originals("black")
    halves = reader_distance(pictures[::2], pictures[1::2])
    assert abs(halves) < 0.2 * reader_distance(pictures, other)


def test_distance_needs_two_pictures():
    with pytest.raises(ValueError, match="pictures has 1 and others 2"):
        reader_distance([np.zeros((8, 8, 3), np.uint8)], [np.zeros((8, 8, 3), np.uint8)] * 2)


def test_a_folder_without_a_reader(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a reader's folder"):
        load_reader(tmp_path)


def test_prompts():
    splits = {split: load_prompts(split) for split in ("show", "measure", "calibrate")}
    assert [len(table) for table in splits.values()] == [12, 256, 128]
    pairs = [set(zip(t["subject"], t["background"], strict=True)) for t in splits.values()]
    assert not pairs[0] & pairs[1]
    assert not pairs[1] & pairs[2]
    assert list(load_prompts("show", 3)["seed"]) == [0, 1, 2]
    for table in splits.values():
        assert all(row.subject in row.prompt and row.background in row.prompt for row in table.itertuples())


@pytest.mark.parametrize(
    ("arguments", "said"), [(("train",), "split='train'"), (("show", 13), "n=13"), (("show", 0), "n=0")]
)
def test_wrong_prompts(arguments, said):
    with pytest.raises(ValueError, match=said):
        load_prompts(*arguments)


def test_percent_is_wilsons():
    assert percent([True] * 9 + [False]) == pytest.approx((90.0, 59.58, 98.21), abs=0.01)


def test_compare_says_what_the_reader_saw(pipeline):
    prompts = load_prompts("show", 3)
    comparison = compare(pipeline, ["FP8"], prompts, steps=4, progress=False)
    for name, pictures in comparison.images.items():
        right = (read(pictures)["subject"].array == prompts["subject"].array).mean()
        assert comparison.frame["subject_ok"][name] == pytest.approx(100 * right)
    assert comparison.seeds == [0, 1, 2]
    assert {"subject_ok low", "background_ok high"} <= set(comparison.frame.columns)
    alone = compare(pipeline, ["FP8"], list(prompts["prompt"]), steps=4, progress=False)
    assert "subject_ok" not in alone.frame.columns
    other = SanaPipeline(**pipeline.components)  # the reader knows nothing of other pipelines
    assert "subject_ok" not in compare(other, ["FP8"], prompts, steps=1, progress=False).frame.columns
