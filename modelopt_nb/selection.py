"""Which layers there are, of what kind and where, and how to choose among them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from modelopt_nb import upstream
from modelopt_nb.config import patterns
from modelopt_nb.quantization import named, plan

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import NVIDIAModelOptConfig
    from torch import nn

#: Every kind that :func:`layer_frame` tells apart.
KINDS = (
    *(f"{where}{part}" for where in ("attention ", "cross-attention ") for part in ("q", "k", "v", "qkv", "out")),
    "feed-forward",
    "pointwise convolution",
    "convolution",
    "embedding",
    "modulation",
    "output projection",
    "other",
)
_ATTENTION = {
    "q": r"(to_q|add_q_proj|q_proj|query|q)",
    "k": r"(to_k|add_k_proj|k_proj|key|k)",
    "v": r"(to_v|add_v_proj|v_proj|value|v)",
    "qkv": r"(to_qkv|to_kv|to_added_qkv|qkv)",
    "out": r"(to_out(\.\d+)?|to_add_out|add_out|out_proj|o)",
}
_EMBEDDING = (
    r"embed|(caption|text)_projection|adaln_single\.emb|^proj_in$|^conv_in$|^(timestep|global|cross_attention)_proj"
)
_MODULATION = r"modulation|adaln_single\.linear|time_embed\.linear|time_emb_proj|(^|\.)norm\w*\.linear|ada_?norm|condition_embedder\.time_proj"
_FEED_FORWARD = r"(^|\.)(ff\w*|mlp|ffn|feed_forward|DenseReluDense|proj_mlp)(\.|$)"
_BLOCK = re.compile(r"((?:[a-z]\w*\.)*?(?:(?:\w*blocks|layers?|block)\.\d+|mid_block))\.")


def _kind(name: str, module: nn.Module, parents: Mapping[str, nn.Module]) -> str:
    """The kind of one layer, from what Diffusers and Transformers call such layers and the modules that hold them."""
    from torch import nn

    inside = _BLOCK.match(name) is not None
    last = re.search(r"([A-Za-z]\w*)?(\.?\d+)?$", name).group()
    if isinstance(module, nn.modules.conv._ConvNd) and inside:
        return "pointwise convolution" if upstream.is_pointwise(module) else "convolution"
    parent = parents[name.removesuffix(last).rstrip(".")]
    if "ttention" in type(parent).__name__ or re.search(r"attn|attention", name):
        for part, pattern in _ATTENTION.items():
            if re.fullmatch(pattern, last):
                crossed = getattr(parent, "is_cross_attention", None)
                if crossed is None:
                    crossed = re.search("attn2|cross|EncDec", name)
                return f"{'cross-' if crossed else ''}attention {part}"
    if re.search(_MODULATION, name):
        return "modulation"
    if re.search(_EMBEDDING, name):
        return "embedding"
    if re.search(_FEED_FORWARD, name) or (last == "proj_out" and hasattr(parent, "proj_mlp")):
        return "feed-forward"
    if not inside and re.fullmatch(r"proj_out\w*|conv_out|final_layer\w*|lm_head", last):
        return "output projection"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "pointwise convolution" if upstream.is_pointwise(module) else "convolution"
    return "other"


def _blocks(names: Iterable[str]) -> dict[str, int]:
    """The index of the block that each layer is in, counted through the model in the order of its forward pass."""
    found = {name: match.group(1) for name in names if (match := _BLOCK.match(name))}
    order = {block: i for i, block in enumerate(dict.fromkeys(found.values()))}
    parts = list(dict.fromkeys(block.split(".")[0] for block in order if block.split(".")[0] in ("encoder", "decoder")))

    def place(block: str) -> tuple[int, int, int]:  # a UNet names its middle last
        first, depth = block.split(".")[0], 1 if "mid_block" in block else 2 if "up_blocks" in block else 0
        return (parts.index(first) if first in parts else -1, depth, order[block])

    numbers = {block: i for i, block in enumerate(sorted(order, key=place))}
    return {name: numbers[block] for name, block in found.items()}


def layer_frame(model: nn.Module, config: NVIDIAModelOptConfig | None = None) -> pd.DataFrame:
    """A row for every layer that can be quantized: what it is, where it is, what it takes.

    Columns: ``kind``, one of :data:`KINDS`; ``block``, its index through the model, <NA> outside the blocks; ``shape`` of the
    weight; ``dense bytes``. With ``config`` also ``packed bytes`` (of the weight, scales included; its dense bytes where it stays
    dense), ``packed`` and ``reason``, why it is not. No weight is touched.

    Raises:
        ValueError: As :func:`modelopt_nb.quantize` does, for a ``config`` that does not fit the model.
    """
    import pandas as pd

    layers, parents = upstream.quantizable_layers(model), dict(model.named_modules())
    blocks = _blocks(layers)
    frame = pd.DataFrame(
        {
            "kind": [_kind(name, module, parents) for name, module in layers.items()],
            "block": pd.array([blocks.get(name) for name in layers], dtype="Int64"),
            "shape": [tuple(module.weight.shape) for module in layers.values()],
            "dense bytes": [m.weight.numel() * m.weight.element_size() for m in layers.values()],
        },
        index=pd.Index(layers, name="layer"),
    )
    if config is not None:
        planned = {x.name: x for x in plan(model, config)[0]}
        frame["packed bytes"] = [planned[name].after for name in layers]
        frame["packed"] = [planned[name].packed for name in layers]
        frame["reason"] = [planned[name].reason for name in layers]
    return frame


def select(
    model: nn.Module,
    pattern: str | Iterable[str] | None = None,
    *,
    kind: str | Iterable[str] | None = None,
    blocks: int | Iterable[int] | None = None,
) -> list[str]:
    """The names of the layers that fit all that is asked, ready for ``modules_to_not_convert``.

    Args:
        model: Any model with linear layers or convolutions.
        pattern: As in ``modules_to_not_convert``: the name of a module, a part of a name, or a shell-style pattern.
        kind: One of :data:`KINDS` or a shell-style pattern of it, such as ``"attention *"``.
        blocks: Indices of blocks as in :func:`layer_frame`; negative ones count from the last.

    Raises:
        ValueError: Where something that is asked fits no layer, with the nearest names.
    """
    frame = layer_frame(model)
    modules = {name for name, _ in model.named_modules()}
    chosen = set(frame.index)
    if asked := patterns("pattern", pattern):
        chosen &= {layer for p in asked for layer in named(model, "pattern", p, frame.index, modules)}
    if asked := patterns("kind", kind):
        there = list(dict.fromkeys(frame["kind"]))
        for p in asked:
            if not fnmatch.filter(there, p):
                near = difflib.get_close_matches(p, there, n=3, cutoff=0.3)
                raise ValueError(
                    f"kind={p!r} fits no layer of {type(model).__name__}. Nearest: {', '.join(near or there)}"
                )
        chosen &= {layer for layer, k in frame["kind"].items() if any(fnmatch.fnmatchcase(k, p) for p in asked)}
    if blocks is not None:
        count = 0 if frame["block"].isna().all() else int(frame["block"].max()) + 1
        asked = [blocks] if isinstance(blocks, int) else list(blocks)
        for block in asked:
            if not isinstance(block, int) or not -count <= block < count:
                raise ValueError(f"blocks holds {block!r}. Allowed for {type(model).__name__}: {-count} to {count - 1}")
        numbers = {block % count for block in asked}
        chosen &= {layer for layer, block in frame["block"].dropna().items() if block in numbers}
    if not chosen:
        raise ValueError(f"pattern={pattern!r}, kind={kind!r} and blocks={blocks!r} fit no layer together")
    return [name for name in frame.index if name in chosen]


