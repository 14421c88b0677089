"""A blind test: which image is quantized?"""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from matplotlib.figure import Figure
from traitlets import Dict, List

from modelopt_nb.lab.pipelines.prompts import load_prompts, prompts_and_seeds
from modelopt_nb.lab.plots.pictures import plot_pictures
from modelopt_nb.lab.quality.statistics import sequence_interval, verdict
from modelopt_nb.lab.widgets.background import BackgroundWidget, view_code
from modelopt_nb.lab.widgets.choices import Choice
from modelopt_nb.lab.widgets.request import Request, default_guidance
from modelopt_nb.lab.widgets.tiles import Tile
from modelopt_nb.lab.widgets.workbench import Workbench


class Deck:
    """Deal balanced rounds in random order.

    Each ``variants x places`` consecutive rounds, counted from the first, hold each variant at each place once. Prompts
    are dealt without repetition until all have been used.
    """

    def __init__(self, variants: int, places: int, prompts: int, seed: int | None = None) -> None:
        self.variants, self.places, self.prompts = variants, places, prompts
        self._random = random.Random(seed)
        self._rounds: list[tuple[int, int]] = []
        self._order: list[int] = []

    def next(self) -> tuple[int, int, int]:
        """Return variant, place of the quantized image, and prompt of the next round, as indices."""
        if not self._rounds:
            places = [self._random.sample(range(self.places), self.places) for _ in range(self.variants)]
            for turn in range(self.places):  # each variant once per turn: balanced after each turn too
                turns = [(v, places[v][turn]) for v in range(self.variants)]
                self._rounds += self._random.sample(turns, len(turns))
            self._rounds.reverse()
        if not self._order:
            self._order = self._random.sample(range(self.prompts), self.prompts)
        return *self._rounds.pop(), self._order.pop()


