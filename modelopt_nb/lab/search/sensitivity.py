"""Measure which layers hurt: quantize one group, measure the error of the model's output."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from modelopt_nb import MIB, ModelOptConfig, auto_quantize_scores, dequantized, layer_frame, plan, quantize
from modelopt_nb.lab.calibration.model_calls import ModelCall
from modelopt_nb.lab.search.groups import as_groups

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn


@contextlib.contextmanager
def _exchanged(model: nn.Module, other: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let the layers of those names in ``model`` be those of ``other`` while a block of code runs."""
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], name) for name in names]
    before = [parent._modules[child] for parent, child, _ in places]
    for parent, child, name in places:
        parent._modules[child] = other.get_submodule(name)
    try:
        yield
    finally:
        for (parent, child, _), layer in zip(places, before, strict=True):
            parent._modules[child] = layer


def _error(model: nn.Module, calls: Sequence[ModelCall], reference: Sequence[torch.Tensor]) -> float:
    """The squared change of the output over its own square: a mean over the calls, by their weights."""
    weights = _weights(calls)
    changes = [
        float((c(model) - r).double().square().sum() / r.double().square().sum())
        for c, r in zip(calls, reference, strict=True)
    ]
    return sum(w * change for w, change in zip(weights, changes, strict=True))


def _weights(calls: Sequence[ModelCall]) -> list[float]:
    total = sum(call.weight for call in calls)
    return [call.weight / total for call in calls]


def _check_calls(calls: Sequence[ModelCall]) -> None:
    if not calls:
        raise ValueError("calls is empty. Allowed: calls of the model, from capture(pipeline, prompts)")


def sensitivity(
    model: nn.Module,
    config: ModelOptConfig,
    calls: Sequence[ModelCall],
    groups: str | Mapping[str, str | Iterable[str]] = "part",
    *,
    without: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """What quantizing each group of layers does to the model's output, alone and as the only one that is spared.

    The model is quantized once, beside the dense one; then layers change places in memory. Needs room for the model's
    dense weights twice, and packed.

    Args:
        model: A dense model; it is left as it was.
        config: What the layers are quantized to; also the layers that it leaves dense stay so.
        calls: Inputs of the model, from :func:`modelopt_nb.capture`.
        groups: A word of :func:`modelopt_nb.layer_groups`, or patterns by group name.
        without: Measure also what is left when all but one group are quantized.
        progress: Show a progress bar.

    Returns:
        A row a group, the most error for its bytes first: ``layers``; ``dense bytes`` and ``packed bytes`` of its weights;
        ``error alone``, the squared change of the output over its square when this group alone is quantized, a mean over the
        calls by their :attr:`ModelCall.weight`; ``error without``, the same when all the others are; ``error per MiB saved`` of the first. Interrupted from the
        keyboard, the rows that were finished, and a warning.

    Raises:
        ValueError: No calls, groups that overlap or match nothing, a configuration that does not fit.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    _check_calls(calls)
    layers = {x.name: x for x in plan(model, config).layers if x.packed}
    named = as_groups(model, groups, layers if isinstance(groups, str) else layer_frame(model).index)
    named = {group: [name for name in names if name in layers] for group, names in named.items()}
    if not any(named.values()):
        raise ValueError(f"groups={groups!r} holds no layer that quant_type={config.quant_type!r} packs")
    reference = [call(model) for call in calls]
    twin = copy.deepcopy(model)
    quantize(twin, config)
    rows = {}
    try:
        with dequantized(twin), tqdm(named.items(), disable=not progress, unit="group") as bar:
            for group, names in bar:
                row = {
                    "layers": len(names),
                    "dense bytes": sum(layers[name].dense_bytes for name in names),
                    "packed bytes": sum(layers[name].packed_bytes for name in names),
                }
                with _exchanged(model, twin, names):
                    row["error alone"] = _error(model, calls, reference) if names else 0.0
                if without:
                    with _exchanged(twin, model, names):
                        row["error without"] = _error(twin, calls, reference)
                rows[group] = row
    except KeyboardInterrupt:
        if not rows:
            raise
        warnings.warn(f"interrupted: {len(rows)} of {len(named)} groups are finished, and are kept", stacklevel=2)
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")
    saved = (frame["dense bytes"] - frame["packed bytes"]) / MIB
    frame["error per MiB saved"] = (frame["error alone"] / saved).where(saved > 0, 0.0)
    return frame.sort_values("error per MiB saved", ascending=False, kind="stable")


def check_gradients(config: ModelOptConfig) -> None:
    """Refuse a type that ModelOpt cannot round without packing it, which is how ``auto_quantize`` tries types."""
    if config.quant_type.split("_")[0] in ("NF4", "NVFP4"):
        raise ValueError(
            f"method='auto_quantize' cannot try {config.quant_type}: ModelOpt rounds NF4 as INT4 until it is packed, and NVFP4 "
            "on CUDA alone. Allowed with it: FP8, INT8 and INT4; or method='output'"
        )


def gradient_scores(
    model: nn.Module,
    config: ModelOptConfig,
    calls: Sequence[ModelCall],
    groups: Mapping[str, Sequence[str]],
    progress: bool = True,
) -> dict[str, float]:
    """What ``error alone`` of each group will be, as ModelOpt's ``auto_quantize`` estimates it from gradients.

    Its score of a layer is the squared change of the layer's output times the squared gradient of a loss. The loss here is
    the model's output times random signs over the output's norm, so that the score stands for what :func:`sensitivity`
    measures: the squared change of the model's output over its square.

    Raises:
        ValueError: A type that ModelOpt cannot round without packing it, which is how it tries types.

    Source: ``modelopt.torch.quantization.auto_quantize``, method "gradient".
    """
    import torch

    _check_calls(calls)
    check_gradients(config)
    owner = {name: group for group, names in groups.items() for name in names}
    signs = torch.Generator(next(model.parameters()).device)
    batches = [(call, weight, seed) for call, weight in zip(calls, _weights(calls), strict=True) for seed in range(4)]

    def loss(output: torch.Tensor, batch: tuple[ModelCall, float, int]) -> torch.Tensor:
        signs.manual_seed(batch[2])
        ones = torch.randint(0, 2, output.shape, generator=signs, device=output.device) * 2 - 1
        return (output * ones).sum() / output.detach().norm() * batch[1] ** 0.5

    bars = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())
    with bars:
        found = auto_quantize_scores(model, config, batches, loss, lambda m, batch: batch[0].output(m), set(owner))
    scores = dict.fromkeys(groups, 0.0)
    for name, score in found.items():
        scores[owner[name]] += score / 4
    return scores
