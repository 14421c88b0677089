"""Call ModelOpt's ``auto_quantize`` and its exporter."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization import model_calib
from torch import nn

from modelopt_nb.upstream.layers import make_linear
from modelopt_nb.upstream.quantizers import insert_quantizers
from modelopt_nb.upstream.quiet import quiet


def auto_quantize_scores(
    model: nn.Module, quant_cfg: list[dict[str, Any]], layers: Mapping[str, bool], disabled: list[str],
    batches: Sequence[Any], loss: Callable[[Any, Any], torch.Tensor], forward: Callable[[nn.Module, Any], Any],
) -> dict[str, float]:  # fmt: skip
    """Score layers of a copy of ``model``: over ``batches``, squared output change times squared gradient of ``loss``.

    ``layers`` says for each whether it is a convolution that counts as linear; ``disabled`` names those to leave out.
    Source: ``modelopt.torch.quantization.auto_quantize``, method "gradient".
    """
    twin, owner = copy.deepcopy(model), {name: name for name in layers}
    for name in (name for name, pointwise in layers.items() if pointwise):
        make_linear(twin, name, wrap=True)
        owner[f"{name}.0"] = name
    with quiet(), mock.patch.object(model_calib, "_ENABLE_FOLDING_PQS_TO_WEIGHTS", True):  # an error leaves it off
        _, state = mtq.auto_quantize(
            twin, constraints={"effective_bits": 16.0}, data_loader=batches, loss_func=loss, forward_step=forward,
            quantization_formats=[{"quant_cfg": quant_cfg, "algorithm": "max"}], disabled_layers=disabled,
            num_calib_steps=1, num_score_steps=len(batches),
        )  # fmt: skip
    tried = {candidate["module_names"][0]: max(candidate["scores"]) for candidate in state["candidate_stats"].values()}
    return {owner[name]: score for name, score in tried.items() if name in owner}


def export_quantized(
    model: nn.Module, entries: list[dict[str, Any]], algorithm: dict[str, Any],
    calibrate: Callable[[nn.Module], None], folder: contextlib.AbstractContextManager[Path],
) -> None:  # fmt: skip
    """Quantize a copy of a dense model, ``calibrate`` it, then write it with ModelOpt's ``export_hf_checkpoint``."""
    from modelopt.torch.export import export_hf_checkpoint  # needs transformers

    model = copy.deepcopy(model)
    insert_quantizers(model, entries, algorithm)
    calibrate(model)
    with folder as new, quiet(), torch.random.fork_rng([]):  # ModelOpt runs the model on random inputs
        export_hf_checkpoint(model, export_dir=new)
