"""List the layers of a model, and select among them."""

import difflib
import fnmatch
from collections.abc import Iterable

import pandas as pd
from torch import nn

from modelopt_nb import ModelOptConfig, as_patterns, describe_layers, matching_layers, plan
from modelopt_nb.lab.layers.kinds import layer_blocks, layer_kind


def layer_frame(model: nn.Module, config: ModelOptConfig | None = None) -> "pd.DataFrame":
    """Return a row per layer that can be quantized.

    Columns: ``kind``, one of :data:`KINDS`; ``block``, its index, <NA> outside the blocks; ``shape`` of the weight;
    ``dense bytes``. With ``config`` also ``packed bytes`` (scales included; the dense bytes where it stays dense),
    ``packed`` and ``reason``. No weight is read.

    Raises:
        TypeError, ValueError: A pipeline; as :func:`modelopt_nb.plan` does.
    """
    rows, modules = describe_layers(model).rows, dict(model.named_modules())
    blocks = layer_blocks(row.name for row in rows)
    frame = pd.DataFrame(index=pd.Index([row.name for row in rows], name="layer"))
    frame["kind"] = [layer_kind(row, modules) for row in rows]
    frame["block"] = pd.array([blocks.get(row.name) for row in rows], dtype="Int64")
    frame["shape"], frame["dense bytes"] = [row.shape for row in rows], [row.bytes for row in rows]
    if config is not None:
        layers = {x.name: x for x in plan(model, config).layers}
        for column, field in (("packed bytes", "packed_bytes"), ("packed", "packed"), ("reason", "reason")):
            frame[column] = [getattr(layers[name], field) for name in frame.index]
    return frame


def select(
    model: nn.Module, pattern: str | Iterable[str] | None = None, *, kind: str | Iterable[str] | None = None,
    blocks: int | Iterable[int] | None = None,
) -> list[str]:  # fmt: skip
    """Select layers by name, kind and block; the result goes into ``modules_to_not_convert``.

    Args:
        model: Any model with linear layers or convolutions.
        pattern: As in ``modules_to_not_convert``: the name of a module, a part of a name, or a shell-style pattern.
        kind: One of :data:`KINDS` or a shell-style pattern of it, such as ``"attention *"``.
        blocks: Indices of blocks as in :func:`modelopt_nb.layer_frame`; negative ones count from the last.

    Raises:
        ValueError: A criterion that matches no layer, with the nearest names.
    """
    frame = layer_frame(model)
    modules = {name for name, _ in model.named_modules()}
    chosen = set(frame.index)
    if patterns := as_patterns("pattern", pattern):
        chosen &= {layer for p in patterns for layer in matching_layers(model, "pattern", p, frame.index, modules)}
    if kinds := as_patterns("kind", kind):
        present = list(dict.fromkeys(frame["kind"]))
        for k in kinds:
            if not fnmatch.filter(present, k):
                near = difflib.get_close_matches(k, present, n=3, cutoff=0.3) or present
                raise ValueError(f"kind={k!r} matches no layer of {type(model).__name__}. Nearest: {', '.join(near)}")
        chosen &= {layer for layer, k in frame["kind"].items() if any(fnmatch.fnmatchcase(k, p) for p in kinds)}
    if blocks is not None:
        count = 0 if frame["block"].isna().all() else int(frame["block"].max()) + 1
        asked = list(blocks) if isinstance(blocks, Iterable) else [blocks]
        for block in asked:
            if not isinstance(block, int) or not -count <= block < count:
                raise ValueError(f"blocks holds {block!r}. Allowed for {type(model).__name__}: {-count} to {count - 1}")
        numbers = {block % count for block in asked}
        chosen &= {layer for layer, block in frame["block"].dropna().items() if block in numbers}
    if not chosen:
        raise ValueError(f"pattern={pattern!r}, kind={kind!r} and blocks={blocks!r} match no layer together")
    return [name for name in frame.index if name in chosen]
