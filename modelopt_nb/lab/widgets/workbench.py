"""Generate and cache the images that widgets show; knows no browser."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from modelopt_nb import weight_bytes
from modelopt_nb.lab.calibration.model_calls import ModelCall
from modelopt_nb.lab.compare.results import machine
from modelopt_nb.lab.compare.runner import Runner
from modelopt_nb.lab.compare.variants import DENSE, Variant
from modelopt_nb.lab.pipelines.load import component_name, is_embedded
from modelopt_nb.lab.quality.classifier import classify
from modelopt_nb.lab.widgets.calibration_calls import CalibrationCalls
from modelopt_nb.lab.widgets.choices import Choice
from modelopt_nb.lab.widgets.request import Request, validate
from modelopt_nb.lab.widgets.script import script
from modelopt_nb.lab.widgets.tiles import CLASSIFIED, OF_DENSE, Tile


class Stopped(Exception):
    """Raised within a denoising step after :meth:`Workbench.stop`."""


class Workbench:
    """Generate a request's images one after another, dense first, and cache them.

    Args:
        pipeline: Any text-to-image or text-to-video pipeline. Its models are shared; its scheduler is copied.
        component: The component to quantize; the transformer or UNet by default.
        calibrate: Prompts to calibrate with if a choice needs it (:class:`CalibrationCalls`).
        cached: How many images are kept; the oldest are dropped first.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, component: str | None = None, calibrate: Sequence[str] | None = None,
        cached: int = 40,
    ) -> None:  # fmt: skip
        self.part = component_name(pipeline, component)
        self.pipeline: Any = copy.copy(pipeline)
        if hasattr(pipeline, "scheduler"):
            self.pipeline.scheduler = copy.deepcopy(pipeline.scheduler)
        self.model: nn.Module = getattr(pipeline, self.part)
        self.embedded = is_embedded(pipeline)
        self.calibration = CalibrationCalls(self.pipeline, self.part, calibrate)
        self.cached, self.stopping = cached, False
        self.pictures: dict[tuple[Any, ...], Tile] = {}

    @property
    def about(self) -> str:
        """The pipeline, the component and the machine."""
        return f"{type(self.pipeline).__name__}, {self.part}: {machine(self.model)}"

    def validate(self, asked: Mapping[str, Any]) -> tuple[Request | None, dict[str, str]]:
        """Return the request that a front end's fields make, or None and an error per field (:func:`validate`)."""
        return validate(asked, self.pipeline, self.model)

    def request(self, asked: Mapping[str, Any]) -> Request:
        """Return the request that a front end's fields make. Raises ValueError with all errors."""
        request, errors = self.validate(asked)
        if request is None:
            raise ValueError("; ".join(errors.values()))
        return request

    def cached_tiles(self, request: Request) -> list[Tile]:
        """Return the images of a request that are in the cache, dense first."""
        return [self.pictures[key] for key in map(request.key, (None, *request.choices)) if key in self.pictures]

    def stop(self) -> None:
        """End :meth:`generate` within one denoising step; it then raises :class:`Stopped`."""
        self.stopping = True

    def generate(
        self, request: Request, on_step: Callable[[], Any] = lambda: None,
        on_begin: Callable[[str], Any] = lambda name: None, on_image: Callable[[Tile], Any] = lambda tile: None,
    ) -> Iterator[Tile]:  # fmt: skip
        """Generate the images that are not cached, dense first; yield each one when it is measured.

        ``on_step`` is called after each denoising step, ``on_begin`` with each variant's name before its image is
        generated, ``on_image`` with each image before it is measured. Raises Stopped after :meth:`stop`.
        """

        calls: list[ModelCall] = []

        def check_stop() -> None:
            if self.stopping:
                raise Stopped

        def step() -> None:
            check_stop()
            on_step()

        def replay(model: nn.Module) -> None:
            for call in calls:
                check_stop()
                call(model)

        guidance = {} if request.guidance is None else {"guidance_scale": request.guidance}
        runner = Runner(
            self.pipeline, self.part, [request.prompt], [request.seed], request.steps, 1, guidance, step,
            shown=lambda images: on_image(Tile.of(name, images[0], {})),
        )  # fmt: skip
        with runner.caching():
            for choice in (None, *request.choices):
                if request.key(choice) in self.pictures:
                    continue
                name = choice.name if choice else DENSE
                on_begin(name)
                config, reference = None, None
                if choice:
                    calls[:] = self.calibration.get(request.prompt, step) if choice.calibrates else []
                    config = choice.config(replay)
                    reference = [self.pictures[request.key(None)].whole]
                variant = runner.run(name, config, reference)
                tile = Tile.of(name, variant.images[0], self._numbers(variant))
                others = [key for key in self.pictures if key not in map(request.key, (None, *request.choices))]
                for key in others[: max(len(self.pictures) + 1 - self.cached, 0)]:  # the oldest first
                    del self.pictures[key]
                self.pictures[request.key(choice)] = tile
                yield tile

    def _numbers(self, variant: Variant) -> dict[str, Any]:
        numbers = variant.numbers | {OF_DENSE: variant.weights.total / weight_bytes(self.model).total}
        if self.embedded:
            label = classify(variant.images).iloc[0]
            numbers[CLASSIFIED] = f"{label['subject']} on {label['background']}"
        return numbers

    def code(self, request: Request, choice: Choice | None) -> str:
        """Return Python that generates the request's image with ``choice`` (None: dense) without a widget."""
        return script(self.pipeline, self.part, request, choice, self.calibration.code(request.prompt))
