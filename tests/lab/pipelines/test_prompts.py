import numpy as np
import pandas as pd
import pytest
import torch

from modelopt_nb import load_prompts
from modelopt_nb.lab.pipelines.prompts import prompts_and_seeds


def test_splits():
    splits = {split: load_prompts(split) for split in ("show", "measure", "calibrate")}
    assert [len(table) for table in splits.values()] == [12, 256, 128]
    pairs = [set(zip(t["subject"], t["background"], strict=True)) for t in splits.values()]
    assert not pairs[0] & pairs[1]
    assert not pairs[1] & pairs[2]
    assert list(load_prompts("show", 3)["seed"]) == [0, 1, 2]
    for table in splits.values():
        assert all(row.subject in row.prompt and row.background in row.prompt for row in table.itertuples())


@pytest.mark.parametrize(
    ("arguments", "message"), [(("train",), "split='train'"), (("show", 13), "n=13"), (("show", 0), "n=0")]
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(*arguments)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (None, [0, 1]),
        (5, [5, 6]),
        ([7, 3], [7, 3]),
        (range(4, 6), [4, 5]),
        (np.int64(5), [5, 6]),
        ((7, 3), [7, 3]),
        (np.array([7, 3]), [7, 3]),
        (pd.Series([7, 3], [1, 0]), [7, 3]),
        (torch.tensor([7, 3]), [7, 3]),
        (iter([7, 3]), [7, 3]),
    ],
)
def test_seeds(seeds, expected):
    texts, found = prompts_and_seeds((text for text in "ab"), seeds)
    assert (texts, found) == (["a", "b"], expected) and {type(number) for number in found} == {int}
    frame = load_prompts("show", 2)
    assert hasattr(seeds, "__next__") or prompts_and_seeds(frame.assign(seed=[8, 9]), seeds)[1] == (
        expected if seeds is not None else [8, 9]
    )


def test_a_frame_without_prompts():
    with pytest.raises(ValueError, match="is not a list of prompts. Allowed: .* a frame of them"):
        prompts_and_seeds(pd.DataFrame({"text": ["a"]}), None)
