"""Compare variants by hand in JupyterLab."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from traitlets import Dict, List, Unicode

from modelopt_nb import MIB, SCHEMES, layer_frame
from modelopt_nb.lab.compare.results import Comparison, Table
from modelopt_nb.lab.compare.variants import DENSE
from modelopt_nb.lab.pipelines.prompts import load_prompts
from modelopt_nb.lab.plots.pictures import plot_pictures
from modelopt_nb.lab.widgets.background import BackgroundWidget
from modelopt_nb.lab.widgets.workbench import Choice, Request, Tile, Workbench, options_of, runs_frame

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import DiffusionPipeline
    from matplotlib.figure import Figure

#: The numbers under a picture, and the columns of the history beside what was asked.
SHOWN = ("precision", "weights MiB", "bits per weight", "of dense", "peak MiB", "s per step", "PSNR dB", "SSIM", "the reader sees")  # fmt: skip


ASKED = ("run", "prompt", "seed", "steps", "guidance", "variant")


def as_text(name: str, value: Any) -> str:
    """A number as the tables write it; ``of dense`` in percent."""
    if isinstance(value, str) or value is None:
        return value or ""
    if name == "of dense":
        return f"{100 * value:.0f} %"
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return ""
    return "same" if math.isinf(value) else f"{value:.{Table.DIGITS.get(name, 2)}f}"


def as_tile(drawn: Tile) -> dict[str, Any]:
    """What the view shows of a picture: its PNG, and the numbers as text."""
    captions = [[name, as_text(name, drawn.numbers[name])] for name in SHOWN if name in drawn.numbers]
    captions = [[name, text] for name, text in captions if text]
    return {"name": drawn.name, "png": drawn.png, "captions": captions, "share": drawn.numbers.get("of dense")}


class Explorer(BackgroundWidget):
    """Compare variants of a pipeline's model by hand.

    Args:
        pipeline: From :func:`modelopt_nb.load_pipeline`, or any text-to-image or text-to-video pipeline.
        variants: Names of schemes, or :class:`modelopt_nb.workbench.Choice`; dense is always beside them.
        prompt: What to draw; of the embedded pipeline the first of the prompts to show.
        seed: Of the starting noise.
        steps: Denoising steps.
        guidance: Classifier-free guidance; the pipeline's own default where None.
        component: The part to quantize; the transformer or UNet by default.
        calibrate: Prompts to calibrate with where a variant needs it.

    ``run()`` returns at once and ``wait()`` waits; ``errors`` says what is wrong, by field. ``frame`` has a row for each picture
    that was drawn, ``figure()`` is what is shown, ``code()`` draws the selected variant without the explorer.

    Raises:
        ValueError, TypeError: For variants, a prompt or numbers that cannot be.
    """

    request = Dict().tag(sync=True)  # prompt, seed, steps, guidance, variants (a list of dicts), selected (its index)
    errors = Dict().tag(sync=True)
    options = Dict().tag(sync=True)  # of the selected variant, by field: value, label, why not
    names = List().tag(sync=True)  # of the variants
    layers = List().tag(sync=True)  # name, kind, MiB
    pictures = List().tag(sync=True)
    columns = List().tag(sync=True)
    history = List().tag(sync=True)  # a row a picture: run, and for each column a text and a number to sort by
    code_shown = Unicode().tag(sync=True)

    ACTIONS = ("run", "stop", "restore", "add", "remove", "export", "show_code")
    HEAVY = {"pictures": []}

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        variants: Iterable[str | Choice] = ("INT8", "NF4", "INT4"),
        prompt: str | None = None,
        seed: int = 0,
        steps: int = 20,
        guidance: float | None = None,
        *,
        component: str | None = None,
        calibrate: Sequence[str] | None = None,
    ) -> None:
        workbench = Workbench(pipeline, component, calibrate)
        self.runs: list[tuple[Request, list[Tile]]] = []
        self._shown: list[Tile] = []
        if prompt is None:
            prompt = load_prompts("show", 1)["prompt"][0] if workbench.embedded else "a fox in the snow"
        guidance = workbench.own_guidance if guidance is None else guidance
        asked = {"prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance, "selected": 0}
        asked["variants"] = [Choice.of(variant).as_dict() for variant in variants]
        if errors := workbench.checked(asked)[1]:
            raise ValueError("; ".join(errors.values()))
        frame = layer_frame(workbench.model)
        super().__init__(
            workbench,
            kind="explorer",
            layers=[[name, row["kind"], row["dense bytes"] / MIB] for name, row in frame.iterrows()],
            columns=[*ASKED, *SHOWN],
            request=asked,
            message="Ready.",
        )
        self.observe(lambda change: self._asked(), "request")
        self._asked()

    def __repr__(self) -> str:
        return f"Explorer({type(self.workbench.pipeline).__name__}, {len(self.runs)} runs, {self.status})"

    def _asked(self) -> None:
        """Whatever is asked is judged at once: what is wrong beside its field, and what the selected variant could be."""
        self.errors = self.workbench.checked(self.request)[1]
        variants = self.request.get("variants")
        choices = []
        for variant in variants if isinstance(variants, list) else []:
            with contextlib.suppress(TypeError, ValueError):  # told in errors
                choices.append(Choice.of(variant))
        self.names = [choice.name for choice in choices]
        selected = self.request.get("selected", 0)
        if isinstance(selected, int) and 0 <= selected < len(choices) and f"{selected}.scheme" not in self.errors:
            self.options = options_of(choices[selected])
        self.code_shown = ""

    def select(self, **changes: Any) -> None:
        """Ask for something else: ``prompt``, ``seed``, ``steps``, ``guidance``, ``variants``, ``selected``."""
        if not changes.keys() <= self.request.keys():
            raise TypeError(f"{', '.join(changes.keys() - self.request.keys())} is not known. Allowed: {', '.join(self.request)}")  # fmt: skip
        if "variants" in changes:
            changes["variants"] = [Choice.of(v).as_dict() for v in changes["variants"]]
        self.request = {**self.request, **changes}

    def add(self) -> None:
        """One variant more, the first scheme that is not there yet, and select it."""

        free = next((s for s in SCHEMES if s not in self.names), "INT8")
        variants = [*self.request["variants"], Choice(free).as_dict()]
        self.request = {**self.request, "variants": variants, "selected": len(variants) - 1}

    def remove(self, index: int) -> None:
        """One variant less."""
        variants = [v for i, v in enumerate(self.request["variants"]) if i != index]
        selected = max(min(self.request["selected"], len(variants) - 1), 0)
        self.request = {**self.request, "variants": variants, "selected": selected}

    def run(self) -> None:
        """Draw what is asked, beside the kernel; what was drawn before comes from memory at once."""
        if self.status != "idle":
            return
        request, self.errors = self.workbench.checked(self.request)
        if request is None:
            self.message = "Not drawn: " + "; ".join(self.errors.values())
            return
        there = self.workbench.remembered(request)
        missing = 1 + len(request.choices) - len(there)
        if not missing:
            self._finished(request, there, "From memory.")
            return
        self._show(request)
        self._begin(missing * request.steps + 1, lambda: self._draw(request))

    def _draw(self, request: Request) -> str:
        start = time.monotonic()

        def begun(name: str) -> None:
            self.message = f"Drawing {name} …"

        def first_sight(drawn: Tile) -> None:
            self.pictures = [*map(as_tile, self.workbench.remembered(request)), as_tile(drawn)]

        try:
            for _ in self.workbench.generate(request, self._tick, begun, first_sight):
                self._show(request)
        finally:
            self._show(request)
            if there := self.workbench.remembered(request):
                self._finished(request, there, self.message)
        return f"Drawn in {time.monotonic() - start:.1f} s."

    def _show(self, request: Request) -> None:
        self.pictures = [as_tile(drawn) for drawn in self.workbench.remembered(request)]

    def _finished(self, request: Request, drawn: list[Tile], message: str) -> None:
        self._show(request)
        self._shown = drawn
        if not any(request == before and len(drawn) == len(then) for before, then in self.runs):
            self.runs.append((request, [replace(d, png=b"") for d in drawn]))  # the workbench remembers the pictures
            self.history = [*self.history, *self._rows(len(self.runs))]
        self.message = message

    def _rows(self, run: int) -> list[dict[str, Any]]:
        frame = runs_frame([self.runs[run - 1]]).assign(run=run)
        frame = frame.astype(object).where(frame.notna(), None)
        rows = []
        for _, row in frame.iterrows():
            cells = [[as_text(c, row.get(c)), self._order(row.get(c))] for c in self.columns]
            rows.append({"run": run, "cells": cells})
        return rows

    @staticmethod
    def _order(value: Any) -> Any:
        """What a cell is sorted by; JSON has no infinity."""
        return 1e9 if isinstance(value, float) and math.isinf(value) else value

    def restore(self, run: int) -> None:
        """Ask for what was asked in a run, the first is 1, and show it; drawn anew where its pictures are remembered no more."""
        if not isinstance(run, int) or not 1 <= run <= len(self.runs):
            raise ValueError(f"run={run!r} is not in the history. Allowed: 1 to {len(self.runs)}")
        if self.status != "idle":
            raise ValueError("A comparison is being drawn. Allowed: stop it first")
        asked = self.runs[run - 1][0]
        self.request = {
            "prompt": asked.prompt,
            "seed": asked.seed,
            "steps": asked.steps,
            "guidance": asked.guidance,
            "variants": [choice.as_dict() for choice in asked.choices],
            "selected": 0,
        }
        there = self.workbench.remembered(asked)
        if len(there) == len(self.runs[run - 1][1]):
            self._finished(asked, there, f"Run {run}, from memory.")
        else:
            self.run()

    @property
    def frame(self) -> pd.DataFrame:
        """A row a run and picture: what was asked, and the numbers as :attr:`modelopt_nb.Comparison.frame` has them."""
        return runs_frame(self.runs)

    def table(self) -> Table:
        """:attr:`frame` for reading: rounded, with the machine under it, without the times."""
        frame = self.frame.set_index("run")
        shown = [name for name in self.columns if name in frame.columns and name not in Comparison.COSTS]
        return Table(frame[shown], self.about)

    def figure(self) -> Figure | None:
        """The last comparison: its pictures side by side, with bytes and PSNR."""
        drawn = self._shown
        if not drawn:
            return None
        size, db = (lambda d: as_text("weights MiB", d.numbers["weights MiB"])), (lambda d: as_text("PSNR dB", d.numbers["PSNR dB"]))  # fmt: skip
        titles = {d.name: f"{d.name}\n{size(d)} MiB" + ("" if d.name == DENSE else f", {db(d)} dB") for d in drawn}
        return plot_pictures({titles[d.name]: d.picture for d in drawn})

    def code(self, index: int | None = None) -> str:
        """Python that draws the selected variant, or the one at ``index``, in a script of its own."""
        request, errors = self.workbench.checked(self.request)
        if request is None:
            raise ValueError("; ".join(errors.values()))
        return self.workbench.code(request, request.choices[self.request["selected"] if index is None else index])

    def show_code(self) -> None:
        """Show :meth:`code` in the widget."""
        self.code_shown = self.code()

    def export(self, kind: str) -> None:
        """Let the browser save the history as ``"csv"``, or what is shown as ``"png"``."""
        if not self.runs:
            raise ValueError("Nothing to export yet. Allowed: after the first run")
        if kind == "csv":
            name, mime, data = "runs.csv", "text/csv", self.frame.to_csv(index=False).encode()
        elif kind == "png":
            name, mime, data = "pictures.png", "image/png", self.png()
        else:
            raise ValueError(f"kind={kind!r} is not known. Allowed: csv, png")
        self.send({"save": name, "type": mime}, [data])
