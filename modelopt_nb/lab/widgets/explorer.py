"""Compare variants by hand in JupyterLab."""

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from matplotlib.figure import Figure
from traitlets import Dict, List, Unicode

from modelopt_nb import MIB, SCHEMES, layer_frame
from modelopt_nb.lab.compare.results import TIMINGS
from modelopt_nb.lab.compare.table import Table
from modelopt_nb.lab.compare.variants import DENSE
from modelopt_nb.lab.pipelines.prompts import load_prompts
from modelopt_nb.lab.plots.pictures import plot_pictures
from modelopt_nb.lab.widgets.background import BackgroundWidget, view_code
from modelopt_nb.lab.widgets.choices import Choice, alternatives
from modelopt_nb.lab.widgets.request import Request, default_guidance
from modelopt_nb.lab.widgets.tiles import CAPTION, Tile, as_text, runs_frame
from modelopt_nb.lab.widgets.workbench import Workbench

#: Columns of the history ahead of the numbers.
ASKED = ("run", "prompt", "seed", "steps", "guidance", "variant")


class Explorer(BackgroundWidget):
    """Compare variants of a pipeline's model by hand.

    Args:
        pipeline: From :func:`modelopt_nb.load_pipeline`, or any text-to-image or text-to-video pipeline.
        variants: Names of schemes, or :class:`modelopt_nb.Choice`. The dense model is always shown next to them.
        prompt: The prompt to generate from; for the embedded pipeline the first of the split ``show`` by default.
        seed: Seed of the starting noise.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance; the pipeline's default if None.
        component: The component to quantize; the transformer or UNet by default.
        calibrate: Prompts to calibrate with if a variant needs it.

    ``run()`` returns at once and ``wait()`` waits for it. ``errors`` says what is wrong, by field. ``frame`` has a row
    per generated image, ``figure()`` shows the current images, and ``code()`` is a script that generates one of them.

    Raises:
        ValueError, TypeError: Variants, a prompt or numbers that are not allowed.
    """

    _esm = view_code("explorer")
    request = Dict().tag(sync=True)  # prompt, seed, steps, guidance, variants (a list of dicts), selected (its index)
    errors = Dict().tag(sync=True)
    options = Dict().tag(sync=True)  # of the selected variant, by field: value, label, why it cannot work
    names = List().tag(sync=True)  # of the variants
    layers = List().tag(sync=True)  # name, kind, MiB
    pictures = List().tag(sync=True)
    columns = List().tag(sync=True)
    history = List().tag(sync=True)  # a row per image: its run, and for each column a text and a number to sort by
    code_shown = Unicode().tag(sync=True)

    ACTIONS = ("run", "stop", "restore", "add", "remove", "export", "show_code")
    IMAGES = {"pictures": []}

    def __init__(
        self, pipeline: DiffusionPipeline, variants: Iterable[str | Choice] = ("INT8", "NF4", "INT4"),
        prompt: str | None = None, seed: int = 0, steps: int = 20, guidance: float | None = None, *,
        component: str | None = None, calibrate: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        workbench = Workbench(pipeline, component, calibrate)
        self.runs: list[tuple[Request, list[Tile]]] = []
        self._shown: list[Tile] = []
        if prompt is None:
            prompt = load_prompts("show", 1)["prompt"][0] if workbench.embedded else "a fox in the snow"
        guidance = default_guidance(pipeline) if guidance is None else guidance
        asked = {"prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance, "selected": 0}
        asked["variants"] = [Choice.of(variant).as_dict() for variant in variants]
        workbench.request(asked)
        layers = [
            [name, row["kind"], row["dense bytes"] / MIB] for name, row in layer_frame(workbench.model).iterrows()
        ]
        super().__init__(workbench, layers=layers, columns=[*ASKED, *CAPTION], request=asked, message="Ready.")
        self.observe(lambda change: self._update(), "request")
        self._update()

    def __repr__(self) -> str:
        return f"Explorer({type(self.workbench.pipeline).__name__}, {len(self.runs)} runs, {self.status})"

    def _update(self) -> None:
        """Validate the request; list the alternatives of the selected variant."""
        self.errors = self.workbench.validate(self.request)[1]
        variants = self.request.get("variants")
        choices = []
        for variant in variants if isinstance(variants, list) else []:
            with contextlib.suppress(TypeError, ValueError):  # already in errors
                choices.append(Choice.of(variant))
        self.names = [choice.name for choice in choices]
        selected = self.request.get("selected", 0)
        if isinstance(selected, int) and 0 <= selected < len(choices) and f"{selected}.scheme" not in self.errors:
            self.options = alternatives(choices[selected])
        self.code_shown = ""

    def select(self, **changes: Any) -> None:
        """Change the request: ``prompt``, ``seed``, ``steps``, ``guidance``, ``variants``, ``selected``."""
        if unknown := changes.keys() - self.request.keys():
            raise TypeError(f"{', '.join(unknown)} is not known. Allowed: {', '.join(self.request)}")
        if "variants" in changes:
            changes["variants"] = [Choice.of(v).as_dict() for v in changes["variants"]]
        self.request = {**self.request, **changes}

    def add(self) -> None:
        """Add a variant, the first scheme that is not there yet, and select it."""
        scheme = next((s for s in SCHEMES if s not in self.names), "INT8")
        variants = [*self.request["variants"], Choice(scheme).as_dict()]
        self.request = {**self.request, "variants": variants, "selected": len(variants) - 1}

    def remove(self, index: int) -> None:
        """Remove a variant."""
        variants = [v for i, v in enumerate(self.request["variants"]) if i != index]
        selected = max(min(self.request["selected"], len(variants) - 1), 0)
        self.request = {**self.request, "variants": variants, "selected": selected}

    def run(self) -> None:
        """Generate the requested images in the background; cached ones are shown at once."""
        if self.status != "idle":
            return
        request, self.errors = self.workbench.validate(self.request)
        if request is None:
            self.message = "Cannot run: " + "; ".join(self.errors.values())
            return
        cached = self.workbench.cached_tiles(request)
        missing = 1 + len(request.choices) - len(cached)
        if not missing:
            self._finish(request, cached, "From the cache.")
            return
        self._show(cached)
        self._start(missing * request.steps + 1, lambda: self._generate(request))

    def _generate(self, request: Request) -> str:
        start = time.monotonic()

        def on_begin(name: str) -> None:
            self.message = f"Generating {name} …"

        def on_image(tile: Tile) -> None:
            self._show([*self.workbench.cached_tiles(request), tile])

        try:
            for _ in self.workbench.generate(request, self._step, on_begin, on_image):
                self._show(self.workbench.cached_tiles(request))
        finally:
            tiles = self.workbench.cached_tiles(request)
            self._show(tiles)
            if tiles:
                self._finish(request, tiles, self.message)
        return f"Generated in {time.monotonic() - start:.1f} s."

    def _show(self, tiles: Sequence[Tile]) -> None:
        self.pictures = [tile.as_view() for tile in tiles]

    def _finish(self, request: Request, tiles: list[Tile], message: str) -> None:
        """Show a run's images and add it to the history, unless it is there already."""
        self._show(tiles)
        self._shown = tiles
        if not any(request == before and len(tiles) == len(then) for before, then in self.runs):
            self.runs.append(
                (request, [replace(tile, png=b"", frames=None) for tile in tiles])
            )  # the workbench caches the images
            self.history = [*self.history, *self._rows(len(self.runs))]
        self.message = message

    def _rows(self, run: int) -> list[dict[str, Any]]:
        """Return the history's rows of one run; JSON has no infinity."""
        frame = runs_frame([self.runs[run - 1]]).assign(run=run)
        frame = frame.astype(object).where(frame.notna(), None)
        order = lambda value: 1e9 if isinstance(value, float) and math.isinf(value) else value  # noqa: E731
        return [
            {"run": run, "cells": [[as_text(c, row.get(c)), order(row.get(c))] for c in self.columns]}
            for _, row in frame.iterrows()
        ]

    def restore(self, run: int) -> None:
        """Show a run, counted from 1, and its request; images that are not cached are generated again."""
        if not isinstance(run, int) or not 1 <= run <= len(self.runs):
            raise ValueError(f"run={run!r} is not in the history. Allowed: 1 to {len(self.runs)}")
        if self.status != "idle":
            raise ValueError("A comparison is running. Allowed: stop it first")
        request, before = self.runs[run - 1]
        self.request = request.as_dict()
        cached = self.workbench.cached_tiles(request)
        if len(cached) == len(before):
            self._finish(request, cached, f"Run {run}, from the cache.")
        else:
            self.run()

    @property
    def frame(self) -> pd.DataFrame:
        """A row per run and image: the request, and the numbers as in :attr:`modelopt_nb.Comparison.frame`."""
        return runs_frame(self.runs)

    def table(self) -> Table:
        """Return :attr:`frame` for reading: rounded, with the machine in the caption, without the times.

        Raises ValueError before the first run; if that failed, with its message.
        """
        if not self.runs:
            raise ValueError(
                f"There is no run to show. Allowed: after run() and wait(). The last message: {self.message}"
            )
        frame = self.frame.set_index("run")
        shown = [name for name in self.columns if name in frame.columns and name not in TIMINGS]
        return Table(frame[shown], self.about)

    def figure(self) -> Figure | None:
        """Return the last comparison's images side by side, with MiB and PSNR; None before the first run."""
        pictures = {}
        for tile in self._shown:
            distance = "" if tile.name == DENSE else f", {tile.text('PSNR dB')} dB"
            pictures[f"{tile.name}\n{tile.text('weights MiB')} MiB{distance}"] = tile.picture
        return plot_pictures(pictures) if pictures else None

    def code(self, index: int | None = None) -> str:
        """Return Python that generates the image of the selected variant, or of the one at ``index``."""
        request = self.workbench.request(self.request)
        return self.workbench.code(request, request.choices[self.request["selected"] if index is None else index])

    def show_code(self) -> None:
        """Show :meth:`code` in the widget."""
        self.code_shown = self.code()

    def export(self, kind: str) -> None:
        """Save the history as ``"csv"``, or the images as ``"png"``, through the browser."""
        if not self.runs:
            raise ValueError("Nothing to export yet. Allowed: after the first run")
        if kind == "csv":
            name, mime, data = "runs.csv", "text/csv", self.frame.to_csv(index=False).encode()
        elif kind == "png":
            name, mime, data = "pictures.png", "image/png", self.png()
        else:
            raise ValueError(f"kind={kind!r} is not known. Allowed: csv, png")
        self.send({"save": name, "type": mime}, [data])
