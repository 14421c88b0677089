"""Score layers with ModelOpt's ``auto_quantize``."""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from torch import nn

from modelopt_nb.upstream.layers import make_linear
from modelopt_nb.upstream.quiet import quiet


def gradient_scores(
    model: nn.Module,
    quant_cfg: list[dict[str, Any]],
    layers: Collection[str],
    pointwise: Collection[str],
    disabled: list[str],
    batches: Sequence[Any],
    loss: Callable[[torch.Tensor, Any], torch.Tensor],
    forward: Callable[[nn.Module, Any], torch.Tensor],
) -> dict[str, float]:
    """Score ``layers`` on a copy of ``model``: per layer, squared output change times squared gradient of ``loss``.

    ``pointwise`` names the convolutions among them that count as linear layers; ``disabled`` the layers to leave out.
    """
    twin, names = copy.deepcopy(model), dict.fromkeys(layers)
    owner = {name: name for name in names}
    for name in pointwise:
        make_linear(twin, name, wrap=True)
        owner[f"{name}.0"] = name
    with quiet():
        _, state = mtq.auto_quantize(
            twin, constraints={"effective_bits": 16.0}, data_loader=batches, loss_func=loss, forward_step=forward,
            quantization_formats=[{"quant_cfg": quant_cfg, "algorithm": "max"}], disabled_layers=disabled,
            num_calib_steps=1, num_score_steps=len(batches),
        )  # fmt: skip
    tried = {candidate["module_names"][0]: max(candidate["scores"]) for candidate in state["candidate_stats"].values()}
    return {owner[name]: score for name, score in tried.items() if name in owner}
