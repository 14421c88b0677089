"""A blind test: which image is quantized?"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from traitlets import Dict, List

from modelopt_nb.lab.pipelines.prompts import load_prompts, prompts_and_seeds
from modelopt_nb.lab.plots.pictures import plot_pictures
from modelopt_nb.lab.quality.statistics import percent, verdict
from modelopt_nb.lab.widgets.background import BackgroundWidget
from modelopt_nb.lab.widgets.workbench import Choice, Request, Tile, Workbench

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import DiffusionPipeline
    from matplotlib.figure import Figure


class Deck:
    """Rounds in random order, balanced: every variant comes up equally often, each time at another place and prompt.

    Of any ``variants x places`` rounds from the first on, each variant is at each place once.
    """

    def __init__(self, variants: int, places: int, prompts: int, seed: int | None = None) -> None:
        self.variants, self.places, self.prompts = variants, places, prompts
        self.random, self.rounds, self.order = random.Random(seed), [], []

    def next(self) -> tuple[int, int, int]:
        """Variant, place of the quantized picture, and prompt of the next round, as indices."""
        if not self.rounds:
            places = [self.random.sample(range(self.places), self.places) for _ in range(self.variants)]
            for turn in range(self.places):  # each variant once a turn, so that it is balanced after each turn too
                turns = [(v, places[v][turn]) for v in range(self.variants)]
                self.rounds += self.random.sample(turns, len(turns))
            self.rounds.reverse()
        if not self.order:
            self.order = self.random.sample(range(self.prompts), self.prompts)
        return *self.rounds.pop(), self.order.pop()


class BlindTest(BackgroundWidget):
    """A blind test to be played by mouse or keyboard: which of the pictures did a quantized model draw?

    Args:
        pipeline: From :func:`modelopt_nb.load_pipeline`, or any text-to-image pipeline.
        variants: Names of schemes, or :class:`modelopt_nb.workbench.Choice`.
        prompts: What is drawn, one a round, as for :func:`modelopt_nb.compare`; of the embedded pipeline those to show.
        pictures: 2, dense and quantized; or 3, where the dense one is there twice: which one differs?
        steps: Denoising steps.
        seed: Of the rounds' order; another each time where None.
        component: The part to quantize; the transformer or UNet by default.
        calibrate: Prompts to calibrate with where a variant needs it.

    ``results`` has a row a round and ``frame`` one a variant, with its 95 % interval and the verdict.

    Raises:
        ValueError, TypeError: For variants or prompts that cannot be, and for another number of pictures.
    """

    round = Dict().tag(sync=True)  # prompt, pngs, number; after the answer: answer, place, variant
    score = List().tag(sync=True)  # a row a variant, as text

    ACTIONS = ("answer", "next", "stop")
    HEAVY = {"round": {}}

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        variants: Iterable[str | Choice] = ("INT8", "NF4", "INT4"),
        prompts: Sequence[str] | pd.DataFrame | None = None,
        pictures: int = 2,
        *,
        steps: int = 20,
        seed: int | None = None,
        component: str | None = None,
        calibrate: Sequence[str] | None = None,
    ) -> None:
        if pictures not in (2, 3):
            raise ValueError(f"pictures={pictures!r} is not allowed. Allowed: 2 or 3")
        workbench = Workbench(pipeline, component, calibrate)
        if prompts is None and not workbench.embedded:
            raise ValueError("prompts=None is not allowed for a pipeline of your own. Allowed: a list of prompts")
        self._prompts = list(zip(*prompts_and_seeds(load_prompts("show") if prompts is None else prompts, None), strict=True))  # fmt: skip
        self._requests = []
        for variant in variants:
            asked = {"steps": steps, "guidance": workbench.own_guidance, "variants": [variant]}
            for prompt, number in self._prompts:
                request, errors = workbench.checked(asked | {"prompt": prompt, "seed": number})
                if errors:
                    raise ValueError("; ".join(errors.values()))
                self._requests.append(request)
        if not self._requests:
            raise ValueError("variants=[] is empty. Allowed: names of schemes")
        self.choices = list(dict.fromkeys(r.choices[0] for r in self._requests))
        self.pictures, self._seed = pictures, seed
        super().__init__(workbench, kind="blind", message="Press Start.")
        self.reset()

    def __repr__(self) -> str:
        return (
            f"BlindTest({type(self.workbench.pipeline).__name__}, {len(self._results)} answers, {self.status})"
        )

    def reset(self) -> None:
        """Forget all answers, and shuffle anew."""
        self._results: list[dict[str, Any]] = []
        self.deck = Deck(len(self.choices), self.pictures, len(self._prompts), self._seed)
        self._coming: tuple[int, int, int] | None = None  # drawn from the deck, not dealt yet
        #: The round: what was asked, where the quantized picture is, and the pictures.
        self.dealt: tuple[Request, int, list[Tile]] | None = None
        self.round = {}
        self._score()

    def next(self) -> None:
        """Draw the pictures of the next round, beside the kernel, and show them. A round that is not answered yet stays."""
        if self.status != "idle" or (self.dealt and "answer" not in self.round):
            return
        self._coming = self._coming or self.deck.next()  # a round that was stopped comes again
        variant, place, prompt = self._coming
        request = self._requests[variant * len(self._prompts) + prompt]
        missing = 2 - len(self.workbench.remembered(request))
        self.message = "Drawing the next round …"
        self.dealt = None
        self._begin(missing * request.steps + 1, lambda: self._deal(request, place))

    def _deal(self, request: Request, place: int) -> str:
        for _ in self.workbench.generate(request, self._tick):
            pass
        dense, quantized = self.workbench.remembered(request)
        shown = [quantized if i == place else dense for i in range(self.pictures)]
        self.dealt, self._coming = (request, place, shown), None
        self.round = {"number": len(self._results) + 1, "prompt": request.prompt, "pngs": [d.png for d in shown]}
        return "Which one is quantized?" if self.pictures == 2 else "Which one differs?"

    def answer(self, place: int) -> None:
        """Say which picture it is, the first is 0. Counts once a round."""
        if not self.dealt or "answer" in self.round:
            raise ValueError("There is no round to answer. Allowed: after next()")
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < self.pictures:
            raise ValueError(f"place={place!r} is not allowed. Allowed: 0 to {self.pictures - 1}")
        request, truth, shown = self.dealt
        right, drawn = place == truth, shown[truth]
        self._results.append(
            {"round": len(self._results) + 1, "prompt": request.prompt, "seed": request.seed, "variant": drawn.name,
             "place": truth, "answer": place, "right": right, "PSNR dB": drawn.numbers["PSNR dB"]}
        )  # fmt: skip
        self.round = {**self.round, "answer": place, "place": truth, "variant": drawn.name}
        self.message = f"{'Right' if right else 'Wrong'}: picture {truth + 1} is {drawn.name}, {drawn.numbers['PSNR dB']:.1f} dB from dense."  # fmt: skip
        self._score()

    def figure(self) -> Figure | None:
        """The round's pictures under their numbers."""
        return plot_pictures({str(i): d.picture for i, d in enumerate(self.dealt[2], 1)}) if self.dealt else None

    @property
    def results(self) -> pd.DataFrame:
        """A row a round: prompt, seed, variant, where it was, the answer, whether that was right."""
        import pandas as pd

        columns = ["round", "prompt", "seed", "variant", "place", "answer", "right", "PSNR dB"]
        return pd.DataFrame(self._results, columns=columns)

    @property
    def frame(self) -> pd.DataFrame:
        """A row a variant: answers, right ones, their percent with the ends of the 95 % interval, percent by guessing, verdict."""
        import pandas as pd

        rows = {}
        for choice in self.choices:
            right = [r["right"] for r in self._results if r["variant"] == choice.name]
            share, low, high = percent(right) if right else (float("nan"), 0.0, 100.0)
            rows[choice.name] = {
                "answers": len(right), "right": sum(right), "percent": share, "low": low, "high": high,
                "guessing": 100 / self.pictures, "verdict": verdict(sum(right), len(right), self.pictures, len(self.choices)),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")

    def _score(self) -> None:
        self.score = [
            [name, f"{row['right']} of {row['answers']}", f"{row['low']:.0f} to {row['high']:.0f} %", row["verdict"]]
            for name, row in self.frame.iterrows()
        ]
