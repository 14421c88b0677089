"""The blind test: rounds are balanced, answers are counted once, a round does not show its answer."""

from __future__ import annotations

from collections import Counter

import pytest

from modelopt_nb import BlindTest
from modelopt_nb.lab.quality.statistics import FEWEST
from modelopt_nb.lab.widgets.blind_test import Deck


@pytest.fixture
def game(pipeline):
    made = BlindTest(pipeline, ["INT8", "INT4"], steps=1, seed=0)
    yield made
    made.close()


def deal(game) -> int:
    """The next round; returns the place of the quantized image."""
    game.next()
    game.wait(60)
    return game.dealt[1]


@pytest.mark.parametrize("places", [2, 3])
def test_deck_is_balanced(places):
    deck = Deck(4, places, 12, seed=1)
    rounds = [deck.next() for _ in range(5 * 4 * places)]
    for first in range(0, len(rounds), 4 * places):
        block = [(v, p) for v, p, _ in rounds[first : first + 4 * places]]
        assert set(Counter(block).values()) == {1}
        assert len(block) == 4 * places
    for first in range(0, len(rounds), 4):
        assert {v for v, _, _ in rounds[first : first + 4]} == set(range(4))
    assert set(Counter(p for _, _, p in rounds[:12]).values()) == {1}
    assert [deck.next() for _ in range(8)] != [Deck(4, places, 12, seed=2).next() for _ in range(8)]


def test_answers_are_counted_once(game, instant):
    with pytest.raises(ValueError, match="no round"):
        game.answer(0)
    place = deal(game)
    for wrong in (2, -1, True, "1", None):
        with pytest.raises(ValueError, match="Allowed: 0 to 1"):
            game.answer(wrong)
    game.answer(place)
    with pytest.raises(ValueError, match="no round"):
        game.answer(place)
    game.answer(1 - deal(game))
    assert game.results["right"].tolist() == [True, False]
    assert game.frame["answers"].tolist() == [1, 1]
    assert game.frame["right"].sum() == 1
    assert [row[1] for row in game.score] in (["1 of 1", "0 of 1"], ["0 of 1", "1 of 1"])


def test_a_round_shows_one_quantized_image_and_not_the_answer(game):
    place = deal(game)
    assert set(game.round) == {"number", "prompt", "pngs"}
    assert len(game.round["pngs"]) == 2
    assert game.round["pngs"][place] != game.round["pngs"][1 - place]
    game.next()  # not answered: stays
    assert game.round["number"] == 1
    game.answer(place)
    assert game.round["place"] == place
    assert game.message.startswith("Right")
    assert game.message.endswith(f"{game.results['PSNR dB'][0]:.1f} dB from dense.")


def test_three_images_are_two_dense_ones_and_one_that_differs(pipeline, instant):
    game = BlindTest(pipeline, ["INT4"], pictures=3, steps=1, seed=0)
    place = deal(game)
    pngs = game.round["pngs"]
    others = [png for i, png in enumerate(pngs) if i != place]
    assert others[0] == others[1] != pngs[place]
    assert len(game.figure().axes) == 3
    assert game.frame["guessing"].tolist() == pytest.approx([100 / 3])
    game.close()


def test_always_right_is_different_from_guessing(game, instant):
    for _ in range(2 * (FEWEST + 1)):  # nine of nine each: eight come up by luck too often in one of two
        game.answer(deal(game))
    assert game.frame["verdict"].tolist() == ["distinguishable"] * 2
    assert game.frame["low"].min() > 50  # the interval says what the verdict says
    game.reset()
    assert game.frame["answers"].sum() == 0


def test_a_round_that_failed_is_dealt_again(game, instant, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(game.workbench, "generate", None)
        game.next()
        game.wait(60)
    assert "TypeError" in game.message
    pending = game._pending
    place = deal(game)
    assert place == pending[1]  # rounds stay balanced
    assert "pngs" in game.round


@pytest.mark.parametrize(
    "wrong", [{"pictures": 4}, {"variants": ["INT5"]}, {"variants": []}, {"prompts": []}, {"steps": 0}]
)
def test_refuses(pipeline, wrong):
    with pytest.raises(ValueError, match="Allowed|not known"):
        BlindTest(pipeline, **wrong)
