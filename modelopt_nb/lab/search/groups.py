"""Group layers by block, kind or pattern."""

from collections.abc import Container, Iterable, Mapping

from torch import nn

from modelopt_nb import as_patterns, matching_layers
from modelopt_nb.lab.layers.select import layer_frame

#: A word of :func:`layer_groups`, or patterns by group name.
Groups = str | Mapping[str, str | Iterable[str]]


def layer_groups(model: nn.Module, by: str = "part", layers: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Return layer names by group name; each layer is in exactly one group.

    Args:
        model: Any model with linear layers or convolutions.
        by: ``"layer"``, ``"block"``, ``"kind"`` or ``"part"`` (attention, cross-attention, feed-forward and so on of
            each block). Layers outside the blocks are grouped by kind.
        layers: Only these layers; all by default.

    Raises:
        ValueError: An unknown ``by``.
    """
    frame = layer_frame(model)
    frame = frame if layers is None else frame.loc[list(layers)]
    part = frame["kind"].str.replace(r"attention (q|k|v|qkv|out)$", "attention", regex=True)
    block = "block " + frame["block"].astype(str)
    keys = {
        "layer": frame.index.to_series(),
        "kind": frame["kind"],
        "block": block.where(frame["block"].notna(), part),
        "part": (block + " " + part).where(frame["block"].notna(), part),
    }
    if by not in keys:
        raise ValueError(f"by={by!r} is not known. Allowed: {', '.join(keys)}")
    groups: dict[str, list[str]] = {}
    for name, key in keys[by].items():
        groups.setdefault(str(key), []).append(str(name))
    return groups


def as_groups(model: nn.Module, groups: Groups, layers: Iterable[str]) -> dict[str, list[str]]:
    """Resolve ``groups`` to names of ``layers`` by group name. Raises ValueError if groups overlap or match nothing."""
    layers = list(layers)
    if isinstance(groups, str):
        return layer_groups(model, groups, layers)
    if not isinstance(groups, Mapping):
        raise TypeError(f"groups={groups!r} is no grouping. Allowed: a word of layer_groups, or patterns by group name")
    modules = {name for name, _ in model.named_modules()}
    owner: dict[str, str] = {}
    found: dict[str, list[str]] = {}
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


def covering_modules(names: Container[str], layers: Iterable[str], at: str = "") -> list[str]:
    """Return the fewest module names that hold exactly ``names`` among ``layers``; ``at`` is the recursion's prefix."""
    inside = [layer for layer in layers if f"{layer}.".startswith(at)]
    if not any(layer in names for layer in inside):
        return []
    if at and all(layer in names for layer in inside):
        return [at.removesuffix(".")]
    children = dict.fromkeys(at + layer.removeprefix(at).split(".")[0] + "." for layer in inside)
    return [name for child in children for name in covering_modules(names, inside, child)]
