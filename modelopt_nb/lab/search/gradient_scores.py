"""Estimate which layers are sensitive from gradients, with ModelOpt's ``auto_quantize``."""

import contextlib
import io
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from modelopt_nb import ModelOptConfig, auto_quantize_scores, plan
from modelopt_nb.lab.calibration.model_calls import ModelCall, check_calls
from modelopt_nb.lab.search.sensitivity import call_weights

SIGNS = 4  # sets of random signs per call; a score is their mean


def gradient_scores(
    model: nn.Module, config: ModelOptConfig, calls: Sequence[ModelCall], groups: Mapping[str, Sequence[str]],
    progress: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Estimate ``error alone`` of :func:`modelopt_nb.sensitivity` for each group of layer names.

    ModelOpt scores a layer by the squared change of its output times the squared gradient of a loss. The loss here is
    the model's output times random signs, over the output's norm: then the score estimates the squared change of the
    model's output over the squared output.

    Raises:
        ValueError: No calls; a quant type that ModelOpt cannot round without packing.

    Source: ``modelopt.torch.quantization.auto_quantize``, method "gradient".
    """
    check_calls(calls)
    check_gradients(config)
    owner = {name: group for group, names in groups.items() for name in names}
    generator = torch.Generator(next(model.parameters()).device)
    weighted = zip(calls, call_weights(calls), strict=True)
    batches = [(call, weight, seed) for call, weight in weighted for seed in range(SIGNS)]

    def loss(output: torch.Tensor, batch: tuple[ModelCall, float, int]) -> torch.Tensor:
        _, weight, seed = batch
        generator.manual_seed(seed)
        signs = torch.randint(0, 2, output.shape, generator=generator, device=output.device) * 2 - 1
        return (output * signs).sum() / output.detach().norm() * weight**0.5

    planned = plan(model, config).layers
    scored = {x.name: x.as_linear for x in planned if x.packed and x.name in owner}
    disabled = [x.name for x in planned if x.name not in scored]
    entries = config.modelopt_config["quant_cfg"][:3]  # the type's own: all off, weights, inputs
    with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
        forward = lambda m, batch: batch[0].output(m)  # noqa: E731
        layers = auto_quantize_scores(model, entries, scored, disabled, batches, loss, forward)
    scores = dict.fromkeys(groups, 0.0)
    for name, score in layers.items():
        scores[owner[name]] += score / SIGNS
    return scores


def check_gradients(config: ModelOptConfig) -> None:
    """Raise ValueError for a quant type that ModelOpt cannot round without packing, as ``auto_quantize`` has to."""
    if config.quant_type.split("_")[0] in ("NF4", "NVFP4"):
        why = "ModelOpt rounds NF4 as INT4 until it is packed, and NVFP4 on CUDA alone"
        allowed = "FP8, INT8 and INT4; or method='output'"
        raise ValueError(f"method='auto_quantize' cannot try {config.quant_type}: {why}. Allowed with it: {allowed}")
