"""Quantize and pack a loaded model, all or nothing."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.config.weight_layout import WeightLayout
from modelopt_nb.packing.calibrate import ForwardLoop, calibrate, needs_only_amax
from modelopt_nb.packing.input_amax import run_forward_loop
from modelopt_nb.packing.plan import Plan, plan
from modelopt_nb.packing.report import Report
from modelopt_nb.upstream.auto_quantize import gradient_scores
from modelopt_nb.upstream.insert import insert_quantizers
from modelopt_nb.upstream.layers import make_linear
from modelopt_nb.upstream.pack import finish_packing
from modelopt_nb.upstream.packed_weights import round_by
from modelopt_nb.upstream.rollback import rollback_on_error


def pack(model: nn.Module, config: ModelOptConfig, planned: Plan, loop: ForwardLoop | None) -> Report:
    """Carry out a plan on a dense model, in place. An error restores the model."""
    with rollback_on_error(model):
        for name in planned.pointwise:
            make_linear(model, name)
        amax = None
        if loop is not None and needs_only_amax(config, planned):
            amax = run_forward_loop(loop, model, planned.layouts)
        insert_quantizers(model, planned.entries, config.algorithm)
        calibrate(model, config, planned, loop, amax)
        finish_packing(model)
        return Report.measure(model, config, planned)


def round_weight(weight: torch.Tensor, layout: WeightLayout) -> torch.Tensor:
    """Return ``weight`` as packing rounds it: same shape and dtype. 2-D for a linear layer, more for a convolution."""
    return round_by(weight, layout.cfg)


def auto_quantize_scores(
    model: nn.Module,
    config: ModelOptConfig,
    batches: Sequence[Any],
    loss: Callable[[torch.Tensor, Any], torch.Tensor],
    forward: Callable[[nn.Module, Any], torch.Tensor],
    layers: Collection[str],
) -> dict[str, float]:
    """Score layers with ModelOpt's ``auto_quantize``, on a copy of a dense model.

    Args:
        model: A dense model, not changed.
        config: The type to score. NF4 and, without CUDA, NVFP4 cannot be scored: ModelOpt rounds them only by packing.
        batches: Passed to ``forward`` and ``loss`` one by one.
        loss: Called with the output and the batch.
        forward: Called with the model and a batch; returns the output.
        layers: Names of layers; those that ``config`` leaves dense have no score.

    Returns:
        By layer, the sum over ``batches`` of the squared change of its output times the squared gradient of ``loss``.

    Source: ``modelopt.torch.quantization.auto_quantize``, method "gradient".
    """
    planned = plan(model, config)
    scored = [x for x in planned.layers if x.packed and x.name in layers]
    off = [x.name for x in planned.layers if x not in scored]
    names, pointwise = [x.name for x in scored], [x.name for x in scored if x.as_linear]
    return gradient_scores(
        model, config.modelopt_config["quant_cfg"][:3], names, pointwise, off, batches, loss, forward
    )
