"""Group layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from modelopt_nb import as_patterns, layer_frame, matching_layers

if TYPE_CHECKING:
    from torch import nn


def layer_groups(model: nn.Module, by: str = "part", layers: Iterable[str] | None = None) -> dict[str, list[str]]:
    """The layers of ``model`` in groups, by the group's name; each layer is in one.

    Args:
        model: Any model with linear layers or convolutions.
        by: ``"layer"``, ``"block"``, ``"kind"``, or ``"part"``: attention, cross-attention, feed-forward and so on of
            each block. Layers outside the blocks are grouped by kind.
        layers: Only these; all by default.
    """
    frame = layer_frame(model)
    frame = frame if layers is None else frame.loc[list(layers)]
    part = frame["kind"].str.replace(r"attention (q|k|v|qkv|out)$", "attention", regex=True)
    place = "block " + frame["block"].astype(str)
    keys = {
        "layer": frame.index.to_series(),
        "kind": frame["kind"],
        "block": place.where(frame["block"].notna(), part),
        "part": (place + " " + part).where(frame["block"].notna(), part),
    }
    if by not in keys:
        raise ValueError(f"by={by!r} is not known. Allowed: {', '.join(keys)}")
    groups: dict[str, list[str]] = {}
    for name, key in keys[by].items():
        groups.setdefault(key, []).append(name)
    return groups


def as_groups(
    model: nn.Module, groups: str | Mapping[str, str | Iterable[str]], layers: Iterable[str]
) -> dict[str, list[str]]:
    """``groups`` as names of ``layers``: grouped by a word of :func:`layer_groups`, or given as patterns by name.

    Raises:
        ValueError: A pattern that matches nothing, a layer that is in two groups, a group without layers.
    """
    layers = list(layers)
    if isinstance(groups, str):
        return layer_groups(model, groups, layers)
    modules, owner, found = {name for name, _ in model.named_modules()}, {}, {}
    for group, value in groups.items():
        argument = f"groups[{group!r}]"
        names = {n for p in as_patterns(argument, value) for n in matching_layers(model, argument, p, layers, modules)}
        found[group] = [name for name in layers if name in names]
        if not found[group]:
            raise ValueError(f"{argument} is empty. Allowed: names or patterns of layers")
        for name in found[group]:
            if owner.setdefault(name, group) != group:
                raise ValueError(f"groups holds {name} twice: in {owner[name]!r} and in {group!r}")
    return found
