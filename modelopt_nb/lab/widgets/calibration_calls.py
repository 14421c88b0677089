"""The dense model's calls that chosen variants are calibrated with."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from modelopt_nb.lab.calibration.model_calls import ModelCall, record_calls
from modelopt_nb.lab.pipelines.generate import generate
from modelopt_nb.lab.pipelines.load import COMPONENTS, is_codec, is_embedded, step_hook
from modelopt_nb.lab.pipelines.prompts import load_prompts, prompts_and_seeds

EMBEDDED_PROMPTS = 4


class CalibrationCalls:
    """Record calls of the component ``part`` at first use and keep them; write as code how they are recorded.

    ``prompts`` are by default the split ``calibrate`` for the embedded pipeline, the request's prompt for others.
    """

    COUNT = 8  # calls that are kept
    STEPS = 20  # denoising steps that they are from

    def __init__(self, pipeline: DiffusionPipeline, part: str, prompts: Sequence[str] | None) -> None:
        self.pipeline, self.part = pipeline, part
        self.prompts: Sequence[str] | pd.DataFrame | None = prompts
        self.prompts_code = None if prompts is None else repr(prompts_and_seeds(prompts, None)[0])
        if prompts is None and is_embedded(pipeline):
            self.prompts = load_prompts("calibrate", EMBEDDED_PROMPTS)
            self.prompts_code = f"modelopt_nb.load_prompts('calibrate', {EMBEDDED_PROMPTS})"
        self._calls: dict[str, list[ModelCall]] = {}

    def get(self, prompt: str, step: Callable[[], Any]) -> list[ModelCall]:
        """Return the calls for a request's prompt; ``step`` is called after each denoising step of a recording.

        The pipeline must hold the dense model.
        """
        key, prompts = (prompt, [prompt]) if self.prompts is None else ("", self.prompts)
        if key not in self._calls:
            decode = is_codec(self.pipeline, self.part)
            with record_calls(self.pipeline, self.COUNT, component=self.part) as calls, step_hook(self.pipeline, step):
                generate(self.pipeline, prompts, steps=self.STEPS, decode=decode)
            self._calls = {key: calls}  # only the last prompt's calls
        return self._calls[key]

    def code(self, prompt: str) -> list[str]:
        """Return lines of Python that record the same calls and make ``forward_loop`` of them."""
        component = "" if self.part in COMPONENTS else f", component={self.part!r}"
        decode = "" if is_codec(self.pipeline, self.part) else ", decode=False"
        return [
            f"with modelopt_nb.record_calls(pipeline, {self.COUNT}{component}) as calls:",
            f"    modelopt_nb.generate(pipeline, {self.prompts_code or [prompt]}, steps={self.STEPS}{decode})",
            "forward_loop = modelopt_nb.replay_loop(calls)",
        ]