class BlindTest(BackgroundWidget):
    """A blind test by mouse or keyboard: which of the images did a quantized model generate?

    Args:
        pipeline: From :func:`modelopt_nb.load_pipeline`, or any text-to-image pipeline.
        variants: Names of schemes, or :class:`modelopt_nb.Choice`.
        prompts: One prompt per round, as for :func:`modelopt_nb.generate`; for the embedded pipeline the split ``show``
            by default.
        pictures: 2, dense and quantized; or 3, of which two are the same dense image: which one differs?
        steps: Denoising steps.
        seed: Seed of the rounds' order; None is random.
        component: The component to quantize; the transformer or UNet by default.
        calibrate: Prompts to calibrate with if a variant needs it.

    ``results`` has a row per round and ``frame`` one per variant, with its interval and the verdict.

    Raises:
        ValueError, TypeError: Variants, prompts or a number of pictures that are not allowed.
    """

    _esm = view_code("blind_test")
    round = Dict().tag(sync=True)  # prompt, pngs, number; after the answer also answer, place, variant
    score = List().tag(sync=True)  # a row per variant, as text

    ACTIONS = ("answer", "next", "stop")
    IMAGES = {"round": {}}

    def __init__(
        self, pipeline: DiffusionPipeline, variants: Iterable[str | Choice] = ("INT8", "NF4", "INT4"),
        prompts: Sequence[str] | pd.DataFrame | None = None, pictures: int = 2, *, steps: int = 20,
        seed: int | None = None, component: str | None = None, calibrate: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        if pictures not in (2, 3):
            raise ValueError(f"pictures={pictures!r} is not allowed. Allowed: 2 or 3")
        workbench = Workbench(pipeline, component, calibrate)
        if prompts is None and not workbench.embedded:
            raise ValueError("prompts=None is not allowed for a pipeline of your own. Allowed: a list of prompts")
        texts, seeds = prompts_and_seeds(load_prompts("show") if prompts is None else prompts, None)
        shared = {"steps": steps, "guidance": default_guidance(pipeline)}
        asked = [{**shared, "prompt": text, "seed": number} for text, number in zip(texts, seeds, strict=True)]
        chosen = dict.fromkeys(map(Choice.of, variants))
        # a list per variant, a request per prompt
        self._requests = [[workbench.request({**one, "variants": [choice]}) for one in asked] for choice in chosen]
        if not self._requests:
            raise ValueError("variants=[] is empty. Allowed: names of schemes")
        self.choices = [requests[0].choices[0] for requests in self._requests]
        self.pictures, self._seed = pictures, seed
        super().__init__(workbench, message="Press Start.")
        self.reset()

    def __repr__(self) -> str:
        return f"BlindTest({type(self.workbench.pipeline).__name__}, {len(self._results)} answers, {self.status})"

    def reset(self) -> None:
        """Forget all answers and shuffle again."""
        self._results: list[dict[str, Any]] = []
        self.deck = Deck(len(self.choices), self.pictures, len(self._requests[0]), self._seed)
        self._pending: tuple[int, int, int] | None = None  # from the deck, but not shown yet
        #: The round that is shown: its request, the place of the quantized image, and the images.
        self.dealt: tuple[Request, int, list[Tile]] | None = None
        self.round = {}
        self._update_score()

    def next(self) -> None:
        """Generate the images of the next round in the background and show them; does nothing before the answer."""
        if self.status != "idle" or (self.dealt and "answer" not in self.round):
            return
        self._pending = self._pending or self.deck.next()  # a round that was stopped is dealt again
        variant, place, prompt = self._pending
        request = self._requests[variant][prompt]
        missing = 2 - len(self.workbench.cached_tiles(request))
        self.message = "Generating the next round …"
        self.dealt = None
        self._start(missing * request.steps + 1, lambda: self._deal(request, place))

    def _deal(self, request: Request, place: int) -> str:
        for _ in self.workbench.generate(request, self._step):
            pass
        dense, quantized = self.workbench.cached_tiles(request)
        shown = [quantized if i == place else dense for i in range(self.pictures)]
        self.dealt, self._pending = (request, place, shown), None
        self.round = {"number": len(self._results) + 1, "prompt": request.prompt, "pngs": [t.png for t in shown]}
        return "Which one is quantized?" if self.pictures == 2 else "Which one differs?"

    def answer(self, place: int) -> None:
        """Answer the round with the place of an image, the first is 0; counts once per round."""
        if not self.dealt or "answer" in self.round:
            raise ValueError("There is no round to answer. Allowed: after next()")
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < self.pictures:
            raise ValueError(f"place={place!r} is not allowed. Allowed: 0 to {self.pictures - 1}")
        request, truth, shown = self.dealt
        right, tile = place == truth, shown[truth]
        self._results.append(
            {"round": len(self._results) + 1, "prompt": request.prompt, "seed": request.seed, "variant": tile.name,
             "place": truth, "answer": place, "right": right, "PSNR dB": tile.numbers["PSNR dB"]}
        )  # fmt: skip
        self.round = {**self.round, "answer": place, "place": truth, "variant": tile.name}
        word = "Right" if right else "Wrong"
        self.message = f"{word}: image {truth + 1} is {tile.name}, {tile.text('PSNR dB')} dB from dense."
        self._update_score()

    def figure(self) -> Figure | None:
        """Return the round's images under their numbers; None before the first round."""
        return plot_pictures({str(i): t.picture for i, t in enumerate(self.dealt[2], 1)}) if self.dealt else None

    @property
    def results(self) -> pd.DataFrame:
        """A row per answer: prompt, seed, variant, its place, the answer, whether it was right."""
        columns = ["round", "prompt", "seed", "variant", "place", "answer", "right", "PSNR dB"]
        return pd.DataFrame(self._results, columns=columns)

    @property
    def frame(self) -> pd.DataFrame:
        """A row per variant: answers, right ones, percent with its interval, percent by guessing, verdict.

        The intervals hold together, with 95 % confidence, after each answer (:func:`sequence_interval`).
        """
        rows, images, variants = {}, self.pictures, len(self.choices)
        for choice in self.choices:
            right = [r["right"] for r in self._results if r["variant"] == choice.name]
            share = 100 * sum(right) / len(right) if right else float("nan")
            low, high = sequence_interval(sum(right), len(right), variants)
            rows[choice.name] = {
                "answers": len(right), "right": sum(right), "percent": share, "low": low, "high": high,
                "guessing": 100 / images, "verdict": verdict(sum(right), len(right), images, variants),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")

    def _update_score(self) -> None:
        self.score = [
            [name, f"{row['right']} of {row['answers']}", f"{row['low']:.0f} to {row['high']:.0f} %", row["verdict"]]
            for name, row in self.frame.iterrows()
        ]
