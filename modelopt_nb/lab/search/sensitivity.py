"""Measure which layers are sensitive: quantize one group, measure the error of the model's output."""

import contextlib
import copy
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from modelopt_nb import MIB, ModelOptConfig, dequantized, describe_layers, plan, quantize
from modelopt_nb.lab.calibration.model_calls import ModelCall, check_calls
from modelopt_nb.lab.layers.select import layer_frame
from modelopt_nb.lab.search.groups import Groups, as_groups


def sensitivity(
    model: nn.Module, config: ModelOptConfig, calls: Sequence[ModelCall], groups: Groups = "part", *,
    without: bool = False, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Measure how much quantizing each group of layers changes the model's output.

    The model is copied and quantized once; then layers of the two are exchanged in memory. Needs memory for the dense
    weights twice, and for the packed ones.

    Args:
        model: A dense model; unchanged afterwards.
        config: How to quantize the layers; layers that it leaves dense stay dense.
        calls: Calls of the model, from :func:`modelopt_nb.record_calls`.
        groups: A word of :func:`modelopt_nb.layer_groups`, or patterns by group name.
        without: Also measure the error when all layers but this group's are quantized; doubles the time.

    Returns:
        A row per group, the most error for its bytes first. ``layers`` counts them; ``dense bytes`` and ``packed
        bytes`` are those of their weights. ``error alone`` is the squared change of the output over the squared output
        when only this group is quantized: a mean over the calls, weighted by :attr:`ModelCall.weight`. ``error
        without`` is the same when all but this group are quantized. ``error per MiB saved`` divides ``error alone``.
        After an interrupt from the keyboard: the finished rows, with a warning.

    Raises:
        ValueError: No calls, groups that overlap or match nothing, a configuration that does not fit the model.
    """
    describe_layers(model, with_weights=True)
    check_calls(calls)
    layers = {x.name: x for x in plan(model, config).layers if x.packed}
    names = as_groups(model, groups, layers if isinstance(groups, str) else layer_frame(model).index)
    names = {group: [name for name in members if name in layers] for group, members in names.items()}
    if not any(names.values()):
        raise ValueError(f"groups={groups!r} holds no layer that quant_type={config.quant_type!r} packs")
    rows = {}
    try:
        for group, errors in group_errors(model, config, calls, names, without=without, progress=progress):
            members = [layers[name] for name in names[group]]
            dense, packed = sum(x.dense_bytes for x in members), sum(x.packed_bytes for x in members)
            rows[group] = {"layers": len(members), "dense bytes": dense, "packed bytes": packed, **errors}
    except KeyboardInterrupt:
        if not rows:
            raise
        warnings.warn(f"interrupted: {len(rows)} of {len(names)} groups are finished, and are kept", stacklevel=2)
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")
    saved = (frame["dense bytes"] - frame["packed bytes"]) / MIB
    frame["error per MiB saved"] = (frame["error alone"] / saved).where(saved > 0, 0.0)
    return frame.sort_values("error per MiB saved", ascending=False, kind="stable")


def group_errors(
    model: nn.Module, config: ModelOptConfig, calls: Sequence[ModelCall], groups: Mapping[str, Sequence[str]], *,
    without: bool = False, progress: bool = True,
) -> Iterator[tuple[str, dict[str, float]]]:  # fmt: skip
    """Yield each group's name and its errors, as the columns of :func:`sensitivity`; ``groups`` holds layer names."""
    reference = [call(model) for call in calls]
    twin = copy.deepcopy(model)
    quantize(twin, config)
    with dequantized(twin), tqdm(groups.items(), disable=not progress, unit="group") as bar:
        for group, names in bar:
            errors = {"error alone": 0.0}
            if names:
                with exchange_layers(model, twin, names):
                    errors["error alone"] = output_error(model, calls, reference)
            if without:
                with exchange_layers(twin, model, names):
                    errors["error without"] = output_error(twin, calls, reference)
            yield group, errors


@contextlib.contextmanager
def exchange_layers(model: nn.Module, other: nn.Module, names: Iterable[str]) -> Generator[None]:
    """Put the named layers of ``other`` into ``model`` for the duration of a ``with`` block."""
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], name) for name in names]
    before = [parent._modules[child] for parent, child, _ in places]
    for parent, child, name in places:
        parent._modules[child] = other.get_submodule(name)
    try:
        yield
    finally:
        for (parent, child, _), layer in zip(places, before, strict=True):
            parent._modules[child] = layer


def output_error(model: nn.Module, calls: Sequence[ModelCall], reference: Sequence[torch.Tensor]) -> float:
    """Return the squared change of the output over the squared output: a weighted mean over the calls."""
    return sum(
        weight * float((call(model) - r).double().square().sum() / r.double().square().sum())
        for weight, call, r in zip(call_weights(calls), calls, reference, strict=True)
    )


def call_weights(calls: Sequence[ModelCall]) -> list[float]:
    """Return the calls' weights, scaled to a sum of 1."""
    total = sum(call.weight for call in calls)
    return [call.weight / total for call in calls]
